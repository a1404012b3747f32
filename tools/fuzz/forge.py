"""Damage that knows a format: members, records and entries as no sane writer makes them.

Invariants: those of `capstore.tools.fuzz.draft`.
"""

from __future__ import annotations

import struct
from typing import Final

from capstore.images.tar_pax import pax_record
from capstore.tools.fuzz.corpus import cpio_member, pax_member, tar_member
from capstore.tools.fuzz.disks import link
from capstore.tools.fuzz.draft import BLOCK_BYTES, Draft, encoded, set_field
from capstore.tools.fuzz.seals import sum_tar_header

NAMES: Final = (
    b"", b".", b"..", b"./", b"/", b"//", b"a", b"a/", b"/a", b"a/.", b"a/..", b"../a", b"a//b",
    b"b.txt", b"dir", b"dir/sub", b"dir/sub/c", b"dir/link/x", b"a/under a file", b"\xff",
    b"\xff\xfe/x",
    "\uef80".encode(), "\uefff".encode(), b"\xee\xbe\x80", b"\xed\xa0\x80", b"a\nb", b"nul\0nul",
    b"x" * 255, b"x" * 256, b"\xff" * 86, b"\xff" * 85, b"d/" * 40, b"TRAILER!!!",
    "é".encode(), "e\u0301".encode(),
)  # fmt: skip
_DIGITS: Final = (
    b"0", b"1", b"-1", b"512", b"00000000000000000001", b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551616", b"1.5", b"-1.5", b"1e9", b"", b" 1", b"0x10",
    b"9" * 5000, b"1_0", b"\xd9\xa1",
)  # fmt: skip
_KEYWORDS: Final = (
    "path", "linkpath", "size", "mtime", "hdrcharset", "GNU.sparse.map", "GNU.sparse.size",
    "GNU.sparse.realsize", "GNU.sparse.name", "GNU.sparse.major", "GNU.sparse.minor",
    "GNU.sparse.numblocks", "GNU.sparse.offset", "GNU.sparse.numbytes", "uid", "SCHILY.xattr.x",
)  # fmt: skip
_MAPS: Final = (
    b"0,512", b"0,512,9000,3", b"0,0", b"9223372036854775807,1", b"1,9223372036854775807",
    b"0,512,512", b",", b"0,-1", b"512,512,0,512", b"0,1,1,1",
)  # fmt: skip
_TAR_FLAGS: Final = tuple(bytes([flag]) for flag in b"\x0001234567DKLMNSVXgxA~\xff")
_MAGICS: Final = (b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\0  ")


# tar ----------------------------------------------------------------------------------------------


def _pax_value(draft: Draft, keyword: str) -> bytes:
    rng = draft.rng
    if keyword == "GNU.sparse.map":
        return rng.choice(_MAPS)
    if keyword in ("path", "linkpath", "GNU.sparse.name"):
        return rng.choice(NAMES)
    if keyword in ("GNU.sparse.major", "GNU.sparse.minor"):
        return rng.choice((b"0", b"1", b"2"))
    return rng.choice(_DIGITS) if rng.random() < 0.5 else b"%d" % draft.number()


def _pax(draft: Draft) -> bytes:
    """A pax header of some keywords, sometimes broken in its own bytes."""
    rng = draft.rng
    records = [
        pax_record(keyword, _pax_value(draft, keyword))
        for keyword in rng.choices(_KEYWORDS, k=rng.choice((1, 2, 4)))
    ]
    if rng.random() < 0.2:
        records.append(rng.choice((b"5 a=", b"0 a=b\n", b"999999999 a=b\n", b"7 =ab\n", b"\0\0")))
    return tar_member(rng.choice((b"x", b"x", b"g", b"X")), b"pax", b"".join(records))


def _sparse_1_0(draft: Draft) -> bytes:
    rng = draft.rng
    count = rng.choice((0, 1, 2, 3, draft.number()))
    numbers = [rng.choice((0, 3, 512, 9000, draft.number())) for _ in range(rng.choice((2, 4, 6)))]
    text = b"".join(b"%d\n" % number for number in [count, *numbers])
    keywords = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", rng.choice(NAMES)),
        ("GNU.sparse.realsize", b"%d" % rng.choice((0, 512, 10_000, draft.number()))),
    ]
    content = text.ljust(BLOCK_BYTES, b"\0") + b"s" * rng.choice((0, 3, 512, 515))
    return pax_member(keywords) + tar_member(b"0", b"sparse", content)


def _old_sparse(draft: Draft) -> bytes:
    rng = draft.rng
    content = b"s" * rng.choice((0, 3, 512, 515))
    block = bytearray(tar_member(b"S", rng.choice(NAMES), content))
    block[257:265] = b"ustar  \0"
    for at in range(386, 386 + 24 * rng.choice((0, 1, 2, 4)), 12):
        value = rng.choice((0, 3, 512, 4096, draft.number()))
        block[at : at + 12] = encoded(value, 11, "octal") + b"\0"
    block[482] = rng.choice((0, 0, 1))
    block[483:495] = encoded(rng.choice((0, 512, 5000, draft.number())), 11, "octal") + b"\0"
    sum_tar_header(block, 0)
    return bytes(block)


