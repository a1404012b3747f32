"""A temporary file for decompressed bytes that cannot be had again at small cost.

Invariants: the file has no name, so it is gone with its descriptor, and with the process.  Zeros
take no space in it, and count for nothing; the rest takes no more than the limit, and no more than
half of what the disk had free when the file was made, unless the caller gave a limit.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from capstore.schema.errors import Closed, StorageIOError, TooLarge, from_os_error
from capstore.schema.limits import KIB

_HOLE_BYTES: Final = 64 * KIB
_ZEROS: Final = bytes(_HOLE_BYTES)


class Spool:
    """Bytes that are appended once and then read, by any number of threads."""

    def __init__(self, directory: str | None, bytes_max: int | None, default_max: int) -> None:
        """In `directory`, by default the system's for temporary files."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._default_max = default_max
        self._limit = 0
        self._fd = -1
        self._closed = False
        # Held in every use of the descriptor, so that it is not closed in one.
        self._lock = threading.Lock()
        # The length in bytes, and how many of them are no zeros.
        self.end = self.used = 0

    def append(self, data: bytes) -> None:
        """Raises `TooLarge` over the limit, `NoSpace`, `StorageIOError`, `Closed`."""
        view = memoryview(data)
        with self._opened() as fd:
            for at in range(0, len(view), _HOLE_BYTES):
                block = view[at : at + _HOLE_BYTES]
                if block != _ZEROS[: len(block)]:
                    self._write(fd, block)
                self.end += len(block)

    def _write(self, fd: int, block: memoryview) -> None:
        self.used += len(block)
        if self.used > self._limit:
            raise TooLarge("the decompressed data is more than the spool's limit")
        done = 0
        while done < len(block):
            done += os.pwrite(fd, block[done:], self.end + done)

    def finish(self) -> None:
        """Makes zeros at the end readable; raises as `append`."""
        with self._opened() as fd:
            os.ftruncate(fd, self.end)

    def cut(self, end: int, used: int) -> None:
        """Gives back the space of what was appended since `end` and `used` were these.

        Raises as `append`.
        """
        with self._opened() as fd:
            os.ftruncate(fd, end)
            self.end, self.used = end, used

    def read_into(self, offset: int, view: memoryview) -> None:
        """Raises `StorageIOError`, `Closed`."""
        got = 0
        with self._opened() as fd:
            while got < len(view):
                count = os.preadv(fd, [view[got:]], offset + got)
                if not count:
                    raise StorageIOError("the spool is cut off")
                got += count

    def prepare(self) -> None:
        """Makes the file now, so that no path is looked up later.  Raises as `append`."""
        with self._opened():
            pass

    def close(self) -> None:
        """Gives the space back."""
        with self._lock:
            self._closed = True
            fd, self._fd = self._fd, -1
        if fd >= 0:
            # Nobody needs what a failing close would have lost.
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The descriptor, made when it is first needed."""
        with self._lock:
            if self._closed:
                raise Closed("the device is closed")
            try:
                if self._fd < 0:
                    self._make()
                yield self._fd
            except OSError as error:
                raise from_os_error(error, "spool") from None

    def _make(self) -> None:
        # O_TMPFILE where the filesystem has it, else unlinked at once.
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            self._fd = os.dup(file.fileno())
        if self._bytes_max is None:
            disk = os.fstatvfs(self._fd)
            self._limit = min(self._default_max, disk.f_bavail * disk.f_frsize // 2)
        else:
            self._limit = self._bytes_max
