"""Where authority cases are: a service in a process of its own, and its clients.

Invariants:

* The volume is in memory, so that what stands in front of it is measured; the process is set up as
  ``capstore serve`` sets up its own.
* A client goes through `capstore.connect` and nothing else.
* What helps to measure (connections that are idle, a client that floods) is a process of its own,
  so that neither its time nor its memory is counted for anybody.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capstore.schema.limits import MIB
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.tools.bench.contestants import BenchError, server_process

UNIX, TLS = "unix", "tls"

_VOLUME: Final = "memory:,max-bytes=256MiB,max-file-bytes=64MiB"
_AUDIT_BYTES_MAX: Final = 64 * MIB
# What a process needs besides its connections.
_DESCRIPTORS: Final = 100
_MICROSECOND: Final = 1000


# A service -----------------------------------------------------------------------------------


@asynccontextmanager
async def serve(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Serves a volume in memory, with its state in ``folder``; with an ``audit``, of what is
    traced."""
    from capstore.backers.spec import open_volume
    from capstore.service.audit import Audit, Only, Selection
    from capstore.service.audit_file import AuditFile
    from capstore.service.listening import keep_tls_buffers_small
    from capstore.service.observing import Observers
    from capstore.service.server import start
    from capstore.service.state import StateDirectory
    from capstore.tools.serving import prefer_short_pauses, raise_descriptor_limit

    raise_descriptor_limit()
    keep_tls_buffers_small()
    folder = Path(config["folder"])
    observers = None
    if config["audit"]:
        file = AuditFile(folder / "audit", size_max=_AUDIT_BYTES_MAX, keep=1)
        observers = Observers(Audit(file, Selection(only=frozenset({Only.TRACED}))), None)
    volume = await open_volume(_VOLUME)
    state = StateDirectory.open(folder / "state")
    async with start({"bench": volume}, state, observers=observers) as service:
        await service.listen_unix(folder / "socket")
        await service.listen_tls("127.0.0.1", 0)
        uris = {UNIX if uri.socket else TLS: str(uri) for _, uri in service.owner_uris()}
        prefer_short_pauses()
        yield {**uris, "pid": os.getpid()}


class Process:
    """The process of a service, as the kernel sees it."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}")

    @property
    def is_metered(self) -> bool:
        """Whether the kernel tells how long it ran (CONFIG_SCHED_INFO)."""
        return (self._path / "schedstat").exists()

    def ran_us(self) -> float:
        """How long it has had a processor, all threads together."""
        tasks = (self._path / "task").iterdir()
        return (
            sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / _MICROSECOND
        )

    def memory_kib(self) -> int:
        """What it takes, of what it shares with others a part."""
        lines = (self._path / "smaps_rollup").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that runs: its process, and the URIs of its volume by transport."""

    process: Process
    uris: dict[str, str]

    @asynccontextmanager
    async def root(self, transport: str = UNIX) -> AsyncIterator[Directory]:
        """The root of the volume, over a connection of its own."""
        async with root_of(self.uris[transport]) as root:
            yield root

    @asynccontextmanager
    async def roots(self, count: int, transport: str = UNIX) -> AsyncIterator[list[Directory]]:
        """So many, each over a connection of its own."""
        async with roots_of(self.uris[transport], count) as roots:
            yield roots


@asynccontextmanager
async def serving(*, audit: bool = False) -> AsyncIterator[Serving]:
    """A new service, for as long as it is used."""
    with tempfile.TemporaryDirectory(prefix="capstore-bench-") as folder:
        config = {"folder": folder, "audit": "traced" if audit else ""}
        async with server_process("authority", config) as ready:
            yield Serving(Process(ready["pid"]), {name: ready[name] for name in (UNIX, TLS)})


@asynccontextmanager
async def root_of(uri: str) -> AsyncIterator[Directory]:
    """The directory of a URI."""
    async with connect(uri) as root:
        if not isinstance(root, Directory):
            raise BenchError("the service gave no directory")
        yield root


@asynccontextmanager
async def roots_of(uri: str, count: int) -> AsyncIterator[list[Directory]]:
    """The directory of a URI, so many times, each over a connection of its own."""
    async with AsyncExitStack() as stack:
        roots = [await stack.enter_async_context(root_of(uri)) for _ in range(count)]
        try:
            yield roots
        finally:
            # Before the connections that they are of.
            roots.clear()


# Beside the one who measures -------------------------------------------------------------------


@asynccontextmanager
async def idle(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Holds the directory of ``uri`` over ``count`` connections, and asks nothing."""
    from capstore.tools.serving import raise_descriptor_limit

    raise_descriptor_limit()
    async with roots_of(config["uri"], int(config["count"])):
        yield {}


@asynccontextmanager
async def flood(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Has ``count`` calls under way all the time, over one connection to ``uri``."""
    async with root_of(config["uri"]) as root:
        answered = asyncio.Event()

        async def one() -> None:
            while True:
                await root.stat()
                answered.set()

        flooding = [asyncio.create_task(one()) for _ in range(int(config["count"]))]
        try:
            await answered.wait()
            yield {}
        finally:
            for task in flooding:
                task.cancel()
            await asyncio.wait(flooding)


@asynccontextmanager
async def beside(kind: str, uri: str, count: int) -> AsyncIterator[None]:
    """While inside there is a process of this kind, `idle` or `flood`."""
    async with server_process(kind, {"uri": uri, "count": str(count)}):
        yield


def descriptors_missing(connections: int) -> str | None:
    """Why a process cannot have so many connections, or None if it can."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _DESCRIPTORS
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    return f"a process may have {hard} descriptors (ulimit -Hn), and {needed} are needed"
