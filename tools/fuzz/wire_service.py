"""The service that the fuzzer of the wire sends to, in a process of its own.

Invariants: it listens on a unix socket and with TLS, and has an old key beside its own, so that
whatever a handshake may say of keys is looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from capstore.schema.limits import KIB
from capstore.service.state import StateDirectory
from capstore.service.uri import CapabilityURI

_STOP_SECONDS: Final = 30.0
_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _NS
_VOLUMES: Final = ("tree", "objects", "quiet")


class Service:
    """A process that serves a tree, objects, and a tree for the client beside.

    `uris` are by volume, those of the unix socket; `encrypted` are those of TLS.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stderr = (folder / "stderr").open("w+b")
        self._read = 0
        state = folder / "state"
        self.old_key = _with_old_key(state)
        volumes = ("tree=memory:", f"objects=st1:{folder}/objects.st1,create", "quiet=memory:")
        listen = ("--listen", f"unix:{state}/socket", "--listen", "127.0.0.1:0")
        options = ("--state", str(state), "--log-level", "error")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "capstore.tools.main", "serve", *volumes, *listen, *options],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self.uris: dict[str, CapabilityURI] = {}
        self.encrypted: dict[str, CapabilityURI] = {}
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        for _ in range(2 * len(_VOLUMES)):
            line = self._process.stdout.readline().decode()
            name, _, text = line.strip().partition("\t")
            uri = CapabilityURI.parse(text)
            (self.encrypted if uri.socket is None else self.uris)[name] = uri

    @property
    def socket(self) -> str:
        """Where it listens."""
        return self.uris["tree"].socket or ""

    def ended(self) -> str | None:
        """How the process ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"the service ended with {signal.Signals(-code).name if code < 0 else code}"

    def said(self) -> str:
        """What it wrote on standard error since the last time."""
        self._stderr.seek(self._read)
        text = self._stderr.read()
        self._read += len(text)
        return text.decode(errors="replace")

    def rss(self) -> int:
        """Resident bytes; 0 where the system does not tell."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * KIB
        return 0

    def descriptors(self) -> int:
        """How many are open; 0 where the system does not tell."""
        try:
            return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))
        except OSError:
            return 0

    def processor_seconds(self) -> float:
        """What it has used of the processor; 0 where the system does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        # The name of the program, in brackets, may hold anything; utime and stime are 14 and 15.
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()


def _with_old_key(path: Path) -> str:
    """Makes a state with a key beside the service's own; returns its fingerprint."""
    with contextlib.closing(StateDirectory.open(path)) as state:
        old = state.service_keys().current
        state.rotate_service_key(time.time_ns() + _DAY_NS)
        return old.fingerprint


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """A service while inside."""
    with tempfile.TemporaryDirectory(prefix="capstore-fuzz-") as folder:
        service = Service(Path(folder))
        try:
            yield service
        finally:
            service.stop()
