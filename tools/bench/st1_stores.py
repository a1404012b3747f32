"""Who takes part in the st1 cases: `Objects`, and a CAPOSST1 store in process.

Invariants:

* All keep their objects on one disk, in a directory each, and what one of them says is durable is
  so by its own means: nobody is asked for less than the others.
* A workload is written once, as coroutines (`capstore.tools.bench.workers`): those of capstore are
  tasks of an event loop, those of whoever blocks have a thread each.
* An answer is counted by its length, so that none can be fast by being short.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final

from capstore.backers.st1 import St1Store
from capstore.backers.store import Condition, Delete, ObjectStore, Put
from capstore.schema.errors import Conflict, NotFound
from capstore.schema.limits import KIB
from capstore.tools.bench.workers import Worker, gathered

CAPSTORE, RPC, SQLITE, LMDB, ZODB = "capstore", "rpc", "sqlite", "lmdb", "zodb"

# The image, in the directory of whoever has one.
IMAGE: Final = "objects.st1"

# What is modified is no longer.
_MODIFIED_BYTES_MAX: Final = 64 * KIB

Pair = tuple[bytes, bytes]


class Objects(ABC):
    """An open store in a host directory: what was left there by one of the same kind, or none."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, workers: Sequence[Worker]) -> int:
        """Does all of `workers` at once; how many units that was."""

    @abstractmethod
    async def get(self, key: bytes) -> int:
        """Reads an object; counts the bytes, 0 where there is none."""

    @abstractmethod
    async def put(self, key: bytes, value: bytes) -> None:
        """Stores an object, durable when this returns."""

    @abstractmethod
    async def put_all(self, pairs: Sequence[Pair]) -> None:
        """Stores objects at once, all or none, durable when this returns."""

    @abstractmethod
    async def delete_all(self, keys: Sequence[bytes]) -> None:
        """Removes objects that are there, at once, durable when this returns."""

    @abstractmethod
    async def scan(self, key: bytes, count: int) -> int:
        """Reads the objects from `key` on, in the order of keys, `count` or as many as there are;
        counts the bytes."""

    @abstractmethod
    async def modify(self, key: bytes, value: bytes) -> int:
        """Reads an object and stores another in its place, durable when this returns, with nobody
        else's change in between; counts what it read."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""


Maker = Callable[[Path], Objects]


@contextmanager
def opened(make: Maker, folder: Path) -> Iterator[Objects]:
    """The store in `folder`, and closed again."""
    with closing(make(folder)) as objects:
        yield objects


class OverStore(Objects):
    """A store of capstore's, on an event loop that runs only while a workload does."""

    def __init__(self, runner: asyncio.Runner, store: ObjectStore) -> None:
        self.runner = runner
        self.store = store

    def run(self, workers: Sequence[Worker]) -> int:
        return self.runner.run(gathered(workers))

    async def get(self, key: bytes) -> int:
        try:
            return len(await self.store.get(key))
        except NotFound:
            return 0

    async def put(self, key: bytes, value: bytes) -> None:
        await self.store.put(value, key)

    async def put_all(self, pairs: Sequence[Pair]) -> None:
        await self.store.batch([Put(key, value) for key, value in pairs])

    async def delete_all(self, keys: Sequence[bytes]) -> None:
        await self.store.batch([Delete(key) for key in keys])

    async def scan(self, key: bytes, count: int) -> int:
        # A listing begins behind a key, and a key ends where it ends: this one comes right before.
        before = key[:-1] + bytes([key[-1] - 1]) + b"\xff" * len(key)
        page = await self.store.list(b"", before, count)
        return await self.get_all([stat.key for stat in page.objects])

    async def get_all(self, keys: Sequence[bytes]) -> int:
        """Reads objects that are there; counts the bytes."""
        return sum([await self.get(key) for key in keys])

    async def modify(self, key: bytes, value: bytes) -> int:
        while True:
            found = await self.store.read(key, 0, _MODIFIED_BYTES_MAX)
            with suppress(Conflict):
                await self.store.put(value, key, Condition(version=found.stat.version))
                return len(found.data)


class Capstore(OverStore):
    """The backer, in process."""

    name = CAPSTORE

    def __init__(self, folder: Path) -> None:
        runner = asyncio.Runner()
        super().__init__(runner, runner.run(St1Store.open(folder / IMAGE, create=True)))

    def close(self) -> None:
        try:
            self.runner.run(self.store.close())
        finally:
            self.runner.close()
