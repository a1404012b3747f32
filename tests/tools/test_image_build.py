from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.node import NodeKind, Stat
from capstore.images.builder import Facts
from capstore.schema.errors import Conflict, InvalidArgument, NoSpace, TooLarge, Unsupported
from capstore.schema.limits import TRANSFER_BYTES_MAX
from capstore.tools.image import fatbuild
from capstore.tools.image.fatnames import is_plain, stand_in
from capstore.tools.image.fatplan import Checker, plan
from capstore.tools.image.pushing import Pusher
from capstore.tools.progress import Meter
from capstore.tools.trees import Content
from tests.tools.command import Ran, Served, capstore
from tests.tools.conftest import make_tree
from tests.tools.test_copy import same_trees

FORMATS = ("ro1", "tar", "cpio", "fat")
EPOCH = "1700000000"


def build(out: Path, kind: str, source: object, *more: str | Path, **environment: str) -> Ran:
    return capstore(
        *("image", "build", out, "--format", kind, "--from", str(source), *more), **environment
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    make_tree(root)
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A tree that FAT can hold (but for a mode), with names that mtools has trouble with."""
    root = tmp_path / "plain"
    (root / "a[b]" / "sub").mkdir(parents=True)
    (root / "ünï" / "日").mkdir(parents=True)
    (root / "empty").mkdir()
    names = ["ünï.txt", "ü", "ÉTÉ.txt", "Ελλ", "emo😀ji", "ÿ", "ﬁ", "ß", "日", "日日", "_", "__"]
    names += ["+", "+0000a", "aux", "nul.txt", "x~1", "LONGNA~1.TXT", "longname1.txt", "_00000~1"]
    names += [
        "README",
        "readme.txt",
        "ReadMe2.TXT",
        " lead",
        ".hidden",
        "a.b.c",
        "-dash",
        "é" * 120,
    ]
    names += [
        "q'q",
        "%PATH%",
        "\x7f",
        "x" * 255,
        "a[b]/x[1]",
        "a[b]/sub/y",
        "ünï/日/ok",
        "many(1).c",
    ]
    for name in names:
        (root / name).write_bytes(name.encode())
    (root / "large").write_bytes(bytes(range(256)) * 9_000)
    (root / "large").chmod(0o755)
    # Times that every format holds.
    for number, path in enumerate([root, *sorted(root.rglob("*"))]):
        os.utime(path, (1_600_000_000 + 2 * number,) * 2)
    return root


@pytest.mark.parametrize("kind", ["ro1", "tar", "cpio"])
def test_a_tree_comes_back_as_it_went(kind: str, tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image, kind, tree).ok()
    assert capstore("image", "verify", image).ok() == ""
    assert capstore("image", "diff", tree, image).ok() == ""
    if kind != "cpio":  # Whose times are whole seconds.
        capstore("image", "extract", image, tmp_path / "back").ok()
        same_trees(tree, tmp_path / "back")


def test_fat_holds_every_name_that_it_can(plain: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image, "fat", plain).ok()
    assert capstore("image", "verify", image).ok() == ""
    assert capstore("image", "diff", plain, image).ok() == ""
    # A second reader, and the checker of those who wrote mkfs.fat.
    fsck = subprocess.run(["fsck.fat", "-n", image], capture_output=True, text=True, check=False)
    assert fsck.returncode == 0, fsck.stdout
    out = tmp_path / "by mtools"
    out.mkdir()
    environment = os.environ | {
        "LC_ALL": "C.UTF-8",
        "MTOOLS_SKIP_CHECK": "1",
        "MTOOLSRC": "/dev/null",
    }
    subprocess.run(
        ["mcopy", "-s", "-i", image, "::/large", "::/empty", out], check=True, env=environment
    )
    assert (out / "large").read_bytes() == (plain / "large").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_tree_gives_the_same_bytes(kind: str, plain: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    # Another tree with the same content, made in another order at another time.
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    build(first, kind, plain, SOURCE_DATE_EPOCH="1000000000").ok()
    build(second, kind, copy, SOURCE_DATE_EPOCH="1000000000").ok()
    assert first.read_bytes() == second.read_bytes()
    build(second, kind, plain, "--force", SOURCE_DATE_EPOCH="1000000002").ok()
    assert first.read_bytes() != second.read_bytes()


def times_in(image: Path, tmp_path: Path) -> set[int]:
    out = tmp_path / "times"
    capstore("image", "extract", image, out).ok()
    times = {path.stat().st_mtime_ns for path in out.rglob("*")}
    shutil.rmtree(out)
    return times


@pytest.mark.parametrize("kind", FORMATS)
def test_no_time_is_later_than_the_epoch(kind: str, tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    for name, seconds in (("old", 1_500_000_000), ("new", 1_800_000_000)):
        (source / name).write_text(name)
        os.utime(source / name, (seconds, seconds))
    build(image, kind, source, SOURCE_DATE_EPOCH=EPOCH).ok()
    assert times_in(image, tmp_path) == {1_500_000_000 * 10**9, int(EPOCH) * 10**9}


@pytest.mark.parametrize("text", ["yesterday", "-1", "1.5", "", "9" * 30])
def test_an_epoch_that_is_no_time_is_refused(text: str, tree: Path, tmp_path: Path) -> None:
    ran = build(tmp_path / "image", "tar", tree, SOURCE_DATE_EPOCH=text)
    assert "SOURCE_DATE_EPOCH" in ran.failed("invalidArgument")
    assert not (tmp_path / "image").exists()


def test_images_are_built_from_images_archives_and_specs(plain: Path, tmp_path: Path) -> None:
    archive = tmp_path / "plain.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(plain.iterdir()):
            tar.add(path, path.name)
    made = {}
    for name, source in {"directory": plain, "archive": archive, "spec": f"dir:{plain},ro"}.items():
        made[name] = tmp_path / f"{name}.ro1"
        build(made[name], "ro1", source).ok()
    assert made["spec"].read_bytes() == made["directory"].read_bytes()
    assert capstore("image", "diff", made["archive"], plain).ok() == ""
    again = tmp_path / "again.fat"
    build(again, "fat", made["directory"]).ok()
    assert capstore("image", "diff", again, f"ro1:{made['archive']}").ok() == ""


def test_an_image_of_what_a_service_serves(served: Served, tree: Path, tmp_path: Path) -> None:
    capstore("put", "-r", tree, served.at("m")).ok()
    image = tmp_path / "image"
    build(image, "ro1", served.at("m", "tree")).ok()
    assert capstore("image", "diff", tree, image).ok() == ""
    assert capstore("image", "diff", image, served.at("m", "tree")).ok() == ""
    missing = build(tmp_path / "other", "tar", served.at("m", "no such"))
    assert "no such" in missing.failed("notFound")
    capstore("rm", "-r", served.at("m", "tree")).ok()


def test_hard_links_stay_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(b"x" * 3_000_000)
    (source / "sub").mkdir()
    os.link(source / "one", source / "sub" / "other")
    for kind in ("ro1", "tar", "cpio"):
        image = tmp_path / kind
        build(image, kind, source).ok()
        assert image.stat().st_size < 4_000_000
        assert capstore("image", "diff", source, image).ok() == ""


def test_special_nodes_are_passed_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    (source / "file").write_text("x")
    ran = build(tmp_path / "image", "tar", source)
    assert ran.code == 0
    assert ran.error == 'capstore: passed over: "/fifo" is neither file, directory nor link\n'
    assert capstore("image", "diff", source, tmp_path / "image").out == "D fifo\n"


def test_an_image_inside_of_its_own_tree(plain: Path, tmp_path: Path) -> None:
    image = plain / "empty" / "image"
    environment = {"SOURCE_DATE_EPOCH": "1000000000"}
    for source in (str(plain), f"dir:{plain}"):
        build(image, "ro1", source, "--force", **environment).ok()
        first = image.read_bytes()
        build(image, "ro1", source, "--force", **environment).ok()
        assert image.read_bytes() == first
    assert sorted(path.name for path in image.parent.iterdir()) == ["image"]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changes_while_it_is_read(change: int, tmp_path: Path) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield bytes(100 + change)

    async def push() -> None:
        builder = fatbuild.FatBuilder(tmp_path / "image", tmp_path / "stage")
        pusher = Pusher(builder, lambda _: Facts(), Meter())
        stat = Stat(NodeKind.FILE, TRANSFER_BYTES_MAX + 100, 1, 1)
        try:
            await pusher._file(("file",), stat, Content(bytes(TRANSFER_BYTES_MAX), rest()))
        finally:
            await pusher._batches.drop()
            builder.abort()

    with pytest.raises(Conflict):
        asyncio.run(push())


# The output --------------------------------------------------------------------------------------


def test_nothing_is_replaced_unasked(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("precious")
    assert "--force" in build(image, "tar", tree).failed("alreadyExists")
    assert image.read_text() == "precious"
    build(image, "tar", tree, "--force").ok()
    assert image.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert build(tmp_path, "tar", tree, "--force").failed("isDirectory")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_replaced_and_not_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "image").symlink_to("target")
    build(tmp_path / "image", "cpio", tree, "--force").ok()
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "image").is_symlink()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failure_leaves_nothing(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    bad = os.fsencode(source) + b"/" + b"\xff" * 200
    Path(os.fsdecode(bad)).write_text("its escaped name has more than 255 bytes")
    before = sorted(tmp_path.iterdir())
    assert build(tmp_path / "image", kind, source).code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image\n")
    (tmp_path / "empty").write_bytes(b"")
    out = tmp_path / "out"
    assert "no image" in build(out, "tar", tmp_path / "text").failed("unsupported")
    assert build(out, "tar", tmp_path / "empty").code == 1
    assert "no such file" in build(out, "tar", tmp_path / "missing").failed("notFound")
    assert "no backer" in build(out, "tar", "nothing:there").failed("invalidArgument")
    assert build(tmp_path / "no" / "out", "tar", tmp_path).failed("notFound")
    assert not out.exists()


def test_options_of_other_formats_are_wrong_usage(tree: Path, tmp_path: Path) -> None:
    for more in (("--size", "1MiB"), ("--fat-type", "16"), ("--label", "x")):
        ran = build(tmp_path / "image", "tar", tree, *more)
        assert ran.code == 2
        assert more[0] in ran.error


# FAT ---------------------------------------------------------------------------------------------


def refused(tmp_path: Path, make: Callable[[Path], object], *more: str) -> str:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    make(source)
    ran = build(image, "fat", source, *more)
    assert ran.code == 1
    assert not image.exists()
    return ran.error


NOT_NAMES = ["a:b", "a*", "a?", 'a"', "a<", "a>", "a|", "a\\b", "dot.", "sp ", "\n", "\x1f"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_names_that_fat_cannot_hold(name: str) -> None:
    with pytest.raises(Unsupported):
        Checker().add((name,), 1)


@pytest.mark.parametrize(
    ("one", "other"), [("readme", "README"), ("straße", "STRAßE"), ("\u017f", "s")]
)
def test_names_that_fat_takes_for_one(one: str, other: str) -> None:
    checker = Checker()
    checker.add((one,), None)
    checker.add((one, other), 1)
    with pytest.raises(Unsupported):
        checker.add((other,), 1)


def test_a_bad_name_is_named_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a:b").write_text("x")
    ran = build(tmp_path / "image", "fat", tmp_path / "source")
    assert '"/sub/a:b": FAT holds no name with' in ran.failed("unsupported")


@given(
    sizes=st.lists(st.integers(0, 1 << 22), max_size=20),
    size=st.none() | st.integers(1024, 1 << 36),
    bits=st.sampled_from([None, 12, 16, 32]),
)
def test_planned_volumes_have_room_for_the_content(
    sizes: list[int], size: int | None, bits: int | None
) -> None:
    checker = Checker()
    for number, length in enumerate(sizes):
        checker.add((f"file {number}",), length)
    try:
        shape = plan(checker, size=size, bits=bits)
    except (NoSpace, InvalidArgument, TooLarge):
        assert size is not None or bits == 12
        return
    assert bits in (None, shape.bits)
    assert size is None or shape.sectors == size // 512
    content = sum(sizes) + len(sizes) * 64
    assert shape.sectors * 512 > content
    # Without a demand, no more is wasted than clusters waste at their ends.
    if size is None and bits is None:
        spare = (len(sizes) + 40) * shape.cluster_sectors * 512 + content // 50 + (1 << 17)
        assert shape.sectors * 512 < content + spare


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=30)
def test_stand_ins_are_as_long_and_never_plain(name: str) -> None:
    others = {stand_in(name, number) for number in range(500)}
    assert len(others) == 500
    for other in others:
        assert len(other.encode("utf-16-le")) == len(name.encode("utf-16-le"))
        assert not is_plain(other)


def test_links_that_fat_cannot_hold(tmp_path: Path) -> None:
    assert '"/link"' in refused(tmp_path, lambda source: (source / "link").symlink_to("x"))
    (tmp_path / "source" / "link").unlink()
    (tmp_path / "source" / "link").write_text("x")
    os.link(tmp_path / "source" / "link", tmp_path / "source" / "name")
    ran = build(tmp_path / "image", "fat", tmp_path / "source")
    assert '"/name": FAT holds no hard links' in ran.failed("unsupported")


def test_a_file_too_large_for_fat(tmp_path: Path) -> None:
    def make(source: Path) -> None:
        with (source / "huge").open("wb") as file:
            file.truncate(1 << 32)

    assert "tooLarge" in refused(tmp_path, make)


def test_the_size_and_type_of_a_fat_image(plain: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for bits, size in ((12, "4MiB"), (16, "20MiB"), (32, "40MiB")):
        build(image, "fat", plain, "--size", size, "--fat-type", str(bits), "--force").ok()
        facts = json.loads(capstore("image", "inspect", "--json", image).ok())
        assert facts["size"] == int(size[:-3]) << 20
        assert f"FAT{bits}" in json.dumps(facts["facts"])
    build(image, "fat", plain, "--label", "stick", "--force").ok()
    assert (
        json.loads(capstore("image", "inspect", "--json", image).ok())["usage"]["label"] == "STICK"
    )
    more = (
        (("--size", "1MiB"), "noSpace"),
        (("--size", "1GiB", "--fat-type", "12"), "invalidArgument"),
    )
    for options, code in more:
        assert build(tmp_path / "other", "fat", plain, *options).failed(code)
    assert build(tmp_path / "other", "fat", plain, "--label", "a*b").failed("invalidArgument")


def test_a_machine_without_the_programs(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fatbuild, "_search_path", lambda: str(tmp_path))
    with pytest.raises(Unsupported, match="install dosfstools and mtools"):
        fatbuild.FatBuilder(tmp_path / "image", tmp_path / "stage")


def test_a_thousand_names_in_one_directory_of_fat(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(600):
        (source / f"a rather long name, {number} of many.txt").write_text(str(number))
    build(tmp_path / "image", "fat", source).ok()
    assert capstore("image", "diff", source, tmp_path / "image").ok() == ""
