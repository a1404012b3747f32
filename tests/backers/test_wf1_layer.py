"""What is particular to CAPOSWF1 as a layer: marks in its nodes, snapshots, copies found by their
origin, resetting."""

from __future__ import annotations

import asyncio
import gc

import pytest

from capstore.backers import wf1_layer
from capstore.backers.layer import NO_MARK, WHITEOUT, Mark
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, DirectoryNode, Expect, OpenFlags, RenameMode, Stat
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.wf1_layer import Wf1Layer, Wf1Upper
from capstore.backers.wf1_node import Wf1Directory
from capstore.images import wf1_marks
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    CrossVolume,
    InvalidArgument,
    NoSpace,
    NotEmpty,
    NotFound,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import MIB, PAGE_ENTRIES_MAX
from tests.backers.wf1devices import GatedDevice, formatted, over, until
from tests.contract.harness import Link, content_of, names_of, populate, replace_content, tree_of
from tests.images.wf1marks import LIKE

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
CREATE = OpenFlags.WRITE | OpenFlags.CREATE
SHOWN = Mark(origin=99, below=2)


async def copy_file(
    upper: Wf1Upper, directory: DirectoryNode, name: str, content: bytes, mark: Mark = NO_MARK
) -> None:
    file = await upper.unnamed()
    await file.write(0, content)
    await upper.name_file(file, directory, name, LIKE, mark)
    await file.close()


async def listed(layer: Wf1Layer, directory: DirectoryNode) -> list[str]:
    """The names in a directory; a whiteout as ``-name``."""
    names, after, more = list[str](), "", True
    while more:
        page = await layer.page(directory, after, 2)
        assert 0 < len(page.found) <= 2 or not page.more
        for name, found in page.found:
            assert found == await layer.find(directory, name)
            names.append(f"-{name}" if found is WHITEOUT else name)
            after = name
        more = page.more
    return names


def image_of(volume: Wf1Volume) -> MemoryDevice:
    """What is on the device, which is in order."""
    device = volume._engine.device
    copy = MemoryDevice(device.read(0, device.size()))
    assert list(verify(copy)) == []
    return copy


# The volume by itself -----------------------------------------------------------------------------


async def test_whiteouts_are_free_names_to_who_has_the_volume_alone() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i"):
        await upper.cover(root, name)
    await populate(root, {"x": b"x", "y": {"z": b""}})
    assert await names_of(root) == ["x", "y"]
    await (await root.create("a")).close()
    await (await root.open("b", CREATE)).close()
    await (await root.open("c", CREATE | OpenFlags.EXCLUSIVE)).close()
    with pytest.raises(NotFound):
        await root.open("d", WRITE)
    await root.mkdir("d")
    await root.symlink("e", "target")
    await root.link("x", root, "f")
    await root.rename("x", root, "g", RenameMode.NO_REPLACE)
    await root.rename("y", root, "h")
    for refused in (
        root.remove("i"),
        root.remove("i", Expect.DIRECTORY),
        root.rename("i", root, "a"),
        root.rename("a", root, "i", RenameMode.EXCHANGE),
        root.link("i", root, "j"),
        root.set_attributes(Attributes(modified=1), "i"),
    ):
        with pytest.raises(NotFound):
            await refused
    assert await names_of(root) == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert await listed(upper, root) == ["a", "b", "c", "d", "e", "f", "g", "h", "-i"]
    # What was made where nothing was to be seen is not merged with anything.
    made = await upper.find(root, "d")
    assert made is not None
    assert made.mark == Mark(opaque=True)
    await volume.sync()
    again = await over(image_of(volume))
    assert await tree_of(again.root) == await tree_of(root)
    for each in (volume, again):
        await each.close()


@pytest.mark.parametrize("count", [1, 2 * wf1_marks.WHITEOUTS_AT_ONCE_MAX])
async def test_a_directory_with_whiteouts_alone_is_empty(count: int) -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    for name in ("a", "b", "c"):
        inner = await root.mkdir(name)
        for index in range(count):
            await upper.cover(inner, f"{index}")
        assert await names_of(inner) == []
        await upper.cover(root, f"{name}-")
    full = await root.sub("c")
    await (await full.create("zz")).close()
    with pytest.raises(NotEmpty):
        await root.remove("c")
    with pytest.raises(NotEmpty):
        await root.rename("a", root, "c")
    await root.remove("a", Expect.DIRECTORY)
    await root.rename("c", root, "b")
    assert await tree_of(root) == {"b": {"zz": b""}}
    await full.remove("zz")
    del inner
    await root.remove("b")
    gc.collect()
    del full
    gc.collect()
    # The root and three whiteouts.
    await until(lambda: volume._engine.state.counts.nodes == 4)
    await volume.sync()
    image_of(volume)
    await volume.close()


