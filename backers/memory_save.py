"""Saving a memory volume to a file and loading it from there.

Invariants:

* A save shows one moment: the tree is captured as a snapshot first, and a worker thread writes
  that while the volume goes on.
* The file is replaced atomically: what is at its path is the old tree or the new one, whole and
  durable, whatever happens in between.  A save that failed leaves the old one.
* Older never replaces newer: saves run one at a time and count the changes they contain, so a
  caller whose changes another save took along does not save again.
* The file is locked from opening to closing; the lock goes with the file that takes its place.
* An empty file is a volume without anything in it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import anyio

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.memory_data import ENTRY_BYTES, DirectoryState, FileState, Inode, State
from capstore.backers.memory_marks import cover, set_mark
from capstore.backers.memory_tree import (
    ROOT_ID,
    VOLUME_ID_BYTES,
    Limits,
    Snapshot,
    Tree,
    directories_of,
)
from capstore.backers.node import NodeKind
from capstore.backers.workers import in_worker
from capstore.images.paxtree import (
    PIECE_BYTES,
    Budget,
    Header,
    Member,
    MemberKind,
    read_tree,
    write_tree,
)
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    InvalidArgument,
    InvalidName,
    StorageIOError,
    TooLarge,
    from_os_error,
)

_MEMBER_KINDS = {
    NodeKind.FILE: MemberKind.FILE,
    NodeKind.DIRECTORY: MemberKind.DIRECTORY,
    NodeKind.SYMLINK: MemberKind.SYMLINK,
}
_NODE_KINDS = {member: node for node, member in _MEMBER_KINDS.items()}
_ZEROS = bytes(PIECE_BYTES)
# Somebody may replace the file again and again while it is being locked.
_LOCK_TRIES_MAX = 100


@contextmanager
def _host_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, what) from None


class Saver:
    """The file that a volume is saved to, locked; made by `open`."""

    def __init__(self, name: str, directory: int, descriptor: int, saved: int) -> None:
        self._name = name
        # Held, so that no path is looked up later: the file stays where it was found.
        self._directory = directory
        self._descriptor = descriptor
        self._saved = saved
        self._turn = anyio.Lock()

    @classmethod
    def open(cls, file: str, limits: Limits, clock: Callable[[], int]) -> tuple[Tree, Saver]:
        """Locks `file` and loads the tree in it; blocks, so it runs in a worker thread.

        Raises `Busy`, `Corrupt`, `NoSpace`, `TooLarge`, and what the host says.
        """
        with _host_errors("opening the volume's file"):
            path = _resolved(file)
            descriptor = _open_locked(path)
            directory = -1
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InvalidArgument("the volume's file is no regular file")
                directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if not os.fstat(descriptor).st_size:
                    tree, saved = Tree(limits, clock), 0
                else:
                    with open(descriptor, "rb", closefd=False) as stream:
                        tree = load_tree(stream, limits, clock)
                    saved = tree.changes
                return tree, cls(path.name, directory, descriptor, saved)
            except BaseException:
                os.close(descriptor)
                if directory >= 0:
                    os.close(directory)
                raise

    async def save(self, tree: Tree) -> None:
        """Returns when every change of `tree` so far is durable; raises what the host says."""
        wanted = tree.changes
        async with self._turn:
            if self._saved >= wanted:
                return
            snapshot = tree.snapshot()
            header = Header(tree.volume_id, tree.next_id, tree.changes, members=0)
            with tree.account.lending():
                await in_worker(lambda: self._write(tree, snapshot, header))

    def release(self) -> None:
        """Unlocks the file."""
        os.close(self._descriptor)
        os.close(self._directory)

    def _write(self, tree: Tree, snapshot: Snapshot, header: Header) -> None:
        with _host_errors("saving the volume"):
            self._replace(self._directory, tree, snapshot, header)
            self._saved = header.changes

    def _replace(self, directory: int, tree: Tree, snapshot: Snapshot, header: Header) -> None:
        temporary = f".{self._name[:200]}.{secrets.token_hex(8)}.saving"
        mode = os.fstat(self._descriptor).st_mode & 0o777
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            count = count_members(tree, snapshot)
            with open(descriptor, "wb", closefd=False, buffering=1 << 20) as stream:
                write_tree(stream, replace(header, members=count), members_of(tree, snapshot))
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            os.rename(temporary, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        self._descriptor, old = descriptor, self._descriptor
        os.close(old)
        os.fsync(directory)


def _resolved(file: str) -> Path:
    """The file itself: replacing a symbolic link to it would leave it behind."""
    try:
        return Path(file).resolve()
    except (ValueError, RuntimeError):
        raise InvalidArgument("the path of the volume's file makes no sense") from None


def _open_locked(path: Path) -> int:
    """A descriptor of the file at `path`, made if need be, under an exclusive lock."""
    for _ in range(_LOCK_TRIES_MAX):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another volume may have replaced the file between opening and locking.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise Busy("another volume holds the file") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise StorageIOError("the volume's file does not stay in its place")


# From tree to members -----------------------------------------------------------------------------


class _Content:
    """The bytes of a file's state, as often as they are asked for."""

    def __init__(self, state: FileState) -> None:
        self._state = state

    def __iter__(self) -> Iterator[bytes | bytearray]:
        for start, stop, chunk in self._state.pieces(0, self._state.size):
            data = bytearray() if chunk is None else chunk.data
            yield data
            yield _ZEROS[: stop - start - len(data)]