def _member(draft: Draft) -> bytes:
    """A member with a header of any kind."""
    rng = draft.rng
    content = rng.choice((b"", b"x", b"y" * 513, rng.choice(NAMES) + b"\0"))
    raw = bytearray(
        tar_member(rng.choice(_TAR_FLAGS), rng.choice(NAMES), content, link=rng.choice(NAMES))
    )
    if rng.random() < 0.3:
        raw[257:265] = rng.choice(_MAGICS)
    if rng.random() < 0.2:
        raw[345:500] = rng.choice(NAMES)[:155].ljust(155, b"\0")
    if rng.random() < 0.3:
        offset, width = rng.choice(((100, 8), (124, 12), (136, 12)))
        raw[offset : offset + width] = _tar_number(draft, width)
    sum_tar_header(raw, 0)
    return bytes(raw)


def _tar_number(draft: Draft, width: int) -> bytes:
    """A number field: octal, in base 256 (also negative), or none."""
    kind = draft.rng.randrange(4)
    if kind == 0:
        return encoded(draft.number(), width, "octal")
    if kind == 1:
        return b"\x80" + encoded(draft.number(), width - 1, "big")
    if kind == 2:
        return b"\xff" + draft.rng.choice((b"\xff", b"\0")) * (width - 1)
    return draft.rng.choice((b"8", b" ", b"-1", b"0x1", b"1 2", b"\0" * 3 + b"7")).ljust(
        width, b" "
    )


def insert_tar_members(draft: Draft) -> None:
    """Members, and headers about members, before any of those that were there."""
    makers = (_member, _member, _member, _pax, _pax, _sparse_1_0, _old_sparse)
    made = b"".join(draft.rng.choice(makers)(draft) for _ in range(draft.rng.choice((1, 2, 3))))
    draft.insert(draft.rng.choice([*draft.original.marks["headers"], 0]), made)


def rename_tar_member(draft: Draft) -> None:
    """Another name or target in a header."""
    at = draft.rng.choice(draft.original.marks["headers"])
    offset = draft.rng.choice((0, 157))
    draft.put(at + offset, draft.rng.choice(NAMES)[:100].ljust(100, b"\0"))


# cpio ---------------------------------------------------------------------------------------------

_CPIO_MODES: Final = (
    0o100644,
    0o100755,
    0o40755,
    0o120777,
    0o10644,
    0o60600,
    0o140755,
    0,
    0o177777,
)


def insert_cpio_members(draft: Draft) -> None:
    """Members before any of those that were there."""
    rng, made = draft.rng, b""
    for _ in range(rng.choice((1, 2, 3))):
        made += cpio_member(
            rng.choice((b"070701", b"070702", b"070707")),
            rng.choice(NAMES),
            rng.choice((b"", b"x", b"content", rng.choice(NAMES))),
            mode=rng.choice(_CPIO_MODES),
            inode=rng.choice((1, 2, 9)),
            links=rng.choice((0, 1, 2, 3)),
        )
        made += rng.choice((b"", b"", b"\0", bytes(512)))
    draft.insert(rng.choice([*draft.original.marks["headers"], 0]), made)


# FAT ----------------------------------------------------------------------------------------------


def link_clusters(draft: Draft) -> None:
    """Entries of both FATs that lead anywhere."""
    at, length, bits, clusters, used = draft.original.marks["fat"]
    rng = draft.rng
    for _ in range(rng.choice((1, 1, 2, 5))):
        cluster = rng.randint(0, used)
        value = rng.choice(
            (rng.randint(2, used), rng.randint(0, 3), clusters + rng.randint(0, 3), cluster + 1,
             0x0FFFFFF0 + rng.randrange(16), cluster)
        )  # fmt: skip
        link(draft.data, (at, length, bits), cluster, value)


def change_entry(draft: Draft) -> None:
    """A directory entry's cluster, size, kind or name."""
    rng = draft.rng
    used = draft.original.marks["fat"][4]
    slot = rng.choice(draft.original.marks["slots"])
    offset, raw = rng.choice(
        (
            (26, struct.pack("<H", rng.randint(0, used + 1))),
            (20, struct.pack("<H", rng.choice((0, 1, 0x0FFF, 0xFFFF)))),
            (28, struct.pack("<I", rng.choice((0, 1, 512, 513, 1024, 5000, 0xFFFFFFFF)))),
            (11, bytes([rng.choice((0x10, 0x20, 0x0F, 0x08, 0x18, 0x00, 0xFF))])),
            (0, rng.choice((b"\xe5", b"\0", b".", b"\x05", b"/", b" " * 11, b"..         "))),
            (12, rng.randbytes(14)),
            (1, rng.randbytes(10)),
        )
    )
    draft.put(slot + offset, raw)


def copy_entry(draft: Draft) -> None:
    """An entry also stands in another slot."""
    source, target = draft.rng.choices(draft.original.marks["slots"], k=2)
    draft.put(target, bytes(draft.data[source : source + 32]))
    draft.moved = True


# Tables of records --------------------------------------------------------------------------------


def set_fields(draft: Draft) -> None:
    """Several fields at once: what one check refuses, two that agree may pass."""
    for _ in range(draft.rng.choice((2, 3, 6))):
        set_field(draft)
