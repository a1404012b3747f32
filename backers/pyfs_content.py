"""The content of an open file of a PyFilesystem2 filesystem.

Invariants:

* All who have a file open share one `Content`, and it holds at most one open file of the
  filesystem; so they see one another's changes, whatever that filesystem buffers.
* Where open files do not last (`Traits.lasting`), what was written is finished (`settle`) before
  anything else looks at the file; the file is opened again, by its path, when it is needed next.
  A failure to finish is kept and told to the next who writes, syncs or closes.
* A file that ends before its recorded size is an error and never a short read.
* Everything is used by one thread at a time, and may block.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, Final

from fs.base import FS

from capstore.backers.node import NodeKind
from capstore.backers.pyfs_errors import fs_errors
from capstore.backers.pyfs_info import Look, Traits
from capstore.backers.pyfs_places import Place
from capstore.schema.errors import (
    InvalidArgument,
    IsDirectory,
    StorageError,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import MIB, PYFS_GAP_BYTES_MAX

_FILE_BYTES_MAX: Final = (1 << 63) - 1
_CHUNK_BYTES: Final = 1 * MIB
_NOWHERE: Final = -1


class Content:
    """What the open file at `place` holds; `holders` counts who has it open."""

    def __init__(self, filesystem: FS, place: Place, traits: Traits) -> None:
        self._fs = filesystem
        self._traits = traits
        self.place = place
        self.holders = 0
        self._file: BinaryIO | None = None
        self._mode = ""
        self._seeks = True
        # Where the open file is; what the size is while the filesystem may not know it yet.
        self._at = 0
        self._unsettled_size: int | None = None
        self._failed: StorageError | None = None

    def open(self, *, writable: bool) -> None:
        """Opens the file at its place, so that what forbids it is told now."""
        if not writable:
            self._use("r")
        elif not self._traits.appends_only:
            self._use("r+")

    def _use(self, mode: str) -> BinaryIO:
        """The file, open at least for `mode`."""
        if self._file is not None and mode in (self._mode, self._mode[:1]):
            return self._file
        if not self._traits.lasting:
            self.settle()
        path = self.place.path
        file: BinaryIO = self._fs.openbin(path, mode, buffering=0)
        self.settle()
        self._file, self._mode, self._at = file, mode, 0
        self._seeks = bool(getattr(file, "seekable", lambda: False)())
        return file

    def settle(self) -> None:
        """Finishes what was written and closes the file until it is needed again."""
        file, self._file = self._file, None
        unsettled, self._unsettled_size = self._unsettled_size is not None, None
        if file is None:
            return
        try:
            with fs_errors("write"):
                file.close()
        except StorageError as error:
            if unsettled:
                self._failed = error

    def settle_writes(self) -> None:
        """Finishes what was written, if anything was."""
        if self._unsettled_size is not None:
            self.settle()

    def check(self) -> None:
        """Raises, once, why something that was written is lost."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def size(self) -> int:
        """The length in bytes."""
        if self._traits.lasting and self._file is not None:
            self._at = self._file.seek(0, os.SEEK_END)
            return self._at
        if self._unsettled_size is not None:
            return self._unsettled_size
        look = Look.of(self._fs.getinfo(self.place.path, namespaces=self._traits.namespaces))
        if look.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory has the name of the file now")
        return look.size

    # Reading

    def read(self, offset: int, view: memoryview) -> int:
        """As `FileNode.read_into`."""
        if offset < 0:
            raise InvalidArgument("a negative offset")
        self._use("r")
        if offset != self._at and (offset > _FILE_BYTES_MAX or offset >= self.size()):
            return 0
        got, again = 0, False
        while got < len(view):
            chunk = self._read_at(offset + got, len(view) - got)
            view[got : got + len(chunk)] = chunk
            got += len(chunk)
            if chunk:
                continue
            if self._traits.lasting or offset + got >= self.size():
                break
            if again:
                raise StorageIOError("read: the file ends before its size")
            again = True
            self.settle()  # a connection may have been lost, which some tell as the end
        return got

    def _read_at(self, offset: int, length: int) -> bytes:
        """Some bytes from `offset`, at most `length`; none at the end."""
        file = self._seek(self._use("r"), offset)
        if self._at != offset:
            return b""
        chunk: bytes | None = file.read(length)
        if chunk is None or len(chunk) > length:
            raise StorageIOError("read: not as many bytes as were asked for")
        self._at += len(chunk)
        return chunk

    def _seek(self, file: BinaryIO, offset: int) -> BinaryIO:
        """The file, open at `offset`, or at its end if that comes before."""
        if offset == self._at:
            return file
        if self._seeks:
            try:
                file.seek(offset)
            except (io.UnsupportedOperation, NotImplementedError):
                self._seeks = False
            else:
                self._at = offset
                return file
        if offset < self._at or self._at == _NOWHERE:
            mode = self._mode
            self.settle()
            file = self._use(mode)
        while self._at < offset:
            skipped = len(file.read(min(offset - self._at, _CHUNK_BYTES)))
            if not skipped:
                break
            self._at += skipped
        return file

    # Writing

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """As `FileNode.write`."""
        if offset < 0:
            raise InvalidArgument("a negative offset")
        self.check()
        size = self.size()
        self._check_growth(size, offset, offset + len(data))
        if self._traits.appends_only:
            self._append(size, offset, data)
            return
        file = self._use("r+")
        # What comes behind the end goes first: if there is no space for it, nothing was changed.
        split = min(max(size - offset, 0), len(data))
        try:
            self._fill(file, size, offset)
            self._put(file, offset + split, data[split:])
        except Exception:
            self._cut_back(file, size)
            raise
        self._put(file, offset, data[:split])
        self._wrote(file, max(size, offset + len(data)))

    def _check_growth(self, size: int, offset: int, end: int) -> None:
        if end > _FILE_BYTES_MAX:
            raise TooLarge("the file would be longer than a file may be")
        if offset - size > PYFS_GAP_BYTES_MAX:
            raise TooLarge(f"a gap has at most {PYFS_GAP_BYTES_MAX} bytes on this filesystem")

    def _append(self, size: int, offset: int, data: bytes | memoryview) -> None:
        """Writes behind the end, which is all that the filesystem does without harm."""
        if offset < size:
            raise Unsupported("this filesystem writes at the end of a file only")
        file = self._use("a")
        self._at = size
        try:
            self._fill(file, size, offset)
            self._put(file, offset, data)
        except Exception:
            self.settle()
            raise
        self._wrote(file, offset + len(data))

    def _fill(self, file: BinaryIO, size: int, offset: int) -> None:
        """Writes zeros from the end to `offset`."""
        while size < offset:
            length = min(offset - size, _CHUNK_BYTES)
            self._put(file, size, bytes(length))
            size += length

    def _put(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data` at `offset`."""
        if offset != self._at and len(data):
            file.seek(offset)
            self._at = offset
        done = 0
        while done < len(data):
            part = bytes(data[done:])
            written: object = file.write(part)
            # Old-style files tell nothing, and write all.
            count = written if isinstance(written, int) else len(part)
            if not 0 < count <= len(part):
                raise StorageIOError("write: the filesystem takes no bytes")
            done += count
            self._at += count

    def _cut_back(self, file: BinaryIO, size: int) -> None:
        """Undoes what a write that failed wrote behind the end, as far as that can be done."""
        self._at = _NOWHERE
        try:
            with fs_errors("undo"):
                file.truncate(size)
        except StorageError:
            return

    def _wrote(self, file: BinaryIO, size: int) -> None:
        if self._traits.lasting:
            file.flush()
        else:
            self._unsettled_size = size

    def truncate(self, size: int) -> None:
        """As `FileNode.truncate`."""
        if size < 0:
            raise InvalidArgument("a negative size")
        now = self.size()
        if size >= now:
            self.write(size, b"")
            return
        self.check()
        if self._traits.appends_only:
            self._empty(size)
            return
        file = self._use("r+")
        file.truncate(size)
        self._at = _NOWHERE
        self._wrote(file, size)

    def _empty(self, size: int) -> None:
        if size:
            raise Unsupported("this filesystem cuts a file to nothing only")
        file = self._use("w")
        file.write(b"")
        self.settle()
        self.check()

    def sync(self) -> None:
        """As `FileNode.sync`."""
        if not self._traits.lasting:
            self.settle_writes()
        elif self._file is not None:
            self._file.flush()
            if self._traits.on_host:
                os.fsync(self._file.fileno())
        self.check()