def count_members(tree: Tree, snapshot: Snapshot) -> int:
    """How many `members_of` gives."""
    directories = sum(
        len(state.entries) + len(state.whiteouts)
        for _, state in directories_of(tree.root, snapshot)
    )
    return 1 + directories + sum(1 for _ in _unnamed(tree, snapshot))


def members_of(tree: Tree, snapshot: Snapshot) -> Iterator[Member]:
    """The tree that `snapshot` shows, directories before what is in them; last what has no name."""
    yield _member(tree.root, snapshot.state(tree.root), 0, "")
    linked: set[int] = set()
    for directory, state in directories_of(tree.root, snapshot):
        for name in state.whiteouts:
            yield Member(MemberKind.WHITEOUT, 0, directory.id, name)
        for name, inode in state.entries.items():
            yield _entry_member(inode, snapshot.state(inode), directory.id, name, linked)
    for inode in _unnamed(tree, snapshot):
        yield _member(inode, snapshot.state(inode), 0, "")


def _unnamed(tree: Tree, snapshot: Snapshot) -> Iterator[Inode]:
    """What lives only because layers below show it, too."""
    register = snapshot.state(tree.linked)
    assert isinstance(register, DirectoryState)  # noqa: S101 the kind of a node never changes
    return (inode for inode in register.entries.values() if not snapshot.state(inode).links)


def _entry_member(
    inode: Inode, state: State, parent_id: int, name: str, linked: set[int]
) -> Member:
    """A name, of a node that came before if that is in `linked`."""
    if inode.id in linked:
        member = _member(inode, state, parent_id, name)
        return replace(member, kind=MemberKind.LINK, size=0, target="", content=())
    if state.links > 1:
        linked.add(inode.id)
    return _member(inode, state, parent_id, name)


def _member(inode: Inode, state: State, parent_id: int, name: str) -> Member:
    size, content = (state.size, _Content(state)) if isinstance(state, FileState) else (0, None)
    return Member(
        kind=_MEMBER_KINDS[inode.kind],
        node_id=inode.id,
        parent_id=parent_id,
        name=name,
        version=state.version,
        created=state.created,
        modified=state.modified,
        executable=state.executable,
        size=size,
        target=inode.target,
        linked=state.links > 1,
        provenance=state.provenance,
        opaque=state.mark.opaque,
        redirect=state.mark.redirect,
        origin=state.mark.origin,
        below=state.mark.below,
        content=content or (),
    )


# From members to a tree ---------------------------------------------------------------------------


