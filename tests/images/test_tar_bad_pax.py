"""Extended headers of tar that are broken, forged or without end."""

from __future__ import annotations

import time

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.images.tar import LONG_NAME_BYTES_MAX, index_tar
from capstore.images.tar_pax import parse_time
from capstore.schema.errors import TooLarge
from capstore.schema.limits import MIB, PAX_BYTES_MAX
from tests.images.archives import END, SECOND, block, member, pax
from tests.images.badtar import AFTER, BEFORE, between, reasons, rest, tar

BAD_RECORDS = {
    "no length": b"path=a\n",
    "zero length": b"0 path=a\n",
    "length too long": b"99 path=a\n",
    "length too short": b"5 path=a\n",
    "length of length alone": b"2 path=a\n",
    "length of many digits": b"00000000000000000009 path=a\n",
    "no equals sign": b"9 path a\n",
    "no keyword": b"6 =a\n\n",
    "no newline": b"10 path=ab",
    "huge length": b"999999999999 path=a\n",
    "negative length": b"-9 path=a\n",
    "size": pax_size(b"abc")
    if (pax_size := lambda v: b"%d size=%s\n" % (9 + len(v) - 1, v))
    else b"",
}


@pytest.mark.parametrize("records", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_broken_pax_headers(records: bytes) -> None:
    served = between(pax(records) + member(b"x", name=b"short"))
    assert rest(served) == {}
    assert len(served.findings) == 1


def test_pax_keywords() -> None:
    served = between(
        pax({"mtime": b"5", "path": b"global", "size": b""}, flag=b"g")
        + pax({"mtime": b"-1.2345678901", "path": b"own", "SCHILY.xattr.user.x": b"\0=\n\xff"})
        + member(b"1", name=b"x")
        + pax({"path": b"", "mtime": b""})
        + member(b"2", name=b"y", mtime=b"7")
        + pax({"path": b"", "mtime": b""}, flag=b"g")
        + member(b"3", name=b"z", mtime=b"7")
    )
    assert rest(served) == {"own": b"1", "y": b"2", "z": b"3"}
    assert served.findings == []
    assert served.tree.stat(served.node("own")).modified == -1_234_567_891
    assert served.tree.stat(served.node("y")).modified == 7 * SECOND


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", 0),
        (b"1.", SECOND),
        (b"1.5", 1_500_000_000),
        (b"9007199254.740993001", 9_007_199_254_740_993_001),
        (b"-0.000000001", -1),
        (b"1.9999999999", 1_999_999_999),
        (b"-1.0000000001", -1_000_000_001),
        (b"9223372036.854775807", 2**63 - 1),
        (b"9223372036.854775808", None),
        (b"1e5", None),
        (b"", None),
        (b"nan", None),
        (b"1.5.5", None),
        (b" 1", None),
        (b"9" * 30, None),
    ],
)
def test_pax_times(text: bytes, time: int | None) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize("key", ["path", "linkpath"])
def test_a_long_path_for_all_is_not_looked_at_for_each(key: str) -> None:
    shared = pax({key: b"a/" * 100_000, "mtime": b"5"}, flag=b"g")
    links = b"".join(block(name=b"l%d" % number, flag=b"1", link=b"x") for number in range(500))
    begun = time.perf_counter()
    served = tar(shared + member(b"x", name=b"x") + links + END)
    assert time.perf_counter() - begun < 2
    assert served.paths()["l499"] == b"x"
    assert reasons(served) == ["a global header has a value over 4096 bytes"]
    assert served.tree.stat(served.node("x")).modified == 5 * SECOND


def test_pax_names_with_a_nul() -> None:
    served = between(pax({"path": b"a\0b"}) + member(b"x", name=b"short"))
    assert rest(served) == {}
    assert reasons(served) == ["its path has a NUL"]
    served = between(pax({"linkpath": b"a\0b"}) + member(name=b"l", flag=b"2", link=b"short"))
    assert rest(served) == {}


def test_binary_names() -> None:
    served = between(
        pax({"hdrcharset": b"BINARY", "path": b"\xff\xe9"}) + member(b"x", name=b"short")
    )
    assert rest(served) == {"\uefff\uefe9": b"x"}


def test_extended_headers_are_bounded() -> None:
    for size, flag in ((PAX_BYTES_MAX, b"x"), (LONG_NAME_BYTES_MAX, b"L")):
        served = between(member(bytes(size + 1), flag=flag) + member(b"x", name=b"short"))
        assert rest(served) == {}
        assert f"more than {size} bytes" in reasons(served)[0]
    served = tar(BEFORE + block(flag=b"g", size=b"77777777777") + AFTER)
    assert served.paths() == {"before": b"before"}


def test_an_extended_header_without_a_member() -> None:
    served = tar(BEFORE + pax({"path": b"a"}) + END)
    assert reasons(served) == ["an extended header without a member"]


def test_paths_nested_100000_deep() -> None:
    deep = pax({"path": b"d/" * 100_000 + b"f"}) + member(b"x", name=b"f")
    index = IndexBuilder(bytes_max=256 * MIB)
    index_tar(MemoryDevice(BEFORE + deep + AFTER), index)
    assert index.find(b"d/" * 100_000 + b"f") is not None
    assert index.find(b"after") is not None
    with pytest.raises(TooLarge):
        index_tar(MemoryDevice(BEFORE + deep + AFTER), IndexBuilder(bytes_max=MIB))
