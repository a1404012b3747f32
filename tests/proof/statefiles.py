"""A folder as a crash may leave it: what was done to files in it, and every state after a cut.

The model is hostile, within POSIX.  Of a file's content, what was not flushed may be there in any
part, torn at 512 bytes (`capstore.images.faults_states`); of the names in the folder, any of the
changes since its last flush may be there, each whole, in their order.  What was flushed stays.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstore.images.faults_log import Flush, Operation, Write, apply_log
from capstore.images.faults_states import crash_states

PENDING_MAX = 6


@dataclass(frozen=True)
class Content:
    """Something was done to the content of a file."""

    file: int
    operation: Operation


@dataclass(frozen=True)
class Named:
    """A file got a name, which another one may have had, and lost the one it had."""

    file: int
    name: str
    before: str = ""


@dataclass(frozen=True)
class Unnamed:
    """A name was removed."""

    name: str


@dataclass(frozen=True)
class FolderFlush:
    """The names in the folder are durable."""


Done = Content | Named | Unnamed | FolderFlush
Files = dict[str, bytes]


class FolderLog:
    """Records what `capstore.images.durable` does in one folder, in the place of its `os`."""

    def __init__(self, folder: Path, *, file_flushes: bool = True, folder_flushes: bool = True):
        self.folder = folder
        self.done: list[Done] = []
        self._file_flushes, self._folder_flushes = file_flushes, folder_flushes
        self._inode = folder.stat().st_ino
        self._files: dict[int, int] = {}  # by descriptor
        self._names: dict[str, int] = {}
        self._numbers = itertools.count()

    # What stands for the module `os` in `durable`.

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and dir_fd is not None and self._is_folder(dir_fd):
            number = self._files[descriptor] = next(self._numbers)
            self._names[path] = number
            self.done.append(Named(number, path))
        return descriptor

    def _is_folder(self, descriptor: int) -> bool:
        return os.fstat(descriptor).st_ino == self._inode

    def fdopen(self, descriptor: int, mode: str) -> Any:
        return _File(self, descriptor) if descriptor in self._files else os.fdopen(descriptor, mode)

    def fsync(self, descriptor: int) -> None:
        if descriptor in self._files:
            if self._file_flushes:
                self.done.append(Content(self._files[descriptor], Flush()))
        elif self._is_folder(descriptor) and self._folder_flushes:
            self.done.append(FolderFlush())

    def close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        os.close(descriptor)

    def written(self, descriptor: int, offset: int, data: bytes) -> None:
        self.done.append(Content(self._files[descriptor], Write(offset, data)))

    def rename(self, before: str, after: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.rename(before, after, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if self._is_folder(dst_dir_fd):
            self._names[after] = number = self._names.pop(before)
            self.done.append(Named(number, after, before))

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)
        if self._names.pop(name, None) is not None:
            self.done.append(Unnamed(name))


class _File(io.RawIOBase):
    """A new file whose writes are recorded."""

    def __init__(self, log: FolderLog, descriptor: int) -> None:
        super().__init__()
        self._log, self._descriptor, self._offset = log, descriptor, 0

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        self._log.written(self._descriptor, self._offset, bytes(data))
        self._offset += os.write(self._descriptor, data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._log.close(self._descriptor)
        super().close()


def states_after(done: Sequence[Done]) -> Iterator[Files]:
    """What a crash may leave when all of `done` has been asked for; some more than once."""
    names: list[Named | Unnamed] = []
    durable_names = 0
    contents: dict[int, list[Operation]] = {}
    for each in done:
        match each:
            case Content(file, operation):
                contents.setdefault(file, []).append(operation)
            case FolderFlush():
                durable_names = len(names)
            case _:
                names.append(each)
    # What is long past is taken to be there: it is for a flush that is missing that many are open.
    durable_names = max(durable_names, len(names) - PENDING_MAX)
    settled, pending = names[:durable_names], names[durable_names:]
    for kept in itertools.product((True, False), repeat=len(pending)):
        entries: dict[str, int] = {}
        for change in itertools.chain(settled, itertools.compress(pending, kept)):
            _apply(entries, change)
        choices = [_contents(contents.get(file, [])) for file in entries.values()]
        for chosen in itertools.product(*choices):
            yield dict(zip(entries, chosen, strict=True))


def _apply(entries: dict[str, int], change: Named | Unnamed) -> None:
    if isinstance(change, Unnamed):
        entries.pop(change.name, None)
    else:
        entries[change.name] = change.file
        entries.pop(change.before, None)


def _contents(log: Sequence[Operation]) -> list[bytes]:
    flushed = max((index + 1 for index, each in enumerate(log) if each == Flush()), default=0)
    settled = apply_log(log[:flushed], b"")
    pending = log[flushed:]
    if not pending:
        return [settled]
    return [settled, *(state.image for state in crash_states(pending, settled, samples=16))]
