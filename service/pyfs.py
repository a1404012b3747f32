"""A capability as a PyFilesystem2 filesystem, for any thread.

Invariants:

* Every method is one call into the background loop, where the connection lives (`background`);
  threads do not wait for each other.  What a method does there is in `pyfs_tree` and `pyfs_moves`.
* What fails raises ``fs.errors`` exceptions (`pyfs_errors`), whose ``__cause__`` is the
  `StorageError`; after `close` everything raises ``FilesystemClosed``.
* The token is in no ``str``, ``repr`` or message.

Symbolic links.  The service never follows one; this side does, within the root of this filesystem
only: an absolute target starts at its root, ``..`` does not leave it, and after 40 links a path
leads nowhere (`links`).  As with ``OSFS``, the last name of a path is followed by what opens,
reads, writes, lists or looks; ``getinfo`` and ``scandir`` add the namespace ``link`` with the
``target`` of what is a link.  ``remove`` and ``move`` mean the link itself.  ``walk`` shows a link
to a directory and does not descend into it; ``copydir``, ``movedir`` and ``removetree`` take what
they find in a directory as it is, links as links.

Besides ``basic``, ``details`` and ``link`` there is the namespace ``capstore``: ``node_id``,
``version``, ``provenance``, ``link_count`` and ``executable``.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

from fs import errors
from fs.base import FS
from fs.enums import ResourceType
from fs.info import Info
from fs.mode import Mode, validate_open_mode
from fs.path import abspath, normpath
from fs.subfs import SubFS

from capstore.backers.node import Attributes, Expect, NodeKind, OpenFlags, Provenance, RenameMode
from capstore.schema.errors import NotDirectory
from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.service import pyfs_moves as moves
from capstore.service.background import Kept
from capstore.service.links import Path
from capstore.service.pyfs_errors import IllegalDestination, mapped
from capstore.service.pyfs_file import OpenFile, RemoteFile, buffered, close_at_exit
from capstore.service.pyfs_session import Session
from capstore.service.pyfs_sub import CapstoreSubFS, CapstoreWalker
from capstore.service.pyfs_tree import Found, FoundPage, Listing, Tree
from capstore.service.transfer import Writer
from capstore.service.uri import CapabilityURI

T = TypeVar("T")
K = TypeVar("K")

_TYPES = {
    NodeKind.FILE: ResourceType.file,
    NodeKind.DIRECTORY: ResourceType.directory,
    NodeKind.SYMLINK: ResourceType.symlink,
    NodeKind.SPECIAL: ResourceType.unknown,
}


class CapstoreFS(FS):
    """The directory that a capability URI stands for.

    `timeout` bounds each operation, in seconds (``fs.errors.OperationTimeout``); None waits as long
    as the connection lasts.  `read_only` gives up the authority to change anything; `create` makes
    the directory of the URI's path if it is missing.

    Raises `InvalidArgument` for what is no URI, `Disconnected` where nobody answers, `Denied` for a
    token that gives nothing, `NotFound`, and ``fs.errors.DirectoryExpected`` for a file.
    """

    walker_class = CapstoreWalker
    subfs_class = CapstoreSubFS  # type: ignore[assignment] # declared as None in the base class

    def __init__(
        self,
        uri: str | CapabilityURI,
        *,
        timeout: float | None = None,
        read_only: bool = False,
        create: bool = False,
    ) -> None:
        # Before anything can fail: __del__ looks at it.
        self._session: Session | None = None
        super().__init__()
        self._uri = CapabilityURI.parse(uri) if isinstance(uri, str) else uri
        self._read_only: bool | None = True if read_only else None
        try:
            session = Session(self._uri, timeout=timeout, read_only=read_only, create=create)
        except NotDirectory as error:
            message = "what the capability URI stands for should be a directory"
            raise errors.DirectoryExpected("/", exc=error, msg=message) from error
        self._user = session.enter() or 0
        self._session = session

    def __repr__(self) -> str:
        # The URI's own repr does not show the token.
        return f"<CapstoreFS{' closed' if self.isclosed() else ''} of {self._uri!r}>"

    def __str__(self) -> str:
        return f"<capstorefs of {self._uri!r}>"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection, when the last file opened through it is closed; never waits."""
        session, self._session = self._session, None
        super().close()
        if session is not None:
            session.leave(self._user)

    # What every method begins with ---------------------------------------------------------------

    def validatepath(self, path: str) -> str:
        """As in the base class, without asking for metadata each time."""
        self.check()
        if not isinstance(path, str):
            raise TypeError(f"paths must be str (not {type(path).__name__})")
        if "\0" in path:
            raise errors.InvalidCharsInPath(path)
        return str(abspath(normpath(path)))

    def _names(self, path: str) -> Path:
        return tuple(name for name in self.validatepath(path).split("/") if name)

    def _file_names(self, path: str) -> Path:
        names = self._names(path)
        if not names:
            raise errors.FileExpected(path)
        return names

    def _run(self, operation: Callable[[Tree], Coroutine[Any, Any, T]]) -> T:
        session = self._session
        if session is None:
            raise errors.FilesystemClosed
        return session.run(operation)

    # Looking -------------------------------------------------------------------------------------

    def getmeta(self, namespace: str = "standard") -> dict[str, object]:
        """What the filesystem can do; whether it is read-only is asked once, when first needed."""
        if namespace != "standard":
            return {}
        meta: dict[str, object] = {
            "case_insensitive": False,
            "invalid_path_chars": "\0",
            "max_path_length": None,
            "max_sys_path_length": None,
            "network": True,
            "supports_mtime": True,
            # There are no system paths that os.rename could take.
            "supports_rename": False,
            "thread_safe": True,
            "unicode_paths": True,
        }
        if self._read_only is None and not self.isclosed():
            with mapped("/"):
                self._read_only = self._run(lambda tree: tree.is_read_only())
        if self._read_only is not None:
            meta["read_only"] = self._read_only
        return meta

    def getinfo(self, path: str, namespaces: Collection[str] | None = None) -> Info:
        names, wanted = self._names(path), namespaces or ()
        with mapped(path):
            return _info(
                self._run(lambda tree: tree.find(names, dangling="link" in wanted)), wanted
            )

    def islink(self, path: str) -> bool:
        names = self._names(path)
        with mapped(path):
            return bool(names) and (
                self._run(lambda tree: tree.entry(names)).stat.kind is NodeKind.SYMLINK
            )

    def listdir(self, path: str) -> list[str]:
        names = self._names(path)
        with mapped(path, directory=True):
            return self._run(lambda tree: tree.names(names))

    def isempty(self, path: str) -> bool:
        names = self._names(path)
        with mapped(path, directory=True):
            return self._run(lambda tree: tree.is_empty(names))

    def scandir(
        self,
        path: str,
        namespaces: Collection[str] | None = None,
        page: tuple[int, int] | None = None,
    ) -> Iterator[Info]:
        """The first entries are asked for at once, the others as they are needed."""
        names, wanted = self._names(path), namespaces or ()
        limit = page[1] if page and page[1] is not None else PAGE_ENTRIES_MAX
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        with mapped(path, directory=True):
            first, listing = self._keeping(lambda tree: tree.start_listing(names, limit))
        infos = (_info(found, wanted) for found in self._pages(path, first, listing))
        return itertools.islice(infos, *page) if page else infos

    def _pages(self, path: str, first: FoundPage, listing: Kept[Listing]) -> Iterator[Found]:
        found, more = first
        yield from found
        while more:
            with mapped(path, directory=True):
                found, more = self._run(lambda _: listing.value.next_page())
            yield from found
        listing.release()

    def _keeping(
        self, operation: Callable[[Tree], Coroutine[Any, Any, tuple[T, K]]]
    ) -> tuple[T, Kept[K]]:
        """As `_run`, for an operation whose second result has to stay on the loop."""
        session = self._session
        if session is None:
            raise errors.FilesystemClosed
        return session.run_keeping(operation)

    # Changing the tree ---------------------------------------------------------------------------

    def makedir(self, path: str, permissions: Any = None, recreate: bool = False) -> SubFS[FS]:
        """Makes a directory; there are no `permissions` to give it."""
        names = self._names(path)
        if names:
            try:
                with mapped(path, directory=True):
                    self._run(lambda tree: tree.make_directory(names))
                return self.subfs_class(self, path)
            except errors.DirectoryExists:
                if not recreate:
                    raise
        elif not recreate:
            raise errors.DirectoryExists(path)
        return self.opendir(path)

    def remove(self, path: str) -> None:
        names = self._file_names(path)
        with mapped(path):
            self._run(lambda tree: tree.remove(names, Expect.NOT_DIRECTORY))

    def removedir(self, path: str) -> None:
        names = self._names(path)
        if not names:
            raise errors.RemoveRootError(path)
        with mapped(path, directory=True):
            self._run(lambda tree: tree.remove(names, Expect.DIRECTORY))

    def removetree(self, dir_path: str) -> None:
        names = self._names(dir_path)
        with mapped(dir_path, directory=True):
            self._run(lambda tree: moves.remove_tree(tree, names))

    def cleartree(self, dir_path: str) -> None:
        """Removes all that is below a directory; not part of PyFilesystem2's interface."""
        names = self._names(dir_path)
        with mapped(dir_path, directory=True):
            self._run(lambda tree: moves.remove_tree(tree, names, itself=False))

    def symlink(self, path: str, target: str) -> None:
        """Makes `path` a symbolic link to `target`; not part of PyFilesystem2's interface."""
        names = self._file_names(path)
        with mapped(path):
            self._run(lambda tree: tree.symlink(names, target))

    def setinfo(self, path: str, info: Mapping[str, Mapping[str, object]]) -> None:
        """Sets ``modified`` of ``details``; as elsewhere, what cannot be set is passed over."""
        names = self._names(path)
        modified = cast("float | None", info.get("details", {}).get("modified"))
        change = Attributes(modified=None if modified is None else round(modified * 1e9))
        with mapped(path):
            self._run(lambda tree: tree.set_attributes(names, change))

    def move(
        self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False
    ) -> None:
        """Renames a file, which keeps its times in any case; onto itself it changes nothing."""
        source, target = self._file_names(src_path), self._names(dst_path)
        with mapped(src_path):
            entry = self._run(lambda tree: tree.entry(source))
        if entry.stat.kind is NodeKind.DIRECTORY:
            raise errors.FileExpected(src_path)
        if not target:
            raise (errors.FileExpected if overwrite else errors.DestinationExists)(dst_path)
        mode = RenameMode.REPLACE if overwrite else RenameMode.NO_REPLACE
        with mapped(dst_path, exists=errors.DestinationExists):
            self._run(lambda tree: moves.move_file(tree, source, target, mode))

    def copy(
        self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False
    ) -> None:
        """Copies a file and whether it is executable; onto itself it changes nothing."""
        source, target = self._file_names(src_path), self._names(dst_path)
        with mapped(src_path):
            ends = self._run(lambda tree: moves.look_at(tree, source, target))
        if ends.source.is_directory:
            raise errors.FileExpected(src_path)
        if ends.target_exists and not overwrite:
            raise errors.DestinationExists(dst_path)
        if ends.same:
            return
        if not target:
            raise errors.FileExpected(dst_path)
        with mapped(dst_path, exists=errors.DestinationExists):
            self._run(
                lambda tree: moves.copy(
                    tree,
                    source,
                    target,
                    ends.source.stat,
                    overwrite=overwrite,
                    keep_time=preserve_time,
                )
            )

    def copydir(
        self, src_path: str, dst_path: str, create: bool = False, preserve_time: bool = False
    ) -> None:
        """Copies what is in a directory; into its own subtree, without that."""
        self._on_directories(
            src_path,
            dst_path,
            create,
            lambda tree, source, target: moves.copy_directory(
                tree, source, target, keep_time=preserve_time
            ),
        )

    def movedir(
        self, src_path: str, dst_path: str, create: bool = False, preserve_time: bool = False
    ) -> None:
        """Moves a directory, with one rename if `dst_path` is to be made, else name by name.

        Times stay in any case.  Raises `IllegalDestination` for a directory into itself.
        """
        self._on_directories(src_path, dst_path, create, moves.move_directory)

    def _on_directories(
        self,
        src_path: str,
        dst_path: str,
        create: bool,
        operation: Callable[[Tree, Path, Path], Coroutine[Any, Any, None]],
    ) -> None:
        source, target = self._names(src_path), self._names(dst_path)
        with mapped(src_path, directory=True):
            ends = self._run(lambda tree: moves.look_at_directories(tree, source, target))
        if not ends.target_exists and not create:
            raise errors.ResourceNotFound(dst_path)
        if operation is moves.move_directory and ends.target_is_below:
            raise IllegalDestination(dst_path)
        with mapped(dst_path, directory=True):
            self._run(lambda tree: operation(tree, source, target))

    # Content -------------------------------------------------------------------------------------

    def readbytes(self, path: str) -> bytes:
        names = self._file_names(path)
        with mapped(path):
            return self._run(lambda tree: tree.read(names))

    def readtext(
        self,
        path: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str = "",
    ) -> str:
        data = io.BytesIO(self.readbytes(path))
        return io.TextIOWrapper(data, encoding or "utf-8", errors, newline).read()

    def writebytes(self, path: str, contents: bytes) -> None:
        if not isinstance(contents, bytes):
            raise TypeError("contents must be bytes")
        self._write(path, contents)

    def _write(self, path: str, contents: bytes) -> None:
        names = self._file_names(path)

        async def write(tree: Tree) -> None:
            await tree.write(names, contents)

        with mapped(path):
            self._run(write)

    def writetext(
        self,
        path: str,
        contents: str,
        encoding: str = "utf-8",
        errors: str | None = None,
        newline: str = "",
    ) -> None:
        if not isinstance(contents, str):
            raise TypeError("contents must be unicode")
        data = io.BytesIO()
        text = io.TextIOWrapper(data, encoding, errors, newline)
        text.write(contents)
        text.flush()
        self._write(path, data.getvalue())

    def create(self, path: str, wipe: bool = False) -> bool:
        names = self._names(path)
        if not names and not wipe:
            return False
        names = self._file_names(path)
        how = OpenFlags.TRUNCATE if wipe else OpenFlags.EXCLUSIVE

        async def create(tree: Tree) -> None:
            await tree.open(names, OpenFlags.WRITE | OpenFlags.CREATE | how, at_end=False)

        try:
            with mapped(path):
                self._run(create)
        except errors.FileExists:
            return False
        return True

    def download(
        self, path: str, file: BinaryIO, chunk_size: int | None = None, **options: Any
    ) -> None:
        """Writes the content of a file to `file`, in pieces of the size that suits the service."""
        names = self._file_names(path)
        with mapped(path):
            data, kept = self._keeping(lambda tree: tree.start_reading(names))
        offset = 0
        while data:
            file.write(data)
            offset += len(data)
            with mapped(path):
                data = self._run(partial(_read_on, kept, offset))
        kept.release()

    def upload(
        self, path: str, file: BinaryIO, chunk_size: int | None = None, **options: Any
    ) -> None:
        """Makes what `file` holds, from its position on, the content of a file."""
        names = self._file_names(path)
        chunk = _read_up_to(file, TRANSFER_BYTES_MAX, chunk_size)
        if len(chunk) < TRANSFER_BYTES_MAX:
            self._write(path, chunk)
            return
        with mapped(path):
            _, writer = self._keeping(partial(_start_writing, names))
        while chunk:
            with mapped(path):
                self._run(partial(_write_on, writer, chunk))
            chunk = _read_up_to(file, TRANSFER_BYTES_MAX, chunk_size)
        with mapped(path):
            self._run(partial(_finish, writer))
        writer.release()

    def openbin(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> BinaryIO:
        """A file object.  It stays usable when the filesystem is closed."""
        parsed = Mode(mode)
        parsed.validate_bin()
        names = self._file_names(path)
        with mapped(path):
            size, kept = self._keeping(
                lambda tree: tree.open(names, _flags(parsed), at_end=parsed.appending)
            )
        session = self._session
        user = session.enter() if session is not None else None
        if session is None or user is None:
            kept.release()
            raise errors.FilesystemClosed
        raw = RemoteFile(session, user, kept, path, parsed, position=size)
        return buffered(raw, parsed, buffering)

    def open(
        self,
        path: str,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str = "",
        line_buffering: bool = False,
        **options: Any,
    ) -> Any:
        validate_open_mode(mode)
        binary = "b" in mode
        # A text file needs a buffer below it; 1 asks for buffering by lines.
        below = buffering if binary or buffering > 1 else -1
        file = self.openbin(path, mode.replace("t", ""), below)
        if binary:
            return file
        text = io.TextIOWrapper(
            file, encoding or "utf-8", errors, newline, line_buffering or buffering == 1
        )
        text.mode = mode  # type: ignore[misc] # as io.open does
        if text.writable():
            close_at_exit(text)
        return text


def _flags(mode: Mode) -> OpenFlags:
    flags = OpenFlags.READ
    if mode.writing:
        flags |= OpenFlags.WRITE
    if mode.create:
        flags |= OpenFlags.CREATE
    if mode.exclusive:
        flags |= OpenFlags.EXCLUSIVE
    elif mode.truncate:
        flags |= OpenFlags.TRUNCATE
    return flags


def _info(found: Found, namespaces: Collection[str]) -> Info:
    stat = found.stat
    raw: dict[str, dict[str, object]] = {
        "basic": {"name": found.name, "is_dir": found.is_directory}
    }
    if "details" in namespaces:
        known = stat.provenance is not Provenance.UNKNOWN
        raw["details"] = {
            "_write": ["modified"],
            "accessed": None,
            "created": stat.created / 1e9 if known and stat.created else None,
            "metadata_changed": None,
            "modified": stat.modified / 1e9 if known else None,
            "size": stat.size,
            "type": int(_TYPES[stat.kind]),
        }
    if "link" in namespaces or found.target is not None:
        raw["link"] = {"target": found.target}
    if "capstore" in namespaces:
        raw["capstore"] = {
            "node_id": stat.node_id,
            "version": stat.version,
            "provenance": stat.provenance.value,
            "link_count": stat.link_count,
            "executable": stat.executable,
        }
    return Info(raw)


def _read_up_to(file: BinaryIO, size: int, chunk_size: int | None) -> bytes:
    """`size` bytes of `file`, or some more; fewer only at its end."""
    pieces: list[bytes] = []
    got = 0
    while got < size and (piece := file.read(chunk_size or size - got)):
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


async def _read_on(file: Kept[OpenFile | None], offset: int, _: Tree) -> bytes:
    return bytes(await file.value.read(offset, TRANSFER_BYTES_MAX)) if file.value else b""


async def _start_writing(names: Path, tree: Tree) -> tuple[None, Writer]:
    return None, (await tree.start_writing(names))[1]


async def _write_on(writer: Kept[Writer], data: bytes, tree: Tree) -> None:
    tree.changes.count += 1
    await writer.value.write(data)


async def _finish(writer: Kept[Writer], tree: Tree) -> None:
    await writer.value.finish()
    tree.changes.count += 1
