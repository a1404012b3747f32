"""Tar and cpio archives that capstore builds: other tools unpack what was put in."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings

from capstore.images.builder import Facts, TreeBuilder
from capstore.images.cpio import index_cpio
from capstore.images.cpio_build import CpioBuilder
from capstore.images.devices import MemoryDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.images.tar import index_tar
from capstore.images.tar_build import TarBuilder
from capstore.schema.errors import (
    InvalidArgument,
    InvalidName,
    NoSpace,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.names import from_bytes
from capstore.schema.nodes import Provenance
from tests.images.archives import SECOND, Parse, plant, planted, run, serve, shown
from tests.images.trees import TREES, File, Folder, Hard, Link, push, without_hard_links

Builder = Callable[[BinaryIO], TreeBuilder]
FORMATS: list[tuple[Builder, Parse, Provenance]] = [
    (TarBuilder, index_tar, Provenance.TAR_HEADER),
    (CpioBuilder, index_cpio, Provenance.CPIO_HEADER),
]
each_format = pytest.mark.parametrize(
    ("builder", "parse", "provenance"), FORMATS, ids=["tar", "cpio"]
)


def build(builder: Builder, tree: Folder) -> bytes:
    stream = io.BytesIO()
    push(builder(stream), tree)
    return stream.getvalue()


def host_tree(root: Path, provenance: Provenance, unit: int) -> Folder:
    """What `plant` makes, without what builders do not take."""
    root.mkdir()
    plant(root)
    os.unlink(root / "pipe")
    return planted(root, provenance, unit=unit)


def with_links(tree: Folder) -> Folder:
    entries = dict(tree.entries)
    entries["z hard"] = Hard(("d", "a.txt"))
    entries["hard"] = Hard(("d", "a.txt"))
    return Folder(entries, tree.facts)


UNPACK = {
    "tar": ["tar", "-xf"],
    "bsdtar": ["bsdtar", "-xf"],
    "cpio": ["cpio", "-idm", "--quiet", "-F"],
}


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_tar_is_unpacked(tool: str, tmp_path: Path) -> None:
    tree = with_links(host_tree(tmp_path / "tree", Provenance.TAR_HEADER, 1))
    (tmp_path / "a.tar").write_bytes(build(TarBuilder, tree))
    found = unpacked(tool, tmp_path / "a.tar", Provenance.TAR_HEADER)
    # bsdtar leaves the time of the directory that it unpacks into.
    assert found.entries == without_hard_links(tree).entries
    assert tool == "bsdtar" or found.facts == tree.facts


@pytest.mark.parametrize("tool", ["cpio", "bsdtar"])
def test_cpio_is_unpacked(tool: str, tmp_path: Path) -> None:
    tree = with_links(host_tree(tmp_path / "tree", Provenance.CPIO_HEADER, SECOND))
    (tmp_path / "a.cpio").write_bytes(build(CpioBuilder, tree))
    found = unpacked(tool, tmp_path / "a.cpio", Provenance.CPIO_HEADER)
    # cpio leaves a directory with the time of the last entry that it made in it, and links with
    # the time when it made them.
    assert timeless(found) == timeless(without_hard_links(tree))


def timeless(tree: Folder) -> Folder:
    """`tree` without the facts of directories and symbolic links."""
    entries: dict[str, File | Link | Hard | Folder] = {}
    for name, entry in tree.entries.items():
        if isinstance(entry, Folder):
            entries[name] = timeless(entry)
        else:
            entries[name] = Link(entry.target) if isinstance(entry, Link) else entry
    return Folder(entries)


def unpacked(tool: str, archive: Path, provenance: Provenance) -> Folder:
    out = archive.parent / "out"
    out.mkdir()
    run(*UNPACK[tool], archive, cwd=out)
    assert (out / "hard").samefile(out / "d" / "a.txt")
    assert (out / "z hard").samefile(out / "d" / "a.txt")
    assert (out / "d" / "a.txt").stat().st_nlink == 3
    return planted(out, provenance)


def test_tarfile_reads_what_tar_builds(tmp_path: Path) -> None:
    tree = host_tree(tmp_path / "tree", Provenance.TAR_HEADER, SECOND)
    with tarfile.open(fileobj=io.BytesIO(build(TarBuilder, tree))) as archive:
        for info in archive.getmembers():
            assert info.uid == info.gid == 0
            assert info.mode == (
                0o777 if info.issym() else 0o755 if info.isdir() or info.name == "d/run" else 0o644
            )
            if info.name.isascii():
                path = tmp_path / "tree" / info.name
                assert info.mtime == int(path.lstat().st_mtime)


@each_format
def test_the_same_tree_gives_the_same_bytes(
    builder: Builder, parse: Parse, provenance: Provenance, tmp_path: Path
) -> None:
    tree = with_links(host_tree(tmp_path / "tree", provenance, SECOND))
    raw = build(builder, tree)
    assert build(builder, tree) == raw
    served = serve(raw, parse)
    assert served.findings == []
    assert shown(served) == without_hard_links(tree)
    assert served.node("hard") == served.node("z hard") == served.node("d/a.txt")


def kept(tree: Folder) -> Folder:
    """What a tar archive keeps of a tree's facts."""

    def facts(facts: Facts, executable: bool) -> Facts:
        return Facts(facts.modified, 0, Provenance.TAR_HEADER, executable)

    def keep(node: File | Link | Hard | Folder) -> File | Link | Hard | Folder:
        if isinstance(node, Folder):
            entries = {name: keep(entry) for name, entry in node.entries.items()}
            return Folder(entries, facts(node.facts, False))
        if isinstance(node, File):
            return File(node.content, facts(node.facts, node.facts.executable))
        if isinstance(node, Link):
            return Link(node.target, facts(node.facts, False))
        return node

    found = keep(tree)
    assert isinstance(found, Folder)
    return found


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_tree_through_tar(tree: Folder) -> None:
    try:
        raw = build(TarBuilder, tree)
    except Unsupported:
        # A target that claims to be escaped and is not what escaping gives.
        assert any(char in repr(tree) for char in map(chr, range(0xEF80, 0xF000)))
        return
    served = serve(raw, index_tar)
    assert served.findings == []
    assert shown(served) == kept(tree)


