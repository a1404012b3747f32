"""Checksums made right again, so that damage gets past them and into the parsers.

Invariants: a seal is for bytes that may be anything by now: what does not look like its structure
is left alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images.checksums import crc32c, seal_of
from capstore.images.nodetable import prefix_of
from capstore.images.records import (
    BLOCK_BYTES,
    INDEX_HEADER,
    RO1_ENTRY,
    RO1_EXTENT,
    RO1_NODE,
    RO1_SUPERBLOCK,
    Record,
)
from capstore.images.ro1 import CHUNK_BYTES, SUPERBLOCK_LBAS
from capstore.tools.fuzz.draft import Draft

Seal = Callable[[Draft], None]

# What one seal looks at: images of the corpus are far smaller, forged counts are not.
_RECORDS_MAX: Final = 4096


# tar ----------------------------------------------------------------------------------------------

_CHECKSUM: Final = slice(148, 156)


def seal_tar(draft: Draft) -> None:
    """The checksum of every block that says it is a header, and of those that were."""
    data = draft.data
    were = set(draft.original.marks["headers"])
    for at in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        if data[at + 257 : at + 262] == b"ustar" or at in were:
            sum_tar_header(data, at)


def sum_tar_header(data: bytearray, at: int) -> None:
    """The checksum of the header at `at`."""
    block = data[at : at + BLOCK_BYTES]
    block[_CHECKSUM] = b" " * 8
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    data[at : at + BLOCK_BYTES] = block


# CAPOSRO1 -----------------------------------------------------------------------------------------


def seal_ro1(draft: Draft) -> None:
    """Superblocks and records; often names and texts as well, sometimes the checksums of data."""
    seal_ro1_at(draft, 0, len(draft.data))


def seal_ro1_at(draft: Draft, start: int, end: int) -> None:
    """As `seal_ro1`, for an image between `start` and `end` of something larger."""
    data = draft.data
    for lba in SUPERBLOCK_LBAS:
        _seal_record(data, start + lba * BLOCK_BYTES, RO1_SUPERBLOCK)
    blocks = _superblocks(data, start, end)
    texts, sums = draft.rng.random() < 0.7, draft.rng.random() < 0.3
    for block in blocks:
        if texts:
            _seal_texts(data, block, start)
        for table, count, record in (
            (block["nodesLba"], block["nodeCount"], RO1_NODE),
            (block["entriesLba"], block["entryCount"], RO1_ENTRY),
            (block["extentsLba"], block["extentCount"], RO1_EXTENT),
        ):
            for number in range(min(count, _RECORDS_MAX)):
                _seal_record(data, start + table * BLOCK_BYTES + number * record.size, record)
        if sums:
            _seal_data(data, block, start)


def _superblocks(data: bytearray, start: int, end: int) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for lba in SUPERBLOCK_LBAS:
        at = start + lba * BLOCK_BYTES
        if at + RO1_SUPERBLOCK.size <= end:
            fields = RO1_SUPERBLOCK.unpack(data[at : at + RO1_SUPERBLOCK.size], "")._asdict()
            if fields not in found:
                found.append(fields)
    return found


def _seal_record(data: bytearray, at: int, record: Record) -> None:
    end = at + record.size
    if end <= len(data):
        data[end - 4 : end] = seal_of(bytes(data[at : end - 4])).to_bytes(4, "little")


def _rows(data: bytearray, at: int, count: int, record: Record) -> npt.NDArray[np.void]:
    """The records at `at` that are there, to be changed in place."""
    fits = max(0, len(data) - at) // record.size if at <= len(data) else 0
    count = min(count, fits, _RECORDS_MAX)
    return np.frombuffer(data, record.dtype, count, at if count else 0)


def _seal_texts(data: bytearray, block: dict[str, int], start: int) -> None:
    heap = start + block["heapLba"] * BLOCK_BYTES

    def text(at: int, length: int) -> bytes:
        return bytes(data[heap + at : heap + at + length]) if heap + at < len(data) else b""

    entries = start + block["entriesLba"] * BLOCK_BYTES
    for row in _rows(data, entries, block["entryCount"], RO1_ENTRY):
        name = text(int(row["nameAt"]), int(row["nameBytes"]))
        row["nameSum"], row["prefix"] = crc32c(name), prefix_of(name)
    nodes = start + block["nodesLba"] * BLOCK_BYTES
    for row in _rows(data, nodes, block["nodeCount"], RO1_NODE):
        # The checksum is a text's where the node has one; a file's of crc cpio stays.
        if int(row["kind"]) >= 2 or int(row["flags"]) & 2:
            row["check"] = crc32c(text(int(row["first"]), int(row["count"])))


def _seal_data(data: bytearray, block: dict[str, int], start: int) -> None:
    table = start + block["sumsLba"] * BLOCK_BYTES
    extents = start + block["extentsLba"] * BLOCK_BYTES
    for row in _rows(data, extents, block["extentCount"], RO1_EXTENT):
        source, length = int(row["source"]), int(row["length"])
        for number in range(min(length // CHUNK_BYTES + 1, 8)):
            at = start + source + number * CHUNK_BYTES
            chunk = bytes(data[at : at + min(CHUNK_BYTES, length - number * CHUNK_BYTES)])
            slot = table + (int(row["firstSum"]) + number) * 4
            if slot + 4 <= len(data):
                data[slot : slot + 4] = crc32c(chunk).to_bytes(4, "little")


# The index of an archive --------------------------------------------------------------------------


def seal_index(draft: Draft) -> None:
    """The image in it, the seek points, then the body and the header."""
    data = draft.data
    if len(data) < BLOCK_BYTES:
        return
    _seal_record(data, 0, INDEX_HEADER)
    header = INDEX_HEADER.unpack(data[: INDEX_HEADER.size], "")
    points_at = BLOCK_BYTES + header.tableBlocks * BLOCK_BYTES + header.factsBytes
    if draft.rng.random() < 0.8:
        seal_ro1_at(draft, BLOCK_BYTES, min(len(data), BLOCK_BYTES * (1 + header.tableBlocks)))
    if draft.rng.random() < 0.8 and points_at + 4 < len(data):
        data[-4:] = crc32c(bytes(data[points_at:-4])).to_bytes(4, "little")
    at = next(field.offset for field in INDEX_HEADER.fields if field.name == "bodySum")
    data[at : at + 4] = crc32c(bytes(data[BLOCK_BYTES:])).to_bytes(4, "little")
    _seal_record(data, 0, INDEX_HEADER)


# Compressed files ---------------------------------------------------------------------------------


def seal_gz(draft: Draft) -> None:
    """The CRC and length of the first member, if its DEFLATE stream can be read at all."""
    data = bytes(draft.data)
    at = _gz_data(data)
    inflater = zlib.decompressobj(-15)
    try:
        content = inflater.decompress(data[at:], 4 << 20)
    except zlib.error:
        return
    if inflater.eof:
        end = len(data) - len(inflater.unused_data)
        trailer = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
        draft.put(end, trailer)


def _gz_data(data: bytes) -> int:
    """Where the DEFLATE stream of the first member begins."""
    at, flags = 10, data[3] if len(data) > 3 else 0
    if flags & 4:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            at = data.find(b"\0", at) + 1 or len(data)
    return at + (2 if flags & 2 else 0)


def seal_xz(draft: Draft) -> None:
    """The CRCs of the stream header, the first block's header, and the footer."""
    data = draft.data
    if len(data) < 32:
        return
    draft.put(8, zlib.crc32(data[6:8]).to_bytes(4, "little"))
    end = 12 + (data[12] + 1) * 4
    if end <= len(data):
        draft.put(end - 4, zlib.crc32(data[12 : end - 4]).to_bytes(4, "little"))
    footer = len(data) - 12
    draft.put(footer, zlib.crc32(data[footer + 4 : footer + 10]).to_bytes(4, "little"))


