"""What is particular to memory: limits, accounting, and sharing with snapshots."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_data import CHUNK_BYTES, entry_cost
from capstore.backers.node import DirectoryNode, FileNode, OpenFlags
from capstore.schema.errors import (
    Closed,
    InvalidArgument,
    NoSpace,
    NotFound,
    TooLarge,
    Unsupported,
)
from tests.contract.harness import (
    Link,
    clear,
    content_of,
    names_of,
    populate,
    replace_content,
    tree_of,
)

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
TREE = {
    "d": {"deep": {"é\n": b"odd name"}, "l": Link("../x")},
    "empty": {},
    "f": bytes(range(256)) * 1000,
    "zeros": bytes(300_000),
}


async def used(volume: MemoryVolume) -> tuple[int, int]:
    usage = await volume.usage()
    return usage.used_bytes, usage.used_nodes


# Limits -----------------------------------------------------------------------------------------


async def test_a_file_that_would_be_too_long_is_as_it_was() -> None:
    volume = await MemoryVolume.open(file_bytes_max=1000)
    file = await volume.root.create("f")
    await file.write(0, b"x" * 1000)
    before = await used(volume), await file.stat()
    for refused in (file.write(999, b"ab"), file.append(b"x"), file.truncate(1001)):
        with pytest.raises(TooLarge):
            await refused
    with pytest.raises(TooLarge):
        await file.write(2**62, b"x")
    assert (await used(volume), await file.stat()) == before


async def test_a_full_volume_loses_nothing() -> None:
    volume = await MemoryVolume.open(total_bytes_max=10_000)
    root = volume.root
    file = await root.create("f")
    await file.write(0, b"x" * 9000)
    before = await used(volume), await tree_of(root), await file.stat()
    other = await root.open("f", WRITE)
    for refused in (
        file.write(8999, b"y" * 2000),
        other.append(b"y" * 2000),
        file.truncate(11_000),
        root.symlink("l", "t" * 2000),
    ):
        with pytest.raises(NoSpace):
            await refused
    assert (await used(volume), await tree_of(root), await file.stat()) == before
    await file.write(0, b"y" * 9000)
    free = (await volume.usage()).free_bytes
    await file.append(b"z" * free)
    assert (await volume.usage()).free_bytes == 0
    with pytest.raises(NoSpace):
        await root.create("g")
    await root.rename("f", root, "h")
    with pytest.raises(NoSpace):
        await root.rename("h", root, "longer")
    assert await names_of(root) == ["h"]
    await root.remove("h")
    await root.create("g")


async def test_endless_empty_files_end() -> None:
    volume = await MemoryVolume.open(nodes_max=10)
    for number in range(9):
        await volume.root.create(str(number))
    for refused in (
        volume.root.create("x"),
        volume.root.mkdir("x"),
        volume.root.symlink("x", "y"),
        volume.root.open("x", WRITE | OpenFlags.CREATE),
    ):
        with pytest.raises(NoSpace):
            await refused
    await volume.root.remove("0")
    await volume.root.mkdir("x")


async def test_endless_names_of_one_file_end() -> None:
    volume = await MemoryVolume.open(total_bytes_max=10_000)
    await volume.root.create("f")
    made = 0
    with suppress(NoSpace):
        while made < 10_000:
            await volume.root.link("f", volume.root, str(made))
            made += 1
    assert 100 < made < 200


async def test_a_hole_takes_no_memory_but_is_paid_for() -> None:
    huge = 2**40
    volume = await MemoryVolume.open(total_bytes_max=2 * huge, file_bytes_max=huge)
    file = await volume.root.create("f")
    await file.truncate(huge)
    await file.write(huge // 2, b"x")
    assert (await volume.usage()).used_bytes == huge + entry_cost("f")
    assert bytes(await file.read(huge // 2 - 2, 5)) == b"\0\0x\0\0"
    await file.truncate(10)
    assert (await volume.usage()).used_bytes == 10 + entry_cost("f")


async def test_filling_a_hole_never_lacks_space() -> None:
    volume = await MemoryVolume.open(total_bytes_max=200_000 + entry_cost("f"))
    file = await volume.root.create("f")
    await file.truncate(200_000)
    for offset in range(0, 200_000, 10_000):
        await file.write(offset, b"x" * 10_000)
    assert (await volume.usage()).free_bytes == 0


# Accounting -------------------------------------------------------------------------------------


async def test_everything_is_given_back() -> None:
    volume = await MemoryVolume.open()
    fresh = await used(volume)
    assert fresh == (0, 1)
    await populate(volume.root, TREE)
    await volume.root.link("f", volume.root, "second")
    snapshot = await volume.root.snapshot()
    await replace_content(volume.root, "f", b"changed" * 1000)
    held = await volume.root.open("f", WRITE)
    sub = await volume.root.sub("d")
    await clear(volume.root)
    await held.write(100_000, b"x")
    await held.truncate(3)
    assert await used(volume) > fresh
    del snapshot, held, sub
    assert await used(volume) == fresh


async def test_a_removed_file_counts_until_it_is_closed_or_dropped() -> None:
    volume = await MemoryVolume.open()
    for way in ("close", "drop"):
        file: FileNode | None = await volume.root.create("f")
        assert file is not None
        second = await volume.root.open("f")
        await file.write(0, b"x" * 1000)
        await volume.root.remove("f")
        assert await used(volume) == (1000, 2)
        if way == "close":
            await file.close()
            await file.close()
            assert await used(volume) == (1000, 2)
            await second.close()
        file = None
        del second
        assert await used(volume) == (0, 1)


async def test_a_removed_directory_counts_until_it_is_dropped() -> None:
    volume = await MemoryVolume.open()
    held: DirectoryNode | None = await volume.root.mkdir("d")
    await volume.root.remove("d")
    assert (await used(volume))[1] == 2
    held = None
    assert held is None
    assert (await used(volume))[1] == 1


async def test_what_a_snapshot_holds_back_is_counted_by_the_chunk() -> None:
    volume = await MemoryVolume.open()
    file = await volume.root.create("f")
    await file.write(0, b"x" * 100 * CHUNK_BYTES)
    before, _ = await used(volume)
    snapshot = await volume.root.snapshot()
    assert (await used(volume))[0] == before
    await file.write(5 * CHUNK_BYTES, b"y")
    await file.write(5 * CHUNK_BYTES + 1, b"y")
    assert (await used(volume))[0] == before + CHUNK_BYTES
    second = await volume.root.snapshot()
    await file.write(5 * CHUNK_BYTES, b"z")
    assert (await used(volume))[0] == before + 2 * CHUNK_BYTES
    assert bytes(await (await snapshot.open("f")).read(5 * CHUNK_BYTES, 2)) == b"xx"
    assert bytes(await (await second.open("f")).read(5 * CHUNK_BYTES, 2)) == b"yy"
    del snapshot
    assert (await used(volume))[0] == before + CHUNK_BYTES
    del second
    assert (await used(volume))[0] == before
    # Nobody looks any more: nothing is copied.
    await file.write(9 * CHUNK_BYTES, b"y")
    assert (await used(volume))[0] == before


async def test_a_snapshot_holds_back_what_was_removed() -> None:
    volume = await MemoryVolume.open()
    await populate(volume.root, TREE)
    before = await used(volume)
    snapshot = await volume.root.snapshot()
    await clear(volume.root)
    assert await used(volume) >= before
    assert await tree_of(snapshot) == TREE
    del snapshot
    assert await used(volume) == (0, 1)


async def test_a_full_volume_under_a_snapshot_is_as_it_was() -> None:
    volume = await MemoryVolume.open(total_bytes_max=CHUNK_BYTES + 1000)
    file = await volume.root.create("f")
    await file.write(0, b"x" * CHUNK_BYTES)
    snapshot = await volume.root.snapshot()
    for refused in (file.write(0, b"y"), file.truncate(CHUNK_BYTES - 1)):
        with pytest.raises(NoSpace):
            await refused
    assert await content_of(volume.root, "f") == b"x" * CHUNK_BYTES
    del snapshot
    await file.write(0, b"y")


async def test_no_cycles_keep_memory() -> None:
    volume = await MemoryVolume.open()
    gc.collect()
    gc.disable()
    try:
        at: DirectoryNode = volume.root
        for _ in range(5000):
            at = await at.mkdir("d")
        await at.create("f")
        del at
        await volume.root.rename("d", volume.root, "e")
        volume.tree.root.state.entries.clear()  # type: ignore[attr-defined]
        assert (await used(volume))[1] == 1
    finally:
        gc.enable()


async def test_the_order_of_a_large_directory_is_kept_up() -> None:
    volume = await MemoryVolume.open()
    count = 10_000
    for number in range(count):
        await volume.root.symlink(f"{number * 7919 % count:05}", "x")
    await volume.root.list()
    for number in range(0, count, 3):
        await volume.root.remove(f"{number:05}")
    await volume.root.create("00000")
    expected = [f"{number:05}" for number in range(count) if number % 3 or not number]
    assert await names_of(volume.root) == expected


# Handles ----------------------------------------------------------------------------------------


async def test_a_handle_finds_its_node() -> None:
    volume = await MemoryVolume.open()
    d = await volume.root.mkdir("d")
    file = await d.create("f")
    root, to_d, to_f = [await volume.handle_of(node) for node in (volume.root, d, file)]
    await d.rename("f", volume.root, "g")
    again = await volume.node_of(to_f)
    assert isinstance(again, FileNode)
    await again.write(0, b"through the handle")
    assert await content_of(volume.root, "g") == b"through the handle"
    assert (await (await volume.node_of(to_d)).stat()) == await d.stat()
    assert (await (await volume.node_of(root)).stat()) == await volume.root.stat()


async def test_a_handle_of_a_removed_node() -> None:
    volume = await MemoryVolume.open()
    file = await volume.root.create("f")
    handle = await volume.handle_of(file)
    await volume.root.remove("f")
    with pytest.raises(NotFound):
        await volume.node_of(handle)
    with pytest.raises(NotFound):
        await volume.handle_of(file)
    await volume.root.create("f")
    del file
    with pytest.raises(NotFound):
        await volume.node_of(handle)


async def test_what_is_no_handle() -> None:
    volume = await MemoryVolume.open()
    other = await MemoryVolume.open()
    handle = await volume.handle_of(volume.root)
    for wrong in (b"", handle[:-1], handle + b"x", b"x" * 24, await other.handle_of(other.root)):
        with pytest.raises(InvalidArgument):
            await volume.node_of(wrong)
    with pytest.raises(InvalidArgument):
        await volume.handle_of(other.root)
    with pytest.raises(Unsupported):
        await volume.handle_of(await volume.root.snapshot())


# Closing ----------------------------------------------------------------------------------------


async def test_a_closed_volume_answers_closed() -> None:
    volume = await MemoryVolume.open()
    root = volume.root
    file = await root.create("f")
    await volume.close()
    await volume.close()
    for refused in (
        root.list(),
        root.lookup("f"),
        root.create("g"),
        root.snapshot(),
        root.stat(),
        file.read(0, 1),
        file.write(0, b"x"),
        volume.usage(),
        volume.sync(),
        volume.handle_of(root),
    ):
        with pytest.raises(Closed):
            await refused
    await file.close()
