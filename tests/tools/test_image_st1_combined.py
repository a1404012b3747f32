"""`capstore image` for a CAPOSST1 store in front of a CAPOSWF1 volume, in one file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from capstore.images import st1, wf1
from capstore.images.devices import FileDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.st1_open import open_st1
from capstore.images.wf1_open import open_wf1
from tests.tools.command import Ran, capstore
from tests.tools.test_image_st1 import EPOCH, MIB, contents, flipped, image

STORE_BYTES = st1.COMBINED_BLOCKS * BLOCK_BYTES
GOLDEN = {
    ((), None): "cbe7dd9b4adf88ff9e97fbdd5f088379",
    ((), "4MiB"): "342d2858c0c35119895bd3d112ec59ff",
    (("files", "objects"), None): "028d2aeec0879a47a4104f1aa5b149b7",
    (("files", "objects"), "4MiB"): "128a4c5c73cae0a0c54e46f01bc2cac1",
    (("files",), "4MiB"): "c8cdfb340c3ab7c7854ee8a72fa67340",
    (("objects",), "4MiB"): "fba654ca24e61d6e02b24d76e2f0830e",
}


def build(out: Path, *more: str | Path, **environment: str) -> Ran:
    return image("build", out, "--format", "st1+wf1", *more, **environment)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Directories ``files`` and ``objects``."""
    root = tmp_path / "seeds"
    for name, length in (("files", 50_000), ("objects", 5_000)):
        (root / name / "sub").mkdir(parents=True)
        (root / name / "sub" / "one").write_bytes(name.encode() * (length // len(name)))
        (root / name / "two").write_bytes(b"2")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1_600_000_000,) * 2)
    return root


@pytest.fixture
def both(seeds: Path, tmp_path: Path) -> Path:
    """An image with both halves seeded."""
    path = tmp_path / "image"
    more = ("--from", seeds / "files", "--objects", seeds / "objects", "--size", "4MiB")
    build(path, *more).ok()
    return path


def inspected(path: Path) -> dict[str, Any]:
    document = json.loads(image("inspect", "--json", path).ok())
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(("seeded", "size"), list(GOLDEN))
def test_the_bytes_of_an_image(
    seeded: tuple[str, ...], size: str | None, seeds: Path, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    more: list[str | Path] = ["--size", size] if size else []
    if "files" in seeded:
        more += ["--from", seeds / "files"]
    if "objects" in seeded:
        more += ["--objects", seeds / "objects"]
    build(path, *more, SOURCE_DATE_EPOCH=EPOCH).ok()
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:32] == GOLDEN[seeded, size]
    assert path.stat().st_size == 4 * MIB or size is None
    document = inspected(path)
    store, tree = document["halves"]
    assert (document["format"], store["format"], tree["format"]) == ("st1+wf1", "st1", "wf1")
    assert store["facts"]["regionBytes"] == STORE_BYTES
    assert store["facts"]["entries"]["objects"] == 2 * ("objects" in seeded)
    assert tree["facts"]["grows"] == (size is None)
    assert tree["usage"]["usedNodes"] == 1 + 3 * ("files" in seeded)
    assert image("verify", path).ok() == ""


def test_both_halves_are_shown(both: Path, tmp_path: Path) -> None:
    document = inspected(both)
    assert sum(document["totals"].values()) == document["size"] == 4 * MIB
    starts = [region["start"] for region in document["regions"] if region["kind"] == "superblock"]
    # Of the store, whose two are neighbours, and of the tree.
    assert starts == [0, *(lba * BLOCK_BYTES for lba in wf1.SUPERBLOCK_LBAS)]
    text = image("inspect", both).ok()
    assert text.count("format: ") == 2
    assert text.index("CAPOSST1") < text.index("SEGMENT") < text.index("CAPOSWF1")
    image("inspect", both, "--picture", tmp_path / "map.svg").ok()
    assert (tmp_path / "map.svg").stat().st_size > 1000
    # As a specification says, it is one of them.
    for scheme in ("st1", "wf1"):
        one = json.loads(image("inspect", "--json", f"{scheme}:{both}").ok())
        assert one["format"] == scheme
        assert image("verify", f"{scheme}:{both}").ok() == ""


def test_both_halves_come_back(both: Path, seeds: Path, tmp_path: Path) -> None:
    # As a person types it.
    capstore("image", "extract", both, tmp_path / "out", "--manifest", tmp_path / "list").ok()
    assert contents(tmp_path / "out") == contents(seeds)
    assert len(json.loads((tmp_path / "list").read_text())) == 2
    image("extract", f"st1:{both}", tmp_path / "objects").ok()
    assert contents(tmp_path / "objects") == contents(seeds / "objects")
    image("extract", f"wf1:{both}", tmp_path / "one", "sub/one").ok()
    assert (tmp_path / "one").read_bytes() == (seeds / "files" / "sub" / "one").read_bytes()
    assert image("extract", both, tmp_path / "part", "sub").failed("invalidArgument")
    assert image("extract", f"wf1:{both}", tmp_path, "--manifest", "x").failed("invalidArgument")
    # What takes a tree takes the tree.
    assert image("diff", both, seeds / "files").ok() == ""
    image("build", tmp_path / "tree", "--format", "wf1", "--from", both, "--size", "4MiB").ok()
    assert image("diff", both, tmp_path / "tree").ok() == ""


