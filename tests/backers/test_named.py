"""Marks that are names: image layers, hostile trees, notes, and volumes that lack something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.layer import NO_MARK, WHITEOUT, Found, Mark, PlainLayer
from capstore.backers.memory import MemoryVolume
from capstore.backers.named import NamedLayer, NamedUpper
from capstore.schema.errors import (
    Corrupt,
    CrossVolume,
    InvalidName,
    NotEmpty,
    ReadOnly,
    StorageError,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from tests.backers.upperwork import LIKE, OPAQUE, content, copy, dump, listed, mark_of, put
from tests.backers.wired import HIDDEN, Power, WiredVolume, deeper, wired
from tests.contract.harness import Link, Tree, names_of, populate, tree_of

pytestmark = pytest.mark.anyio


# OCI layers, as others make them ----------------------------------------------------------------


async def oci(tree: Tree) -> NamedLayer:
    volume = await MemoryVolume.open()
    await populate(volume.root, tree)
    return NamedLayer(volume)


async def test_marks_of_an_image_layer_are_read() -> None:
    layer = await oci(
        {
            ".wh.gone": b"",
            ".wh.file": b"",
            "file": b"is here",
            ".wh.beside": b"",
            "beside": {"f": b""},
            "inside": {".wh..wh..opq": b"", "f": b"", ".wh.g": b""},
            "merged": {"f": b""},
            ".wh.link": Link("any kind will do"),
            ".wh.directory": {"with": b"entries"},
        }
    )
    found = await listed(layer, layer.root, 2)
    for name, one in found.items():
        assert await layer.find(layer.root, name) == one
    whiteouts = {"gone", "link", "directory"}
    assert {name for name, one in found.items() if one == WHITEOUT} == whiteouts
    marks = {name: one.mark.opaque for name, one in found.items() if one != WHITEOUT}
    assert marks == {"file": False, "beside": True, "inside": True, "merged": False}
    inside = await layer.root.sub("inside")
    assert (await layer.about(inside))[1] == OPAQUE
    assert (await layer.about(await layer.root.sub("merged")))[1] == NO_MARK
    assert list(await listed(layer, inside)) == ["f", "g"]


async def test_other_names_of_marks_are_not_shown() -> None:
    names = (".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh.aufs", ".wh..wh..wh.x", HIDDEN)
    layer = await oci({**dict.fromkeys(names, b""), "f": b"", ".wh.g": b""})
    for limit in (1, 2, 100):
        assert list(await listed(layer, layer.root, limit)) == ["f", "g"]
    for name in (*names, ".wh.g", ".wh..wh..opq"):
        assert await layer.find(layer.root, name) is None
        assert not layer.holds(name)
    assert layer.holds("wh.")
    assert layer.holds(".wh")


async def test_an_opaque_mark_of_another_kind_counts() -> None:
    layer = await oci({"d": {".wh..wh..opq": {"inside": b""}}, "e": {".wh..wh..opq": Link("x")}})
    assert {one.mark for one in (await listed(layer, layer.root)).values()} == {OPAQUE}


async def test_a_file_between_a_look_and_the_next() -> None:
    """What a name stood for may be something else when it is entered."""
    layer = await oci({"d": {}})
    assert await layer.find(layer.root, "d") == Found(await layer.root.lookup("d"), NO_MARK)
    stale = await layer.root.lookup("d")
    await layer.root.remove("d")
    assert (await layer._found(layer.root, stale, beside=False)).mark == NO_MARK
    await layer.root.create("d")
    assert (await layer._found(layer.root, stale, beside=False)).mark == NO_MARK


@pytest.mark.parametrize(
    ("tree", "after"),
    [
        ([f"name {number:04}" for number in range(3000)], ""),
        ([f"name {number:04}" for number in range(3000)], "name 1000"),
        ([f".wh.name {number:04}" for number in range(3000)], ""),
        ([f".wh.name {number:04}" for number in range(3000)], "name 1000"),
        ([f"{n}{number:04}" for number in range(1000) for n in ("-", ".wh.b", "b")], "-0990"),
        ([f".wh..wh.{number:04}" for number in range(3000)], ""),
    ],
)
async def test_a_page_costs_what_it_shows(tree: Sequence[str], after: str) -> None:
    volume, power = await MemoryVolume.open(), Power()
    await populate(volume.root, dict.fromkeys(tree, b""))
    layer = NamedLayer(WiredVolume(volume, power))
    power.listed = 0
    page = await layer.page(layer.root, after, 10)
    assert len(page.found) == (0 if ".wh..wh.0000" in tree else 10)
    assert power.listed <= 40


async def test_a_page_is_as_long_as_asked_for(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(600)]
    for name in names:
        (tmp_path / f".wh.{name}").touch()
        (tmp_path / f"{name} too").touch()
    volume = await HostVolume.open(str(tmp_path))
    layer = NamedLayer(volume)
    page = await layer.page(layer.root, "", 10_000)
    assert len(page.found) == PAGE_ENTRIES_MAX
    assert page.more
    assert len(await listed(layer, layer.root, 10_000)) == 1200
    await volume.close()


# Names ------------------------------------------------------------------------------------------


async def test_names_that_are_marks_are_refused() -> None:
    upper, _ = await wired()
    root = upper.root
    await put(upper, root, "f")
    file = await upper.unnamed()
    before = await dump(upper, root)
    for name in (".wh.f", ".wh..wh..opq", ".wh.", HIDDEN):
        assert not upper.holds(name)
        for refused in (
            upper.create(root, name),
            upper.mkdir(root, name, opaque=False),
            upper.symlink(root, name, "t"),
            upper.link(root, "f", root, name),
            upper.cover(root, name),
            upper.remove(root, name, cover=False),
            upper.rename(root, "f", root, name, cover=False),
            upper.rename(root, name, root, "g", cover=False),
            upper.exchange(root, "f", None, root, name, None),
            upper.name_file(file, root, name, LIKE, NO_MARK),
            upper.copy_directory(root, name, LIKE, NO_MARK),
            upper.copy_symlink(root, name, "t", LIKE, NO_MARK),
            upper.adopt(1, root, name),
        ):
            with pytest.raises(InvalidName):
                await refused
    assert await dump(upper, root) == before
    await file.close()


@pytest.mark.parametrize("name", ["n" * 252, "é" * 126])
async def test_a_name_too_long_for_a_mark_is_refused_when_it_is_to_be_covered(name: str) -> None:
    upper, _ = await wired()
    root = upper.root
    longest = "n" * 251
    await upper.cover(root, longest)
    assert await upper.find(root, longest) == WHITEOUT
    await put(upper, root, name)
    before = await dump(upper, root)
    for refused in (
        upper.cover(root, name),
        upper.remove(root, name, cover=True),
        upper.rename(root, name, root, "g", cover=True),
        upper.mkdir(root, "m" * 252, opaque=True),
    ):
        with pytest.raises(InvalidName):
            await refused
    assert await dump(upper, root) == before
    await upper.rename(root, name, root, "g", cover=False)
    await upper.rename(root, "g", root, name, cover=False)
    await upper.remove(root, name, cover=False)
    await (await upper.mkdir(root, name, opaque=False)).create("f")
    assert await upper.find(root, name) is not None


async def test_names_too_long_for_a_mark_are_read() -> None:
    name = "n" * 255
    layer = await oci({name: {"f": b""}, "other": b""})
    assert await layer.find(layer.root, name) == Found(await layer.root.lookup(name), NO_MARK)
    assert list(await listed(layer, layer.root, 1)) == [name, "other"]
    assert await layer.find(layer.root, "m" * 255) is None
    with pytest.raises(InvalidName):
        await layer.find(layer.root, "n" * 256)


# Hostile trees ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"a file", Link("/etc")])
@pytest.mark.parametrize("name", ["", "making", "ids", "links"])
async def test_what_is_no_directory_is_damage(name: str, kind: bytes | Link) -> None:
    volume = await MemoryVolume.open()
    tree: Tree = {HIDDEN: {name: kind}} if name else {HIDDEN: kind}
    await populate(volume.root, tree)
    with pytest.raises(Corrupt, match="no directory"):
        await NamedUpper.open(volume)
    assert await tree_of(volume.root) == tree or name not in ("", "making")


async def test_garbage_among_the_notes_is_left_alone() -> None:
    volume = await MemoryVolume.open()
    upper = await NamedUpper.open(volume)
    await (await copy(upper, upper.root, "f", mark=Mark(origin=5, below=2))).close()
    before = await dump(upper, upper.root)
    hidden = await upper.root.sub(HIDDEN)
    ids, links = await hidden.sub("ids"), await hidden.sub("links")
    garbage = ("", "-", "g-1", "1-", "-1", "1-0x", "12345678901234567-1", "1-2-3-4", "é", "A-B")
    for name in filter(None, garbage):
        await (await ids.create(name)).close()
        await (await links.create(name)).close()
    await (await ids.create("77-0")).close()
    await (await links.create("0-1")).close()
    await (await links.create("9-0")).close()
    await links.mkdir("8-1")
    # A second node for an origin, and a second origin for a node.
    await (await links.create("5-9")).close()
    await links.link("5-2", links, "6-2")
    upper = await NamedUpper.open(volume)
    found = await dump(upper, upper.root)
    assert found.keys() == before.keys()
    assert await mark_of(upper, upper.root, "f") == Mark(origin=5, below=2)
    assert {name for name in garbage if name} <= set(await names_of(ids))
    assert await upper.linked(8) is await upper.linked(9) is None
    # What has the name of a note to be made has to go.
    await (await copy(upper, upper.root, "g", mark=Mark(origin=8, below=1))).close()
    assert await upper.linked(8) is not None


async def test_what_is_left_in_the_making_goes_however_deep() -> None:
    volume = await MemoryVolume.open()
    await populate(volume.root, {HIDDEN: {"making": {"f": b"", "l": Link("f")}}})
    inner = await deeper(volume.root, HIDDEN, "making")
    for _ in range(1200):
        await (await inner.create("file")).close()
        inner = await inner.mkdir("d")
    upper = await NamedUpper.open(volume)
    assert await tree_of(await deeper(upper.root, HIDDEN, "making")) == {}


async def test_what_cannot_be_removed_from_the_making_does_no_harm() -> None:
    volume, power = await MemoryVolume.open(), Power()
    await NamedUpper.open(volume)
    await populate(await deeper(volume.root, HIDDEN, "making"), {"f": b"", "d": {"e": {}}})
    power.left = 0
    upper = await NamedUpper.open(WiredVolume(volume, power))
    power.left = None
    assert await listed(upper, upper.root) == {}
    await (await copy(upper, upper.root, "f")).close()


async def test_a_directory_goes_with_whatever_hides_in_it() -> None:
    upper, _ = await wired()
    made = await upper.mkdir(upper.root, "d", opaque=False)
    deep: Tree = {".wh..wh..opq": {"a": {"b": b""}}, ".wh.": b"", ".wh.x": {"y": {"z": {}}}}
    await populate(made, deep)
    await upper.remove(upper.root, "d", cover=True)
    assert await listed(upper, upper.root) == {"d": WHITEOUT}
    assert await tree_of(await deeper(upper.root, HIDDEN, "making")) == {}
    # And a whiteout of a strange kind makes way for a directory that is not opaque.
    await populate(upper.root, {".wh.e": {"f": {"g": b""}}})
    await upper.mkdir(upper.root, "e", opaque=False)
    assert await mark_of(upper, upper.root, "e") == NO_MARK


@pytest.mark.parametrize("cover", [False, True])
async def test_a_directory_with_entries_stays_as_it_is(cover: bool) -> None:
    upper, _ = await wired()
    for name in ("d", "e"):
        made = await upper.mkdir(upper.root, name, opaque=False)
        await put(upper, made, "z")
        await upper.cover(made, "a")
    before = await dump(upper, upper.root)
    with pytest.raises(NotEmpty):
        await upper.remove(upper.root, "d", cover=cover)
    with pytest.raises(NotEmpty):
        await upper.rename(upper.root, "d", upper.root, "e", cover=cover, mark=OPAQUE)
    assert await dump(upper, upper.root) == before


# Notes ------------------------------------------------------------------------------------------


async def test_notes_of_a_node_go_with_it() -> None:
    volume = await MemoryVolume.open()
    upper = await NamedUpper.open(volume)
    root = upper.root
    for name in ("removed", "replaced", "stays"):
        mark = Mark(origin=len(name))
        await (await copy(upper, root, name, mark=mark)).close()
        await upper.copy_directory(root, name + " too", LIKE, mark)
    await upper.link(root, "stays", root, "again")
    ids = await deeper(root, HIDDEN, "ids")
    assert len(await names_of(ids)) == 7
    await upper.remove(root, "removed", cover=True)
    await upper.remove(root, "removed too", cover=True)
    await put(upper, root, "own")
    await upper.rename(root, "own", root, "replaced", cover=False)
    await upper.mkdir(root, "own", opaque=False)
    await upper.rename(root, "own", root, "replaced too", cover=False)
    await upper.remove(root, "again", cover=False)
    assert len(await names_of(ids)) == 3
    assert await mark_of(upper, root, "stays") == Mark(origin=5)


async def test_an_id_that_is_given_again_brings_nothing_along() -> None:
    """As a host's filesystem does, after a crash between a removal and that of its note."""
    volume = await MemoryVolume.open()
    upper = await NamedUpper.open(volume)
    ids = await deeper(upper.root, HIDDEN, "ids")
    last = (await (await upper.create(upper.root, "probe")).stat()).node_id
    coming = range(last + 1, last + 200)
    for number in coming:
        await (await ids.create(f"{number + 200:x}-{number:x}")).close()
    upper = await NamedUpper.open(volume)
    root = upper.root
    while (await (await upper.create(root, f"{last}")).stat()).node_id < coming[0] + 200:
        last += 1
    await upper.create(root, "f")
    await upper.mkdir(root, "d", opaque=True)
    await upper.symlink(root, "l", "t")
    await (await copy(upper, root, "c")).close()
    await (await copy(upper, root, "o", mark=Mark(origin=1))).close()
    await upper.copy_directory(root, "e", LIKE, NO_MARK)
    marks = {name: found.mark for name, found in (await listed(upper, root)).items()}
    assert marks.pop("d") == OPAQUE
    assert marks.pop("o") == Mark(origin=1)
    assert set(marks.values()) == {NO_MARK}
    again = await NamedUpper.open(volume)
    assert await dump(again, root) == await dump(upper, root)


