"""`image inspect`, `verify` and `extract`."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import PIL.Image
import pytest

from capstore.backers.image import ImageVolume
from capstore.images.devices import MemoryDevice
from capstore.images.tree import (
    REGION_KINDS,
    Content,
    ExtentContent,
    Finding,
    ImageTree,
    Region,
    extents_of,
)
from capstore.schema.errors import Corrupt
from capstore.schema.nodes import Entry, NodeKind, Page, Stat, Usage
from capstore.tools.image.picture import LOOKS, rendered
from capstore.tools.image.source import Folder, depth_first
from capstore.tools.image.survey import CELLS_MAX, KINDS, REGIONS_MAX, UNACCOUNTED, Survey
from capstore.tools.image.verify import findings
from capstore.tools.progress import Meter
from tests.tools.command import capstore
from tests.tools.conftest import make_tree
from tests.tools.test_copy import same_trees

FORMATS = ("ro1", "tar", "cpio", "fat")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tree as an image of each format."""
    folder = tmp_path_factory.mktemp("images")
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_bytes(b"content" * 20_000)
    (tree / "sub" / "other").write_bytes(b"y" * 5_000)
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1_600_000_000,) * 2)
    for kind in FORMATS:
        capstore("image", "build", folder / kind, "--format", kind, "--from", tree).ok()
    return {kind: folder / kind for kind in (*FORMATS, "tree")}


# Inspect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_what_an_image_says_of_itself(kind: str, images: dict[str, Path]) -> None:
    document = json.loads(capstore("image", "inspect", "--json", images[kind]).ok())
    size = images[kind].stat().st_size
    assert (document["format"], document["size"]) == (kind, size)
    assert document["usage"]["usedNodes"] >= 4
    assert sum(document["totals"].values()) == size
    # Padding of data may count as data.
    assert document["totals"]["data"] >= 145_000
    end = 0
    for region in document["regions"]:
        assert region["kind"] in REGION_KINDS
        assert region["start"] >= end
        assert region["length"] > 0
        end = region["start"] + region["length"]
    assert end <= size
    text = capstore("image", "inspect", images[kind]).ok()
    assert "size:" in text
    assert f"{size} (" in text
    assert "KIND" in text


