"""`capstore image` for CAPOSST1: built, looked at, checked, repaired, unpacked and compared."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from capstore.images import st1
from capstore.images.devices import FileDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.st1_build import St1Builder
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import open_st1
from capstore.images.st1_recovery import recover
from capstore.images.wf1_build import Wf1Builder
from capstore.schema.objects import Put
from capstore.tools.main import main
from tests.tools.command import Ran
from tests.tools.conftest import make_tree

EPOCH = "1700000000"
MIB = 1 << 20
GOLDEN = {
    ("empty", None): "5fc71bd4110128f309eb8d4981a86f12",
    ("empty", "128KiB"): "0ac16ddb7584a68fc39868cddaa695f4",
    ("keys", None): "0d6e1ed35b810a69e012a228da08f05f",
    ("keys", "1MiB"): "8ac8454ffed0976051f0f2ff7ed9d7fc",
    ("content", None): "761f25b9f71321b0fa4539d0807944f5",
}


def image(*arguments: str | Path, **environment: str) -> Ran:
    """Runs ``capstore image`` in this process, which takes less long than one of its own."""
    out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with (
        patch.dict(os.environ, environment),
        patch("sys.argv", ["capstore", "image", *map(str, arguments)]),
        patch("sys.stdout", out),
        patch("sys.stderr", error),
        pytest.raises(SystemExit) as left,
    ):
        main()
    for stream in (out, error):
        stream.flush()
    code = left.value.code
    assert isinstance(code, int)
    said = error.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return Ran(code, out.buffer.getvalue(), said)  # type: ignore[attr-defined]


def build(out: Path, *more: str | Path, **environment: str) -> Ran:
    return image("build", out, "--format", "st1", *more, **environment)


def inspected(path: Path | str) -> dict[str, object]:
    document = json.loads(image("inspect", "--json", path).ok())
    assert isinstance(document, dict)
    return document


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files with everything that a key can be made of, and no links."""
    root = tmp_path / "files"
    root.mkdir()
    make_tree(root)
    for path in list(root.rglob("*")):
        if path.is_symlink():
            path.unlink()
    (root / "deep" / "same").write_bytes((root / "large").read_bytes())
    os.link(root / "large", root / "linked")
    return root


