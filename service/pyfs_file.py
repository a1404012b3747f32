"""Files of a service as Python's file objects.

Invariants:

* Reading on where the last read ended keeps up to `WINDOW_REQUESTS` requests under way ahead of the
  reader; reading elsewhere asks for little and drops what was asked for ahead.
* What was read ahead is used for `FRESH_SECONDS` at most, and never after a change that was made
  through the same filesystem: a write that returned is seen by every read that begins after it.
* A write that returned was answered by the service; only Python's own buffer, which `flush`
  empties, stands before it.  In append mode every write goes to the end, wherever that is then.
* Python objects of other threads hold an open file by a `Kept` handle only (see `background`).
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import io
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from fs.mode import Mode

from capstore.backers.node import Buffer
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB, TRANSFER_BYTES_MAX, WINDOW_BYTES, WINDOW_REQUESTS
from capstore.service.background import Kept
from capstore.service.pyfs_errors import mapped
from capstore.service.remote import File
from capstore.service.transfer import Writer, read_chunks

T = TypeVar("T")

BUFFER_BYTES = WINDOW_BYTES
RANDOM_READ_BYTES = 64 * KIB
FRESH_SECONDS = 3.0


class Changes:
    """Counts what was changed through one filesystem."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@dataclass(slots=True)
class _Asked:
    """One read under way: what for, and when it was sent."""

    offset: int
    length: int
    promise: Any
    at: float


class OpenFile:
    """An open file on the loop, with what was read ahead of its reader.

    One caller at a time.
    """

    def __init__(self, file: File, changes: Changes, *, streaming: bool = False) -> None:
        self._file = file
        self._changes = changes
        self._seen = changes.count
        self._ahead: deque[_Asked] = deque()
        self._next = 0
        self._streaming = streaming
        self._depth = WINDOW_REQUESTS - 1 if streaming else 0
        self._spare = memoryview(b"")
        self._spare_at = 0.0

    async def read(self, offset: int, length: int) -> Buffer:
        """Some bytes from `offset`, at most `length`; none only at the end of the file."""
        if length <= 0:
            return b""
        self._drop_stale(offset)
        if not self._spare:
            self._ask(offset, length)
            await self._take()
        data, self._spare = self._spare[:length], self._spare[length:]
        self._next = offset + len(data)
        return data

    def _drop_stale(self, offset: int) -> None:
        """Drops what was read ahead if it is not from `offset` or not to be used any more."""
        now = asyncio.get_running_loop().time()
        if offset != self._next:
            self._depth = 0
        changed = self._seen != self._changes.count
        if changed or offset != self._next or now - self._spare_at > FRESH_SECONDS:
            self._spare = memoryview(b"")
        asked = self._ahead[0] if self._ahead else None
        if asked and (
            changed or asked.offset != offset + len(self._spare) or self._old(asked, now)
        ):
            self._ahead.clear()
        self._seen = self._changes.count

    def _old(self, asked: _Asked, now: float) -> bool:
        return not self._streaming and now - asked.at > FRESH_SECONDS

    def _ask(self, offset: int, length: int) -> None:
        """Sends as many reads as shall be under way, the first one from `offset`."""
        now = asyncio.get_running_loop().time()
        random = self._depth == 0 and offset != 0 and offset != self._next
        while len(self._ahead) <= self._depth:
            if self._ahead:
                offset = self._ahead[-1].offset + self._ahead[-1].length
            size = min(length, RANDOM_READ_BYTES) if random else WINDOW_BYTES
            promise = self._file.start_read(offset, size)
            self._ahead.append(_Asked(offset, size, promise, now))
        self._depth = min(2 * self._depth + 1, WINDOW_REQUESTS - 1)

    async def _take(self) -> None:
        """Waits for the first of the reads under way."""
        asked = self._ahead.popleft()
        data, eof = await asked.promise.data()
        if not data and not eof:
            raise Corrupt("the service answers a read with nothing")
        if eof or len(data) < asked.length:
            # What was asked for behind it is behind a gap, or behind the end.
            self._ahead.clear()
        self._spare, self._spare_at = memoryview(data), asked.at

    async def read_all(self, offset: int) -> bytes:
        """Everything from `offset` on."""
        self._ahead.clear()
        self._spare = memoryview(b"")
        data, eof = await self._file.start_read(offset, TRANSFER_BYTES_MAX).data()
        if eof:
            return data
        return b"".join(
            [data, *[piece async for piece in read_chunks(self._file, offset + len(data))]]
        )

    async def write(self, offset: int, data: Buffer) -> int:
        """Writes all of `data`; returns where it ends."""
        self._changes.count += 1
        writer = Writer(self._file, offset)
        await writer.write(data)
        await writer.finish()
        self._changes.count += 1
        return writer.offset

    async def append(self, data: Buffer) -> int:
        """Writes all of `data` at the end of the file; returns where it ends."""
        self._changes.count += 1
        view, end = memoryview(data), 0
        for start in range(0, len(view), TRANSFER_BYTES_MAX):
            piece = view[start : start + TRANSFER_BYTES_MAX]
            end = await self._file.append(piece) + len(piece)
        self._changes.count += 1
        return end

    async def truncate(self, size: int) -> None:
        """Cuts or extends the file."""
        self._changes.count += 1
        await self._file.truncate(size)
        self._changes.count += 1

    async def size(self) -> int:
        """The length of the file now."""
        return (await self._file.stat()).size


