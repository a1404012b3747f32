"""Small valid images to begin with: archives, CAPOSRO1 and compressed files, made in process.

Invariants: the same bytes in every run and on every machine with the same libraries; no file of a
corpus ends with a zero, so that a length that is wrong shows.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
from collections.abc import Mapping, Sequence
from typing import Final

from capstore.images.builder import Facts, TreeBuilder
from capstore.images.cpio_build import CpioBuilder
from capstore.images.devices import MemoryDevice
from capstore.images.records import (
    BLOCK_BYTES,
    INDEX_HEADER,
    RO1_ENTRY,
    RO1_EXTENT,
    RO1_NODE,
    RO1_SUPERBLOCK,
    Record,
)
from capstore.images.ro1 import read_superblock
from capstore.images.ro1_build import Ro1Builder
from capstore.images.tar_header import parse_header, ustar_header
from capstore.images.tar_pax import pax_record
from capstore.schema.nodes import Provenance
from capstore.tools.fuzz.draft import Field, Original
from capstore.tools.fuzz.seals import sum_tar_header

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What files hold; symbolic links and hard links are texts with an arrow, directories None.
Tree = Mapping[str, bytes | str | None]

_LONG: Final = "/".join(["a rather long name of a directory"] * 5) + "/file"
_SECONDS: Final = 1_700_000_000
_FACTS: Final = Facts(modified=_SECONDS * 10**9, provenance=Provenance.TAR_HEADER)


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(length - 1) + b"\1"  # noqa: S311 - no secret


TREE: Final[Tree] = {
    "a": b"alpha",
    "b.txt": b"beta " * 120,
    "dir": None,
    "dir/empty": b"",
    "dir/hard": "=> a",
    "dir/link": "-> ../a",
    "dir/sub": None,
    "dir/sub/c": noise(1500),
    "größe \N{SNOWMAN}": "grün".encode(),
    "none": None,
    "z": b"last",
}


# tar ----------------------------------------------------------------------------------------------


def tar_of(tree: Tree, kind: int) -> bytes:
    """An archive as the standard library writes it, in one of its formats."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind, bufsize=BLOCK_BYTES) as archive:
        for path, node in tree.items():
            info = tarfile.TarInfo(path)
            info.mtime = _SECONDS
            content = b""
            if node is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(node, bytes):
                content, info.size = node, len(node)
            else:
                info.type = tarfile.SYMTYPE if node.startswith("->") else tarfile.LNKTYPE
                info.linkname = node[3:]
            archive.addfile(info, io.BytesIO(content))
    # Without the padding to whole records, which is zeros.
    return _aligned(out.getvalue().rstrip(b"\0")) + bytes(3 * BLOCK_BYTES)


def _aligned(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % BLOCK_BYTES)


def tar_member(flag: bytes, name: bytes, content: bytes, **more: bytes) -> bytes:
    """A member with a header of ustar; of `more`, `link` is what a link leads to."""
    header = ustar_header(
        flag, name, mode=0o644, size=len(content), seconds=_SECONDS, link=more.get("link", b"")
    )
    return header + _aligned(content)


def pax_member(records: Sequence[tuple[str, bytes]], flag: bytes = b"x") -> bytes:
    """A pax header."""
    return tar_member(flag, b"pax", b"".join(pax_record(key, value) for key, value in records))


def _sparse_tar() -> bytes:
    """Sparse members in the formats 0.0, 0.1 and 1.0."""
    data = b"s" * BLOCK_BYTES + b"end"
    pairs = [
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"9000"),
        ("GNU.sparse.numbytes", b"3"),
    ]
    listed = [
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.name", b"sparse 0.1"),
        ("GNU.sparse.map", b"0,512,9000,3"),
    ]
    newest = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse 1.0"),
        ("GNU.sparse.realsize", b"10000"),
    ]
    return (
        pax_member(pairs)
        + tar_member(b"0", b"sparse 0.0", data)
        + pax_member(listed)
        + tar_member(b"0", b"GNUSparseFile/x", data)
        + pax_member(newest)
        + tar_member(b"0", b"GNUSparseFile/y", _aligned(b"2\n0\n512\n9000\n3\n") + data)
        + bytes(2 * BLOCK_BYTES)
    )


