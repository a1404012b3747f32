"""The operations of a CAPOSWF1 volume, as what they change: decided purely, from a state.

Invariants: nothing here reads a clock or a device.  An operation that cannot be raises before it
says anything; one that changes nothing gives no change.  `now` is in ns since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from capstore.images import wf1
from capstore.images.wf1_codec import SIZE_MAX
from capstore.images.wf1_content import Extent
from capstore.images.wf1_state import GONE, Change, NameChange, Node, NodeChange, State
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Provenance

NOTHING: Final = Change((), ())
_TIMES: Final = range(-(1 << 63), 1 << 63)


# Finding -----------------------------------------------------------------------------------------


def node_at(state: State, number: int) -> Node:
    """The node `number`.  Raises `NotFound` when it is gone."""
    node = state.node(number)
    if node is None:
        raise NotFound("the node is gone")
    return node


def directory_at(state: State, number: int) -> Node:
    """The directory `number`, to change it.  Raises `NotFound` when it was removed."""
    node = state.node(number)
    if node is None or not node.links:
        raise NotFound("the directory was removed")
    if not node.is_directory:
        raise NotDirectory("no directory")
    return node


def child_of(state: State, directory: int, name: str) -> Node:
    """What `name` stands for.  Raises `NotFound`, `InvalidName`."""
    check_name(name)
    number = state.child(directory, name)
    if number == GONE:
        raise NotFound("no entry of this name")
    return node_at(state, number)


def _touched(state: State, node: Node, now: int) -> NodeChange:
    """`node` with its content changed now."""
    return NodeChange(
        node._replace(modified=now, provenance=Provenance.WALL_CLOCK, version=state.changes + 1)
    )


def _is_within(state: State, directory: int, ancestor: int) -> bool:
    """Whether `directory` is `ancestor` or below it."""
    seen = 0
    while directory != ancestor:
        node = state.node(directory)
        if node is None or directory == wf1.ROOT or seen > state.counts.nodes:
            return False
        directory = node.parent
        seen += 1
    return True


# Making ------------------------------------------------------------------------------------------


def make(state: State, now: int, directory: int, name: str, node: Node) -> Change:
    """Makes `node` (whose id, parent, links and version are set here) as `name` in `directory`."""
    check_name(name)
    parent = directory_at(state, directory)
    if state.child(directory, name) != GONE:
        raise AlreadyExists("the name is taken")
    made = node._replace(id=state.next_node, links=1, version=state.changes + 1, parent=directory)
    return Change(
        (NodeChange(made), _touched(state, parent, now)),
        (NameChange(directory, name, made.id),),
    )


def new_node(kind: int, now: int, *, executable: bool = False, target: str = "") -> Node:
    """A node for `make`, with the time of now."""
    return Node(
        id=0,
        kind=kind,
        flags=wf1.EXECUTABLE if executable else 0,
        size=len(target.encode()),
        created=now,
        modified=now,
        provenance=Provenance.WALL_CLOCK,
        target=target,
    )


def check_target(target: str) -> str:
    """`target` if a symbolic link can have it; raises `InvalidArgument`."""
    try:
        size = len(target.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("a link's target is valid UTF-8") from None
    if not 0 < size <= SYMLINK_TARGET_BYTES_MAX or "\0" in target:
        raise InvalidArgument(
            f"a link's target has 1 to {SYMLINK_TARGET_BYTES_MAX} bytes and no NUL"
        )
    return target


def link(state: State, now: int, directory: int, name: str, target: int, new_name: str) -> Change:
    """Gives what `name` stands for, no directory, the name `new_name` in `target`."""
    check_name(new_name)
    node = child_of(state, directory, name)
    if node.is_directory:
        raise IsDirectory("a directory has one name only")
    parent = directory_at(state, target)
    if state.child(target, new_name) != GONE:
        raise AlreadyExists("the name is taken")
    return Change(
        (NodeChange(node._replace(links=node.links + 1)), _touched(state, parent, now)),
        (NameChange(target, new_name, node.id),),
    )


# Removing ----------------------------------------------------------------------------------------


def remove(
    state: State,
    now: int,
    directory: int,
    name: str,
    *,
    directories: bool,
    others: bool,
    held: bool,
) -> Change:
    """Removes `name`, if it is one of the kinds that are allowed.

    A node that is `held` and has lost its last name stays, without a link, until `forget`.
    """
    node = child_of(state, directory, name)
    if node.is_directory:
        if not directories:
            raise IsDirectory("a directory")
        if not state.is_empty(node.id):
            raise NotEmpty("the directory has entries")
    elif not others:
        raise NotDirectory("no directory")
    parent = directory_at(state, directory)
    return Change(
        (_unlinked(state, node, held=held), _touched(state, parent, now)),
        (NameChange(directory, name, GONE),),
    )


def _unlinked(state: State, node: Node, *, held: bool) -> NodeChange:
    """`node` with one name less."""
    links = 0 if node.is_directory else node.links - 1
    if links or held:
        return NodeChange(node._replace(links=links))
    return _gone(node)


def _gone(node: Node) -> NodeChange:
    return NodeChange(node._replace(links=0, flags=node.flags | wf1.REMOVED, target=""))


def forget(state: State, number: int) -> Change:
    """Removes a node that has no name and is held no more."""
    node = state.node(number)
    if node is None or node.links:
        return NOTHING
    return Change((_gone(node),))


# Renaming ----------------------------------------------------------------------------------------


def rename(
    state: State,
    now: int,
    source: int,
    name: str,
    target: int,
    new_name: str,
    *,
    replace: bool,
    held: Collection[int],
) -> Change:
    """Moves `name` in `source` to `new_name` in `target`.

    With `replace`, what is there goes, unless it is in `held`.
    """
    check_name(new_name)
    moved = child_of(state, source, name)
    goal = directory_at(state, target)
    number = state.child(target, new_name)
    if number != GONE and not replace:
        raise AlreadyExists("the name is taken")
    if number == moved.id:
        return NOTHING
    if _is_within(state, target, moved.id):
        raise InvalidArgument("a directory does not move into itself")
    nodes = [NodeChange(moved._replace(parent=target))] if moved.is_directory else []
    if number != GONE:
        other = node_at(state, number)
        _check_replaces(state, moved, other)
        nodes.append(_unlinked(state, other, held=other.id in held))
    nodes.append(_touched(state, directory_at(state, source), now))
    if target != source:
        nodes.append(_touched(state, goal, now))
    return Change(nodes, (NameChange(source, name, GONE), NameChange(target, new_name, moved.id)))


def _check_replaces(state: State, moved: Node, other: Node) -> None:
    """Raises what forbids `moved` to replace `other`."""
    if not moved.is_directory:
        if other.is_directory:
            raise IsDirectory("a directory is replaced by a directory only")
        return
    if not other.is_directory:
        raise NotDirectory("a directory replaces a directory only")
    if not state.is_empty(other.id):
        raise NotEmpty("the directory has entries")


def exchange(state: State, now: int, source: int, name: str, target: int, new_name: str) -> Change:
    """Has two names change their nodes."""
    check_name(new_name)
    moved = child_of(state, source, name)
    goal = directory_at(state, target)
    number = state.child(target, new_name)
    if number == GONE:
        raise NotFound("no entry to exchange with")
    if number == moved.id:
        return NOTHING
    other = node_at(state, number)
    if _is_within(state, target, moved.id) or _is_within(state, source, other.id):
        raise InvalidArgument("a directory does not move into itself")
    nodes = [
        NodeChange(node._replace(parent=parent))
        for node, parent in ((moved, target), (other, source))
        if node.is_directory
    ]
    nodes.append(_touched(state, directory_at(state, source), now))
    if target != source:
        nodes.append(_touched(state, goal, now))
    return Change(
        nodes, (NameChange(source, name, other.id), NameChange(target, new_name, moved.id))
    )


# Content and attributes --------------------------------------------------------------------------


def check_range(offset: int, length: int) -> None:
    """Raises `InvalidArgument`, `TooLarge` for what no file can have."""
    if offset < 0:
        raise InvalidArgument("an offset is not negative")
    if offset + length > SIZE_MAX:
        raise TooLarge("the file would be longer than a file may be")


def written(state: State, now: int, number: int, extents: Sequence[Extent]) -> Change:
    """The file with `extents`, whose data is in place, written into it."""
    node = node_at(state, number)
    size = max(node.size, extents[-1].end)
    change = _touched(state, node._replace(size=size), now)
    return Change((NodeChange(change.node, extents),))


def truncate(state: State, now: int, number: int, size: int) -> Change:
    """The file cut or extended to `size` bytes."""
    if size < 0:
        raise InvalidArgument("a size is not negative")
    check_range(0, size)
    node = node_at(state, number)
    return Change((_touched(state, node._replace(size=size), now),))


def set_attributes(
    state: State,
    number: int,
    *,
    executable: bool | None,
    modified: int | None,
    created: int | None,
) -> Change:
    """The node with other attributes; None leaves one as it is."""
    node = node_at(state, number)
    if executable is None and modified is None and created is None:
        return NOTHING
    if executable is not None and node.kind != wf1.FILE:
        raise Unsupported("only a file is executable")
    for time in (modified, created):
        if time is not None and time not in _TIMES:
            raise InvalidArgument("a time out of range")
    flags = node.flags
    if executable is not None:
        flags = flags & ~wf1.EXECUTABLE | (wf1.EXECUTABLE if executable else 0)
    changed = node._replace(
        flags=flags,
        modified=node.modified if modified is None else modified,
        created=node.created if created is None else created,
        provenance=Provenance.WALL_CLOCK,
        version=state.changes + 1,
    )
    return Change((NodeChange(changed),))


def set_opaque(state: State, number: int, *, opaque: bool) -> Change:
    """A directory that hides, or no longer hides, what lies below it in an overlay."""
    node = directory_at(state, number)
    flags = node.flags & ~wf1.OPAQUE | (wf1.OPAQUE if opaque else 0)
    return Change((NodeChange(node._replace(flags=flags, version=state.changes + 1)),))
