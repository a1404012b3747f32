"""What an overlay's upper layer says as an OCI image layer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.layer import FoundPage, PlainLayer
from capstore.backers.layers import open_layer
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, DirectoryNode, NodeKind, RenameMode, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_export import Export
from capstore.backers.overlay_node import OverlayDirectory
from capstore.schema.errors import InvalidArgument, InvalidName, Unsupported
from tests.backers.overlays import (
    NAMES_ONLY,
    SECOND,
    UPPERS,
    Folder,
    Link,
    file,
    folder,
    overlaid,
    stacked,
)
from tests.contract.harness import replace_content
from tests.images.trees import Hard

pytestmark = pytest.mark.anyio

TREE = folder(
    {
        "-": file(b"before a point", 1),
        "dir": folder({"a": file(b"a", 3), "sub": folder({"b": file(b"b", 5)}, 4)}, 2),
        "empty": folder({}, 6),
        "link": Link("dir/a"),
        "other": folder({"run": file(b"x", 8, executable=True)}, 7),
        "x": file(b"x", 9),
    }
)
# One node with three names, in two directories, and one with two in one of them.
LINKED = folder(
    {
        "a": folder({"one": file(b"1", 2), "pair": file(b"p", 3)}, 1),
        "b": folder({"deep": folder({"three": Hard(("a", "one"))}, 5), "far": file(b"", 6)}, 4),
        "c": folder({"pair": Hard(("a", "pair")), "two": Hard(("a", "one"))}, 7),
    }
)


@pytest.fixture(params=UPPERS)
def upper(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def told(volume: Volume) -> list[str]:
    """The paths of the layer, a slash behind directories."""
    assert isinstance(volume, OverlayVolume)
    paths = []
    async for one in Export(volume).told():
        assert one.entry.name == (one.path[-1] if one.path else "")
        is_directory = one.entry.stat.kind is NodeKind.DIRECTORY
        paths.append("/".join(one.path) + "/" * is_directory)
    assert len(set(paths)) == len(paths)
    return paths


async def at(root: DirectoryNode, path: str) -> DirectoryNode:
    for name in path.split("/"):
        root = await root.sub(name)
    return root


async def put(directory: DirectoryNode, name: str, data: bytes = b"new") -> None:
    await replace_content(directory, name, data)


async def make(directory: DirectoryNode, name: str) -> None:
    await (await directory.create(name)).close()


Change = Callable[[DirectoryNode], Awaitable[None]]


async def no_change(root: DirectoryNode) -> None:
    await (await root.open("x")).close()


async def new_things(root: DirectoryNode) -> None:
    await make(await root.mkdir("new"), "file")
    await root.symlink("to", "new")
    await root.link("to", await root.sub("new"), "to")


async def a_file_with_those_above(root: DirectoryNode) -> None:
    await put(await at(root, "dir/sub"), "b")


async def a_directory_alone(root: DirectoryNode) -> None:
    await root.set_attributes(Attributes(modified=5), "dir")


async def removed(root: DirectoryNode) -> None:
    await root.remove("-")
    await root.remove("x")
    await root.remove("empty")
    await (await root.sub("dir")).remove("a")


async def removed_and_made_again(root: DirectoryNode) -> None:
    for name in ("x", "link"):
        await root.remove(name)
        await make(root, name)


async def of_another_kind(root: DirectoryNode) -> None:
    await root.remove("x")
    await root.mkdir("x")
    await root.remove("empty")
    await make(root, "empty")


async def made_and_removed(root: DirectoryNode) -> None:
    await make(root, "new")
    await root.remove("new")
    await (await root.sub("other")).remove("run")
    await root.remove("other")
    await root.mkdir("other")
    await root.remove("other")


async def a_directory_made_again(root: DirectoryNode) -> None:
    await root.remove("empty")
    await root.mkdir("empty")
    other = await root.sub("other")
    await other.remove("run")
    await root.remove("other")
    await make(await root.mkdir("other"), "-")


async def a_directory_moved(root: DirectoryNode) -> None:
    await root.rename("dir", root, "moved")
    await (await at(root, "moved/sub")).remove("b")


async def a_directory_moved_over_another(root: DirectoryNode) -> None:
    await root.rename("dir", root, "empty")


async def a_directory_moved_and_back(root: DirectoryNode) -> None:
    await root.rename("other", root, "away")
    await root.rename("away", root, "other")


async def two_exchanged(root: DirectoryNode) -> None:
    await root.rename("other", root, "x", RenameMode.EXCHANGE)


CHANGES: list[tuple[Change, list[str]]] = [
    (no_change, ["/"]),
    (new_things, ["/", "new/", "new/file", "new/to", "to"]),
    (a_file_with_those_above, ["/", "dir/", "dir/sub/", "dir/sub/b"]),
    (a_directory_alone, ["/", "dir/"]),
    (removed, ["/", ".wh.-", ".wh.empty", ".wh.x", "dir/", "dir/.wh.a"]),
    (removed_and_made_again, ["/", "link", "x"]),
    (of_another_kind, ["/", "empty", "x/"]),
    (made_and_removed, ["/", ".wh.other"]),
    (a_directory_made_again, ["/", "empty/", "empty/.wh..wh..opq", "other/"]),
    (a_directory_moved, ["/", ".wh.dir", "moved/", "moved/a", "moved/sub/"]),
    (a_directory_moved_over_another, ["/", ".wh.dir", "empty/", "empty/.wh..wh..opq"]),
    (a_directory_moved_and_back, ["/", "other/", "other/.wh..wh..opq", "other/run"]),
    (two_exchanged, ["/", "other", "x/", "x/run"]),
]
MORE = {
    a_directory_made_again: ["other/.wh..wh..opq", "other/-"],
    a_directory_moved_over_another: ["empty/a", "empty/sub/", "empty/sub/b"],
}


@pytest.mark.parametrize(("change", "paths"), CHANGES, ids=[case[0].__name__ for case in CHANGES])
@pytest.mark.parametrize("lower", ["tar", "ro1+tar"])
async def test_what_is_told(upper: str, lower: str, change: Change, paths: list[str]) -> None:
    async with overlaid(f"{upper} over {lower}", TREE) as volume:
        await change(volume.root)
        assert await told(volume) == paths + MORE.get(change, [])


async def test_entries_are_as_the_overlay_shows_them(upper: str) -> None:
    async with overlaid(f"{upper} over tar", TREE) as volume:
        assert isinstance(volume, OverlayVolume)
        root = volume.root
        await root.set_attributes(Attributes(modified=77 * SECOND), "dir")
        await root.rename("other", root, "moved")
        export = Export(volume)
        found = {one.path: one async for one in export.told()}
        assert found[()].entry.stat == await root.stat()
        for path in (("dir",), ("moved",), ("moved", "run")):
            above = await at(root, path[0]) if path[1:] else root
            assert found[path].entry == await above.lookup(path[-1])
        run = found["moved", "run"]
        assert run.entry.stat.executable
        assert run.seen is not None
        content = await export.open(run.seen)
        assert bytes(await content.read(0, 10)) == b"x"
        await content.close()


async def test_a_snapshot_says_what_was_there(upper: str) -> None:
    async with overlaid(f"{upper} over tar", TREE) as volume:
        await removed(volume.root)
        if upper in NAMES_ONLY:
            with pytest.raises(Unsupported):
                await volume.root.snapshot()
            return
        before = await told(volume)
        snapshot = await volume.root.snapshot()
        await new_things(volume.root)
        assert isinstance(snapshot, OverlayDirectory)
        assert await told(snapshot.volume) == before


# Nodes with several names -------------------------------------------------------------------------


async def one_changed(root: DirectoryNode) -> None:
    await put(await root.sub("a"), "one")


async def one_removed(root: DirectoryNode) -> None:
    await (await root.sub("a")).remove("pair")


async def all_but_one_removed(root: DirectoryNode) -> None:
    await (await root.sub("a")).remove("one")
    await (await root.sub("c")).remove("two")


async def one_moved(root: DirectoryNode) -> None:
    await (await root.sub("a")).rename("pair", await root.sub("b"), "pair")


async def their_directory_moved(root: DirectoryNode) -> None:
    await root.rename("c", root, "moved")


async def another_one_removed(root: DirectoryNode) -> None:
    await (await root.sub("b")).remove("far")


LINKS: list[tuple[Change, list[str]]] = [
    (one_changed, ["/", "a/", "a/one", "b/", "b/deep/", "b/deep/three", "c/", "c/two"]),
    (one_removed, ["/", "a/", "a/.wh.pair", "c/", "c/pair"]),
    (
        all_but_one_removed,
        ["/", "a/", "a/.wh.one", "b/", "b/deep/", "b/deep/three", "c/", "c/.wh.two"],
    ),
    (one_moved, ["/", "a/", "a/.wh.pair", "b/", "b/pair", "c/", "c/pair"]),
    (
        their_directory_moved,
        [
            *("/", ".wh.c", "a/", "a/one", "a/pair", "b/", "b/deep/", "b/deep/three"),
            *("moved/", "moved/pair", "moved/two"),
        ],
    ),
    (another_one_removed, ["/", "b/", "b/.wh.far"]),
]


@pytest.mark.parametrize(("change", "paths"), LINKS, ids=[case[0].__name__ for case in LINKS])
async def test_all_names_of_a_node(upper: str, change: Change, paths: list[str]) -> None:
    async with overlaid(f"{upper} over ro1", LINKED) as volume:
        await change(volume.root)
        assert await told(volume) == paths
        ids: dict[int, str] = {}
        assert isinstance(volume, OverlayVolume)
        async for one in Export(volume).told():
            if one.seen is not None and one.entry.stat.link_count > 1:
                ids.setdefault(one.entry.stat.node_id, "/".join(one.path))
        assert len(ids) <= 2


class Unlisted(PlainLayer):
    """A layer whose directories are not to be listed."""

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        raise AssertionError("this layer is listed")


@pytest.mark.parametrize("change", [a_file_with_those_above, removed_and_made_again, new_things])
async def test_lower_layers_are_not_walked_through_for_nothing(upper: str, change: Change) -> None:
    async with stacked(f"{upper} over tar", TREE) as stack:
        volume = await stack.open()
        await change(volume.root)
        expected = await told(volume)
        await volume.close()
        stack.through_lower = lambda layer: Unlisted(layer.volume)
        volume = await stack.open()
        assert await told(volume) == expected
        await volume.close()


# What cannot be told ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".wh.", ".wh.x", ".wh..wh..opq"])
async def test_names_that_look_like_marks(upper: str, name: str) -> None:
    async with overlaid(f"{upper} over tar", TREE) as volume:
        sub = await at(volume.root, "dir/sub")
        if upper in NAMES_ONLY:
            with pytest.raises(InvalidName):
                await sub.create(name)
            return
        await make(sub, name)
        with pytest.raises(InvalidName, match=f'"/dir/sub/{name}"'):
            await told(volume)
        await sub.remove(name)
        assert await told(volume) == ["/", "dir/", "dir/sub/"]


NAMES = folder({"d": folder({".wh.x": file(b"1"), "x" * 252: file(b"2"), "é": file(b"3")})})


@pytest.mark.parametrize("name", [".wh.x", "x" * 252])
async def test_removed_names_that_no_whiteout_has(name: str) -> None:
    async with overlaid("memory over tar", NAMES) as volume:
        directory = await at(volume.root, "d")
        await directory.remove("é")
        # What is not told itself is nobody's concern.
        assert await told(volume) == ["/", "d/", "d/.wh.é"]
        await directory.remove(name)
        with pytest.raises(InvalidName, match=f'"/d/{name}"'):
            await told(volume)


async def test_an_overlay_without_an_upper_layer() -> None:
    volume = await OverlayVolume.over(None, [open_layer(await MemoryVolume.open())])
    with pytest.raises(InvalidArgument):
        Export(volume)
    await volume.close()


async def test_lower_names_that_look_like_marks_move_with_their_directory() -> None:
    tree: Folder = folder({"d": NAMES.entries["d"]})
    async with overlaid("memory over tar", tree) as volume:
        await volume.root.rename("d", volume.root, "e")
        with pytest.raises(InvalidName, match=r'"/e/\.wh\.x"'):
            await told(volume)
