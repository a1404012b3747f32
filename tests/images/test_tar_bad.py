"""Tar archives that are damaged, forged or strange: a listed error or a correct answer."""

from __future__ import annotations

import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import tar as tar_module
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.images.tar import LONG_NAME_BYTES_MAX, index_tar
from capstore.images.tar_header import parse_header
from capstore.images.tar_pax import parse_time
from capstore.schema.errors import Corrupt, StorageError, TooLarge
from capstore.schema.limits import MIB, PAX_BYTES_MAX
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.archives import END, SECOND, Served, block, member, pax, serve, summed


def tar(raw: bytes | BlockDevice) -> Served:
    return serve(raw, index_tar)


def reasons(served: Served) -> list[str]:
    return [finding.message for finding in served.findings]


BEFORE = member(b"before", name=b"before")
AFTER = member(b"after", name=b"after") + END


def between(raw: bytes) -> Served:
    """What becomes of `raw` between two good members, which must be served."""
    served = tar(BEFORE + raw + AFTER)
    paths = served.paths()
    assert paths["before"] == b"before"
    assert paths["after"] == b"after"
    return served


def rest(served: Served) -> dict[str, object]:
    return {path: what for path, what in served.paths().items() if path not in ("before", "after")}


# No archives, and parts of some -------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"hello\n" * 1000,
        b"\x1f\x8b" + bytes(2000),
        bytes(range(256)) * 8,
        b"\0" * 511 + b"x",
        block(name=b"a")[:511],
        bytes([block(name=b"a", magic=b"")[0] ^ 1]) + block(name=b"a", magic=b"")[1:],
    ],
    ids=range(7),
)
def test_what_is_no_archive(raw: bytes) -> None:
    with pytest.raises(Corrupt, match="no tar archive"):
        tar(raw)


def small_archive() -> tuple[bytes, dict[str, bytes | str | NodeKind]]:
    """An archive with a header of each kind, and what is in it."""
    name = "long/" + "n" * 120
    raw = pax({"path": name.encode() + b"x"}) + member(b"c" * 600, name=name.encode()[:100])
    raw += member(name.encode() + b"L\0", flag=b"L") + member(b"C", name=name.encode()[:100])
    raw += member(name=b"d/", flag=b"5") + member(name=b"d/l", flag=b"2", link=b"target")
    raw += member(b"x" * 10, name=b"d/f") + member(name=b"h", flag=b"1", link=b"d/f") + END
    return raw, {
        "long": NodeKind.DIRECTORY,
        name + "x": b"c" * 600,
        name + "L": b"C",
        "d": NodeKind.DIRECTORY,
        "d/l": "target",
        "d/f": b"x" * 10,
        "h": b"x" * 10,
    }


def assert_true_or_damaged(served: Served, contents: dict[str, bytes | str | NodeKind]) -> None:
    for path, what in served.paths().items():
        assert path in contents
        assert what == contents[path] or isinstance(what, Corrupt)


def test_truncation_at_every_length() -> None:
    raw, contents = small_archive()
    assert tar(raw).paths() == contents
    last = None
    for length in range(1, len(raw) - 512):
        index = IndexBuilder(bytes_max=MIB)
        try:
            index_tar(MemoryDevice(raw[:length], read_only=True), index)
        except Corrupt:
            assert length < 512
            continue
        outcome = (index.table.bytes_used, [finding.message for finding in index.findings])
        if outcome == last:
            continue
        last = outcome
        served = tar(raw[:length])
        assert_true_or_damaged(served, contents)
        damaged = any(isinstance(what, Corrupt) for what in served.paths().values())
        assert damaged or served.findings, length


def header_offsets(raw: bytes) -> list[int]:
    return [at for at in range(0, len(raw), 512) if parse_header(raw[at : at + 512])]


