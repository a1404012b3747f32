"""What is particular to CAPOSWF1 volumes: opening, holding, sharing flushes, failing."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from capstore.backers.node import Attributes, FileNode, OpenFlags, RenameMode
from capstore.backers.spec import open_volume
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.wf1_node import Wf1Directory, Wf1File
from capstore.images import wf1, wf1_ops
from capstore.images.faults import Failing
from capstore.schema.errors import (
    Busy,
    Closed,
    Corrupt,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageError,
    StorageIOError,
    Unsupported,
)
from capstore.schema.limits import MIB
from tests.backers.wf1devices import CountdownDevice, GatedDevice, formatted, over, until
from tests.contract.harness import (
    Link,
    content_of,
    entries_of,
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
}


# Opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 2 * MIB])
async def test_opening_again_shows_everything(tmp_path: Path, size: int | None) -> None:
    image = tmp_path / "image"
    volume = await Wf1Volume.open(image, create=True, size=size)
    await populate(volume.root, TREE)
    await volume.root.set_attributes(Attributes(modified=1, created=2, executable=True), "f")
    before = await entries_of(volume.root)
    await volume.close()
    for read_only in (False, True):
        volume = await Wf1Volume.open(image, read_only=read_only)
        assert volume.read_only == read_only
        assert await tree_of(volume.root) == TREE
        assert await entries_of(volume.root) == before
        await volume.close()
    assert (image.stat().st_size == size) == (size is not None)
    assert os.listdir(tmp_path) == ["image"]


async def test_what_was_synced_is_there_without_a_close(tmp_path: Path) -> None:
    volume = await Wf1Volume.open(tmp_path / "image", create=True)
    await populate(volume.root, TREE)
    await volume.sync()
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "image").read_bytes())
    await volume.close()
    volume = await Wf1Volume.open(copy)
    assert await tree_of(volume.root) == TREE
    await volume.close()


async def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    spec = f"wf1:{tmp_path / 'image'}"
    volume = await open_volume(f"{spec},create")
    for again in (spec, f"{spec},create", f"{spec},ro"):
        with pytest.raises(Busy):
            await open_volume(again)
    await volume.close()
    readers = [await open_volume(f"{spec},ro") for _ in range(2)]
    with pytest.raises(Busy):
        await open_volume(spec)
    for reader in readers:
        await reader.close()
    await (await open_volume(spec)).close()


async def test_many_who_make_one(tmp_path: Path) -> None:
    opened = await asyncio.gather(
        *(Wf1Volume.open(tmp_path / "image", create=True) for _ in range(8)),
        return_exceptions=True,
    )
    volumes = [volume for volume in opened if isinstance(volume, Wf1Volume)]
    assert len(volumes) == 1
    assert all(isinstance(other, Wf1Volume | Busy) for other in opened)
    await volumes[0].close()
    assert os.listdir(tmp_path) == ["image"]


async def test_specifications(tmp_path: Path) -> None:
    spec = f"wf1:{tmp_path / 'image'}"
    for wrong in ("wf1:", f"{spec},create,ro", f"{spec},size=1MiB", f"{spec},create,size=1"):
        with pytest.raises(InvalidArgument):
            await open_volume(wrong)
    for missing in (spec, f"{spec},ro", f"wf1:{tmp_path}/no/image,create"):
        with pytest.raises(NotFound):
            await open_volume(missing)
    for odd in ("nul\0", "x" * 300, "x" * 250, ".", ".."):
        with pytest.raises(StorageError) as caught:
            await open_volume(f"wf1:{tmp_path}/{odd},create")
        assert str(tmp_path) not in str(caught.value)
    assert os.listdir(tmp_path) == []
    (tmp_path / "image").write_bytes(bytes(MIB))
    with pytest.raises(Corrupt):
        await open_volume(f"{spec},create")
    assert (tmp_path / "image").read_bytes() == bytes(MIB)
    (tmp_path / "image").unlink()
    volume = await open_volume(f"{spec},create,size=1MiB")
    usage = await volume.usage()
    await volume.close()
    assert 0 < usage.total_bytes < MIB
    await (await open_volume(f"{spec},create")).close()
    assert (tmp_path / "image").stat().st_size == MIB


async def test_reading_only(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume = await Wf1Volume.open(image, create=True)
    await populate(volume.root, TREE)
    await volume.close()
    before = image.read_bytes()
    volume = await Wf1Volume.open(image, read_only=True)
    root = volume.root
    for refused in (
        root.create("x"),
        root.mkdir("x"),
        root.remove("f"),
        root.open("f", WRITE),
        root.open("x", WRITE | OpenFlags.CREATE),
        root.rename("f", root, "x"),
        root.set_attributes(Attributes(modified=1)),
    ):
        with pytest.raises(ReadOnly):
            await refused
    snapshot = await root.snapshot()
    assert await tree_of(snapshot) == TREE
    await volume.sync()
    await volume.close()
    assert image.read_bytes() == before


# Holding ------------------------------------------------------------------------------------------


def held(volume: Wf1Volume) -> dict[int, int]:
    return volume._engine._held


async def settled(volume: Wf1Volume) -> None:
    """Returns when what was dropped was let go of."""
    gc.collect()
    await asyncio.sleep(0)
    await until(lambda: volume._driver.is_idle and not volume._dropped)


async def test_dropped_nodes_are_let_go_of() -> None:
    volume = await over(formatted())
    file: FileNode | None = await volume.root.create("f")
    directory: Wf1Directory | None
    directory = await volume.root.mkdir("d")  # type: ignore[assignment]
    assert isinstance(file, Wf1File)
    assert directory is not None
    assert held(volume) == {file.number: 1, directory.number: 1}
    await file.write(0, b"content")
    nodes = (await volume.usage()).used_nodes
    await volume.root.remove("f")
    await volume.root.remove("d")
    assert bytes(await file.read(0, 9)) == b"content"
    assert (await directory.stat()).link_count == 0
    assert (await directory.list()).entries == []
    with pytest.raises(NotFound):
        await directory.create("x")
    with pytest.raises(NotFound):
        await volume.root.rename("f", directory, "x")
    assert (await volume.usage()).used_nodes == nodes
    del file, directory
    await settled(volume)
    assert held(volume) == {}
    assert (await volume.usage()).used_nodes == nodes - 2
    await volume.close()


async def test_dropping_in_another_thread() -> None:
    volume = await over(formatted())
    files = [await volume.root.create(str(number)) for number in range(20)]
    for number in range(0, 20, 2):
        await volume.root.remove(str(number))
    await asyncio.to_thread(files.clear)
    await settled(volume)
    assert held(volume) == {}
    assert (await volume.usage()).used_nodes == 11
    await volume.close()


async def test_cancelled_opens_hold_nothing() -> None:
    volume = await over(GatedDevice(formatted()))
    await populate(volume.root, TREE)
    flags = WRITE | OpenFlags.CREATE
    for turns in range(12):
        for opened in (
            volume.root.open("f"),
            volume.root.open("new", flags),
            volume.root.sub("d"),
            volume.root.create(str(turns)),
        ):
            task: asyncio.Task[object] = asyncio.ensure_future(opened)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            del task
    await settled(volume)
    assert held(volume) == {}
    await volume.close()


async def test_a_closed_file_tells_what_it_was() -> None:
    volume = await over(formatted())
    file = await volume.root.create("f")
    await file.write(0, b"1234")
    await volume.root.remove("f")
    before = await file.stat()
    await asyncio.gather(file.close(), file.close())
    assert await file.stat() == before
    assert held(volume) == {}
    with pytest.raises(Closed):
        await file.read(0, 1)
    with pytest.raises(Closed):
        await file.sync()
    await volume.close()


async def test_dropped_snapshots_give_their_space_back() -> None:
    volume = await over(formatted(2 * MIB))
    await populate(volume.root, TREE)
    snapshot = await volume.root.snapshot()
    part = await snapshot.sub("d")
    file = await snapshot.open("f")
    del snapshot, part
    for step in range(40):
        await replace_content(volume.root, "f", bytes([step]) * 256_000)
    assert bytes(await file.read(0, 300_000)) == TREE["f"]
    assert len(volume._engine.upkeep.snapshots) == 1
    await file.close()
    await settled(volume)
    assert volume._engine.upkeep.snapshots == []
    await replace_content(volume.root, "f", bytes(1_200_000))
    await volume.close()


async def test_handles_find_their_nodes_again(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume = await Wf1Volume.open(image, create=True)
    await populate(volume.root, TREE)
    file = await volume.root.open("f")
    handles = [
        await volume.handle_of(node)
        for node in (volume.root, file, await volume.root.sub("d"), await volume.root.sub("empty"))
    ]
    # They are durable: a copy has them.
    (tmp_path / "copy").write_bytes(image.read_bytes())
    await volume.root.rename("f", await volume.root.sub("d"), "moved")
    await volume.root.remove("empty")
    await volume.root.mkdir("empty")
    with pytest.raises(Unsupported):
        await volume.handle_of(await volume.root.snapshot())
    await (await volume.root.sub("d")).remove("moved")
    with pytest.raises(NotFound):
        await volume.handle_of(file)
    with pytest.raises(NotFound):
        await volume.node_of(handles[1])
    await volume.close()

    volume = await Wf1Volume.open(tmp_path / "copy")
    root, found, directory, empty = [await volume.node_of(handle) for handle in handles]
    assert isinstance(root, Wf1Directory)
    assert await tree_of(root) == TREE
    assert isinstance(found, Wf1File)
    await found.write(0, b"writable")
    assert isinstance(directory, Wf1Directory)
    assert await names_of(directory) == ["deep", "l"]
    await volume.root.remove("empty")
    assert (await empty.stat()).link_count == 0
    with pytest.raises(NotFound):
        await volume.node_of(handles[3])
    other = await over(formatted())
    for wrong in (b"", b"x", handles[0] + b"x", await other.handle_of(other.root)):
        with pytest.raises(InvalidArgument):
            await volume.node_of(wrong)
    with pytest.raises(InvalidArgument):
        await volume.handle_of(other.root)
    await other.close()
    await volume.close()


async def test_whiteouts_are_not_shown() -> None:
    volume = await over(formatted())
    whiteout = wf1_ops.new_node(wf1.WHITEOUT, 0)
    for name in "acdf":
        await volume.change(lambda engine, name=name: engine.make(wf1.ROOT, name, whiteout))
    await populate(volume.root, {"b": b"", "e": {}, "g": Link("x")})
    root = volume.root
    assert await names_of(root) == ["b", "e", "g"]
    pages = [await root.list(after, 1) for after in ("", "b", "e")]
    assert [page.entries[0].name for page in pages] == ["b", "e", "g"]
    assert [page.more for page in pages] == [True, True, False]
    for refused in (
        root.lookup("a"),
        root.open("a"),
        root.sub("a"),
        root.remove("a"),
        root.rename("a", root, "x"),
        root.rename("b", root, "a", RenameMode.EXCHANGE),
        root.link("a", root, "x"),
        root.set_attributes(Attributes(modified=1), "a"),
    ):
        with pytest.raises(NotFound):
            await refused
    await volume.close()


async def test_usage() -> None:
    growing, fixed = await over(formatted()), await over(formatted(8 * MIB))
    for volume in (growing, fixed):
        before = await volume.usage()
        assert (before.total_bytes == 0) == (volume is growing)
        assert before.used_nodes == 1
        file = await volume.root.create("f")
        for offset in range(4):
            await file.write(offset * MIB, bytes(MIB))
        after = await volume.usage()
        assert after.used_nodes == 2
        assert after.used_bytes >= before.used_bytes + 4 * MIB
        if volume is fixed:
            assert before.used_bytes + before.free_bytes <= before.total_bytes
            assert after.free_bytes <= before.free_bytes - 4 * MIB
        await file.truncate(0)
        assert (await volume.usage()).used_bytes <= after.used_bytes - 4 * MIB
        await file.close()
        await volume.close()


# Sharing flushes ----------------------------------------------------------------------------------


async def test_syncs_that_wait_together_share_a_flush() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)

    async def store(number: int) -> None:
        file = await volume.root.create(f"{number}")
        await file.write(0, b"x" * 4096)
        await file.sync()

    before = device.flushes
    await asyncio.gather(*(store(number) for number in range(64)))
    assert 1 <= device.flushes - before <= 8
    # Nothing is left to be flushed.
    before = device.flushes
    await asyncio.gather(*(volume.sync() for _ in range(64)))
    assert device.flushes == before
    await volume.close()


async def test_a_sync_waits_for_a_flush_that_began_after_it() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    await volume.root.create("a")
    before = device.flushes
    device.flush_gate.clear()
    first = asyncio.ensure_future(volume.sync())
    await until(device.waiting.is_set)
    # The lane goes on while the device flushes.
    file = await volume.root.create("b")
    await file.write(0, b"written beside a flush")
    assert bytes(await file.read(0, 7)) == b"written"
    second = [asyncio.ensure_future(volume.sync()) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert device.flushes == before + 1
    assert not first.done()
    device.flush_gate.set()
    await first
    await asyncio.gather(*second)
    assert device.flushes == before + 2
    await volume.close()


async def test_a_cancelled_sync_does_not_take_others_along() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    await volume.root.create("a")
    device.flush_gate.clear()
    syncs = [asyncio.ensure_future(volume.sync()) for _ in range(3)]
    await until(device.waiting.is_set)
    syncs[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncs[0]
    device.flush_gate.set()
    await asyncio.gather(*syncs[1:])
    await volume.close()


async def test_much_is_flushed_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstore.backers.group_commit.UNFLUSHED_BYTES_MAX", MIB)
    device = GatedDevice(formatted())
    volume = await over(device)
    file = await volume.root.create("f")
    before = device.flushes
    await file.write(0, bytes(MIB))
    await until(lambda: device.flushes == before + 1)
    await volume.close()


async def test_what_is_old_is_flushed_without_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("capstore.backers.group_commit.UNFLUSHED_SECONDS_MAX", 0.01)
    device = GatedDevice(formatted())
    volume = await over(device)
    before = device.flushes
    await volume.root.create("f")
    await until(lambda: device.flushes == before + 1)
    await asyncio.sleep(0.03)
    assert device.flushes == before + 1
    await volume.close()


# Failing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["write", "flush"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
async def test_a_failure_is_for_good(what: Failing, count: int) -> None:
    inner = formatted()
    # The first two operations are those of opening.
    device = CountdownDevice(inner, count + 1, what)
    volume = await over(device)
    acknowledged = []
    with pytest.raises(StorageIOError):
        for number in range(20):
            name = f"{number}"
            await replace_content(volume.root, name, name.encode())
            await volume.sync()
            acknowledged.append(name)
    results = await asyncio.gather(
        volume.sync(),
        volume.root.sync(),
        volume.root.create("later"),
        volume.root.mkdir("later"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [StorageIOError] * 4
    # Reading goes on.
    for name in acknowledged:
        assert await content_of(volume.root, name) == name.encode()
    del results
    with suppress(StorageIOError):
        await volume.close()
    again = await over(inner)
    for name in acknowledged:
        assert await content_of(again.root, name) == name.encode()
    await again.close()


async def test_all_who_wait_for_a_flush_learn_that_it_failed() -> None:
    inner = formatted()
    device = GatedDevice(CountdownDevice(inner, 1, "flush"))
    volume = await over(device)
    file = await volume.root.create("a")
    device.flush_gate.clear()
    syncs = [asyncio.ensure_future(volume.sync()) for _ in range(4)]
    await until(device.waiting.is_set)
    await file.write(0, b"after")
    syncs += [asyncio.ensure_future(volume.sync()) for _ in range(4)]
    await asyncio.sleep(0)
    device.flush_gate.set()
    results = await asyncio.gather(*syncs, return_exceptions=True)
    assert [type(result) for result in results] == [StorageIOError] * 8
    with pytest.raises(StorageIOError):
        await file.write(0, b"x")
    with suppress(StorageIOError):
        await volume.close()


async def test_damaged_data_is_corrupt(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume = await Wf1Volume.open(image, create=True)
    await populate(volume.root, {"f": b"find me " * 1000, "g": b"whole"})
    await volume.close()
    raw = bytearray(image.read_bytes())
    raw[raw.index(b"find me find me") + 4] ^= 1
    image.write_bytes(raw)
    volume = await Wf1Volume.open(image)
    file = await volume.root.open("f")
    with pytest.raises(Corrupt) as caught:
        await file.read(4000, 10)
    assert str(tmp_path) not in str(caught.value)
    assert await content_of(volume.root, "g") == b"whole"
    await volume.close()
