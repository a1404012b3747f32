"""Tar archives that are damaged, forged or strange: a listed error or a correct answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import tar as tar_module
from capstore.images.devices import MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.images.tar import index_tar
from capstore.images.tar_header import parse_header
from capstore.schema.errors import Corrupt, StorageError
from capstore.schema.limits import MIB
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.archives import END, SECOND, Served, block, member, pax, summed
from tests.images.badtar import AFTER, BEFORE, between, reasons, rest, tar

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