def load_tree(stream: BinaryIO, limits: Limits, clock: Callable[[], int]) -> Tree:
    """The tree in an archive; raises `Corrupt`, `NoSpace`, `TooLarge`."""
    # Every member but the root is an entry, or one of the register; each costs at least this.
    members_max = 1 + limits.total_bytes_max // ENTRY_BYTES
    budget = Budget(limits.total_bytes_max, limits.file_bytes_max, members_max)
    header, members = read_tree(stream, budget)
    if len(header.volume_id) != VOLUME_ID_BYTES:
        raise Corrupt("a volume's id of a wrong length")
    tree = Tree(limits, clock, header.volume_id)
    _load_root(tree, next(members, None))
    for member in members:
        if member.node_id >= header.nodes or member.version > header.changes:
            raise Corrupt("a node that is newer than its tree")
        _load(tree, member)
    tree.leap(header.nodes, header.changes)
    return tree


def _load_root(tree: Tree, member: Member | None) -> None:
    if member is None or member.parent_id or member.node_id != ROOT_ID:
        raise Corrupt("a tree without root")
    if member.kind is not MemberKind.DIRECTORY:
        raise Corrupt("a root that is no directory")
    _load_stat(tree, tree.root, member)


def _load(tree: Tree, member: Member) -> None:
    if not member.parent_id:
        _load_unnamed(tree, member)
        return
    parent = tree.index.get(member.parent_id)
    if parent is None or parent.kind is not NodeKind.DIRECTORY:
        raise Corrupt("an entry of what is no directory")
    # The directory's own times come from its member; entering names must not change them.
    state = parent.state
    kept = (state.version, state.modified, state.provenance)
    try:
        _load_entry(tree, parent, member)
    except AlreadyExists:
        raise Corrupt("two entries of one name, or two nodes of one origin") from None
    state.version, state.modified, state.provenance = kept


def _load_entry(tree: Tree, parent: Inode, member: Member) -> None:
    if member.kind is MemberKind.WHITEOUT:
        cover(tree, parent, member.name)
        return
    inode = tree.index.get(member.node_id)
    if member.kind is not MemberKind.LINK:
        inode = _load_node(tree, member)
    elif inode is None or inode.kind is NodeKind.DIRECTORY:
        raise Corrupt("a further name of a node that is not there")
    assert isinstance(parent.state, DirectoryState)  # noqa: S101 it was looked at
    if member.name in parent.state.whiteouts:
        raise Corrupt("an entry and a whiteout of one name")
    tree.enter(parent, member.name, inode)
    if member.kind is not MemberKind.LINK:
        _load_stat(tree, inode, member)


def _load_unnamed(tree: Tree, member: Member) -> None:
    if member.kind is MemberKind.DIRECTORY or not member.below:
        raise Corrupt("a node without a name that nothing shows")
    try:
        _load_stat(tree, _load_node(tree, member), member)
    except AlreadyExists:
        raise Corrupt("two nodes of one origin") from None


def _load_node(tree: Tree, member: Member) -> Inode:
    """A node with its content, without a name."""
    if member.node_id in tree.index:
        raise Corrupt("two nodes with one id")
    inode = tree.restore(_NODE_KINDS[member.kind], member.node_id, member.target)
    offset = 0
    for piece in member.content:
        # A piece of zeros stays a hole; the length is set below.
        if piece != _ZEROS[: len(piece)]:
            tree.write(inode, offset, memoryview(piece))
        offset += len(piece)
    if offset:
        tree.truncate(inode, offset)
    return inode


def _load_stat(tree: Tree, inode: Inode, member: Member) -> None:
    """Gives a node its attributes and its mark."""
    state = inode.state
    state.version = member.version
    state.created = member.created
    state.modified = member.modified
    state.provenance = member.provenance
    state.executable = member.executable
    mark = Mark(member.opaque, member.redirect, member.origin, member.below)
    if mark == NO_MARK:
        return
    try:
        set_mark(tree, inode, mark)
    except (InvalidArgument, InvalidName, TooLarge):
        raise Corrupt("a mark that its node cannot have") from None
