"""The protocol between what serves trees and what is built on them.

A backer of trees implements `Volume`, `DirectoryNode` and `FileNode` (one of objects
`capstore.backers.store.ObjectStore`); the service, the
wrappers that attenuate, the overlay and the client's remote nodes use and implement the same
classes, so each can stand wherever another can.

Invariants that every implementation keeps, and the contract suite checks:

* **Names** are single segments (`capstore.schema.names`); every method that takes one raises
  `InvalidName` for anything else.  No method follows a symbolic link.
* **Errors** are `StorageError`; foreign exceptions end at the backer's edge.
* **Cancellation**: when a cancelled method raises, it has happened as a whole or not at all,
  nothing of it is still under way, and it holds nothing (`capstore.backers.workers`).
* **The loop is never blocked**: what may wait for a device runs in a worker thread.
* **Ownership**: a node that a method returns belongs to the caller.  Dropping the last reference
  to it releases what it holds; `FileNode.close` does the same at once.  An open file outlives its
  name, a held directory its renaming.
* **Order**: a method that has returned is visible to every call that begins afterwards.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass

from capstore.schema.errors import InvalidArgument, Unsupported
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import Buffer, Entry, NodeKind, Page, Provenance, Stat, Usage

__all__ = [
    "Attributes",
    "Buffer",
    "DirectoryNode",
    "Entry",
    "Expect",
    "FileNode",
    "Node",
    "NodeKind",
    "OpenFlags",
    "Page",
    "Provenance",
    "RenameMode",
    "Stat",
    "Usage",
    "Volume",
]


class RenameMode(enum.Enum):
    """What a rename does about an existing target."""

    REPLACE = "replace"
    NO_REPLACE = "noReplace"
    EXCHANGE = "exchange"


class Expect(enum.Enum):
    """What the caller of `DirectoryNode.remove` thinks it removes."""

    ANY = "any"
    NOT_DIRECTORY = "notDirectory"
    DIRECTORY = "directory"


class OpenFlags(enum.IntFlag):
    """How to open a file; values are the constants of ``capstore.capnp``."""

    READ = 0
    WRITE = 1
    CREATE = 2
    EXCLUSIVE = 4
    TRUNCATE = 8

    @property
    def writes(self) -> bool:
        """Whether the file may be changed."""
        return int(self) & 1 != 0

    def check(self) -> OpenFlags:
        """These flags if they make sense together, else raises `InvalidArgument`."""
        if int(self) not in _SENSIBLE_FLAGS:
            raise InvalidArgument(
                "open flags: creating and truncating need write, exclusive needs create"
            )
        return self


def _sensible(flags: int) -> bool:
    write, create, exclusive, truncate = (flags & 1 << bit for bit in range(4))
    return bool((write or not (create or truncate)) and (create or not exclusive))


# Every open is checked, and arithmetic on enum members costs microseconds.
_SENSIBLE_FLAGS = frozenset(flags for flags in range(16) if _sensible(flags))


@dataclass(frozen=True, slots=True)
class Attributes:
    """A change of attributes: None leaves one as it is; times in ns since 1970."""

    executable: bool | None = None
    modified: int | None = None
    created: int | None = None


class Node(ABC):
    """What files and directories have in common."""

    @abstractmethod
    async def stat(self) -> Stat:
        """What is known of the node; works also after its last name is gone."""

    @abstractmethod
    async def sync(self) -> None:
        """Returns when every change of this node, and of all below it, that had returned before
        the call is as durable as the volume can make it."""


class FileNode(Node):
    """An open file.

    Every method but `close` and `stat` raises `Closed` after `close`; methods that change raise
    `ReadOnly` when it was opened without `OpenFlags.WRITE`.
    """

    async def size(self) -> int:
        """The length in bytes; cheaper than `stat` where the backer can make it so."""
        return (await self.stat()).size

    @abstractmethod
    async def read_into(self, offset: int, view: memoryview) -> int:
        """Fills `view` from `offset` and returns how many bytes that were.

        Less than ``len(view)`` only at the end of the file; 0 at and behind it.
        """

    async def read(self, offset: int, length: int) -> Buffer:
        """Up to `length` bytes from `offset`, shorter only at the end of the file.

        What is returned does not change when the file does.
        """
        buffer = bytearray(max(0, min(length, await self.size() - offset)))
        got = await self.read_into(offset, memoryview(buffer))
        return memoryview(buffer)[:got]

    @abstractmethod
    async def write(self, offset: int, data: Buffer) -> None:
        """Writes all of `data` at `offset`; a gap behind the old end reads as zeros.

        Raises `NoSpace` or `TooLarge` with the file as it was.
        """

    @abstractmethod
    async def append(self, data: Buffer) -> int:
        """Writes `data` at the end, atomically among appends; returns the offset it went to."""

    @abstractmethod
    async def truncate(self, size: int) -> None:
        """Cuts the file, or extends it with zeros, to `size` bytes."""

    @abstractmethod
    async def set_attributes(self, change: Attributes) -> None:
        """Changes attributes; raises `Unsupported` for one that cannot be recorded."""

    @abstractmethod
    async def close(self) -> None:
        """Releases the file; calling it again does nothing."""


class DirectoryNode(Node):
    """A directory, whatever its name is now.

    A directory whose last name is gone is empty for good: making anything in it is `NotFound`.
    """

    @abstractmethod
    async def lookup(self, name: str) -> Entry:
        """What `name` stands for, with a symbolic link's target.  Raises `NotFound`."""

    @abstractmethod
    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """Up to `limit` entries whose names come after `after` in the order of their bytes.

        At least one where there is one.  Entries that nobody touches appear exactly once in a
        walk over the pages, whatever else changes meanwhile.
        """

    @abstractmethod
    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        """Opens the file `name`.

        Raises `NotFound`, `AlreadyExists` (exclusive), `IsDirectory`, `InvalidArgument` (flags),
        `ReadOnly`, `NoSpace`, and `Unsupported` for a symbolic link or special node, at once.
        """

    @abstractmethod
    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        """Makes a new empty file and opens it for writing.  Raises `AlreadyExists`, `NoSpace`."""

    @abstractmethod
    async def mkdir(self, name: str) -> DirectoryNode:
        """Makes a new empty directory.  Raises `AlreadyExists`, `NoSpace`."""

    @abstractmethod
    async def sub(self, name: str) -> DirectoryNode:
        """The directory `name`.  Raises `NotFound`, `NotDirectory`."""

    @abstractmethod
    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        """Removes a name; a directory must be empty.

        Raises `NotFound`, `NotEmpty`, and `IsDirectory` or `NotDirectory` as `expect` says.
        """

    @abstractmethod
    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        """Moves the entry `name` to `new_name` in `target`, atomically.

        Renaming onto itself, or onto another name of the same file, changes nothing (with
        `NO_REPLACE` it is `AlreadyExists`).  A file replaces only what is no directory
        (`IsDirectory`), a directory only an empty directory (`NotDirectory`, `NotEmpty`).  Raises
        `InvalidArgument` for a directory into itself or below (with `EXCHANGE` either way), and
        `CrossVolume` for a target of another volume or implementation.
        """

    @abstractmethod
    async def symlink(self, name: str, target: str) -> None:
        """Makes a symbolic link.  Raises `AlreadyExists`, `InvalidArgument` for an empty or
        overlong target or one with a NUL."""

    @abstractmethod
    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        """Gives the file (or link) `name` a second name.

        Raises `IsDirectory`, `AlreadyExists`, `CrossVolume`."""

    @abstractmethod
    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        """Changes attributes of the entry `name`, of a link itself; of this directory if empty."""

    @abstractmethod
    async def usage(self) -> Usage:
        """Space and nodes of the volume."""

    async def snapshot(self) -> DirectoryNode:
        """A read-only directory that shows this one, with all below, as it is now."""
        raise Unsupported("this volume has no snapshots")


class Volume(ABC):
    """One tree and what belongs to it as a whole."""

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """Whether every change is refused with `ReadOnly`."""

    @property
    @abstractmethod
    def root(self) -> DirectoryNode:
        """The root directory."""

    @abstractmethod
    async def usage(self) -> Usage:
        """Space and nodes in use."""

    @abstractmethod
    async def sync(self) -> None:
        """Returns when every change that had returned before is durable."""

    @abstractmethod
    async def close(self) -> None:
        """Syncs and releases the volume; calls after it raise `Closed`, closing again nothing."""

    async def handle_of(self, node: Node) -> bytes:
        """A word by which `node_of` finds `node` again, after a restart too where the volume
        itself persists.  Raises `Unsupported`, and `NotFound` for a node without a name."""
        raise Unsupported("this volume does not name its nodes")

    async def node_of(self, handle: bytes) -> Node:
        """The node that `handle_of` gave `handle` for; a file is open for writing where the
        volume writes.  Raises `NotFound` when it is gone, also if its name was given to another
        node, and `InvalidArgument` for what was no handle."""
        raise Unsupported("this volume does not name its nodes")
