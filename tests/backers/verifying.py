"""Layers of an overlay that are examined, and mended without anybody seeing it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from capstore.backers.layer import Layer, Upper
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, NodeKind, OpenFlags, Provenance, Stat
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_verify import verify_layers
from capstore.images.tree import Finding
from tests.backers.overlays import UPPERS
from tests.contract.harness import entries_of, populate, tree_of
from tests.contract.wf1 import FOLDER

WRITE = OpenFlags.WRITE
LIKE = Stat(NodeKind.FILE, 0, 0, 0, 5, 6, Provenance.WALL_CLOCK)
BELOW = {"d": {"f": b"below", "in": {"deep": b"1"}}, "f": b"file", "g": b"other"}


@asynccontextmanager
async def layers(kind: str) -> AsyncIterator[tuple[Upper, Layer]]:
    """An empty upper layer, and a lower one with `BELOW`."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as place:
        volume = await UPPERS[kind](Path(place))
        lower = await MemoryVolume.open()
        await populate(lower.root, BELOW)
        yield await open_upper(volume), open_layer(lower)
        await volume.close()


async def found(upper: Layer, *lowers: Layer, repair: bool = False) -> list[Finding]:
    return [each async for each in verify_layers(upper, lowers, repair=repair)]


def said(findings: Sequence[Finding]) -> list[tuple[str, str, bool]]:
    """Where, the first words, and whether it is repairable."""
    return [(one.where, one.message, one.repairable) for one in findings]


async def seen(upper: Upper, *lowers: Layer) -> list[tuple[object, ...]]:
    """All that users see through the layers, but for versions and ids."""
    overlay = await OverlayVolume.over(upper, lowers)
    shown: list[tuple[object, ...]] = []

    async def look(directory: DirectoryNode, path: str) -> None:
        for entry in await entries_of(directory):
            stat = entry.stat._replace(version=0, node_id=0)
            shown.append((path + entry.name, stat, entry.target))
            if stat.kind is NodeKind.DIRECTORY:
                await look(await directory.sub(entry.name), f"{path}{entry.name}/")

    await look(overlay.root, "/")
    return [*shown, (await overlay.root.stat())._replace(version=0), await tree_of(overlay.root)]


async def mended(upper: Upper, *lowers: Layer) -> list[tuple[str, str, bool]]:
    """What is wrong, when it has been mended without anybody seeing it."""
    before = await found(upper, *lowers)
    shown = await seen(upper, *lowers)
    repaired = await found(upper, *lowers, repair=True)
    # Mending one fault can mend another.
    assert all(one in before for one in repaired)
    assert await seen(upper, *lowers) == shown
    left = await found(upper, *lowers)
    assert not any(one.repairable for one in left)
    assert left == [one for one in before if not one.repairable]
    return said(before)
