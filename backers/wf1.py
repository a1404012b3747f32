"""CAPOSWF1 as a volume: one ordered writer, many readers, syncs that share a flush.

Invariants:

* Every change is a call of the engine in the lane, one at a time, in order; or on the loop while
  nobody is in the lane, if nothing has to wait for the device.  Readers never enter the lane: they
  look at `engine.state`, which does not change, on the loop where nothing has to wait for the
  device and in a worker otherwise.
* A reader is counted (`Readers`) from before it takes the state until it has done with it, and the
  engine waits for those that began before a checkpoint took the place of another, until it makes
  segments free.  While it is counted, a reader waits for the device at most, so that is short.
* `sync` returns when a flush has returned that began after everything before it was written to the
  log (`group_commit`).  After a failure everything that changes or syncs is `StorageIOError`.
* A node that somebody has is held, so that it outlives its name; `Held` lets go of it when it is
  dropped, in whatever thread that happens, by way of the loop.
* What is left to do when nobody waits (checkpoints, cleaning) goes on in the lane, step by step, so
  that an operation waits for one step at most.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from capstore.backers.group_commit import GroupCommit
from capstore.backers.node import Node, Usage, Volume
from capstore.backers.readers import Readers
from capstore.backers.wf1_node import Wf1Directory, Wf1File
from capstore.backers.wf1_open import open_device
from capstore.backers.workers import Lane, finished, in_worker
from capstore.images import wf1, wf1_ops
from capstore.images.device import BlockDevice
from capstore.images.wf1_base import WITHOUT_WAITING, WouldWait
from capstore.images.wf1_engine import Clock, Engine
from capstore.images.wf1_open import open_wf1
from capstore.images.wf1_state import Node as Record
from capstore.images.wf1_state import State
from capstore.images.wf1_upkeep import Snapshot
from capstore.schema.errors import (
    Closed,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageError,
    Unsupported,
)

T = TypeVar("T")

_IMAGE_ID_BYTES: Final = 16
_ID_BYTES: Final = 8


class Held:
    """A node that is held as long as this is there, or until `release`."""

    __slots__ = ("_volume", "number")

    def __init__(self, volume: Wf1Volume, number: int) -> None:
        self._volume: Wf1Volume | None = volume
        self.number = number

    def taken(self) -> bool:
        """Takes the hold away from here; whether it was still here."""
        volume, self._volume = self._volume, None
        return volume is not None

    def __del__(self) -> None:
        volume = self._volume
        if volume is not None:
            volume.dropped(self.number)


class View:
    """A snapshot that is kept as long as this is there."""

    __slots__ = ("_volume", "snapshot")

    def __init__(self, volume: Wf1Volume, snapshot: Snapshot) -> None:
        self._volume = volume
        self.snapshot = snapshot

    def __del__(self) -> None:
        self._volume.dropped(self.snapshot)


class Wf1Volume(Volume):
    """An open CAPOSWF1 image; made by `open`."""

    def __init__(self, engine: Engine, *, read_only: bool) -> None:
        """Takes over `engine`; to be called on the loop that the volume is used on."""
        self._engine = engine
        self._read_only = read_only
        self._loop = asyncio.get_running_loop()
        self._lane = Lane()
        self._readers = Readers()
        self._commits = GroupCommit(engine, self._lane)
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._maintaining = False
        # What was dropped, from whatever thread, and is to be let go of.
        self._dropped: deque[int | Snapshot] = deque()
        engine.settle = self._readers.wait_for_earlier
        engine.writer.patient = True

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        size: int | None = None,
        read_only: bool = False,
        clock: Clock = time.time_ns,
    ) -> Wf1Volume:
        """Opens the image at `path`; with `create` makes one that is not there.

        A new one grows, or has `size` bytes for good.  `clock` gives nanoseconds since 1970.
        Raises `NotFound`, `Busy` when somebody else has it open, `Corrupt`, `Unsupported`,
        `InvalidArgument`, and what the host says about the file.
        """

        def opened() -> BlockDevice:
            return open_device(path, create=create, size=size, read_only=read_only, clock=clock)

        return await cls.over(opened, read_only=read_only, clock=clock)

    @classmethod
    async def over(
        cls,
        opener: Callable[[], BlockDevice],
        *,
        read_only: bool = False,
        clock: Clock = time.time_ns,
    ) -> Wf1Volume:
        """The volume on the device that `opener` opens, in a worker; as `open`."""
        engines: list[Engine] = []

        def open_engine() -> None:
            device = opener()
            try:
                engines.append(open_wf1(device, writable=not read_only, clock=clock))
            except BaseException:
                device.close()
                raise

        try:
            await in_worker(open_engine)
        except BaseException:
            for engine in engines:
                engine.device.close()
            raise
        return cls(engines[0], read_only=read_only)

    def __repr__(self) -> str:
        return f"<Wf1Volume {self._engine!r}>"

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading."""
        return self._read_only

    @property
    def root(self) -> Wf1Directory:
        """The root directory, which is never removed."""
        self.check_open()
        return Wf1Directory(self, wf1.ROOT)

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._closing is None

    def check_open(self) -> None:
        """Raises `Closed` when the volume was closed."""
        if self._closing is not None:
            raise Closed("the volume was closed")

    # Reading -------------------------------------------------------------------------------------

    async def look(
        self,
        function: Callable[[Engine, State], T],
        view: View | None = None,
        *,
        at_once: bool = True,
    ) -> T:
        """What `function` makes of the present state, or of that of `view`.

        It runs on the loop, and again in a worker if something is not at hand; with `at_once`
        false only there.
        """
        self.check_open()
        if at_once:
            with suppress(WouldWait), self._readers, WITHOUT_WAITING:
                return function(self._engine, self._state(view))
        return await in_worker(lambda: self._look_waiting(function, view))

    def _look_waiting(self, function: Callable[[Engine, State], T], view: View | None) -> T:
        with self._readers:
            return function(self._engine, self._state(view))

    def _state(self, view: View | None) -> State:
        return self._engine.state if view is None else view.snapshot.state

    async def usage(self) -> Usage:
        """Space and nodes; see `Engine.usage`."""
        self.check_open()
        return await self._lane.run(self._engine.usage)

    # Changing ------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises `Closed`, `ReadOnly`."""
        self.check_open()
        if self._read_only:
            raise ReadOnly("the volume is open for reading")

    async def change(self, function: Callable[[Engine], T], written: int = 0) -> T:
        """What `function` makes of the engine, in its turn; it writes about `written` bytes.

        It changes something once at most, and waits for nothing before: where nobody else is in the
        lane it is done on the loop, and if that would have to wait for the device, again there.
        """
        self.check_writable()
        try:
            if self._lane.is_idle:
                with suppress(WouldWait), WITHOUT_WAITING:
                    return function(self._engine)
            return await self._lane.run(lambda: function(self._engine))
        finally:
            self._commits.wrote(written)
            self._maintain()

    def _maintain(self) -> None:
        """Goes on with what is to be done beside operations, if there is anything."""
        if self._engine.has_work and not self._maintaining and self._closing is None:
            self._maintaining = True
            self._spawn(self._work())

    async def _work(self) -> None:
        engine = self._engine
        try:
            while engine.has_work and self._closing is None:
                if engine.writer.waits_for_flush:
                    await self._commits.flush()
                await self._lane.run(engine.work)
        finally:
            self._maintaining = False

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs `work` beside everything else.  What the engine cannot do it says again to whoever
        asks for something, so errors are nobody's here."""

        async def run() -> None:
            with suppress(StorageError):
                await work

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Holding -------------------------------------------------------------------------------------

    async def hold(self, find: Callable[[State], Record], view: View | None) -> tuple[Held, Record]:
        """Holds what `find` finds; of a snapshot nothing has to be held."""
        if view is not None:
            found = await self.look(lambda _, state: find(state), view)
            return self.unheld(found.id), found
        return await self.look(lambda engine, _: self._held(engine.hold_found(find)))

    def _held(self, record: Record) -> tuple[Held, Record]:
        return Held(self, record.id), record

    def unheld(self, number: int) -> Held:
        """What stands for a node that needs no holding."""
        held = Held(self, number)
        held.taken()
        return held

    def held_by(self, engine: Engine, number: int) -> Held:
        """Holds `number`, in the lane."""
        engine.hold(number)
        return Held(self, number)

    async def release(self, held: Held) -> None:
        """Lets go of a node; one without a name is gone then."""
        if not held.taken() or self._closing is not None:
            return
        if not self._engine.release_at_once(held.number):
            with suppress(StorageError):
                await self._lane.run(lambda: self._engine.release(held.number))

    def dropped(self, what: int | Snapshot) -> None:
        """Lets go of a node or snapshot, some time later; to be called from any thread, also in
        the middle of anything."""
        self._dropped.append(what)
        # The loop may be closed, and then so is the engine or it will be opened anew.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        waiting: list[int | Snapshot] = []
        while self._dropped:
            what = self._dropped.popleft()
            if isinstance(what, Snapshot) or not self._engine.release_at_once(what):
                waiting.append(what)
        if waiting and self._closing is None:
            self._spawn(self._lane.run(lambda: self._let_go_of(waiting)))

    def _let_go_of(self, waiting: list[int | Snapshot]) -> None:
        for what in waiting:
            with suppress(StorageError):
                if isinstance(what, Snapshot):
                    self._engine.drop(what)
                else:
                    self._engine.release(what)

    async def view(self) -> View:
        """A snapshot of what is now."""
        self.check_open()
        return await self._lane.run(lambda: View(self, self._engine.snapshot()))

    # The whole -----------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Returns when a flush has ended that covers every change before; see `GroupCommit`."""
        self.check_open()
        if not self._read_only:
            await self._commits.sync()

    async def close(self) -> None:
        """Syncs, with a checkpoint if the log is long, and releases the image, also when that
        fails; what failed is raised to who waits for it."""
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
        self._engine.writer.patient = False
        try:
            self._engine.close()
        finally:
            # Readers that were under way have their descriptor until they end.
            self._readers.wait_for_earlier()

    async def handle_of(self, node: Node) -> bytes:
        """The image's id and the node's, which is durable when this returns: an id that a crash
        took back may be another node's later."""
        self.check_open()
        if not isinstance(node, Wf1Directory | Wf1File) or node.volume is not self:
            raise InvalidArgument("a node of another volume")
        if node.view is not None:
            # The node's own handle would lead to the live tree, which is more than was held.
            raise Unsupported("a snapshot lives no longer than its holder")
        number = node.number
        await self.look(lambda _, state: _named(state, number))
        await self.sync()
        return self._image_id + number.to_bytes(_ID_BYTES, "big")

    @property
    def _image_id(self) -> bytes:
        return self._engine.writer.superblock.image_id.to_bytes(_IMAGE_ID_BYTES, "big")

    async def node_of(self, handle: bytes) -> Node:
        self.check_open()
        image_id, raw = handle[:_IMAGE_ID_BYTES], handle[_IMAGE_ID_BYTES:]
        if image_id != self._image_id or len(raw) != _ID_BYTES:
            raise InvalidArgument("no handle of this volume")
        number = int.from_bytes(raw, "big")
        held, record = await self.hold(lambda state: _named(state, number), None)
        if record.kind == wf1.DIRECTORY:
            return Wf1Directory(self, number, held)
        if record.kind == wf1.FILE:
            return Wf1File(self, held, writable=not self._read_only)
        raise InvalidArgument("no handle of this volume")


def _named(state: State, number: int) -> Record:
    """The node `number`, which has a name.  Raises `NotFound`."""
    record = wf1_ops.node_at(state, number)
    if not record.links:
        raise NotFound("the node has no name")
    return record
