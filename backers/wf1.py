"""CAPOSWF1 as a volume: an engine that is driven (`capstore.backers.driver`), and its nodes.

Invariants:

* Readers look at `engine.state`, which does not change, or at that of a snapshot.
* A node that somebody has is held, so that it outlives its name; `Held` lets go of it when it is
  dropped, in whatever thread that happens, by way of the loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

from capstore.backers.driver import Driver, Upkeep, opened
from capstore.backers.image_file import open_device
from capstore.backers.node import Node, Usage, Volume
from capstore.backers.wf1_node import Wf1Directory, Wf1File
from capstore.images import wf1, wf1_ops
from capstore.images.device import BlockDevice
from capstore.images.wf1_engine import Clock, Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_state import Node as Record
from capstore.images.wf1_state import State
from capstore.images.wf1_upkeep import Snapshot
from capstore.schema.errors import Busy, InvalidArgument, NotFound, StorageError, Unsupported

T = TypeVar("T")

_IMAGE_ID_BYTES: Final = 16
_RESET_TRIES: Final = 10
_RESET_PAUSE_SECONDS: Final = 0.01
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
        self._driver = Driver(engine, what="volume", read_only=read_only)
        # What was dropped, from whatever thread, and is to be let go of.
        self._dropped: deque[int | Snapshot] = deque()
        # Of that, what has to wait for its turn.
        self._waiting: deque[int | Snapshot] = deque()

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

        def make(device: BlockDevice) -> None:
            format_wf1(device, size=size, clock=clock)

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
    ) -> Wf1Volume:
        """The volume on the device that `opener` opens, in a worker; as `open`."""
        engine = await opened(
            opener, lambda device: open_wf1(device, writable=not read_only, clock=clock)
        )
        return cls(engine, read_only=read_only)

    def __repr__(self) -> str:
        return f"<Wf1Volume {self._engine!r}>"

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading."""
        return self._driver.read_only

    @property
    def upkeep(self) -> Upkeep:
        """What was done beside operations so far."""
        writer = self._engine.writer
        return Upkeep(writer.flushes, writer.superblock.generation)

    @property
    def root(self) -> Wf1Directory:
        """The root directory, which is never removed."""
        self.check_open()
        return Wf1Directory(self, wf1.ROOT)

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._driver.is_open

    def check_open(self) -> None:
        """Raises `Closed` when the volume was closed."""
        self._driver.check_open()

    # Reading -------------------------------------------------------------------------------------

    async def look(
        self,
        function: Callable[[Engine, State], T],
        view: View | None = None,
        *,
        at_once: bool = True,
    ) -> T:
        """What `function` makes of the present state, or of that of `view`; see `Driver.look`."""
        return await self._driver.look(
            lambda engine: function(engine, self._state(view)), at_once=at_once
        )

    def _state(self, view: View | None) -> State:
        return self._engine.state if view is None else view.snapshot.state

    async def usage(self) -> Usage:
        """Space and nodes; see `Engine.usage`."""
        self.check_open()
        return await self._driver.in_lane(lambda engine: engine.usage())

    # Changing ------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises `Closed`, `ReadOnly`."""
        self._driver.check_writable()

    async def change(self, function: Callable[[Engine], T], written: int = 0) -> T:
        """What `function` makes of the engine, in its turn; see `Driver.change`."""
        return await self._driver.change(function, written)

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
        if not held.taken() or not self.is_open:
            return
        if not self._engine.release_at_once(held.number):
            with suppress(StorageError):
                await self._driver.in_lane(lambda engine: engine.release(held.number))

    def dropped(self, what: int | Snapshot) -> None:
        """Lets go of a node or snapshot, some time later; to be called from any thread, also in
        the middle of anything."""
        self._dropped.append(what)
        self._driver.call_soon(self._let_go)

    def _let_go(self) -> None:
        for what in _taken(self._dropped):
            if isinstance(what, Snapshot) or not self._engine.release_at_once(what):
                self._waiting.append(what)
        if self._waiting and self.is_open:
            self._driver.spawn(
                self._driver.in_lane(lambda engine: _let_go_of(engine, self._waiting))
            )

    async def view(self) -> View:
        """A snapshot of what is now."""
        self.check_open()
        return await self._driver.in_lane(lambda engine: View(self, engine.snapshot()))

    # The whole -----------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Returns when a flush has ended that covers every change before."""
        await self._driver.sync()

    async def reset(self) -> None:
        """Removes everything below the root, in one step, which is durable when this returns.

        Raises `Busy` while anybody has a node other than the root, or a snapshot; `NoSpace`, with
        nothing changed."""

        def reset(engine: Engine) -> None:
            engine.check_may_wait()
            # What nobody has any more is not held.
            _let_go_of(engine, self._waiting)
            _let_go_of(engine, self._dropped)
            engine.reset()

        for _ in range(_RESET_TRIES):
            with suppress(Busy):
                return await self._driver.change(reset)
            # What was dropped just now may be in a worker's hands for a moment.
            await asyncio.sleep(_RESET_PAUSE_SECONDS)
        return await self._driver.change(reset)

    async def close(self) -> None:
        """Syncs, with a checkpoint if the log is long, and releases the image, also when that
        fails; what failed is raised to who waits for it."""
        await self._driver.close()

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
            return Wf1File(self, held, writable=not self.read_only)
        raise InvalidArgument("no handle of this volume")


def _taken(queue: deque[int | Snapshot]) -> Iterator[int | Snapshot]:
    """Takes everything out; another thread may do so at the same time."""
    with suppress(IndexError):
        while True:
            yield queue.popleft()


def _let_go_of(engine: Engine, dropped: deque[int | Snapshot]) -> None:
    """Lets go of what was dropped, in the lane."""
    for what in _taken(dropped):
        with suppress(StorageError):
            if isinstance(what, Snapshot):
                engine.drop(what)
            else:
                engine.release(what)


def _named(state: State, number: int) -> Record:
    """The node `number`, which has a name.  Raises `NotFound`."""
    record = wf1_ops.node_at(state, number)
    if not record.links:
        raise NotFound("the node has no name")
    return record