def test_differences_in_either_half(both: Path, seeds: Path, tmp_path: Path) -> None:
    (seeds / "objects" / "new").write_text("x")
    (seeds / "files" / "two").unlink()
    other = tmp_path / "other"
    build(other, "--from", seeds / "files", "--objects", seeds / "objects").ok()
    ran = image("diff", "--ignore-times", both, other)
    assert (ran.code, ran.out, ran.error) == (1, "A new\nD two\n", "")
    assert image("diff", "--ignore-times", f"wf1:{both}", other).out == "D two\n"
    assert image("diff", "--ignore-times", f"st1:{both}", other).out == "A new\n"
    ran = image("diff", f"st1:{both}", f"wf1:{other}")
    assert (ran.code, ran.out) == (2, "")
    assert "a store of objects" in ran.error


def test_content_in_front_of_a_tree(seeds: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    said = build(path, "--objects", seeds / "objects", "--content").ok()
    assert said.splitlines()[1] == f"two\t{hashlib.sha256(b'2').hexdigest()}"
    store, tree = inspected(path)["halves"]
    assert store["facts"]["entries"]["names"] == 2
    assert tree["usage"]["usedNodes"] == 1
    assert build(path, "--force", "--from", seeds / "files", "--content").code == 2
    (seeds / "objects" / "large").write_bytes(os.urandom(STORE_BYTES))
    before = path.read_bytes()
    ran = build(path, "--force", "--objects", seeds / "objects")
    assert ran.code == 1
    assert '"/large"' in ran.error
    assert build(path, "--force", "--size", "100KiB").failed("invalidArgument")
    assert path.read_bytes() == before


def used(path: Path) -> None:
    """Changes both halves, without closing them."""
    device = FileDevice.open(path)
    store, volume = open_st1(device), open_wf1(device)
    for number in range(40):
        store.put(b"%d" % (number % 4), bytes([number]) * 900)
        volume.write(volume.create(wf1.ROOT, f"{number}"), 0, bytes([number]) * 30_000)
    for number in range(35):
        volume.remove(wf1.ROOT, f"{number}")
    store.put(b"last", b"content of last")
    store.sync()
    volume.sync()
    volume.write(volume.create(wf1.ROOT, "last"), 0, b"content of file")
    volume.sync()
    device.close()


def test_both_halves_are_compacted(seeds: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    build(path, "--from", seeds / "files", "--objects", seeds / "objects").ok()
    used(path)
    before = inspected(path)
    image("extract", path, tmp_path / "one").ok()
    image("compact", path).ok()
    after = inspected(path)
    assert after["size"] < before["size"]
    dead = [
        sum(segment["dead"] for segment in document["halves"][0]["segments"])
        for document in (before, after)
    ]
    assert dead[1] < dead[0]
    assert image("verify", path).ok() == ""
    image("extract", path, tmp_path / "two").ok()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # Each by itself, which leaves the other as it is.
    used_again = path.read_bytes()
    image("compact", f"st1:{path}").ok()
    assert path.read_bytes()[STORE_BYTES:] == used_again[STORE_BYTES:]


def test_torn_tails_of_both_halves_are_repaired(both: Path, tmp_path: Path) -> None:
    used(both)
    raw = both.read_bytes()
    for last in (b"content of last", b"content of file"):
        assert raw.count(last) == 1
        raw = raw.replace(last, bytes(len(last)))
    both.write_bytes(raw)
    ran = image("verify", both)
    assert ran.code == 1
    assert [line.split(": ")[1] for line in ran.out.splitlines()] == ["st1 log", "wf1 log"]
    image("verify", "--repair", f"st1:{both}").ok()
    assert both.read_bytes()[STORE_BYTES:] == raw[STORE_BYTES:]
    assert image("verify", "--repair", both).ok() == ""
    image("extract", both, tmp_path / "out").ok()
    found = contents(tmp_path / "out")
    assert "objects/3" in found
    assert "files/39" in found
    assert not {"objects/last", "files/last"} & set(found)


def test_damage_of_one_half(both: Path, seeds: Path, tmp_path: Path) -> None:
    device = FileDevice.open(both, writable=False)
    entry = open_st1(device, writable=False).find(st1.OBJECTS + b"two")
    device.close()
    assert entry is not None
    flipped(both, entry.place)
    ran = image("verify", both)
    assert (ran.code, ran.out.count("\n")) == (1, 1)
    assert "st1 object" in ran.out
    ran = image("extract", both, tmp_path / "out")
    assert ran.code == 1
    wanted = contents(seeds)
    del wanted["objects/two"]
    assert contents(tmp_path / "out") == wanted


def test_a_half_that_cannot_be_opened(both: Path, seeds: Path, tmp_path: Path) -> None:
    sound = both.read_bytes()
    store, tree = inspected(both)["halves"]
    heads = (store["facts"]["table"]["offset"], tree["facts"]["checkpoint"]["offset"])
    for half, offset in zip(("st1", "wf1"), heads, strict=True):
        raw = flipped(both, offset)
        ran = image("verify", both)
        assert ran.code == 2
        assert "corrupt" in ran.error
        ran = image("verify", "--json", both)
        assert json.loads(ran.out) == {"findings": [], "clean": False}
        # What is sound is shown, and the image stays as it is.
        ran = image("inspect", "--json", both)
        assert ran.code == 1
        assert ran.error.startswith("capstore: corrupt: ")
        assert json.loads(ran.out)["format"] == ("wf1" if half == "st1" else "st1")
        assert image("compact", both).failed("corrupt")
        assert image("verify", "--repair", both).code == 2
        assert both.read_bytes() == raw
        ran = image("extract", both, tmp_path / half)
        assert ran.code == 1
        other = "files" if half == "st1" else "objects"
        assert contents(tmp_path / half / other) == contents(seeds / other)
        both.write_bytes(sound)
