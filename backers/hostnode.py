"""What the nodes of one host directory volume share: its state, and how the host's words translate.

Invariants:

* Everything a volume holds open is known to its `Host`; closing it closes each descriptor once.
* No `OSError` leaves a block guarded by `os_errors`, and no message names a path of the host.
* The loop asks the kernel only where the answer is in memory: cached entries of a local filesystem
  on the volume's own device (`Host.answers_at_once`).
"""

from __future__ import annotations

import errno
import os
import stat as modes
import threading
from types import TracebackType
from typing import Final
from weakref import WeakSet, WeakValueDictionary

from capstore.backers.hostfd import (
    HostStat,
    OwnedFd,
    is_local,
    open_at,
    own_path,
    reopen_directory,
    stat_at,
    stat_fd,
    sync_filesystem,
)
from capstore.backers.hostlist import Names, Walks
from capstore.backers.node import Attributes, Entry, NodeKind, Provenance, Stat
from capstore.schema.errors import (
    Busy,
    Closed,
    InvalidArgument,
    IsDirectory,
    ReadOnly,
    StorageIOError,
    Unsupported,
    from_os_error,
)
from capstore.schema.names import from_bytes

_WORD: Final = (1 << 64) - 1
_TOP_BIT: Final = 1 << 63
# An odd constant that spreads small numbers over a word (2**64 over the golden ratio).
_SPREAD: Final = 0x9E3779B97F4A7C15
_INT64 = range(-(1 << 63), 1 << 63)

# What the common table does not say as these callers mean it: descriptors are short for now, a
# lease is held by another process.
_BUSY: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE})


class os_errors:  # noqa: N801 - reads as the context manager that it is
    """Turns an `OSError` of its block into a `StorageError` about the operation `what`.

    A class and not a generator: it stands around every cached read.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, OSError):
            if value.errno in _BUSY:
                raise Busy(f"{self._what}: {os.strerror(value.errno)}") from None
            raise from_os_error(value, self._what) from None


class InodeLock:
    """Held while one file's content changes; all open handles of the file share it."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Host:
    """The state of one open volume: its root, its descriptors, what it must still sync."""

    def __init__(self, root: OwnedFd, *, read_only: bool) -> None:
        """Takes over `root`, which is open for reading.  May block."""
        number = root.fileno()
        self.root = root
        self.device = stat_fd(number).device
        self.read_only = read_only or bool(os.fstatvfs(number).f_flag & os.ST_RDONLY)
        self.closed = False
        self.walks = Walks()
        self._local = is_local(number)
        self._owned: WeakSet[OwnedFd] = WeakSet()
        self._names: WeakValueDictionary[tuple[int, int], Names] = WeakValueDictionary()
        self._inodes: WeakValueDictionary[tuple[int, int], InodeLock] = WeakValueDictionary()
        self._sync_lock = threading.Lock()
        self._unsynced: dict[int, OwnedFd] = {}
        self._sync_all = False
        self._lost = False
        self.own(root)

    def check(self) -> None:
        """Raises `Closed` after the volume was closed."""
        if self.closed:
            raise Closed("the volume is closed")

    def check_writable(self) -> None:
        """Raises `Closed` or `ReadOnly` where nothing may be changed."""
        self.check()
        if self.read_only:
            raise ReadOnly("the volume is read-only")

    def answers_at_once(self, device: int) -> bool:
        """Whether cached metadata of a node on `device` may be asked for on the loop."""
        return self._local and device == self.device

    def own(self, fd: OwnedFd) -> OwnedFd:
        """Notes `fd` as one to close with the volume.  For the loop's thread only."""
        if self.closed:  # the volume was closed while a worker opened this
            fd.close()
            raise Closed("the volume is closed")
        self._owned.add(fd)
        return fd

    def names_of(self, found: HostStat) -> Names:
        """What is shared by all nodes that hold the same directory."""
        key = (found.device, found.inode)
        return self._names.get(key) or self._names.setdefault(key, Names())

    def lock_of(self, found: HostStat) -> InodeLock:
        """What is shared by all handles that may write the same file."""
        return self._inodes.setdefault((found.device, found.inode), InodeLock())

    def will_change(self, device: int, directory: int) -> None:
        """Notes, before a change on another `device` mounted below, that `sync` must cover it.

        The descriptor is opened before the change, so that it sees every failure of write-back.
        """
        if device == self.device:
            return
        with self._sync_lock:
            if device not in self._unsynced:
                try:
                    self._unsynced[device] = reopen_directory(directory)
                except PermissionError:  # one that may be passed through but not read
                    self._sync_all = True

    def sync(self) -> None:
        """Makes every change made through this volume durable, on each device.  Blocks.

        The kernel reports a failed write-back once.  It stays true, so it is answered for good.
        """
        if self.read_only:
            return
        with self._sync_lock, os_errors("sync"):
            if self._lost:
                raise StorageIOError("an earlier sync failed; what it covered may be lost")
            others, self._unsynced = self._unsynced, {}
            try:
                with self.root.lease() as number:
                    sync_filesystem(number)
                for other in others.values():
                    sync_filesystem(other.fileno())
                if self._sync_all:
                    os.sync()
            except OSError:
                self._lost = True
                raise

    def release(self) -> None:
        """Closes every descriptor of the volume, those in use as soon as they are not."""
        self.closed = True
        with self._sync_lock:
            self._unsynced = {}
        for fd in self._live():
            fd.close()

    def _live(self) -> list[OwnedFd]:
        """The descriptors that somebody holds."""
        while True:
            try:
                return list(self._owned)
            except RuntimeError:  # another thread dropped one just now
                continue


