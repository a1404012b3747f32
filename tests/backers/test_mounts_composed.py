"""Trees out of several volumes that are made of others, or are part of others."""

from __future__ import annotations

import pytest

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import DirectoryNode, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.schema.errors import Busy, Closed, CrossVolume
from tests.backers.mounted import at, ids_of, memory, mounted
from tests.contract.harness import populate, tree_of

pytestmark = pytest.mark.anyio


async def test_mounts_in_mounts() -> None:
    inner = await mounted(root={"f": b"1"}, a_b={"g": b"2"})
    volume = MountsVolume.over(
        {"/": await memory({"h": b"3"}), "/m": inner, "/m/a/c": await memory()}
    )
    tree = {"h": b"3", "m": {"a": {"b": {"g": b"2"}, "c": {}}, "f": b"1"}}
    assert await tree_of(volume.root) == tree
    ids = await ids_of(volume.root)
    assert len(set(ids.values())) == len(ids)
    snapshot = await volume.root.snapshot()
    m, b = await at(volume, "m"), await at(volume, "m/a/b")
    with pytest.raises(Busy):
        await m.remove("a")
    with pytest.raises(CrossVolume):
        await m.rename("f", b, "f")
    await b.rename("g", b, "new")
    found = await volume.node_of(await volume.handle_of(b))
    assert isinstance(found, DirectoryNode)
    assert await tree_of(found) == {"new": b"2"}
    assert await tree_of(snapshot) == tree
    await volume.close()
    with pytest.raises(Closed):
        await inner.usage()


async def overlaid(upper: Volume, lower: Volume) -> OverlayVolume:
    return await OverlayVolume.over(await open_upper(upper), [open_layer(lower)])


async def test_mounts_below_an_overlay() -> None:
    lower = await mounted(root={"f": b"1", "a": {"h": b"x"}}, a_b={"g": b"2"}, w_x={})
    before = await tree_of(lower.root)
    volume = await overlaid(await memory(), lower)
    assert await tree_of(volume.root) == before
    # In the overlay nothing is a mount point: it all goes up.
    root = volume.root
    await root.rename("a", await root.sub("w"), "a")
    await (await root.sub("w")).remove("x")
    await populate(await (await (await root.sub("w")).sub("a")).sub("b"), {"new": b"3"})
    after = {"f": b"1", "w": {"a": {"b": {"g": b"2", "new": b"3"}, "h": b"x"}}}
    assert await tree_of(root) == after
    assert await tree_of(lower.root) == before
    await volume.close()
    with pytest.raises(Closed):
        await lower.usage()


async def test_an_overlay_that_is_mounted() -> None:
    overlay = await overlaid(await memory(), await memory({"d": {"f": b"1"}, "t": {"no": b""}}))
    volume = MountsVolume.over({"/": overlay, "/t": await memory()})
    before = await ids_of(volume.root)
    await volume.root.rename("d", volume.root, "e")
    await populate(await at(volume, "e"), {"new": b"2"})
    assert await tree_of(volume.root) == {"e": {"f": b"1", "new": b"2"}, "t": {}}
    after = await ids_of(volume.root)
    assert after["/e/f"] == before["/d/f"]
    assert len(set(after.values())) == len(after)
    with pytest.raises(CrossVolume):
        await (await at(volume, "e")).rename("f", await at(volume, "t"), "f")
    await volume.close()
