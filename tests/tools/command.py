"""The real command, run as a process, and a service that is one."""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

WARNINGS = "error"
COMMAND = (sys.executable, "-m", "capstore.tools.main")
TOKEN = re.compile(rb"(?<![\w-])[\w-]{43}(?![\w-])")
READY_SECONDS = 20
RUN_SECONDS = 300


@dataclass(frozen=True)
class Ran:
    """What a run of the command gave."""

    code: int
    raw: bytes
    error: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    def ok(self) -> str:
        """Its output, if it succeeded and said nothing."""
        assert (self.code, self.error) == (0, "")
        return self.out

    def failed(self, code: str) -> str:
        """Its one line of error, if it failed with this code of an error."""
        assert self.code == 1, self
        assert self.raw == b""
        assert re.fullmatch(rf"capstore: {code}(: [^\n]*)?\n", self.error), self.error
        return self.error


class Child:
    """A run of the command by the nursery, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, process: int, report: IO[bytes]) -> None:
        """Takes over `process`, a pidfd, and where its exit code is to come from."""
        self.pid = pid
        self.stdout: IO[bytes] | None = None
        self.returncode: int | None = None
        self._process = process
        self._report = report

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.  Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._report, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("capstore", timeout or 0)
            self.returncode = int(self._report.read())
            self._report.close()
            os.close(self._process)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """Runs the command in children of a process that has imported it; see `nursery`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.tools.nursery", str(theirs.fileno())],
                env=os.environ | {"PYTHONWARNINGS": WARNINGS},
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
            )

    def begin(
        self, arguments: Sequence[str], files: Sequence[IO[bytes]], folder: Path, **more: str
    ) -> Child:
        """Begins a run, with these as stdin, stdout and stderr."""
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(os.environ) | more,
        }
        end, report = os.pipe()
        try:
            descriptors = [*(file.fileno() for file in files), report]
            with self._lock:
                socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
                pid, (process,), _, _ = socket.recv_fds(self._requests, 100, 1)
        except BaseException:
            os.close(end)
            raise
        finally:
            os.close(report)
        return Child(int(pid), process, open(end, "rb"))

    def close(self) -> None:
        self._requests.close()
        self._process.wait(20)


@cache
def nursery() -> _Nursery:
    """The one of this process, and of its tests."""
    made = _Nursery()
    atexit.register(made.close)
    return made


def capstore(
    *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None, **environment: str
) -> Ran:
    """Runs the command to its end, in a process of its own."""
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as error:
        given.write(stdin)
        given.seek(0)
        child = nursery().begin(
            [str(argument) for argument in arguments],
            (given, out, error),
            cwd or Path.cwd(),
            **environment,
        )
        code = child.wait(RUN_SECONDS)
        out.seek(0)
        error.seek(0)
        return _checked(Ran(code, out.read(), error.read().decode()))


def started(*arguments: str | Path, cwd: Path | None = None) -> Ran:
    """As `capstore`, with an interpreter of its own: what is typed, to the letter."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        cwd=cwd,
        env=os.environ | {"PYTHONWARNINGS": WARNINGS},
        check=False,
    )
    return _checked(Ran(done.returncode, done.stdout, done.stderr.decode()))


def _checked(ran: Ran) -> Ran:
    # No run ever says a token where it would be logged.
    assert not TOKEN.search(ran.error.encode())
    assert "Traceback" not in ran.error, ran.error
    return ran


class Served:
    """A ``capstore serve`` that is ready; `folder` holds its state, `log` its stderr."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path],
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "socket"
        self.uri_file = folder / "uris"
        self._log = (folder / "log").open("w+b")
        if cwd is None:
            arguments = [
                *("--state", self.state, "--uri-file", self.uri_file),
                *("--listen", f"unix:{self.socket}"),
                *arguments,
            ]
        # What is in front of it, or asked of the interpreter, needs one of its own.
        begin = self._begun_anew if prefix or environment else self._begun
        self.process = begin(["serve", *map(str, arguments)], cwd, prefix, environment)
        try:
            self.lines = self._until_ready()
        except BaseException:
            self.close()
            raise

    def _begun(
        self, arguments: Sequence[str], cwd: Path | None, *none: object
    ) -> Child | subprocess.Popen[bytes]:
        end, stdout = os.pipe()
        with open(os.devnull, "rb") as stdin, open(stdout, "wb") as out:
            child = nursery().begin(arguments, (stdin, out, self._log), cwd or Path.cwd())
        child.stdout = open(end, "rb")  # noqa: SIM115 - closed with the child
        return child

    def _begun_anew(
        self,
        arguments: Sequence[str],
        cwd: Path | None,
        prefix: Sequence[str],
        environment: Mapping[str, str],
    ) -> Child | subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*prefix, *COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=cwd,
            env={**os.environ, "PYTHONWARNINGS": WARNINGS, **environment},
        )

    def _until_ready(self) -> list[str]:
        """The lines it prints, which come in one write."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            selector.select(READY_SECONDS)
        lines = os.read(self.process.stdout.fileno(), 1 << 16).decode()
        assert lines.endswith("\n"), self.log
        return lines.splitlines()

    @property
    def log(self) -> str:
        self._log.flush()
        return (self.folder / "log").read_text()

    def uri(self, name: str, scheme: str = "insecure") -> str:
        for line in self.lines:
            if line.startswith(f"{name}\tcapnp://{scheme}"):
                return line.partition("\t")[2]
        raise KeyError(name)

    def at(self, name: str, path: str = "") -> str:
        """A location by the file of URIs."""
        return f"@{self.uri_file}#{name}" + (f"/-/{path}" if path else "")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


@contextmanager
def serving(
    *arguments: str | Path,
    cwd: Path | None = None,
    prefix: Sequence[str] = (),
    **environment: str,
) -> Iterator[Served]:
    # Short, because the path of a socket has to be.
    with tempfile.TemporaryDirectory(prefix="capstore-") as folder:
        served = Served(Path(folder), arguments, cwd, prefix, **environment)
        try:
            yield served
        finally:
            served.close()


def wait_until(condition: object, seconds: float = 10) -> None:
    """Returns when the callable `condition` is true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
