"""The cleaner of CAPOSWF1: moves what is live out of segments that are mostly dead.

Invariants: a move is an operation like any other, atomic and in the log; the old data stays where
it is until a checkpoint behind the move is durable and no snapshot needs it.  Data that is damaged
is not moved: its segment stays, and reading it goes on being `Corrupt`.  Operations may come
between two steps: each begins with the present state of what it moves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from capstore.images import wf1
from capstore.images.segments import DATA
from capstore.images.wf1_checkpoint import live_nodes
from capstore.images.wf1_content import Extent, all_extents
from capstore.images.wf1_state import Change, Node, NodeChange
from capstore.schema.errors import Corrupt
from capstore.schema.limits import MIB

if TYPE_CHECKING:
    from capstore.images.wf1_engine import Engine

# A round moves at most about so much.
ROUND_BYTES_MAX: Final = 8 * MIB
# A segment that is fuller than this is not worth its moving.
_LIVE_SHARE_MAX: Final = 0.9
# A change moves so many extents.
_EXTENTS_MAX: Final = 16
# A step looks at so many nodes.
_LOOKED_AT_MAX: Final = 256


class Cleaner:
    """One round of cleaning; by default it takes as much room as is free, up to a limit.

    It chooses the segments that it empties itself, unless `victims` says which.
    """

    def __init__(
        self, engine: Engine, room: int | None = None, *, victims: Collection[int] | None = None
    ) -> None:
        self._engine = engine
        # Without a given room, what a checkpoint and the log need is left alone.
        self._is_bounded = room is None
        if room is None:
            room = min(ROUND_BYTES_MAX, self._spare() * engine.geometry.segment_bytes)
        self._victims = frozenset(self._chosen(room) if victims is None else victims)

    def _spare(self) -> int:
        """How many segments are free beside those for a checkpoint, its log and that of moves."""
        return max(0, self._engine.space.free - self._engine.upkeep.checkpoint_segments() - 2)

    def _chosen(self, room: int) -> list[int]:
        """The segments with the least live data, as much as there is `room` for, in bytes."""
        space = self._engine.space
        size = space.geometry.segment_bytes
        ranked = sorted(
            (live, segment)
            for segment, (use, live) in enumerate(zip(space.use, space.live, strict=True))
            if use == DATA
            and 0 < live <= size * _LIVE_SHARE_MAX
            and not self._engine.upkeep.is_held(segment)
        )
        chosen: list[int] = []
        for live, segment in ranked:
            # What is moved is padded to blocks; twice its length is more than enough.
            if 2 * live > room:
                break
            room -= 2 * live
            chosen.append(segment)
        return chosen

    def steps(self) -> Iterator[None]:
        """Moves everything; each item is one step.  Raises `NoSpace` and what the device raises."""
        if not self._victims:
            return
        state = self._engine.state
        held = [n for n in state.nodes.values() if n is not None and not n.links]
        # This state's tables stay while there is work on it: a checkpoint is other work.
        for looked_at, node in enumerate(chain(live_nodes(state), held), 1):
            if node.kind == wf1.FILE:
                yield from self._move(node.id)
            if looked_at % _LOOKED_AT_MAX == 0:
                yield

    def _move(self, number: int) -> Iterator[None]:
        """Moves what one file has in the victims."""
        engine = self._engine
        at = 0
        while True:
            node = engine.state.node(number)
            if node is None:
                return
            waiting = list(islice(self._waiting(node, at), _EXTENTS_MAX))
            if not waiting:
                return
            at = waiting[-1].end
            moved = []
            for extent in waiting:
                if self._is_bounded and not self._spare():
                    # Short extents take whole blocks: it may be more than was reckoned.
                    break
                with suppress(Corrupt):
                    moved.append(engine.writer.put_data(extent.offset, engine.read_extent(extent)))
            if moved:
                engine.perform(Change((NodeChange(node, moved),)))
            yield

    def _waiting(self, node: Node, at: int) -> Iterator[Extent]:
        """Those extents of a file, from the offset `at` on, that lie in the victims."""
        geometry = self._engine.geometry
        for extent in all_extents(self._engine.state.content(node)):
            if extent.offset >= at and geometry.of_lba(extent.lba) in self._victims:
                yield extent
