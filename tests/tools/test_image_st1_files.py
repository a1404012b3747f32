"""Objects as files: no key leads out of the directory, and none overwrites another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.devices import FileDevice, MemoryDevice
from capstore.images.st1_build import St1Builder
from capstore.images.st1_names import bind
from capstore.images.st1_open import open_st1
from capstore.schema.objects import Binding
from capstore.tools.image import unpacking
from capstore.tools.image.storekeys import escaped, hex_path_of, path_of
from capstore.tools.image.unpacking import Unpacker
from capstore.tools.progress import Meter
from tests.tools.test_image_st1 import image

KEYS = [
    *(b"plain", b"a/b/c", b"a/b/d", "ünï/日".encode(), b"new\nline", b"-dash", b"sp ace", b"~"),
    *(b".", b"..", b"../up", b"a/../../up", b"a/./b", b"/absolute", b"//", b"/", b"trailing/"),
    *(b"double//slash", b"nul\0", b"\0", b"\xff\xfe", b"a/\xff", b".hex/61", b".HEX/61", b".hex"),
    *(b"file", b"file/below", b"file/below/more", b"folder/file", b"x" * 256, b"x" * 255),
    *(b"d/" * 500 + b"x", b"k" * 1024, b"Case", b"case", b"CASE/x", b"\xc3\xa9", b"e\xcc\x81"),
    *(b"y" * 120 + b"\0", b"y" * 119 + b"\0", b"y" * 240 + b"\0\0", b"C:\\x", b"a\\b"),
]


def unpacked(
    folder: Path, device: MemoryDevice, capsys: pytest.CaptureFixture[str] | None = None
) -> list[dict[str, Any]]:
    """What is said of the files that a store makes in `folder`."""
    said: list[dict[str, Any]] = []
    engine = open_st1(device, writable=False)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        meter = Meter()
        for _ in Unpacker(engine, root, meter).steps(said.append):
            continue
    finally:
        os.close(root)
    assert not meter.failures, capsys.readouterr().err if capsys else ""
    return said


def stored(objects: dict[bytes, bytes]) -> MemoryDevice:
    device = MemoryDevice()
    builder = St1Builder(device)
    for key, data in objects.items():
        builder.put(key, data)
    builder.finish()
    return device


def files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    # The longest of these paths are longer than a system call takes.
    for _, directories, names, descriptor in os.fwalk(folder):
        assert not [name for name in directories if os.stat(name, dir_fd=descriptor).st_nlink < 2]
        for name in names:
            with open(os.open(name, os.O_RDONLY, dir_fd=descriptor), "rb") as file:
                yield name, file.read()


def test_hostile_keys(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    objects = {key: b"value of " + key for key in KEYS}
    said = unpacked(out, stored(objects))
    assert sorted(bytes.fromhex(one["hex"]) for one in said) == sorted(KEYS)
    assert len({one["file"] for one in said}) == len(KEYS)
    for one in said:
        key = bytes.fromhex(one["hex"])
        assert (out / one["file"]).read_bytes() == objects[key]
        assert one["size"] == len(objects[key])
    assert sorted(data for _, data in files_in(out)) == sorted(objects.values())
    assert os.listdir(tmp_path) == ["out"]
    places = {bytes.fromhex(one["hex"]): one["file"] for one in said}
    assert places[b"a/b/c"] == "a/b/c"
    assert places[b"file"] == "file"
    assert places[b"file/below"] == ".hex/" + b"file/below".hex()
    assert places[b".hex/61"] == ".hex/" + b".hex/61".hex()
    assert places[b"k" * 1024].startswith(".hex/6b6b")


@settings(max_examples=20, deadline=None)
@given(
    st.sets(
        st.lists(
            st.sampled_from([b"a", b"b", b"/", b".", b"\xff", b"\0"]), min_size=1, max_size=7
        ).map(b"".join),
        min_size=1,
        max_size=12,
    )
)
def test_any_keys(tmp_path_factory: pytest.TempPathFactory, keys: set[bytes]) -> None:
    out = tmp_path_factory.mktemp("out")
    said = unpacked(out, stored({key: key for key in keys}))
    assert {(out / one["file"]).read_bytes() for one in said} == keys
    assert {data for _, data in files_in(out)} == keys
    assert len(list(files_in(out))) == len(keys)


@given(st.binary(min_size=1, max_size=1024), st.binary(min_size=1, max_size=1024))
def test_paths_and_texts_of_keys(one: bytes, other: bytes) -> None:
    for place in (path_of(one), hex_path_of(one)):
        for name in place or ():
            assert 0 < len(name) <= 255
            assert name not in (b".", b"..")
            assert not set(b"/\0") & set(name)
    assert path_of(one) is None or b"/".join(path_of(one) or ()) == one
    assert escaped(one).isprintable()
    assert (one == other) == (escaped(one) == escaped(other))
    assert (one == other) == (hex_path_of(one) == hex_path_of(other))
    # No file of digits is where another has a directory.
    place = hex_path_of(other)
    assert hex_path_of(one) not in [place[:depth] for depth in range(1, len(place))]


def test_a_filesystem_that_knows_no_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[str] = set()
    rename = unpacking.rename_to_nothing

    def folding(source: int, old: bytes, target: int, new: bytes) -> None:
        folder = os.readlink(f"/proc/self/fd/{target}")
        path = f"{folder}/{os.fsdecode(new)}".casefold()
        if path in taken:
            raise FileExistsError(17, "File exists")
        rename(source, old, target, new)
        taken.add(path)

    monkeypatch.setattr(unpacking, "rename_to_nothing", folding)
    said = unpacked(tmp_path, stored({b"Name": b"1", b"NAME": b"2", b"name": b"3", b"d/x": b"4"}))
    assert {one["key"]: one["file"] for one in said} == {
        "NAME": "NAME",
        "Name": ".hex/" + b"Name".hex(),
        "d/x": "d/x",
        "name": ".hex/" + b"name".hex(),
    }
    assert [(tmp_path / one["file"]).read_bytes() for one in said] == [b"2", b"1", b"4", b"3"]


def test_names_and_what_they_stand_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = MemoryDevice()
    builder = St1Builder(device)
    hashes = [builder.put(b"", data) for data in (b"one", b"two", b"three", b"nameless", b"gone")]
    builder.put(b"key", b"value")
    engine = builder.engine
    bind(engine, (), Binding("key", hash=hashes[0]))
    bind(engine, ("a",), Binding("twice", hash=hashes[0]))
    bind(engine, ("a", "twice"), Binding("below", hash=hashes[1]))
    bind(engine, (".hex",), Binding("three", hash=hashes[2]))
    bind(engine, (), Binding("capability", reference=7))
    bind(engine, (), Binding("dangling", hash=hashes[4]))
    engine.delete(hashes[4])
    builder.finish()
    said = unpacked(tmp_path, device)
    found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == {
        "key": b"one",
        "a/twice": b"one",
        f".hex/{b'key'.hex()}": b"value",
        f".hex/{hashes[1].hex()}": b"two",
        f".hex/{hashes[2].hex()}": b"three",
        f".hex/{hashes[3].hex()}": b"nameless",
    }
    assert {one["name"]: one["file"] for one in said if "name" in one} == {
        "key": "key",
        "a/twice": "a/twice",
        "a/twice/below": f".hex/{hashes[1].hex()}",
        ".hex/three": f".hex/{hashes[2].hex()}",
    }
    warned = capsys.readouterr().err
    assert 'name "capability" stands for a saved capability' in warned
    assert 'name "dangling" stands for content that is not there' in warned


def test_content_that_is_not_what_its_hash_says(tmp_path: Path) -> None:
    path = tmp_path / "image"
    device = FileDevice.open(path, create=True)
    builder = St1Builder(device)
    key = builder.put(b"", b"the content")
    builder.put(b"other", b"value")
    builder.finish()
    device.close()
    raw = path.read_bytes()
    assert raw.count(b"the content") == 1
    path.write_bytes(raw.replace(b"the content", b"The content"))
    ran = image("extract", path, tmp_path / "out")
    assert ran.code == 1
    assert f'corrupt: key "{key.hex()}"' in ran.error
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["other"]


def test_an_interruption_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    engine = open_st1(stored({b"long": bytes(5 << 20)}), writable=False)
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    steps = Unpacker(engine, root, Meter()).steps(lambda _: None)
    for _ in range(4):
        next(steps)
    assert len(list(tmp_path.iterdir())) == 1
    steps.close()
    os.close(root)
    assert not list(tmp_path.iterdir())


def test_only_a_new_or_empty_directory(tmp_path: Path) -> None:
    path, out = tmp_path / "image", tmp_path / "out"
    device = FileDevice.open(path, create=True)
    builder = St1Builder(device, built=1_600_000_000 * 10**9)
    builder.put(b"key", b"value")
    builder.finish()
    device.close()
    extract = ("extract", f"st1:{path}")
    assert image(*extract, out, "key").failed("invalidArgument")
    assert image(*extract, out, "--manifest", out / "list").failed("invalidArgument")
    image(*extract, out, "--manifest", tmp_path / "list").ok()
    (said,) = json.loads((tmp_path / "list").read_text())
    assert said["file"] == said["key"] == "key"
    assert said["created"] == "2020-09-13T12:26:40.000000000Z"
    assert (out / "key").stat().st_mtime == 1_600_000_000
    assert image(*extract, out).failed("notEmpty")
    assert (out / "key").read_bytes() == b"value"
    assert image(*extract, tmp_path / "no" / "such").failed("notFound")
