"""The state of a CAPOSWF1 volume at one moment: what the checkpoint says, and what changed since.

Invariants:

* A `State` never changes: an operation makes a new one, and whoever holds an old one (a snapshot, a
  checkpoint that is being written, a reader) goes on seeing that moment.
* `nodes` and `names` override what `base` says: None is a node that is gone, 0 a name that is gone.
* A node's `content` of None means: as the base has it.
* `apply` is the only way from one state to the next, for operations as they happen and for the log
  as it is replayed, so both come to the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from immutables import Map, MapMutation

from capstore.images import wf1
from capstore.images.records import Record
from capstore.images.wf1_content import (
    EMPTY,
    Chunks,
    Extent,
    Replaced,
    all_extents,
    chunks_of,
    cut,
    extents_between,
    overlaid,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import Provenance

GONE: Final = 0
_NO_NODES: Final[Map[int, Node | None]] = Map()
_NO_CHANGES: Final[Map[str, int]] = Map()
_NO_NAMES: Final[Map[int, Map[str, int]]] = Map()


class Node(NamedTuple):
    """A node; times in ns since 1970, `parent` is a directory's, `target` a symbolic link's.

    `links` counts names, and one more while `below` is not 0.  An overlay's marks: `origin` is what
    the node is a copy of, `below` how many names of lower layers stand for it, too, and `redirect`
    where a directory goes on in lower layers.
    """

    id: int
    kind: int
    flags: int = 0
    links: int = 1
    size: int = 0
    created: int = 0
    modified: int = 0
    provenance: Provenance = Provenance.UNKNOWN
    version: int = 0
    parent: int = 0
    target: str = ""
    content: Chunks | None = EMPTY
    redirect: str = ""
    origin: int = 0
    below: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return bool(self.kind == wf1.DIRECTORY)

    @property
    def text(self) -> str:
        """What it has in the heap: a link its target, a directory its redirect."""
        return self.target or self.redirect

    @property
    def names(self) -> int:
        """How many names it has."""
        return self.links - 1 if self.below else self.links


class NodeChange(NamedTuple):
    """A node as it is from now on, and the extents that come into its content.

    Where `node.size` is less than before, the content is cut first.
    """

    node: Node
    extents: Sequence[Extent] = ()


def gone(node: Node) -> NodeChange:
    """That `node` is no more."""
    flags = node.flags | wf1.REMOVED
    return NodeChange(node._replace(links=0, flags=flags, target="", redirect="", below=0))


class NameChange(NamedTuple):
    """`name` in `directory` stands for `node` from now on, `GONE` for nothing."""

    directory: int
    name: str
    node: int


class Change(NamedTuple):
    """What one operation does, as a whole or not at all: nodes in order, then names in order."""

    nodes: Sequence[NodeChange]
    names: Sequence[NameChange] = ()


class Base(Protocol):
    """What a checkpoint holds."""

    def node(self, number: int) -> Node | None:
        """A node, with None for its content; None if there is none."""

    def child(self, directory: int, name: str) -> int:
        """What a name stands for, or `GONE`."""

    def names(self, directory: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        """Up to `limit` names behind `after`, in the order of their bytes."""

    def content(self, number: int) -> Sequence[Extent]:
        """A file's extents, ascending."""

    def extents_between(self, number: int, start: int, end: int) -> Sequence[Extent]:
        """Those of a file's extents, ascending, that have bytes from `start` to `end`."""

    def records(self) -> Iterator[Any]:
        """The records of all nodes, ascending by their ids."""

    def decode_node(self, record: Any) -> Node:
        """The node of such a record."""

    def row_behind(self, number: int) -> int:
        """The first row whose node's id is not less than `number`."""

    def rows(self, record: Record, first: int, count: int) -> bytes:
        """So many records of a table, whose seals were checked."""

    def heap_bytes(self, at: int, length: int) -> bytes:
        """A part of the heap, unchecked."""


class Effect(NamedTuple):
    """What applying a change did to the space that is referred to."""

    gained: Sequence[Extent]
    lost: Sequence[Extent]