# Translation -----------------------------------------------------------------------------------


def node_kind(mode: int) -> NodeKind:
    """The kind of node that a host's mode stands for."""
    if modes.S_ISREG(mode):
        return NodeKind.FILE
    if modes.S_ISDIR(mode):
        return NodeKind.DIRECTORY
    if modes.S_ISLNK(mode):
        return NodeKind.SYMLINK
    return NodeKind.SPECIAL


def node_stat(found: HostStat, root_device: int) -> Stat:
    """The `Stat` of a node.

    `version` is made of the change time and the size.  The change time is exact where the kernel
    has multigrain timestamps (6.13: ext4, XFS, Btrfs, tmpfs); elsewhere two changes within one
    tick (1 to 10 ms) that leave the size as it is give one version.

    `node_id` is the inode number; on another device mounted below the root, a mix of device and
    inode number with the top bit set, which the root's numbers do not have.  `created` is 0 where
    the filesystem does not record it.  A directory's links from below are not counted.
    """
    kind = node_kind(found.mode)
    node_id = found.inode
    if found.device != root_device:
        node_id = (found.device * _SPREAD ^ node_id) & _WORD | _TOP_BIT
    return Stat(
        kind=kind,
        size=found.size if kind in (NodeKind.FILE, NodeKind.SYMLINK) else 0,
        node_id=node_id,
        version=(found.changed + found.size * _SPREAD) & _WORD,
        created=found.created,
        modified=found.modified,
        provenance=Provenance.HOST_FILESYSTEM,
        executable=kind is NodeKind.FILE and bool(found.mode & modes.S_IXUSR),
        link_count=min(found.links, 1) if kind is NodeKind.DIRECTORY else found.links,
    )


def require_file(found: HostStat) -> None:
    """Raises what opening a node that is no regular file raises."""
    if modes.S_ISDIR(found.mode):
        raise IsDirectory("this is a directory")
    if modes.S_ISLNK(found.mode):
        raise Unsupported("a symbolic link is data; resolve it with lookup")
    if not modes.S_ISREG(found.mode):
        raise Unsupported("a FIFO, socket or device is not opened")


def entry_at(directory: int, raw: bytes, name: str, root_device: int) -> Entry:
    """The entry `raw`, shown as `name`.  Blocks."""
    found = stat_at(directory, raw)
    if not modes.S_ISLNK(found.mode):
        return Entry(name, node_stat(found, root_device))
    # Stat and target must be of one link, also while somebody replaces it by another.
    with open_at(directory, raw, os.O_PATH) as node:
        found = stat_fd(node.fileno())
        target = None
        if modes.S_ISLNK(found.mode):
            target = from_bytes(os.readlink(b"", dir_fd=node.fileno()))
    return Entry(name, node_stat(found, root_device), target)


def check_attributes(change: Attributes) -> None:
    """Raises what a change that no host records raises."""
    if change.created is not None:
        raise Unsupported("a host filesystem sets the time of creation itself")
    if change.modified is not None and change.modified not in _INT64:
        raise InvalidArgument("a time is a signed 64-bit number of nanoseconds")


def change_attributes(node: int, change: Attributes) -> None:
    """Changes attributes of the open node (O_PATH or not), which is no link; all or none.  Blocks.

    Executable means as `chmod +x` does it: for everybody who may read.
    """
    found = stat_fd(node)
    if change.executable is not None:
        if not modes.S_ISREG(found.mode):
            raise Unsupported("only a file is executable or not")
        os.chmod(own_path(node), _with_executable(found.mode, change.executable))  # noqa: PTH101
    if change.modified is None:
        return
    try:
        os.utime(own_path(node), ns=(found.accessed, change.modified))
    except OSError:
        if change.executable is not None:
            os.chmod(own_path(node), modes.S_IMODE(found.mode))  # noqa: PTH101
        raise


def _with_executable(mode: int, executable: bool) -> int:
    mode = modes.S_IMODE(mode)
    if not executable:
        return mode & ~0o111
    return mode | (mode & 0o444) >> 2 | modes.S_IXUSR


def change_link_attributes(directory: int, raw: bytes, change: Attributes) -> None:
    """Changes attributes of the entry `raw` itself, which was a symbolic link.  Blocks."""
    if change.executable is not None:
        raise Unsupported("only a file is executable or not")
    if change.modified is not None:
        times = (stat_at(directory, raw).accessed, change.modified)
        os.utime(raw, ns=times, dir_fd=directory, follow_symlinks=False)
