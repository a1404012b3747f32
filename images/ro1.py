"""CAPOSRO1: the constants of the format, its superblocks, and the checksums of its data.

Invariants: ``docs/spec/caposro1.md`` says what every byte means; offsets come from
``layout.capnp``.  A superblock is used only if its seal fits, its version and features are known,
and every table it names lies inside the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from capstore.images.device import BlockDevice
from capstore.images.records import (
    BLOCK_BYTES,
    RO1_ENTRY,
    RO1_EXTENT,
    RO1_NODE,
    RO1_SUPERBLOCK,
    blocks_of,
)
from capstore.schema import layout, wire
from capstore.schema.errors import Corrupt, Unsupported
from capstore.schema.limits import KIB
from capstore.schema.nodes import NodeKind, Provenance

MAGIC: Final = int(layout.ro1Magic)
VERSION: Final = int(layout.ro1Version)
EXTERNAL_DATA: Final = int(layout.ro1ExternalData)
EXECUTABLE: Final = int(layout.ro1Executable)
DAMAGED: Final = int(layout.ro1Damaged)
SUMMED: Final = int(layout.ro1Summed)

# What one checksum of the sum table covers.
CHUNK_BYTES: Final = 64 * KIB
SUM_BYTES: Final = 4
SUPERBLOCK_LBAS: Final = (0, 1)
LABEL_BYTES_MAX: Final = 255

_NAMES = {number: name for name, number in wire.NodeKind.schema.enumerants.items()}
KINDS: Final = {number: NodeKind(name) for number, name in _NAMES.items()}
KIND_CODES: Final = {kind: number for number, kind in KINDS.items()}
PROVENANCES: Final = {
    number: Provenance(name) for name, number in wire.Provenance.schema.enumerants.items()
}
PROVENANCE_CODES: Final = {provenance: number for number, provenance in PROVENANCES.items()}


@dataclass(frozen=True, slots=True)
class Span:
    """Where a table is, in bytes, and how many records it has."""

    name: str
    start: int
    length: int
    count: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says; lengths and offsets in bytes."""

    features: int
    generation: int
    image_id: int
    image_bytes: int
    built: int
    source_bytes: int
    data: Span
    nodes: Span
    entries: Span
    extents: Span
    sums: Span
    heap: Span
    label_bytes: int
    label_sum: int

    @property
    def spans(self) -> tuple[Span, ...]:
        """Everything that the image consists of besides the superblocks."""
        return (self.data, self.nodes, self.entries, self.extents, self.sums, self.heap)

    def pack(self) -> bytes:
        """The sealed record."""
        return RO1_SUPERBLOCK.pack(
            magic=MAGIC,
            features=self.features,
            generation=self.generation,
            imageIdLow=self.image_id & (1 << 64) - 1,
            imageIdHigh=self.image_id >> 64,
            imageBlocks=self.image_bytes // BLOCK_BYTES,
            built=self.built,
            dataLba=self.data.start // BLOCK_BYTES,
            dataBlocks=self.data.length // BLOCK_BYTES,
            nodesLba=self.nodes.start // BLOCK_BYTES,
            nodeCount=self.nodes.count,
            entriesLba=self.entries.start // BLOCK_BYTES,
            entryCount=self.entries.count,
            extentsLba=self.extents.start // BLOCK_BYTES,
            extentCount=self.extents.count,
            sumsLba=self.sums.start // BLOCK_BYTES,
            sumCount=self.sums.count,
            heapLba=self.heap.start // BLOCK_BYTES,
            heapBytes=self.heap.length,
            sourceBytes=self.source_bytes,
            version=VERSION,
            labelBytes=self.label_bytes,
            labelSum=self.label_sum,
        )


def read_superblock(device: BlockDevice) -> Superblock:
    """The valid superblock of the highest generation.

    Raises `Corrupt` when there is none, `Unsupported` for a version or feature that is not known.
    """
    first_error: Corrupt | None = None
    found: list[Superblock] = []
    for lba in SUPERBLOCK_LBAS:
        try:
            found.append(superblock_at(device, lba))
        except Corrupt as error:
            first_error = first_error or error
    if not found:
        assert first_error is not None  # noqa: S101 - one of the two was found or failed
        raise first_error
    return max(found, key=lambda superblock: superblock.generation)


def superblock_at(device: BlockDevice, lba: int) -> Superblock:
    """The superblock at block `lba`; raises as `read_superblock`."""
    offset, what = lba * BLOCK_BYTES, "the superblock"
    if device.size() < offset + BLOCK_BYTES:
        raise Corrupt(f"{what} at offset {offset} is cut off")
    raw = RO1_SUPERBLOCK.unpack(device.read(offset, BLOCK_BYTES), what, offset)
    if raw.magic != MAGIC:
        raise Corrupt(f"{what} at offset {offset} is none of CAPOSRO1")
    if raw.version > VERSION or not raw.version:
        raise Unsupported(f"CAPOSRO1 version {raw.version} is not known")
    if raw.features & ~EXTERNAL_DATA:
        raise Unsupported(f"CAPOSRO1 features {raw.features:#x} are not known")
    superblock = _superblock_of(raw)
    _check_spans(superblock, device.size(), offset)
    return superblock


def _superblock_of(raw: object) -> Superblock:
    def span(name: str, lba: str, count: str, width: int) -> Span:
        records = getattr(raw, count)
        return Span(name, getattr(raw, lba) * BLOCK_BYTES, records * width, records)

    def value(name: str) -> int:
        return int(getattr(raw, name))

    return Superblock(
        features=value("features"),
        generation=value("generation"),
        image_id=value("imageIdHigh") << 64 | value("imageIdLow"),
        image_bytes=value("imageBlocks") * BLOCK_BYTES,
        built=value("built"),
        source_bytes=value("sourceBytes"),
        data=span("data", "dataLba", "dataBlocks", BLOCK_BYTES),
        nodes=span("nodes", "nodesLba", "nodeCount", RO1_NODE.size),
        entries=span("entries", "entriesLba", "entryCount", RO1_ENTRY.size),
        extents=span("extents", "extentsLba", "extentCount", RO1_EXTENT.size),
        sums=span("sums", "sumsLba", "sumCount", SUM_BYTES),
        heap=span("names", "heapLba", "heapBytes", 1),
        label_bytes=value("labelBytes"),
        label_sum=value("labelSum"),
    )


def _check_spans(superblock: Superblock, device_bytes: int, offset: int) -> None:
    where = f"the superblock at offset {offset}"
    if superblock.image_bytes > device_bytes:
        raise Corrupt(f"{where}: the image is {superblock.image_bytes} bytes long, not all there")
    at = (max(SUPERBLOCK_LBAS) + 1) * BLOCK_BYTES
    for span in sorted(superblock.spans, key=lambda span: (span.start, span.length)):
        if span.start < at or span.start + span.length > superblock.image_bytes:
            raise Corrupt(f"{where}: its {span.name} are not inside the image, or overlap")
        at = span.start + blocks_of(span.length) * BLOCK_BYTES
    if not superblock.nodes.count:
        raise Corrupt(f"{where}: there is no root")
    if not superblock.label_bytes <= min(LABEL_BYTES_MAX, superblock.heap.length):
        raise Corrupt(f"{where}: the label is not inside the names")
