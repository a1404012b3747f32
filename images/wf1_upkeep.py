"""What keeps a CAPOSWF1 volume going beside its operations: room, checkpoints, cleaning.

Invariants:

* What is to be done beside operations goes on in bounded steps, one piece of work at a time.
* Room for a checkpoint and for what removes things is kept free, so a full volume can be emptied.
* Segments become free behind a durable checkpoint, when `settle` has returned and nothing leads to
  them: neither the tables, nor the log, nor a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA
from capstore.images.wf1_base import Tables
from capstore.images.wf1_checkpoint import CheckpointWriter, orphans_of, segments_for
from capstore.images.wf1_clean import ROUND_BYTES_MAX, Cleaner
from capstore.images.wf1_state import Change, State
from capstore.schema.errors import NoSpace, StorageIOError
from capstore.schema.limits import KIB, MIB

if TYPE_CHECKING:
    from capstore.images.wf1_engine import Engine

# The log since the checkpoint is at most about half as long as that, within these bounds: a longer
# one costs the next opening more time, a shorter one more checkpoints.
LOG_BYTES_MIN: Final = 4 * MIB
LOG_BYTES_MAX: Final = 32 * MIB
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
SPARE_SEGMENTS: Final = 3


@dataclass(eq=False)
class Snapshot:
    """A moment that is held: what is live in it is not reclaimed until it is dropped."""

    state: State
    live: Sequence[int]


class Upkeep:
    """The upkeep of the volume of `engine`, which rests on `tables`."""

    def __init__(self, engine: Engine, tables: Tables) -> None:
        self._engine = engine
        self._writer = engine.writer
        self._space = engine.space
        self._geometry = engine.geometry
        self.snapshots: list[Snapshot] = []
        # The tables that the state rests on, and older ones that snapshots may still need.
        self._tables: list[Tables] = [tables]
        # What is other than the tables say.
        self._changed: set[int] = set(engine.state.nodes)
        self._renamed: set[int] = set(engine.state.names)
        # What had no name at the last checkpoint, and so is not in its tables.
        self.left_out: set[int] = set()
        self._work: Iterator[None] | None = None
        self._is_in_a_hurry = False
        self._is_cleaning_due = False
        # What cleaning could not make free.
        self._dead_left = 0
        self._live_bytes = sum(self._space.live)
        self._set_limits()

    # Snapshots -----------------------------------------------------------------------------------

    def hold(self, state: State) -> Snapshot:
        """Holds a moment."""
        snapshot = Snapshot(state, list(self._space.live))
        self.snapshots.append(snapshot)
        return snapshot

    def is_held(self, segment: int) -> bool:
        """Whether a segment of data must stay as it is."""
        if segment == self._writer.data_segment:
            return True
        return any(
            segment < len(snapshot.live) and snapshot.live[segment] for snapshot in self.snapshots
        )

    # Room ----------------------------------------------------------------------------------------

    def checkpoint_segments(self) -> int:
        """How many segments a checkpoint of the present state takes."""
        return segments_for(self._geometry, self._engine.state.counts, self._space.count)

    def spare(self, data_bytes: int, *, shrinks: bool = False) -> int:
        """How many segments are to be free beside the next checkpoint, before an operation with so
        many bytes of data."""
        # A frame may take a segment, and a checkpoint takes one for the log behind it.
        if shrinks:
            return 2
        return SPARE_SEGMENTS + 1 - (-data_bytes // self._geometry.segment_bytes)

    def has_room(self, spare: int) -> bool:
        """Whether so many segments are free beside the next checkpoint."""
        return self._space.free >= self.checkpoint_segments() + spare

    def make_room(self, spare: int, *, shrinks: bool = False) -> None:
        """Sees to it that there is room.  Raises `NoSpace`, with nothing changed."""
        if self.has_room(spare):
            return
        try:
            self._writer.grow(self.checkpoint_segments() + spare)
        except NoSpace:
            self.reclaim(spare)
            if not shrinks and not self.has_room(spare):
                raise

    def reclaim(self, spare: int) -> None:
        """Cleans and writes checkpoints until `spare` segments are free beside the next one, or
        nothing more can be had."""
        while not self.has_room(spare):
            before = self._space.free
            if not self.is_worth_cleaning() and len(self._writer.log_segments) < 2:
                return
            self.finish_work()
            self.clean()
            self.checkpoint()
            if self._space.free <= before:
                return

    # Cleaning ------------------------------------------------------------------------------------

    def is_worth_cleaning(self) -> bool:
        """Whether cleaning could make a segment free."""
        return self._space.dead_bytes >= 2 * self._geometry.segment_bytes

    def clean(self) -> None:
        """Moves live data out of the segments with the least of it."""
        for _ in Cleaner(self._engine).steps():
            continue

    def _cleaning_steps(self) -> Iterator[None]:
        """Cleans a part of a volume that grows, and writes a checkpoint."""
        before = self._space.dead_bytes
        room = max(ROUND_BYTES_MAX, self._live_bytes // _CLEANED_SHARE)
        with suppress(NoSpace):
            cleaning = Cleaner(self._engine, room).steps()
            yield from self._writer.paced(cleaning, self._hurries)
        yield from self.checkpoint_steps()
        if before - self._space.dead_bytes < self._geometry.segment_bytes:
            # Held by snapshots, or damaged: not again before there is more.
            self._dead_left = self._space.dead_bytes
            self._is_cleaning_due = False

    # Work beside operations ----------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""
        return self._work is not None or self._is_cleaning_due or self._is_checkpoint_due()

    def work(self) -> None:
        """One bounded step of what is to be done beside operations."""
        if self._work is None:
            if self._is_cleaning_due:
                self._is_cleaning_due = False
                self._work = self._cleaning_steps()
            elif self._is_checkpoint_due():
                self._work = self.checkpoint_steps()
            else:
                return
        try:
            self._step()
        except NoSpace:
            # The operation that this follows has been done, whether there is room for this or not.
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
        finally:
            self._is_in_a_hurry = False

    # Checkpoints ---------------------------------------------------------------------------------

    def note(self, change: Change) -> None:
        """Takes note of a change that the tables do not have."""
        self._changed.update([item.node.id for item in change.nodes])
        self._renamed.update([item.directory for item in change.names])

    def _set_limits(self) -> None:
        """Until when the checkpoint that the state rests on will do."""
        half = self._tables[-1].head.length // 2
        self._log_max = max(LOG_BYTES_MIN, min(LOG_BYTES_MAX, half))
        self._data_max = max(DATA_BYTES_MIN, self._live_bytes)
        if not self._space.grows:
            # In a small region neither takes more than an eighth of it.
            part = max(self._geometry.segment_bytes, self._space.bytes // 8)
            self._log_max, self._data_max = min(self._log_max, part), min(self._data_max, part)

    def _put_off(self) -> None:
        """There was no room: not again before there is more to gain."""
        part = self._geometry.segment_bytes
        self._log_max = max(self._log_max, self._writer.log_bytes + part)
        self._data_max = max(self._data_max, self._writer.data_bytes + part)

    def _is_checkpoint_due(self) -> bool:
        writer = self._writer
        return writer.log_bytes >= self._log_max or writer.data_bytes >= self._data_max

    def is_closing_worth_a_checkpoint(self) -> bool:
        """Whether the log costs the next opening more time than a checkpoint costs this closing."""
        share = self._tables[-1].head.length // CLOSING_SHARE
        return self._writer.log_bytes > min(CLOSING_LOG_BYTES_MAX, share)

    def checkpoint(self) -> None:
        """Writes a checkpoint, to its end."""
        self.finish_work()
        self._work = self.checkpoint_steps()
        self.finish_work()

    def checkpoint_steps(self) -> Iterator[None]:
        """Writes a checkpoint of the moment of the first step."""
        engine, space, log = self._engine, self._space, self._writer
        # The log behind it goes on where it is: whatever crashes make of this, it took no segment
        # that only a checkpoint would give back.
        log.write_frame()
        begin = log.position
        engine.state = engine.state.with_own_content(orphans_of(engine.state))
        live = [n if space.use[s] == DATA else 0 for s, n in enumerate(space.live)]
        # What dies from here on, the checkpoint and the log behind it lead to.
        dead = space.reclaimable(self.is_held)
        # Where there is no room for it, nothing has changed yet.
        try:
            writer = CheckpointWriter(engine.device, space, engine.state, begin.sequence - 1, live)
        except StorageIOError:
            log.failed = True
            raise
        old_log, log.log_segments = log.log_segments[:-1], log.log_segments[-1:]
        log.log_bytes = log.data_bytes = 0
        self.left_out = {node.id for node in orphans_of(engine.state)}
        self._changed = set(self.left_out)
        self._renamed = set()
        try:
            yield from log.paced(writer.steps(), self._hurries)
            yield from log.flush_steps(self._hurries)
            log.flushed(begin.sequence - 1)
            superblock = replace(
                log.superblock,
                generation=log.superblock.generation + 1,
                checkpoint_lba=self._geometry.lba(writer.head.runs[0]),
                checkpoint_sum=writer.head_sum,
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
        self._rest_on(writer, [*old_log, *dead])

    def _hurries(self) -> bool:
        return self._is_in_a_hurry

    def _rest_on(self, writer: CheckpointWriter, unused: Sequence[int]) -> None:
        """Goes over to the new tables, and makes free what nothing leads to any more: the segments
        `unused` and those of older tables."""
        engine, space = self._engine, self._space
        tables = Tables(engine.device, self._geometry, space.count, writer.head)
        engine.state = engine.state.rebased(tables, self._changed, self._renamed)
        needed = {id(snapshot.state.base) for snapshot in self.snapshots}
        kept = [old for old in self._tables if id(old) in needed]
        freed = [run for old in self._tables if old not in kept for run in old.head.runs]
        self._tables = [*kept, tables]
        self._live_bytes = sum(space.live)
        self._set_limits()
        engine.settle()
        space.release([*unused, *freed])
        enough = max(self._live_bytes, self._dead_left) + DEAD_BYTES_MIN
        self._is_cleaning_due = space.grows and space.dead_bytes > enough
