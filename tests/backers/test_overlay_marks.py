"""What an overlay keeps in its layers and what it makes of them: marks, names that look like marks,
layers that others change, files written in place, and overlays as layers.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.node import DirectoryNode, Expect, NodeKind, OpenFlags
from capstore.backers.overlay import OverlayVolume
from capstore.backers.spec import open_volume
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    NotEmpty,
    NotFound,
    ReadOnly,
    StorageError,
)
from tests.backers.overlay_bench import LINKED, TREE, bench, remove_all
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import (
    BASE,
    FEW,
    NAMES_ONLY,
    UPPERS,
    Stack,
    file,
    folder,
    ideal,
    stacked,
)
from tests.contract.harness import content_of, names_of, populate, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
CREATE = WRITE | OpenFlags.CREATE
OVERLAYS = [name for name in FEW if "alone" not in name]


@pytest.fixture(params=FEW)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a stack."""
    assert isinstance(request.param, str)
    return request.param


# Marks -------------------------------------------------------------------------------------------

MARKS = [".wh.x", ".wh.f", ".wh..wh..opq", ".wh..wh.capstore", ".wh.", ".wh"]


async def test_names_that_look_like_marks(name: str) -> None:
    """They are names like others, but where an upper layer has nothing else for its marks."""
    async with bench(name, TREE) as at:
        root = at.volume.root
        a = await root.sub("a")
        for mark in MARKS:
            if not (at.stack.names_only and mark.startswith(".wh.")):
                await at.twin.do("mkdir", f"a/{mark}")
                await at.twin.put(f"b/{mark}", b"")
                await at.twin.check()
                continue
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda mark=mark: root.create(mark),
                lambda mark=mark: root.open(mark, CREATE),
                lambda mark=mark: a.mkdir(mark),
                lambda mark=mark: a.symlink(mark, "x"),
                lambda mark=mark: root.rename("f", a, mark),
                lambda mark=mark: root.rename("f", root, mark),
                lambda mark=mark: root.rename("a", root, mark),
                lambda mark=mark: root.link("f", a, mark),
            ]
            for call in calls:
                with pytest.raises(InvalidName):
                    await call()
            for look in (root.lookup, root.open, root.sub, root.remove):
                with pytest.raises((InvalidName, NotFound)):
                    await look(mark)
        await at.twin.do("remove", "f", Expect.ANY)
        await at.twin.check_all()


async def test_names_below_that_look_like_marks() -> None:
    """A layer that is no OCI layer has them as names; above names alone they are not seen."""
    tree = folder({".wh.f": file(b"a user's"), "f": file(b"not hidden")})
    for name in OVERLAYS:
        async with stacked(name, tree) as stack:
            volume = await stack.open()
            seen = ["f"] if stack.names_only else [".wh.f", "f"]
            assert await names_of(volume.root) == seen
            assert await content_of(volume.root, "f") == b"not hidden"
            await volume.close()


@pytest.mark.parametrize("upper", UPPERS)
async def test_an_upper_layer_shows_its_own_names_and_no_marks(upper: str) -> None:
    """But for what has names alone, whose marks are those of OCI layers."""
    async with bench(f"{upper} over ro1", TREE) as at:
        await at.twin.do("remove", "f", Expect.ANY)
        await remove_all(at.twin, "a")
        await at.twin.do("mkdir", "a")
        await at.twin.put("b/f", b"copied")
        await at.twin.close()
        await at.volume.close()
        layer = await at.stack.open_upper_volume()
        tree = await tree_of(layer.root)
        if upper in NAMES_ONLY:
            assert tree[".wh.f"] == b""
            assert set(tree) - {".wh.f", "a", "b"} <= {".wh.a", ".wh..wh.capstore"}
            assert tree["a"] in ({".wh..wh..opq": b""}, {".wh.f": b"", ".wh.sub": b""})
            tree = _unmarked(tree)
        assert tree == {"a": {}, "b": {"f": b"copied"}}
        await layer.close()
        at.volume = await at.stack.open()
        at.twin.reopened(at.volume.root)


# What others do to the layers --------------------------------------------------------------------


