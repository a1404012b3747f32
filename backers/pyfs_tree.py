"""What the nodes of a PyFilesystem2 filesystem do, as blocking calls.

Invariants:

* Every method is called by one thread at a time (`capstore.backers.pyfs` sees to that) and holds
  the filesystem's own lock, so looking and changing are one for all who use the filesystem object.
* No link is followed: what an entry is, is asked before it is opened, entered or moved.  Where
  other processes change a directory of the host, between asking and opening, this does not hold.
* An entry is found by the name that is listed, as in `capstore.backers.hostspell`.
* A change is noted in `Places` when the filesystem has made it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from fs import errors
from fs.base import FS

from capstore.backers import hostops
from capstore.backers.hostfd import OwnedFd, sync_filesystem
from capstore.backers.hostspell import is_own_name, tells_apart
from capstore.backers.node import (
    Attributes,
    Entry,
    Expect,
    NodeKind,
    OpenFlags,
    Page,
    Provenance,
    RenameMode,
    Stat,
    Usage,
)
from capstore.backers.pyfs_content import Content
from capstore.backers.pyfs_errors import fs_errors
from capstore.backers.pyfs_info import Look, Traits, check_time, shown_name
from capstore.backers.pyfs_places import Place, Places, last_of
from capstore.backers.pyfs_walk import Scans
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
    Unsupported,
)

_WRITABLE_TIME: Final = ("details", "modified")
_WRITABLE_PERMISSIONS: Final = ("access", "permissions")


class Tree:
    """A filesystem, its places and what is open in it."""

    def __init__(self, filesystem: FS, traits: Traits) -> None:
        self.fs = filesystem
        self.traits = traits
        self.places = Places(traits.provenance, read_only=traits.read_only)
        self._scans = Scans()
        self._open: set[Content] = set()

    # Looking

    def lookup(self, directory: Place, name: str) -> Entry:
        """As `DirectoryNode.lookup`."""
        path = directory.path_of(name)
        self._settle_entries(directory, name)
        look = self._look(path)
        if not self._is_own(directory, name):
            raise NotFound("listed with another spelling")
        return self.places.entry(directory, name, look)

    def _find(self, directory: Place, name: str) -> Entry | None:
        """As `lookup`; None where nothing is in the way of making it.

        Raises `AlreadyExists` where something with another spelling is.
        """
        try:
            return self.lookup(directory, name)
        except NotFound:
            _ = directory.path  # raises if it is the directory that is gone
        if not self._tells_apart(directory) and self._is_there(directory, name):
            raise AlreadyExists("there, with another spelling")
        return None

    def _is_own(self, directory: Place, name: str) -> bool:
        """Whether the entry that the filesystem finds as `name` is called so."""
        if self._tells_apart(directory):
            return True

        def listed() -> list[str]:
            try:
                names = map(shown_name, self.fs.listdir(directory.path))
                return [each for each in names if each is not None]
            except errors.PermissionDenied as error:
                raise PermissionError(errno.EACCES, "not to be listed") from error

        return is_own_name(name, lambda other: self._is_there(directory, other), listed)

    def _is_there(self, directory: Place, name: str) -> bool:
        """Whether the filesystem finds anything as `name`."""
        try:
            self._look(directory.path_of(name))
        except (NotFound, InvalidName, InvalidArgument):
            return False
        return True

    def _check_made(self, directory: Place, name: str, undo: Callable[[], object]) -> None:
        """Undoes what was made as `name` if it is listed by another, and raises `InvalidName`."""
        if self._tells_apart(directory) or not self._is_there(directory, name):
            return
        if not self._is_own(directory, name):
            undo()
            raise InvalidName("the filesystem would list it with another spelling")

    def _tells_apart(self, directory: Place) -> bool:
        """Whether entries of a directory are found by their own names only."""
        if self.traits.folds_case or not self.traits.on_host:
            return not self.traits.folds_case
        with OwnedFd(os.open(self.fs.getsyspath(directory.path), os.O_PATH)) as fd:
            return tells_apart(fd.fileno())

    def _look(self, path: str) -> Look:
        try:
            with fs_errors("look"):
                return Look.of(self.fs.getinfo(path, namespaces=self.traits.namespaces))
        except StorageError:
            link = self._look_at_link(path)
            if link is None:
                raise
            return link

    def _look_at_link(self, path: str) -> Look | None:
        """What PyFilesystem2 does not see: a link of the host that leads nowhere or in circles."""
        if not (self.traits.on_host and self.traits.tells_of_links):
            return None
        with suppress(OSError):
            look = Look.of_path(self.fs.getsyspath(path))
            return look if look.kind is NodeKind.SYMLINK else None
        return None

    def list(self, directory: Place, after: str, limit: int) -> Page:
        """As `DirectoryNode.list`."""
        if directory.gone:
            return Page((), more=False)
        self._settle_entries(directory)
        entries = self._entries(directory)
        try:
            with fs_errors("list"):
                return self._scans.page(directory.id, after, limit, self.places.changes, entries)
        except NotFound:
            if directory is self.places.root:
                raise
            return Page((), more=False)

    def _entries(self, directory: Place) -> Iterator[Entry]:
        for stored, look in self._looks(directory.path):
            name = shown_name(stored)
            if name is not None:
                yield self.places.entry(directory, name, look)

    def _looks(self, path: str) -> Iterator[tuple[str, Look]]:
        """What is in a directory, by the names that the filesystem knows it by."""
        if not self.traits.on_host:
            for info in self.fs.scandir(path, namespaces=self.traits.namespaces):
                yield info.name, Look.of(info)
            return
        # One link that leads nowhere would end the filesystem's own scan.
        for stored in self.fs.listdir(path):
            with suppress(NotFound):
                yield stored, self._look(f"{path.rstrip('/')}/{stored}")

    def stat(self, place: Place) -> Stat:
        """As `Node.stat`."""
        try:
            path = place.path
            if place.content is not None:
                place.content.settle_writes()
            look = self._look(path)
        except NotFound:
            return self._stat_of_gone(place)
        place.last = self.places.stat(place.id, look)
        return place.last

    def _stat_of_gone(self, place: Place) -> Stat:
        last = last_of(place)
        size = last.size
        if place.content is not None and self.traits.lasting:
            size = place.content.size()
        modified = None if last.provenance is Provenance.UNKNOWN else last.modified
        look = Look(last.kind, size, modified, last.created, last.modified, last.executable, 0)
        return self.places.stat(place.id, look)

    # Opening

    def sub(self, directory: Place, name: str) -> Place:
        """The place of the directory `name`; as `DirectoryNode.sub`."""
        entry = self.lookup(directory, name)
        if entry.stat.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("no directory")
        return self._place(directory, entry)

    def _place(self, directory: Place, entry: Entry) -> Place:
        place = self.places.at(directory, entry.name)
        place.last = entry.stat
        return place

    def open(self, directory: Place, name: str, flags: OpenFlags) -> Content:
        """As `DirectoryNode.open`; the caller is a holder of what is returned."""
        if OpenFlags.CREATE not in flags:
            entry = self.lookup(directory, name)
        elif (found := self._find(directory, name)) is not None:
            entry = found
        else:
            return self.create(directory, name)
        if OpenFlags.EXCLUSIVE in flags:
            raise AlreadyExists("the name is taken")
        _require_file(entry)
        content = self._hold(directory, entry, writable=flags.writes)
        if OpenFlags.TRUNCATE in flags:
            try:
                self.truncate(content, 0)
            except BaseException:
                self.release(content)
                raise
        return content

    def create(self, directory: Place, name: str, *, executable: bool = False) -> Content:
        """As `DirectoryNode.create`; the caller is a holder of what is returned."""
        path = self._free(directory, name)
        if executable:
            self._require_writable(directory.path, _WRITABLE_PERMISSIONS)
        with self.fs.openbin(path, "x") as file:
            file.write(b"")
        self._check_made(directory, name, lambda: self.fs.remove(path))
        self.places.added(directory)
        content = self._hold(directory, self.lookup(directory, name), writable=True)
        if executable:
            self.set_attributes(content.place, Attributes(executable=True))
        return content

    def _free(self, directory: Place, name: str) -> str:
        """The path of a name that is free; raises `AlreadyExists`."""
        if self._find(directory, name) is not None:
            raise AlreadyExists("the name is taken")
        return directory.path_of(name)

    def _hold(self, directory: Place, entry: Entry, *, writable: bool) -> Content:
        place = self._place(directory, entry)
        content = place.content or Content(self.fs, place, self.traits)
        content.open(writable=writable)
        place.content = content
        content.holders += 1
        self._open.add(content)
        return content

    def release(self, content: Content) -> None:
        """One holder less; the last one closes the file.  Raises what was written and is lost."""
        content.holders -= 1
        if content.holders:
            return
        self._open.discard(content)
        content.place.content = None
        content.settle()
        content.check()

    def mkdir(self, directory: Place, name: str) -> Place:
        """As `DirectoryNode.mkdir`."""
        path = self._free(directory, name)
        self.fs.makedir(path)
        self._check_made(directory, name, lambda: self.fs.removedir(path))
        self.places.added(directory)
        return self.sub(directory, name)

    # Changing entries

    def remove(self, directory: Place, name: str, expect: Expect) -> None:
        """As `DirectoryNode.remove`."""
        entry = self.lookup(directory, name)
        path = directory.path_of(name)
        if entry.stat.kind is NodeKind.DIRECTORY:
            if expect is Expect.NOT_DIRECTORY:
                raise IsDirectory("a directory")
            self.fs.removedir(path)
        else:
            if expect is Expect.DIRECTORY:
                raise NotDirectory("no directory")
            self._settle_below(path)
            self.fs.remove(path)
        self.places.removed(directory, name, entry.stat)

    def rename(
        self, source: Place, name: str, target: Place, new_name: str, mode: RenameMode
    ) -> None:
        """As `DirectoryNode.rename`."""
        moved = self.lookup(source, name)
        exchanges = mode is RenameMode.EXCHANGE
        other = (self.lookup if exchanges else self._find)(target, new_name)
        if mode is RenameMode.NO_REPLACE and other is not None:
            raise AlreadyExists("the name is taken")
        if source is target and name == new_name:
            return
        path, goal = source.path_of(name), target.path_of(new_name)
        if f"{goal}/".startswith(f"{path}/") or (exchanges and f"{path}/".startswith(f"{goal}/")):
            raise InvalidArgument("a directory does not move into itself")
        if exchanges:
            raise Unsupported("PyFilesystem2 does not exchange entries")
        if other is not None:
            self._check_replaces(moved, other, goal)
        self._settle_below(path)
        self._settle_below(goal)
        if self._move(path, goal, moved.stat.kind, replaces=other is not None):
            replaced = other.stat if other is not None else None
            self.places.moved(source, name, target, new_name, replaced)

    def _check_replaces(self, moved: Entry, other: Entry, goal: str) -> None:
        """Raises what forbids `moved` to replace `other`."""
        if moved.stat.kind is not NodeKind.DIRECTORY:
            if other.stat.kind is NodeKind.DIRECTORY:
                raise IsDirectory("a directory is replaced by a directory only")
        elif other.stat.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("a directory replaces a directory only")
        elif not self.fs.isempty(goal):
            raise NotEmpty("the directory has entries")

    def _move(self, path: str, goal: str, kind: NodeKind, *, replaces: bool) -> bool:
        """Moves by the best means there is; False where both were one node already."""
        if self.traits.renames:
            return _rename_on_host(self.fs.getsyspath(path), self.fs.getsyspath(goal))
        if kind is NodeKind.DIRECTORY:
            if self.traits.copies_directories:
                raise Unsupported("this filesystem has no renaming of directories")
            self.fs.movedir(path, goal, create=True)
        elif kind is NodeKind.FILE:
            self._move_file(path, goal, replaces=replaces)
        else:
            raise Unsupported("this filesystem has no renaming of links and special nodes")
        return True

    def _move_file(self, path: str, goal: str, *, replaces: bool) -> None:
        copies = self.traits.copies_files
        try:
            self.fs.move(path, goal, overwrite=True, preserve_time=copies)
        except Exception:
            if copies and not replaces:
                # Half a copy, or a whole one of what could not be removed.
                with suppress(StorageError), fs_errors("undo"):
                    if self.fs.exists(path):
                        self.fs.remove(goal)
            raise

    # Content and attributes

    def append(self, content: Content, data: bytes | memoryview) -> int:
        """As `FileNode.append`."""
        offset = content.size()
        self.write(content, offset, data)
        return offset

    def write(self, content: Content, offset: int, data: bytes | memoryview) -> None:
        """As `FileNode.write`."""
        if offset >= 0 and not len(data):
            return
        try:
            content.write(offset, data)
        finally:
            self.places.changed(content.place.id)

    def truncate(self, content: Content, size: int) -> None:
        """As `FileNode.truncate`."""
        try:
            content.truncate(size)
        finally:
            self.places.changed(content.place.id)

    def set_entry_attributes(self, directory: Place, name: str, change: Attributes) -> None:
        """As `DirectoryNode.set_attributes` of an entry."""
        entry = self.lookup(directory, name)
        if change != Attributes():
            self._set(directory.path_of(name), entry.stat, change)

    def set_attributes(self, place: Place, change: Attributes) -> None:
        """As `set_attributes` of a node that is held."""
        if change != Attributes():
            self._set(place.path, self.stat(place), change)

    def _set(self, path: str, stat: Stat, change: Attributes) -> None:
        _check_attributes(stat.kind, change)
        info: dict[str, dict[str, object]] = {}
        if change.modified is not None:
            details = self._require_writable(path, _WRITABLE_TIME)
            info["details"] = {"modified": change.modified / 1e9}
            if details.get("accessed") is not None:
                info["details"]["accessed"] = details["accessed"]
        if change.executable is not None:
            access = self._require_writable(path, _WRITABLE_PERMISSIONS)
            info["access"] = {"permissions": _with_executable(access, change.executable)}
        try:
            with fs_errors("set attributes"):
                self.fs.setinfo(path, info)
        except NotFound:
            if path == "/":  # MemoryFS says that it sets those of its root, and does not find it
                raise Unsupported("this filesystem sets nothing of its root") from None
            raise
        self.places.changed(stat.node_id)

    def _require_writable(self, path: str, what: tuple[str, str]) -> dict[str, object]:
        """The namespace that holds the attribute `what`; raises `Unsupported`."""
        namespace, key = what
        if self.traits.on_host and what == _WRITABLE_PERMISSIONS:
            # As it says of each itself, when it has looked up the names of its user and group.
            raise Unsupported(f"this filesystem does not set {key} here")
        info = self.fs.getinfo(path, namespaces=[namespace])
        if not info.is_writeable(namespace, key):
            raise Unsupported(f"this filesystem does not set {key} here")
        return dict(info.raw[namespace])

    # What is open

    def _settle_entries(self, directory: Place, name: str | None = None) -> None:
        """Finishes writing to the open files of `directory`, or to the one called `name`."""
        if self.traits.lasting:
            return
        for content in self._open:
            place = content.place
            if place.parent is directory and not place.gone and name in (None, place.name):
                content.settle_writes()

    def _settle_below(self, path: str) -> None:
        """Closes what is open at `path` and below, for its path may lead elsewhere soon."""
        if self.traits.lasting:
            return
        for content in self._open:
            if not content.place.gone and f"{content.place.path}/".startswith(f"{path}/"):
                content.settle()

    def usage(self) -> Usage:
        """As `Volume.usage`, of the host's filesystem where there is one; else nothing is known."""
        if not self.traits.on_host:
            return Usage()
        root = self._open_root()
        try:
            return hostops.usage_of(root)
        finally:
            os.close(root)

    def sync(self) -> None:
        """As `Volume.sync`."""
        for content in self._open:
            content.sync()
        if self.traits.on_host and not self.traits.read_only:
            root = self._open_root()
            try:
                sync_filesystem(root)
            finally:
                os.close(root)

    def _open_root(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(self.fs.getsyspath("/"), flags)

    def close(self) -> None:
        """Closes everything, the filesystem last, and raises the first thing that failed then."""
        failures: list[StorageError] = []

        def attempt(call: Callable[[], None]) -> None:
            try:
                with fs_errors("close"):
                    call()
            except StorageError as error:
                failures.append(error)

        attempt(self.sync)
        for content in self._open:
            attempt(content.settle)
            attempt(content.check)
        self._open.clear()
        attempt(self.fs.close)
        if failures:
            raise failures[0]


def _require_file(entry: Entry) -> None:
    """Raises what opening an entry that is no file raises."""
    if entry.stat.kind is NodeKind.DIRECTORY:
        raise IsDirectory("this is a directory")
    if entry.stat.kind is NodeKind.SYMLINK:
        raise Unsupported("a symbolic link is data; resolve it with lookup")
    if entry.stat.kind is not NodeKind.FILE:
        raise Unsupported("a FIFO, socket or device is not opened")


def _rename_on_host(path: str, goal: str) -> bool:
    """Renames; False where both are names of one file, which the host leaves as they are."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.lstat(goal)):
            return False
    os.rename(path, goal)  # noqa: PTH104 - a path of the host by its text
    return True


def _check_attributes(kind: NodeKind, change: Attributes) -> None:
    """Raises what no filesystem records."""
    if change.created is not None:
        raise Unsupported("PyFilesystem2 does not set the time of creation")
    if change.executable is not None and kind is not NodeKind.FILE:
        raise Unsupported("only a file is executable or not")
    if kind not in (NodeKind.FILE, NodeKind.DIRECTORY):
        raise Unsupported("attributes of a link or special node are not set")
    if change.modified is not None and not check_time(change.modified):
        raise InvalidArgument("a time is a signed 64-bit number of nanoseconds")


def _with_executable(access: dict[str, object], executable: bool) -> list[str]:
    """The permissions with those to execute, for all who may read, or without."""
    told = access.get("permissions")
    names = {str(name) for name in told} if isinstance(told, list | tuple) else set()
    names -= {"u_x", "g_x", "o_x"}
    if executable:
        names |= {"u_x"} | {f"{who}_x" for who in "ugo" if f"{who}_r" in names}
    return sorted(names)
