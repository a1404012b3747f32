"""Cpio archives: what other tools made is shown as it was packed; what is damaged says so."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import cpio as cpio_module
from capstore.images.cpio import index_cpio
from capstore.images.cpio_build import CpioBuilder
from capstore.images.cpio_content import SummedContent
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.schema.errors import Corrupt, InvalidArgument, StorageError, Unsupported
from capstore.schema.limits import MIB
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.archives import Served, plant, planted, run, serve, shown
from tests.images.trees import File, Folder, Hard, Link, push

CPIO = Provenance.CPIO_HEADER


def cpio(raw: bytes | BlockDevice) -> Served:
    return serve(raw, index_cpio)


def reasons(served: Served) -> list[str]:
    return [finding.message for finding in served.findings]


# Other tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["newc", "crc", "odc"])
def test_gnu_cpio(form: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    plant(root, whole_seconds=True)
    names = run("find", ".", "-print0", cwd=root)
    raw = run("cpio", "-0", "-o", "-H", form, "--quiet", cwd=root, stdin=names)
    served = cpio(raw)
    assert served.findings == []
    assert shown(served) == planted(root, CPIO)
    assert served.node("hard") == served.node("d/a.txt") == served.node("z hard")
    assert served.tree.stat(served.node("hard")).link_count == 3


@pytest.mark.parametrize("form", ["newc", "odc"])
def test_bsdtar(form: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    plant(root, whole_seconds=True)
    raw = run("bsdtar", "--format", form, "-C", root, "-cf", "-", ".", cwd=tmp_path)
    served = cpio(raw)
    assert served.findings == []
    assert shown(served) == planted(root, CPIO)
    assert served.node("hard") == served.node("d/a.txt")


def test_the_old_binary_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    raw = run("cpio", "-o", "-H", "bin", "--quiet", cwd=tmp_path, stdin=b"f\n")
    with pytest.raises(Unsupported):
        cpio(raw)


# By hand ------------------------------------------------------------------------------------------


def newc(
    name: bytes,
    content: bytes = b"",
    *,
    mode: int = 0o100644,
    ino: int = 1,
    nlink: int = 1,
    check: int | None = None,
    size: int | None = None,
    name_size: int | None = None,
) -> bytes:
    magic = b"070701" if check is None else b"070702"
    numbers = [ino, mode, 0, 0, nlink, 5, len(content) if size is None else size, 0, 0, 0, 0]
    numbers += [len(name) + 1 if name_size is None else name_size, check or 0]
    raw = magic + b"".join(b"%08x" % number for number in numbers) + name + b"\0"
    return padded(padded(raw) + content)


def padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def odc(name: bytes, content: bytes = b"", *, ino: int = 1, nlink: int = 1) -> bytes:
    numbers = b"%06o" * 7 % (1, ino, 0o100644, 0, 0, nlink, 0)
    numbers += b"%011o%06o%011o" % (5, len(name) + 1, len(content))
    return b"070707" + numbers + name + b"\0" + content


TRAILER = newc(b"TRAILER!!!", mode=0)
BEFORE = newc(b"before", b"before")
AFTER = newc(b"after", b"after") + TRAILER


def between(raw: bytes) -> tuple[dict[str, object], list[str]]:
    """What becomes of `raw` between two good members, which must be served."""
    served = cpio(BEFORE + raw + AFTER)
    paths: dict[str, object] = {**served.paths()}
    assert paths.pop("before") == b"before"
    assert paths.pop("after") == b"after"
    return paths, reasons(served)


@pytest.mark.parametrize(
    "raw", [b"", bytes(4096), b"07070", b"hello" * 100, BEFORE[:100], b"070701" + b"x" * 200]
)
def test_what_is_no_archive(raw: bytes) -> None:
    with pytest.raises(Corrupt, match="no cpio archive"):
        cpio(raw)


def test_links_within_newc() -> None:
    first, last = newc(b"a", ino=7, nlink=3), newc(b"b", b"data", ino=7, nlink=3)
    middle = newc(b"c", ino=7, nlink=3)
    for order in (first + middle + last, last + first + middle, first + last + middle):
        served = cpio(order + AFTER)
        assert served.paths() == {"a": b"data", "b": b"data", "c": b"data", "after": b"after"}
        assert served.node("a") == served.node("b") == served.node("c")
    # Inodes say nothing across archives, or where there is one link.
    served = cpio(last + TRAILER + newc(b"d", ino=7, nlink=3) + newc(b"e", b"e") + newc(b"f"))
    assert served.paths() == {"b": b"data", "d": b"", "e": b"e", "f": b""}


def test_links_within_odc() -> None:
    raw = odc(b"a", b"data", nlink=2) + odc(b"b", b"data", nlink=2) + odc(b"TRAILER!!!")
    served = cpio(raw)
    assert served.node("a") == served.node("b")
    # Files that share eighteen bits of their inodes.
    raw = odc(b"a", b"data", nlink=2) + odc(b"b", b"other", nlink=2) + odc(b"TRAILER!!!")
    assert cpio(raw).paths() == {"a": b"data", "b": b"other"}


def test_checksums_are_verified() -> None:
    content = bytes(range(256)) * 5000
    good = newc(b"f", content, check=sum(content))
    assert cpio(good + TRAILER).paths() == {"f": content}
    for at in (0, 700_000, len(content) - 1):
        flipped = bytearray(good)
        flipped[112 + at] ^= 4
        paths, _ = between(bytes(flipped))
        assert "wrong checksum" in str(paths["f"])
    last = newc(b"g", b"data", check=sum(b"data"), nlink=2)
    both, _ = between(newc(b"f", nlink=2, check=0) + last)
    assert both == {"f": b"data", "g": b"data"}
    wrong, _ = between(newc(b"f", nlink=2, check=0) + newc(b"g", b"data", check=1, nlink=2))
    assert "wrong checksum" in str(wrong["f"])


def test_summed_content() -> None:
    device = MemoryDevice(b"..data..")
    content = SummedContent(device, 4, 2, sum(b"data"))
    view = memoryview(bytearray(10))
    assert content.read_now(0, view) is None
    assert content.read_into(1, view) == 3
    assert bytes(view[:3]) == b"ata"
    assert content.read_now(2, view) == 2
    assert content.read_into(9, view) == 0
    with pytest.raises(InvalidArgument):
        content.read_into(-1, view)
    with pytest.raises(Corrupt):
        SummedContent(device, 4, 5, 0)
    empty = SummedContent(device, 0, 8, 0)
    assert empty.read_into(0, view) == 0


def test_archives_in_a_row() -> None:
    one = newc(b"a", b"1") + newc(b"b", b"1") + TRAILER
    two = newc(b"b", b"2") + TRAILER
    for padding in (0, 4, 512 - len(one) % 512, 1 << 20):
        served = cpio(one + bytes(padding) + two + bytes(padding))
        assert served.paths() == {"a": b"1", "b": b"2"}
        assert served.findings == []
    served = cpio(bytes(512) + one + odc(b"c", b"3") + odc(b"TRAILER!!!") + two)
    assert served.paths() == {"a": b"1", "b": b"2", "c": b"3"}


@pytest.mark.parametrize(
    ("tail", "word"),
    [
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh9", "bzip2"),
        (b"other", "something"),
    ],
)
def test_what_follows_the_last_archive(tail: bytes, word: str) -> None:
    raw = newc(b"a", b"1") + TRAILER + bytes(508)
    served = cpio(raw + tail)
    assert served.paths() == {"a": b"1"}
    (finding,) = served.findings
    assert finding.message.startswith(word)
    assert finding.offset == len(raw)


def test_zeros_between_archives_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio_module, "CPIO_SEARCH_BYTES_MAX", MIB)
    served = cpio(newc(b"a", b"1") + TRAILER + bytes(3 * MIB) + AFTER)
    assert served.paths() == {"a": b"1"}
    assert reasons(served) == ["too many zeros; the rest is not shown"]


def test_strange_members() -> None:
    for raw in (
        newc(b"../out", b"x"),
        newc(b"a\0b", b"x"),
        newc(b"l", b"", mode=0o120777),
        newc(b"l", b"a\0b", mode=0o120777),
        newc(b"l", b"t" * 5000, mode=0o120777),
        newc(b"t", b"x", mode=0o644),
        newc(b"n" * 256, b"x"),
        newc(b"short", b"x", name_size=0),
        newc(b"short", b"x", name_size=1 << 31),
    ):
        paths, why = between(raw)
        assert paths == {}
        assert len(why) == 1
    padded_name = newc(b"name\0\0\0\0\0", b"x")
    assert between(padded_name) == ({"name": b"x"}, [])
    device = newc(b"null", mode=0o020666) + newc(b"d", mode=0o040755) + newc(b"/d//f", b"f")
    paths, why = between(device)
    assert paths == {"null": NodeKind.SPECIAL, "d": NodeKind.DIRECTORY, "d/f": b"f"}
    assert why == []


def test_forged_sizes() -> None:
    served = cpio(BEFORE + newc(b"f", b"x", size=0xFFFFFFFF) + AFTER)
    assert served.paths()["before"] == b"before"
    assert "the archive ends before the file does" in str(served.paths()["f"])
    # A size that leads astray: the search finds what comes next.
    paths, why = between(newc(b"f", b"x" * 100, size=50))
    assert paths == {"f": b"x" * 50}
    assert why == ["a header is damaged or cut off"]


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = newc(b"x", name_size=4096)[:110] * 2000 + b"x" * 5000
    assert between(fakes)[0] == {}
    monkeypatch.setattr(cpio_module, "CPIO_SEARCH_BYTES_MAX", 300_000)
    served = cpio(BEFORE + fakes + AFTER)
    assert served.paths() == {"before": b"before"}
    assert "searched" in reasons(served)[-1]


SMALL = (
    newc(b"d", mode=0o040755)
    + newc(b"d/f", b"content", check=sum(b"content"))
    + newc(b"l", b"target", mode=0o120777)
    + newc(b"h", nlink=2, ino=9)
    + newc(b"i", b"linked", nlink=2, ino=9, check=sum(b"linked"))
    + TRAILER
    + odc(b"o", b"odc")
    + odc(b"TRAILER!!!")
)
CONTENTS = {
    "d": NodeKind.DIRECTORY,
    "d/f": b"content",
    "l": "target",
    "h": b"linked",
    "i": b"linked",
    "o": b"odc",
}


def test_truncation_at_every_length() -> None:
    assert cpio(SMALL).paths() == CONTENTS
    first_archive = SMALL.index(TRAILER) + len(TRAILER)
    for length in range(len(SMALL)):
        try:
            served = cpio(SMALL[:length])
        except Corrupt:
            assert length < 112
            continue
        for path, what in served.paths().items():
            # A name that waits for its content is empty until that comes.
            assert what == CONTENTS[path] or isinstance(what, Corrupt) or (path, what) == ("h", b"")
        damaged = any(isinstance(what, Corrupt) for what in served.paths().values())
        # The last bytes of an archive are padding.
        assert damaged or served.findings or first_archive - 4 < length <= first_archive


def test_every_flipped_bit() -> None:
    for bit in range(len(SMALL) * 8):
        flipped = bytearray(SMALL)
        flipped[bit // 8] ^= 1 << bit % 8
        index = IndexBuilder(bytes_max=MIB)
        try:
            index_cpio(MemoryDevice(flipped), index)
        except (Corrupt, Unsupported):
            assert bit < 8 * 112
    start = SMALL.index(b"content")
    for bit in range(7 * 8):
        flipped = bytearray(SMALL)
        flipped[start + bit // 8] ^= 1 << bit % 8
        assert isinstance(cpio(bytes(flipped)).paths()["d/f"], Corrupt)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_raise_nothing_foreign(data: st.DataObject) -> None:
    raw = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"ffffffff", b"00000000"]))
        raw[at : at + len(piece)] = piece
    try:
        served = cpio(bytes(raw))
    except StorageError:
        return
    for what in served.paths().values():
        assert isinstance(what, bytes | str | NodeKind | Corrupt)


def test_what_was_built_reads_back() -> None:
    tree = Folder({"a": File(b"x"), "b": Link("a"), "c": Hard(("a",)), "d": Hard(("b",))})
    stream = io.BytesIO()
    push(CpioBuilder(stream), tree)
    served = cpio(stream.getvalue())
    assert served.paths() == {"a": b"x", "b": "a", "c": b"x", "d": "a"}
    assert served.node("a") == served.node("c")
    assert served.findings == []
