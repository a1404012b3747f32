"""The formats that images are read in, and telling which one a file has.

Invariants: what is typed decides where it says a format; what is in the file decides where it does
not.  A tree owns the devices under it: closing it closes them, and nothing stays open when
opening fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capstore.images import ro1, st1, wf1
from capstore.images.archive import open_archive
from capstore.images.compressed import detect, first_bytes
from capstore.images.cpio_header import MAGICS as CPIO_MAGICS
from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice, MappedDevice
from capstore.images.fat import open_fat
from capstore.images.records import BLOCK_BYTES
from capstore.images.ro1_tree import Ro1Tree
from capstore.images.tar_header import ZERO_BLOCK, parse_header
from capstore.images.tree import ImageTree
from capstore.images.wf1_tree import Wf1Tree
from capstore.schema.errors import InvalidArgument, Unsupported

_HEAD_BYTES: Final = 1024
# What a boot sector and a partition table end with.
_BOOT_SIGNATURE: Final = b"\x55\xaa"

FORMATS: Final = ("ro1", "tar", "cpio", "fat", "wf1")
# What is no tree, but a store of objects.
STORES: Final = ("st1",)


def open_image(
    path: str | os.PathLike[str],
    *,
    scheme: str | None = None,
    part: int | None = None,
    cache: Path | None = None,
) -> ImageTree:
    """Opens the image `path`, of the format `scheme` or of the one it looks like.

    `part` is the number of a partition (FAT only), `cache` a directory for indices of archives.
    Raises `Unsupported` for what looks like none, `Corrupt` for what is none of its format, and
    what opening the file raises.
    """
    kind = scheme or format_of(path)
    if kind in STORES:
        raise Unsupported("a store of objects is no tree of files")
    if kind not in FORMATS:
        raise InvalidArgument(f'"{kind}" is no format of images')
    if part is not None and kind != "fat":
        raise InvalidArgument("only disks with FAT have partitions to name")
    if kind == "ro1":
        return _open_ro1(path)
    if kind == "fat":
        return _owned(FileDevice.open(path, writable=False), lambda device: open_fat(device, part))
    if kind == "wf1":
        return _owned(FileDevice.open(path, writable=False), Wf1Tree)
    return open_archive(path, kind, cache=cache)


def _open_ro1(path: str | os.PathLike[str]) -> ImageTree:
    device = MappedDevice.open(path)

    def opened(_: BlockDevice) -> ImageTree:
        # Before the mapping is handed on: whatever holds a part of it holds the file's lock.
        ro1.read_superblock(device)
        return Ro1Tree(device, device.view)

    return _owned(device, opened)


def _owned(device: BlockDevice, opener: Callable[[BlockDevice], ImageTree]) -> ImageTree:
    """What `opener` makes of `device`, which is closed if that fails."""
    try:
        return opener(device)
    except BaseException:
        device.close()
        raise


def format_of(path: str | os.PathLike[str]) -> str:
    """What the file looks like: one of `FORMATS`, or of `STORES` where there is no tree beside.

    Raises `Unsupported` for what is none of them, and what opening and reading the file raises.
    """
    device = FileDevice.open(path, writable=False)
    try:
        head = _head_of(device)
        # What is in a store was put there by anybody, also what looks like a tree.
        has_wf1 = _has_wf1(device) and not st1.claims(device, wf1.SUPERBLOCK_LBAS[0])
        is_store = has_store(device)
    finally:
        device.close()
    if is_store:
        return "wf1" if has_wf1 else "st1"
    found = next((name for name, looks_like in _SNIFFERS.items() if looks_like(head)), None)
    if has_wf1 and (found is None or not any(head)):
        # Its superblock is not where a file begins: in front of it are zeros, or a store.
        return "wf1"
    if found is None:
        raise Unsupported("this is no image of a known format")
    return found


def has_store(device: BlockDevice) -> bool:
    """Whether a store of objects (CAPOSST1) is on the device, alone or in front of a tree."""
    magic = st1.MAGIC.to_bytes(8, "little")
    offsets = [lba * BLOCK_BYTES for lba in st1.SUPERBLOCK_LBAS]
    return any(
        device.read(at, len(magic)) == magic for at in offsets if at + len(magic) <= device.size()
    )


def _head_of(device: BlockDevice) -> bytes:
    """The first bytes of what is on the device, decompressed."""
    head = device.read(0, min(_HEAD_BYTES, device.size()))
    compression = detect(head)
    return first_bytes(device, _HEAD_BYTES) if compression else head


def _has_wf1(device: BlockDevice) -> bool:
    magic = wf1.MAGIC.to_bytes(8, "little")
    offsets = [lba * BLOCK_BYTES for lba in wf1.SUPERBLOCK_LBAS]
    return any(
        device.read(at, len(magic)) == magic for at in offsets if at + len(magic) <= device.size()
    )


def _is_ro1(head: bytes) -> bool:
    magic = ro1.MAGIC.to_bytes(8, "little")
    # Either superblock will do.
    return magic in (head[:8], head[BLOCK_BYTES : BLOCK_BYTES + 8])


def _is_tar(head: bytes) -> bool:
    block = head[: len(ZERO_BLOCK)]
    if block == ZERO_BLOCK:
        # An archive of nothing is two zero blocks.
        return head[: 2 * len(ZERO_BLOCK)] == 2 * ZERO_BLOCK
    return len(block) == len(ZERO_BLOCK) and parse_header(block) is not None


def _is_cpio(head: bytes) -> bool:
    return head.startswith(CPIO_MAGICS)


def _is_fat(head: bytes) -> bool:
    return head[BLOCK_BYTES - 2 : BLOCK_BYTES] == _BOOT_SIGNATURE


_SNIFFERS: Final[dict[str, Callable[[bytes], bool]]] = {
    "ro1": _is_ro1,
    "cpio": _is_cpio,
    "tar": _is_tar,
    "fat": _is_fat,
}
