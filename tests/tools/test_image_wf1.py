"""`capstore image` for CAPOSWF1: built empty and of a tree, verified, repaired and compacted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from capstore.images import wf1
from capstore.images.devices import FileDevice
from capstore.images.wf1_open import open_wf1
from tests.tools.command import Ran, capstore
from tests.tools.conftest import make_tree
from tests.tools.test_copy import same_trees

EPOCH = "1700000000"
MIB = 1 << 20


def build(out: Path, *more: str | Path, **environment: str) -> Ran:
    return capstore("image", "build", out, "--format", "wf1", *more, **environment)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    make_tree(root)
    return root


@pytest.mark.parametrize("size", [(), ("--size", "16MiB")])
def test_a_tree_comes_back_as_it_went(size: tuple[str, ...], tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image, "--from", tree, *size).ok()
    assert capstore("image", "verify", image).ok() == ""
    assert capstore("image", "diff", tree, image).ok() == ""
    assert capstore("image", "diff", f"wf1:{image}", image).ok() == ""
    capstore("image", "extract", image, tmp_path / "back").ok()
    same_trees(tree, tmp_path / "back")
    again = tmp_path / "again"
    build(again, "--from", image, *size).ok()
    assert again.read_bytes() == image.read_bytes()
    if size:
        assert image.stat().st_size == 32_768 * 512


def test_an_empty_volume(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(tmp_path / name, SOURCE_DATE_EPOCH=EPOCH).ok()
    image = tmp_path / "a"
    assert image.read_bytes() == (tmp_path / "b").read_bytes()
    document = json.loads(capstore("image", "inspect", "--json", image).ok())
    assert document["format"] == "wf1"
    assert document["facts"]["created"] == int(EPOCH) * 10**9
    assert document["usage"]["usedNodes"] == 1
    assert capstore("image", "verify", image).ok() == ""
    assert build(image).failed("alreadyExists")
    build(image, "--force", "--size", "1MiB").ok()
    assert image.stat().st_size == MIB


def test_wrong_usage(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    assert build(image, "--size", "100KiB").failed("invalidArgument")
    assert build(image, "--label", "x").code == 2
    assert build(image, "--fat-type", "16").code == 2
    assert capstore("image", "build", image, "--format", "ro1").code == 2
    assert (
        capstore("image", "build", image, "--format", "tar", "--from", tree, "--size", "1MiB").code
        == 2
    )
    (tree / "large").write_bytes(os.urandom(2 * MIB))
    assert "noSpace" in build(image, "--size", "1MiB", "--from", tree).error
    assert not image.exists()


def _used(image: Path) -> None:
    """Fills a volume with files and removes most of them, without closing it."""
    device = FileDevice.open(image)
    engine = open_wf1(device)
    for number in range(20):
        file = engine.create(wf1.ROOT, f"{number}")
        engine.write(file, 0, os.urandom(MIB // 2))
    for number in range(15):
        engine.remove(wf1.ROOT, f"{number}")
    engine.sync()
    device.close()


def test_what_is_dead_is_shown_and_compacted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image).ok()
    _used(image)
    before = image.stat().st_size
    document = json.loads(capstore("image", "inspect", "--json", image).ok())
    totals = document["totals"]
    assert totals["data"] == 5 * MIB // 2
    assert totals["dead"] >= 15 * MIB // 2
    assert totals["log"] > 0
    assert sum(totals.values()) == before
    drawn = tmp_path / "map.svg"
    capstore("image", "inspect", image, "--picture", drawn).ok()
    assert "dead" in capstore("image", "inspect", image).ok()
    assert drawn.stat().st_size > 1000
    capstore("image", "extract", image, tmp_path / "out").ok()
    said = capstore("image", "compact", image).ok()
    assert "->" in said
    assert image.stat().st_size < before / 2
    assert capstore("image", "verify", image).ok() == ""
    assert capstore("image", "diff", "--ignore-times", image, tmp_path / "out").ok() == ""
    assert capstore("image", "compact", "--quiet", image).ok() == ""


def test_a_torn_tail_is_shown_and_repaired(tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image, "--size", "1MiB").ok()
    device = FileDevice.open(image)
    engine = open_wf1(device)
    for name in "ab":
        engine.write(engine.create(wf1.ROOT, name), 0, b"content of " + name.encode())
        engine.sync()
    device.close()
    raw = image.read_bytes()
    # What a crash leaves: the last frame is there, the data that it refers to is not.
    assert raw.count(b"content of b") == 1
    torn = raw.replace(b"content of b", bytes(12))
    image.write_bytes(torn)
    ran = capstore("image", "verify", image)
    assert ran.code == 1
    assert "torn tail" in ran.out
    assert "--repair" in ran.out
    (finding,) = json.loads(capstore("image", "verify", "--json", image).out)["findings"]
    assert finding["repairable"] is True
    assert image.read_bytes() == torn
    assert capstore("image", "verify", "--repair", image).ok() == ""
    assert capstore("image", "verify", image).ok() == ""
    capstore("image", "extract", image, tmp_path / "out").ok()
    assert (tmp_path / "out" / "a").read_bytes() == b"content of a"
    assert not (tmp_path / "out" / "b").exists()


def test_damage_is_not_repaired(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    build(image, "--from", tree).ok()
    document = json.loads(capstore("image", "inspect", "--json", image).ok())
    (table,) = [r for r in document["regions"] if r["kind"] == "table"]
    raw = bytearray(image.read_bytes())
    raw[table["start"] + 8192] ^= 1
    image.write_bytes(raw)
    ran = capstore("image", "verify", image)
    assert ran.code == 1
    assert "entry record 0: a wrong checksum" in ran.out
    assert "--repair" not in ran.out
    raw[table["start"]] ^= 1
    image.write_bytes(raw)
    for more in ((), ("--repair",)):
        ran = capstore("image", "verify", image, *more)
        assert ran.code == 2
        assert "corrupt" in ran.error
    assert capstore("image", "compact", image).failed("corrupt")
    assert image.read_bytes() == raw


def test_only_volumes_are_changed_in_place(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    capstore("image", "build", image, "--format", "ro1", "--from", tree).ok()
    before = image.read_bytes()
    assert capstore("image", "compact", image).failed("unsupported")
    assert capstore("image", "verify", "--repair", image).code == 2
    assert capstore("image", "compact", tmp_path / "missing").failed("notFound")
    assert image.read_bytes() == before


def test_an_image_that_is_in_use(tmp_path: Path) -> None:
    image = tmp_path / "image"
    build(image).ok()
    device = FileDevice.open(image)
    try:
        assert capstore("image", "compact", image).failed("busy")
        assert capstore("image", "inspect", image).failed("busy")
        assert capstore("image", "verify", "--repair", image).code == 2
    finally:
        device.close()
