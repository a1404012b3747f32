"""Checking the tree of a CAPOSWF1 image: nodes, names, links, parents, counts.

Invariants: what is checked is whole: every record was sealed.  Each name is looked at once, so the
work is bounded also where directories claim the same entries; loops are found without a walk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from capstore.images import wf1
from capstore.images.tree import Finding
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_state import Node, State
from capstore.schema.errors import Corrupt
from capstore.schema.limits import PAGE_ENTRIES_MAX

_Numbers = npt.NDArray[np.int64]


def verify_tree(found: Recovered) -> Iterator[Finding]:
    """What is wrong with nodes and names."""
    nodes = _Nodes()
    yield from nodes.take(found)
    names = _Names()
    for number in nodes.directories:
        yield from names.take(found.state, number)
    yield from _links(nodes, names)
    yield from _parents(nodes, names)
    counts = found.state.counts
    for what, said, there in (
        ("nodes", counts.nodes, len(nodes.ids)),
        ("entries", counts.entries, len(names.children)),
        ("bytes of names and targets", counts.heap, nodes.text_bytes + names.text_bytes),
    ):
        if said != there:
            yield Finding("counts", f"{said} {what} were counted, there are {there}")


class _Nodes:
    """What is known of every node, in the order of their ids."""

    def __init__(self) -> None:
        self.ids = array("q")
        self.parents = array("q")
        self.links = array("q")
        # 1 for a node that lower layers show, too.
        self.below = array("q")
        self.directories: list[int] = []
        self.text_bytes = 0

    def take(self, found: Recovered) -> Iterator[Finding]:
        """Takes in all nodes; gives what is wrong with single ones."""
        state, last = found.state, 0
        for record in found.tables.records():
            if record.id <= last:
                yield Finding(f"node {record.id}", "it is out of order in the checkpoint")
                continue
            last = record.id
            if record.id in state.nodes:
                continue
            try:
                node = found.tables.decode_node(record)
            except Corrupt as error:
                yield Finding(f"node {record.id}", error.message)
                continue
            yield from self._add(node, state)
        for number in sorted(state.nodes):
            changed = state.nodes[number]
            if changed is not None:
                yield from self._add(changed, state)
        self._sort()

    def _add(self, node: Node, state: State) -> Iterator[Finding]:
        yield from _alone(node, state)
        self.ids.append(min(node.id, (1 << 63) - 1))
        self.parents.append(min(node.parent, (1 << 63) - 1) if node.is_directory else -1)
        self.links.append(node.links)
        self.below.append(node.links - node.names)
        self.text_bytes += len(node.text.encode())
        if node.is_directory:
            self.directories.append(node.id)

    def _sort(self) -> None:
        order = np.argsort(np.array(self.ids, dtype=np.int64), kind="stable")
        for name in ("ids", "parents", "links", "below"):
            setattr(self, name, array("q", np.array(getattr(self, name), dtype=np.int64)[order]))


def _alone(node: Node, state: State) -> Iterator[Finding]:
    """What is wrong with a node whatever the others are."""
    where = f"node {node.id}"
    if not wf1.ROOT <= node.id < state.next_node:
        yield Finding(where, "its number has not been given yet")
    if node.version > state.changes:
        yield Finding(where, "its version is to come")
    if node.flags & ~(wf1.EXECUTABLE | wf1.OPAQUE):
        yield Finding(where, f"it has flags that are not known: {node.flags:#x}")
    if node.flags & wf1.OPAQUE and not node.is_directory:
        yield Finding(where, "it is opaque, but no directory")
    if node.kind == wf1.SYMLINK and node.size != len(node.target.encode()):
        yield Finding(where, "its size is not that of its target")
    elif node.kind not in (wf1.FILE, wf1.SYMLINK) and node.size:
        yield Finding(where, "it has a size, but no content")
    if node.id == wf1.ROOT and (not node.is_directory or node.parent != wf1.ROOT):
        yield Finding(where, "the root is no directory, or has another above it")


class _Names:
    """Every name: the directory that it is in, and the node that it stands for."""

    def __init__(self) -> None:
        self.owners = array("q")
        self.children = array("q")
        self.text_bytes = 0

    def take(self, state: State, directory: int) -> Iterator[Finding]:
        """Takes in the names of a directory."""
        after, where = "", f"directory {directory}"
        while True:
            try:
                page = state.list_names(directory, after, PAGE_ENTRIES_MAX)
            except Corrupt as error:
                yield Finding(where, error.message)
                return
            last = after
            for name, child in page:
                if name <= last:
                    yield Finding(where, f'"{name}" is out of order')
                    return
                last = name
                self.owners.append(directory)
                self.children.append(min(child, (1 << 63) - 1))
                self.text_bytes += len(name.encode())
            if len(page) < PAGE_ENTRIES_MAX:
                return
            after = last


def _links(nodes: _Nodes, names: _Names) -> Iterator[Finding]:
    """Names of nodes that are not there, nodes without names, and counts of links that lie."""
    ids, children = _numbers(nodes.ids), _numbers(names.children)
    rows, there = _rows_of(children, ids)
    for at in np.flatnonzero(~there).tolist():
        message = f"a name in it stands for node {children[at]}, which is not there"
        yield Finding(f"directory {names.owners[at]}", message)
    named = np.bincount(rows[there], minlength=len(ids))
    # The root's one link is no name.
    named[ids == wf1.ROOT] += 1
    links, below = _numbers(nodes.links), _numbers(nodes.below)
    for row in np.flatnonzero(named + below != links).tolist():
        if not named[row] and not below[row]:
            message = "it has no name: nothing leads to it"
        else:
            shown = " and lower layers show it" if below[row] else ""
            message = f"it has {named[row]} names{shown}, but says {links[row]}"
        yield Finding(f"node {ids[row]}", message)


def _parents(nodes: _Nodes, names: _Names) -> Iterator[Finding]:
    """Directories whose parents are others than they say, and those that lead to themselves."""
    ids, parents = _numbers(nodes.ids), _numbers(nodes.parents)
    children, owners = _numbers(names.children), _numbers(names.owners)
    rows, there = _rows_of(children, ids)
    for at in np.flatnonzero(there).tolist():
        parent = parents[rows[at]]
        if parent >= 0 and (parent != owners[at] or children[at] == wf1.ROOT):
            message = f"it is a directory in {owners[at]}, but says that it is in {parent}"
            yield Finding(f"node {children[at]}", message)
    above, known = _rows_of(parents, ids)
    above = np.where(known & (parents >= 0), above, np.arange(len(ids)))
    # After n rounds, everybody's 2^n-th ancestor.
    for _ in range(max(1, len(ids)).bit_length()):
        above = above[above]
    lost = (parents >= 0) & (ids[above] != wf1.ROOT)
    for row in np.flatnonzero(lost).tolist():
        yield Finding(f"node {ids[row]}", "it is a directory that no way from the root leads to")


def _numbers(values: array[int]) -> _Numbers:
    return np.array(values, dtype=np.int64)


def _rows_of(wanted: _Numbers, ids: _Numbers) -> tuple[_Numbers, npt.NDArray[np.bool_]]:
    """The rows of `wanted` in `ids`, which ascend, and which of them are there."""
    if not len(ids):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return rows, ids[rows] == wanted
