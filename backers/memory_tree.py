"""The tree of a memory volume: names, nodes and snapshots, without any waiting.

Invariants:

* Every method runs to its end without yielding, so it happens as a whole or, when it raises, not
  at all: checks come first, then what may lack space (`Tree.own`, `Account.take`), then changes.
* Entries own nodes; handles and snapshots own them besides.  Nothing points upwards but by id,
  so there are no cycles, and a node dies with the last of its owners.
* A snapshot costs nothing when it is made.  From then on the first change of each node puts the
  node's old state into every snapshot that shows it (`Snapshot.kept`).  A snapshot of any
  directory holds back changes in the whole volume; what it held is freed when it is dropped.
* Ids of nodes and versions come from two counters of the volume and are never given twice.

Simpler than it could be: a change to a directory under a snapshot copies its table of entries,
so removing from a full volume with snapshots may raise `NoSpace`, as it does with btrfs.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capstore.backers.memory_data import (
    Account,
    Charged,
    DirectoryState,
    FileState,
    State,
    entry_cost,
)
from capstore.backers.node import Attributes, Expect, NodeKind, RenameMode
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

VOLUME_ID_BYTES = 16
ROOT_ID = 1
_TIMES = range(-(2**63), 2**63)
# Behind the saved counters an opened volume begins at a random distance: what was given out after
# the last save and lost with the process is then never given to another node.
_LEAP = 2**40


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a volume holds in all, in one file, and in nodes."""

    total_bytes_max: int
    file_bytes_max: int
    nodes_max: int


class Inode(Charged):
    """A node, whatever its names: `kind`, the live `state`, and what never changes."""

    __slots__ = ("__weakref__", "id", "kind", "parent_id", "state", "target")
    nodes = 1

    def __init__(
        self, account: Account, kind: NodeKind, node_id: int, state: State, target: str = ""
    ) -> None:
        super().__init__(account, len(target.encode()))
        self.kind = kind
        self.id = node_id
        self.state = state
        self.target = target
        # The directory that a directory is in; meaningless for what may have several names.
        self.parent_id = 0


class Snapshot:
    """The volume as it was at the end of `generation`; `kept` holds states changed since."""

    __slots__ = ("__weakref__", "generation", "kept")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.kept: dict[int, State] = {}

    def state(self, inode: Inode) -> State:
        """The state of `inode` then.

        The live state is read first: another thread that does this while the volume changes sees
        either the state from before the change or that it was kept.
        """
        live = inode.state
        return self.kept.get(inode.id, live)


