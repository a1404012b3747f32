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
* A node that layers below show, too (`Mark.below`), is in the register `Tree.linked` by its origin
  and lives by that.  The register is a directory that has no place in the tree, so snapshots show
  and accounts charge it as any other.

Simpler than it could be: a change to a directory under a snapshot copies its table of entries,
so removing from a full volume with snapshots may raise `NoSpace`, as it does with btrfs.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.memory_data import (
    Account,
    DirectoryState,
    FileState,
    Inode,
    Register,
    State,
    check_mark,
    entry_cost,
    mark_cost,
)
from capstore.backers.node import Attributes, Expect, NodeKind, Provenance, RenameMode
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
LINKED_ID = 0
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
        self.root = self.new(NodeKind.DIRECTORY)
        self.root.state.links = 1
        register = DirectoryState(self.account, self.generation, 0, 0)
        register.links = 1
        self.linked: Inode = Register(self.account, NodeKind.DIRECTORY, LINKED_ID, register)

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
        self._replace_state(inode, own)
        return own

    def _replace_state(self, inode: Inode, state: State) -> None:
        """Gives a node another state; snapshots that show the old one keep it."""
        old = inode.state
        for ref in self._snapshots:
            snapshot = ref()
            if snapshot is not None and old.generation <= snapshot.generation:
                snapshot.kept[inode.id] = old
        inode.state = state

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

    def touch(self, state: State) -> None:
        """Notes that content or entries changed now."""
        self.changes += 1
        state.version = self.changes
        state.modified = self.clock()
        state.provenance = Provenance.WALL_CLOCK

    # Making and removing ----------------------------------------------------------------------

    def new(self, kind: NodeKind, target: str = "") -> Inode:
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
        inode = self.new(kind, target)
        self._name(directory, entries, name, inode)
        return inode

    def symlink(self, directory: Inode, name: str, target: str) -> None:
        """Makes a symbolic link; raises `InvalidArgument` for what is no target."""
        check_name(name)
        check_target(target)
        self.make(directory, name, NodeKind.SYMLINK, target)

    def link(self, directory: Inode, name: str, target: Inode, new_name: str) -> None:
        """Gives what `name` stands for, no directory, another name."""
        check_name(new_name)
        inode = self.child(directory.state, name)
        if inode.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory has one name only")
        self.enter(target, new_name, inode)

    def enter(self, directory: Inode, name: str, inode: Inode) -> None:
        """Gives a node a name, a directory its only one; raises `AlreadyExists`, `NoSpace`."""
        entries = self.own_directory(directory)
        if name in entries.entries:
            raise AlreadyExists("the name is taken")
        self.own(inode)
        self._name(directory, entries, name, inode)

    def _name(self, directory: Inode, entries: DirectoryState, name: str, inode: Inode) -> None:
        """Enters `inode`, whose state is owned, where no entry is; raises `NoSpace`."""
        self.account.take(entries.cost_of(name))
        entries.put(name, inode)
        inode.state.links += 1
        inode.parent_id = directory.id
        self.touch(entries)

    def remove(self, directory: Inode, name: str, expect: Expect, *, cover: bool = False) -> None:
        """Removes a name, and leaves a whiteout there if it shall `cover` what is below.

        Raises `NotFound`, `IsDirectory`, `NotDirectory`, `NotEmpty`.
        """
        inode = self.child(directory.state, name)
        if inode.kind is NodeKind.DIRECTORY:
            if expect is Expect.NOT_DIRECTORY:
                raise IsDirectory("a directory")
            _check_empty(inode)
        elif expect is Expect.DIRECTORY:
            raise NotDirectory("no directory")
        entries = self.own_directory(directory)
        self.own(inode).links -= 1
        self.account.take(-self._vacate(entries, name, cover=cover))
        self.touch(entries)

    @staticmethod
    def _vacate(entries: DirectoryState, name: str, *, cover: bool) -> int:
        """Removes an entry, or makes it a whiteout; returns what that gives back."""
        if cover:
            entries.cover(name)
            return 0
        entries.drop(name)
        return entry_cost(name)

    def reset(self) -> None:
        """Removes everything below the root, and the marks; nothing is too full for that."""
        for kept in (self.root, self.linked):
            self._replace_state(kept, self._directory(kept).emptied(self.generation))
        self.touch(self.root.state)
        # Those are left that handles or snapshots hold.  Whoever has one finds it removed.
        for inode in list(self.index.values()):
            if inode is self.root:
                continue
            if inode.kind is NodeKind.DIRECTORY:
                self._replace_state(inode, self._directory(inode).emptied(self.generation))
            else:
                self.own(inode).mark = NO_MARK
            inode.state.links = 0

    @staticmethod
    def _directory(inode: Inode) -> DirectoryState:
        state = inode.state
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        return state

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
        self,
        source: Inode,
        name: str,
        target: Inode,
        new_name: str,
        mode: RenameMode,
        *,
        cover: bool = False,
        mark: Mark | None = None,
    ) -> None:
        """`DirectoryNode.rename` between directories of this tree.

        Leaves a whiteout at `name` if it shall `cover` what is below.  A directory that moves gets
        `mark`; raises `TooLarge` for a redirect that is too long.
        """
        if mode is RenameMode.EXCHANGE:
            self.exchange(source, name, target, new_name)
            return
        moved, other = self._ends(source, name, target, new_name)
        if mode is RenameMode.NO_REPLACE and other is not None:
            raise AlreadyExists("the name is taken")
        if moved is other:
            return
        if self._is_within(target, moved):
            raise InvalidArgument("a directory does not move into itself")
        if other is not None:
            _check_replaces(moved, other)
        origin, goal = self.own_directory(source), self.own_directory(target)
        if other is not None:
            self.own(other)
        growth = self._mark_growth(moved, mark) + goal.cost_of(new_name)
        self.account.take(growth - (0 if cover else entry_cost(name)))
        if other is not None:
            other.state.links -= 1
        self._vacate(origin, name, cover=cover)
        self._arrive(target, goal, new_name, moved, mark)
        self._touch_both(origin, goal)

    def exchange(
        self,
        source: Inode,
        name: str,
        target: Inode,
        new_name: str,
        mark: Mark | None = None,
        new_mark: Mark | None = None,
    ) -> None:
        """Has two names change their nodes; what was `name`, if a directory, gets `mark`.

        The other one gets `new_mark`.  Raises what `rename` does.
        """
        moved, other = self._ends(source, name, target, new_name)
        if other is None:
            raise NotFound("no entry to exchange with")
        if moved is other:
            return
        if self._is_within(target, moved) or self._is_within(source, other):
            raise InvalidArgument("a directory does not move into itself")
        origin, goal = self.own_directory(source), self.own_directory(target)
        self.account.take(self._mark_growth(moved, mark) + self._mark_growth(other, new_mark))
        self._arrive(source, origin, name, other, new_mark)
        self._arrive(target, goal, new_name, moved, mark)
        self._touch_both(origin, goal)

    def _ends(
        self, source: Inode, name: str, target: Inode, new_name: str
    ) -> tuple[Inode, Inode | None]:
        """What `name` stands for, and what `new_name` does, if anything."""
        check_name(new_name)
        moved = self.child(source.state, name)
        if not target.state.links:
            raise NotFound("the target directory was removed")
        return moved, self._directory(target).entries.get(new_name)

    def _mark_growth(self, inode: Inode, mark: Mark | None) -> int:
        """What `mark` costs more than the present one; a directory's state is owned then."""
        if mark is None or inode.kind is not NodeKind.DIRECTORY:
            return 0
        check_mark(inode.kind, mark)
        return mark_cost(mark) - mark_cost(self.own(inode).mark)

    @staticmethod
    def _arrive(
        directory: Inode, entries: DirectoryState, name: str, inode: Inode, mark: Mark | None
    ) -> None:
        """Enters what was moved here; what that costs was taken before."""
        entries.put(name, inode)
        inode.parent_id = directory.id
        if mark is not None and inode.kind is NodeKind.DIRECTORY:
            inode.state.put_mark(mark)

    def _touch_both(self, origin: State, goal: State) -> None:
        self.touch(origin)
        if goal is not origin:
            self.touch(goal)

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
        self.touch(state)

    def truncate(self, inode: Inode, size: int) -> None:
        """Cuts or extends; raises `TooLarge`, `NoSpace`, `InvalidArgument`."""
        if size < 0:
            raise InvalidArgument("a negative size")
        self._check_size(size)
        state = self.own_file(inode)
        state.truncate(size, self.shared_until())
        self.touch(state)

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
        state.provenance = Provenance.WALL_CLOCK
        if change.executable is not None:
            state.executable = change.executable
        if change.modified is not None:
            state.modified = change.modified
        if change.created is not None:
            state.created = change.created

    # For saving and loading -------------------------------------------------------------------

    def restore(self, kind: NodeKind, node_id: int, target: str = "") -> Inode:
        """A node that has its id already; its state and name are for the caller to set."""
        self.next_id = node_id
        return self.new(kind, target)

    def leap(self, next_id: int, changes: int) -> None:
        """Goes on with the counters of a volume that was saved with these."""
        self.next_id = next_id + secrets.randbelow(_LEAP)
        self.changes = changes + secrets.randbelow(_LEAP)


def directories_of(root: Inode, view: Snapshot) -> Iterator[tuple[Inode, DirectoryState]]:
    """`root` and all directories below it with their states, each after the one it is in."""
    pending = [root]
    while pending:
        directory = pending.pop()
        state = view.state(directory)
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        yield directory, state
        pending.extend(
            inode for inode in state.entries.values() if inode.kind is NodeKind.DIRECTORY
        )


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


def check_target(target: str) -> None:
    """Raises `InvalidArgument` for what no symbolic link can have as its target."""
    try:
        size = len(target.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("a link's target is valid UTF-8") from None
    if not 0 < size <= SYMLINK_TARGET_BYTES_MAX or "\0" in target:
        raise InvalidArgument(
            f"a link's target has 1 to {SYMLINK_TARGET_BYTES_MAX} bytes and no NUL"
        )