def test_headers_are_pax_only_where_they_must_be() -> None:
    plain = Folder({"a": File(b"x", Facts(5 * SECOND)), "n" * 100: File()})
    assert b"PaxHeader" not in build(TarBuilder, plain)
    for tree, record in (
        (Folder({"n" * 101: File()}), b"111 path=" + b"n" * 101 + b"\n"),
        (Folder({"é": File()}), "11 path=é\n".encode()),
        (Folder({"a": File(b"", Facts(1))}), b"21 mtime=0.000000001\n"),
        (Folder({"a": File(b"", Facts(-SECOND))}), b"mtime=-1.000000000\n"),
        (Folder({from_bytes(b"\xff"): File()}), b"21 hdrcharset=BINARY\n9 path=\xff\n"),
        (Folder({"a": Link("t" * 101)}), b"linkpath="),
    ):
        raw = build(TarBuilder, tree)
        assert raw.count(b"PaxHeader") == 1
        assert record in raw


def test_a_size_over_8_gibibytes() -> None:
    class Null(io.BytesIO):
        """Keeps headers, counts content."""

        def write(self, data: object) -> int:
            size = len(memoryview(data))  # type: ignore[arg-type]
            return super().write(data) if size <= 1024 else size  # type: ignore[arg-type]

    stream = Null()
    builder = TarBuilder(stream)
    builder.begin_file(("huge",), Facts(), (8 << 30) + 1)
    piece = bytes(1 << 30)
    for _ in range(8):
        builder.write(piece)
    builder.write(b"x")
    builder.end_file()
    assert b"19 size=8589934593\n" in stream.getvalue()


