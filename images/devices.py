"""Where an image's bytes are: in a file, mapped, in memory, or in a part of another device.

Invariants: those of `capstore.images.device`.  Which device it is makes no difference to an
engine but for the `view` of those that have all of their bytes in the address space.
"""

from __future__ import annotations

from typing import TypeGuard

from capstore.images.device import BlockDevice
from capstore.images.devices_file import FileDevice, MappedDevice
from capstore.schema.errors import Closed, InvalidArgument, NoSpace, ReadOnly
from capstore.schema.nodes import Buffer

__all__ = ["FileDevice", "MappedDevice", "MemoryDevice", "WindowDevice"]


class MemoryDevice(BlockDevice):
    """Bytes in memory: a copy of `data`, or with `read_only` those of `data` itself.

    `size_max` bounds `resize`, in bytes.
    """

    def __init__(
        self, data: Buffer = b"", *, size_max: int | None = None, read_only: bool = False
    ) -> None:
        """Raises `InvalidArgument` for data longer than `size_max`."""
        self._content: bytearray | memoryview | None = (
            memoryview(data).cast("B").toreadonly() if read_only else bytearray(data)
        )
        self._size_max = size_max
        if size_max is not None and len(self._content) > size_max:
            raise InvalidArgument(f"longer than {size_max} bytes")

    def __repr__(self) -> str:
        content = self._content
        if content is None:
            return "MemoryDevice(closed)"
        return f"MemoryDevice({len(content)} bytes, {'rw' if _is_writable(content) else 'r'})"

    @property
    def view(self) -> memoryview:
        """The whole, read-only and without a copy; up to date until the next `resize`."""
        return memoryview(self._open_content()).toreadonly()

    def size(self) -> int:
        return len(self._open_content())

    def read_into(self, offset: int, view: memoryview) -> None:
        content = memoryview(self._open_content())
        self.check_range(offset, view.nbytes)
        view.cast("B")[:] = content[offset : offset + view.nbytes]

    def read_now(self, offset: int, view: memoryview) -> bool:
        self.read_into(offset, view)
        return True

    def write(self, offset: int, data: Buffer) -> None:
        content = self._writable_content()
        view = memoryview(data).cast("B")
        self.check_range(offset, len(view))
        memoryview(content)[offset : offset + len(view)] = view

    def resize(self, size: int) -> None:
        content = self._writable_content()
        if size < 0:
            raise InvalidArgument("a size is not negative")
        if self._size_max is not None and size > self._size_max:
            raise NoSpace(f"the device holds {self._size_max} bytes")
        try:
            self._content = _resized(content, size)
        except (MemoryError, OverflowError):
            raise NoSpace("more than the memory has") from None

    def flush(self) -> None:
        self._open_content()

    def close(self) -> None:
        self._content = None

    def _open_content(self) -> bytearray | memoryview:
        content = self._content
        if content is None:
            raise Closed("the device is closed")
        return content

    def _writable_content(self) -> bytearray:
        content = self._open_content()
        if not _is_writable(content):
            raise ReadOnly("the device is for reading only")
        return content


class WindowDevice(BlockDevice):
    """The `length` bytes at `start` of `device`, as a device of a fixed size.

    Nothing outside them is read or written through it.  `owns` says whether closing it closes
    `device`; a device that is cut off under its windows answers with its own errors.
    """

    def __init__(self, device: BlockDevice, start: int, length: int, *, owns: bool = False) -> None:
        """Raises `InvalidArgument` unless the window is inside the device."""
        device.check_range(start, length)
        self._device = device
        self._start = start
        self._length = length
        self._owns = owns
        self._closed = False

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"WindowDevice({self._length} bytes at {self._start} of {self._device!r}{closed})"

    def size(self) -> int:
        if self._closed:
            raise Closed("the device is closed")
        return self._length

    def read_into(self, offset: int, view: memoryview) -> None:
        self.check_range(offset, view.nbytes)
        self._device.read_into(self._start + offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        self.check_range(offset, view.nbytes)
        return self._device.read_now(self._start + offset, view)

    def write(self, offset: int, data: Buffer) -> None:
        self.check_range(offset, memoryview(data).nbytes)
        self._device.write(self._start + offset, data)

    def resize(self, size: int) -> None:
        self.size()
        if size < 0:
            raise InvalidArgument("a size is not negative")
        if size != self._length:
            raise NoSpace(f"the window has a fixed size of {self._length} bytes")

    def flush(self) -> None:
        self.size()
        self._device.flush()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._owns:
                self._device.close()


def _is_writable(content: bytearray | memoryview) -> TypeGuard[bytearray]:
    return isinstance(content, bytearray)


def _resized(content: bytearray, size: int) -> bytearray:
    """`content` cut or extended in place; a copy of it while somebody holds a view of it."""
    try:
        if size < len(content):
            del content[size:]
        else:
            content.extend(bytes(size - len(content)))
    except BufferError:
        return content[:size] + bytes(max(0, size - len(content)))
    return content