def test_no_flipped_bit_in_a_header_is_accepted() -> None:
    raw, _ = small_archive()
    offsets = header_offsets(raw)
    assert len(offsets) == 8
    for offset in offsets:
        header = bytearray(raw[offset : offset + 512])
        for bit in range(512 * 8):
            header[bit // 8] ^= 1 << bit % 8
            found = parse_header(bytes(header))
            if 148 <= bit // 8 < 156:  # a digit may become another sign for the same number
                assert found in (None, parse_header(raw[offset : offset + 512]))
            else:
                assert found is None, (offset, bit)
            header[bit // 8] ^= 1 << bit % 8


def test_a_flipped_bit_in_a_header_concerns_its_member_alone(stride: int) -> None:
    raw, contents = small_archive()
    for offset in header_offsets(raw):
        for bit in range(0, 512 * 8, 23 * stride):
            flipped = bytearray(raw)
            flipped[offset + bit // 8] ^= 1 << bit % 8
            try:
                served = tar(bytes(flipped))
            except Corrupt:
                assert offset == 0
                assert 257 <= bit // 8 < 262  # the magic, without which it could be anything
                continue
            assert served.findings or (148 <= bit // 8 < 156 and served.paths() == contents)
            assert_true_or_damaged(served, contents)
            lost = [
                path
                for path, what in contents.items()
                if what is not NodeKind.DIRECTORY and served.paths().get(path) != what
            ]
            # A link goes with the file that it is another name of.
            assert len(lost) <= 1 or lost == ["d/f", "h"]


def test_a_flipped_bit_in_what_extends_a_header() -> None:
    raw, contents = small_archive()
    others = {path: what for path, what in contents.items() if "long" not in path}
    for at in (512, 2048 + 512):
        for bit in range(0, 160 * 8, 5):
            flipped = bytearray(raw)
            flipped[at + bit // 8] ^= 1 << bit % 8
            paths = tar(bytes(flipped)).paths()
            assert {path: paths[path] for path in others} == others


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_raise_nothing_foreign(data: st.DataObject) -> None:
    raw = bytearray(small_archive()[0])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(st.binary(max_size=12))
        raw[at : at + len(piece)] = piece
    # The checksums of some are made right again, so that what is behind them is read.
    for offset in range(0, len(raw) - 511, 512):
        if data.draw(st.booleans()):
            raw[offset : offset + 512] = summed(bytes(raw[offset : offset + 512]))
    try:
        served = tar(bytes(raw))
    except StorageError:
        return
    for what in served.paths().values():
        assert isinstance(what, bytes | str | NodeKind | Corrupt)


# The search for a next header ---------------------------------------------------------------------


def test_the_walk_goes_on_behind_a_damaged_header() -> None:
    inner = member(b"inner", name=b"inner")
    damaged = bytearray(member(inner, name=b"inner.tar"))
    damaged[3] ^= 1
    served = between(bytes(damaged))
    # The size leads over the archive within.
    assert rest(served) == {}
    assert reasons(served) == ["a header has a wrong checksum"]
    assert served.findings[0].offset == len(BEFORE)
    damaged[124:136] = b"\xff" * 12
    assert rest(between(bytes(damaged))) == {"inner": b"inner"}


def test_a_member_whose_extended_header_is_damaged_is_not_served() -> None:
    for extension in (pax({"path": b"true"}), member(b"true\0", flag=b"L")):
        damaged = bytearray(extension)
        damaged[0] ^= 1
        served = between(bytes(damaged) + member(b"x", name=b"false"))
        assert rest(served) == {}
        assert "the header before it, which may have named it, is damaged" in reasons(served)


def test_a_plain_header_damaged_behind_its_extension() -> None:
    damaged = bytearray(member(b"x", name=b"a"))
    damaged[0] ^= 1
    served = tar(BEFORE + pax({"path": b"b"}) + bytes(damaged) + member(b"c", name=b"c") + AFTER)
    assert rest(served) == {"c": b"c"}


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "TAR_SEARCH_BYTES_MAX", 4096 + 512)
    damaged = bytearray(member(b"x" * 3000, name=b"a", size=b"junk"))
    assert rest(between(bytes(damaged))) == {}
    served = tar(BEFORE + bytes(damaged) + b"x" * 4096 + AFTER)
    assert served.paths() == {"before": b"before"}
    assert any("bytes that are searched" in reason for reason in reasons(served))


def test_many_damaged_headers_take_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = bytearray(block(name=b"a", size=b"77777777"))
    bad[0] ^= 1
    raw = BEFORE + (bytes(bad) + block(name=b"ok")) * 10_000 + bytes(1 << 24)
    start = time.process_time()
    served = tar(raw)
    assert served.paths()["ok"] == b""
    assert time.process_time() - start < 5
    monkeypatch.setattr(tar_module, "TAR_SEARCH_BYTES_MAX", 10 * 256 * 1024)
    assert len(tar(raw).findings) < 20


def test_a_lone_block_of_zeros_ends_the_archive() -> None:
    served = tar(BEFORE + bytes(512) + AFTER)
    assert served.paths() == {"before": b"before"}
    assert "a single block of zeros" in reasons(served)[0]


class Failing(MemoryDevice):
    """A device whose bytes from `good` on are damaged."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self._good = good

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > self._good:
            raise Corrupt("the compressed data is damaged")
        super().read_into(offset, view)


def test_what_comes_before_damage_of_the_device_is_served() -> None:
    raw = b"".join(member(b"%d" % number * 50, name=b"%d" % number) for number in range(100)) + END
    served = tar(Failing(raw, 50 * 1024))
    assert list(served.paths().values()) == [
        b"%s" % name.encode() * 50 for name in sorted(map(str, range(50)))
    ]
    assert reasons(served) == ["the archive cannot be read on: the compressed data is damaged"]
    with pytest.raises(Corrupt, match="compressed"):
        tar(Failing(raw, 100))


def test_long_members_are_not_read() -> None:
    class Counting(MemoryDevice):
        count = 0

        def read_into(self, offset: int, view: memoryview) -> None:
            Counting.count += len(view)
            super().read_into(offset, view)

    raw = b"".join(member(bytes(1 << 20), name=b"%d" % number) for number in range(40)) + END
    seen: list[int] = []
    index = IndexBuilder(bytes_max=MIB)
    index_tar(Counting(raw), index, progress=seen.append)
    assert Counting.count < len(raw) // 8
    assert seen == sorted(seen)
    assert seen[-1] > 38 << 20


# Fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [b"junk", b"-1", b"+7", b"0x1", b"1_0", b"8", b"\xff" * 12])
def test_sizes_that_are_none(size: bytes) -> None:
    served = between(block(name=b"a", size=size))
    assert rest(served) == {}
    assert reasons(served) == ["its size is no number"]


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"77777777777", b"\x80\0\0\0\x7f" + b"\xff" * 7]
)
def test_sizes_beyond_the_archive(size: bytes) -> None:
    served = tar(BEFORE + block(name=b"a", size=size) + AFTER)
    assert served.paths()["before"] == b"before"
    if "a" in served.paths():
        assert str(served.paths()["a"]) == (
            "corrupt: tar member at offset 1024: the archive ends before the file does"
        )
    else:
        assert reasons(served) == ["its size is no number"]


def test_other_numbers_that_are_none() -> None:
    served = between(block(name=b"a", mode=b"rwx", mtime=b"today"))
    assert rest(served) == {"a": b""}
    assert reasons(served) == [
        "its mode is no number; it is served",
        "its time is none; it is served",
    ]
    assert served.tree.stat(served.node("a")).provenance is Provenance.UNKNOWN
    served = between(block(name=b"a", mtime=b"\x80" + b"\xff" * 11))
    assert reasons(served) == ["its time is none; it is served"]


def test_numbers_as_old_tars_write_them() -> None:
    for size in (
        b"          5 ",
        b"00000000005 ",
        b"000000000005",
        b"5",
        b"\x80" + bytes(10) + b"\5",
    ):
        served = between(block(name=b"a", size=size) + b"hello".ljust(512, b"\0"))
        assert rest(served) == {"a": b"hello"}
        assert served.findings == []
    served = between(block(name=b"a", mtime=b"\xff" * 12))
    assert served.tree.stat(served.node("a")).modified == -SECOND
    served = between(block(name=b"a", mtime=b"", mode=b"", size=b"", magic=b""))
    assert served.findings == []


def test_signed_checksums() -> None:
    served = between(block(signed=True, name="é".encode()) + block(name=b"\xff"))
    assert rest(served) == {"é": b"", "\uefff": b""}
    assert served.findings == []


@pytest.mark.parametrize("name", [b"", b".", b"a/.", b"..", b"../x", b"a/../b"])
def test_names_that_are_none(name: bytes) -> None:
    served = between(member(b"x", name=name))
    assert len(served.findings) == 1
    assert b"x" not in rest(served).values()


def test_types() -> None:
    raw = b"".join(
        member(name=b"%c" % flag, flag=b"%c" % flag) for flag in b"\x003467MNAEIzq" if flag
    )
    raw += member(b"meta", name=b"star", flag=b"S")
    served = between(raw)
    assert rest(served) == {
        "3": NodeKind.SPECIAL,
        "4": NodeKind.SPECIAL,
        "6": NodeKind.SPECIAL,
        "7": b"",
        "q": b"",
        "z": b"",
    }
    assert len(served.findings) == 6


def test_sizes_of_what_has_no_content() -> None:
    """Some writers give a directory or a link a size and store nothing, others store it."""
    kinds = {"5": b"", "2": b"target", "1": b"before"}
    for flag, link in kinds.items():
        header = block(name=b"a", flag=flag.encode(), link=link, size=b"1000")
        for content in (b"", b"content".ljust(512, b"\0")):
            served = between(header + content)
            assert served.findings == []
            assert set(rest(served)) == {"a"}


def test_a_v7_directory_ends_with_a_slash() -> None:
    assert rest(between(block(name=b"a/", magic=b"", flag=b"\0"))) == {"a": NodeKind.DIRECTORY}


# Links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"self", b"missing", b"../out", b"/etc/passwd", b"", b"later"])
def test_hard_links_to_nothing(target: bytes) -> None:
    served = between(block(name=b"self", flag=b"1", link=target) + member(b"l", name=b"later"))
    paths = served.paths()
    if target == b"":
        assert "directory" in str(paths["self"])
    else:
        assert "hard link to what is not in the archive" in str(paths["self"])
    assert paths["later"] == b"l"


def test_a_hard_link_to_a_directory_makes_no_cycle() -> None:
    raw = block(name=b"d/", flag=b"5") + block(name=b"d/up", flag=b"1", link=b"d")
    served = between(raw)
    assert "hard link to a directory" in str(served.paths()["d/up"])


def test_a_hard_link_keeps_what_it_was_bound_to() -> None:
    raw = member(b"old", name=b"a") + block(name=b"b", flag=b"1", link=b"./a")
    raw += member(b"new", name=b"a") + block(name=b"b", flag=b"1", link=b"b")
    assert rest(between(raw)) == {"a": b"new", "b": b"old"}


def test_symbolic_links_are_data() -> None:
    raw = block(name=b"out", flag=b"2", link=b"/etc/passwd") + block(name=b"e", flag=b"2")
    served = between(raw + block(name=b"me", flag=b"2", link=b"me"))
    assert rest(served) == {"out": "/etc/passwd", "me": "me"}
    assert reasons(served) == ["it is a symbolic link whose target is none"]


# Extended headers ---------------------------------------------------------------------------------

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


# Sparse members -----------------------------------------------------------------------------------


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


# The oracle ---------------------------------------------------------------------------------------


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
