"""The cleaner of CAPOSWF1: moves what is live out of segments that are mostly dead.

Invariants: a move is an operation like any other, atomic and in the log; the old data stays where
it is until a checkpoint behind the move is durable and no snapshot needs it.  Data that is damaged
is not moved: its segment stays, and reading it goes on being `Corrupt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from capstore.images import wf1
from capstore.images.wf1_checkpoint import extents_in, live_nodes
from capstore.images.wf1_space import DATA
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


class Cleaner:
    """One round of cleaning."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._victims = frozenset(self._chosen())

    def _chosen(self) -> list[int]:
        """The segments with the least live data, as much as a round, and the room, allow."""
        space = self._engine.space
        size = space.geometry.segment_bytes
        room = min(ROUND_BYTES_MAX, max(0, space.free - 1) * size)
        ranked = sorted(
            (live, segment)
            for segment, (use, live) in enumerate(zip(space.use, space.live, strict=True))
            if use == DATA
            and 0 < live <= size * _LIVE_SHARE_MAX
            and not self._engine.is_held(segment)
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
        for node in list(self._files()):
            yield from self._move(node)

    def _files(self) -> Iterator[Node]:
        state = self._engine.state
        held = [n for n in state.nodes.values() if n is not None and not n.links]
        for node in [*live_nodes(state), *held]:
            if node.kind == wf1.FILE and extents_in(
                state, node, self._victims, self._engine.geometry
            ):
                yield node

    def _move(self, file: Node) -> Iterator[None]:
        """Moves what one file has in the victims; it may have changed since they were chosen."""
        engine = self._engine
        node = engine.state.node(file.id)
        if node is None:
            return
        waiting = extents_in(engine.state, node, self._victims, engine.geometry)
        for first in range(0, len(waiting), _EXTENTS_MAX):
            moved = []
            for extent in waiting[first : first + _EXTENTS_MAX]:
                try:
                    data = engine.read_extent(extent)
                except Corrupt:
                    continue
                moved.append(engine.put_data(extent.offset, data))
            if moved:
                engine.perform(Change((NodeChange(node, moved),)))
            yield
