"""Hard links in an overlay: names of one file of a lower layer stay names of one file."""

from __future__ import annotations

import pytest

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.node import Expect, OpenFlags
from capstore.backers.overlay import OverlayVolume
from tests.backers.overlay_bench import LINKED, TREE, bench
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import FEW, NAMES_ONLY, UPPERS, ideal, stacked
from tests.contract.harness import content_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE


@pytest.fixture(params=FEW)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a stack."""
    assert isinstance(request.param, str)
    return request.param


@pytest.mark.parametrize("first", ["a", "two", "d/three"])
async def test_names_of_one_file_below_stay_one_file(name: str, first: str) -> None:
    """Whichever of them it is changed by, and whatever was open by another."""
    async with bench(name, LINKED) as at:
        for path in ("a", "two", "d/three"):
            await at.twin.do("open", path, OpenFlags.READ)
        await at.twin.put(first, b"changed for all")
        await at.twin.check_all()
        for path in ("d/three", "a", "two"):
            assert (await at.volume.root.lookup("a")).stat.link_count == 3
            await at.twin.do("open", path, WRITE)
            await at.twin.append(len(at.twin.files) - 1, path.encode())
            await at.twin.check_all()
        await at.again()
        assert await content_of(at.volume.root, "two") == b"changed for alld/threeatwo"


async def test_names_of_one_file_below_go_one_by_one(name: str) -> None:
    async with bench(name, LINKED) as at:
        await at.twin.do("open", "two", OpenFlags.READ)
        for path, left in (("a", 2), ("d/three", 1)):
            await at.twin.do("remove", path, Expect.ANY)
            await at.twin.check_all()
            assert (await at.volume.root.lookup("two")).stat.link_count == left
        await at.again()
        await at.twin.put("two", b"the last one")
        await at.twin.do("open", "two", OpenFlags.READ)
        await at.twin.do("remove", "two", Expect.ANY)
        await at.twin.check_all()
        await at.twin.do("create", "two")
        await at.twin.check()


async def test_names_of_one_file_below_are_renamed(name: str) -> None:
    async with bench(name, LINKED) as at:
        await at.twin.move("two", "d/2")
        await at.twin.check()
        await at.twin.move("d", "moved")
        await at.twin.check()
        await at.twin.move("a", "moved/three")  # the same file: nothing happens
        await at.twin.check()
        await at.twin.move("moved/x", "a")
        await at.twin.check_all()
        assert (await (await at.volume.root.sub("moved")).lookup("2")).stat.link_count == 2
        await at.again()
        await at.twin.put("moved/2", b"both")
        await at.twin.move("moved/three", "a")
        await at.twin.check_all()


async def test_a_file_below_gets_more_names(name: str) -> None:
    async with bench(name, LINKED) as at:
        await at.twin.hard("d/x", "x2")
        await at.twin.hard("two", "d/4")
        await at.twin.hard("e", "l2")
        await at.twin.check_all()
        assert (await at.volume.root.lookup("a")).stat.link_count == 4
        assert (await at.volume.root.lookup("l2")).stat.link_count == 3
        await at.twin.do("remove", "a", Expect.ANY)
        await at.twin.do("remove", "d/x", Expect.ANY)
        await at.twin.check()
        await at.again()
        await at.twin.put("x2", b"through the new name")
        await at.twin.put("d/4", b"through the fourth")
        await at.twin.move("d/4", "two")
        await at.twin.check_all()


async def test_hard_links_whose_source_was_removed_or_renamed(name: str) -> None:
    async with bench(name, TREE) as at:
        await at.twin.hard("f", "f2")
        await at.twin.do("remove", "f", Expect.ANY)
        await at.twin.hard("f", "f3")  # there is none any more
        await at.twin.hard("f2", "f")
        await at.twin.check_all()
        await at.twin.move("g", "g2")
        await at.twin.hard("g", "g3")
        await at.twin.hard("g2", "g")
        await at.twin.put("g", b"both")
        await at.twin.check_all()
        await at.twin.hard("a/sub/g", "a/sub/g2")
        await at.twin.move("a", "moved")
        await at.twin.move("moved/sub", "a")
        await at.twin.do("remove", "a/g", Expect.ANY)
        await at.twin.check_all()


async def test_hard_links_over_what_is_there(name: str) -> None:
    async with bench(name, TREE) as at:
        for goal in ("g", "a", "c", "a/f", "f"):
            await at.twin.hard("f", goal)
        await at.twin.hard("a", "new")
        await at.twin.check()
        await at.twin.do("remove", "g", Expect.ANY)
        await at.twin.hard("f", "g")
        await at.twin.check_all()


async def test_a_link_with_several_names_is_one(name: str) -> None:
    """A symbolic link, too."""
    async with bench(name, LINKED) as at:
        await at.twin.do("attributes", "e", 7_000_000_000, False)
        assert (await at.volume.root.lookup("l")).stat.modified == 7_000_000_000
        at.twin.touched.add(at.twin.ideal.entries["e"])
        await at.twin.check()
        await at.twin.do("remove", "e", Expect.ANY)
        await at.twin.check()
        await at.again()
        await at.twin.move("l", "d/l")
        await at.twin.check()


@pytest.mark.parametrize("upper", [upper for upper in UPPERS if upper not in NAMES_ONLY])
async def test_a_file_whose_names_are_in_two_layers_below_is_one_file(upper: str) -> None:
    """An upper layer with one of the names is put below another."""
    async with stacked(f"{upper} over ro1", LINKED) as stack:
        volume = await stack.open()
        twin = Twin.of(volume.root, ideal(stack.tree))
        await twin.put("a", b"changed for all")
        await twin.do("remove", "d/three", Expect.ANY)
        await twin.close()
        await volume.close()

        async with stacked("memory over ro1") as top:
            lowers = [await stack.open_upper_volume(), *await stack.open_lowers()]
            new = await open_upper(await top.open_upper_volume())
            union = await OverlayVolume.over(new, [open_layer(one) for one in lowers])
            assert await content_of(union.root, "two") == b"changed for all"
            twin = Twin.of(union.root, twin.ideal)
            await twin.check_all()
            await twin.do("open", "a", OpenFlags.READ)
            await twin.put("two", b"changed above")
            await twin.check_all()
            await twin.do("remove", "a", Expect.ANY)
            await twin.check_all()
            await twin.close()
            await union.close()
