"""What every change of a memory layer leaves: snapshots as they were, full volumes too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.memory_data import CHUNK_BYTES
from capstore.backers.memory_layer import MemoryLayer, MemoryUpper
from capstore.backers.node import (
    OpenFlags,
)
from capstore.schema.errors import (
    NoSpace,
    NotFound,
    ReadOnly,
)
from tests.backers.memory_layers import (
    COPY,
    LIKE,
    MOVED,
    OPAQUE,
    SHARED,
    WRITE,
    copied,
    dump,
    mark_named,
    rich,
    used,
)
from tests.contract.harness import names_of, populate, tree_of

pytestmark = pytest.mark.anyio

# Snapshots ----------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[MemoryUpper], Awaitable[object]]] = {
    "create": lambda up: up.create(up.root, "white"),
    "mkdir": lambda up: up.mkdir(up.root, "white", opaque=True),
    "symlink": lambda up: up.symlink(up.root, "white", "target"),
    "link": lambda up: up.link(up.root, "f", up.root, "white"),
    "remove": lambda up: up.remove(up.root, "f", cover=True),
    "remove a directory": lambda up: up.remove(up.root, "d", cover=True),
    "remove without trace": lambda up: up.remove(up.root, "shared", cover=False),
    "cover": lambda up: up.cover(up.root, "new"),
    "uncover": lambda up: up.uncover(up.root, "white"),
    "rename": lambda up: up.rename(up.root, "f", up.root, "white", cover=True),
    "rename over": lambda up: up.rename(up.root, "f", up.root, "shared", cover=False),
    "redirect": lambda up: up.rename(up.root, "m", up.root, "new", cover=True, mark=OPAQUE),
    "redirect over": lambda up: up.rename(up.root, "full", up.root, "d", cover=True, mark=MOVED),
    "exchange": lambda up: up.exchange(up.root, "full", MOVED, up.root, "m", OPAQUE),
    "copy": lambda up: copied(up, "new", b"new", COPY),
    "copy of several names": lambda up: copied(up, "new", b"new", Mark(origin=1024, below=3)),
    "copy a directory": lambda up: up.copy_directory(up.root, "new", LIKE, Mark(redirect="a/b")),
    "copy a link": lambda up: up.copy_symlink(up.root, "new", "target", LIKE, COPY),
    "adopt": lambda up: up.adopt(SHARED.origin, up.root, "new"),
    "adopt the last": lambda up: up.adopt(9, up.root, "new"),
    "set a mark": lambda up: up.set_mark(up.root, MOVED),
    "set another mark": lambda up: mark_named(up, "m", OPAQUE),
    "reset": lambda up: up.volume.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_snapshots_show_what_was(change: Callable[[MemoryUpper], Awaitable[object]]) -> None:
    upper = await rich()
    before, cost = await dump(upper), await used(upper)
    layers = [MemoryLayer(upper.volume, await upper.root.snapshot()) for _ in range(2)]
    await change(upper)
    after = await dump(upper)
    layers.append(MemoryLayer(upper.volume, await upper.root.snapshot()))
    assert after != before
    stat = await layers[0].linked(9)
    assert stat is not None
    assert stat.link_count == 1
    await upper.volume.reset()
    for layer, shown in zip(layers, (before, before, after), strict=True):
        assert await dump(layer) == shown
    assert await used(upper) >= cost
    del layer, layers
    assert await used(upper) == (0, 1)


async def test_a_layer_of_a_snapshot_opens_nothing_for_writing() -> None:
    upper = await rich()
    layer = MemoryLayer(upper.volume, await upper.root.snapshot())
    await upper.adopt(9, upper.root, "s")
    writer = await upper.open_linked(SHARED.origin, WRITE)
    await writer.write(0, b"S")
    reader = await layer.open_linked(SHARED.origin, OpenFlags.READ)
    assert bytes(await reader.read(0, 10)) == b"shared"
    assert (await layer.about(reader))[0].link_count == 3
    for flags in (WRITE, WRITE | OpenFlags.TRUNCATE):
        with pytest.raises(ReadOnly):
            await layer.open_linked(SHARED.origin, flags)
    for refused in (
        upper.cover(layer.root, "x"),
        upper.set_mark(layer.root, OPAQUE),
        upper.name_file(reader, upper.root, "x", LIKE, COPY),
        upper.name_file(await upper.unnamed(), layer.root, "x", LIKE, COPY),
    ):
        with pytest.raises(ReadOnly):
            await refused


# Limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under_a_snapshot", [False, True])
@pytest.mark.parametrize("name", CHANGES)
async def test_a_full_volume_is_as_it_was(name: str, under_a_snapshot: bool) -> None:
    """However little is missing, bytes or nodes, and wherever in the operation that shows."""
    refused = 0
    # Fewer bytes than the least that is free, then one more each time, until it is done.
    for free in range(1500):
        upper = await rich()
        snapshot = await upper.root.snapshot() if under_a_snapshot else None
        before = await dump(upper)
        account = upper.volume.tree.account
        account.bytes_max = (await used(upper))[0] + free
        try:
            await CHANGES[name](upper)
        except NoSpace:
            assert await dump(upper) == before
            refused += 1
        else:
            break
        assert snapshot is None or await dump(MemoryLayer(upper.volume, snapshot)) == before
    assert free < 1499
    assert refused == free
    assert (await used(upper))[0] <= account.bytes_max


async def test_nodes_end() -> None:
    upper = await rich()
    account = upper.volume.tree.account
    account.nodes_max = (await used(upper))[1]
    before = await dump(upper)
    for making in (
        upper.create(upper.root, "new"),
        upper.mkdir(upper.root, "white", opaque=True),
        upper.unnamed(),
        upper.copy_directory(upper.root, "new", LIKE, MOVED),
        upper.copy_symlink(upper.root, "new", "t", LIKE, COPY),
    ):
        with pytest.raises(NoSpace):
            await making
    assert await dump(upper) == before
    await upper.cover(upper.root, "new")


# Reset --------------------------------------------------------------------------------------------


async def test_a_reset_removes_everything_at_once() -> None:
    upper = await rich()
    root = upper.root
    await upper.set_mark(root, MOVED)
    await populate(root, {"deep": {"er": {"file": b"x" * 3 * CHUNK_BYTES}}})
    version = (await root.stat()).version
    deeper = await (await root.sub("deep")).sub("er")
    file = await deeper.open("file", WRITE)
    handles = [await upper.volume.handle_of(node) for node in (deeper, file)]
    shared = await upper.open_linked(SHARED.origin, WRITE)
    making = await upper.unnamed()
    await upper.volume.reset()
    stat, mark = await upper.about(root)
    assert mark == NO_MARK
    assert stat.version > version
    assert (await upper.page(root, "", 10)).found == []
    assert await upper.linked(SHARED.origin) is None
    # What is held lives on, without names.
    assert (await file.stat()).link_count == 0
    await file.write(0, b"still")
    assert bytes(await file.read(0, 6)) == b"stillx"
    with pytest.raises(NotFound):
        await deeper.create("new")
    with pytest.raises(NotFound):
        await upper.cover(deeper, "new")
    assert await names_of(deeper) == []
    for handle in handles:
        with pytest.raises(NotFound):
            await upper.volume.node_of(handle)
    assert (await upper.about(shared))[1] == NO_MARK
    with pytest.raises(NotFound):
        await upper.volume.handle_of(shared)
    await upper.name_file(making, root, "made", LIKE, SHARED)
    assert await names_of(root) == ["made"]
    await upper.volume.reset()
    del deeper, file, making, shared
    assert await used(upper) == (0, 1)
    await populate(root, {"again": {"x": b""}})
    assert await tree_of(root) == {"again": {"x": b""}}


async def test_a_full_volume_can_be_reset() -> None:
    upper = await rich()
    snapshot = await upper.root.snapshot()
    before = await dump(MemoryLayer(upper.volume, snapshot))
    account = upper.volume.tree.account
    account.bytes_max, account.nodes_max = await used(upper)
    await upper.volume.reset()
    assert await names_of(upper.root) == []
    assert await dump(MemoryLayer(upper.volume, snapshot)) == before
    with pytest.raises(NoSpace):
        await upper.create(upper.root, "x")
    del snapshot
    await upper.create(upper.root, "x")