class Tree:
    """A tree in memory and its accounting."""

    def __init__(
        self, limits: Limits, clock: Callable[[], int], volume_id: bytes | None = None
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.volume_id = volume_id or secrets.token_bytes(VOLUME_ID_BYTES)
        self.account = Account(limits.total_bytes_max, limits.nodes_max)
        self.generation = 0
        self.changes = 0
        self.next_id = ROOT_ID
        self.index: weakref.WeakValueDictionary[int, Inode] = weakref.WeakValueDictionary()
        self._snapshots: list[weakref.ref[Snapshot]] = []
        self.root = self._new(NodeKind.DIRECTORY)
        self.root.state.links = 1

    # Snapshots --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The whole tree as it is now, for as long as the result is held."""
        snapshot = Snapshot(self.generation)
        self.generation += 1
        self._snapshots = [ref for ref in self._snapshots if ref() is not None]
        self._snapshots.append(weakref.ref(snapshot))
        return snapshot

    def shared_until(self) -> int:
        """The newest generation that a snapshot shows; -1 without snapshots."""
        while self._snapshots:
            newest = self._snapshots[-1]()
            if newest is not None:
                return newest.generation
            self._snapshots.pop()
        return -1

    def own(self, inode: Inode) -> State:
        """The state of `inode`, one that may be changed; raises `NoSpace`."""
        state = inode.state
        if state.generation > self.shared_until():
            return state
        own = state.copy(self.generation)
        for ref in self._snapshots:
            snapshot = ref()
            if snapshot is not None and state.generation <= snapshot.generation:
                snapshot.kept[inode.id] = state
        inode.state = own
        return own

    def own_file(self, inode: Inode) -> FileState:
        """`own` for a file."""
        state = self.own(inode)
        assert isinstance(state, FileState)  # noqa: S101 the kind of a node never changes
        return state

    def own_directory(self, inode: Inode) -> DirectoryState:
        """`own` for a directory; `NotFound` when its last name is gone."""
        if not inode.state.links:
            raise NotFound("the directory was removed")
        state = self.own(inode)
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        return state

    def _touch(self, state: State) -> None:
        self.changes += 1
        state.version = self.changes
        state.modified = self.clock()

    # Making and removing ----------------------------------------------------------------------

    def _new(self, kind: NodeKind, target: str = "") -> Inode:
        """A node without a name; raises `NoSpace`."""
        now = self.clock()
        self.account.take(len(target.encode()), nodes=1)
        node_id, self.next_id = self.next_id, self.next_id + 1
        self.changes += 1
        make = {NodeKind.FILE: FileState, NodeKind.DIRECTORY: DirectoryState}.get(kind, State)
        state = make(self.account, self.generation, self.changes, now)
        inode = Inode(self.account, kind, node_id, state, target)
        self.index[node_id] = inode
        return inode

    def make(self, directory: Inode, name: str, kind: NodeKind, target: str = "") -> Inode:
        """Makes a node called `name`; raises `AlreadyExists`, `NotFound`, `NoSpace`."""
        check_name(name)
        entries = self.own_directory(directory)
        if name in entries.entries:
            raise AlreadyExists("the name is taken")
        inode = self._new(kind, target)
        self._name(directory, entries, name, inode)
        return inode

    def symlink(self, directory: Inode, name: str, target: str) -> None:
        """Makes a symbolic link; raises `InvalidArgument` for what is no target."""
        check_name(name)
        try:
            size = len(target.encode())
        except UnicodeEncodeError:
            raise InvalidArgument("a link's target is valid UTF-8") from None
        if not 0 < size <= SYMLINK_TARGET_BYTES_MAX or "\0" in target:
            raise InvalidArgument(
                f"a link's target has 1 to {SYMLINK_TARGET_BYTES_MAX} bytes and no NUL"
            )
        self.make(directory, name, NodeKind.SYMLINK, target)

    def link(self, directory: Inode, name: str, target: Inode, new_name: str) -> None:
        """Gives what `name` stands for, no directory, another name."""
        check_name(new_name)
        inode = self.child(directory.state, name)
        if inode.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory has one name only")
        self.enter(target, new_name, inode)

    def enter(self, directory: Inode, name: str, inode: Inode) -> None:
        """Gives a node, no directory, a further name; raises `AlreadyExists`, `NoSpace`."""
        entries = self.own_directory(directory)
        if name in entries.entries:
            raise AlreadyExists("the name is taken")
        self.own(inode)
        self._name(directory, entries, name, inode)

    def _name(self, directory: Inode, entries: DirectoryState, name: str, inode: Inode) -> None:
        """Enters `inode`, whose state is owned, under a name that is free; raises `NoSpace`."""
        self.account.take(entry_cost(name))
        entries.put(name, inode)
        inode.state.links += 1
        inode.parent_id = directory.id
        self._touch(entries)

    def remove(self, directory: Inode, name: str, expect: Expect) -> None:
        """Removes a name; raises `NotFound`, `IsDirectory`, `NotDirectory`, `NotEmpty`."""
        inode = self.child(directory.state, name)
        if inode.kind is NodeKind.DIRECTORY:
            if expect is Expect.NOT_DIRECTORY:
                raise IsDirectory("a directory")
            _check_empty(inode)
        elif expect is Expect.DIRECTORY:
            raise NotDirectory("no directory")
        entries = self.own_directory(directory)
        self.own(inode).links -= 1
        entries.drop(name)
        self.account.give(entry_cost(name))
        self._touch(entries)

    # Finding ----------------------------------------------------------------------------------

    def child(self, state: State, name: str) -> Inode:
        """What `name` stands for in a directory whose state is `state`; raises `NotFound`."""
        check_name(name)
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        try:
            return state.entries[name]
        except KeyError:
            raise NotFound("no entry of this name") from None

    def _is_within(self, inode: Inode, ancestor: Inode) -> bool:
        """Whether the directory `inode` is `ancestor` or somewhere below it."""
        at: Inode | None = inode
        while at is not None and at is not ancestor:
            at = self.index.get(at.parent_id)
        return at is not None

    # Renaming ---------------------------------------------------------------------------------

    def rename(
        self, source: Inode, name: str, target: Inode, new_name: str, mode: RenameMode
    ) -> None:
        """`DirectoryNode.rename` between directories of this tree."""
        check_name(new_name)
        moved = self.child(source.state, name)
        if not target.state.links:
            raise NotFound("the target directory was removed")
        assert isinstance(target.state, DirectoryState)  # noqa: S101 the kind never changes
        other = target.state.entries.get(new_name)
        if mode is RenameMode.EXCHANGE and other is None:
            raise NotFound("no entry to exchange with")
        if mode is RenameMode.NO_REPLACE and other is not None:
            raise AlreadyExists("the name is taken")
        if moved is other:
            return
        if self._is_within(target, moved):
            raise InvalidArgument("a directory does not move into itself")
        if other is None:
            self._move(source, name, target, new_name, moved)
        elif mode is RenameMode.EXCHANGE:
            self._exchange(source, name, moved, target, new_name, other)
        else:
            _check_replaces(moved, other)
            self._replace(source, name, moved, target, new_name, other)

    def _move(self, source: Inode, name: str, target: Inode, new_name: str, moved: Inode) -> None:
        origin, goal = self.own_directory(source), self.own_directory(target)
        self.account.take(entry_cost(new_name) - entry_cost(name))
        origin.drop(name)
        goal.put(new_name, moved)
        self._moved(source, origin, target, goal, moved)

    def _replace(
        self, source: Inode, name: str, moved: Inode, target: Inode, new_name: str, other: Inode
    ) -> None:
        origin, goal = self.own_directory(source), self.own_directory(target)
        self.own(other).links -= 1
        self.account.give(entry_cost(name))
        origin.drop(name)
        goal.put(new_name, moved)
        self._moved(source, origin, target, goal, moved)

    def _exchange(
        self, source: Inode, name: str, moved: Inode, target: Inode, new_name: str, other: Inode
    ) -> None:
        if self._is_within(source, other):
            raise InvalidArgument("a directory does not move into itself")
        origin, goal = self.own_directory(source), self.own_directory(target)
        origin.put(name, other)
        goal.put(new_name, moved)
        other.parent_id = source.id
        self._moved(source, origin, target, goal, moved)

    def _moved(
        self, source: Inode, origin: State, target: Inode, goal: State, moved: Inode
    ) -> None:
        moved.parent_id = target.id
        self._touch(origin)
        if target is not source:
            self._touch(goal)

    # Content and attributes -------------------------------------------------------------------

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        """Writes `data` at `offset`; raises `TooLarge`, `NoSpace`, `InvalidArgument`."""
        if offset < 0:
            raise InvalidArgument("a negative offset")
        if not len(data):
            return
        self._check_size(offset + len(data))
        state = self.own_file(inode)
        state.write(offset, data, self.shared_until())
        self._touch(state)

    def truncate(self, inode: Inode, size: int) -> None:
        """Cuts or extends; raises `TooLarge`, `NoSpace`, `InvalidArgument`."""
        if size < 0:
            raise InvalidArgument("a negative size")
        self._check_size(size)
        state = self.own_file(inode)
        state.truncate(size, self.shared_until())
        self._touch(state)

    def _check_size(self, size: int) -> None:
        if size > self.limits.file_bytes_max:
            raise TooLarge("the file would be longer than a file may be")

    def set_attributes(self, inode: Inode, change: Attributes) -> None:
        """Changes attributes; `Unsupported` for an executable bit of what is no file."""
        if change == Attributes():
            return
        if change.executable is not None and inode.kind is not NodeKind.FILE:
            raise Unsupported("only a file is executable")
        for time in (change.modified, change.created):
            if time is not None and time not in _TIMES:
                raise InvalidArgument("a time out of range")
        state = self.own(inode)
        self.changes += 1
        state.version = self.changes
        if change.executable is not None:
            state.executable = change.executable
        if change.modified is not None:
            state.modified = change.modified
        if change.created is not None:
            state.created = change.created

    # For saving and loading -------------------------------------------------------------------

    def restore(
        self, directory: Inode, name: str, kind: NodeKind, node_id: int, target: str = ""
    ) -> Inode:
        """Makes a node that has its id already; its state is for the caller to fill."""
        self.next_id = node_id
        return self.make(directory, name, kind, target)

    def leap(self, next_id: int, changes: int) -> None:
        """Goes on with the counters of a volume that was saved with these."""
        self.next_id = next_id + secrets.randbelow(_LEAP)
        self.changes = changes + secrets.randbelow(_LEAP)


def walk(root: Inode, view: Snapshot) -> Iterator[tuple[Inode, str, Inode]]:
    """All below `root` as ``(directory, name, node)``, directories before what is in them."""
    pending = [root]
    while pending:
        directory = pending.pop()
        state = view.state(directory)
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        for name, inode in state.entries.items():
            yield directory, name, inode
            if inode.kind is NodeKind.DIRECTORY:
                pending.append(inode)


def _check_empty(inode: Inode) -> None:
    assert isinstance(inode.state, DirectoryState)  # noqa: S101 the kind of a node never changes
    if inode.state.entries:
        raise NotEmpty("the directory has entries")


def _check_replaces(moved: Inode, other: Inode) -> None:
    """Raises what forbids `moved` to replace `other`."""
    if moved.kind is not NodeKind.DIRECTORY:
        if other.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory is replaced by a directory only")
        return
    if other.kind is not NodeKind.DIRECTORY:
        raise NotDirectory("a directory replaces a directory only")
    _check_empty(other)
