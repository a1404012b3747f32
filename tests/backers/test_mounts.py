"""One tree out of several volumes: what is seen in it, and what is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryDirectory, MemoryVolume
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    NodeKind,
    OpenFlags,
    Page,
    RenameMode,
)
from capstore.backers.node_ids import combined_id
from capstore.schema.errors import (
    Busy,
    CrossVolume,
    InvalidArgument,
    InvalidName,
    NotFound,
    ReadOnly,
)
from capstore.schema.limits import PAGE_BYTES_MAX
from tests.backers.mounted import CREATE, FIXED, REFUSED, WRITE, at, memory, mounted, reading
from tests.contract.harness import (
    Link,
    content_of,
    entries_of,
    names_of,
    populate,
    tree_of,
)

pytestmark = pytest.mark.anyio


# What is seen ------------------------------------------------------------------------------------


async def test_a_mount_point_shadows_what_is_under_it() -> None:
    volume = await mounted(root={"mnt": {"hidden": b"x"}, "f": b"y"}, mnt={"shown": b"z"})
    assert await tree_of(volume.root) == {"f": b"y", "mnt": {"shown": b"z"}}
    with pytest.raises(NotFound):
        await (await at(volume, "mnt")).lookup("hidden")


@pytest.mark.parametrize("under", [b"file", Link("f")], ids=["a file", "a link"])
async def test_what_is_no_directory_is_shadowed_too(under: bytes | Link) -> None:
    volume = await mounted(root={"a": under, "mnt": under}, a_b={"f": b"x"}, mnt={})
    assert await tree_of(volume.root) == {"a": {"b": {"f": b"x"}}, "mnt": {}}
    for entry in await entries_of(volume.root):
        assert entry == await volume.root.lookup(entry.name)
        assert entry.stat.kind is NodeKind.DIRECTORY
        assert entry.target is None


async def test_a_mount_in_a_mount() -> None:
    volume = await mounted(root={"a": {"b": {"c": b"no"}}}, a={"b": {"d": b"no"}}, a_b={"e": b""})
    assert await tree_of(volume.root) == {"a": {"b": {"e": b""}}}


async def test_directories_on_the_way_are_there_all_the_same() -> None:
    volume = await mounted(root={"z": b""}, a_b_c={"f": b"x"}, a_d={})
    assert await tree_of(volume.root) == {"a": {"b": {"c": {"f": b"x"}}, "d": {}}, "z": b""}
    entry = await volume.root.lookup("a")
    assert entry.stat.kind is NodeKind.DIRECTORY
    a = await volume.root.sub("a")
    assert await a.stat() == entry.stat
    assert (await volume.root.list()).entries[0] == entry


async def test_what_a_volume_has_on_the_way_shows_and_changes() -> None:
    volume = await mounted(root={"a": {"f": b"x"}}, a_b_c={})
    a = await volume.root.sub("a")
    await populate(a, {"new": {"g": b"y"}})
    assert await tree_of(a) == {"b": {"c": {}}, "f": b"x", "new": {"g": b"y"}}
    await a.rename("f", await a.sub("new"), "f")
    await a.set_attributes(Attributes(modified=5))
    assert (await a.stat()).modified == 5
    assert (await volume.root.lookup("a")).stat == await a.stat()


async def test_the_stat_of_a_mount_point_is_that_of_the_mounted_root() -> None:
    inner = await memory({"f": b"x"})
    volume = MountsVolume.over({"/": await memory({"mnt": {}}), "/mnt": inner})
    await volume.root.set_attributes(Attributes(modified=77), "mnt")
    stat = await inner.root.stat()
    assert stat.modified == 77
    expected = stat._replace(node_id=combined_id(stat.node_id, 1))
    assert (await volume.root.lookup("mnt")).stat == expected
    assert (await volume.root.list()).entries[0].stat == expected
    assert await (await volume.root.sub("mnt")).stat() == expected


async def test_the_usage_of_a_directory_is_that_of_its_volume() -> None:
    volume = await mounted(root={"r": {}}, a_b={"f": b"x" * 1000, "g": b""})
    outer, inner = await volume.usage(), await (await at(volume, "a/b")).usage()
    assert inner.used_nodes == 3
    assert outer.used_nodes == 2
    for path in ("", "r", "a"):
        assert await (await at(volume, path)).usage() == outer


async def test_read_only_is_what_writes_nowhere(tmp_path: Path) -> None:
    first = await reading(tmp_path, {"d": {}, "f": b""})
    assert MountsVolume.over({"/": first}).read_only
    assert not MountsVolume.over({"/": first, "/d": await memory()}).read_only


# Listing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 1000])
async def test_a_listing_is_merged_in_the_order_of_bytes(limit: int) -> None:
    names = ["A", "a", "b", "é", "\ufffd", "\U0001f5c4"]
    volume = MountsVolume.over(
        {
            "/": await memory({"a": b"", "d": b"shadowed", "é": {}, "\U0001f5c4": b"", "A": b""}),
            "/d": await memory(),
            "/b": await memory(),
            "/\ufffd/x": await memory(),
        }
    )
    entries = await entries_of(volume.root, limit)
    assert [entry.name for entry in entries] == sorted([*names, "d"], key=str.encode)
    for entry in entries:
        assert entry == await volume.root.lookup(entry.name)
    page = await volume.root.list("b", limit)
    assert next(iter(page.entries)).name == "d"
    assert len(page.entries) == min(limit, 4)
    assert page.more is (limit < 4)
    assert not (await volume.root.list("\U0001f5c4")).entries


async def test_a_page_with_places_is_bounded() -> None:
    targets = {f"{number:03}" + "n" * 250: Link("t" * 4000) for number in range(300)}
    places = {f"/{number:03}" + "m" * 250: await memory() for number in range(200)}
    volume = MountsVolume.over({"/": await memory(targets), **places})
    page = await volume.root.list()
    size = sum(len(entry.name) + len(entry.target or "") for entry in page.entries)
    assert PAGE_BYTES_MAX - 5000 < size <= PAGE_BYTES_MAX
    assert page.more
    assert await names_of(volume.root) == sorted([*targets, *(path[1:] for path in places)])


class Short(MemoryDirectory):
    """Its pages are shorter than they could be."""

    async def list(self, after: str = "", limit: int = 1000) -> Page:
        return await super().list(after, min(limit, 2))


async def test_places_wait_for_the_page_that_they_are_in() -> None:
    class ShortVolume(MemoryVolume):
        @property
        def root(self) -> Short:
            return Short(self, self.tree.root)

    inner = await ShortVolume.open()
    await populate(inner.root, dict.fromkeys("bdfhj", b""))
    volume = MountsVolume.over({"/": inner, **{f"/{name}": await memory() for name in "aegz"}})
    assert await names_of(volume.root) == list("abdefghjz")


async def test_a_walk_over_changing_entries() -> None:
    kept = [f"{number:03} kept" for number in range(40)]
    places = {f"/{number:03} place": await memory() for number in range(0, 40, 3)}
    volume = MountsVolume.over({"/": await memory(dict.fromkeys(kept, b"")), **places})
    seen: list[str] = []
    for turn in range(1000):
        page = await volume.root.list(seen[-1] if seen else "", 3)
        seen += [entry.name for entry in page.entries]
        await volume.root.create(f"{turn * 7 % 40:03} new {turn}")
        if turn > 2:
            await volume.root.remove(f"{(turn - 2) * 7 % 40:03} new {turn - 2}")
        if not page.more:
            break
    assert [name for name in seen if "new" not in name] == sorted(
        [*kept, *(path[1:] for path in places)]
    )
    assert len(seen) == len(set(seen))


# What is refused ---------------------------------------------------------------------------------


# A mount point and a way that the volume has, then those that it does not have.
@pytest.mark.parametrize("name", ["mnt", "a", "lost", "w"])
@pytest.mark.parametrize("what", REFUSED)
async def test_names_of_places_are_fixed(what: str, name: str) -> None:
    volume = await mounted(
        root={**FIXED, "mnt": {}}, mnt={"in": b""}, a_b={"in": b""}, lost={}, w_x_y={}
    )
    before = await tree_of(volume.root)
    change, error = REFUSED[what]
    with pytest.raises(error):
        await change(volume.root, name)
    assert await tree_of(volume.root) == before


@pytest.mark.parametrize("name", ["mnt", "a", "lost", "w"])
async def test_renaming_onto_itself_changes_nothing(name: str) -> None:
    volume = await mounted(root={**FIXED, "mnt": {}}, mnt={}, a_b={}, lost={}, w_x_y={})
    before = await tree_of(volume.root)
    for mode in (RenameMode.REPLACE, RenameMode.EXCHANGE):
        await volume.root.rename(name, volume.root, name, mode)
    assert await tree_of(volume.root) == before


async def test_a_place_is_fixed_in_its_own_directory_alone() -> None:
    volume = await mounted(root={"other": {"mnt": {"x": b""}, "a": {}}, "d": {}}, mnt={}, a_b={})
    other = await volume.root.sub("other")
    await other.rename("mnt", other, "a")
    with pytest.raises(Busy):
        await volume.root.rename("mnt", other, "mnt")
    with pytest.raises(Busy):
        await other.rename("a", volume.root, "a")
    with pytest.raises(Busy):
        await volume.root.rename("a", volume.root, "mnt", RenameMode.EXCHANGE)
    assert await tree_of(other) == {"a": {"x": b""}}


async def test_nothing_goes_from_one_mount_to_another() -> None:
    volume = await mounted(root={"f": b"x", "d": {}}, mnt={"g": b"y"}, mnt_in={})
    root, mnt = volume.root, await at(volume, "mnt")
    inner = await at(volume, "mnt/in")
    before = await tree_of(root)
    for mode in RenameMode:
        for source, name, target in (
            (root, "f", mnt),
            (root, "d", inner),
            (mnt, "g", root),
            (mnt, "g", inner),
            (root, "mnt", mnt),
        ):
            with pytest.raises(CrossVolume):
                await source.rename(name, target, "new", mode)
    for source, name, target in ((root, "f", mnt), (mnt, "g", root), (mnt, "g", inner)):
        with pytest.raises(CrossVolume):
            await source.link(name, target, "new")
    assert await tree_of(root) == before


async def test_nor_to_another_tree() -> None:
    """Nor to the directory itself that is shown, which would go around what is fixed."""
    inner = await memory({"f": b"x", "d": {}})
    volume, other = MountsVolume.over({"/": inner}), await mounted(root={"f": b"y"})
    for target in (other.root, inner.root):
        with pytest.raises(CrossVolume):
            await volume.root.rename("f", target, "g")
        with pytest.raises(CrossVolume):
            await target.rename("f", volume.root, "g")
        with pytest.raises(CrossVolume):
            await volume.root.link("f", target, "g")


CHANGES: dict[str, Callable[[DirectoryNode], Awaitable[object]]] = {
    "create": lambda way: way.create("new"),
    "open": lambda way: way.open("new", CREATE),
    "mkdir": lambda way: way.mkdir("new"),
    "symlink": lambda way: way.symlink("new", "x"),
    "remove": lambda way: way.remove("new"),
    "rename": lambda way: way.rename("new", way, "newer"),
    "link": lambda way: way.link("new", way, "newer"),
    "attributes": lambda way: way.set_attributes(Attributes(modified=1)),
    "attributes of an entry": lambda way: way.set_attributes(Attributes(modified=1), "new"),
    "remove a place": lambda way: way.remove("c"),
    "make a place": lambda way: way.mkdir("c"),
    "rename a place": lambda way: way.rename("c", way, "new"),
    "open a place": lambda way: way.open("c", WRITE),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_directory_that_no_volume_has_is_read_only(what: str) -> None:
    volume = await mounted(root={"f": b""}, a_b_c={}, a_b_d_e={})
    with pytest.raises(ReadOnly):
        await CHANGES[what](await at(volume, "a/b"))
    assert await tree_of(volume.root) == {"a": {"b": {"c": {}, "d": {"e": {}}}}, "f": b""}


async def test_nothing_goes_to_a_directory_that_no_volume_has() -> None:
    volume = await mounted(root={"f": b""}, a_b={})
    a = await volume.root.sub("a")
    with pytest.raises(ReadOnly):
        await volume.root.rename("f", a, "f")
    with pytest.raises(ReadOnly):
        await volume.root.link("f", a, "f")
    with pytest.raises(ReadOnly):
        await volume.root.set_attributes(Attributes(modified=1), "a")
    for name in ("f", "new"):
        with pytest.raises(NotFound):
            await a.lookup(name)
        with pytest.raises(NotFound):
            await a.sub(name)
        with pytest.raises(NotFound):
            await a.open(name)


async def test_bad_names_are_refused_everywhere() -> None:
    volume = await mounted(root={"a": {}}, a_b={}, w_x={})
    for path in ("", "a", "w"):
        directory = await at(volume, path)
        for name in ("", ".", "..", "a/b", "nul\0"):
            for call in (directory.lookup, directory.sub, directory.open, directory.mkdir):
                with pytest.raises(InvalidName):
                    await call(name)
        for flags in (OpenFlags.EXCLUSIVE, OpenFlags.CREATE, OpenFlags.TRUNCATE):
            with pytest.raises(InvalidArgument):
                await directory.open("b", flags)


async def test_what_does_not_change_says_so_first(tmp_path: Path) -> None:
    """Also where something else would be wrong with the change."""
    volume = MountsVolume.over(
        {"/": await reading(tmp_path, {"d": {}, "f": b"", "a": {}}), "/d": await memory()}
    )
    d = await volume.root.sub("d")
    await d.create("f")
    for what, (change, _) in REFUSED.items():
        if what != "open":
            with pytest.raises(ReadOnly):
                await change(volume.root, "d")
    with pytest.raises(ReadOnly):
        await volume.root.rename("f", d, "g")
    with pytest.raises(ReadOnly):
        await d.rename("f", volume.root, "g")


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ([], 'nothing is mounted at "/"'),
        (["/a"], 'nothing is mounted at "/"'),
        (["/", "a"], "no absolute path"),
        (["/", "/a/"], 'in the prefix "/a/"'),
        (["/", "/a/../b"], r'in the prefix "/a/\.\./b"'),
        (["/", *(f"/{number}" for number in range(255))], "at most 255 volumes"),
    ],
)
async def test_what_makes_no_tree(prefixes: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        MountsVolume.over({prefix: await memory() for prefix in prefixes})


async def test_a_volume_is_mounted_once() -> None:
    one = await memory()
    with pytest.raises(InvalidArgument, match="at one prefix only"):
        MountsVolume.over({"/": one, "/a": one})


async def test_as_many_mounts_as_there_can_be() -> None:
    prefixes = ["/", *(f"/w/{number:03}" for number in range(254))]
    volume = MountsVolume.over({prefix: await memory({"f": b""}) for prefix in prefixes})
    ids = [(await volume.root.lookup("w")).stat.node_id]
    for entry in await entries_of(await volume.root.sub("w"), 10):
        ids.append(entry.stat.node_id)
        ids.append((await (await at(volume, f"w/{entry.name}")).lookup("f")).stat.node_id)
    assert len(ids) == len(set(ids)) == 1 + 254 * 2


# Renaming around places --------------------------------------------------------------------------


async def test_a_handle_keeps_working_when_its_directory_is_renamed() -> None:
    volume = await mounted(root={"a": {"d": {"e": {"f": b"x"}}}}, a_b_c={"in": b""})
    a = await volume.root.sub("a")
    d = await a.sub("d")
    e = await d.sub("e")
    # By way of another handle of the same directory.
    await (await volume.root.sub("a")).rename("d", volume.root, "moved")
    await (await at(volume, "moved")).rename("e", await volume.root.sub("a"), "e")
    assert await content_of(e, "f") == b"x"
    await e.create("new")
    assert await names_of(await at(volume, "a/e")) == ["f", "new"]
    assert await names_of(d) == []
    with pytest.raises(NotFound):
        await a.sub("d")
    # Into a place it was not in, and with a name that is a place elsewhere.
    await a.rename("e", d, "b")
    await d.rename("b", d, "c")
    assert await tree_of(volume.root) == {
        "a": {"b": {"c": {"in": b""}}},
        "moved": {"c": {"f": b"x", "new": b""}},
    }


async def test_what_was_removed_and_made_again_is_another_one() -> None:
    volume = await mounted(root={"a": {"d": {}}}, a_b={})
    a = await volume.root.sub("a")
    held = await a.sub("d")
    await (await volume.root.sub("a")).remove("d")
    made = await a.mkdir("d")
    with pytest.raises(NotFound):
        await held.create("x")
    await made.create("y")
    assert await tree_of(a) == {"b": {}, "d": {"y": b""}}
    assert (await held.stat()).node_id != (await made.stat()).node_id


async def test_a_directory_on_the_way_that_is_made_elsewhere(tmp_path: Path) -> None:
    """What was reached stays as it was; who reaches it anew finds what is there now."""
    volume = MountsVolume.over(
        {"/": await HostVolume.open(str(tmp_path)), "/a/b": await memory({"f": b"x"})}
    )
    before = await volume.root.sub("a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "g").write_bytes(b"y")
    assert await tree_of(before) == {"b": {"f": b"x"}}
    with pytest.raises(ReadOnly):
        await before.create("new")
    after = await volume.root.sub("a")
    await after.create("new")
    assert await tree_of(after) == {"b": {"f": b"x"}, "g": b"y", "new": b""}
    for name in ("g", "new"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a").rmdir()
    assert await tree_of(after) == {"b": {"f": b"x"}}
    with pytest.raises(NotFound):
        await after.create("new")
    with pytest.raises(ReadOnly):
        await (await volume.root.sub("a")).create("new")
    await volume.close()
