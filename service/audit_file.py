"""Where the lines of an audit go: a file that is rotated, or a stream.

Invariants: only whole lines are counted as written, and a file is cut off behind the last of them
when a write fails in the middle.  A file never gets longer than its bound, unless a single line is.
All of this blocks, and is called by one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from capstore.schema.errors import from_os_error

__all__ = ["AuditFile", "AuditStream"]

_PIECE_BYTES: Final = 64 * 1024


def _pieces(lines: Iterable[bytes], size_max: int) -> Iterator[list[bytes]]:
    """Lines in runs of so many bytes at most, one at least."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > size_max:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece


def _write_out(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class AuditStream:
    """Lines go to an open descriptor, stderr for one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        written = 0
        for piece in _pieces(lines, _PIECE_BYTES):
            try:
                _write_out(self._descriptor, b"".join(piece))
            except OSError as error:
                return written, error
            written += len(piece)
        return written, None

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class AuditFile:
    """Lines go to the file `path`, with mode 0600.

    When it would get longer than `size_max` bytes it is moved to ``path.1``, and what was that to
    ``path.2``, up to `keep` of them; 0 is no bound, for where something else rotates it.  The
    folder of `path` is held open, so a new file is made there wherever that is moved.
    """

    def __init__(self, path: Path, *, size_max: int, keep: int) -> None:
        """Opens the file, blocking.  Raises what stands for an OSError."""
        self._size_max = size_max
        try:
            self._file = _RotatedFile(path.absolute(), size_max, keep)
        except OSError as error:
            raise from_os_error(error, f'the audit file "{path.name}"') from error

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        written = 0
        for piece in _pieces(lines, min(_PIECE_BYTES, self._size_max or _PIECE_BYTES)):
            try:
                self._file.append(b"".join(piece))
            except OSError as error:
                return written, error
            written += len(piece)
        return written, None

    def reopen(self) -> None:
        self._file.reopen()

    def close(self) -> None:
        self._file.close()


class _RotatedFile(RotatingFileHandler):
    """The standard library's rotation, around writes that say when they fail.

    Its own `emit` swallows errors, and keeps what could not be written in a buffer that is written
    in part some time later.
    """

    def __init__(self, path: Path, size_max: int, keep: int) -> None:
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            super().__init__(path, maxBytes=size_max, backupCount=max(1, keep), encoding="utf-8")
        except BaseException:
            os.close(self._folder)
            raise

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        name = os.path.basename(self.baseFilename)  # noqa: PTH119 - a string of the library's
        descriptor = os.open(name, flags, 0o600, dir_fd=self._folder)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def append(self, data: bytes) -> None:
        """All of `data`, or nothing where the file can be cut.  Raises OSError."""
        descriptor, size = self._opened()
        if self.maxBytes and size and size + len(data) > self.maxBytes:
            self.doRollover()
            descriptor, size = self._opened()
        try:
            _write_out(descriptor, data)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise

    def _opened(self) -> tuple[int, int]:
        # As the library has it: a rotation that failed leaves None.
        if self.stream is None:
            self.stream = self._open()
        descriptor = self.stream.fileno()
        return descriptor, os.fstat(descriptor).st_size

    def reopen(self) -> None:
        """Opens anew what has the name now.  Raises OSError."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()
        self.stream = self._open()

    def close(self) -> None:
        super().close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
