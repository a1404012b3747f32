"""A process that forks a child for each run of the command.

Importing is most of what a short run does, and taking everything imported apart again is most of
the rest.  Here the one is done once and the other never; each child is a process of its own all the
same, with its own descriptors, arguments, environment and exit code, and runs the command's entry
point from there.

Started with the number of a socket, on which each request is a JSON object and the three standard
descriptors, and the answer is the child's exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import socket
import sys
import threading
import time
from contextlib import redirect_stdout
from functools import cache
from typing import NoReturn

import typer.main

import capstore.tools
from capstore.tools.main import app, main

REQUEST_BYTES_MAX = 1 << 20


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
        os.close(descriptor)
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


def serve(requests: socket.socket) -> None:
    import_everything()
    while True:
        text, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, 3)
        if not text:
            return
        child = os.fork()
        if child == 0:
            requests.close()
            become(json.loads(text), descriptors)
            run_to_its_end()
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        requests.send(b"%d" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests_socket:
        serve(requests_socket)