def _old_tar() -> bytes:
    """An archive as before ustar, and a sparse member of GNU tar's own format."""
    plain = b"".join(
        _resummed(tar_member(b"\0", name, content), magic=bytes(8))
        for name, content in ((b"old", b"oldest"), (b"d/", b""), (b"d/in", b"in"))
    )
    entries = b"%011o\0%011o\0" % (0, 512) + b"%011o\0%011o\0" % (4096, 3)
    data = b"s" * BLOCK_BYTES + b"end"
    sparse = bytearray(_resummed(tar_member(b"S", b"sparse", data), magic=b"ustar  \0"))
    sparse[386 : 386 + len(entries)] = entries
    sparse[483:495] = b"%011o\0" % 5000
    return plain + _resummed(bytes(sparse), magic=b"ustar  \0") + bytes(2 * BLOCK_BYTES)


def _resummed(raw: bytes, *, magic: bytes) -> bytes:
    data = bytearray(raw)
    data[257:265] = magic
    sum_tar_header(data, 0)
    return bytes(data)


def tar_original(name: str, data: bytes) -> Original:
    """What is known of a tar archive's structure."""
    headers = [
        at
        for at in range(0, len(data), BLOCK_BYTES)
        if parse_header(data[at : at + BLOCK_BYTES]) is not None
    ]
    fields = [
        Field(at + offset, width, "octal")
        for at in headers
        for offset, width in ((100, 7), (124, 11), (136, 11), (156, 1))
    ]
    return Original(name, data, fields, {"headers": headers})


def tars() -> list[Original]:
    """Archives in every format that is read."""
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    found = [tar_original(name, tar_of(TREE, kind)) for name, kind in formats.items()]
    long: Tree = {_LONG: b"long", "link": f"-> {_LONG}", "hard": f"=> {_LONG}"}
    found += [tar_original(f"{name} long", tar_of(long, formats[name])) for name in ("gnu", "pax")]
    found += [tar_original("sparse", _sparse_tar()), tar_original("old", _old_tar())]
    return found


# cpio ---------------------------------------------------------------------------------------------

_CRC_TREE: Final = {b"a": b"alpha", b"b": b"beta" * 100, b"d/e": noise(700), b"none": b""}


def cpio_member(
    magic: bytes,
    name: bytes,
    content: bytes = b"",
    *,
    mode: int = 0o100644,
    inode: int = 1,
    links: int = 1,
) -> bytes:
    """A member in one of the formats that are read: ``070701``, ``070702``, ``070707``."""
    if magic == b"070707":
        numbers = (1, inode, mode, 0, 0, links, 0)
        head = magic + b"".join(b"%06o" % number for number in numbers)
        head += b"%011o%06o%011o" % (_SECONDS, len(name) + 1, len(content))
        return head + name + b"\0" + content
    check = sum(content) if magic == b"070702" else 0
    values = (inode, mode, 0, 0, links, _SECONDS, len(content), 0, 1, 0, 0, len(name) + 1, check)
    head = magic + b"".join(b"%08x" % value for value in values) + name + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _cpio_original(name: str, data: bytes) -> Original:
    headers: list[int] = []
    fields: list[Field] = []
    for magic in (b"070701", b"070702", b"070707"):
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            headers.append(at)
            if magic == b"070707":
                fields += [Field(at + 6 + 6 * index, 6, "octal") for index in range(7)]
                fields += [Field(at + 48, 11, "octal"), Field(at + 59, 6, "octal")]
                fields.append(Field(at + 65, 11, "octal"))
            else:
                fields += [Field(at + 6 + 8 * index, 8, "hex") for index in range(13)]
    return Original(name, data, fields, {"headers": headers})


