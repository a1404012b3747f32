"""The same backers behind a service: every test of the suite runs over a connection too."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.service.server import Service
from tests.contract.harness import HARNESSES, LONG, READERS, Harness, Tree, delayed, populate
from tests.service.inprocess import serving

Maker = Callable[[Path], Awaitable[Volume]]
Settled = Callable[[], Awaitable[None]]


def _settled(root: Directory, service: Service) -> Settled:
    async def settled() -> None:
        # The service has heard of a cancellation when it answers what was sent behind it.
        await root.stat()
        while any(session.calls_in_flight for session in service.sessions):
            await asyncio.sleep(0.001)

    return settled


async def _memory(_: Path) -> Volume:
    return await MemoryVolume.open()


async def _dir(folder: Path) -> Volume:
    (folder / "tree").mkdir()
    return await HostVolume.open(str(folder / "tree"))


@asynccontextmanager
async def _remote(make: Maker, *, tls: bool) -> AsyncIterator[tuple[Directory, Volume, Settled]]:
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        volume = await make(Path(folder))
        async with (
            serving({"v": volume}, folder=Path(folder), tls=tls) as served,
            connect((served.tls if tls else served.unix)["v"]) as root,
        ):
            assert isinstance(root, Directory)
            yield root, volume, _settled(root, served.service)


def _writable(
    make: Maker, *, snapshots: bool, created_times: bool, tls: bool = False
) -> Callable[[], AbstractAsyncContextManager[Harness]]:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Harness]:
        async with _remote(make, tls=tls) as (root, _, settled):
            yield Harness(root, snapshots=snapshots, created_times=created_times, settled=settled)

    return factory


def _reading(make: Maker) -> Callable[[Tree], AbstractAsyncContextManager[Harness]]:
    """A writable volume seen through a read-only capability."""

    @asynccontextmanager
    async def factory(tree: Tree) -> AsyncIterator[Harness]:
        async with _remote(make, tls=False) as (root, volume, _):
            await populate(volume.root, tree)
            yield Harness(await root.read_only())

    return factory


HARNESSES["rpc-memory"] = _writable(_memory, snapshots=True, created_times=True)
HARNESSES["rpc-dir"] = _writable(_dir, snapshots=False, created_times=False)
HARNESSES["tls-memory"] = _writable(_memory, snapshots=True, created_times=True, tls=True)
HARNESSES["rpc-memory+delay"] = delayed(HARNESSES["rpc-memory"])
LONG |= {"tls-memory", "rpc-dir", "rpc-memory+delay"}
READERS["rpc-memory-read-only"] = _reading(_memory)
READERS["rpc-dir-read-only"] = _reading(_dir)