def test_what_cannot_be_inspected(images: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    assert capstore("image", "inspect", tmp_path / "text").failed("unsupported")
    assert capstore("image", "inspect", tmp_path / "missing").failed("notFound")
    ran = capstore("image", "inspect", images["ro1"], "--picture", "map.gif")
    assert ran.code == 2
    missing = tmp_path / "missing" / "map.svg"
    assert capstore("image", "inspect", images["ro1"], "--picture", missing).code == 1


def test_a_partition_of_a_disk(images: dict[str, Path], tmp_path: Path) -> None:
    volume = images["fat"].read_bytes()
    entry = struct.pack("<B3sB3sII", 0, b"", 0x0E, b"", 8, len(volume) // 512)
    table = bytes(446) + bytes(16) + entry + bytes(32) + b"\x55\xaa"
    (tmp_path / "disk").write_bytes(table.ljust(8 * 512, b"\0") + volume + bytes(5_000))
    spec = f"fat:{tmp_path / 'disk'},part=2"
    document = json.loads(capstore("image", "inspect", "--json", spec).ok())
    assert document["size"] == len(volume) == sum(document["totals"].values())
    assert capstore("image", "verify", spec).ok() == ""
    assert capstore("image", "diff", spec, images["fat"]).ok() == ""
    capstore("image", "extract", spec, tmp_path / "out").ok()
    same_trees(images["tree"], tmp_path / "out")
    assert capstore("image", "verify", f"dir:{tmp_path}").code == 2
    assert capstore("image", "verify", f"fat:{tmp_path / 'disk'},part=9").code == 2


@pytest.mark.parametrize("name", ["map.svg", "map.PNG"])
def test_the_picture_of_an_image(name: str, images: dict[str, Path], tmp_path: Path) -> None:
    out = capstore("image", "inspect", images["fat"]).ok()
    assert capstore("image", "inspect", images["fat"], "--picture", tmp_path / name).ok() == out
    drawn = (tmp_path / name).read_bytes()
    if name == "map.svg":
        assert ElementTree.fromstring(drawn).tag.endswith("svg")
    else:
        assert rgb("table") in pixels(drawn)


# Surveys and pictures ----------------------------------------------------------------------------


def surveyed(size: int, *regions: tuple[int, int, str]) -> Survey:
    survey = Survey(size)
    survey.add(Region(*region, label=f"at {region[0]}") for region in regions)
    return survey


def test_every_byte_is_counted_once() -> None:
    rng = np.random.default_rng(7)
    for size in (0, 1, 2047, 2048, 2049, 100_000, 123_456_789):
        starts = np.unique(rng.integers(0, max(size, 1), 50))
        regions = [
            (int(start), int(rng.integers(1, size // 10 + 2)), str(rng.choice(REGION_KINDS)))
            for start in starts
        ]
        survey = surveyed(size, *regions)
        cells = survey.cells()
        # What the regions say, byte by byte, the first having it.
        assert (cells >= 0).all()
        assert cells.sum() == survey.size
        assert 1 <= len(cells) <= CELLS_MAX
        assert len(cells) > CELLS_MAX // 2 or survey.cell_bytes == 1
        totals = dict(zip(KINDS, cells.sum(axis=0).tolist(), strict=True))
        assert survey.totals() == {kind: count for kind, count in totals.items() if count}


def test_cells_agree_with_bytes() -> None:
    survey = surveyed(10_000, (0, 100, "superblock"), (104, 5_000, "data"), (9_000, 1_000, "free"))
    kinds = np.full(10_000, KINDS.index(UNACCOUNTED))
    kinds[:100] = KINDS.index("superblock")
    kinds[104:5_104] = KINDS.index("data")
    kinds[9_000:] = KINDS.index("free")
    for number, cell in enumerate(survey.cells()):
        start = number * survey.cell_bytes
        wanted = np.bincount(kinds[start : start + survey.cell_bytes], minlength=len(KINDS))
        assert cell.tolist() == wanted.tolist()


def test_neighbours_are_joined_and_the_rest_is_counted() -> None:
    survey = surveyed(100, (0, 10, "data"), (10, 10, "data"), (20, 5, "free"), (30, 5, "free"))
    assert [(r.start, r.length, r.kind) for r in survey.regions] == [
        (0, 20, "data"),
        (20, 5, "free"),
        (30, 5, "free"),
    ]
    assert survey.regions[0].label == "at 0 … at 10"
    many = surveyed(1, *((2 * at, 1, "data") for at in range(REGIONS_MAX + 5)))
    assert (len(many.regions), many.left_out) == (REGIONS_MAX, 5)


def test_a_region_behind_the_end_makes_the_map_longer() -> None:
    survey = surveyed(10, (0, 1 << 40, "data"))
    assert survey.size == 1 << 40
    assert survey.cells().sum() == 1 << 40


def rgb(kind: str) -> tuple[int, ...]:
    """The colour of a kind."""
    return tuple(round(255 * part) for part in matplotlib.colors.to_rgb(LOOKS[kind].colour))


def pixels(png: bytes) -> set[tuple[int, ...]]:
    """The colours in a PNG."""
    with PIL.Image.open(BytesIO(png)) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(colours, axis=0).tolist()}


@pytest.mark.parametrize(
    "size", [pytest.param(10_000, marks=pytest.mark.long), pytest.param(100 << 30)]
)
def test_a_kind_is_seen_however_little_there_is_of_it(size: int) -> None:
    parts = [(number * 16, 1 + number % 3, kind) for number, kind in enumerate(REGION_KINDS[:-1])]
    survey = surveyed(size, *parts, (size // 2, 1, "damaged"))
    seen = pixels(rendered(survey, "title $x_1$ \x1b", "png"))
    for kind in (*REGION_KINDS, UNACCOUNTED):
        assert rgb(kind) in seen, kind


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65])
def test_pictures_of_next_to_nothing(size: int) -> None:
    survey = surveyed(size, *([(0, size, "data")] if size else []))
    for kind in ("svg", "png"):
        assert rendered(survey, "", kind)


def test_kinds_differ_in_brightness_or_hatching() -> None:
    def luminance(colour: str) -> float:
        red, green, blue = matplotlib.colors.to_rgb(colour)
        return 255 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)

    assert set(LOOKS) == set(KINDS)
    looks = sorted((look.hatch, luminance(look.colour)) for look in LOOKS.values())
    for (hatch, one), (other_hatch, other) in pairwise(looks):
        assert hatch != other_hatch or other - one > 8


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_do_not_depend_on_the_configuration(kind: str) -> None:
    survey = surveyed(5_000, (0, 100, "superblock"), (100, 900, "damaged"), (2_000, 3_000, "free"))
    one = rendered(survey, "title", kind)
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "red", "savefig.dpi": 10}):
        assert rendered(survey, "title", kind) == one
        assert matplotlib.rcParams["font.size"] == 30


# Verify ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sound_image(kind: str, images: dict[str, Path]) -> None:
    assert capstore("image", "verify", images[kind]).ok() == ""
    assert json.loads(capstore("image", "verify", "--json", images[kind]).ok()) == {
        "findings": [],
        "clean": True,
    }


def test_damage_is_one_line(images: dict[str, Path], tmp_path: Path) -> None:
    damaged = bytearray(images["ro1"].read_bytes())
    for at in (damaged.index(b"contentcontent") + 9, damaged.index(b"yyyyyyyy") + 3):
        damaged[at] ^= 1
    (tmp_path / "image").write_bytes(damaged)
    ran = capstore("image", "verify", tmp_path / "image")
    assert (ran.code, ran.error) == (1, "")
    lines = ran.out.splitlines()
    assert len(lines) == 2
    for line in lines:
        offset, where, message = line.split(": ", 2)
        assert offset.isdecimal()
        assert where
        assert message
    ran = capstore("image", "verify", "--json", tmp_path / "image")
    assert ran.code == 1
    document = json.loads(ran.out)
    assert document["clean"] is False
    assert [str(finding["offset"]) for finding in document["findings"]] == [
        line.partition(":")[0] for line in lines
    ]


def test_a_damaged_member_of_an_archive(images: dict[str, Path], tmp_path: Path) -> None:
    damaged = bytearray(images["tar"].read_bytes())
    damaged[damaged.index(b"sub/other") + 148 - 9] ^= 1
    (tmp_path / "image").write_bytes(damaged)
    ran = capstore("image", "verify", tmp_path / "image")
    assert (ran.code, ran.error) == (1, "")
    assert ran.out


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        ran = capstore("image", "verify", path)
        assert (ran.code, ran.out) == (2, "")
        assert ran.error.count("\n") == 1
    assert capstore("image", "verify").code == 2


class Forged(ImageTree):
    """A tree whose directories, by id, are lists of names, ids and sizes (None: a directory)."""

    root = 0

    def __init__(self, directories: dict[int, list[tuple[str, int, int | None]]]) -> None:
        self._directories = directories

    def _entries(self, directory: int) -> Sequence[Entry]:
        kinds = {True: NodeKind.DIRECTORY, False: NodeKind.FILE}
        return [
            Entry(name, Stat(kinds[size is None], size or 0, node, 1))
            for name, node, size in self._directories[directory]
        ]

    def stat(self, node: int) -> Stat:
        return Stat(NodeKind.DIRECTORY, 0, node, 1)

    def lookup(self, directory: int, name: str) -> Entry:
        return next(entry for entry in self._entries(directory) if entry.name == name)

    def list(self, directory: int, after: str, limit: int) -> Page:
        return Page([e for e in self._entries(directory) if e.name > after], more=False)

    def content(self, node: int) -> Content:
        return ExtentContent(MemoryDevice(b"stored"), 1 << 62, extents_of([(1 << 61, 6, 0)]))

    def usage(self) -> Usage:
        return Usage()

    def regions(self) -> Iterator[Region]:
        return iter(())

    def verify(self) -> Iterator[Finding]:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        return


def test_holes_are_not_read() -> None:
    meter = Meter()
    assert list(findings(Forged({0: [("sparse", 1, 1 << 62)]}), meter)) == []
    assert meter.bytes == 6


def test_directories_with_many_names_do_not_make_a_walk_without_end() -> None:
    levels = 100
    tree: dict[int, list[tuple[str, int, int | None]]] = {
        n: [("a", n + 1, None), ("b", n + 1, None)] for n in range(levels)
    }
    forged = Forged(tree | {levels: [("back", 0, None)]})
    found = list(findings(forged, Meter()))
    assert {finding.message for finding in found} == {
        "this directory is at another place in the image, too"
    }

    async def walk() -> None:
        async for _ in depth_first(Folder(ImageVolume(forged).root)):
            pass

    with pytest.raises(Corrupt, match="another place"):
        asyncio.run(walk())


# Extract -----------------------------------------------------------------------------------------


def test_a_part_of_an_image(images: dict[str, Path], tmp_path: Path) -> None:
    capstore("image", "extract", images["tar"], tmp_path / "new", "sub").ok()
    assert (tmp_path / "new" / "other").read_bytes() == b"y" * 5_000
    capstore("image", "extract", images["fat"], tmp_path, "sub").ok()
    same_trees(images["tree"] / "sub", tmp_path / "new")
    assert (tmp_path / "sub" / "other").is_file()
    capstore("image", "extract", images["cpio"], tmp_path / "name", "sub/other").ok()
    assert (tmp_path / "name").read_bytes() == b"y" * 5_000
    for path in ("missing", "sub/missing", "file/below"):
        ran = capstore("image", "extract", images["ro1"], tmp_path / "never", path)
        assert ran.code == 1
        assert not (tmp_path / "never").exists()
    assert capstore("image", "extract", images["ro1"], tmp_path, "../x").failed("invalidName")


def hostile(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "../outside"
        tar.addfile(link)
        for name, mode in (
            ("out/through", 0o644),
            ("../up", 0o644),
            ("/root", 0o644),
            ("suid", 0o6777),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = 4, mode
            tar.addfile(member, BytesIO(b"evil"))


def test_nothing_leads_out_of_the_directory(tmp_path: Path) -> None:
    hostile(tmp_path / "evil.tar")
    (tmp_path / "outside").mkdir()
    into = tmp_path / "into"
    into.mkdir()
    capstore("image", "extract", tmp_path / "evil.tar", into)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "into", "outside"]
    assert list((tmp_path / "outside").iterdir()) == []
    assert (into / "suid").stat().st_mode & 0o7000 == 0
    assert not Path("/root/evil").exists()


def test_damage_costs_what_it_is_in(images: dict[str, Path], tmp_path: Path) -> None:
    damaged = bytearray(images["ro1"].read_bytes())
    damaged[damaged.index(b"contentcontent") + 9] ^= 1
    (tmp_path / "image").write_bytes(damaged)
    ran = capstore("image", "extract", tmp_path / "image", tmp_path / "out")
    assert ran.code == 1
    assert 'corrupt: "/file": ' in ran.error
    assert (tmp_path / "out" / "sub" / "other").read_bytes() == b"y" * 5_000
    assert not (tmp_path / "out" / "file").exists()


def test_an_archive_that_tar_made(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    archive = tmp_path / "made.tar.xz"
    subprocess.run(["tar", "--format=pax", "-cJf", archive, "-C", tree, "."], check=True)
    assert capstore("image", "verify", archive).ok() == ""
    capstore("image", "extract", archive, tmp_path / "back").ok()
    same_trees(tree, tmp_path / "back")
    os.utime(tmp_path / "back", ns=(0, tree.stat().st_mtime_ns))
    assert capstore("image", "diff", archive, tmp_path / "back").ok() == ""