def cpios() -> list[Original]:
    """Archives in every format that is read, and two of them in a row."""
    out = io.BytesIO()
    push(CpioBuilder(out), TREE)
    newc = out.getvalue()
    crc = b"".join(
        cpio_member(b"070702", name, content, inode=number)
        for number, (name, content) in enumerate(_CRC_TREE.items())
    )
    crc += cpio_member(b"070702", b"h1", inode=9, links=2)
    crc += cpio_member(b"070702", b"h2", b"linked", inode=9, links=2)
    crc += cpio_member(b"070702", b"TRAILER!!!", mode=0)
    odc = b"".join(
        cpio_member(b"070707", name, content, inode=number)
        for number, (name, content) in enumerate(_CRC_TREE.items())
    )
    odc += cpio_member(b"070707", b"l", b"../a", mode=0o120777)
    odc += cpio_member(b"070707", b"dir", mode=0o40755)
    odc += cpio_member(b"070707", b"fifo", mode=0o10644)
    odc += cpio_member(b"070707", b"TRAILER!!!", mode=0)
    row = newc + bytes(-len(newc) % BLOCK_BYTES) + crc
    images = {"newc": newc, "crc": crc, "odc": odc, "row": row}
    return [_cpio_original(name, data) for name, data in images.items()]


# CAPOSRO1 -----------------------------------------------------------------------------------------


def push(builder: TreeBuilder, tree: Tree) -> None:
    """Builds the image of `tree`."""
    builder.directory((), _FACTS)
    for path, node in sorted(tree.items(), key=lambda item: item[0].encode().split(b"/")):
        parts = path.split("/")
        if node is None:
            builder.directory(parts, _FACTS)
        elif isinstance(node, bytes):
            builder.begin_file(parts, _FACTS, len(node))
            builder.write(node)
            builder.end_file()
        elif node.startswith("->"):
            builder.symlink(parts, _FACTS, node[3:])
        else:
            builder.link(parts, node[3:].split("/"))
    builder.finish()


def ro1_fields(data: bytes, start: int = 0) -> list[Field]:
    """The fields of all records of the image at `start`."""
    device = MemoryDevice(data[start:], read_only=True)
    superblock = read_superblock(device)
    fields = _record_fields(RO1_SUPERBLOCK, start) + _record_fields(
        RO1_SUPERBLOCK, start + BLOCK_BYTES
    )
    tables = {
        RO1_NODE: superblock.nodes,
        RO1_ENTRY: superblock.entries,
        RO1_EXTENT: superblock.extents,
    }
    for record, span in tables.items():
        for number in range(span.count):
            fields += _record_fields(record, start + span.start + number * record.size)
    return fields


def _record_fields(record: Record, at: int) -> list[Field]:
    return [Field(at + one.offset, one.width, "little") for one in record.fields[:-1]]


def index_fields(data: bytes) -> list[Field]:
    """The fields of the header and of the image in the index `data` of an archive."""
    return _record_fields(INDEX_HEADER, 0) + ro1_fields(data, BLOCK_BYTES)


def ro1_of(tree: Tree, label: str = "") -> bytes:
    """The image of `tree`."""
    device = MemoryDevice()
    push(Ro1Builder(device, label=label), tree)
    return device.read(0, device.size())


def ro1s() -> list[Original]:
    """A tree, files of several chunks with holes, and a directory of many names."""
    large = {"holes": b"x" + bytes(200_000) + noise(70_000, 2), "z": b"z"}
    many = {f"name {number:03}": b"%d" % number for number in range(40)}
    images = {
        "tree": ro1_of(TREE, "fuzz"),
        "large": ro1_of(large),
        "many": ro1_of({"d": None, **{f"d/{name}": content for name, content in many.items()}}),
        "empty": ro1_of({}),
    }
    return [Original(name, data, ro1_fields(data)) for name, data in images.items()]