async def test_ids_in_a_copy_of_the_tree_mean_nothing() -> None:
    first = await MemoryVolume.open()
    upper = await NamedUpper.open(first)
    await (await copy(upper, upper.root, "f", mark=Mark(origin=7))).close()
    second = await MemoryVolume.open()
    await second.root.mkdir("something else first")
    await populate(second.root, await tree_of(first.root))
    upper = await NamedUpper.open(second)
    assert await mark_of(upper, upper.root, "f") == NO_MARK
    ids = await deeper(upper.root, HIDDEN, "ids")
    assert await names_of(ids) == [f"self-{(await ids.stat()).node_id:x}"]


async def test_ids_that_do_not_survive_are_kept_in_memory() -> None:
    upper, _ = await wired("handle")
    await (await copy(upper, upper.root, "f", mark=Mark(origin=7))).close()
    await upper.copy_directory(upper.root, "d", LIKE, Mark(origin=8))
    assert await mark_of(upper, upper.root, "f") == Mark(origin=7)
    assert "ids" not in await names_of(await upper.root.sub(HIDDEN))
    again = await NamedUpper.open(upper.volume)
    assert await mark_of(again, again.root, "f") == NO_MARK
    await upper.remove(upper.root, "d", cover=True)
    assert await listed(again, again.root) == await listed(upper, upper.root) | {
        "f": Found(await again.root.lookup("f"), NO_MARK)
    }