# GPT ----------------------------------------------------------------------------------------------

_GPT_HEADER_BYTES: Final = 92


def seal_gpt(draft: Draft) -> None:
    """The CRCs of both tables and of both headers."""
    data = draft.data
    for at in (BLOCK_BYTES, len(data) - BLOCK_BYTES):
        is_header = data[at : at + 8] == b"EFI PART" and at + _GPT_HEADER_BYTES <= len(data)
        if at < BLOCK_BYTES or not is_header:
            continue
        size, lba = _u32(data, at + 12), struct.unpack_from("<Q", data, at + 72)[0]
        length = _u32(data, at + 80) * _u32(data, at + 84)
        table = bytes(data[lba * BLOCK_BYTES : lba * BLOCK_BYTES + length])
        draft.put(at + 88, zlib.crc32(table).to_bytes(4, "little"))
        draft.put(at + 16, bytes(4))
        size = size if _GPT_HEADER_BYTES <= size <= BLOCK_BYTES else _GPT_HEADER_BYTES
        draft.put(at + 16, zlib.crc32(data[at : at + size]).to_bytes(4, "little"))


def _u32(data: bytearray, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


# cpio and FAT -------------------------------------------------------------------------------------


def seal_cpio(draft: Draft) -> None:
    """The sums of the members of a crc archive that are where they were."""
    for at in draft.original.marks["headers"]:
        head = bytes(draft.data[at : at + 110])
        try:
            size, name = int(head[54:62], 16), int(head[94:102], 16)
        except ValueError:
            continue
        start = at + 110 + name
        start += -(start - at) % 4
        if head.startswith(b"070702") and start + size <= len(draft.data):
            draft.put(at + 102, b"%08x" % (sum(draft.data[start : start + size]) & 0xFFFFFFFF))


def seal_fat(draft: Draft) -> None:
    """The second copy of the FAT equals the first, and long names carry their checksum."""
    at, length = draft.original.marks["fat"][:2]
    draft.put(at + length, bytes(draft.data[at : at + length]))
    for slot in draft.original.marks["slots"]:
        entry = bytes(draft.data[slot : slot + 32])
        if len(entry) == 32 and entry[11] != 0x0F:
            total = short_checksum(entry[:11])
            before = slot - 32
            while before >= 0 and draft.data[before + 11] == 0x0F:
                draft.data[before + 13] = total
                before -= 32


def short_checksum(name: bytes) -> int:
    """What the long entries of the short name's eleven bytes carry."""
    total = 0
    for byte in name:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total
