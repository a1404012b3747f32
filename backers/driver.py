"""What makes a synchronous engine a backer: one ordered writer, many readers, syncs that share a
flush.

Invariants:

* Every change is a call of the engine in the lane, one at a time, in order; or on the loop while
  nobody is in the lane, if nothing has to wait for the device.  Readers never enter the lane: they
  look at what the engine has, on the loop where nothing has to wait for the device and in a worker
  otherwise.
* A reader is counted (`Readers`) from before it looks until it has done, and the engine waits for
  those that began before a table took the place of another, until it makes segments free.  While it
  is counted, a reader waits for the device at most, so that is short.
* `sync` returns when a flush has returned that began after everything before it was written to the
  log (`group_commit`).  After a failure everything that changes or syncs is `StorageIOError`.
* What is left to do when nobody waits (checkpoints, compaction) goes on in the lane, step by step,
  so that an operation waits for one step at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from capstore.backers.group_commit import Committing, GroupCommit
from capstore.backers.readers import Readers
from capstore.backers.workers import Lane, finished, in_worker
from capstore.images.device import BlockDevice
from capstore.images.flushing import Flushing
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.schema.errors import Closed, ReadOnly, StorageError


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done for an image beside operations: `flushes` since it was opened; `generation`
    goes up by one with each checkpoint, or compaction, since then."""

    flushes: int
    generation: int


class Engine(Committing, Protocol):
    """What a writable format's engine has for a backer."""

    device: BlockDevice
    settle: Callable[[], None]

    @property
    def writer(self) -> Flushing:
        """What flushes."""

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""

    def work(self) -> None:
        """One bounded step of what is to be done beside operations."""

    def close(self) -> None:
        """Makes everything durable and lets go of the device."""


E = TypeVar("E", bound=Engine)
T = TypeVar("T")


async def opened(opener: Callable[[], BlockDevice], open_engine: Callable[[BlockDevice], E]) -> E:
    """The engine that `open_engine` opens on the device of `opener`, both in a worker.

    The device is closed if that fails, or if nobody is left to have the engine."""
    engines: list[E] = []

    def open_both() -> None:
        device = opener()
        try:
            engines.append(open_engine(device))
        except BaseException:
            device.close()
            raise

    try:
        await in_worker(open_both)
    except BaseException:
        for engine in engines:
            engine.device.close()
        raise
    return engines[0]


class Driver(Generic[E]):
    """Drives `engine`, which it takes over, on the loop that it is made on."""

    def __init__(self, engine: E, *, what: str, read_only: bool) -> None:
        """`what` is the word for it in errors."""
        self.engine = engine
        self.read_only = read_only
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._lane = Lane()
        self._readers = Readers()
        self._commits = GroupCommit(engine, self._lane)
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_working = False
        engine.settle = self._readers.wait_for_earlier
        engine.writer.patient = True

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._closing is None

    @property
    def is_idle(self) -> bool:
        """Whether nothing goes on beside calls."""
        return not self._tasks

    def check_open(self) -> None:
        """Raises `Closed`."""
        if self._closing is not None:
            raise Closed(f"the {self._what} was closed")

    def check_writable(self) -> None:
        """Raises `Closed`, `ReadOnly`."""
        self.check_open()
        if self.read_only:
            raise ReadOnly(f"the {self._what} is open for reading")

    async def look(self, function: Callable[[E], T], *, at_once: bool = True) -> T:
        """What `function` makes of the engine, without a change.

        It runs on the loop, and again in a worker if something is not at hand (`WouldWait`); with
        `at_once` false only there.
        """
        self.check_open()
        if at_once:
            # A context manager for each of these would take longer than most that is looked up.
            readers = self._readers
            readers.turn += 1
            WITHOUT_WAITING.entered = True
            try:
                return function(self.engine)
            except WouldWait:
                pass
            finally:
                WITHOUT_WAITING.entered = False
                readers.turn += 1
        return await in_worker(lambda: self._look_waiting(function))

    def _look_waiting(self, function: Callable[[E], T]) -> T:
        with self._readers:
            return function(self.engine)

    async def change(self, function: Callable[[E], T], written: int = 0) -> T:
        """What `function` makes of the engine, in its turn; it writes about `written` bytes.

        It changes something once at most, and waits for nothing before: where nobody else is in the
        lane it is done on the loop, and if that would have to wait for the device, again there.
        """
        self.check_writable()
        try:
            if self._lane.is_idle:
                with suppress(WouldWait), WITHOUT_WAITING:
                    return function(self.engine)
            return await self._lane.run(lambda: function(self.engine))
        finally:
            self._commits.wrote(written)
            self._go_on()

    async def in_lane(self, function: Callable[[E], T]) -> T:
        """What `function` makes of the engine, in its turn, open for writing or not."""
        return await self._lane.run(lambda: function(self.engine))

    def _go_on(self) -> None:
        """Goes on with what is to be done beside operations, if there is anything."""
        if self.engine.has_work and not self._is_working and self._closing is None:
            self._is_working = True
            self.spawn(self._work())

    async def _work(self) -> None:
        engine = self.engine
        try:
            while engine.has_work and self._closing is None:
                await self.step(engine.work)
        finally:
            self._is_working = False

    async def step(self, function: Callable[[], T]) -> T:
        """One step of long work, in the lane, behind the flush that it may wait for."""
        if self.engine.writer.waits_for_flush:
            await self._commits.flush()
        return await self._lane.run(function)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs `work` beside everything else.  What the engine cannot do it says again to whoever
        asks for something, so errors are nobody's here."""

        async def run() -> None:
            with suppress(StorageError):
                await work

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Calls `function` on the loop some time later; from any thread, in the middle of
        anything."""
        # The loop may be closed, and then so is the engine or it will be opened anew.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    async def sync(self) -> None:
        """Returns when a flush has ended that covers every change before; see `GroupCommit`."""
        self.check_open()
        if not self.read_only:
            await self._commits.sync()

    async def close(self) -> None:
        """Makes everything durable and releases the device, also when that fails; what failed is
        raised to who waits for it."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        if not self._closing.done():
            await finished(self._closing)

    async def _close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._commits.finish()
        await self._lane.run(self._shut)

    def _shut(self) -> None:
        self.engine.writer.patient = False
        try:
            self.engine.close()
        finally:
            # Readers that were under way have their descriptor until they end.
            self._readers.wait_for_earlier()
