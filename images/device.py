"""Block devices: the seam between an image's engine and whatever holds its bytes.

Invariants that every device keeps (``tests/images/test_devices.py`` holds them to it):

* A device is a sequence of `size()` bytes.  Reads and writes outside it are `InvalidArgument` and
  touch nothing: an engine checks what it read from an image before it uses it as an offset
  (`read_checked`).
* What was written is read back at once; it is durable when a `flush` that began after the write
  has returned, and not before.
* Errors are `StorageError`; a device that has failed to write or flush is *latched*: it answers
  `StorageIOError` to every later write and flush, since nobody can say what is on it.
* After `close` everything but `close` is `Closed`.
* Reading is safe from several threads at once; changing is one thread's at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from capstore.schema.errors import Corrupt, InvalidArgument
from capstore.schema.nodes import Buffer


class BlockDevice(ABC):
    """Bytes at offsets: six methods to implement, the others are there."""

    @abstractmethod
    def size(self) -> int:
        """The length in bytes."""

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills all of `view` from `offset`.

        Raises `InvalidArgument` outside the device, `StorageIOError`, `Corrupt` where the device
        has checksums of its own.
        """

    @abstractmethod
    def write(self, offset: int, data: Buffer) -> None:
        """Writes all of `data` at `offset`.

        Raises `InvalidArgument` outside the device, `ReadOnly`, `NoSpace`, `StorageIOError`.
        """

    @abstractmethod
    def resize(self, size: int) -> None:
        """Cuts the device, or extends it with zeros, to `size` bytes.

        Raises `NoSpace` where it cannot be that long, also for a fixed size, and `ReadOnly`.
        """

    @abstractmethod
    def flush(self) -> None:
        """Returns when every earlier write and resize is durable.  Raises `StorageIOError`."""

    @abstractmethod
    def close(self) -> None:
        """Releases the device, without a flush; closing again does nothing."""

    @property
    def unflushed_bytes(self) -> int:
        """How much was written since the last flush began, where the device counts it, else 0: the
        next flush takes about so long."""
        return 0

    def reserve(self, offset: int, length: int) -> None:
        """Sees to it that there is room for what will be written to `length` bytes at `offset`,
        where the device knows how; what is there stays.  Raises `NoSpace`, with nothing changed."""
        self.check_range(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Says that nobody needs the `length` bytes at `offset` any more: a device that can gives
        their room back.  What is read there until it is written anew is anything."""
        self.check_range(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`; raises as `read_into`."""
        self.check_range(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As `read_into` if that needs no waiting for a device; else False, and `view` is as good
        as uninitialised."""
        return False

    def check_range(self, offset: int, length: int) -> None:
        """Raises `InvalidArgument` unless `length` bytes at `offset` are inside."""
        if offset < 0 or length < 0 or offset + length > self.size():
            raise InvalidArgument(
                f"{length} bytes at {offset} are not inside the device's {self.size()}"
            )


def read_checked(device: BlockDevice, offset: int, length: int, what: str) -> bytes:
    """The `length` bytes at `offset`, which an image says are there.

    Raises `Corrupt` with `what` and the offset where the device has no such bytes.
    """
    if offset < 0 or length < 0 or offset + length > device.size():
        raise Corrupt(f"{what} at offset {offset} is cut off")
    return device.read(offset, length)