@each_format
def test_files_of_a_wrong_size(builder: Builder, parse: Parse, provenance: Provenance) -> None:
    made = builder(io.BytesIO())
    made.begin_file(("f",), Facts(), 3)
    with pytest.raises(InvalidArgument):
        made.write(b"four")
    made.write(memoryview(b"tw"))
    with pytest.raises(InvalidArgument):
        made.end_file()
    with pytest.raises(InvalidArgument):
        made.directory(("d",), Facts())
    made.write(b"o")
    made.end_file()
    with pytest.raises(InvalidArgument):
        made.begin_file(("g",), Facts(), -1)
    made.abort()


@each_format
def test_what_cannot_be_stored(builder: Builder, parse: Parse, provenance: Provenance) -> None:
    made = builder(io.BytesIO())
    with pytest.raises(Unsupported, match="cannot be stored"):
        made.symlink(("a",), Facts(), "\uefc3\uefa9")
    with pytest.raises((Unsupported, InvalidName)):
        made.directory(("\uefc3\uefa9",), Facts())
    with pytest.raises(InvalidName):
        made.directory(("..",), Facts())


# What the readers of both, and the volumes above them, refuse.
@pytest.mark.parametrize("target", ["", "a\0b", "\ud800", "t" * 4096, "\uef80" * 1366])
@pytest.mark.parametrize("builder", [TarBuilder, CpioBuilder, lambda _: Ro1Builder(MemoryDevice())])
def test_targets_that_no_image_holds(
    builder: Callable[[io.BytesIO], TreeBuilder], target: str
) -> None:
    made = builder(io.BytesIO())
    made.directory((), Facts())
    with pytest.raises(Unsupported, match="target"):
        made.symlink(("l",), Facts(), target)


@each_format
def test_the_root_is_a_directory(builder: Builder, parse: Parse, provenance: Provenance) -> None:
    made = builder(io.BytesIO())
    for call in (
        lambda: made.begin_file((), Facts(), 1),
        lambda: made.symlink((), Facts(), "x"),
        lambda: made.link((), ("a",)),
    ):
        with pytest.raises(InvalidArgument, match="root"):
            call()


def test_limits_of_cpio() -> None:
    made = CpioBuilder(io.BytesIO())
    for time in (-1, 2**32 * SECOND):
        with pytest.raises(Unsupported, match="time"):
            made.directory(("d",), Facts(time))
    with pytest.raises(TooLarge):
        made.begin_file(("f",), Facts(), 2**32)
    with pytest.raises(Unsupported):
        made.directory(("TRAILER!!!",), Facts())
    with pytest.raises(Unsupported):
        made.directory(("d" * 200,) * 21, Facts())
    with pytest.raises(Unsupported):
        made.symlink(("l",), Facts(), "t" * 4096)
    with pytest.raises(InvalidArgument):
        made.link(("l",), ("missing",))


class Broken(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "no space", "/a/path/of/the/host")


@each_format
def test_a_full_disk(builder: Builder, parse: Parse, provenance: Provenance) -> None:
    with pytest.raises(NoSpace) as caught:
        builder(Broken()).directory((), Facts())
    assert "host" not in str(caught.value)


def test_hard_links_need_an_output_that_can_be_sought() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    builder = CpioBuilder(Pipe())
    push(builder, Folder({"a": File(b"a")}))
    with pytest.raises(StorageError, match="sought"):
        push(CpioBuilder(Pipe()), Folder({"a": File(b"a"), "b": Hard(("a",))}))


def test_an_archive_may_begin_within_its_output() -> None:
    stream = io.BytesIO()
    stream.write(b"front")
    push(CpioBuilder(stream), Folder({"a": File(b"a"), "b": Hard(("a",))}))
    served = serve(stream.getvalue()[5:], index_cpio)
    assert served.node("a") == served.node("b")


def test_the_kernels_order_of_links(tmp_path: Path) -> None:
    """GNU cpio lists both names with two links: the first header was completed in the end."""
    raw = build(CpioBuilder, Folder({"a": File(b"content"), "b": Hard(("a",))}))
    listed = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=raw, capture_output=True, check=True
    ).stdout.decode()
    assert [line.split()[1] for line in listed.splitlines() if line[0] == "-"] == ["2", "2"]
