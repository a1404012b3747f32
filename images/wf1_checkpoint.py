"""Writing a checkpoint of CAPOSWF1: the tables of one state, in bounded steps.

Invariants:

* The state that is written does not change meanwhile; what happens after it is in the log that
  begins behind it.
* Nothing points to the tables before the superblock does, which is written when they are durable.
* A node without a name, which somebody holds, is not in the tables: after a crash nobody holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.records import WF1_ENTRY, WF1_EXTENT, WF1_NODE, Record
from capstore.images.segments import TABLE, Geometry, Space
from capstore.images.wf1_base import NUMBER_BYTES, PAGE_BYTES, Head, pack_head, table_starts
from capstore.images.wf1_codec import Encoder
from capstore.images.wf1_content import Extent, all_extents
from capstore.images.wf1_copy import Rows, copied
from capstore.images.wf1_state import Counts, Node, State
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB, PAGE_ENTRIES_MAX

# A step handles about so many records.
STEP_RECORDS: Final = 2000
_BUFFER_BYTES: Final = 256 * KIB
# What its head and the ends of pages take beside the records.
_PADDING_BYTES_MAX: Final = 5 * PAGE_BYTES
_TABLES: Final[tuple[Record, ...]] = (WF1_NODE, WF1_ENTRY, WF1_EXTENT)


def orphans_of(state: State) -> list[Node]:
    """The nodes without a name, which a checkpoint leaves out."""
    return [node for node in state.nodes.values() if node is not None and not node.links]


def written_counts(state: State, orphans: Sequence[Node]) -> Counts:
    """What the tables of a checkpoint of `state` hold."""
    extents = sum(sum(1 for _ in all_extents(state.content(node))) for node in orphans)
    heap = sum(len(node.text.encode()) for node in orphans)
    counts = state.counts
    return Counts(
        counts.nodes - len(orphans), counts.entries, counts.extents - extents, counts.heap - heap
    )


def segments_for(geometry: Geometry, counts: Counts, segments: int) -> int:
    """How many segments a checkpoint takes, of a volume of `segments`."""
    size = geometry.segment_bytes
    # Nearly always the bytes alone say it, without the pages that each table ends with.
    at_least = (
        counts.nodes * WF1_NODE.size
        + counts.entries * WF1_ENTRY.size
        + counts.extents * WF1_EXTENT.size
        + counts.heap
        + segments * NUMBER_BYTES
    )
    runs = -(-at_least // size)
    if -(-(at_least + (runs + 1) * NUMBER_BYTES + _PADDING_BYTES_MAX) // size) == runs:
        return runs
    while True:
        starts = table_starts(runs, segments, counts)
        needed = -(-(starts[3] + counts.heap) // size)
        if needed <= runs:
            return runs
        runs = needed


class CheckpointWriter:
    """Writes the tables of `state`, which `sequence` is the last frame of.

    `live` are the live bytes of each segment.  Raises `NoSpace` where there is no room.
    """

    def __init__(
        self,
        device: BlockDevice,
        space: Space,
        state: State,
        sequence: int,
        live: Sequence[int],
    ) -> None:
        self._device = device
        self._geometry = space.geometry
        self._state = state
        orphans = orphans_of(state)
        counts = written_counts(state, orphans)
        usage = list(live)
        for node in orphans:
            for extent in all_extents(state.content(node)):
                usage[space.geometry.of_lba(extent.lba)] -= extent.length
        # Nothing is said of the free end, so that an image can be cut there.
        while usage and not usage[-1]:
            usage.pop()
        needed = segments_for(self._geometry, counts, len(usage))
        space.grow(needed)
        runs = [space.allocate(TABLE) for _ in range(needed)]
        self.head = Head(
            sequence=sequence,
            next_node=state.next_node,
            changes=state.changes,
            counts=counts,
            runs=runs,
            usage=usage,
            starts=table_starts(len(runs), len(usage), counts),
        )
        self._streams = [_Stream(self, start) for start in self.head.starts]
        self._rows = Rows()
        self._pending = Encoder()
        self._base_nodes = state.base.row_behind(state.next_node)
        self.head_sum = 0

    def steps(self) -> Iterator[None]:
        """Writes everything; each item is one step.  Raises `Corrupt` if the tables that the state
        rests on are damaged, and what the device raises."""
        state, row = self._state, 0
        for number in sorted({*state.nodes, *state.names}):
            end = state.base.row_behind(number)
            yield from self._copy(row, end)
            node = state.node(number)
            if node is not None and node.links:
                self._add(self._pending, node)
                if self._pending.records > STEP_RECORDS:
                    self._drain()
                    yield
            row = end + (state.base.node(number) is not None)
        yield from self._copy(row, self._base_nodes)
        self._drain()
        for stream in self._streams:
            stream.finish()
        self._check()
        head, self.head_sum = pack_head(self.head)
        self.write(0, head)

    def _copy(self, row: int, end: int) -> Iterator[None]:
        """Copies the rows of nodes that are as the base has them, with all that belongs to them."""
        if row < end:
            self._drain()
        for first in range(row, end, STEP_RECORDS):
            nodes, entries, extents, heap = copied(
                self._state.base, first, min(STEP_RECORDS, end - first), self._rows
            )
            self._put(nodes, entries, extents, heap)
            self._rows.entries += len(entries) // WF1_ENTRY.size
            self._rows.extents += len(extents) // WF1_EXTENT.size
            self._rows.heap += len(heap)
            self._pending = Encoder(self._rows.heap)
            yield

    def _add(self, pending: Encoder, node: Node) -> None:
        first = count = 0
        if node.is_directory:
            first, after = self._rows.entries, ""
            while names := self._state.list_names(node.id, after, PAGE_ENTRIES_MAX):
                for name, number in names:
                    pending.entry(node.id, name, number)
                count += len(names)
                after = names[-1][0]
            self._rows.entries += count
        elif node.kind == wf1.FILE:
            first = self._rows.extents
            for extent in all_extents(self._state.content(node)):
                pending.extent(extent)
                count += 1
            self._rows.extents += count
        pending.node(node, first, count)

    def _drain(self) -> None:
        """Hands on what was encoded, and begins anew with a heap that begins where it ended."""
        pending = self._pending
        self._put(
            b"".join(pending.nodes),
            b"".join(pending.entries),
            b"".join(pending.extents),
            bytes(pending.heap),
        )
        self._rows.heap += len(pending.heap)
        self._pending = Encoder(self._rows.heap)

    def _put(self, *tables: bytes) -> None:
        for stream, table in zip(self._streams, tables, strict=True):
            stream.write(table)

    def _check(self) -> None:
        counts, starts = self.head.counts, self.head.starts
        wanted = [
            start + count * record.size
            for start, count, record in zip(
                starts, (counts.nodes, counts.entries, counts.extents), _TABLES, strict=False
            )
        ]
        wanted.append(starts[3] + counts.heap)
        if [stream.at for stream in self._streams] != wanted:
            raise Corrupt("the volume does not hold what it counted: no checkpoint was made")

    def write(self, offset: int, data: bytes) -> None:
        """Writes at an offset of the checkpoint."""
        size = self._geometry.segment_bytes
        view = memoryview(data)
        while view:
            run, inside = divmod(offset, size)
            piece = view[: size - inside]
            self._device.write(self._geometry.start(self.head.runs[run]) + inside, piece)
            view = view[len(piece) :]
            offset += len(piece)


class _Stream:
    """One table, written from front to back."""

    def __init__(self, writer: CheckpointWriter, at: int) -> None:
        self._writer = writer
        self._start = at
        self._buffer = bytearray()

    @property
    def at(self) -> int:
        return self._start + len(self._buffer)

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self.finish()

    def finish(self) -> None:
        self._writer.write(self._start, bytes(self._buffer))
        self._start += len(self._buffer)
        self._buffer = bytearray()


def live_nodes(state: State) -> Iterator[Node]:
    """All nodes that have a name, ascending by their ids."""
    changed = sorted(state.nodes)
    at = 0
    for record in state.base.records():
        while at < len(changed) and changed[at] < record.id:
            yield from _live(state, changed[at])
            at += 1
        if at < len(changed) and changed[at] == record.id:
            yield from _live(state, changed[at])
            at += 1
        else:
            yield state.base.decode_node(record)
    for number in changed[at:]:
        yield from _live(state, number)


def _live(state: State, number: int) -> Iterator[Node]:
    node = state.nodes[number]
    if node is not None and node.links:
        yield node


def extents_in(
    state: State, node: Node, wanted: frozenset[int], geometry: Geometry
) -> list[Extent]:
    """Those extents of a file that lie in the segments `wanted`."""
    return [
        extent
        for extent in all_extents(state.content(node))
        if geometry.of_lba(extent.lba) in wanted
    ]