def contents(root: Path) -> dict[str, bytes]:
    """All files below `root` by their paths."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def filled(path: Path, *, size: int | None = None, count: int = 300, bytes_: int = 2000) -> None:
    """A store in which most of what was put was replaced or removed."""
    device = FileDevice.open(path, create=True)
    St1Builder(device, size=size).finish()
    engine = open_st1(device)
    for number in range(count):
        engine.put(b"%d" % (number % 30), bytes([number % 256]) * bytes_)
    for number in range(10):
        engine.delete(b"%d" % number)
    engine.close()


# Building ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), list(GOLDEN))
def test_the_bytes_of_an_image(kind: str, size: str | None, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for number in range(20):
        (root / "sub" / f"{number}").write_bytes(bytes([number]) * number**3)
    (root / "large").write_bytes(bytes(range(256)) * 2000)
    more: list[str | Path] = ["--size", size] if size else []
    if kind != "empty":
        more += ["--from", root]
        for path in [root, *root.rglob("*")]:
            os.utime(path, (1_600_000_000,) * 2)
    if kind == "content":
        more += ["--content", "--manifest", tmp_path / "manifest"]
    for name in ("one", "two"):
        build(tmp_path / name, *more, SOURCE_DATE_EPOCH=EPOCH).ok()
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two
    assert hashlib.sha256(one).hexdigest()[:32] == GOLDEN[kind, size]
    assert image("verify", tmp_path / "one").ok() == ""


def test_files_come_back_as_they_went(files: Path, tmp_path: Path) -> None:
    path, back = tmp_path / "image", tmp_path / "back"
    build(path, "--from", files).ok()
    document = inspected(path)
    assert document["format"] == "st1"
    assert document["facts"]["entries"]["objects"] == len(contents(files))  # type: ignore[index]
    image("extract", path, back).ok()
    assert contents(back) == contents(files)
    again = tmp_path / "again"
    build(again, "--from", back).ok()
    assert again.read_bytes() == path.read_bytes()
    assert image("diff", path, f"st1:{again}").ok() == ""


def test_content_is_found_again_by_name(files: Path, tmp_path: Path) -> None:
    path, back = tmp_path / "image", tmp_path / "back"
    lines = build(path, "--from", files, "--content").ok().splitlines()
    wanted = contents(files)
    assert len(lines) == len(wanted)
    said = dict(line.split("\t") for line in lines)
    assert said["deep/same"] == said["linked"] == said["large"]
    assert said["new\\x0aline"] == hashlib.sha256(b"new\nline").hexdigest()
    assert said["back\\\\slash"] == hashlib.sha256(b"back\\slash").hexdigest()
    entries = inspected(path)["facts"]["entries"]  # type: ignore[index]
    assert entries["names"] == len(wanted)
    assert entries["objects"] == len(set(wanted.values()))
    image("extract", path, back).ok()
    assert contents(back) == wanted
    build(path, "--force", "--from", files, "--content", "--manifest", files / "lines").ok()
    assert (files / "lines").read_text().splitlines() == lines
    # What is said of the image is no part of it.
    assert build(path, "--force", "--from", files, "--content").ok() != "\n".join(lines)
    build(path, "--force", "--from", files, "--content", "--manifest", files / "lines").ok()
    assert (files / "lines").read_text().splitlines() == lines


def test_links_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("x")
    (root / "link").symlink_to("file")
    os.link(root / "link", root / "again", follow_symlinks=False)
    ran = build(tmp_path / "image", "--from", root)
    assert (ran.code, ran.error.count("is a symbolic link")) == (0, 2)
    image("extract", tmp_path / "image", tmp_path / "back").ok()
    assert contents(tmp_path / "back") == {"file": b"x"}


def test_wrong_usage(tmp_path: Path, files: Path) -> None:
    path = tmp_path / "image"
    assert build(path, "--size", "10KiB").failed("invalidArgument")
    assert build(path, "--label", "x").code == 2
    assert build(path, "--content").code == 2
    assert build(path, "--from", files, "--manifest", "x").code == 2
    assert build(path, "--objects", files).code == 2
    ran = image("build", path, "--format", "wf1", "--from", files, "--content")
    assert ran.code == 2
    assert "noSpace" in build(path, "--size", "1MiB", "--from", files).error
    deep = files.joinpath(*["d" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_text("x")
    for more in ((), ("--content",)):
        assert "1024 bytes" in build(path, "--from", files, *more).failed("invalidArgument")
    assert not path.exists()
    build(path).ok()
    assert build(path).failed("alreadyExists")
    assert build(tmp_path / "other", "--from", path).failed("unsupported")


# Looking -----------------------------------------------------------------------------------------


def test_what_is_dead_is_shown_and_compacted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    filled(path, count=900, bytes_=20_000)
    before = path.stat().st_size
    document = inspected(path)
    totals: dict[str, int] = document["totals"]  # type: ignore[assignment]
    segments: list[dict[str, int]] = document["segments"]  # type: ignore[assignment]
    assert sum(totals.values()) == before
    dead = sum(segment["dead"] for segment in segments)
    in_log = sum(segment["use"] == "log" for segment in segments)
    assert dead + in_log * 4 * MIB > 8 * MIB
    # Each live value is counted once, whatever was replaced since the table.
    assert sum(segment["live"] for segment in segments) == 20 * 20_000
    text = image("inspect", path).ok()
    assert "SEGMENT  USE" in text
    assert "objects 20, names 0" in text
    for name in ("map.svg", "map.png"):
        image("inspect", path, "--picture", tmp_path / name).ok()
        assert (tmp_path / name).stat().st_size > 1000
    image("extract", path, tmp_path / "one").ok()
    assert "->" in image("compact", path).ok()
    assert path.stat().st_size < before
    assert image("verify", path).ok() == ""
    image("extract", path, tmp_path / "two").ok()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "two")) == 20
    assert image("compact", "--quiet", f"st1:{path}").ok() == ""


def test_a_fixed_region_is_compacted_in_place(tmp_path: Path) -> None:
    path = tmp_path / "image"
    filled(path, size=MIB)
    totals: dict[str, int] = inspected(path)["totals"]  # type: ignore[assignment]
    image("compact", path).ok()
    after: dict[str, int] = inspected(path)["totals"]  # type: ignore[assignment]
    assert path.stat().st_size == MIB
    assert after["free"] > totals["free"]
    assert image("verify", path).ok() == ""


# Verifying ---------------------------------------------------------------------------------------


def flipped(path: Path, at: int) -> bytes:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    return bytes(raw)


def place_of(path: Path, key: bytes) -> int:
    """Where the value under a key begins."""
    device = FileDevice.open(path, writable=False)
    found = recover(device)
    entry = found.table.find_key(st1.OBJECTS + key)
    device.close()
    assert entry is not None
    return entry.parts[0].place if entry.parts else entry.place


def test_damage_costs_what_it_is_in(files: Path, tmp_path: Path) -> None:
    path, sound = tmp_path / "image", tmp_path / "sound"
    for built in (path, sound):
        build(built, "--from", files).ok()
    at = place_of(path, b"run")
    raw = flipped(path, at)
    ran = image("verify", path)
    assert (ran.code, ran.error) == (1, "")
    assert ran.out.splitlines() == [f"{at}: object {b'run'.hex()}: its value has a wrong checksum"]
    (finding,) = json.loads(image("verify", "--json", path).out)["findings"]
    assert (finding["offset"], finding["repairable"]) == (at, False)
    assert image("verify", "--repair", path).code == 1
    assert path.read_bytes() == raw
    ran = image("extract", path, tmp_path / "back", "--manifest", tmp_path / "list")
    assert ran.code == 1
    assert 'corrupt: key "run"' in ran.error
    wanted = contents(files)
    del wanted["run"]
    assert contents(tmp_path / "back") == wanted
    assert {said["file"] for said in json.loads((tmp_path / "list").read_text())} == set(wanted)
    ran = image("diff", "--json", path, sound)
    assert (ran.code, json.loads(ran.out)) == (2, [])
    assert "corrupt: run" in ran.error


def test_an_image_that_cannot_be_opened(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    build(path, "--from", files).ok()
    offset = inspected(path)["facts"]["table"]["offset"]  # type: ignore[index]
    raw = flipped(path, offset + 16)
    for more in ((), ("--repair",), ("--json",)):
        ran = image("verify", path, *more)
        assert (ran.code, ran.out) == (2, "")
        assert "corrupt" in ran.error
    for verb in ("compact", "inspect"):
        assert image(verb, path).failed("corrupt")
    assert image("extract", path, tmp_path / "back").failed("corrupt")
    assert path.read_bytes() == raw
    assert not (tmp_path / "back").exists()


def test_a_torn_tail_is_shown_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "image"
    build(path, "--size", "1MiB").ok()
    device = FileDevice.open(path)
    engine = open_st1(device)
    for name in (b"a", b"b"):
        engine.put(name, b"content of " + name)
        engine.sync()
    device.close()
    raw = path.read_bytes()
    assert raw.count(b"content of b") == 1
    path.write_bytes(torn := raw.replace(b"content of b", bytes(12)))
    ran = image("verify", path)
    assert ran.code == 1
    assert "torn tail" in ran.out
    assert "--repair" in ran.out
    assert path.read_bytes() == torn
    assert image("verify", "--repair", path).ok() == ""
    repaired = path.read_bytes()
    assert repaired != torn
    # There is nothing left to repair.
    assert image("verify", "--repair", path).ok() == ""
    assert path.read_bytes() == repaired
    image("extract", path, tmp_path / "back").ok()
    assert contents(tmp_path / "back") == {"a": b"content of a"}


def test_an_image_that_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "image"
    build(path).ok()
    device = FileDevice.open(path)
    try:
        for verb in ("compact", "inspect"):
            assert image(verb, path).failed("busy")
        assert image("verify", "--repair", path).code == 2
        assert image("extract", path, tmp_path / "back").failed("busy")
        assert image("diff", path, path).code == 2
    finally:
        device.close()
    for verb in ("compact", "inspect"):
        assert image(verb, f"st1:{tmp_path / 'missing'}").failed("notFound")
    assert image("inspect", f"st1:{path},part=1").failed("invalidArgument")


# Comparing ---------------------------------------------------------------------------------------


def engine_at(path: Path) -> St1Engine:
    return open_st1(FileDevice.open(path))


def test_every_way_of_being_different(files: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        build(path, "--from", files, "--content", "--quiet", SOURCE_DATE_EPOCH=EPOCH)
    engine = engine_at(one)
    engine.batch([Put(b"gone", b"x"), Put(b"both", b"abc"), Put(b"sized", b"ab")])
    engine.batch([Put(b"long", bytes(3 * MIB)), Put(b"bin\xff", b"1")])
    engine.close()
    engine = engine_at(other)
    engine.batch([Put(b"new", b"x"), Put(b"both", b"abd"), Put(b"sized", b"abc")])
    engine.batch([Put(b"long", bytes(3 * MIB - 1) + b"!"), Put(b"bin\xff", b"1")])
    engine.close()
    assert build(tmp_path / "third", "--from", files).ok() == ""
    ran = image("diff", "--ignore-times", one, other)
    assert (ran.code, ran.error) == (1, "")
    assert ran.out == "M both (content)\nD gone\nM long (content)\nA new\nM sized (size)\n"
    assert "M bin\\xff (time)\n" in image("diff", one, other).out
    differences = json.loads(image("diff", "--json", one, other).out)
    assert {"change": "added", "kind": "object", "key": "new", "hex": "6e6577", "what": []} in (
        differences
    )
    ran = image("diff", "--ignore-times", tmp_path / "third", one)
    assert "A deep/same (name)\n" in ran.out
    assert f"A {hashlib.sha256(b'').hexdigest()}\n" in ran.out
    assert image("diff", one, files).code == 2


# What is in a store was put there by anybody -----------------------------------------------------


def test_a_store_that_holds_a_tree_is_a_store(tmp_path: Path) -> None:
    root, path, volume = tmp_path / "root", tmp_path / "image", tmp_path / "volume"
    root.mkdir()
    device = FileDevice.open(volume, create=True)
    Wf1Builder(device, size=MIB).finish()
    device.close()
    raw = bytearray(700_000)
    (root / "object").write_bytes(raw)
    build(path, "--from", root, "--size", "1MiB").ok()
    # Where its parts are says which bytes of the object lie where a tree would begin.
    device = FileDevice.open(path, writable=False)
    entry = recover(device).table.find_key(st1.OBJECTS + b"object")
    device.close()
    assert entry is not None
    start = st1.COMBINED_BLOCKS * BLOCK_BYTES
    for part in entry.parts:
        for at in range(part.place, part.place + part.length, BLOCK_BYTES):
            if at >= start:
                inside = part.offset + at - part.place
                raw[inside : inside + BLOCK_BYTES] = volume.read_bytes()[at : at + BLOCK_BYTES]
    content = bytes(raw[:700_000])
    (root / "object").write_bytes(content)
    build(path, "--force", "--from", root, "--size", "1MiB").ok()
    assert path.read_bytes()[start : start + 512] == volume.read_bytes()[start : start + 512]
    assert inspected(path)["format"] == "st1"
    assert image("verify", path).ok() == ""
    image("compact", path).ok()
    image("verify", "--repair", path).ok()
    assert build(tmp_path / "other", "--from", path).failed("unsupported")
    image("extract", path, tmp_path / "back").ok()
    assert contents(tmp_path / "back") == {"object": content}
