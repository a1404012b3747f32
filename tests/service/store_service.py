"""A service of a store on a thread of its own, for tests of what is not asynchronous.

with running_store(folder, opener) as running:
    running.uri("o"), running.uri("m")   # the store's, and that of a volume in memory
    running.do(lambda store: ...)        # runs it where the store lives
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from capstore.backers.memory import MemoryVolume
from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectRange, ObjectStore
from capstore.service.object_streams import object_pages, remove_objects
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving
from tests.service.on_a_thread import OnAThread

T = TypeVar("T")
S = TypeVar("S", bound=ObjectStore)


class WatchedStore(ModelStore):
    """Can do something in front of each read."""

    before_read: Callable[[bytes], None] | None = None

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        if self.before_read is not None:
            self.before_read(key)
        return await super().read(key, offset, length)


async def watched(folder: Path) -> WatchedStore:
    return WatchedStore()


async def st1(folder: Path) -> St1Store:
    return await St1Store.open(folder / "objects.st1", create=True)


class RunningStore(OnAThread, Generic[S]):
    """Made by `running_store`; `uris` is a file with the URIs."""

    store: S

    def __init__(self, folder: Path, opener: Callable[[Path], Awaitable[S]]) -> None:
        self.uris = folder / "uris"
        self._folder = folder
        self._opener = opener
        super().__init__("service of a store")

    async def serve(self) -> None:
        self.store = await self._opener(self._folder)
        volumes = {"o": self.store, "m": await MemoryVolume.open()}
        async with serving(volumes, folder=self._folder) as served:
            lines = [f"{name}\t{uri}\n" for name, uri in served.unix.items()]
            self.uris.write_text("".join(lines))
            self.uris.chmod(0o600)
            await self.until_stopped()

    def do(self, action: Callable[[S], Coroutine[Any, Any, T]]) -> T:
        return self.run(action(self.store))

    def at(self, name: str = "o") -> str:
        """A location, as the command takes it."""
        return f"@{self.uris}#{name}"

    def uri(self, name: str = "o") -> str:
        lines = dict(line.split("\t") for line in self.uris.read_text().splitlines())
        return lines[name]

    def put(self, key: bytes, data: bytes) -> int:
        return self.do(lambda store: store.put(data, key)).version

    def objects(self) -> dict[bytes, bytes]:
        return self.do(_objects)

    def empty(self) -> None:
        self.do(remove_objects)


async def _objects(store: ObjectStore) -> dict[bytes, bytes]:
    pages = [page async for page in object_pages(store)]
    return {stat.key: await store.get(stat.key) for page in pages for stat in page}


@contextmanager
def running_store(
    folder: Path, opener: Callable[[Path], Awaitable[S]]
) -> Iterator[RunningStore[S]]:
    running = RunningStore(folder, opener)
    try:
        yield running
    finally:
        running.stop()
