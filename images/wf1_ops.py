"""The operations of a CAPOSWF1 volume, as what they change: decided purely, from a state.

Invariants: nothing here reads a clock or a device.  An operation that cannot be raises before it
says anything; one that changes nothing gives no change.  `now` is in ns since 1970.  A whiteout is
no entry: what comes takes its place, and a directory that holds nothing else is empty.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from capstore.images import wf1
from capstore.images.wf1_codec import SIZE_MAX
from capstore.images.wf1_content import Extent
from capstore.images.wf1_marks import Mark, marked, uncovered, whiteouts_in
from capstore.images.wf1_state import (
    GONE,
    Change,
    Counts,
    EmptyBase,
    NameChange,
    Node,
    NodeChange,
    State,
    gone,
)
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
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
    """What `name` stands for, which is no whiteout.  Raises `NotFound`, `InvalidName`."""
    check_name(name)
    node = at_name(state, directory, name)
    if node is None or node.kind == wf1.WHITEOUT:
        raise NotFound("no entry of this name")
    return node


def at_name(state: State, directory: int, name: str) -> Node | None:
    """What is at a name, a whiteout or not; None for nothing."""
    number = state.child(directory, name)
    return None if number == GONE else node_at(state, number)


def _making_way(state: State, directory: int, name: str) -> list[NodeChange]:
    """What goes where a name comes: nothing, or a whiteout.  Raises `AlreadyExists`."""
    there = at_name(state, directory, name)
    if there is None:
        return []
    if there.kind != wf1.WHITEOUT:
        raise AlreadyExists("the name is taken")
    return [gone(there)]


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


def make(
    state: State, now: int, directory: int, name: str, node: Node, *, hides: bool = True
) -> Change:
    """Makes `node` (whose id, parent, links and version are set here) as `name` in `directory`.

    A directory in the place of a whiteout is opaque if it `hides` what the layers below have there.
    """
    check_name(name)
    parent = directory_at(state, directory)
    going = _making_way(state, directory, name)
    made = _new(state, node, directory)
    if going and hides and made.is_directory:
        made = made._replace(flags=made.flags | wf1.OPAQUE)
    return Change(
        (*going, NodeChange(made), _touched(state, parent, now)),
        (NameChange(directory, name, made.id),),
    )


def _new(state: State, node: Node, directory: int) -> Node:
    """`node` as the next one that there is."""
    return node._replace(id=state.next_node, links=1, version=state.changes + 1, parent=directory)


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
    going = _making_way(state, target, new_name)
    return Change(
        (*going, NodeChange(node._replace(links=node.links + 1)), _touched(state, parent, now)),
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
    cover: bool = False,
) -> Change:
    """Removes `name`, if it is one of the kinds that are allowed; leaves a whiteout to `cover` it.

    A node that is `held` and has lost its last name stays, without a link, until `forget`.
    Raises `ManyWhiteouts` for a directory that is to be emptied first.
    """
    node = child_of(state, directory, name)
    if node.is_directory:
        if not directories:
            raise IsDirectory("a directory")
    elif not others:
        raise NotDirectory("no directory")
    parent = directory_at(state, directory)
    nodes, names = _unlinked(state, node, held=held)
    nodes.append(_touched(state, parent, now))
    names.append(_left(state, now, nodes, directory, name, cover=cover))
    return Change(nodes, names)


def _unlinked(state: State, node: Node, *, held: bool) -> tuple[list[NodeChange], list[NameChange]]:
    """`node` with one name less; a directory goes with the whiteouts in it.

    Raises `NotEmpty`, `ManyWhiteouts`."""
    links = 0 if node.is_directory else node.links - 1
    inside = whiteouts_in(state, node.id) if node.is_directory else []
    nodes, names = uncovered(state, node.id, inside)
    nodes.append(NodeChange(node._replace(links=links)) if links or held else gone(node))
    return nodes, names


def _left(
    state: State, now: int, nodes: list[NodeChange], directory: int, name: str, *, cover: bool
) -> NameChange:
    """What is at a name that was given up: nothing, or a whiteout, which is added to `nodes`."""
    if not cover:
        return NameChange(directory, name, GONE)
    whiteout = _new(state, new_node(wf1.WHITEOUT, now), directory)
    nodes.append(NodeChange(whiteout))
    return NameChange(directory, name, whiteout.id)


def uncover(state: State, number: int, whiteouts: list[tuple[str, int]]) -> Change:
    """Takes whiteouts out of a directory that holds nothing else.

    It is opaque from then on, so that nothing comes to light."""
    directory = node_at(state, number)
    opened = NodeChange(directory._replace(flags=directory.flags | wf1.OPAQUE))
    nodes, names = uncovered(state, number, whiteouts)
    return Change((opened, *nodes), names)


def forget(state: State, number: int) -> Change:
    """Removes a node that has no name and is held no more."""
    node = state.node(number)
    if node is None or node.links:
        return NOTHING
    return Change((gone(node),))


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
    cover: bool = False,
    mark: Mark | None = None,
) -> Change:
    """Moves `name` in `source` to `new_name` in `target`; leaves a whiteout to `cover` it.

    With `replace`, what is there goes, unless it is in `held`.  A directory gets `mark`.
    Raises `ManyWhiteouts` for a directory that is to be emptied first.
    """
    check_name(new_name)
    moved = child_of(state, source, name)
    goal = directory_at(state, target)
    other = at_name(state, target, new_name)
    if other is not None and other.kind != wf1.WHITEOUT:
        if not replace:
            raise AlreadyExists("the name is taken")
        if other.id == moved.id:
            return NOTHING
    if _is_within(state, target, moved.id):
        raise InvalidArgument("a directory does not move into itself")
    nodes = _moved(moved, target, mark)
    names: list[NameChange] = []
    if other is not None:
        _check_replaces(moved, other)
        less, fewer = _unlinked(state, other, held=other.id in held)
        nodes += less
        names += fewer
    nodes.append(_touched(state, directory_at(state, source), now))
    if target != source:
        nodes.append(_touched(state, goal, now))
    names.append(_left(state, now, nodes, source, name, cover=cover))
    names.append(NameChange(target, new_name, moved.id))
    return Change(nodes, names)


def _moved(node: Node, parent: int, mark: Mark | None) -> list[NodeChange]:
    """What becomes of a node that moves into `parent`; a directory gets `mark`."""
    if not node.is_directory:
        return []
    after = node._replace(parent=parent)
    return [NodeChange(after if mark is None else marked(after, mark))]


def _check_replaces(moved: Node, other: Node) -> None:
    """Raises what forbids `moved` to replace `other`, but for entries in it."""
    if other.kind == wf1.WHITEOUT:
        return
    if not moved.is_directory:
        if other.is_directory:
            raise IsDirectory("a directory is replaced by a directory only")
        return
    if not other.is_directory:
        raise NotDirectory("a directory replaces a directory only")


def exchange(
    state: State,
    now: int,
    source: int,
    name: str,
    target: int,
    new_name: str,
    *,
    mark: Mark | None = None,
    new_mark: Mark | None = None,
) -> Change:
    """Has two names change their nodes; what was `name` gets `mark`, the other one `new_mark`,
    directories only."""
    moved = child_of(state, source, name)
    goal = directory_at(state, target)
    other = child_of(state, target, new_name)
    if other.id == moved.id:
        return NOTHING
    if _is_within(state, target, moved.id) or _is_within(state, source, other.id):
        raise InvalidArgument("a directory does not move into itself")
    nodes = _moved(moved, target, mark) + _moved(other, source, new_mark)
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


def emptied(state: State, now: int) -> State:
    """A state with an empty root, without marks, whose ids and versions go on behind those of
    `state`."""
    root = _touched(state, marked(node_at(state, wf1.ROOT), Mark()), now)
    empty = State(EmptyBase(), Counts(), state.next_node, state.changes)
    return empty.apply(Change((root,)))[0]