class Counts(NamedTuple):
    """What the tables of a checkpoint of this state would hold; `heap` in bytes."""

    nodes: int = 0
    entries: int = 0
    extents: int = 0
    heap: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """One moment; `next_node` is the next id, `changes` the highest version of a node so far."""

    base: Base
    counts: Counts
    next_node: int
    changes: int
    nodes: Map[int, Node | None] = _NO_NODES
    names: Map[int, Map[str, int]] = _NO_NAMES

    # Looking -------------------------------------------------------------------------------------

    def node(self, number: int) -> Node | None:
        """A node, None if there is none."""
        if number in self.nodes:
            return self.nodes[number]
        return self.base.node(number)

    def child(self, directory: int, name: str) -> int:
        """What `name` stands for in a directory, or `GONE`."""
        changed = self.names.get(directory)
        if changed is not None and (found := changed.get(name)) is not None:
            return found
        return self.base.child(directory, name)

    def list_names(self, directory: int, after: str, limit: int) -> list[tuple[str, int]]:
        """Up to `limit` names behind `after` with their nodes, in the order of their bytes."""
        changed = self.names.get(directory)
        if not changed:
            return list(self.base.names(directory, after, limit))
        return list(islice(self.names_behind(directory, after, limit), limit))

    def names_behind(
        self, directory: int, after: str = "", at_once: int = PAGE_ENTRIES_MAX
    ) -> Iterator[tuple[str, int]]:
        """All names behind `after` with their nodes, in the order of their bytes; those of the base
        are looked up `at_once` at a time."""
        changed = self.names.get(directory, _NO_CHANGES)
        # The order of UTF-8 bytes is that of code points, which is how Python compares.
        mine = sorted(changed)
        at = bisect.bisect_right(mine, after) if after else 0
        theirs = _Names(self.base, directory, after, at_once)
        while True:
            other = theirs.peek()
            if at < len(mine) and (other is None or mine[at] <= other[0]):
                if other is not None and mine[at] == other[0]:
                    theirs.skip()
                if (node := changed[mine[at]]) != GONE:
                    yield mine[at], node
                at += 1
            elif other is not None:
                yield other
                theirs.skip()
            else:
                return

    def content(self, node: Node) -> Chunks:
        """The content of a file of this state."""
        if node.content is not None:
            return node.content
        return chunks_of(self.base.content(node.id))

    def extents(self, node: Node, start: int, end: int) -> Iterator[Extent]:
        """The parts of a file's extents that lie between `start` and `end`, ascending."""
        if node.content is not None:
            yield from extents_between(node.content, start, end)
        elif start < end:
            for extent in self.base.extents_between(node.id, start, end):
                yield extent.part(max(start, extent.offset), min(end, extent.end))

    # Changing ------------------------------------------------------------------------------------

    def apply(self, change: Change) -> tuple[State, Effect]:
        """The state after `change`."""
        nodes, counts = self.nodes.mutate(), _Counting(self.counts)
        gained: list[Extent] = []
        lost: list[Extent] = []
        next_node, changes_so_far = self.next_node, self.changes
        for item in change.nodes:
            before = nodes.get(item.node.id, _ABSENT)
            known = self.base.node(item.node.id) if before is _ABSENT else before
            assert not isinstance(known, _Absent)  # noqa: S101 - resolved just before
            after, replaced = self._changed(known, item)
            nodes[item.node.id] = after
            counts.node(known, after)
            counts.extents += replaced.more
            gained.extend(item.extents)
            lost.extend(replaced.lost)
            next_node = max(next_node, item.node.id + 1)
            changes_so_far = max(changes_so_far, item.node.version)
        names = self._renamed(change.names, counts)
        state = State(self.base, counts.finish(), next_node, changes_so_far, nodes.finish(), names)
        return state, Effect(gained, lost)

    def _changed(self, before: Node | None, item: NodeChange) -> tuple[Node | None, Replaced]:
        node = item.node
        if node.flags & wf1.REMOVED:
            gone = all_extents(self.content(before)) if before is not None else ()
            lost = list(gone)
            return None, Replaced(EMPTY, lost, -len(lost))
        if before is None:
            if not item.extents:
                return node._replace(content=EMPTY), Replaced(EMPTY, (), 0)
            return self._overlay(node, EMPTY, (), 0, item.extents)
        if not item.extents and node.size >= before.size:
            return node._replace(content=before.content), Replaced(EMPTY, (), 0)
        chunks = self.content(before)
        if node.size >= before.size:
            return self._overlay(node, chunks, (), 0, item.extents)
        trimmed = cut(chunks, node.size)
        return self._overlay(node, trimmed.chunks, trimmed.lost, trimmed.more, item.extents)

    @staticmethod
    def _overlay(
        node: Node, chunks: Chunks, lost: Sequence[Extent], more: int, new: Sequence[Extent]
    ) -> tuple[Node, Replaced]:
        replaced = overlaid(chunks, new)
        return (
            node._replace(content=replaced.chunks),
            Replaced(replaced.chunks, [*lost, *replaced.lost], more + replaced.more),
        )

    def _renamed(self, changes: Sequence[NameChange], counts: _Counting) -> Map[int, Map[str, int]]:
        changed: dict[int, MapMutation[str, int]] = {}
        for directory, name, node in changes:
            mine = changed.get(directory)
            if mine is None:
                mine = changed[directory] = self.names.get(directory, _NO_CHANGES).mutate()
            known = mine.get(name)
            before = self.base.child(directory, name) if known is None else known
            counts.name(name, before, node)
            mine[name] = node
        names = self.names
        for directory, mine in changed.items():
            names = names.set(directory, mine.finish())
        return names

    def with_own_content(self, nodes: Sequence[Node]) -> State:
        """The same moment, with the content of `nodes` no longer left to the base."""
        own = {node.id: node._replace(content=self.content(node)) for node in nodes}
        return replace(self, nodes=self.nodes.update(own))

    def rebased(self, base: Base, changed: set[int], renamed: set[int]) -> State:
        """The same moment over a newer checkpoint, since which only nodes in `changed` and names in
        directories in `renamed` are other than it says."""
        nodes = Map({number: self.nodes[number] for number in changed if number in self.nodes})
        names = Map({number: self.names[number] for number in renamed if number in self.names})
        return replace(self, base=base, nodes=nodes, names=names)


