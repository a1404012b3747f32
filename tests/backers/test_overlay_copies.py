"""What copying up costs: holes stay holes, memory is bounded, a full upper layer loses nothing."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, OpenFlags
from capstore.backers.overlay import OverlayVolume
from capstore.backers.wf1 import Wf1Volume
from capstore.schema.errors import NoSpace
from capstore.schema.limits import KIB, MIB
from tests.backers.overlays import UPPERS, file, fill_volume, folder, stacked
from tests.contract.harness import content_of, names_of, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
SPARSE = b"begin" + bytes(12 * MIB) + b"end"
FULL = os.urandom(64 * KIB) * 128


# A volume in memory has no holes.
@pytest.mark.parametrize("upper", [upper for upper in UPPERS if upper != "memory"])
async def test_holes_stay_holes(upper: str) -> None:
    async with stacked(f"{upper} over ro1", folder({"sparse": file(SPARSE)})) as stack:
        volume = await stack.open()
        before = (await volume.usage()).used_bytes
        opened = await volume.root.open("sparse", WRITE)
        await opened.append(b"more")
        await volume.sync()
        assert await opened.size() == len(SPARSE) + 4
        assert bytes(await opened.read(0, 5)) == b"begin"
        assert bytes(await opened.read(len(SPARSE) - 4, 100)) == b"\0endmore"
        if upper == "dir":
            assert (stack.place / "upper" / "sparse").stat().st_blocks * 512 < MIB
        else:
            assert (await volume.usage()).used_bytes - before < MIB
        assert await content_of(volume.root, "sparse") == SPARSE + b"more"
        await volume.close()


@pytest.mark.parametrize("upper", ["wf1", "dir"])
async def test_a_long_file_goes_up_in_pieces(upper: str) -> None:
    async with stacked(f"{upper} over ro1", folder({"full": file(FULL)})) as stack:
        volume = await stack.open()
        tracemalloc.start()
        try:
            await volume.root.set_attributes(Attributes(modified=1), "full")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5 * MIB
        assert await content_of(volume.root, "full") == FULL
        await volume.close()


@pytest.mark.parametrize("upper", ["memory", "wf1"])
async def test_a_full_upper_layer_loses_nothing(upper: str, tmp_path: Path) -> None:
    top: MemoryVolume | Wf1Volume
    if upper == "memory":
        top = await MemoryVolume.open(total_bytes_max=MIB)
    else:
        top = await Wf1Volume.open(tmp_path / "image", create=True, size=2 * MIB)
    below = await MemoryVolume.open()
    tree = folder({"d": folder({"full": file(FULL)}), "small": file(b"small")})
    await fill_volume(below, tree)
    shown = await tree_of(below.root)
    volume = await OverlayVolume.over(await open_upper(top), [open_layer(below)])
    root = volume.root
    d = await root.sub("d")
    for _ in range(5):
        writer = await d.open("full", WRITE)
        with pytest.raises(NoSpace):
            await writer.write(0, b"x")
        with pytest.raises(NoSpace):
            await d.rename("full", root, "up")
        with pytest.raises(NoSpace):
            await d.set_attributes(Attributes(executable=True), "full")
        assert bytes(await writer.read(0, 100)) == FULL[:100]
        await writer.close()
    assert await tree_of(root) == shown
    # What failed takes no space for good.
    await (await root.create("new")).write(0, os.urandom(300 * KIB))
    await (await root.open("small", WRITE)).append(b" grows")
    assert await content_of(root, "small") == b"small grows"
    await d.remove("full")
    assert await names_of(d) == []
    await volume.close()
