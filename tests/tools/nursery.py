"""A process that forks a child for each run of the command.

Importing is most of what a short run does.  Here it is done once; each child is a process of its
own all the same, with its own descriptors, arguments, environment and exit, and runs the command's
entry point from there.

Started with the number of a socket, on which each request is a JSON object and the three standard
descriptors, and the answer is the child's exit code.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import socket
import sys
import time
from contextlib import redirect_stdout

import capstore.tools
from capstore.tools.main import app, main

REQUEST_BYTES_MAX = 1 << 20


def import_everything() -> None:
    """What the verbs import when they run, and what they make typer import."""
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
            main()
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        requests.send(b"%d" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests_socket:
        serve(requests_socket)
