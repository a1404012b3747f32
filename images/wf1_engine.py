"""The engine of CAPOSWF1: operations on a state, data in place, changes in the log.

Invariants:

* An operation is decided purely (`wf1_ops`), its data is written, then the new state is there at
  once; its change waits in a frame that `commit` writes.  So the state after a crash is that after
  some prefix of the operations, and after `sync` that prefix includes everything before it.
* Writes are one thread's at a time; `state` may be read by any thread at any time.
* After a failed write or flush nobody can say what is on the device: every later change and sync is
  `StorageIOError`.  Reading goes on.
* Room for a checkpoint and for what removes things is kept free, so a full volume can be emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from capstore.images import wf1, wf1_ops
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, WF1_FRAME, blocks_of
from capstore.images.wf1_base import Tables
from capstore.images.wf1_checkpoint import CheckpointWriter, orphans_of, segments_for
from capstore.images.wf1_clean import Cleaner
from capstore.images.wf1_codec import Encoder
from capstore.images.wf1_content import Extent, extents_between, pieces_of
from capstore.images.wf1_log import add_change, change_bytes, frame_blocks_bytes, frame_bytes
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_space import DATA, LOG
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
from capstore.schema.nodes import Buffer

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
# A shorter log is left for the next opening.
CLOSING_LOG_BYTES_MAX: Final = 256 * KIB
# What is kept free beside the next checkpoint: a segment each for log and data, and one to clean
# into.
_SPARE_SEGMENTS: Final = 3
_KEY_BYTES: Final = 8


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
        self._clock = clock
        self._writable = writable
        self._closed = False
        self._failed = False
        self._position = recovered.position
        self._durable = recovered.position.sequence - 1
        self._log_segments = list(recovered.log_segments)
        self._log_bytes = recovered.log_bytes
        self._pending = Encoder()
        self._data_segment = -1
        self._data_at = self.geometry.segment_bytes
        # Data written since the checkpoint.
        self._data_bytes = 0
        self._live_bytes = sum(self.space.live)
        self._held: dict[int, int] = {}
        self._snapshots: list[Snapshot] = []
        # The tables that the state rests on, and older ones that snapshots may still need.
        self._tables: list[Tables] = [recovered.tables]
        self._changed: set[int] = set(self.state.nodes)
        self._renamed: set[int] = set(self.state.names)
        self._work: Iterator[None] | None = None
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
                generation=self.superblock.generation + 1,
                log_key=key,
                durable=self._durable,
            )
        )

    def _put_superblock(self, superblock: wf1.Superblock) -> None:
        try:
            wf1.write_superblock(self.device, superblock)
            self.device.flush()
        except BaseException:
            self._failed = True
            raise
        self.superblock = superblock

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
        held = frozenset(self._held)
        self._perform(
            lambda state: wf1_ops.rename(
                state, self._clock(), source, name, target, new_name, replace=replace, held=held
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
        self._held[number] = self._held.get(number, 0) + 1

    def release(self, number: int) -> None:
        """Undoes one `hold`."""
        self._held[number] -= 1
        if self._held[number]:
            return
        del self._held[number]
        if self._closed or self._failed or not self._writable:
            return
        node = self.state.node(number)
        if node is not None and not node.links:
            self._perform(lambda state: wf1_ops.forget(state, number), shrinks=True)

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
            view[extent.offset - offset : extent.end - offset] = self.read_extent(extent)
            at = extent.end
        view[at - offset : got] = bytes(offset + got - at)
        return got

    def read_extent(self, extent: Extent) -> memoryview:
        """The bytes of an extent; the whole unit is read, to check it.  Raises `Corrupt`."""
        at = extent.lba * BLOCK_BYTES
        unit = self.device.read(at, extent.stored)
        if crc32c(unit) != extent.sum:
            raise Corrupt(f"data at offset {at} has a wrong checksum")
        return memoryview(unit)[extent.skip : extent.skip + extent.length]

    # Making it durable ---------------------------------------------------------------------------

    def commit(self) -> int:
        """Writes what is pending to the log; returns the sequence of the last frame.

        A `flush` of the device that begins behind this, told to `flushed`, makes it durable.
        """
        self._check_writable()
        self._write_frame()
        return self._position.sequence - 1

    def flushed(self, sequence: int) -> None:
        """The frames up to `sequence` are durable."""
        self._durable = max(self._durable, sequence)

    def fail(self) -> None:
        """A flush failed."""
        self._failed = True

    def sync(self) -> None:
        """Makes everything before durable.  Raises `StorageIOError`."""
        sequence = self.commit()
        if sequence == self._durable and not self._pending.size:
            return
        try:
            self.device.flush()
        except BaseException:
            self._failed = True
            raise
        self.flushed(sequence)

    def close(self) -> None:
        """Makes everything durable, with a checkpoint if the log is long, and lets go of the
        device.  What fails is raised; the device is closed all the same."""
        if self._closed:
            return
        try:
            if self._writable and not self._failed:
                self.sync()
                if self._log_bytes > PENDING_BYTES_MAX or (self.state.nodes and self._log_bytes):
                    self.checkpoint()
        finally:
            self._closed = True
            self.device.close()

    # Changing ------------------------------------------------------------------------------------

    def _perform(self, decide: Callable[[State], Change], *, shrinks: bool = False) -> None:
        self._check_writable()
        change = decide(self.state)
        if not change.nodes:
            return
        if change_bytes(change) > self._frame_bytes_max():
            raise TooLarge("the change is more than one frame holds")
        self._make_room(0, shrinks=shrinks)
        # Making room may have moved data: what was decided is decided again.
        self.perform(decide(self.state))
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
        raw = bytes(data)
        try:
            self.device.write(at, raw.ljust(size, b"\0"))
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
        needed = -(-data_bytes // self.geometry.segment_bytes) + 1
        spare = 1 if shrinks else _SPARE_SEGMENTS + needed
        if self.space.free >= self.checkpoint_segments() + spare:
            return
        try:
            self.space.grow(self.checkpoint_segments() + spare)
        except NoSpace:
            self.reclaim(spare)
            if not shrinks and self.space.free < self.checkpoint_segments() + spare:
                raise

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

    # Checkpoints ---------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Writes a checkpoint, to its end."""
        self.finish_work()
        self._work = self._checkpoint_steps()
        self.finish_work()

    def work(self) -> None:
        """One bounded step of what is to be done beside operations."""
        if self._work is None:
            if not self._is_checkpoint_due():
                return
            self._work = self._checkpoint_steps()
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
        while self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work = None
            except BaseException:
                self._work = None
                raise

    def _checkpoint_steps(self) -> Iterator[None]:
        self._write_frame()
        self._go_on_elsewhere()
        old_log, self._log_segments = self._log_segments[:-1], self._log_segments[-1:]
        self._log_bytes = self._data_bytes = 0
        begin = self._position
        self.state = self.state.with_own_content(orphans_of(self.state))
        self._changed = {node.id for node in orphans_of(self.state)}
        self._renamed = set()
        live = [n if self.space.use[s] == DATA else 0 for s, n in enumerate(self.space.live)]
        writer = CheckpointWriter(self.device, self.space, self.state, begin.sequence - 1, live)
        try:
            yield from writer.steps()
            self.device.flush()
        except BaseException:
            self._failed = True
            raise
        self.flushed(begin.sequence - 1)
        self._put_superblock(
            replace(
                self.superblock,
                generation=self.superblock.generation + 1,
                checkpoint_lba=self.geometry.lba(writer.head.runs[0]),
                checkpoint_sum=writer.head_sum,
                log_lba=self.geometry.lba(begin.segment),
                log_sequence=begin.sequence,
                durable=self._durable,
            )
        )
        self._rest_on(writer, old_log)

    def _rest_on(self, writer: CheckpointWriter, old_log: Sequence[int]) -> None:
        """Goes over to the new tables, and makes free what nothing leads to any more."""
        tables = Tables(self.device, self.geometry, self.space.count, writer.head)
        self.state = self.state.rebased(tables, self._changed, self._renamed)
        needed = {id(snapshot.state.base) for snapshot in self._snapshots}
        kept = [old for old in self._tables if id(old) in needed]
        freed = [run for old in self._tables if old not in kept for run in old.head.runs]
        self._tables = [*kept, tables]
        self._live_bytes = sum(self.space.live)
        self.space.release([*old_log, *freed, *self.space.reclaimable(self.is_held)])

    # State ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the volume was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise ReadOnly("the volume is open for reading")
        if self._failed:
            raise StorageIOError("an earlier write or flush failed: open the volume again")