async def test_an_upper_layer_that_changed_while_it_was_closed(name: str) -> None:
    """Names that came, went, and became something else: they count, and nothing else is lost."""
    async with stacked(name, TREE) as stack:
        if stack.lower == "alone":
            return
        volume = await stack.open()
        await populate(volume.root, {"new": b"1", "kept": {"x": b""}})
        await volume.root.remove("g")
        await (await (await volume.root.sub("a")).open("f", WRITE)).append(b" changed")
        await volume.close()

        layer = await stack.open_upper_volume()
        await layer.root.remove("new")
        await populate(layer.root, {"f": {"became": b"a directory"}, "late": b"came"})
        await (await layer.root.sub("a")).remove("f")
        await layer.close()

        volume = await stack.open()
        assert await tree_of(volume.root) == {
            "a": {"f": b"a's f", "sub": {"g": b"a's g"}},
            "b": {"f": b"b's f"},
            "c": {},
            "f": {"became": b"a directory"},
            "kept": {"x": b""},
            "late": b"came",
        }
        assert (await volume.root.lookup("f")).stat.kind is NodeKind.DIRECTORY
        await volume.root.rename("f", await volume.root.sub("a"), "moved")
        await volume.root.rename("a", volume.root, "f")
        assert sorted(await tree_of(await volume.root.sub("f"))) == ["f", "moved", "sub"]
        await volume.close()


@pytest.mark.parametrize("lower", ["ro1", "memory"])
async def test_an_upper_layer_that_changes_meanwhile(lower: str) -> None:
    """Whatever is found changed, what comes is an answer or an error of storage, and no more."""
    if "dir" not in UPPERS:
        return
    async with stacked(f"dir over {lower}", TREE) as stack:
        volume = await stack.open()
        root = volume.root
        a, b = await root.sub("a"), await root.sub("b")
        await populate(root, {"new": {"x": b"1"}})
        await a.create("above")
        await b.create("above")
        reader = await root.open("f")
        upper = stack.place / "upper"
        # Behind the overlay's back.
        os.unlink(upper / "a" / "above")
        os.rename(upper / "b", upper / "b2")
        (upper / "f").write_bytes(b"shadowed")
        (upper / "late").mkdir()
        (upper / "late" / "x").write_bytes(b"late")
        (upper / "c").write_bytes(b"a file over a directory")

        assert await names_of(a) == ["f", "sub"]
        assert await content_of(root, "f") == b"shadowed"
        assert await content_of(await root.sub("late"), "x") == b"late"
        assert (await root.lookup("c")).stat.kind is NodeKind.FILE
        assert bytes(await reader.read(0, 100)) in (b"f", b"shadowed")
        for step in _anything(root, b):
            try:
                await step()
            except StorageError:
                continue
        await names_of(root)
        await volume.close()


def _anything(root: DirectoryNode, held: DirectoryNode) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: held.create("x"),
        lambda: names_of(held),
        lambda: held.rename("f", root, "from held"),
        lambda: root.rename("b", root, "b3"),
        lambda: root.mkdir("b2"),
        lambda: root.remove("late"),
        lambda: root.rename("c", root, "f"),
        lambda: root.rename("new", root, "b"),
        lambda: tree_of(root),
    ]


async def test_layers_that_overlap_are_refused(tmp_path: os.PathLike[str]) -> None:
    place = os.fspath(tmp_path)
    os.makedirs(f"{place}/one/inner")
    os.makedirs(f"{place}/other")
    os.symlink("one", f"{place}/link")
    await (await open_volume(f"wf1:{place}/image,create")).close()
    for upper, lower in (
        ("one", "one"),
        ("one", "one/inner"),
        ("one/inner", "one"),
        ("one", "link"),
        ("link", "one/inner"),
        ("other/../one", "one/"),
    ):
        with pytest.raises(InvalidArgument):
            await open_volume(f"overlay:dir:{place}/{upper}+dir:{place}/{lower}")
    with pytest.raises(InvalidArgument):
        await open_volume(f"overlay:wf1:{place}/image+wf1:{place}/image,ro")
    # Nothing of what was opened for that is held, and nothing was made.
    volume = await open_volume(f"overlay:wf1:{place}/image+dir:{place}/one+dir:{place}/other")
    assert await names_of(volume.root) == ["inner"]
    await volume.close()
    assert os.listdir(f"{place}/other") == []


async def test_a_volume_is_one_layer_only() -> None:
    async with stacked("memory over ro1") as stack:
        upper, (below,) = await stack.open_upper_volume(), await stack.open_lowers()
        for volumes in ([upper], [below, upper], [below, below]):
            with pytest.raises(InvalidArgument):
                await OverlayVolume.over(await open_upper(upper), [open_layer(v) for v in volumes])
        await upper.close()
        await below.close()


# Lower files that are written in place ---------------------------------------------------------