class Caller(Protocol):
    """What a file object needs of the filesystem that opened it."""

    def call(self, operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs `operation` on the loop."""

    def leave(self, user: int) -> None:
        """Says that the connection is not needed any longer by `user`; never waits."""


class RemoteFile(io.RawIOBase):
    """An unbuffered file object; thread-safe, as each call holds its lock.

    It keeps the connection: closing the filesystem leaves open files usable.
    """

    def __init__(
        self,
        caller: Caller,
        user: int,
        file: Kept[OpenFile],
        path: str,
        mode: Mode,
        *,
        position: int,
    ) -> None:
        super().__init__()
        self._caller = caller
        self._user = user
        self._file = file
        self._mode = mode
        self._position = position
        self._lock = threading.RLock()
        self.name = path
        self.mode = mode.to_platform_bin()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position}"
        return f"<RemoteFile {self.name!r} {self.mode} {state}>"

    def _call(self, operation: Callable[[OpenFile], Coroutine[Any, Any, T]]) -> T:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        kept = self._file
        with mapped(self.name):
            return self._caller.call(lambda: operation(kept.value))

    def readable(self) -> bool:
        return bool(self._mode.reading)

    def writable(self) -> bool:
        return bool(self._mode.writing)

    def seekable(self) -> bool:
        return True

    def _check(self, able: bool, what: str) -> None:
        if not able:
            raise io.UnsupportedOperation(f"not {what}")

    def readinto(self, buffer: Any) -> int:
        self._check(self.readable(), "readable")
        view = memoryview(buffer).cast("B")
        with self._lock:
            data = self._call(lambda file: file.read(self._position, len(view)))
            view[: len(data)] = data
            self._position += len(data)
            return len(data)

    def readall(self) -> bytes:
        self._check(self.readable(), "readable")
        with self._lock:
            data = self._call(lambda file: file.read_all(self._position))
            self._position += len(data)
            return data

    def write(self, data: Any) -> int:
        self._check(self.writable(), "writable")
        view = memoryview(data).cast("B")
        if not view:
            return 0
        with self._lock:
            if self._mode.appending:
                self._position = self._call(lambda file: file.append(view))
            else:
                self._position = self._call(lambda file: file.write(self._position, view))
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._lock:
            if whence == os.SEEK_SET:
                position = offset
            elif whence == os.SEEK_CUR:
                position = self._position + offset
            elif whence == os.SEEK_END:
                position = self._call(lambda file: file.size()) + offset
            else:
                raise ValueError(f"whence value {whence} unsupported")
            if position < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self._position = position
            return position

    def tell(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._check(self.writable(), "writable")
        with self._lock:
            size = self._position if size is None else size
            self._call(lambda file: file.truncate(size))
            return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.release()
            self._caller.leave(self._user)


def buffered(raw: RemoteFile, mode: Mode, buffering: int) -> BinaryIO:
    """`raw` behind the buffer that `buffering` asks for, as with `open`; 0 is none."""
    if buffering == 0:
        return cast("BinaryIO", raw)
    size = buffering if buffering > 1 else BUFFER_BYTES
    stream: io.BufferedIOBase
    if mode.reading and mode.writing:
        stream = io.BufferedRandom(raw, size)
    elif mode.reading:
        stream = io.BufferedReader(raw, size)
    else:
        stream = io.BufferedWriter(raw, size)
    if mode.writing:
        close_at_exit(stream)
    return cast("BinaryIO", stream)


_unflushed: weakref.WeakSet[io.IOBase] = weakref.WeakSet()


def close_at_exit(stream: io.IOBase) -> None:
    """Sees to it that what `stream` buffers is written if the program ends with it open.

    Python does so for its own files when it clears the modules, when the loop has ended already.
    """
    _unflushed.add(stream)
    # What was registered last runs first: this must run before the loop is ended.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    # A text file before the buffer below it, which would be closed under it.
    for stream in sorted(_unflushed, key=lambda one: not isinstance(one, io.TextIOBase)):
        # As when Python closes files at exit: nobody is left to be told.
        with suppress(Exception):
            stream.close()
