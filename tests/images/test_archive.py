"""Archives as trees: the index that is kept, and when it is made again."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from capstore.images import archive, indexfile
from capstore.images.archive import ArchiveTree, open_archive
from capstore.images.device import BlockDevice
from capstore.images.formats import format_of, open_image
from capstore.images.index import IndexBuilder
from capstore.schema.errors import Busy, Corrupt, InvalidArgument, NotFound, TooLarge, Unsupported
from capstore.schema.nodes import NodeKind
from tests.images.trees import read_all

CONTENT = bytes(range(256)) * 20


def tar_of(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return raw.getvalue()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["plain", "gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    raw = tar_of({"a/one": CONTENT, "two": b"2"})
    file = tmp_path / "it.tar"
    file.write_bytes(gzip.compress(raw) if request.param == "gz" else raw)
    return file


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes over an archive that were made."""
    made: list[str] = []
    parse = archive._PARSERS["tar"]

    def counted(*arguments: object) -> None:
        made.append("tar")
        parse(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(archive._PARSERS, "tar", counted)
    return made


def content_of(tree: ArchiveTree, *path: str) -> bytes:
    at = tree.root
    for name in path:
        at = tree.lookup(at, name).stat.node_id
    return read_all(tree.content(at))


def check(path: Path, cache: Path | None) -> None:
    tree = open_archive(path, "tar", cache=cache)
    assert content_of(tree, "a", "one") == CONTENT
    assert content_of(tree, "two") == b"2"
    assert list(tree.verify()) == []
    tree.close()


def index_file(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def test_the_second_opening_reads_the_index(path: Path, cache: Path, passes: list[str]) -> None:
    check(path, cache)
    check(path, cache)
    assert passes == ["tar"]
    assert index_file(cache).stat().st_mode & 0o777 == 0o600


def test_without_a_cache_nothing_is_kept(path: Path, passes: list[str]) -> None:
    check(path, None)
    check(path, None)
    assert passes == ["tar", "tar"]
    assert [entry.name for entry in path.parent.iterdir()] == ["it.tar"]


def test_another_time_length_or_beginning_makes_it_again(
    path: Path, cache: Path, passes: list[str]
) -> None:
    check(path, cache)
    modified = path.stat().st_mtime_ns
    os.utime(path, ns=(modified, modified + 1))
    check(path, cache)
    assert len(passes) == 2
    path.write_bytes(path.read_bytes() + bytes(512))
    os.utime(path, ns=(modified, modified + 1))
    check(path, cache)
    assert len(passes) == 3
    raw = tar_of({"a/one": CONTENT, "2wo": b"2"})
    raw = raw.ljust(path.stat().st_size, b"\0")
    path.write_bytes(raw)
    os.utime(path, ns=(modified, modified + 1))
    tree = open_archive(path, "tar", cache=cache)
    assert content_of(tree, "2wo") == b"2"
    tree.close()
    assert len(passes) == 4


def test_a_damaged_index_is_made_again(path: Path, cache: Path, passes: list[str]) -> None:
    check(path, cache)
    kept = index_file(cache)
    good = kept.read_bytes()
    seen = 1
    for at in [*range(0, len(good), 97), len(good) - 1]:
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        kept.write_bytes(bad)
        check(path, cache)
        if at < 96 or at >= 512:  # what fills the header's block is not looked at
            seen += 1
        else:
            kept.write_bytes(good)
        assert len(passes) == seen, at
    for length in range(0, len(good), 211):
        kept.write_bytes(good[:length])
        check(path, cache)
        seen += 1
        assert len(passes) == seen


def test_a_cache_that_cannot_be_written_is_no_error(path: Path) -> None:
    check(path, path)  # a file where a directory should be


def test_a_time_that_no_index_holds_is_no_error(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filesystems hold times behind 2262, which are more than 63 bits of nanoseconds."""
    monkeypatch.setattr(archive, "_identity", lambda path: (1, 2, 1 << 63))
    check(path, cache)
    check(path, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "facts",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"findings": [], "dropped": "x"}',
        b'{"findings": [], "dropped": Infinity}',
        b'{"findings": 1, "dropped": 0}',
        b'{"findings": [["a"]], "dropped": 0}',
        b'{"findings": [["a", 1, 2]], "dropped": 0}',
        b'{"findings": [["a", "b", "c"]], "dropped": 0}',
        b'{"findings": [["a", "b", 1, 2]], "dropped": 0}',
        b"\xff",
    ],
)
def test_facts_that_are_none_make_it_again(
    facts: bytes, path: Path, cache: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write there can also make the checksums right."""
    with monkeypatch.context() as patched:
        patched.setattr(archive, "facts_of", lambda findings, dropped: facts)
        check(path, cache)
    check(path, cache)
    assert passes == ["tar", "tar"]
    check(path, cache)
    assert passes == ["tar", "tar"]


def test_an_archive_that_is_replaced_while_it_is_opened_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of the old file must not get the time of the new one."""
    path, other = tmp_path / "it.tar", tmp_path / "other.tar"
    path.write_bytes(tar_of({"old": b"1"}))
    other.write_bytes(tar_of({"new": b"1"}))
    os.utime(other, ns=(5, 5))
    of = indexfile.Source.of

    def replacing(device: BlockDevice, modified: int) -> indexfile.Source:
        other.replace(path)
        return of(device, modified)

    with monkeypatch.context() as patched:
        patched.setattr(indexfile.Source, "of", replacing)
        tree = open_archive(path, "tar", cache=cache)
    assert content_of(tree, "old") == b"1"
    tree.close()
    assert not cache.exists()
    tree = open_archive(path, "tar", cache=cache)
    assert content_of(tree, "new") == b"1"
    tree.close()


def test_an_index_of_another_kind_is_another_file(path: Path, cache: Path) -> None:
    names = {indexfile.index_path(cache, path, kind).name for kind in ("tar", "cpio")}
    assert len(names) == 2


def test_findings_are_kept_with_the_index(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "it.tar"
    path.write_bytes(tar_of({"good": b"1", "../bad": b"2"}))
    for _ in range(2):
        tree = open_archive(path, "tar", cache=cache)
        (finding,) = tree.verify()
        assert "../bad" in finding.where
        assert tree.describe()["findings"] == 1
        assert content_of(tree, "good") == b"1"
        tree.close()


def test_regions_of_a_plain_archive_cover_it(tmp_path: Path) -> None:
    path = tmp_path / "it.tar"
    path.write_bytes(tar_of({"a": b"1" * 600, "b": b"", "c": b"2"}))
    tree = open_archive(path, "tar")
    at = 0
    kinds = []
    for region in tree.regions():
        assert region.start == at
        at += region.length
        kinds.append(region.kind)
    assert at == path.stat().st_size
    assert kinds == ["header", "data", "header", "data", "header"]
    tree.close()


def test_the_format_is_told_by_what_a_file_begins_with(path: Path, tmp_path: Path) -> None:
    assert format_of(path) == "tar"
    tree = open_image(path)
    assert tree.lookup(tree.root, "a").stat.kind is NodeKind.DIRECTORY
    tree.close()
    for name, data in {"empty": b"", "text": b"hello\n" * 1000, "zeros": bytes(300)}.items():
        other = tmp_path / name
        other.write_bytes(data)
        with pytest.raises(Unsupported):
            open_image(other)
    with pytest.raises(NotFound):
        open_image(tmp_path / "nothing")
    with pytest.raises(InvalidArgument):
        open_image(path, scheme="zip")
    with pytest.raises(InvalidArgument):
        open_image(path, part=1)
    with pytest.raises(InvalidArgument):
        open_image(tmp_path)


@pytest.mark.parametrize("scheme", ["ro1", "tar", "cpio", "fat"])
def test_what_is_of_another_format_is_corrupt_and_left_unlocked(
    scheme: str, tmp_path: Path
) -> None:
    other = tmp_path / "text"
    other.write_bytes(b"hello, this is a text and no image\n" * 1000)
    with pytest.raises((Corrupt, Unsupported)):
        open_image(other, scheme=scheme)
    from capstore.images.devices import FileDevice

    FileDevice.open(other).close()


def test_a_closed_archive_can_be_written_again(path: Path, cache: Path) -> None:
    from capstore.images.devices import FileDevice

    tree = open_archive(path, "tar", cache=cache)
    with pytest.raises(Busy):
        FileDevice.open(path)
    tree.close()
    tree.close()
    FileDevice.open(path).close()


# The index builder --------------------------------------------------------------------------------


def test_an_index_over_its_budget_is_too_large() -> None:
    index = IndexBuilder(bytes_max=100_000)
    with pytest.raises(TooLarge):
        for number in range(10_000):
            index.bind(b"f%d" % number, index.node(NodeKind.FILE))
    deep = IndexBuilder(bytes_max=100_000)
    with pytest.raises(TooLarge):
        deep.bind(b"a/" * 100_000 + b"f", deep.node(NodeKind.FILE))


def test_the_last_of_a_name_wins_and_directories_merge() -> None:
    index = IndexBuilder(bytes_max=1 << 20)
    index.bind(b"d/f", index.node(NodeKind.FILE, size=1))
    index.bind(b"./d", index.node(NodeKind.DIRECTORY, executable=True))
    index.bind(b"/d//f", last := index.node(NodeKind.FILE, size=2))
    assert index.find(b"d/f") == last
    index.bind(b"d", gone := index.node(NodeKind.FILE, size=3))
    assert index.find(b"d/f") is None
    index.bind(b"d/g", index.node(NodeKind.FILE))
    assert index.find(b"d") != gone
    assert index.find(b"d/f") is None
    assert index.findings == []


def test_what_cannot_be_a_name_is_a_finding() -> None:
    index = IndexBuilder(bytes_max=1 << 20)
    for path in (b"../x", b"a/../b", b"", b".", b"n\0l", b"x" * 256, b"\xff" * 100):
        index.bind(path, index.node(NodeKind.FILE), offset=512)
    assert len(index.findings) == 7
    assert all(finding.offset == 512 for finding in index.findings)
    index.bind(b"l", index.node(NodeKind.SYMLINK, target=b"t" * 5000))
    assert "target" in index.findings[-1].message
    assert index.table.children == {0: {}}