# Compressed files ---------------------------------------------------------------------------------

# Long enough for several seek points, and quick to compress.
LONG_CONTENT: Final = b"".join(noise(2000, seed) * 20 for seed in range(35))


def _payloads() -> dict[str, bytes]:
    return {"text": b"compressed " * 300, "noise": noise(3000), "none": b""}


def _compressed_tar() -> bytes:
    return tar_of(TREE, tarfile.PAX_FORMAT)


def gz(data: bytes, level: int = 6) -> bytes:
    """One member."""
    return gzip.compress(data, level, mtime=0)


def xz(data: bytes, check: int = lzma.CHECK_CRC64) -> bytes:
    """One stream of one block."""
    return lzma.compress(data, check=check, preset=0)


def zst(data: bytes, *, checksum: bool = True) -> bytes:
    """One frame."""
    options: dict[int, int] = {
        zstd.CompressionParameter.checksum_flag: checksum,
        zstd.CompressionParameter.compression_level: 1,
    }
    return zstd.compress(data, options=options)


def gzs() -> list[Original]:
    """Members of all block types, with all header fields, several in a row, and a long one."""
    found = {name: gz(data) for name, data in _payloads().items()}
    body = gz(b"with a name " * 20)[10:]
    found["fields"] = b"\x1f\x8b\x08\x1c" + bytes(6) + b"\3\0abc" + b"name\0" + b"comment\0" + body
    found["row"] = gz(b"one") + gz(b"two" * 99, 0) + gz(b"") + gz(b"three") + bytes(512)
    found["tar"] = gz(_compressed_tar())
    found["long"] = gz(LONG_CONTENT, 1)
    return _compressed_originals(found)


def bz2s() -> list[Original]:
    """Streams of one block, of several, and several streams."""
    found = {name: bz2.compress(data, 1) for name, data in _payloads().items()}
    found["row"] = bz2.compress(b"one") + bz2.compress(b"") + bz2.compress(b"three" * 50)
    found["blocks"] = bz2.compress(LONG_CONTENT[:250_000], 1)
    found["tar"] = bz2.compress(_compressed_tar())
    return _compressed_originals(found)


def xzs() -> list[Original]:
    """Streams with every kind of check, and several streams."""
    found = {name: xz(data) for name, data in _payloads().items()}
    found["unchecked"] = xz(b"no check " * 200, lzma.CHECK_NONE)
    found["crc32"] = xz(noise(1000), lzma.CHECK_CRC32)
    found["sha256"] = xz(noise(900), lzma.CHECK_SHA256)
    found["row"] = xz(b"one") + bytes(4) + xz(b"") + xz(b"three" * 50)
    found["tar"] = xz(_compressed_tar())
    return _compressed_originals(found)


def zsts() -> list[Original]:
    """Frames with a checksum and without, skippable ones, and several in a row."""
    found = {name: zst(data) for name, data in _payloads().items()}
    found["unchecked"] = zst(b"no check " * 200, checksum=False)
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    found["skippable"] = skippable + zst(b"one") + skippable + zst(b"three" * 50)
    found["row"] = zst(b"one") + zst(b"") + zst(b"three" * 50) + skippable
    found["tar"] = zst(_compressed_tar())
    found["long"] = zst(LONG_CONTENT)
    return _compressed_originals(found)


def _compressed_originals(found: Mapping[str, bytes]) -> list[Original]:
    """Fields are the first bytes and the last, where headers and trailers are."""
    originals: list[Original] = []
    for name, data in found.items():
        ends = sorted({*range(min(40, len(data))), *range(max(0, len(data) - 28), len(data))})
        fields = [Field(at, 1, "little") for at in ends]
        fields += [Field(at, 4, "little") for at in ends if at % 4 == 0]
        originals.append(Original(name, data, fields))
    return originals