async def test_links_are_what_a_volume_alone_has_names_for() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    await copy_file(upper, root, "f", b"content", SHOWN)
    assert (await root.lookup("f")).stat.link_count == 1
    found = await upper.find(root, "f")
    assert found is not None
    assert found.entry is not None
    assert found.entry.stat.link_count == 3
    file = await root.open("f")
    stat, mark = await upper.about(file)
    assert (stat, mark) == (found.entry.stat, SHOWN)
    await root.remove("f")
    assert (await file.stat()).link_count == 0
    assert (await upper.about(file))[0].link_count == 2
    await file.close()
    await volume.close()


# Reading ------------------------------------------------------------------------------------------


async def test_reading_for_reading_only() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    await upper.copy_symlink(root, "l", "target", LIKE, SHOWN)
    marked = await upper.copy_directory(root, "d", LIKE, Mark(True, "x/y", 5))
    await upper.cover(marked, "gone")
    await volume.sync()
    reading = await Wf1Volume.over(lambda: image_of(volume), read_only=True)
    layer = Wf1Layer(reading)
    assert await listed(layer, layer.root) == ["d", "l"]
    assert await listed(layer, await layer.root.sub("d")) == ["-gone"]
    link = await layer.find(layer.root, "l")
    assert link is not None
    assert link.entry is not None
    assert (link.entry.target, link.mark) == ("target", SHOWN)
    assert (await layer.about(await layer.root.sub("d")))[1] == Mark(True, "x/y", 5)
    assert (await layer.about(layer.root))[1] == NO_MARK
    assert await layer.linked(99) == link.entry.stat
    with pytest.raises(Unsupported):
        await layer.open_linked(99, OpenFlags.READ)
    with pytest.raises(ReadOnly):
        await layer.open_linked(99, WRITE)
    with pytest.raises(ReadOnly):
        await Wf1Upper(reading).cover(reading.root, "x")
    await reading.close()
    with pytest.raises(Closed):
        await layer.linked(99)
    await volume.close()


async def test_a_layer_of_a_snapshot() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    await copy_file(upper, root, "f", b"first", SHOWN)
    await upper.cover(root, "gone")
    snapshot = await root.snapshot()
    assert isinstance(snapshot, Wf1Directory)
    layer = Wf1Layer(volume, snapshot)
    await replace_content(root, "f", b"second")
    await upper.remove(root, "f", cover=True)
    await upper.adopt(99, root, "g")
    await upper.adopt(99, root, "h")
    await upper.create(root, "gone")
    await upper.set_mark(root, Mark(opaque=True))
    assert await listed(upper, root) == ["-f", "g", "gone", "h"]
    assert await upper.linked(99) is None
    with pytest.raises(NotFound):
        await upper.open_linked(99, OpenFlags.READ)
    assert await listed(layer, layer.root) == ["f", "-gone"]
    assert (await layer.about(layer.root))[1] == NO_MARK
    linked = await layer.linked(99)
    assert linked is not None
    assert linked.link_count == 3
    file = await layer.open_linked(99, OpenFlags.READ)
    assert bytes(await file.read(0, 10)) == b"first"
    assert (await layer.about(file))[1] == SHOWN
    await file.close()
    with pytest.raises(ReadOnly):
        await layer.open_linked(99, WRITE)
    with pytest.raises(ReadOnly):
        await upper.cover(snapshot, "x")
    await volume.close()


async def test_pages_have_bounds() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    for index in range(PAGE_ENTRIES_MAX + 5):
        await upper.cover(root, f"{index:04}")
    page = await upper.page(root, "", 10 * PAGE_ENTRIES_MAX)
    assert (len(page.found), page.more) == (PAGE_ENTRIES_MAX, True)
    page = await upper.page(root, page.found[-1][0], 0)
    assert (len(page.found), page.more) == (1, True)
    await volume.close()


