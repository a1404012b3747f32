"""The engine of CAPOSST1: objects by key, in a log and the table of a generation.

Invariants:

* An operation is decided, then its entry is in the frame that is pending, and in the newest part of
  the view, at once; `commit` writes the frame.  So the state after a crash is that after some
  prefix of the operations, and after `sync` that prefix includes everything before it.
* Writes are one thread's at a time; whoever reads may do so in any thread at any time.  Segments
  that an older view than the present one leads to are made free when `settle` has returned: whoever
  reads in other threads has it wait for readers that began before it.
* In a thread that is `WITHOUT_WAITING` an operation that would have to wait for the device raises
  `WouldWait`, and then has changed nothing.
* A stored key is a space and a key; see `st1.OBJECTS` and `st1.NAMES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_PART, blocks_of
from capstore.images.segments import LOG, TABLE
from capstore.images.st1_entry import WALL_CLOCK, Entry, Part, stat_of
from capstore.images.st1_reading import CACHED_BYTES_MAX, Reading
from capstore.images.st1_recovery import Recovered
from capstore.images.st1_sink import Writing
from capstore.images.st1_state import Changes, view_over
from capstore.images.st1_table import Counts
from capstore.images.st1_upkeep import SPARE_SEGMENTS, Upkeep
from capstore.images.st1_writer import Entropy, Writer
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.schema.errors import (
    Closed,
    Conflict,
    InvalidArgument,
    NotFound,
    ReadOnly,
    TooLarge,
)
from capstore.schema.limits import BATCH_CHANGES_MAX, OBJECT_BYTES_MAX
from capstore.schema.nodes import Buffer, Usage
from capstore.schema.objects import ANY, Change, Condition, ObjectStat, Put, check_key

# Nanoseconds since 1970.
Clock = Callable[[], int]

_HASH_BYTES: Final = 32


class Prepared(NamedTuple):
    """A change that was decided: `entry` takes the place of `before` under a stored `key`.

    `value` is what goes into the frame, `data` what is to be written as parts; with `again`, the
    value is that of what is there."""

    key: bytes
    entry: Entry | None
    before: Entry | None
    value: bytes | None = None
    data: memoryview | None = None
    again: bool = False

    @property
    def frame_bytes(self) -> int:
        """What it takes of a frame."""
        size = ST1_ENTRY.size + len(self.key)
        return size + len(self.value) if self.value is not None else size


class St1Engine(Reading):
    """An open store; made by `st1_open`."""

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
        self.space = recovered.space
        self.geometry = recovered.space.geometry
        super().__init__(view_over(recovered.table, recovered.changes))
        self.counts = recovered.counts
        # The last that was given.
        self.version = recovered.version
        # Returns when nobody reads what an older view led to; see above.
        self.settle: Callable[[], None] = _nobody_reads
        # Told of every hash that a name is bound to, while garbage is collected.
        self.marking: set[bytes] | None = None
        self._clock = clock
        # Where the times of what is put come from.
        self.provenance = WALL_CLOCK
        self._writable = writable
        size = self.geometry.segment_bytes
        self._inline_max = st1.inline_bytes_of(size)
        self._part_bytes = st1.part_bytes_of(size)
        self.object_bytes_max = min(OBJECT_BYTES_MAX, st1.object_bytes_of(size))
        self.writer = Writer(
            device,
            recovered.superblock,
            recovered.space,
            recovered.position,
            recovered.log_segments,
            recovered.log_bytes,
            recovered.entry_bytes,
        )
        self.upkeep = Upkeep(self)
        self.upkeep.replaced = recovered.replaced
        if writable:
            self.writer.begin_life(entropy)

    def __repr__(self) -> str:
        words = [f"{self.counts.entries} entries", f"{self.space.count} segments"]
        words += ["read-only"] * (not self._writable) + ["failed"] * self.writer.failed
        words += ["closed"] * self._closed
        return f"<St1Engine {', '.join(words)}>"

    # Space ---------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Bytes of the region (a total of 0 for one that grows) and entries; free is what is, and
        what compaction can make so, without what a table needs."""
        space, size = self.space, self.geometry.segment_bytes
        own = sum(use == TABLE for use in space.use) * size + self._log_overhead()
        free = space.free - self.upkeep.table_segments() - SPARE_SEGMENTS
        return Usage(
            total_bytes=0 if space.grows else space.bytes,
            used_bytes=sum(space.live) + self.writer.pending.live + own,
            free_bytes=max(0, free * size + self.upkeep.dead_bytes()),
            used_nodes=self.counts.entries,
        )

    def _log_overhead(self) -> int:
        pairs = zip(self.space.use, self.space.live, strict=True)
        size = self.geometry.segment_bytes
        return sum(size - live for use, live in pairs if use == LOG)

    # Changing ------------------------------------------------------------------------------------

    def put(self, key: bytes, data: Buffer, condition: Condition = ANY) -> ObjectStat:
        """Stores `data` under `key`, or with no key under its SHA-256.

        Raises `Conflict`, `TooLarge`, `NoSpace`, `InvalidArgument`."""
        self._check_writable()
        prepared = self._prepared_put(key, data, condition, self._clock(), None)
        entry = self.perform(prepared)
        self._go_on()
        return stat_of(prepared.key[1:], entry)

    def delete(self, key: bytes, condition: Condition = ANY) -> None:
        """Removes an object.  Raises `NotFound`, `Conflict`."""
        self.remove(st1.OBJECTS + check_key(key), condition)

    def remove(self, stored: bytes, condition: Condition = ANY) -> None:
        """Removes what is under a stored key.  Raises `NotFound`, `Conflict`."""
        self._check_writable()
        self.perform(self._prepared_delete(stored, condition, None))
        self._go_on()

    def put_stored(self, stored: bytes, value: bytes, condition: Condition = ANY) -> int:
        """Stores a short value under a stored key of any space; its version."""
        self._check_writable()
        before = self.view.find(stored)
        check_condition(before, condition)
        prepared = self._prepared(stored, memoryview(value), before, 0, self._clock())
        version = self.perform(prepared).version
        self._go_on()
        return version

    def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        """Does all of the changes, in order, or none; returns their versions, 0 for a delete.

        Raises as `put` and `delete`; `TooLarge` for more than `BATCH_CHANGES_MAX` of them."""
        self._check_writable()
        if len(changes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        # Later changes see what earlier ones do.
        seen: Changes = {}
        now, version = self._clock(), self.version
        prepared: list[Prepared] = []
        for change in changes:
            if isinstance(change, Put):
                item = self._prepared_put(change.key, change.data, change.condition, now, seen)
                version += 1
                assert item.entry is not None  # noqa: S101 - for whoever reads types
                item = item._replace(entry=item.entry._replace(version=version))
            else:
                stored = st1.OBJECTS + check_key(change.key)
                item = self._prepared_delete(stored, change.condition, seen)
            seen[item.key] = item.entry
            prepared.append(item)
        self._perform_all(prepared)
        self._go_on()
        return [item.entry.version if item.entry is not None else 0 for item in prepared]

    def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> Writing:
        """A put in pieces, of `size` bytes in all if that is known.

        Raises `TooLarge`, `InvalidArgument`, and `Conflict` where that is clear already."""
        self._check_writable()
        check_key(key, empty=True)
        if size is not None:
            if size < 0:
                raise InvalidArgument("a size is not negative")
            self.check_size(size)
        if key:
            check_condition(self.view.find(st1.OBJECTS + key), condition)
        return Writing(self, key, condition)

    def put_parts(
        self, key: bytes, digest: bytes, parts: Sequence[Part], condition: Condition
    ) -> ObjectStat:
        """Stores parts that were written, as an object with the SHA-256 `digest`; as `put`."""
        self._check_writable()
        prepared = self.decide_put(key, digest, list(parts), condition, self._clock())
        entry = self.perform(prepared)
        self._go_on()
        return stat_of(prepared.key[1:], entry)

    def make_room_for_parts(self, parts: int) -> None:
        """Sees to it that so many parts can be written.  Raises `NoSpace`, with nothing changed."""
        whole = -(-parts * self._part_bytes // self.geometry.segment_bytes)
        self.upkeep.make_room(SPARE_SEGMENTS + whole)

    def check_size(self, size: int) -> None:
        """Raises `TooLarge` for what no object of this store can be."""
        if size > self.object_bytes_max:
            raise TooLarge(f"an object has at most {self.object_bytes_max} bytes")

    # Deciding ------------------------------------------------------------------------------------

    def _prepared_put(
        self, key: bytes, data: Buffer, condition: Condition, now: int, seen: Changes | None
    ) -> Prepared:
        view = memoryview(data).cast("B")
        self.check_size(len(view))
        digest = b""
        if not key or len(key) == _HASH_BYTES:
            digest = hashlib.sha256(view).digest()
        else:
            check_key(key)
        return self.decide_put(key, digest, view, condition, now, seen)

    def decide_put(
        self,
        key: bytes,
        digest: bytes,
        data: memoryview | Sequence[Part],
        condition: Condition,
        now: int,
        seen: Changes | None = None,
    ) -> Prepared:
        """The put of `data`, or of parts that were written, under `key`; `digest` is its SHA-256,
        if that matters.  Raises `Conflict`."""
        is_hashed = not key or key == digest
        stored = st1.OBJECTS + (key or digest)
        before = self._before(stored, seen)
        check_condition(before, condition)
        if before is not None and before.is_hashed:
            if not is_hashed:
                raise Conflict("there is other content under its hash")
            if not self._is_moving(before):
                # The same content once more: its time is new, its place is not.
                entry = before._replace(version=self.version + 1, created=now)
                return Prepared(stored, entry, before, again=True)
        return self._prepared(stored, data, before, st1.HASHED if is_hashed else 0, now)

    def _prepared(
        self,
        stored: bytes,
        data: memoryview | Sequence[Part],
        before: Entry | None,
        flags: int,
        now: int,
    ) -> Prepared:
        version = self.version + 1
        if not isinstance(data, memoryview):
            size = sum(part.length for part in data)
            one = data[0] if len(data) == 1 else Part(0, 0, 0, 0)
            parts = () if len(data) == 1 else data
            entry = Entry(version, now, size, flags, one.sum, one.place, 0, self.provenance, parts)
            return Prepared(stored, entry, before)
        size = len(data)
        if size <= self._inline_max:
            value = bytes(data)
            entry = Entry(version, now, size, flags, crc32c(value), 0, 0, self.provenance)
            return Prepared(stored, entry, before, value)
        entry = Entry(version, now, size, flags, 0, 0, 0, self.provenance)
        return Prepared(stored, entry, before, None, data)

    def _prepared_delete(
        self, stored: bytes, condition: Condition, seen: Changes | None
    ) -> Prepared:
        before = self._before(stored, seen)
        if before is None:
            raise NotFound("there is no such object")
        check_condition(before, condition)
        return Prepared(stored, None, before)

    def _before(self, stored: bytes, seen: Changes | None) -> Entry | None:
        if seen is not None and stored in seen:
            return seen[stored]
        return self.view.find(stored)

    def _is_moving(self, entry: Entry) -> bool:
        """Whether a value is being moved from where it is."""
        victims = self.upkeep.victims
        if not victims:
            return False
        if entry.frame == self.writer.pending.number and not entry.parts:
            return False
        at = self.geometry.at
        if entry.parts:
            return any(at(part.place) in victims for part in entry.parts)
        return at(self.writer.place_of(entry)) in victims

    # Doing ---------------------------------------------------------------------------------------

    def perform(self, change: Prepared) -> Entry:
        """Does one change, if there is room for it.  Raises `NoSpace`, `WouldWait`."""
        size = change.frame_bytes
        if change.data is not None or (change.entry is not None and change.entry.parts):
            self._perform_all([change])
            entry = self.view.newer[change.key]
        else:
            if WITHOUT_WAITING.entered:
                self._check_at_hand(size, shrinks=change.entry is None)
            elif change.entry is None:
                self.upkeep.make_room(2, shrinks=True)
            elif not self.upkeep.has_room_for_entry():
                self.upkeep.make_room(SPARE_SEGMENTS)
            if self.writer.pending.size + size > self.writer.payload_max:
                self.writer.write_frame()
            entry = self._apply(change)
            if entry is not None and change.value is not None and entry.size <= CACHED_BYTES_MAX:
                # What was put is often what is read next.
                self._keep_value(change.key, entry, change.value)
            if self.writer.pending.size >= self.writer.pending_max:
                self.writer.write_frame()
        return entry if entry is not None else _GONE

    def _check_at_hand(self, size: int, *, shrinks: bool) -> None:
        """Raises `WouldWait` if a change of so many bytes could not be taken in without writing."""
        writer, upkeep = self.writer, self.upkeep
        if writer.pending.size + size >= writer.pending_max:
            raise WouldWait
        if not (upkeep.has_room(2) if shrinks else upkeep.has_room_for_entry()):
            raise WouldWait

    def _perform_all(self, changes: Sequence[Prepared]) -> None:
        """Does changes as one, in as many frames as it takes."""
        writer, size = self.writer, sum(self._total_bytes(change) for change in changes)
        if WITHOUT_WAITING.entered:
            if any(change.data is not None for change in changes):
                raise WouldWait
            self._check_at_hand(size, shrinks=False)
        else:
            whole = self._segments_for(changes)
            shrinks = all(change.entry is None for change in changes)
            self.upkeep.make_room(SPARE_SEGMENTS + whole, shrinks=shrinks)
        changes = [self._with_data(change) for change in changes]
        if writer.pending.size + size > writer.payload_max:
            writer.write_frame()
        applied: Changes = {}
        try:
            for change in changes:
                if writer.pending.size + self._record_bytes(change) > writer.payload_max:
                    writer.write_frame(goes_on=bool(applied))
                self._apply(change, applied)
        except BaseException:
            # A part of them that was taken in would become one with whatever comes next.
            writer.failed = writer.failed or bool(applied)
            raise
        self._show(applied)
        if writer.pending.size >= writer.pending_max:
            writer.write_frame()

    def _segments_for(self, changes: Sequence[Prepared]) -> int:
        """How many segments changes take beside what is kept free anyway, at most."""
        size = self.geometry.segment_bytes
        records = sum(map(self._record_bytes, changes))
        data = sum(map(self._total_bytes, changes)) - records
        if len(changes) > 1:
            # Segments may end with less than the next part takes.
            data *= 2
        # And so may frames.
        frames = 2 * records if self.writer.pending.size + records > self.writer.payload_max else 0
        return -(-data // size) - (-frames // size)

    def _record_bytes(self, change: Prepared) -> int:
        parts = len(change.entry.parts) if change.entry is not None else 0
        return change.frame_bytes + parts * ST1_PART.size

    def _total_bytes(self, change: Prepared) -> int:
        """What a change takes of frames and data segments, at most."""
        if change.data is None:
            return self._record_bytes(change)
        size = len(change.data)
        parts = -(-size // self._part_bytes)
        return change.frame_bytes + parts * ST1_PART.size + blocks_of(size) * BLOCK_BYTES

    def _with_data(self, change: Prepared) -> Prepared:
        """The change with its data written."""
        if change.data is None or change.entry is None:
            return change
        data, parts = change.data, []
        for at in range(0, len(data), self._part_bytes):
            part = self.writer.put_data(data[at : at + self._part_bytes])
            parts.append(part._replace(offset=at))
        if len(parts) == 1:
            entry = change.entry._replace(place=parts[0].place, sum=parts[0].sum)
        else:
            entry = change.entry._replace(parts=parts)
        return change._replace(entry=entry, data=None)

    def _apply(self, change: Prepared, applied: Changes | None = None) -> Entry | None:
        """Adds a change to the pending frame, and to what is seen, or to what is `applied`."""
        key, entry, before, value, _, again = change
        view = self.view
        is_mine = applied is not None and key in applied
        if applied is not None and is_mine:
            # What the same batch put before.
            before = applied[key]
        elif before is not None:
            # Making room may have moved it.
            before = view.find(key)
        if again and entry is not None and before is not None:
            entry = before._replace(version=entry.version, created=entry.created)
        entry = self._logged(key, entry, before, value)
        if before is not None:
            if is_mine:
                self.writer.lost(before)
            else:
                self.upkeep.lost(view, key, before)
        if applied is not None:
            applied[key] = entry
            return entry
        if key not in view.newer:
            view.order.add(key)
        view.newer[key] = entry
        return entry

    def _logged(
        self, key: bytes, entry: Entry | None, before: Entry | None, value: bytes | None
    ) -> Entry | None:
        """The entry as it is in the pending frame, counted."""
        writer, replaced, flags = self.writer, 0, 0
        if before is not None:
            replaced, flags = len(before.parts), st1.REPLACES
        if entry is None:
            self.forget_value(key)
            gone = _GONE._replace(version=self.version)
            writer.add(key, gone, None, flags=flags | st1.REMOVED, replaced=replaced)
            self._count(key, -1, -replaced)
            return None
        self.version = max(self.version, entry.version)
        if value is None and entry.frame and entry.frame != writer.pending.number:
            entry = entry._replace(place=writer.place_of(entry), frame=0)
        entry = writer.add(key, entry, value, flags=flags, replaced=replaced)
        if value is None:
            writer.gained(entry)
        if before is None or entry.parts or replaced:
            self._count(key, before is None, len(entry.parts) - replaced)
        return entry

    def _count(self, key: bytes, entries: int, parts: int) -> None:
        """So many entries of this key, and parts, have come."""
        counts = self.counts
        self.counts = Counts(
            counts.entries + entries,
            counts.names + entries * (key[0] == st1.NAMES[0]),
            counts.parts + parts,
            counts.heap + entries * len(key),
        )

    def _show(self, applied: Changes) -> None:
        """Has others see what a batch did, all at once."""
        view = self.view
        fresh = [key for key in applied if key not in view.newer]
        view.newer.update(applied)
        for key in fresh:
            view.order.add(key)

    def _go_on(self) -> None:
        """Goes on with what is to be done beside operations; `has_work` says so to who waits for
        nothing."""
        if not WITHOUT_WAITING.entered:
            self.upkeep.work()

    # Making it durable ---------------------------------------------------------------------------

    def commit(self) -> int:
        """Writes what is pending to the log; returns the sequence of the last frame.

        `flush` with that, begun behind this, makes it durable.
        """
        self.check_may_wait()
        self._check_writable()
        return self.writer.commit()

    @property
    def durable(self) -> int:
        """The sequence of the last frame that is known to be durable."""
        return self.writer.durable

    def flush(self, sequence: int = 0) -> None:
        """Flushes the device, which makes the frames up to `sequence` durable that were written
        before.  In any thread, also beside operations.  Raises `StorageIOError`, for good."""
        self.writer.flush(sequence)

    def sync(self) -> None:
        """Makes everything before durable.  Raises `StorageIOError`."""
        sequence = self.commit()
        if sequence > self.durable:
            self.flush(sequence)

    def close(self) -> None:
        """Makes everything durable, and lets go of the device.  What fails is raised; the device
        is closed all the same."""
        if self._closed:
            return
        try:
            if self._writable and not self.writer.failed:
                self.sync()
        finally:
            self._closed = True
            self.device.close()

    # Upkeep --------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""
        return self.upkeep.has_work

    def work(self) -> None:
        """One bounded step of what is to be done beside operations.  Raises what the device does;
        what there is no room for is left."""
        self._check_writable()
        self.upkeep.work()

    def compact(self) -> None:
        """Gives back the space of what was replaced or removed.  Raises `NoSpace`, `Corrupt`, with
        nothing changed."""
        self.check_may_wait()
        self._check_writable()
        self.upkeep.compact()

    def compact_steps(self) -> Iterator[None]:
        """`compact`, a bounded step at a time; operations may come between them."""
        self.check_may_wait()
        self._check_writable()
        return self.upkeep.compact_steps()

    # State ---------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._closed:
            raise Closed("the store was closed")
        if not self._writable:
            raise ReadOnly("the store is open for reading")
        if self.writer.failed:
            self.writer.check()

    check_writable = _check_writable


_GONE: Final = Entry(0, 0, 0, 0, 0, 0, 0, 0)


def check_condition(before: Entry | None, condition: Condition) -> None:
    """Raises `Conflict` unless `condition` holds of what is there."""
    if condition is ANY:
        return
    if condition.absent and before is not None:
        raise Conflict("there is something under the key")
    if condition.version is not None and (before is None or before.version != condition.version):
        raise Conflict("the key has another version")


def _nobody_reads() -> None:
    """Where one thread does everything."""
