"""Sparse members of tar whose maps are broken, forged or strange, and what GNU tar says of them."""

from __future__ import annotations

import subprocess
import tracemalloc
from pathlib import Path

import pytest

from capstore.images import tar as tar_module
from capstore.images.devices import MemoryDevice
from capstore.schema.errors import Corrupt
from capstore.schema.limits import MIB
from capstore.schema.nodes import NodeKind
from tests.images.archives import END, block, member, pax, summed
from tests.images.badtar import BEFORE, between, reasons, rest, tar


def sparse_1_0(text: bytes, data: bytes, *, real: bytes = b"10000") -> bytes:
    keywords = {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"s",
        "GNU.sparse.realsize": real,
    }
    stored = text.ljust(len(text) + -len(text) % 512, b"\0") + data
    return pax(keywords) + member(stored, name=b"GNUSparseFile.1/s")


def sparse_0_1(text: bytes, data: bytes, **more: bytes) -> bytes:
    keywords = {"size": b"10000", "name": b"s", **more, "map": text}
    records = {f"GNU.sparse.{key}": value for key, value in keywords.items()}
    return pax(records) + member(data, name=b"GNUSparseFile.1/s")


GOOD = b"2\n0\n512\n9000\n3\n"


def test_good_maps() -> None:
    data = b"a" * 512 + b"end"
    expected = (b"a" * 512).ljust(9000, b"\0") + b"end".ljust(1000, b"\0")
    for raw in (sparse_1_0(GOOD, data), sparse_0_1(b"0,512,9000,3", data, numblocks=b"2")):
        served = between(raw)
        assert rest(served) == {"s": expected}
        assert served.findings == []


BAD_MAPS = {
    "overlapping": (b"2\n0\n512\n100\n3\n", b"a" * 515),
    "descending": (b"2\n9000\n512\n0\n3\n", b"a" * 515),
    "beyond the file": (b"1\n9999\n2\n", b"ab"),
    "beyond any number": (b"1\n%d\n2\n" % (2**63 - 1), b"ab"),
    "more than is stored": (b"1\n0\n5000\n", b"ab"),
    "less than is stored": (b"1\n0\n2\n", b"ab" * 500),
    "within a block": (b"2\n0\n3\n100\n3\n", b"abcdef"),
    "count too high": (b"3\n0\n512\n9000\n3\n", b"a" * 515),
    "huge count": (b"99999999\n0\n1\n", b"a"),
    "no number": (b"1\nx\n1\n", b"a"),
    "negative": (b"1\n-1\n1\n", b"a"),
    "empty": (b"", b""),
    "no end": (b"1\n0", b""),
}