@pytest.mark.parametrize("upper", UPPERS)
async def test_writable_files_below_are_written_in_place(upper: str) -> None:
    async with stacked(f"{upper} over memory", TREE, writable_files=True) as stack:
        volume = await stack.open()
        twin = Twin.of(volume.root, ideal(stack.tree))
        await twin.check()
        await twin.do("open", "f", OpenFlags.READ)
        for path in ("f", "a/f"):
            await twin.put(path, b"in place")
            await twin.do("open", path, WRITE)
            await twin.append(len(twin.files) - 1, b", and more")
            await twin.check_all()
        await twin.put("new", b"goes up")
        await twin.put("a/sub/new", b"goes up, too")
        await twin.do("mkdir", "c/new")
        await twin.do("remove", "g", Expect.ANY)
        await twin.do("remove", "b/f", Expect.ANY)
        await twin.do("remove", "b", Expect.ANY)
        await twin.check_all()
        await twin.do("mkdir", "b")
        await twin.do("attributes", "a/sub/g", 8_000_000_000, True)
        await twin.check()
        await twin.close()
        await volume.close()

        (below,) = await stack.open_lowers()
        assert await tree_of(below.root) == {
            "a": {"f": b"in place, and more", "sub": {"g": b"a's g"}},
            "b": {"f": b"b's f"},
            "c": {},
            "f": b"in place, and more",
            "g": b"g",
        }
        await below.close()
        volume = await stack.open()
        twin.reopened(volume.root)
        await twin.close()
        await volume.close()
        assert (await _above(stack)) == {
            "a": {"sub": {"new": b"goes up, too"}},
            "b": {},
            "c": {"new": {}},
            "new": b"goes up",
        }


async def _above(stack: Stack) -> object:
    """What is in the upper layer, without marks."""
    layer = await stack.open_upper_volume()
    tree = await tree_of(layer.root)
    await layer.close()
    return _unmarked(tree)


def _unmarked(tree: object) -> object:
    if not isinstance(tree, dict):
        return tree
    return {name: _unmarked(what) for name, what in tree.items() if not name.startswith(".wh.")}


@pytest.mark.parametrize("upper", UPPERS)
async def test_a_writable_file_below_is_renamed_and_removed(upper: str) -> None:
    async with stacked(f"{upper} over memory", LINKED, writable_files=True) as stack:
        volume = await stack.open()
        twin = Twin.of(volume.root, ideal(stack.tree))
        await twin.check()
        await twin.do("open", "d/x", WRITE)
        await twin.do("open", "a", WRITE)
        await twin.write(0, 0, b"x in place")
        await twin.move("d/x", "moved")
        await twin.check_all()
        await twin.append(0, b"!")
        await twin.check_all()
        await twin.do("remove", "a", Expect.ANY)
        await twin.append(1, b" by the others")
        await twin.check_all()
        await twin.put("two", b"by name")
        await twin.move("d", "e2")
        await twin.check_all()
        await twin.put("e2/three", b"by another name")
        await twin.check_all()
        await twin.close()
        await volume.close()
        volume = await stack.open()
        twin.reopened(volume.root)
        await twin.close()
        await volume.close()


# Without an upper layer --------------------------------------------------------------------------


async def test_a_union_of_lower_layers_is_read_only() -> None:
    async with stacked("memory over ro1+tar", BASE) as stack:
        layers = [open_layer(volume) for volume in await stack.open_lowers()]
        union = await OverlayVolume.over(None, layers)
        assert union.read_only
        await Twin.of(union.root, ideal(BASE)).close()
        for call in (
            lambda: union.root.create("x"),
            lambda: union.root.remove("b"),
            lambda: union.root.open("b", WRITE),
            lambda: union.root.rename("b", union.root, "x"),
        ):
            with pytest.raises(ReadOnly):
                await call()
        await union.close()


async def test_one_overlay_is_a_layer_of_another() -> None:
    """As the lower layer and as the upper one, of which the latter has names alone."""
    async with stacked("memory over tar", BASE) as inner, stacked("wf1 over ro1") as outer:
        lower = await inner.open()
        await lower.root.remove("é")
        upper = await open_upper(await outer.open_upper_volume())
        volume = await OverlayVolume.over(upper, [open_layer(lower)])
        tree = ideal(BASE)
        del tree.entries["é"]
        twin = Twin.of(volume.root, tree)
        await twin.check_all()
        await twin.move("a", "é")
        await twin.put("b", b"all three")
        await twin.check_all()
        await twin.close()
        await volume.close()

    async with stacked("wf1 over tar", folder()) as inner, stacked("memory over ro1") as outer:
        upper = await open_upper(await inner.open())
        lowers = [open_layer(below) for below in await outer.open_lowers()]
        volume = await OverlayVolume.over(upper, lowers)
        twin = Twin.of(volume.root, ideal(BASE))
        await twin.check_all()
        await twin.move("a", "d")
        await twin.put("b", b"all three")
        await twin.do("remove", "é", Expect.ANY)
        await twin.check_all()
        with pytest.raises(InvalidName):
            await volume.root.create(".wh.x")
        with pytest.raises(NotEmpty):
            await volume.root.remove("d")
        with pytest.raises(AlreadyExists):
            await volume.root.mkdir("d")
        await twin.close()
        await volume.close()
