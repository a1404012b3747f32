"""CAPOSST1 as a store: an engine that is driven (`capstore.backers.driver`), durable on return.

Invariants:

* A change is answered when the flush has returned that covers it; all that come meanwhile share the
  next one.
* A put in pieces belongs to its sink: dropped before `commit`, it leaves nothing, in whatever
  thread that happens.
* Long values are read in a worker, short ones on the loop where they are at hand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, TypeVar

from capstore.backers.driver import Driver, Upkeep, opened
from capstore.backers.image_file import open_device
from capstore.backers.store import (
    ANY,
    Binding,
    BindingPage,
    Change,
    Collected,
    Condition,
    Namespace,
    ObjectPage,
    ObjectRange,
    ObjectSink,
    ObjectStat,
    ObjectStore,
    Put,
    check_key,
)
from capstore.images import st1_names
from capstore.images.device import BlockDevice
from capstore.images.st1_collect import Collecting
from capstore.images.st1_engine import Clock, St1Engine
from capstore.images.st1_open import format_st1, open_st1
from capstore.images.st1_sink import Writing
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.schema.errors import InvalidArgument, TooLarge
from capstore.schema.limits import KIB, OBJECT_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Buffer, Usage

T = TypeVar("T")

# Longer values are read where they may take their time.
_AT_ONCE_BYTES_MAX: Final = 64 * KIB
_SECOND: Final = 1_000_000_000
# A longer page is put together in a worker, which leaves the loop to others.
_AT_ONCE_ENTRIES_MAX: Final = 100


class St1Store(ObjectStore):
    """An open CAPOSST1 image; made by `open`."""

    def __init__(self, engine: St1Engine, *, read_only: bool, clock: Clock) -> None:
        """Takes over `engine`; to be called on the loop that the store is used on."""
        self._clock = clock
        self._driver = Driver(engine, what="store", read_only=read_only)

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        size: int | None = None,
        read_only: bool = False,
        clock: Clock = time.time_ns,
    ) -> St1Store:
        """Opens the image at `path`; with `create` makes one that is not there.

        A new one grows, or has `size` bytes for good.  `clock` gives nanoseconds since 1970.
        Raises `NotFound`, `Busy` when somebody else has it open, `Corrupt`, `Unsupported`,
        `InvalidArgument`, and what the host says about the file.
        """

        def make(device: BlockDevice) -> None:
            format_st1(device, size=size, clock=clock)

        return await cls.over(
            lambda: open_device(path, make=make if create else None, read_only=read_only),
            read_only=read_only,
            clock=clock,
        )

    @classmethod
    async def over(
        cls,
        opener: Callable[[], BlockDevice],
        *,
        read_only: bool = False,
        clock: Clock = time.time_ns,
    ) -> St1Store:
        """The store on the device that `opener` opens, in a worker; as `open`."""
        engine = await opened(
            opener, lambda device: open_st1(device, writable=not read_only, clock=clock)
        )
        return cls(engine, read_only=read_only, clock=clock)

    def __repr__(self) -> str:
        return f"<St1Store {self._driver.engine!r}>"

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading."""
        return self._driver.read_only

    @property
    def upkeep(self) -> Upkeep:
        """What was done beside operations so far."""
        writer = self._driver.engine.writer
        return Upkeep(writer.flushes, writer.superblock.generation)

    # Reading -------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes:
        return await self._driver.look(lambda engine: engine.get(key))

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        check_key(key)

        def ranged(engine: St1Engine) -> ObjectRange:
            if length > _AT_ONCE_BYTES_MAX and WITHOUT_WAITING.entered:
                raise WouldWait
            return ObjectRange(*engine.read(key, offset, length))

        return await self._driver.look(ranged)

    async def stat(self, key: bytes) -> ObjectStat:
        return await self._driver.look(lambda engine: engine.stat(key))

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return await self._driver.look(
            lambda engine: ObjectPage(*engine.list(prefix, after, limit)),
            at_once=limit <= _AT_ONCE_ENTRIES_MAX,
        )

    async def usage(self) -> Usage:
        self._driver.check_open()
        return await self._driver.in_lane(lambda engine: engine.usage())

    # Changing ------------------------------------------------------------------------------------

    async def durably(self, function: Callable[[St1Engine], T]) -> T:
        """What `function`, which changes something once at most, makes of the engine, when that is
        durable."""
        result = await self._driver.change(function)
        await self._driver.sync()
        return result

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        check_key(key, empty=True)
        _check_size(data)
        return await self.durably(lambda engine: engine.put(key, data, condition))

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        check_key(key)
        await self.durably(lambda engine: engine.delete(key, condition))

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        for change in changes:
            check_key(change.key, empty=isinstance(change, Put))
            if isinstance(change, Put):
                _check_size(change.data)
        return await self.durably(lambda engine: engine.batch(changes))

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> ObjectSink:
        writing = await self._driver.change(lambda engine: engine.begin(key, condition, size))
        return St1Sink(self, self._driver, writing)

    # The whole -----------------------------------------------------------------------------------

    async def compact(self) -> None:
        """Gives back the space of what was replaced or removed, step by step while others go on.

        Raises `NoSpace`, `ReadOnly`."""
        self._driver.check_writable()
        await self._take(await self._driver.in_lane(lambda engine: engine.compact_steps()))

    async def collect(self, older_than: float = 0.0) -> Collected:
        self._driver.check_writable()
        if not older_than >= 0:
            raise InvalidArgument("an age is not negative")
        collecting = await self._driver.in_lane(
            lambda engine: Collecting(engine, int(older_than * _SECOND), self._clock)
        )
        await self._take(collecting.steps())
        return collecting.collected

    async def _take(self, steps: Iterator[None]) -> None:
        """Takes steps, one by one while others go on, and makes durable what they did; one that is
        cancelled ends it."""
        try:
            while await self._driver.step(lambda: _goes_on(steps)):
                continue
        finally:
            if isinstance(steps, Generator):
                await self._driver.in_lane(lambda _: steps.close())
        await self._driver.sync()

    @property
    def names(self) -> Namespace:
        """The names over this store."""
        return St1Namespace(self, self._driver, ())

    async def sync(self) -> None:
        await self._driver.sync()

    async def close(self) -> None:
        """Makes everything durable and releases the image, also when that fails; what failed is
        raised to who waits for it."""
        await self._driver.close()


