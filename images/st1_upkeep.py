"""What keeps a CAPOSST1 store going beside its operations: room, and compaction.

Invariants:

* What is to be done beside operations goes on in bounded steps, one piece of work at a time.
* Room for the next table and for what removes objects is kept free, so a full store can be emptied.
* Segments become free behind a durable superblock of the generation that does without them, when
  `settle` has returned and nobody is writing an object into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, FREE, LOG
from capstore.images.st1_entry import Entry
from capstore.images.st1_keys import SortedKeys
from capstore.images.st1_shadow import ShadowWriter
from capstore.images.st1_state import View
from capstore.images.st1_table import Table, segments_for
from capstore.schema.errors import Corrupt, NoSpace, StorageError
from capstore.schema.limits import KEY_BYTES_MAX, MIB

if TYPE_CHECKING:
    from capstore.images.st1_engine import St1Engine

# The entries in the log since the table are at most about half of that, within these bounds: more
# cost the next opening more time, less more tables.
LOG_BYTES_MIN: Final = 4 * MIB
LOG_BYTES_MAX: Final = 32 * MIB
# And so much is in the log with the values, which opening has to read.
LOG_VALUE_BYTES_MAX: Final = 128 * MIB
# A store that grows is compacted when so much more of it is dead than live.
DEAD_BYTES_MIN: Final = 64 * MIB
# Beside operations a segment is emptied only if at most so much of it is live, and so much at once,
# or this part of what is live.
_LIVE_SHARE_MAX: Final = 0.75
_MOVED_BYTES_MIN: Final = 64 * MIB
_MOVED_SHARE: Final = 4
# On command, nearly all of them.
_LIVE_SHARE_WANTED: Final = 0.97
# What is kept free beside the next table: a segment each for log and data, and one to move into.
SPARE_SEGMENTS: Final = 3
# So many keys that were replaced are looked up in a step.
_REPLACED_STEP: Final = 256
# So many entries may come until room is reckoned anew.
_CREDIT: Final = 64
# A region of a fixed size is compacted when so much of it is all that is free.
_SHORT_SHARE: Final = 8


class Upkeep:
    """The upkeep of the store of `engine`."""

    def __init__(self, engine: St1Engine) -> None:
        self._engine = engine
        self._writer = engine.writer
        self._space = engine.space
        self._geometry = engine.geometry
        # How many parts of objects that are being written lie in each segment.
        self.held: dict[int, int] = {}
        # Keys that are in the table, and have other values since, which is not in `live` yet.
        self.replaced: list[bytes] = []
        # Segments that are being emptied.
        self.victims: frozenset[int] = frozenset()
        self._is_building = False
        self._work: Iterator[None] | None = None
        self._is_in_a_hurry = False
        # What compaction could not make free.
        self._dead_left = 0
        self._credit = self._credit_free = 0
        # With how many free segments it was last looked at whether much is dead, and the answer.
        self._free_seen, self._is_dead_seen = -1, False
        self._set_limits()

    # Room ----------------------------------------------------------------------------------------

    def table_segments(self, more: int = 0) -> int:
        """How many segments a table takes, of what there is and so many entries more."""
        counts = self._engine.counts
        if more:
            counts = counts._replace(
                entries=counts.entries + more, heap=counts.heap + more * (KEY_BYTES_MAX + 1)
            )
        # The region may grow until then.
        return segments_for(self._geometry, counts, self._space.count + SPARE_SEGMENTS)

    def reserve(self, more: int = 0) -> int:
        """How many segments are kept free, with so many entries more: for the next table, and for
        the one behind that, which has the room of the front when that is as long."""
        table = self.table_segments(more)
        return table + max(0, table - len(self._engine.view.table.head.runs))

    def has_room(self, spare: int) -> bool:
        """Whether so many segments are free beside those that are kept so."""
        return self._space.free >= self.reserve() + spare

    def has_room_for_entry(self) -> bool:
        """Whether there is room for one entry more, with a value in the log."""
        free = self._space.free
        if self._credit and free == self._credit_free:
            self._credit -= 1
            return True
        if free >= self.reserve(_CREDIT) + SPARE_SEGMENTS:
            self._credit, self._credit_free = _CREDIT - 1, free
            return True
        return free >= self.reserve(1) + SPARE_SEGMENTS

    def _wanted(self, spare: int, *, shrinks: bool) -> int:
        return spare + (self.table_segments() if shrinks else self.reserve(1))

    def make_room(self, spare: int, *, shrinks: bool = False) -> None:
        """Sees to it that so many segments are free beside those that are kept so.

        Raises `NoSpace`, with nothing changed; where something `shrinks`, only if there is no room
        at all."""
        if shrinks and self._credit and self._space.free == self._credit_free:
            return
        wanted = self._wanted(spare, shrinks=shrinks)
        if self._space.free >= wanted:
            return
        try:
            self._writer.grow(wanted)
        except NoSpace:
            self._reclaim(spare, shrinks=shrinks)
            wanted = self._wanted(spare, shrinks=shrinks)
            # What was cut off may grow again, if not by so much.
            for least in (wanted, 1 if shrinks else wanted):
                with suppress(NoSpace):
                    self._writer.grow(least)
                    return
            raise

    def _reclaim(self, spare: int, *, shrinks: bool) -> None:
        """Compacts until so much is free, or nothing more can be had."""
        while True:
            self.finish_work()
            before = self._space.count - self._space.free
            if self._space.free >= self._wanted(spare, shrinks=shrinks):
                return
            if not self.is_worth_compacting():
                return
            try:
                self._finish(partial(self._chosen, _LIVE_SHARE_WANTED, is_bounded=False))
            except (NoSpace, Corrupt):
                return
            if self._space.count - self._space.free >= before:
                return

    def is_worth_compacting(self) -> bool:
        """Whether compaction could make a segment free."""
        return (
            self.dead_bytes() >= 2 * self._geometry.segment_bytes
            or len(self._writer.log_segments) > 1
        )

    def dead_bytes(self) -> int:
        """What compaction could give back, about."""
        size, space = self._geometry.segment_bytes, self._space
        current = self._writer.position.segment
        pairs = zip(space.use, space.live, strict=True)
        dead = sum(size - live for use, live in pairs if use in (DATA, LOG))
        return dead - (size - space.live[current])

    # Objects that are being written --------------------------------------------------------------

    def hold(self, segment: int) -> None:
        """Something in a segment is for an object that is not there yet."""
        self.held[segment] = self.held.get(segment, 0) + 1

    def release(self, segment: int) -> None:
        """Undoes one `hold`."""
        self.held[segment] -= 1
        if not self.held[segment]:
            del self.held[segment]

    # What is live --------------------------------------------------------------------------------

    def lost(self, view: View, key: bytes, entry: Entry) -> None:
        """Takes note of an entry that was replaced."""
        if self._is_building and view.is_new(key):
            # Its value may be moved: it is looked up when that is done.
            self.replaced.append(key)
        else:
            self._writer.lost(entry)

    def _settle_replaced(self) -> Iterator[None]:
        """Counts what was replaced while a shadow was made, or before the store was opened."""
        while self.replaced:
            with_values = self.replaced[-_REPLACED_STEP:]
            del self.replaced[-len(with_values) :]
            for key in with_values:
                # Where the table is damaged, what it leads to stays.
                with suppress(Corrupt):
                    entry = self._engine.view.table.find_key(key)
                    if entry is not None:
                        self._writer.lost(entry)
            yield

    # Work beside operations ----------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""
        return self._work is not None or bool(self.replaced) or self._is_due()

    def _is_due(self) -> bool:
        writer = self._writer
        return (
            writer.entry_bytes >= self._entry_bytes_max
            or writer.log_bytes >= self._log_bytes_max
            or self._is_dead_due()
        )

    def _is_dead_due(self) -> bool:
        # It takes a look at all segments: not for each operation.
        if self._space.free != self._free_seen:
            self._free_seen = self._space.free
            self._is_dead_seen = self._is_much_dead()
        return self._is_dead_seen

    def _is_much_dead(self) -> bool:
        free = self._space.free
        dead = self.dead_bytes() - self._dead_left
        if self._space.grows:
            return dead > max(sum(self._space.live), DEAD_BYTES_MIN)
        short = self.reserve(1) + SPARE_SEGMENTS + self._space.count // _SHORT_SHARE
        return free < short and dead >= 2 * self._geometry.segment_bytes

    def work(self) -> None:
        """One bounded step of what is to be done beside operations."""
        if self._work is None:
            if self._is_due():
                # If only the log is long, nothing is moved.
                share = _LIVE_SHARE_MAX if self._is_much_dead() else 0.0
                self._work = self._compaction(partial(self._chosen, share, is_bounded=True))
            elif self.replaced:
                self._work = self._settle_replaced()
            else:
                return
        try:
            self._step()
        except (NoSpace, Corrupt):
            # The operation that this follows has been done, whether this can be or not.
            self._put_off()

    def _step(self) -> None:
        assert self._work is not None  # noqa: S101 - for whoever reads types
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException:
            self._work = None
            raise

    def finish_work(self) -> None:
        """Does what has been begun, to its end."""
        self._is_in_a_hurry = True
        try:
            while self._work is not None:
                self._step()
        except (NoSpace, Corrupt):
            self._put_off()
        finally:
            self._is_in_a_hurry = False

    def _hurries(self) -> bool:
        return self._is_in_a_hurry

    def _set_limits(self) -> None:
        """Until when the table will do."""
        table = len(self._engine.view.table.head.runs) * self._geometry.segment_bytes
        self._entry_bytes_max = max(LOG_BYTES_MIN, min(LOG_BYTES_MAX, table // 2))
        self._log_bytes_max = LOG_VALUE_BYTES_MAX
        if not self._space.grows:
            # In a small region neither takes more than a part of it.
            part = max(4 * self._geometry.segment_bytes, self._space.bytes // 4)
            self._entry_bytes_max = min(self._entry_bytes_max, part)
            self._log_bytes_max = min(self._log_bytes_max, 2 * part)
        self._free_seen = -1

    def _put_off(self) -> None:
        """It was of no use: not again before there is more to gain."""
        part = 4 * self._geometry.segment_bytes
        self._entry_bytes_max = max(self._entry_bytes_max, self._writer.entry_bytes + part)
        self._log_bytes_max = max(self._log_bytes_max, self._writer.log_bytes + part)
        self._dead_left = self.dead_bytes()
        self._free_seen = -1

    # Compaction ----------------------------------------------------------------------------------

    def compact(self) -> None:
        """Compacts all there is to gain, to its end.  Raises `NoSpace`, `Corrupt`."""
        for _ in self.compact_steps():
            continue

    def compact_steps(self) -> Iterator[None]:
        """As `compact`; each item is one step, or a part of one that is under way."""
        used: int | None = None
        while True:
            yield from self._rest_of_work()
            if used is None and self._space.grows and self.has_room(1):
                # What is dead in the present segments can be had too.
                self._writer.leave_segments()
            self._work = self._compaction(
                partial(self._chosen, _LIVE_SHARE_WANTED, is_bounded=False)
            )
            yield from self._rest_of_work()
            now = self._space.count - self._space.free
            if used is not None and now >= used:
                return
            if not self._victims_for(_LIVE_SHARE_WANTED, self._space.bytes):
                return
            used = now

    def _rest_of_work(self) -> Iterator[None]:
        """What has been begun, step by step, to its end."""
        while self._work is not None:
            self._step()
            yield

    def begin_generation(self) -> None:
        """Makes a new table, and moves nothing.  Raises `NoSpace`, `Corrupt`."""
        self.finish_work()
        self._reclaim(1, shrinks=True)
        self._finish(list)

    def move_behind(self, first: int) -> None:
        """Empties the segments from `first` on, of a store that grows.

        Raises `NoSpace`, `Corrupt`."""
        self.finish_work()
        if max(self._writer.position.segment, self._writer.data_segment) >= first:
            self._writer.leave_segments()

        def choose() -> list[int]:
            spared = {self._writer.position.segment, *self.held}
            chosen = [
                segment
                for segment in range(first, self._space.count)
                if self._space.use[segment] in (DATA, LOG) and segment not in spared
            ]
            self._grow_for(chosen)
            return chosen

        self._finish(choose)

    def _finish(self, choose: Callable[[], list[int]]) -> None:
        """A compaction, to its end."""
        self._work = self._compaction(choose)
        self._is_in_a_hurry = True
        try:
            while self._work is not None:
                self._step()
        finally:
            self._is_in_a_hurry = False

    def _victims_for(self, share: float, room: int) -> list[int]:
        """The segments with the least that is live, as much as there is `room` for, in bytes."""
        space, writer = self._space, self._writer
        size = self._geometry.segment_bytes
        spared = {writer.position.segment, writer.data_segment, *self.held}
        ranked = sorted(
            (live, segment)
            for segment, (use, live) in enumerate(zip(space.use, space.live, strict=True))
            if use in (DATA, LOG) and 0 < live <= size * share and segment not in spared
        )
        chosen: list[int] = []
        for live, segment in ranked:
            room -= live
            if room < 0:
                break
            chosen.append(segment)
        # Nothing is gained by filling as many segments as are emptied.
        total = sum(space.live[segment] for segment in chosen)
        return chosen if len(chosen) > -(-total // size) else []

    def _chosen(self, share: float, *, is_bounded: bool) -> list[int]:
        """What is to be emptied of those segments of which at most a `share` is live."""
        space, size = self._space, self._geometry.segment_bytes
        if not share:
            return []
        if space.grows:
            live = sum(space.live)
            room = max(_MOVED_BYTES_MIN, live // _MOVED_SHARE) if is_bounded else live
            chosen = self._victims_for(share, room)
            # Where the host has no room, it is as in a region of a fixed size.
            with suppress(NoSpace):
                self._grow_for(chosen)
                return chosen
            with suppress(NoSpace):
                self._grow_for([])
        # A segment for the log, and what the ends of segments are left with.
        free = space.free - self.table_segments() - 1
        return self._victims_for(share, max(0, free) * (size - size // 8))

    def _grow_for(self, victims: list[int]) -> None:
        """Has a store that grows have room to empty segments.  Raises `NoSpace`."""
        moved = sum(self._space.live[segment] for segment in victims)
        # Segments end with less than the next value takes.
        most = self._geometry.segment_bytes - self._geometry.segment_bytes // 8
        self._writer.grow(self.table_segments() + SPARE_SEGMENTS + -(-moved // most))

    def _compaction(self, choose: Callable[[], list[int]]) -> Iterator[None]:
        """Makes a new generation of the moment when its shadow begins, when `choose` chooses what
        is to be emptied."""
        yield from self._settle_replaced()
        engine, space, log = self._engine, self._space, self._writer
        log.write_frame()
        begin = log.position
        victims = choose()
        spared = {begin.segment, log.data_segment, *self.held}
        dead = [
            segment
            for segment, (use, live) in enumerate(zip(space.use, space.live, strict=True))
            if use in (DATA, LOG) and not live and segment not in spared
        ]
        view, counts = engine.view, engine.counts
        frozen = view._replace(
            newer={}, order=SortedKeys(), frozen=view.newer, frozen_order=view.order
        )
        # Where there is no room for it, nothing has changed yet.
        shadow = ShadowWriter(
            log,
            frozen,
            counts,
            sequence=begin.sequence - 1,
            version=engine.version,
            victims=victims,
        )
        last_frame = log.pending.number
        before = list(space.live)
        engine.view = frozen
        self.victims, self._is_building = frozenset(victims), True
        old_log, log.log_segments = log.log_segments[:-1], log.log_segments[-1:]
        old_bytes = log.log_bytes, log.entry_bytes
        log.log_bytes = log.entry_bytes = 0
        try:
            yield from log.paced(shadow.steps(), self._hurries)
        except (Corrupt, NoSpace):
            self._give_up(shadow)
            log.log_segments = [*old_log, *log.log_segments]
            log.log_bytes += old_bytes[0]
            log.entry_bytes += old_bytes[1]
            raise
        except BaseException:
            log.failed = True
            raise
        try:
            yield from log.flush_steps(self._hurries)
            log.flushed(begin.sequence - 1)
            assert shadow.head is not None  # noqa: S101 - for whoever reads types
            superblock = replace(
                log.superblock,
                generation=log.superblock.generation + 1,
                table_lba=self._geometry.lba(shadow.runs[0]),
                table_sum=shadow.head_sum,
                log_lba=(self._geometry.start(begin.segment) + begin.offset) // BLOCK_BYTES,
                log_sequence=begin.sequence,
                durable=log.durable,
            )
            log.write_superblock(superblock)
            yield from log.flush_steps(self._hurries)
        except BaseException:
            log.failed = True
            raise
        log.superblock = superblock
        unused = self._rest_on(shadow, before, last_frame, old_log, [*dead, *victims])
        yield from self._give_back(unused)

    def _give_up(self, shadow: ShadowWriter) -> None:
        """Goes back to the table before: what was frozen is as new as what came since."""
        engine = self._engine
        view = engine.view
        for key in self.replaced:
            entry = view.frozen.get(key)
            if entry is None and key not in view.frozen:
                continue
            if entry is not None:
                self._writer.lost(entry)
        self.replaced = [key for key in self.replaced if key not in view.frozen]
        both = {**view.frozen, **view.newer}
        engine.view = view._replace(
            newer=both, order=SortedKeys(both), frozen={}, frozen_order=SortedKeys()
        )
        self.victims, self._is_building = frozenset(), False
        self._space.release(shadow.segments)

    def _rest_on(
        self,
        shadow: ShadowWriter,
        before: list[int],
        last_frame: int,
        old_log: list[int],
        unused: list[int],
    ) -> list[int]:
        """Makes the shadow the front, and makes free what nothing leads to any more; that."""
        engine, space, log = self._engine, self._space, self._writer
        assert shadow.head is not None  # noqa: S101 - for whoever reads types
        old = engine.view
        table = Table(engine.device, self._geometry, space.count, shadow.head)
        engine.view = old._replace(table=table, frozen={}, frozen_order=SortedKeys(), cache={})
        for segment, count in enumerate(shadow.live.tolist()):
            since = space.live[segment] - (before[segment] if segment < len(before) else 0)
            space.live[segment] = count + since
        for segment in old_log:
            space.use[segment] = DATA
        self.victims, self._is_building = frozenset(), False
        engine.settle()
        for number in [number for number in log.bases if number < last_frame]:
            del log.bases[number]
        free = [segment for segment in unused if not space.live[segment]]
        free = [s for s in free if s not in self.held and s not in shadow.kept]
        free += old.table.head.runs
        space.release(free)
        self._set_limits()
        self._dead_left = self.dead_bytes() if len(free) <= len(shadow.segments) else 0
        return free

    def _give_back(self, segments: list[int]) -> Iterator[None]:
        """Gives the room of free segments back to the host, if the store grows."""
        space, size, device = self._space, self._geometry.segment_bytes, self._engine.device
        if not space.grows:
            return
        try:
            end = space.cut()
            if device.size() > end:
                device.resize(end)
            for segment in segments:
                # Some may be in use again.
                if segment < space.count and space.use[segment] == FREE:
                    device.discard(self._geometry.start(segment), size)
                    yield
        except StorageError:
            self._writer.failed = True
            raise
