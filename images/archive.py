"""Archives as trees: one pass makes an index, kept as a cache where there is a place for it.

Invariants:

* The index is a CAPOSRO1 image with external data, so an archive is looked up in as an image is;
  content is read in place, in the archive or in its decompressed bytes.
* The archive's device is opened once and read through one descriptor, by the pass and by readers.
* Nothing is written but the cache, and a cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from capstore.images.compressed import CompressedDevice, detect, open_compressed
from capstore.images.cpio import index_cpio
from capstore.images.cpio_content import SummedContent
from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice, MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.images.indexfile import Index, Source, facts_of, index_path, load_index, save_index
from capstore.images.records import RO1_EXTENT
from capstore.images.ro1_build import index_image
from capstore.images.ro1_tree import Ro1Tree
from capstore.images.ro1_verify import verify_nodes
from capstore.images.tar import index_tar
from capstore.images.tree import Finding, Region
from capstore.schema.errors import InvalidArgument, StorageError, from_os_error
from capstore.schema.limits import INDEX_BYTES_MIN, INDEX_RATIO_MAX
from capstore.schema.nodes import Usage

_PARSERS: Final[dict[str, Callable[[BlockDevice, IndexBuilder], None]]] = {
    "tar": index_tar,
    "cpio": index_cpio,
}
_HEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Archive:
    """What is known of an open archive besides its tree: `kind` is ``tar`` or ``cpio``,
    `compression` is ``gz``, ``bz2``, ``xz``, ``zst`` or empty, `size` its length in bytes;
    `findings` are what the pass could not serve, `dropped` how many more there were."""

    kind: str
    compression: str
    size: int
    findings: tuple[Finding, ...]
    dropped: int


class ArchiveTree(Ro1Tree):
    """An open archive; `data` are its bytes, decompressed."""

    def __init__(
        self, index: BlockDevice, view: memoryview, data: BlockDevice, archive: Archive
    ) -> None:
        super().__init__(index, view, data=data, summed=SummedContent)
        self.archive = archive

    def __repr__(self) -> str:
        return f"<ArchiveTree {self.archive.kind} {self.superblock.nodes.count} nodes>"

    def usage(self) -> Usage:
        nodes = self.superblock.nodes.count
        size = self.archive.size
        return Usage(total_bytes=size, used_bytes=size, total_nodes=nodes, used_nodes=nodes)

    def verify(self) -> Iterator[Finding]:
        """What the pass found, then what is wrong with what it made."""
        yield from self.archive.findings
        if self.archive.dropped:
            yield Finding("archive", f"{self.archive.dropped} findings more")
        yield from verify_nodes(self)

    def regions(self) -> Iterator[Region]:
        """Content and headers of a plain archive; of a compressed one, one region."""
        if self.archive.compression:
            yield Region(0, self.archive.size, "data", f"{self.archive.compression} stream")
            return
        at = 0
        for start, end in self._content_spans():
            if start > at:
                yield Region(at, start - at, "header")
            yield Region(start, end - start, "data")
            at = end
        if at < self.archive.size:
            yield Region(at, self.archive.size - at, "header")

    def _content_spans(self) -> Iterator[tuple[int, int]]:
        """Where content is, ascending and without overlap."""
        table = self.superblock.extents
        rows = RO1_EXTENT.table(self.view[table.start : table.start + table.length])
        at = 0
        for row in np.argsort(rows["source"], kind="stable"):
            start = max(at, int(rows["source"][row]))
            end = min(int(rows["source"][row]) + int(rows["length"][row]), self.archive.size)
            if end > start:
                yield start, end
                at = end

    def describe(self) -> dict[str, Any]:
        archive = self.archive
        return {
            "format": archive.kind,
            "compression": archive.compression or None,
            "imageBytes": archive.size,
            "nodes": self.superblock.nodes.count,
            "entries": self.superblock.entries.count,
            "extents": self.superblock.extents.count,
            "findings": len(archive.findings) + archive.dropped,
        }


def open_archive(
    path: str | os.PathLike[str], kind: str, *, cache: Path | None = None
) -> ArchiveTree:
    """Opens the archive `path` of `kind` (``tar``, ``cpio``), compressed or not.

    `cache` is a directory in which its index is kept, if given.  Raises what opening the file
    raises, `Corrupt` for what is no such archive, `TooLarge` for an index or a decompressed
    archive over its limits.
    """
    named = _identity(path)
    raw = FileDevice.open(path, writable=False)
    try:
        source = Source.of(raw, named[2])
        kept = None
        # If the name was given to another file meanwhile, the time may be that one's.
        if cache is not None and _identity(path) == named:
            kept = index_path(cache, path, kind)
        index = load_index(kept, source) if kept is not None else None
        if index is not None:
            with contextlib.suppress(StorageError):
                return _from_index(raw, kind, index)
            index.device.close()
        return _from_pass(raw, kind, source, kept)
    except BaseException:
        raw.close()
        raise


def _identity(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Device, inode and modification time (ns since 1970) of what `path` names."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise from_os_error(error, "the archive") from None
    except ValueError:
        raise InvalidArgument("the archive: not a path") from None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _from_index(raw: BlockDevice, kind: str, index: Index) -> ArchiveTree:
    """The archive by its kept index.  Raises `StorageError` where the index will not do."""
    compression = detect(_head(raw)) or ""
    data: BlockDevice = raw
    if compression:
        data = open_compressed(raw, points=index.points)
    archive = Archive(kind, compression, raw.size(), index.findings, index.dropped)
    return ArchiveTree(index.device, index.view, data, archive)


def _from_pass(raw: BlockDevice, kind: str, source: Source, kept: Path | None) -> ArchiveTree:
    compression = detect(_head(raw)) or ""
    data = open_compressed(raw) if compression else raw
    try:
        return _indexed(raw, data, kind, compression, source, kept)
    except BaseException:
        data.close()
        raise


def _indexed(
    raw: BlockDevice,
    data: BlockDevice,
    kind: str,
    compression: str,
    source: Source,
    kept: Path | None,
) -> ArchiveTree:
    size = raw.size()
    builder = IndexBuilder(bytes_max=INDEX_BYTES_MIN + INDEX_RATIO_MAX * size)
    _PARSERS[kind](data, builder)
    points = b""
    if isinstance(data, CompressedDevice):
        if data.damage is not None:
            builder.refuse(b"", data.damage, data.size())
        points = data.export_points()
    archive = Archive(kind, compression, size, tuple(builder.findings), builder.findings_dropped)
    image = index_image(builder.table.tables(), size)
    if kept is not None:
        facts = facts_of(archive.findings, archive.dropped)
        with contextlib.suppress(OSError, StorageError):
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_index(kept, source, image, facts, points)
    device = MemoryDevice(image, read_only=True)
    return ArchiveTree(device, device.view, data, archive)


def _head(device: BlockDevice) -> bytes:
    return device.read(0, min(_HEAD_BYTES, device.size()))