def _check_size(data: Buffer) -> None:
    if memoryview(data).nbytes > OBJECT_BYTES_MAX:
        raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes")


class St1Sink(ObjectSink):
    """A put in pieces; made by `St1Store.begin`."""

    def __init__(self, store: St1Store, driver: Driver[St1Engine], writing: Writing) -> None:
        self._store = store
        self._driver = driver
        self._writing = writing

    def __repr__(self) -> str:
        return f"<St1Sink of {self._writing!r}>"

    async def write(self, data: Buffer) -> None:
        await self._driver.change(lambda _: self._writing.write(data))

    async def commit(self) -> ObjectStat:
        return await self._store.durably(lambda _: self._writing.commit())

    async def abort(self) -> None:
        if self._driver.is_open:
            await self._driver.in_lane(lambda _: self._writing.abort())

    def __del__(self) -> None:
        driver, writing = self._driver, self._writing

        def give_up() -> None:
            if driver.is_open:
                driver.spawn(driver.in_lane(lambda _: writing.abort()))

        driver.call_soon(give_up)


class St1Namespace(Namespace):
    """The names at a `path` of a store."""

    def __init__(self, store: St1Store, driver: Driver[St1Engine], path: tuple[str, ...]) -> None:
        self._store = store
        self._driver = driver
        self._path = path

    def __repr__(self) -> str:
        return f"<St1Namespace {'/'.join(self._path)!r}>"

    async def resolve(self, name: str) -> Binding:
        return await self._driver.look(lambda engine: st1_names.resolve(engine, self._path, name))

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        return await self._store.durably(
            lambda engine: st1_names.bind(engine, self._path, binding, condition)
        )

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        await self._store.durably(
            lambda engine: st1_names.unbind(engine, self._path, name, condition)
        )

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return await self._driver.look(
            lambda engine: BindingPage(*st1_names.list_names(engine, self._path, after, limit)),
            at_once=limit <= _AT_ONCE_ENTRIES_MAX,
        )

    async def sub(self, name: str) -> Namespace:
        return St1Namespace(self._store, self._driver, (*self._path, check_name(name)))


def _goes_on(steps: Iterator[None]) -> bool:
    """Takes one step; whether there was one."""
    for _ in steps:
        return True
    return False
