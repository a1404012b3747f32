"""What an overlay notes in a CAPOSWF1 volume: marks at nodes, and whiteouts.

Invariants: `links` of a node is the number of its names, and one more while `below` is not 0, so
that a node that only lower layers have names for lives on.  A whiteout is a node of its own, with
one name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from capstore.images import wf1
from capstore.images.wf1_state import GONE, NameChange, Node, NodeChange, State, gone
from capstore.schema.errors import InvalidArgument, NotEmpty
from capstore.schema.nodes import Stat

# So many whiteouts go with their directory in one change, which any frame holds.
WHITEOUTS_AT_ONCE_MAX: Final = 100
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1
_ORIGINS: Final = range(1 << 64)
_BELOW: Final = range(1 << 32)


class Mark(NamedTuple):
    """A mark; see `capstore.backers.layer`."""

    opaque: bool = False
    redirect: str = ""
    origin: int = 0
    below: int = 0


class ManyWhiteouts(NotEmpty):
    """The directory `number` has more whiteouts than go with it in one change; to be emptied
    first."""

    def __init__(self, number: int) -> None:
        super().__init__("the directory has many whiteouts")
        self.number = number


def mark_of(node: Node) -> Mark:
    """The mark of a node."""
    return Mark(bool(node.flags & wf1.OPAQUE), node.redirect, node.origin, node.below)


def marked(node: Node, mark: Mark) -> Node:
    """`node` with another mark.  Raises `TooLarge` for a redirect that is too long, and
    `InvalidArgument` for what a node of its kind does not have."""
    if (mark.opaque or mark.redirect) and not node.is_directory:
        raise InvalidArgument("only a directory is opaque or redirected")
    if mark.redirect:
        wf1.check_redirect(mark.redirect)
    if mark.origin not in _ORIGINS or mark.below not in _BELOW:
        raise InvalidArgument("a mark with numbers out of range")
    if mark.below and (not mark.origin or node.kind not in (wf1.FILE, wf1.SYMLINK)):
        raise InvalidArgument("what lower layers show, too, is a copied file or link")
    flags = node.flags & ~wf1.OPAQUE | (wf1.OPAQUE if mark.opaque else 0)
    after = node._replace(flags=flags, redirect=mark.redirect, origin=mark.origin, below=mark.below)
    return with_names(after, node.names)


def with_names(node: Node, names: int) -> Node:
    """`node` with so many names."""
    return node._replace(links=names + bool(node.below))


def alike(node: Node, like: Stat) -> Node:
    """`node` with the times of `like`, as far as they can be recorded, and its executable bit."""
    executable = like.executable and node.kind == wf1.FILE
    return node._replace(
        flags=node.flags & ~wf1.EXECUTABLE | (wf1.EXECUTABLE if executable else 0),
        created=max(_TIME_MIN, min(_TIME_MAX, like.created)),
        modified=max(_TIME_MIN, min(_TIME_MAX, like.modified)),
        provenance=like.provenance,
    )


def is_whiteout(state: State, number: int) -> bool:
    """Whether a node is one."""
    node = state.node(number)
    return node is not None and node.kind == wf1.WHITEOUT


def whiteouts_in(state: State, directory: int) -> list[tuple[str, int]]:
    """The names and nodes of the whiteouts in a directory that holds nothing else.

    Raises `NotEmpty`; `ManyWhiteouts` when they are too many for one change."""
    inside: list[tuple[str, int]] = []
    for wanted in (1, WHITEOUTS_AT_ONCE_MAX + 1):
        # Nearly always the first name says it.
        inside = state.list_names(directory, "", wanted)
        if not all(is_whiteout(state, number) for _, number in inside):
            raise NotEmpty("the directory has entries")
        if len(inside) < wanted:
            return inside
    raise ManyWhiteouts(directory)


def all_whiteouts_in(state: State, directory: int) -> list[tuple[str, int]]:
    """As `whiteouts_in`, however many they are."""
    inside = list(state.names_behind(directory))
    if not all(is_whiteout(state, number) for _, number in inside):
        raise NotEmpty("the directory has entries")
    return inside


def uncovered(
    state: State, directory: int, whiteouts: list[tuple[str, int]]
) -> tuple[list[NodeChange], list[NameChange]]:
    """That these whiteouts of a directory are no more."""
    nodes = []
    for _, number in whiteouts:
        node = state.node(number)
        if node is not None:
            nodes.append(gone(node))
    return nodes, [NameChange(directory, name, GONE) for name, _ in whiteouts]