async def test_nodes_of_others_are_refused() -> None:
    volume, other = await over(formatted()), await over(formatted())
    upper = Wf1Upper(volume)
    memory = await MemoryVolume.open()
    file = await volume.root.create("f")
    for foreign in (other.root, memory.root):
        for refused in (
            upper.find(foreign, "x"),
            upper.page(foreign, "", 1),
            upper.about(foreign),
            upper.cover(foreign, "x"),
            upper.link(volume.root, "f", foreign, "x"),
            upper.name_file(file, foreign, "x", LIKE, NO_MARK),
        ):
            with pytest.raises(CrossVolume):
                await refused
    with pytest.raises(InvalidArgument):
        await upper.name_file(file, volume.root, "x", LIKE, NO_MARK)
    with pytest.raises(AlreadyExists):
        await upper.name_file(await upper.unnamed(), volume.root, "f", LIKE, NO_MARK)
    for each in (volume, other, memory):
        await each.close()


# By origin ----------------------------------------------------------------------------------------


async def test_copies_are_found_by_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are: in the tables, in the log behind them, made since, moved, without a
    name."""
    monkeypatch.setattr(wf1_layer, "_SLICE_RECORDS", 3)
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    inner = await root.mkdir("d")
    for origin in range(1, 10):
        name = f"f{origin}"
        await copy_file(upper, inner, name, name.encode(), Mark(origin=origin, below=origin))
    await copy_file(upper, inner, "other", b"", Mark(origin=100))
    await upper.remove(inner, "f5", cover=True)
    await upper.adopt(1, root, "adopted")
    volume._engine.checkpoint()
    await copy_file(upper, inner, "f10", b"f10", Mark(origin=10, below=10))
    await upper.adopt(2, root, "also")
    await upper.rename(inner, "f3", root, "moved", cover=True)
    await upper.adopt(4, root, "four")
    for _ in range(3):
        await upper.adopt(4, root, f"four {_}")
    await volume.sync()
    again = await over(image_of(volume))
    for layer in (upper, Wf1Upper(again), Wf1Layer(again)):
        for origin in range(12):
            stat = await layer.linked(origin)
            if origin in (0, 1, 4, 11):
                assert stat is None
                continue
            assert stat is not None
            assert stat.link_count == (1 if origin != 5 else 0) + origin
            file = await layer.open_linked(origin, OpenFlags.READ)
            assert bytes(await file.read(0, 10)) == f"f{origin}".encode()
            assert (await layer.about(file))[1].origin == origin
            await file.close()
        assert await layer.linked(100) is None
    found = Wf1Upper(again)
    emptied = await found.open_linked(5, WRITE | OpenFlags.TRUNCATE)
    assert await emptied.size() == 0
    await emptied.write(0, b"new")
    await found.adopt(5, again.root, "five")
    assert await content_of(again.root, "five") == b"new"
    with pytest.raises(NotFound):
        await found.adopt(1, again.root, "x")
    with pytest.raises(NotFound):
        await found.adopt(77, again.root, "x")
    for each in (volume, again):
        await each.close()


async def test_copies_that_are_made_while_it_looks_for_them() -> None:
    volume = await over(formatted())
    await copy_file(Wf1Upper(volume), volume.root, "f", b"first", Mark(origin=1, below=1))
    volume._engine.checkpoint()
    device = GatedDevice(image_of(volume))
    again = await over(device)
    upper = Wf1Upper(again)
    # The tables are being read when it goes on.
    device.catch_read()
    looking = [asyncio.ensure_future(upper.linked(origin)) for origin in (1, 2, 3)]
    await until(device.waiting.is_set)
    made = asyncio.ensure_future(
        upper.copy_symlink(again.root, "l", "target", LIKE, Mark(origin=2, below=1))
    )
    await asyncio.sleep(0)
    looking[0].cancel()
    device.read_gate.set()
    await made
    _, second, third = await asyncio.gather(*looking, return_exceptions=True)
    assert third is None
    assert isinstance(second, Stat) or second is None
    stat = await upper.linked(2)
    assert stat is not None
    assert stat.link_count == 2
    assert await upper.linked(1) is not None
    for each in (volume, again):
        await each.close()


async def test_a_copy_that_was_cancelled_is_found_if_it_was_made() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    upper = Wf1Upper(volume)
    assert await upper.linked(7) is None
    file = await upper.unnamed()
    # The lane is busy, so naming the file waits for its turn.
    device.flush_gate.clear()
    checkpoint = asyncio.ensure_future(volume._driver.in_lane(lambda engine: engine.checkpoint()))
    await until(device.waiting.is_set)
    naming = asyncio.ensure_future(
        upper.name_file(file, volume.root, "f", LIKE, Mark(origin=7, below=1))
    )
    await asyncio.sleep(0)
    naming.cancel()
    device.flush_gate.set()
    await checkpoint
    with pytest.raises(asyncio.CancelledError):
        await naming
    assert await names_of(volume.root) == ["f"]
    assert await upper.linked(7) is not None
    await volume.close()


# Copying up ---------------------------------------------------------------------------------------


async def test_what_is_not_named_is_gone_when_it_is_closed_or_dropped() -> None:
    volume = await over(formatted())
    upper = Wf1Upper(volume)
    closed, dropped = await upper.unnamed(), await upper.unnamed()
    assert (await volume.usage()).used_nodes == 3
    await closed.write(0, b"x")
    await closed.close()
    del dropped
    gc.collect()
    await until(lambda: volume._engine.state.counts.nodes == 1)
    await volume.close()


async def test_a_copy_goes_on_being_open() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    before = await root.stat()
    file = await upper.unnamed()
    await file.write(3, b"later")
    await upper.name_file(file, root, "f", LIKE, Mark(origin=5))
    assert await root.stat() == before
    stat = (await root.lookup("f")).stat
    assert stat._replace(node_id=0, version=0, size=0) == LIKE._replace(
        node_id=0, version=0, size=0
    )
    await file.write(0, b"abc")
    assert await content_of(root, "f") == b"abclater"
    with pytest.raises(InvalidArgument):
        await upper.name_file(file, root, "g", LIKE, NO_MARK)
    await volume.close()


# Resetting ----------------------------------------------------------------------------------------


async def test_reset_gives_everything_back() -> None:
    volume = await over(formatted(8 * MIB))
    empty = await volume.usage()
    for _ in range(3):
        await populate(volume.root, {"d": {"e": {"f": b"x" * 1000}}, "l": Link("x")})
        file = await volume.root.create("large")
        with pytest.raises(NoSpace):
            while True:
                await file.append(b"x" * 100_000)
        await file.close()
        await volume.reset()
        assert await names_of(volume.root) == []
        usage = await volume.usage()
        assert usage.used_nodes == 1
        assert usage.free_bytes > 0.9 * empty.free_bytes
    again = await over(image_of(volume))
    assert await names_of(again.root) == []
    for each in (volume, again):
        await each.close()


async def test_reset_waits_for_nobody_and_takes_nothing_from_anybody() -> None:
    volume = await over(formatted())
    upper, root = Wf1Upper(volume), volume.root
    await copy_file(upper, root, "shown", b"", SHOWN)
    assert await upper.linked(99) is not None
    held = await root.mkdir("d")
    with pytest.raises(Busy):
        await volume.reset()
    await root.remove("d")
    with pytest.raises(Busy):
        await volume.reset()
    assert await names_of(root) == ["shown"]
    snapshot = await root.snapshot()
    # Nobody has it any more, whether that was seen to yet or not.
    del held
    with pytest.raises(Busy):
        await volume.reset()
    del snapshot
    await volume.reset()
    assert await upper.linked(99) is None
    with pytest.raises(NotFound):
        await upper.adopt(99, root, "x")
    await copy_file(upper, root, "again", b"", SHOWN)
    assert await upper.linked(99) is not None
    await volume.close()
    with pytest.raises(Closed):
        await volume.reset()


async def test_reset_of_what_is_for_reading() -> None:
    volume = await Wf1Volume.over(formatted, read_only=True)
    with pytest.raises(ReadOnly):
        await volume.reset()
    await volume.close()


async def test_readers_and_callers_beside_a_reset() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    await populate(volume.root, {"f": b"x" * 100_000, "d": {}})
    await volume.sync()
    gc.collect()
    device.flush_gate.clear()
    device.waiting.clear()
    resetting = asyncio.ensure_future(volume.reset())
    await until(device.waiting.is_set)
    # Nothing of what was there can be had from here on, nor be made in a directory that is gone.
    assert await names_of(volume.root) == []
    with pytest.raises(NotFound):
        await volume.root.open("f")
    making = asyncio.ensure_future(volume.root.create("new"))
    device.flush_gate.set()
    await resetting
    await (await making).close()
    assert await names_of(volume.root) == ["new"]
    await volume.close()
