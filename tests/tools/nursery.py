"""A process that forks a child for each run of the command.

Importing is most of what a short run does, and taking everything imported apart again is most of
the rest.  Here the one is done once and the other never; each child is a process of its own all the
same, with its own descriptors, arguments, environment and exit code, and runs the command's entry
point from there.

Started with the number of a socket, on which each request is a JSON object with the three standard
descriptors and one more; the answer is the child's process id with a pidfd, and when it has ended
its exit code is written to that fourth descriptor.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import socket
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from functools import cache
from typing import Final, NoReturn

import typer.main

import capstore.tools
from capstore.tools.main import app, main

REQUEST_BYTES_MAX: Final = 1 << 20
DESCRIPTORS: Final = 4
# Behind the standard ones; the nursery itself holds few.
_OTHERS: Final = (3, 1024)


def import_everything() -> None:
    """What the verbs import when they run, and what typer makes of them before it parses."""
    typer.main.get_command = cache(typer.main.get_command)
    for module in pkgutil.iter_modules(capstore.tools.__path__, "capstore.tools."):
        if not module.ispkg:
            importlib.import_module(module.name)
    with redirect_stdout(io.StringIO()):
        app(["limits", "--json"], standalone_mode=False)
    gc.freeze()


def become(request: dict[str, object], descriptors: list[int]) -> None:
    """Turns this process into a run of the command."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(*_OTHERS)
    # What they lead to may be of another kind than the nursery's, which cannot seek, say.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    time.tzset()
    os.chdir(str(request["folder"]))
    sys.argv = ["capstore", *request["arguments"]]  # type: ignore[misc]


def run_to_its_end() -> NoReturn:
    """Runs the command, and what an interpreter does when it ends but for taking modules apart."""
    try:
        main()
    except SystemExit as left:
        code = left.code
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # What nobody holds any more and was not closed warns, as it would.
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # type: ignore[arg-type]


class Nursery:
    """Begins a run for each request, and tells how those that have ended did."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)

    def serve(self) -> None:
        """Returns when nobody asks any more."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._ended(key.fd, *key.data)
                elif not self._begin():
                    return

    def _begin(self) -> bool:
        text, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES_MAX, DESCRIPTORS)
        if not text:
            return False
        *standard, report = descriptors
        child = os.fork()
        if child == 0:
            become(json.loads(text), standard)
            run_to_its_end()
        for descriptor in standard:
            os.close(descriptor)
        process = os.pidfd_open(child)
        socket.send_fds(self._requests, [b"%d" % child], [process])
        self._selector.register(process, selectors.EVENT_READ, (child, report))
        return True

    def _ended(self, descriptor: int, child: int, report: int) -> None:
        self._selector.unregister(descriptor)
        _, status = os.waitpid(child, 0)
        with suppress(BrokenPipeError):
            os.write(report, b"%d" % os.waitstatus_to_exitcode(status))
        os.close(report)
        os.close(descriptor)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests_socket:
        import_everything()
        Nursery(requests_socket).serve()