@pytest.mark.parametrize(("text", "data"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_bad_maps_in_the_data(text: bytes, data: bytes) -> None:
    served = between(sparse_1_0(text, data))
    assert isinstance(rest(served)["s"], Corrupt)


@pytest.mark.parametrize(
    "text", [b"0,512,100,3", b"0,515,1", b"0,,515,1", b"x", b"0,514", b"0,99999999999999999999"]
)
def test_bad_maps_in_the_header(text: bytes) -> None:
    served = between(sparse_0_1(text, b"a" * 515))
    assert isinstance(rest(served)["s"], Corrupt)


def test_other_bad_sparse_headers() -> None:
    for raw in (
        sparse_0_1(b"0,3", b"abc", numblocks=b"2"),
        sparse_0_1(b"0,3", b"abc", major=b"7"),
        sparse_0_1(b"0,3", b"abc", realsize=b"-5"),
        sparse_1_0(GOOD, b"a" * 515, real=b"9002"),
        sparse_1_0(GOOD, b"a" * 515, real=b"%d" % 2**63),
    ):
        assert isinstance(rest(between(raw))["s"], Corrupt)
    pairs = pax(b"26 GNU.sparse.numbytes=0\n" + b"25 GNU.sparse.offset=0\n")
    assert rest(between(pairs + member(b"x", name=b"s"))) == {}


def old_sparse(
    entries: bytes, data: bytes, *, real: bytes = b"10000", more: bytes = b"", name: bytes = b"s"
) -> bytes:
    header = block(
        name=name,
        flag=b"S",
        magic=b"ustar  \0",
        size=b"%o" % len(data),
        sparse=entries.ljust(96, b"\0") + (b"\1" if more else b"\0"),
        real=real,
    )
    return header + more + data.ljust(len(data) + -len(data) % 512, b"\0")


def entry(offset: int, length: int) -> bytes:
    return b"%011o\0%011o\0" % (offset, length)


def test_old_gnu_maps() -> None:
    more = (entry(4, 1) + entry(4000, 0)).ljust(512, b"\0")
    served = between(old_sparse(entry(0, 1), b"a", real=b"12"))
    assert rest(served) == {"s": b"a" + bytes(9)}
    served = between(old_sparse(entry(0, 0), b"b", real=b"10000", more=more))
    assert rest(served) == {"s": b"\0\0\0\0b" + bytes(4091)}
    for bad in (
        old_sparse(entry(100, 1), b"a", real=b"12"),
        old_sparse(b"junk", b"a"),
        old_sparse(entry(0, 1) * 2, b"ab"),
        old_sparse(entry(0, 1), b"a", real=b"x"),
        old_sparse(entry(0, 3), b"a"),
        old_sparse(entry(0, 1), b"a", more=b"garbage".ljust(24, b"9").ljust(512, b"\0")),
    ):
        served = between(bad)
        assert isinstance(rest(served)["s"], Corrupt)


def test_maps_within_maps_take_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a header whose map goes on in all blocks behind it."""
    monkeypatch.setattr(tar_module, "TAR_SEARCH_BYTES_MAX", 16 * MIB)

    class Counting(MemoryDevice):
        taken = 0

        def read_into(self, offset: int, view: memoryview) -> None:
            self.taken += len(view)
            super().read_into(offset, view)

    raw = bytearray(old_sparse(b"", b"", more=b"x")[:512])
    raw[504] = 1
    device = Counting(BEFORE + summed(bytes(raw)) * 12_000)
    served = tar(device)
    assert isinstance(served.paths()["s"], Corrupt)
    assert "no header within the bytes that are searched; the rest is not shown" in reasons(served)
    assert device.taken < 100 * MIB


def test_an_old_gnu_map_without_end() -> None:
    served = tar(BEFORE + old_sparse(entry(0, 1), b"", more=b"\0" * 504 + b"\1" * 8) + b"\1" * 4096)
    assert isinstance(served.paths()["s"], Corrupt)


def test_memory_is_bounded_by_the_archive() -> None:
    text = b"100000\n" + b"0\n0\n" * 100_000
    raw = sparse_1_0(text, b"", real=b"0") + END
    tracemalloc.start()
    served = tar(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert served.paths() == {"s": b""}
    assert peak < 100 * len(raw)


def test_gnu_tar_agrees_about_strange_archives(tmp_path: Path) -> None:
    """What is served of these is what GNU tar unpacks."""
    parts = b"a" * 512 + b"end"
    raw = (
        pax({"mtime": b"5"}, flag=b"g")
        + sparse_0_1(b"0,512,9000,3,10000,0", parts, numblocks=b"3", name=b"t")
        + sparse_1_0(b"3\n0\n512\n9000\n3\n10000\n0\n", parts)
        + old_sparse(
            entry(0, 512) + entry(4000, 3) + entry(8192, 0), parts, real=b"20000", name=b"old"
        )
        + member(b"long", name=b"x/" * 3 + b"y")
        + block(name=b"dir/", flag=b"0")
        + block(name=b"hard", flag=b"1", link=b"s")
        + END
    )
    (tmp_path / "a.tar").write_bytes(raw)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", out], check=True)
    found = {
        str(path.relative_to(out)): path.read_bytes() if path.is_file() else NodeKind.DIRECTORY
        for path in out.rglob("*")
    }
    assert tar(raw).paths() == found