# Volumes that lack something --------------------------------------------------------------------


async def test_without_hard_links_names_below_are_on_their_own() -> None:
    upper, _ = await wired("link")
    await (await copy(upper, upper.root, "f", mark=Mark(origin=7, below=2))).close()
    assert await mark_of(upper, upper.root, "f") == Mark(origin=7)
    assert (await upper.about(await upper.root.open("f")))[0].link_count == 1
    assert await upper.linked(7) is None


async def test_without_a_careful_rename_one_looks_first() -> None:
    upper, _ = await wired("rename noReplace")
    await (await copy(upper, upper.root, "f", b"first")).close()
    with pytest.raises(StorageError, match="taken"):
        await copy(upper, upper.root, "f", b"second")
    assert await content(upper.root, "f") == b"first"


async def test_without_any_rename_directories_are_copied_in_place() -> None:
    upper, _ = await wired("rename noReplace", "rename replace")
    at = await upper.copy_directory(upper.root, "d", LIKE, Mark(origin=7, opaque=True))
    assert await upper.about(at) == (await at.stat(), Mark(origin=7, opaque=True))
    assert (await at.stat()).modified == LIKE.modified
    await upper.remove(upper.root, "d", cover=True)
    assert await listed(upper, upper.root) == {"d": WHITEOUT}
    assert await names_of(await deeper(upper.root, HIDDEN, "making")) == []


