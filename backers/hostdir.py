"""A directory of the host as a volume: ``dir:PATH``.

Invariants:

* **Containment.**  The path is used once, when the volume is opened.  From then on each node is a
  held descriptor and each call takes one segment below it (`capstore.backers.hostfd`): no name
  leads upwards, no link is followed, whatever other processes rename meanwhile.
* What is contained is the node, not the path: a directory that somebody moves out of the tree stays
  with those who hold it, and a file that has another name outside is the same file.  Filesystems
  mounted below the root belong to the volume; renaming across is `CrossVolume`.
* FIFOs, sockets and devices are listed and never opened.
* A call that may wait for a device runs in a worker thread.  What the kernel's cache answers is
  asked on the loop.
* An entry is found by the name that is listed (`capstore.backers.hostspell`).
* A change is one system call, or several in one worker call that undoes what it cannot finish.
* New files have mode 0666, executable ones and directories 0777, less the process's umask.

A stored name that is no UTF-8 is shown escaped (`capstore.schema.names`).  If the escaped form
has more than 255 bytes it is listed, but every method refuses it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from capstore.backers import hosthandle, hostops
from capstore.backers.hostfd import (
    HostStat,
    OwnedFd,
    look_fd,
    open_at,
    open_at_once,
    stat_fd,
)
from capstore.backers.hostfile import HostFile
from capstore.backers.hostlist import check_limit
from capstore.backers.hostnode import (
    Host,
    change_attributes,
    change_link_attributes,
    check_attributes,
    entry_at,
    node_stat,
    os_errors,
)
from capstore.backers.hostspell import Spelling, is_respelled, other_case, read_names
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    Node,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
    Volume,
)
from capstore.backers.workers import in_worker
from capstore.schema.errors import (
    Busy,
    CrossVolume,
    InvalidArgument,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name, to_bytes

T = TypeVar("T")


class HostDirectory(DirectoryNode):
    """A directory, by an O_PATH descriptor."""

    def __init__(self, host: Host, fd: OwnedFd, found: HostStat) -> None:
        self._host = host
        self._fd = host.own(fd)
        self._device = found.device
        self._names = host.names_of(found)
        self._at_once = host.answers_at_once(found.device)

    def __repr__(self) -> str:
        return f"HostDirectory({self._fd!r})"

    @property
    def host(self) -> Host:
        """The volume's state."""
        return self._host

    @property
    def owned(self) -> OwnedFd:
        """The descriptor, still the directory's own."""
        return self._fd

    # Looking

    async def stat(self) -> Stat:
        """As `Node.stat`."""
        self._host.check()
        if not self._at_once:
            found = await self._run("stat", stat_fd)
        else:
            with os_errors("stat"):
                found = stat_fd(self._fd.fileno())
        return node_stat(found, self._host.device)

    async def lookup(self, name: str) -> Entry:
        """As `DirectoryNode.lookup`."""
        raw = _raw(name)
        device = self._host.device
        with os_errors("lookup"):
            node = self._cached(name, raw, os.O_PATH)
            if node is not None:
                with node:
                    found = stat_fd(node.fileno())
                if not modes.S_ISLNK(found.mode):
                    return Entry(name, node_stat(found, device))
        return await self._find("lookup", name, lambda fd: entry_at(fd, raw, name, device))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """As `DirectoryNode.list`; see `capstore.backers.hostlist`."""
        limit = check_limit(limit)
        device = self._host.device

        def page(fd: int) -> Page:
            def look(name: str) -> Entry | None:
                try:
                    if not self._names.is_listed(fd, name):
                        return None
                    return entry_at(fd, to_bytes(name), name, device)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ESTALE):
                        return None
                    raise

            return self._host.walks.page(self._names, fd, after, limit, look)

        return await self._run("list", page)

    async def usage(self) -> Usage:
        """As `DirectoryNode.usage`, of the filesystem that holds this directory."""
        return await self._run("usage", hostops.usage_of)

    # Opening

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        """As `DirectoryNode.open`."""
        raw = _raw(name)
        flags = OpenFlags(flags).check()
        if flags.writes:
            opened = await self._change(
                "open", lambda fd: self._open_to_write(fd, raw, name, flags)
            )
            return self._file(opened, writable=True)
        found = self._opened_at_once(name, raw)
        if found is None:
            found = await self._find(
                "open", name, lambda fd: hostops.open_existing(fd, raw, os.O_RDONLY)
            )
        return self._file(found, writable=False)

    def _opened_at_once(self, name: str, raw: bytes) -> tuple[OwnedFd, HostStat] | None:
        with os_errors("open"):
            node = self._cached(name, raw, os.O_PATH)
            if node is None:
                return None
            with node:
                return hostops.open_node(node.fileno(), os.O_RDONLY)

    def _open_to_write(
        self, fd: int, raw: bytes, name: str, flags: OpenFlags
    ) -> tuple[OwnedFd, HostStat]:
        for _ in range(hostops.RACES_MAX):
            if flags & OpenFlags.CREATE:
                try:
                    return self._make_file(fd, raw, name, 0o666)
                except FileExistsError:
                    if flags & OpenFlags.EXCLUSIVE:
                        raise
                self._spelling.is_taken(fd, name)
            try:
                self._spelling.require(fd, name)
                cut = os.O_TRUNC if flags & OpenFlags.TRUNCATE else 0
                return hostops.open_existing(fd, raw, os.O_RDWR | cut)
            except FileNotFoundError:
                if not flags & OpenFlags.CREATE:
                    raise
        raise Busy("the name comes and goes")

    def _make_file(self, fd: int, raw: bytes, name: str, mode: int) -> tuple[OwnedFd, HostStat]:
        with self._names.making(name):
            made = open_at(fd, raw, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        return made, look_fd(made.fileno())

    def _file(self, opened: tuple[OwnedFd, HostStat], *, writable: bool) -> HostFile:
        fd, found = opened
        return HostFile(self._host, fd, found, self._fd, writable=writable)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        """As `DirectoryNode.create`."""
        raw = _raw(name)
        mode = 0o777 if executable else 0o666
        opened = await self._change("create", lambda fd: self._make_file(fd, raw, name, mode))
        return self._file(opened, writable=True)

    async def sub(self, name: str) -> DirectoryNode:
        """As `DirectoryNode.sub`."""
        raw = _raw(name)
        opened = self._sub_at_once(name, raw)
        if opened is None:
            opened = await self._find("sub", name, lambda fd: hostops.open_directory(fd, raw))
        return HostDirectory(self._host, *opened)

    def _sub_at_once(self, name: str, raw: bytes) -> tuple[OwnedFd, HostStat] | None:
        with os_errors("sub"):
            node = self._cached(name, raw, hostops.OPEN_DIRECTORY)
            return None if node is None else (node, look_fd(node.fileno()))

    async def mkdir(self, name: str) -> DirectoryNode:
        """As `DirectoryNode.mkdir`."""
        raw = _raw(name)

        def make(fd: int) -> tuple[OwnedFd, HostStat]:
            with self._names.making(name):
                os.mkdir(raw, 0o777, dir_fd=fd)
            try:
                return hostops.open_directory(fd, raw)
            except OSError:
                with suppress(OSError):
                    os.rmdir(raw, dir_fd=fd)
                raise

        node, found = await self._change("mkdir", make)
        return HostDirectory(self._host, node, found)

    # Changing

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        """As `DirectoryNode.remove`."""
        raw = _raw(name)

        def remove(fd: int) -> None:
            self._spelling.require(fd, name)
            hostops.remove(fd, raw, expect)
            self._names.gone(name)

        await self._change("remove", remove)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        """As `DirectoryNode.rename`; `Unsupported` for a mode that the filesystem cannot do."""
        old, new = _raw(name), _raw(new_name)

        def move(source: int, goal: int, into: HostDirectory) -> None:
            self._spelling.require(source, name)
            if mode is RenameMode.EXCHANGE:
                into._spelling.require(goal, new_name)
                hostops.rename(source, old, goal, new, mode)
                self._names.added(name)
                into._names.added(new_name)
            elif into._names is self._names and self._respells(goal, name, new_name):
                hostops.rename(source, old, goal, new, mode)
                self._names.gone(name)
                if new_name not in read_names(goal):
                    raise Unsupported("the host keeps the spelling: rename by way of another name")
                self._names.added(new_name)
            else:
                into._take(goal, new_name, source, old, mode)
                if into._names is not self._names or name != new_name:
                    self._names.gone(name)

        await self._change_both("rename", target, move)

    def _respells(self, fd: int, name: str, new_name: str) -> bool:
        """Whether the host takes both names for that of one entry, which is called `name`."""
        if name == new_name or name.lower() != new_name.lower():
            return False
        try:
            return not self._spelling.is_own(fd, new_name) and is_respelled(fd, name, new_name)
        except FileNotFoundError:
            return False

    def _take(self, fd: int, name: str, source: int, old: bytes, mode: RenameMode) -> None:
        """Gives the entry `old` of another directory the name `name` here."""
        new = _raw(name)
        for _ in range(hostops.RACES_MAX):
            is_taken = self._spelling.is_taken(fd, name)
            # What somebody makes meanwhile, with another spelling, is not to be replaced.
            is_sure = is_taken or self._spelling.tells_apart(fd) or mode is not RenameMode.REPLACE
            try:
                with self._names.making(name):
                    if is_sure:
                        hostops.rename(source, old, fd, new, mode)
                    else:
                        hostops.rename_to_free(source, old, fd, new)
            except FileExistsError:
                if is_sure:
                    raise
            else:
                return
        raise Busy("the name comes and goes")

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        """As `DirectoryNode.link`."""
        old, new = _raw(name), _raw(new_name)

        def link(source: int, goal: int, into: HostDirectory) -> None:
            self._spelling.require(source, name)
            try:
                with into._names.making(new_name):
                    os.link(old, new, src_dir_fd=source, dst_dir_fd=goal, follow_symlinks=False)
            except PermissionError:
                hostops.refuse_directory(source, old)
                raise

        await self._change_both("link", target, link)

    async def symlink(self, name: str, target: str) -> None:
        """As `DirectoryNode.symlink`."""
        raw, goal = _raw(name), hostops.raw_target(target)

        def link(fd: int) -> None:
            with self._names.making(name):
                os.symlink(goal, raw, dir_fd=fd)

        await self._change("symlink", link)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        """As `DirectoryNode.set_attributes`; only a file can be made executable."""
        raw = _raw(name) if name else b""
        self._host.check_writable()
        check_attributes(change)

        def apply(fd: int) -> None:
            if not raw:
                change_attributes(fd, change)
                return
            self._spelling.require(fd, name)
            with open_at(fd, raw, os.O_PATH) as node:
                if modes.S_ISLNK(look_fd(node.fileno()).mode):
                    change_link_attributes(fd, raw, change)
                else:
                    change_attributes(node.fileno(), change)

        await self._change("set attributes", apply)

    async def sync(self) -> None:
        """As `Node.sync`; covers the whole volume, which is what the host offers."""
        self._host.check()
        await in_worker(self._host.sync)

    # How calls are made

    @property
    def _spelling(self) -> Spelling:
        return self._names.spelling

    def _cached(self, name: str, raw: bytes, flags: int) -> OwnedFd | None:
        """Opens the entry if the kernel has it cached, else None.  For the loop; OSError."""
        self._host.check()
        if not self._at_once:
            return None
        fd, spelling = self._fd.fileno(), self._names.spelling
        if spelling.tells_apart(fd) or spelling.knows(name) or self._has_no_other_case(fd, name):
            return open_at_once(fd, raw, flags)
        return None

    def _has_no_other_case(self, fd: int, name: str) -> bool:
        """Whether the kernel knows that nothing is found with the other case of all letters."""
        other = other_case(name)
        if other is None:
            return False
        try:
            found = open_at_once(fd, to_bytes(other), os.O_PATH)
        except FileNotFoundError:
            return True
        if found is not None:
            found.close()
        return False

    async def _find(self, what: str, name: str, call: Callable[[int], T]) -> T:
        """As `_run`, of an entry that is called `name`."""

        def found(fd: int) -> T:
            self._spelling.require(fd, name)
            return call(fd)

        return await self._run(what, found)

    async def _run(self, what: str, call: Callable[[int], T]) -> T:
        """Runs `call` with the descriptor in a worker."""
        self._host.check()

        def leased() -> T:
            with os_errors(what), self._fd.lease() as fd:
                return call(fd)

        return await in_worker(leased)

    async def _change(self, what: str, call: Callable[[int], T]) -> T:
        """As `_run`, for a change."""
        self._host.check_writable()

        def noted(fd: int) -> T:
            self._host.will_change(self._device, fd)
            return call(fd)

        return await self._run(what, noted)

    async def _change_both(
        self, what: str, target: DirectoryNode, call: Callable[[int, int, HostDirectory], None]
    ) -> None:
        """As `_change`, with the descriptors of this directory and of `target`."""
        self._host.check_writable()
        if not isinstance(target, HostDirectory) or target.host is not self._host:
            raise CrossVolume("the target is in another volume")

        def both(fd: int) -> None:
            with target.owned.lease() as goal:
                call(fd, goal, target)

        await self._change(what, both)


# Names -----------------------------------------------------------------------------------------


def _raw(name: str) -> bytes:
    """The stored bytes of `name`; raises `InvalidName`."""
    return to_bytes(check_name(name))


# The volume ------------------------------------------------------------------------------------


def _share(fd: int) -> None:
    """Marks a directory as in use, beside others that use it.  Raises `Busy` while it is reset."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy("the directory is being reset") from None
    except OSError:
        # Not every filesystem has locks; then nobody resets it either.
        return


class HostVolume(Volume):
    """A host directory and all below it."""

    def __init__(self, host: Host, root: HostDirectory) -> None:
        self._host = host
        self._root = root

    def __repr__(self) -> str:
        state = "closed" if self._host.closed else "ro" if self.read_only else "rw"
        return f"HostVolume({state})"

    @classmethod
    async def open(cls, path: str, *, read_only: bool = False) -> HostVolume:
        """Opens the directory `path`; links in it are followed, since who serves it wrote it.

        Read-only too where it is mounted so.  Raises `NotFound`, `NotDirectory`, `Denied`, and
        `Unsupported` where /proc, by which held descriptors are opened, is not mounted.
        """
        if "\0" in path:
            raise InvalidArgument("a path holds no NUL")

        def open_root() -> tuple[Host, HostStat]:
            with os_errors("open the directory"):
                fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                _share(fd.fileno())
                hostops.check_proc(fd.fileno())
                return Host(fd, read_only=read_only), look_fd(fd.fileno())

        host, found = await in_worker(open_root)
        return cls(host, HostDirectory(host, host.root, found))

    @property
    def read_only(self) -> bool:
        """As `Volume.read_only`."""
        return self._host.read_only

    @property
    def root(self) -> DirectoryNode:
        """As `Volume.root`."""
        return self._root

    async def usage(self) -> Usage:
        """As `Volume.usage`: of the whole filesystem that holds the root."""
        return await self._root.usage()

    async def sync(self) -> None:
        """As `Volume.sync`."""
        await self._root.sync()

    async def close(self) -> None:
        """As `Volume.close`; closes what is still open below, too."""
        if self._host.closed:
            return
        self._host.closed = True
        try:
            await in_worker(self._host.sync)
        finally:
            self._host.release()

    async def handle_of(self, node: Node) -> bytes:
        """As `Volume.handle_of`; see `capstore.backers.hosthandle`."""
        self._host.check()
        if not isinstance(node, HostDirectory | HostFile) or node.host is not self._host:
            raise InvalidArgument("the node is of another volume")

        def word() -> bytes:
            with (
                os_errors("name the node"),
                node.owned.lease() as fd,
                self._host.root.lease() as root,
            ):
                return hosthandle.handle_at(root, fd).encode()

        return await in_worker(word)

    async def node_of(self, handle: bytes) -> Node:
        """As `Volume.node_of`; a file that may not be written is open for reading."""
        self._host.check()
        wanted = hosthandle.Handle.decode(handle)
        read_only = self._host.read_only

        def find() -> tuple[OwnedFd, OwnedFd, HostStat, bool]:
            with os_errors("find the node"), self._host.root.lease() as root:
                parent, node = hosthandle.find(root, wanted)
                if wanted.directory:
                    return parent, node, stat_fd(node.fileno()), False
                return parent, *hostops.open_as_permitted(node.fileno(), read_only=read_only)

        parent, fd, found, writable = await in_worker(find)
        if wanted.directory:
            return HostDirectory(self._host, fd, found)
        return HostFile(self._host, fd, found, self._host.own(parent), writable=writable)
