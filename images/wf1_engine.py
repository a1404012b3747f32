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
* In a thread that is `WITHOUT_WAITING` an operation that would have to wait for the device raises
  `WouldWait`, and then has changed nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from capstore.images import wf1, wf1_ops
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, WF1_EXTENT, WF1_NODE, blocks_of
from capstore.images.segments import LOG, TABLE
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.images.wf1_content import Extent, pieces_of, runs_of
from capstore.images.wf1_copyup import CopyUp
from capstore.images.wf1_log import change_bytes
from capstore.images.wf1_marks import (
    WHITEOUTS_AT_ONCE_MAX,
    ManyWhiteouts,
    all_whiteouts_in,
)
from capstore.images.wf1_operations import Operations
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_state import Change, Node, State
from capstore.images.wf1_upkeep import SPARE_SEGMENTS, Snapshot, Upkeep
from capstore.images.wf1_writer import SHORT_BYTES_MAX, Entropy, Writer
from capstore.schema.errors import (
    Busy,
    Closed,
    IsDirectory,
    ReadOnly,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import MIB
from capstore.schema.nodes import Buffer, Usage

# Nanoseconds since 1970.
Clock = Callable[[], int]

# One write, which is atomic.
WRITE_BYTES_MAX: Final = 16 * MIB


class Engine(Operations):
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
        self.space = recovered.space
        self.geometry = recovered.space.geometry
        self.state = recovered.state
        # Returns when nobody reads what an older state led to; see above.
        self.settle: Callable[[], None] = _nobody_reads
        self.clock = clock
        self._writable = writable
        self._closed = False
        self._held: dict[int, int] = {}
        self._holding = threading.Lock()
        self.writer = Writer(device, recovered)
        self.upkeep = Upkeep(self, recovered.tables)
        self.copy_up = CopyUp(self)
        if writable:
            self.writer.begin_life(entropy)

    def __repr__(self) -> str:
        words = [f"{self.state.counts.nodes} nodes", f"{self.space.count} segments"]
        words += ["read-only"] * (not self._writable) + ["failed"] * self.writer.failed
        words += ["closed"] * self._closed
        return f"<Engine {', '.join(words)}>"

    # Content -------------------------------------------------------------------------------------

    def truncate(self, number: int, size: int) -> None:
        """Cuts or extends a file."""
        self._check_file(number)
        shrinks = size <= wf1_ops.node_at(self.state, number).size
        self.operate(
            lambda state: wf1_ops.truncate(state, self.clock(), number, size), shrinks=shrinks
        )

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
        self._make_room_for_data(number, pieces)
        extents = self.writer.put_pieces(offset, view, pieces)
        # Nothing may be reclaimed in between: nothing refers to the data yet.
        self.perform(wf1_ops.written(self.state, self.clock(), number, extents))
        self._go_on()

    def _make_room_for_data(self, number: int, pieces: Sequence[tuple[int, int]]) -> None:
        data_bytes = sum(blocks_of(length) * BLOCK_BYTES for _, length in pieces)
        spare = self.upkeep.spare(data_bytes)
        if not WITHOUT_WAITING.entered:
            self.upkeep.make_room(spare)
            return
        if data_bytes >= SHORT_BYTES_MAX or not self.upkeep.has_room(spare):
            raise WouldWait
        node = wf1_ops.node_at(self.state, number)
        if node.content is None and node.size:
            raise WouldWait
        self._check_at_hand(data_bytes, WF1_NODE.size + len(pieces) * WF1_EXTENT.size)

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

    @property
    def held(self) -> Collection[int]:
        """The nodes that somebody holds."""
        return self._held

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
        self.operate(lambda state: wf1_ops.forget(state, number), shrinks=True)

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
        if self._closed or self.writer.failed or not self._writable:
            return False
        # One without a name is never left to the tables.
        node = self.state.nodes.get(number)
        return self._held.get(number, 0) == holders and node is not None and not node.links

    def snapshot(self) -> Snapshot:
        """Holds this moment."""
        self._check_open()
        return self.upkeep.hold(self.state)

    def drop(self, snapshot: Snapshot) -> None:
        """Lets go of a moment."""
        self.upkeep.snapshots.remove(snapshot)

    # Reading -------------------------------------------------------------------------------------

    def read_into(self, state: State, number: int, offset: int, view: memoryview) -> int:
        """Fills `view` with the content of a file as it is in `state`; returns how many bytes.

        Raises `Corrupt` where the data is not what was written.
        """
        node = wf1_ops.node_at(state, number)
        got = max(0, min(len(view), node.size - offset))
        at = offset
        for run in runs_of(state.extents(node, offset, offset + got)):
            if run[0].offset > at:
                view[at - offset : run[0].offset - offset] = bytes(run[0].offset - at)
            at = run[-1].end
            self._read_run_into(run, view[run[0].offset - offset : at - offset])
        view[at - offset : got] = bytes(offset + got - at)
        return got

    def read_extent(self, extent: Extent) -> memoryview:
        """The bytes of an extent; the whole unit is read, to check it.  Raises `Corrupt`."""
        unit = memoryview(bytearray(extent.stored))
        self.writer.read_units((extent,), unit)
        return unit[extent.skip : extent.skip + extent.length]

    def _read_run_into(self, run: Sequence[Extent], view: memoryview) -> None:
        if run[0].length == run[0].stored:
            self.writer.read_units(run, view)
        else:
            view[:] = self.read_extent(run[0])

    def usage(self) -> Usage:
        """Bytes of the region (a total of 0 for one that grows) and nodes; free is what is, and
        what cleaning can make so, without what a checkpoint needs."""
        space, size = self.space, self.geometry.segment_bytes
        own = sum(use in (LOG, TABLE) for use in space.use)
        free = space.free - self.upkeep.checkpoint_segments() - SPARE_SEGMENTS
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
        """Makes everything durable, with a checkpoint if the log is long, and lets go of the
        device.  What fails is raised; the device is closed all the same."""
        if self._closed:
            return
        try:
            if self._writable and not self.writer.failed:
                self.sync()
                if self.upkeep.is_closing_worth_a_checkpoint():
                    self.checkpoint()
        finally:
            self._closed = True
            self.device.close()

    # Changing ------------------------------------------------------------------------------------

    def operate(
        self,
        decide: Callable[[State], Change],
        *,
        shrinks: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Does what `decide` says of the state, as a whole or not at all; `before` that, when there
        is room for it, what nobody sees.  Raises what they raise, and `NoSpace`."""
        self._check_writable()
        try:
            self._operate(decide, shrinks=shrinks, before=before)
        except ManyWhiteouts as found:
            self._empty(found.number)
            self._operate(decide, shrinks=shrinks, before=before)

    def _operate(
        self,
        decide: Callable[[State], Change],
        *,
        shrinks: bool,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._make_room(decide, self.upkeep.spare(0, shrinks=shrinks), shrinks=shrinks)
        if before is not None:
            before()
        with self._without_releases():
            change = decide(self.state)
            if not change.nodes:
                return
            self.perform(change)
        self._go_on()

    def _empty(self, number: int) -> None:
        """Takes all whiteouts out of a directory that holds nothing else, in several changes, none
        of which is seen.  Raises `NotEmpty`."""
        self.check_may_wait()
        inside = all_whiteouts_in(self.state, number)
        for at in range(0, len(inside), WHITEOUTS_AT_ONCE_MAX):
            some = inside[at : at + WHITEOUTS_AT_ONCE_MAX]
            change = functools.partial(wf1_ops.uncover, number=number, whiteouts=some)
            self._operate(change, shrinks=True)

    def _make_room(
        self, decide: Callable[[State], Change], spare: int, *, shrinks: bool = False
    ) -> None:
        """Makes room for an operation that changes something, if there is none."""
        # What cannot be done shall not wait for room, nor say that there is none.
        if self.upkeep.has_room(spare) or not decide(self.state).nodes:
            return
        self.check_may_wait()
        self.upkeep.make_room(spare, shrinks=shrinks)

    @contextmanager
    def _without_releases(self) -> Iterator[None]:
        """Nobody holds a node, or lets go of one, in between."""
        if not self._holding.acquire(blocking=not WITHOUT_WAITING.entered):
            raise WouldWait
        try:
            yield
        finally:
            self._holding.release()

    def perform(self, change: Change) -> None:
        """Applies a change and adds it to the frame that is pending.  Raises `TooLarge`."""
        size = change_bytes(change)
        self.writer.check_change(size)
        if WITHOUT_WAITING.entered:
            self._check_at_hand(0, size)
        state, effect = self.state.apply(change)
        self.writer.make_way(size)
        self.writer.add(change, size)
        self.space.gained(effect.gained)
        self.space.lost(effect.lost)
        self.upkeep.note(change)
        self.state = state

    def _check_at_hand(self, data_bytes: int, size: int) -> None:
        """Raises `WouldWait` if a change of `size` with so much data would write something now."""
        if not self.writer.has_at_hand(data_bytes, size):
            raise WouldWait

    @staticmethod
    def check_may_wait() -> None:
        """Raises `WouldWait` where nothing may."""
        if WITHOUT_WAITING.entered:
            raise WouldWait

    def _go_on(self) -> None:
        """Goes on with what is to be done beside operations; `has_work` says so to who waits for
        nothing."""
        if not WITHOUT_WAITING.entered:
            self.upkeep.work()

    # Upkeep --------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something."""
        return self.upkeep.has_work

    def work(self) -> None:
        """One bounded step of what is to be done beside operations.  Raises what the device does;
        what there is no room for is left."""
        self.upkeep.work()

    def checkpoint(self) -> None:
        """Writes a checkpoint, to its end.  Raises `NoSpace`, with nothing changed."""
        self._check_writable()
        self.check_may_wait()
        self.upkeep.checkpoint()

    def clean(self) -> None:
        """Moves live data out of the segments with the least of it, and reclaims nothing yet."""
        self._check_writable()
        self.check_may_wait()
        self.upkeep.clean()

    def reset(self) -> None:
        """Removes everything below the root, in one step, which is durable when this returns.

        Raises `Busy` while anybody holds a node or a snapshot, `NoSpace`, with nothing changed."""
        self._check_writable()
        self.check_may_wait()
        self.upkeep.finish_work()
        before, live = self.state, list(self.space.live)
        with self._without_releases():
            if self._held or self.upkeep.snapshots:
                raise Busy("somebody holds what is in the volume")
            self.state = wf1_ops.emptied(before, self.clock())
            self.space.live[:] = [0] * len(live)
        try:
            # It leads to nothing of what was, and nothing is free before it is durable.
            self.upkeep.checkpoint()
        except StorageError:
            self.state, self.space.live[:] = before, live
            raise

    # State ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the volume was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise ReadOnly("the volume is open for reading")
        self.writer.check()


def _nobody_reads() -> None:
    """Where one thread does everything."""
