"""What the builders of archives have in common: a stream that counts, and names as bytes.

Invariants: a file's content is as long as it was said to be; only errors of the `StorageError`
family leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from capstore.images.builder import Path
from capstore.schema.errors import InvalidArgument, InvalidName, Unsupported, from_os_error
from capstore.schema.names import check_name, to_bytes
from capstore.schema.nodes import Buffer


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "writing the archive") from None


class Output:
    """Bytes to `stream`, and the content of one file at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left: int | None = None
        self._padding = 0
        self.offset = 0

    def write(self, data: Buffer) -> None:
        """Structure, between files.  Raises `InvalidArgument` within one, and what a disk says."""
        if self._left is not None:
            raise InvalidArgument("the file before is not whole")
        self._write(data)

    def begin(self, size: int, padding: int) -> None:
        """From now on `content` gives `size` bytes, which `padding` zeros follow."""
        if size < 0:
            raise InvalidArgument("a size is not negative")
        self._left, self._padding = size, padding

    def content(self, data: Buffer) -> None:
        """The next bytes of the file."""
        size = memoryview(data).nbytes
        if self._left is None or size > self._left:
            raise InvalidArgument("the file is longer than it was to be")
        self._write(data)
        self._left -= size

    def end(self) -> None:
        """The file is whole."""
        if self._left != 0:
            raise InvalidArgument("the file is shorter than it was to be")
        self._left = None
        self._write(bytes(self._padding))

    def patch(self, offset: int, data: bytes) -> None:
        """Replaces what was written at `offset`.  Raises `Unsupported` if that cannot be."""
        with _output_errors():
            if not self._stream.seekable():
                raise Unsupported("hard links in a cpio archive need an output that can be sought")
            end = self._stream.tell()
            self._stream.seek(end - self.offset + offset)
            self._stream.write(data)
            self._stream.seek(end)

    def flush(self) -> None:
        """Hands everything to what is below the stream."""
        with _output_errors():
            self._stream.flush()

    def _write(self, data: Buffer) -> None:
        with _output_errors():
            self._stream.write(data)
        self.offset += memoryview(data).nbytes


def stored_bytes(text: str, path: Path) -> bytes:
    """The bytes that `text` stands for; raises `Unsupported`, naming `path`'s last part."""
    try:
        return to_bytes(text)
    except InvalidName as error:
        name = path[-1] if path else ""
        raise Unsupported(f'"{name}" cannot be stored: {error.message}') from None


def stored_path(path: Path) -> bytes:
    """The stored path, without a slash at either end; raises as `stored_bytes`, `InvalidName`."""
    return b"/".join(stored_bytes(check_name(name), path) for name in path)