async def test_without_exchange_nothing_is_marked() -> None:
    upper, _ = await wired("rename exchange")
    for name in "ab":
        await upper.mkdir(upper.root, name, opaque=False)
    before = await dump(upper, upper.root)
    with pytest.raises(Unsupported):
        await upper.exchange(upper.root, "a", OPAQUE, upper.root, "b", OPAQUE)
    assert await dump(upper, upper.root) == before


async def test_what_cannot_be_written_is_no_upper_layer(tmp_path: Path) -> None:
    volume = await HostVolume.open(str(tmp_path), read_only=True)
    with pytest.raises(ReadOnly):
        await NamedUpper.open(volume)
    assert list(tmp_path.iterdir()) == []
    await volume.close()


async def test_files_of_others_get_no_names() -> None:
    upper, _ = await wired()
    other, _ = await wired()
    for file in (await other.unnamed(), await upper.create(upper.root, "f")):
        with pytest.raises(CrossVolume):
            await upper.name_file(file, upper.root, "g", LIKE, NO_MARK)


async def test_a_layer_on_the_host_is_an_image_layer(tmp_path: Path) -> None:
    volume = await HostVolume.open(str(tmp_path))
    upper = await NamedUpper.open(volume)
    await upper.cover(upper.root, "gone")
    made = await upper.mkdir(upper.root, "d", opaque=True)
    await put(upper, made, "f")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    own = {path for path in found if path.startswith(HIDDEN)}
    assert found - own == {".wh.gone", ".wh.d", "d", "d/.wh..wh..opq", "d/f"}
    # Read without its notes it is the same.
    assert await dump(NamedLayer(volume), volume.root) == await dump(upper, upper.root)
    assert isinstance(await PlainLayer(volume).find(volume.root, ".wh.gone"), Found)
    await volume.close()
