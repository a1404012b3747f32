"""What an overlay does with a tree in memory besides a user's changes: marks, whiteouts, and
copying up.

Invariants are those of `memory_tree`: each function happens as a whole or, when it raises, not at
all.  All but `cover` are silent: versions and times of directories stay.
"""

from __future__ import annotations

from capstore.backers.layer import Mark
from capstore.backers.memory_data import (
    DirectoryState,
    Inode,
    State,
    check_mark,
    entry_cost,
    mark_cost,
)
from capstore.backers.memory_tree import Tree, check_target
from capstore.backers.node import NodeKind, Stat
from capstore.schema.errors import AlreadyExists, InvalidArgument, NotFound
from capstore.schema.names import check_name

_TIME_MIN, _TIME_MAX = -(2**63), 2**63 - 1


def linked(register: State, origin: int) -> Inode | None:
    """The node with this origin in a state of `Tree.linked`."""
    assert isinstance(register, DirectoryState)  # noqa: S101 the kind of a node never changes
    return register.entries.get(str(origin))


def cover(tree: Tree, directory: Inode, name: str) -> None:
    """Puts a whiteout where nothing is, as a user's change.

    Raises `AlreadyExists`, `NotFound`, `NoSpace`.
    """
    entries = _room(tree, directory, name)
    tree.account.take(entry_cost(name))
    entries.cover(name)
    tree.touch(entries)


def uncover(tree: Tree, directory: Inode, name: str) -> None:
    """Removes a whiteout where there is one.  Raises `InvalidName`, `NotFound`, `NoSpace`."""
    check_name(name)
    entries = tree.own_directory(directory)
    if name in entries.whiteouts:
        entries.reveal(name)
        tree.account.take(-entry_cost(name))
        tree.changes += 1


def set_mark(tree: Tree, inode: Inode, mark: Mark) -> None:
    """Gives a directory another mark, or a node its first one.

    Raises `TooLarge`, `InvalidArgument`, `NoSpace`, and `AlreadyExists` for a second node of one
    origin.
    """
    check_mark(inode.kind, mark)
    state = tree.own(inode)
    register = _registering(tree, mark)
    tree.account.take(_whole_cost(mark) - mark_cost(state.mark))
    _put_mark(register, inode, state, mark)
    tree.changes += 1


def _registering(tree: Tree, mark: Mark) -> DirectoryState:
    """The register, for a node with this mark; raises `AlreadyExists`, `NoSpace`."""
    register = tree.linked.state
    assert isinstance(register, DirectoryState)  # noqa: S101 the kind of a node never changes
    if not mark.below:
        return register
    if str(mark.origin) in register.entries:
        raise AlreadyExists("another node has this origin")
    return tree.own_directory(tree.linked)


def _whole_cost(mark: Mark) -> int:
    """What a mark costs, in the register too."""
    return mark_cost(mark) + (entry_cost(str(mark.origin)) if mark.below else 0)


def _put_mark(register: DirectoryState, inode: Inode, state: State, mark: Mark) -> None:
    state.put_mark(mark)
    if mark.below:
        register.put(str(mark.origin), inode)


def name_silently(
    tree: Tree, inode: Inode, directory: Inode, name: str, like: Stat, mark: Mark
) -> None:
    """Gives a node that has no name one where nothing is, and what is recorded of `like`.

    Raises `AlreadyExists`, `NotFound`, `NoSpace`, `TooLarge`, `InvalidArgument`.
    """
    check_mark(inode.kind, mark)
    entries = _room(tree, directory, name)
    if inode.state.shown:
        raise InvalidArgument("the node has a name")
    state = tree.own(inode)
    register = _registering(tree, mark)
    tree.account.take(entry_cost(name) + _whole_cost(mark) - mark_cost(state.mark))
    entries.put(name, inode)
    inode.parent_id = directory.id
    state.links = 1
    _put_mark(register, inode, state, mark)
    state.created = min(max(like.created, _TIME_MIN), _TIME_MAX)
    state.modified = min(max(like.modified, _TIME_MIN), _TIME_MAX)
    state.provenance = like.provenance
    if inode.kind is NodeKind.FILE:
        state.executable = like.executable
    tree.changes += 1


def make_silently(
    tree: Tree,
    kind: NodeKind,
    target: str,
    directory: Inode,
    name: str,
    like: Stat,
    mark: Mark,
) -> Inode:
    """Makes a directory or symbolic link where nothing is; raises what `name_silently` does."""
    if kind is NodeKind.SYMLINK:
        check_target(target)
    inode = tree.new(kind, target)
    name_silently(tree, inode, directory, name, like, mark)
    return inode


def adopt(tree: Tree, origin: int, directory: Inode, name: str) -> None:
    """Gives the node with this origin one of its names in layers below.

    Raises `AlreadyExists`, `NotFound`, `NoSpace`.
    """
    inode = linked(tree.linked.state, origin)
    if inode is None:
        raise NotFound("nothing with this origin")
    entries = _room(tree, directory, name)
    state, register = tree.own(inode), tree.own_directory(tree.linked)
    below = state.mark.below - 1
    key = str(origin)
    tree.account.take(entry_cost(name) - (0 if below else entry_cost(key)))
    entries.put(name, inode)
    inode.parent_id = directory.id
    state.links += 1
    state.mark = state.mark._replace(below=below)
    if not below:
        register.drop(key)
    tree.changes += 1


def _room(tree: Tree, directory: Inode, name: str) -> DirectoryState:
    """The state of a directory, owned, that has neither entry nor whiteout `name`.

    Raises `InvalidName`, `AlreadyExists`, `NotFound`, `NoSpace`.
    """
    check_name(name)
    entries = tree.own_directory(directory)
    if name in entries.entries or name in entries.whiteouts:
        raise AlreadyExists("the name is taken")
    return entries
