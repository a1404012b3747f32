"""Every kind of device, made with a given content, for the contract that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice, MappedDevice, MemoryDevice, WindowDevice
from capstore.images.faults import CountdownDevice, FreezingDevice, RecordingDevice

# What is around a window and must be neither read nor changed.
FENCE = b"\xfe" * 700
NEVER = 1 << 40


@dataclass(frozen=True)
class Kind:
    """A kind of device: how it is made in a directory, and which half of the contract is its."""

    name: str
    make: Callable[[Path, bytes], BlockDevice]
    writable: bool = True
    resizable: bool = True


def file_with(where: Path, content: bytes) -> Path:
    path = where / "image"
    path.write_bytes(content)
    return path


def file_device(where: Path, content: bytes) -> FileDevice:
    return FileDevice.open(file_with(where, content))


def fixed_device(where: Path, content: bytes) -> FileDevice:
    return FileDevice.open(file_with(where, content), fixed=True)


def read_only_file(where: Path, content: bytes) -> FileDevice:
    return FileDevice.open(file_with(where, content), writable=False)


def mapped_device(where: Path, content: bytes) -> MappedDevice:
    return MappedDevice.open(file_with(where, content))


def memory_device(where: Path, content: bytes) -> MemoryDevice:
    return MemoryDevice(content)


def windowed(
    make: Callable[[Path, bytes], BlockDevice],
) -> Callable[[Path, bytes], WindowDevice]:
    def window(where: Path, content: bytes) -> WindowDevice:
        device = make(where, FENCE + content + FENCE)
        return WindowDevice(device, len(FENCE), len(content), owns=True)

    return window


KINDS = (
    Kind("file", file_device),
    Kind("fixed file", fixed_device, resizable=False),
    Kind("memory", memory_device),
    Kind("window on file", windowed(file_device), resizable=False),
    Kind("window on memory", windowed(memory_device), resizable=False),
    Kind("read-only file", read_only_file, writable=False),
    Kind("mapped", mapped_device, writable=False),
    Kind("read-only memory", lambda _, c: MemoryDevice(c, read_only=True), writable=False),
    Kind("window on mapped", windowed(mapped_device), writable=False),
    Kind("recording", lambda w, c: RecordingDevice(memory_device(w, c))),
    Kind("freezing", lambda w, c: FreezingDevice(memory_device(w, c), NEVER)),
    Kind("countdown", lambda w, c: CountdownDevice(memory_device(w, c), NEVER)),
)