class _Absent:
    """What stands for no entry where None is one."""


_ABSENT: Final = _Absent()


class _Counting:
    """Counts that change."""

    def __init__(self, counts: Counts) -> None:
        self.nodes = counts.nodes
        self.entries = counts.entries
        self.extents = counts.extents
        self.heap = counts.heap

    def node(self, before: Node | None, after: Node | None) -> None:
        for node, sign in ((before, -1), (after, 1)):
            if node is not None:
                self.nodes += sign
                self.heap += sign * len(node.text.encode())

    def name(self, name: str, before: int, after: int) -> None:
        more = (after != GONE) - (before != GONE)
        self.entries += more
        self.heap += more * len(name.encode())

    def finish(self) -> Counts:
        return Counts(self.nodes, self.entries, self.extents, self.heap)


class _Names:
    """The names of a directory in the base, one by one, fetched some at a time."""

    def __init__(self, base: Base, directory: int, after: str, limit: int) -> None:
        self._base = base
        self._directory = directory
        self._limit = max(1, limit)
        self._fetch(after)

    def _fetch(self, after: str) -> None:
        page = self._base.names(self._directory, after, self._limit)
        self._more = len(page) == self._limit
        self._page = page
        self._at = 0

    def peek(self) -> tuple[str, int] | None:
        """The next name."""
        if self._at == len(self._page) and self._page and self._more:
            self._fetch(self._page[-1][0])
        return self._page[self._at] if self._at < len(self._page) else None

    def skip(self) -> None:
        """Goes on to the one behind it."""
        self._at += 1


class EmptyBase:
    """The base of a volume that has no checkpoint yet."""

    def node(self, number: int) -> Node | None:
        return None

    def child(self, directory: int, name: str) -> int:
        return GONE

    def names(self, directory: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        return ()

    def content(self, number: int) -> Sequence[Extent]:
        return ()

    def extents_between(self, number: int, start: int, end: int) -> Sequence[Extent]:
        return ()

    def records(self) -> Iterator[Any]:
        return iter(())

    def decode_node(self, record: Any) -> Node:
        raise LookupError(record)

    def row_behind(self, number: int) -> int:
        return 0

    def rows(self, record: Record, first: int, count: int) -> bytes:
        return b""

    def heap_bytes(self, at: int, length: int) -> bytes:
        return b""
