"""The engine of CAPOSWF1: operations on a state, data in place, changes in the log.

Invariants:

* An operation is decided purely (`wf1_ops`), its data is written, then the new state is there at
  once; its change waits in a frame that `commit` writes.  So the state after a crash is that after
  some prefix of the operations, and after `sync` that prefix includes everything before it.
* Writes are one thread's at a time; `state` may be read by any thread at any time.  Segments that
  an older state than the present one leads to are made free when `settle` has returned: whoever
  reads in other threads has it wait for readers that began before it, so no reader meets a segment
  that was written anew.  Snapshots hold what they lead to by themselves.
* Holding a node and removing its last name exclude one another, so `hold_found` may run in any
  thread.
* One flush is under way at a time: of two at once, the kernel would tell only one that it failed.
* After a failed write or flush nobody can say what is on the device: every later change and sync is
  `StorageIOError`.  Reading goes on.
* Room for a checkpoint and for what removes things is kept free, so a full volume can be emptied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from capstore.images import wf1, wf1_ops
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, WF1_FRAME, blocks_of
from capstore.images.wf1_base import WITHOUT_WAITING, Tables, WouldWait, read_at_hand
from capstore.images.wf1_checkpoint import CheckpointWriter, orphans_of, segments_for
from capstore.images.wf1_clean import ROUND_BYTES_MAX, Cleaner
from capstore.images.wf1_codec import Encoder
from capstore.images.wf1_content import Extent, extents_between, pieces_of
from capstore.images.wf1_log import add_change, change_bytes, frame_blocks_bytes, frame_bytes
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_space import DATA, LOG, TABLE
from capstore.images.wf1_state import Change, Node, State
from capstore.schema.errors import (
    Closed,
    Corrupt,
    IsDirectory,
    NoSpace,
    ReadOnly,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import KIB, MIB
from capstore.schema.nodes import Buffer, Usage

# Nanoseconds since 1970.
Clock = Callable[[], int]
# Random bytes, so many as asked for.
Entropy = Callable[[int], bytes]

# A frame is written when so much is pending.
PENDING_BYTES_MAX: Final = 128 * KIB
# One write, which is atomic.
WRITE_BYTES_MAX: Final = 16 * MIB
# The log since the checkpoint is at most about so long, or half of the checkpoint if that is more.
LOG_BYTES_MIN: Final = 4 * MIB
# And so much data is written, or what is live if that is more: what it replaced is free behind it.
DATA_BYTES_MIN: Final = 64 * MIB
# A volume that grows is cleaned when so much more of it is dead than live, a part at a time.
DEAD_BYTES_MIN: Final = 64 * MIB
_CLEANED_SHARE: Final = 4
# A log that is shorter than this, and than this part of a checkpoint, is left to the next opening.
CLOSING_LOG_BYTES_MAX: Final = 256 * KIB
CLOSING_SHARE: Final = 16
# What is kept free beside the next checkpoint: a segment each for log and data, and one to clean
# into.
_SPARE_SEGMENTS: Final = 3
_KEY_BYTES: Final = 8
# How far a new life is ahead of the last: frames of the last cannot be of its checkpoints' epochs.
# An odd number, since superblocks alternate.
_LIFE_GENERATIONS: Final = 3
_FAILED: Final = "an earlier write or flush failed: open the volume again"


@dataclass(eq=False)
class Snapshot:
    """A moment that is held: what is live in it is not reclaimed until `Engine.drop`."""

    state: State
    live: Sequence[int]


class Engine:
    """An open volume; made by `wf1_open`."""

    def __init__(
        self,
        device: BlockDevice,
        recovered: Recovered,
        *,
        clock: Clock,
        entropy: Entropy,
        writable: bool,
    ) -> None:
        self.device = device
        self.superblock = recovered.superblock
        self.geometry = recovered.space.geometry
        self.space = recovered.space
        self.state = recovered.state
        # Returns when nobody reads what an older state led to; see above.
        self.settle: Callable[[], None] = _nobody_reads
        # Whether somebody else calls `flush` when `waits_for_flush` says so: then checkpoints wait
        # for that, instead of holding up operations.
        self.patient = False
        self.waits_for_flush = False
        self._clock = clock
        self._writable = writable
        self._closed = False
        self._failed = False
        self._position = recovered.position
        self._durable = recovered.position.sequence - 1
        self._flushing = threading.Lock()
        self._flushes_begun = self._flushes_ended = 0
        self._in_a_hurry = False
        self._log_segments = list(recovered.log_segments)
        self._log_bytes = recovered.log_bytes
        self._pending = Encoder()
        self._data_segment = -1
        self._data_at = self.geometry.segment_bytes
        # Data written since the checkpoint.
        self._data_bytes = 0
        self._live_bytes = sum(self.space.live)
        self._held: dict[int, int] = {}
        self._holding = threading.Lock()
        self._snapshots: list[Snapshot] = []
        # The tables that the state rests on, and older ones that snapshots may still need.
        self._tables: list[Tables] = [recovered.tables]
        self._changed: set[int] = set(self.state.nodes)
        self._renamed: set[int] = set(self.state.names)
        self._work: Iterator[None] | None = None
        self._is_cleaning_due = False
        # What cleaning could not make free.
        self._dead_left = 0
        if writable:
            self._begin_life(entropy)

    def __repr__(self) -> str:
        words = [f"{self.state.counts.nodes} nodes", f"{self.space.count} segments"]
        words += ["read-only"] * (not self._writable) + ["failed"] * self._failed
        words += ["closed"] * self._closed
        return f"<Engine {', '.join(words)}>"

    def _begin_life(self, entropy: Entropy) -> None:
        """A new generation: frames of this life are told from those of earlier ones by it."""
        key = self.superblock.log_key
        if self._position.sequence == self.superblock.log_sequence:
            # There is no frame that carries the old one.
            key = int.from_bytes(entropy(_KEY_BYTES), "little")
        self._put_superblock(
            replace(
                self.superblock,
                generation=self.superblock.generation + _LIFE_GENERATIONS,
                log_key=key,
                durable=self._durable,
            )
        )

    def _put_superblock(self, superblock: wf1.Superblock) -> None:
        self._write_superblock(superblock)
        self.flush()
        self.superblock = superblock

    def _write_superblock(self, superblock: wf1.Superblock) -> None:
        try:
            wf1.write_superblock(self.device, superblock)
        except BaseException:
            self._failed = True
            raise

    # Operations ----------------------------------------------------------------------------------

    def make(self, directory: int, name: str, node: Node) -> int:
        """Makes `node` (of `wf1_ops.new_node`) as `name`; its id."""
        number = self.state.next_node
        self._perform(lambda state: wf1_ops.make(state, self._clock(), directory, name, node))
        return number

    def create(self, directory: int, name: str, *, executable: bool = False) -> int:
        """Makes an empty file; its id.  Raises `AlreadyExists`, `NotFound`, `NoSpace`."""
        node = wf1_ops.new_node(wf1.FILE, self._clock(), executable=executable)
        return self.make(directory, name, node)

    def mkdir(self, directory: int, name: str) -> int:
        """Makes an empty directory; its id."""
        return self.make(directory, name, wf1_ops.new_node(wf1.DIRECTORY, self._clock()))

    def symlink(self, directory: int, name: str, target: str) -> int:
        """Makes a symbolic link; its id.  Raises `InvalidArgument` for what is no target."""
        checked = wf1_ops.check_target(target)
        node = wf1_ops.new_node(wf1.SYMLINK, self._clock(), target=checked)
        return self.make(directory, name, node)

    def link(self, directory: int, name: str, target: int, new_name: str) -> None:
        """Gives `name` a second name."""
        self._perform(
            lambda state: wf1_ops.link(state, self._clock(), directory, name, target, new_name)
        )

    def remove(
        self, directory: int, name: str, *, directories: bool = True, others: bool = True
    ) -> None:
        """Removes a name of the kinds that are allowed."""

        def change(state: State) -> Change:
            node = wf1_ops.child_of(state, directory, name)
            return wf1_ops.remove(
                state,
                self._clock(),
                directory,
                name,
                directories=directories,
                others=others,
                held=node.id in self._held,
            )

        self._perform(change, shrinks=True)

    def rename(
        self, source: int, name: str, target: int, new_name: str, *, replace: bool = True
    ) -> None:
        """Moves a name, onto another one with `replace`."""
        self._perform(
            lambda state: wf1_ops.rename(
                state,
                self._clock(),
                source,
                name,
                target,
                new_name,
                replace=replace,
                held=self._held,
            )
        )

    def exchange(self, source: int, name: str, target: int, new_name: str) -> None:
        """Has two names change their nodes."""
        self._perform(
            lambda state: wf1_ops.exchange(state, self._clock(), source, name, target, new_name)
        )

    def truncate(self, number: int, size: int) -> None:
        """Cuts or extends a file."""
        self._check_file(number)
        shrinks = size <= wf1_ops.node_at(self.state, number).size
        self._perform(
            lambda state: wf1_ops.truncate(state, self._clock(), number, size), shrinks=shrinks
        )

    def set_attributes(
        self,
        number: int,
        *,
        executable: bool | None = None,
        modified: int | None = None,
        created: int | None = None,
    ) -> None:
        """Changes attributes; times in ns since 1970."""
        self._perform(
            lambda state: wf1_ops.set_attributes(
                state, number, executable=executable, modified=modified, created=created
            )
        )

    def set_opaque(self, number: int, *, opaque: bool) -> None:
        """Marks a directory for overlays."""
        self._perform(lambda state: wf1_ops.set_opaque(state, number, opaque=opaque))

    def write(self, number: int, offset: int, data: Buffer) -> None:
        """Writes at `offset`, all or nothing.

        Raises `TooLarge` for more than `WRITE_BYTES_MAX` at once, `NoSpace`."""
        view = memoryview(data).cast("B")
        wf1_ops.check_range(offset, len(view))
        self._check_file(number)
        if len(view) > WRITE_BYTES_MAX:
            raise TooLarge(f"one write has at most {WRITE_BYTES_MAX} bytes")
        if not view:
            return
        self._check_writable()
        pieces = list(pieces_of(offset, len(view)))
        self._make_room(sum(blocks_of(length) * BLOCK_BYTES for _, length in pieces))
        extents = [
            self.put_data(at, view[at - offset : at - offset + length]) for at, length in pieces
        ]
        # Nothing may be reclaimed in between: nothing refers to the data yet.
        self.perform(wf1_ops.written(self.state, self._clock(), number, extents))
        self.work()

    def append(self, number: int, data: Buffer) -> int:
        """Writes at the end; returns where that was."""
        self._check_file(number)
        offset = wf1_ops.node_at(self.state, number).size
        self.write(number, offset, data)
        return offset

    def _check_file(self, number: int) -> None:
        node = wf1_ops.node_at(self.state, number)
        if node.is_directory:
            raise IsDirectory("a directory")
        if node.kind != wf1.FILE:
            raise Unsupported("only a file has content")

    # Holding -------------------------------------------------------------------------------------

    def hold(self, number: int) -> None:
        """Keeps a node that loses its last name, until `release`."""
        with self._holding:
            self._held[number] = self._held.get(number, 0) + 1

    def hold_found(self, find: Callable[[State], Node]) -> Node:
        """Holds what `find` finds, before anybody can remove it.  In any thread.

        Raises what `find` raises, and `WouldWait` as reading does.
        """
        # Whatever has to be read is at hand behind this: nobody shall wait for a lock so long.
        find(self.state)
        if not self._holding.acquire(blocking=not WITHOUT_WAITING.entered):
            raise WouldWait
        try:
            node = find(self.state)
            self._held[node.id] = self._held.get(node.id, 0) + 1
        finally:
            self._holding.release()
        return node

    def release(self, number: int) -> None:
        """Undoes one `hold`."""
        with self._holding:
            self._let_go(number)
            if not self._is_to_forget(number):
                return
        self._perform(lambda state: wf1_ops.forget(state, number), shrinks=True)

    def release_at_once(self, number: int) -> bool:
        """`release`, if that needs neither waiting nor writing, else False.  In any thread."""
        if not self._holding.acquire(blocking=False):
            return False
        try:
            if self._held[number] == 1 and self._is_to_forget(number, holders=1):
                return False
            self._let_go(number)
        finally:
            self._holding.release()
        return True

    def _let_go(self, number: int) -> None:
        self._held[number] -= 1
        if not self._held[number]:
            del self._held[number]

    def _is_to_forget(self, number: int, *, holders: int = 0) -> bool:
        """Whether a node with so many holders has no name, and can be removed for good."""
        if self._closed or self._failed or not self._writable:
            return False
        # One without a name is never left to the tables.
        node = self.state.nodes.get(number)
        return self._held.get(number, 0) == holders and node is not None and not node.links

    def snapshot(self) -> Snapshot:
        """Holds this moment."""
        self._check_open()
        snapshot = Snapshot(self.state, list(self.space.live))
        self._snapshots.append(snapshot)
        return snapshot

    def drop(self, snapshot: Snapshot) -> None:
        """Lets go of a moment."""
        self._snapshots.remove(snapshot)

    # Reading -------------------------------------------------------------------------------------

    def read_into(self, state: State, number: int, offset: int, view: memoryview) -> int:
        """Fills `view` with the content of a file as it is in `state`; returns how many bytes.

        Raises `Corrupt` where the data is not what was written.
        """
        node = wf1_ops.node_at(state, number)
        got = max(0, min(len(view), node.size - offset))
        at = offset
        for extent in extents_between(state.content(node), offset, offset + got):
            if extent.offset > at:
                view[at - offset : extent.offset - offset] = bytes(extent.offset - at)
            self._read_extent_into(extent, view[extent.offset - offset : extent.end - offset])
            at = extent.end
        view[at - offset : got] = bytes(offset + got - at)
        return got

    def read_extent(self, extent: Extent) -> memoryview:
        """The bytes of an extent; the whole unit is read, to check it.  Raises `Corrupt`."""
        unit = memoryview(bytearray(extent.stored))
        self._read_unit(extent, unit)
        return unit[extent.skip : extent.skip + extent.length]

    def _read_extent_into(self, extent: Extent, view: memoryview) -> None:
        if extent.length == extent.stored:
            self._read_unit(extent, view)
        else:
            view[:] = self.read_extent(extent)

    def _read_unit(self, extent: Extent, view: memoryview) -> None:
        at = extent.lba * BLOCK_BYTES
        read_at_hand(self.device, at, view)
        if crc32c(view) != extent.sum:
            raise Corrupt(f"data at offset {at} has a wrong checksum")

    def usage(self) -> Usage:
        """Bytes of the region (a total of 0 for one that grows) and nodes; free is what is, and
        what cleaning can make so, without what a checkpoint needs."""
        space, size = self.space, self.geometry.segment_bytes
        own = sum(use in (LOG, TABLE) for use in space.use)
        free = space.free - self.checkpoint_segments() - _SPARE_SEGMENTS
        return Usage(
            total_bytes=0 if space.grows else space.bytes,
            used_bytes=sum(space.live) + own * size,
            free_bytes=max(0, free * size + space.dead_bytes),
            used_nodes=self.state.counts.nodes,
        )

    # Making it durable ---------------------------------------------------------------------------

    def commit(self) -> int:
        """Writes what is pending to the log; returns the sequence of the last frame.

        `flush` with that, begun behind this, makes it durable.
        """
        self._check_writable()
        self._write_frame()
        return self._position.sequence - 1

    @property
    def durable(self) -> int:
        """The sequence of the last frame that is known to be durable."""
        return self._durable

    def flush(self, sequence: int = 0) -> None:
        """Flushes the device, which makes the frames up to `sequence` durable that were written
        before.  In any thread, also beside operations.  Raises `StorageIOError`, for good."""
        with self._flushing:
            if self._failed:
                raise StorageIOError(_FAILED)
            self._flushes_begun += 1
            try:
                self.device.flush()
            except BaseException:
                self._failed = True
                raise
            self._flushes_ended = self._flushes_begun
            self._durable = max(self._durable, sequence)

    def _flush_steps(self) -> Iterator[None]:
        """A flush that begins behind this; one by somebody else where there is time for that."""
        begun = self._flushes_begun
        self.waits_for_flush = self.patient
        while self.patient and not self._in_a_hurry and self._flushes_ended <= begun:
            if self._failed:
                raise StorageIOError(_FAILED)
            yield
        self.waits_for_flush = False
        if self._flushes_ended <= begun:
            self.flush()

    def flushed(self, sequence: int) -> None:
        """The frames up to `sequence` are durable, by a flush of the device itself."""
        with self._flushing:
            self._durable = max(self._durable, sequence)

    def fail(self) -> None:
        """A flush failed."""
        self._failed = True

    def sync(self) -> None:
        """Makes everything before durable.  Raises `StorageIOError`."""
        sequence = self.commit()
        if sequence > self._durable:
            self.flush(sequence)

    def close(self) -> None:
        """Makes everything durable, with a checkpoint if the log is long, and lets go of the
        device.  What fails is raised; the device is closed all the same."""
        if self._closed:
            return
        try:
            if self._writable and not self._failed:
                self.sync()
                # A long log costs the next opening time, a long checkpoint costs this closing.
                long = self._tables[-1].head.length // CLOSING_SHARE
                if self._log_bytes > min(CLOSING_LOG_BYTES_MAX, long):
                    self.checkpoint()
        finally:
            self._closed = True
            self.device.close()

    # Changing ------------------------------------------------------------------------------------

    def _perform(self, decide: Callable[[State], Change], *, shrinks: bool = False) -> None:
        self._check_writable()
        if not self._has_room(self._spare(0, shrinks=shrinks)):
            # What cannot be done shall not wait for room, nor say that there is none.
            if not decide(self.state).nodes:
                return
            self._make_room(0, shrinks=shrinks)
        with self._holding:
            change = decide(self.state)
            if not change.nodes:
                return
            if change_bytes(change) > self._frame_bytes_max():
                raise TooLarge("the change is more than one frame holds")
            self.perform(change)
        self.work()

    def perform(self, change: Change) -> None:
        """Applies a change and adds it to the frame that is pending."""
        if self._pending.size + change_bytes(change) > self._frame_bytes_max():
            self._write_frame()
        state, effect = self.state.apply(change)
        add_change(self._pending, change)
        self.space.gained(effect.gained)
        self.space.lost(effect.lost)
        self._changed.update(item.node.id for item in change.nodes)
        self._renamed.update(item.directory for item in change.names)
        self.state = state
        if self._pending.size >= PENDING_BYTES_MAX:
            self._write_frame()

    def _frame_bytes_max(self) -> int:
        """What the tables of one frame may take: a frame, and behind it the one that goes on."""
        room = self.geometry.segment_bytes - BLOCK_BYTES - WF1_FRAME.size
        return min(room, 4 * PENDING_BYTES_MAX)

    def put_data(self, offset: int, data: Buffer) -> Extent:
        """Writes a unit of data; the extent that puts it at `offset` of a file.

        Raises `NoSpace`, with nothing changed but where the next unit goes."""
        size = blocks_of(len(data)) * BLOCK_BYTES
        if self._data_at + size > self.geometry.segment_bytes:
            self._data_segment = self.space.allocate(DATA)
            self._data_at = 0
        at = self.geometry.start(self._data_segment) + self._data_at
        raw = data if len(data) == size else bytes(data)
        try:
            self.device.write(at, raw if len(raw) == size else bytes(raw).ljust(size, b"\0"))
        except NoSpace:
            raise
        except BaseException:
            self._failed = True
            raise
        self._data_at += size
        self._data_bytes += size
        return Extent(offset, len(raw), at // BLOCK_BYTES, 0, len(raw), crc32c(raw))

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self.device.write(offset, data)
        except BaseException:
            self._failed = True
            raise

    def _write_frame(self) -> None:
        if not self._pending.size:
            return
        size = frame_blocks_bytes(self._pending)
        if self._position.offset + size > self.geometry.segment_bytes - BLOCK_BYTES:
            self._go_on_elsewhere()
        self._put_frame(self._pending, next_lba=0)
        self._pending = Encoder()

    def _go_on_elsewhere(self) -> None:
        """Goes on with the log in another segment, and says so at the end of this one."""
        segment = self.space.allocate(LOG)
        self._put_frame(Encoder(), next_lba=self.geometry.lba(segment))
        self._position = replace(self._position, segment=segment, offset=0)
        self._log_segments.append(segment)

    def _put_frame(self, tables: Encoder, *, next_lba: int) -> None:
        position = self._position
        raw = frame_bytes(
            tables,
            key=self.superblock.log_key,
            epoch=self.superblock.generation,
            sequence=position.sequence,
            durable=self._durable,
            next=next_lba,
        )
        self._write(self.geometry.start(position.segment) + position.offset, raw)
        self._log_bytes += len(raw)
        self._position = replace(
            position,
            offset=position.offset + len(raw),
            sequence=position.sequence + 1,
            epoch=self.superblock.generation,
        )

    # Room ----------------------------------------------------------------------------------------

    def checkpoint_segments(self) -> int:
        """How many segments a checkpoint of the present state takes."""
        return segments_for(self.geometry, self.state.counts, self.space.count)

    def _make_room(self, data_bytes: int, *, shrinks: bool = False) -> None:
        """Sees to it that there is room for an operation with so many bytes of data.

        Raises `NoSpace`, with nothing changed."""
        spare = self._spare(data_bytes, shrinks=shrinks)
        if self._has_room(spare):
            return
        try:
            self.space.grow(self.checkpoint_segments() + spare)
        except NoSpace:
            self.reclaim(spare)
            if not shrinks and not self._has_room(spare):
                raise

    def _spare(self, data_bytes: int, *, shrinks: bool = False) -> int:
        """How many segments are to be free beside the next checkpoint, before an operation."""
        # A frame may take a segment, and a checkpoint takes one for the log behind it.
        if shrinks:
            return 2
        return _SPARE_SEGMENTS + 1 - (-data_bytes // self.geometry.segment_bytes)

    def _has_room(self, spare: int) -> bool:
        return self.space.free >= self.checkpoint_segments() + spare

    def reclaim(self, spare: int) -> None:
        """Cleans and writes checkpoints until `spare` segments are free beside the next one, or
        nothing more can be had."""
        while self.space.free < self.checkpoint_segments() + spare:
            before = self.space.free
            if not self.is_worth_cleaning() and len(self._log_segments) < 2:
                return
            self.finish_work()
            self.clean()
            self.checkpoint()
            if self.space.free <= before:
                return

    def is_worth_cleaning(self) -> bool:
        """Whether cleaning could make a segment free."""
        return self.space.dead_bytes >= 2 * self.geometry.segment_bytes

    def clean(self) -> None:
        """Moves live data out of the segments with the least of it."""
        for _ in Cleaner(self).steps():
            continue

    def is_held(self, segment: int) -> bool:
        """Whether a segment of data must stay as it is."""
        if segment == self._data_segment:
            return True
        return any(
            segment < len(snapshot.live) and snapshot.live[segment] for snapshot in self._snapshots
        )

    def _cleaning_steps(self) -> Iterator[None]:
        """Cleans a part of a volume that grows, and writes a checkpoint."""
        before = self.space.dead_bytes
        room = max(ROUND_BYTES_MAX, self._live_bytes // _CLEANED_SHARE)
        with suppress(NoSpace):
            yield from Cleaner(self, room).steps()
        yield from self._checkpoint_steps()
        if before - self.space.dead_bytes < self.geometry.segment_bytes:
            # Held by snapshots, or damaged: not again before there is more.
            self._dead_left = self.space.dead_bytes
            self._is_cleaning_due = False

    # Checkpoints ---------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Writes a checkpoint, to its end."""
        self.finish_work()
        self._work = self._checkpoint_steps()
        self.finish_work()

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""
        return self._work is not None or self._is_cleaning_due

    def work(self) -> None:
        """One bounded step of what is to be done beside operations."""
        if self._work is None:
            if self._is_cleaning_due:
                self._is_cleaning_due = False
                self._work = self._cleaning_steps()
            elif self._is_checkpoint_due():
                self._work = self._checkpoint_steps()
            else:
                return
        # The operation that this follows has been done, whether there is room for this or not.
        with suppress(NoSpace):
            self._step()

    def _step(self) -> None:
        assert self._work is not None  # noqa: S101 - for whoever reads types
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException:
            self._work = None
            raise

    def _is_checkpoint_due(self) -> bool:
        log_max = max(LOG_BYTES_MIN, self._tables[-1].head.length // 2)
        data_max = max(DATA_BYTES_MIN, self._live_bytes)
        if not self.space.grows:
            # In a small region neither takes more than an eighth of it.
            part = max(self.geometry.segment_bytes, self.space.bytes // 8)
            log_max, data_max = min(log_max, part), min(data_max, part)
        return self._log_bytes >= log_max or self._data_bytes >= data_max

    def finish_work(self) -> None:
        """Does what is to be done, to its end."""
        self._in_a_hurry = True
        try:
            while self._work is not None:
                self._step()
        finally:
            self._in_a_hurry = False

    def _checkpoint_steps(self) -> Iterator[None]:
        # The log behind it goes on where it is: whatever crashes make of this, it took no segment
        # that only a checkpoint would give back.
        self._write_frame()
        begin = self._position
        self.state = self.state.with_own_content(orphans_of(self.state))
        live = [n if self.space.use[s] == DATA else 0 for s, n in enumerate(self.space.live)]
        # What dies from here on, the checkpoint and the log behind it lead to.
        dead = self.space.reclaimable(self.is_held)
        # Where there is no room for it, nothing has changed yet.
        writer = CheckpointWriter(self.device, self.space, self.state, begin.sequence - 1, live)
        old_log, self._log_segments = self._log_segments[:-1], self._log_segments[-1:]
        self._log_bytes = self._data_bytes = 0
        self._changed = {node.id for node in orphans_of(self.state)}
        self._renamed = set()
        try:
            yield from writer.steps()
            yield from self._flush_steps()
            self.flushed(begin.sequence - 1)
            superblock = replace(
                self.superblock,
                generation=self.superblock.generation + 1,
                checkpoint_lba=self.geometry.lba(writer.head.runs[0]),
                checkpoint_sum=writer.head_sum,
                log_lba=(self.geometry.start(begin.segment) + begin.offset) // BLOCK_BYTES,
                log_sequence=begin.sequence,
                durable=self._durable,
            )
            self._write_superblock(superblock)
            yield from self._flush_steps()
        except BaseException:
            self._failed = True
            raise
        self.superblock = superblock
        self._rest_on(writer, [*old_log, *dead])

    def _rest_on(self, writer: CheckpointWriter, unused: Sequence[int]) -> None:
        """Goes over to the new tables, and makes free what nothing leads to any more: the segments
        `unused` and those of older tables."""
        tables = Tables(self.device, self.geometry, self.space.count, writer.head)
        self.state = self.state.rebased(tables, self._changed, self._renamed)
        needed = {id(snapshot.state.base) for snapshot in self._snapshots}
        kept = [old for old in self._tables if id(old) in needed]
        freed = [run for old in self._tables if old not in kept for run in old.head.runs]
        self._tables = [*kept, tables]
        self._live_bytes = sum(self.space.live)
        self.settle()
        self.space.release([*unused, *freed])
        enough = max(self._live_bytes, self._dead_left) + DEAD_BYTES_MIN
        self._is_cleaning_due = self.space.grows and self.space.dead_bytes > enough

    # State ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the volume was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise ReadOnly("the volume is open for reading")
        if self._failed:
            raise StorageIOError(_FAILED)


def _nobody_reads() -> None:
    """Where one thread does everything."""
