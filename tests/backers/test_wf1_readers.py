"""Readers of a CAPOSWF1 volume beside checkpoints and cleaning: each sees one moment, whole."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from capstore.backers.node import DirectoryNode, FileNode, OpenFlags
from capstore.backers.readers import Readers
from capstore.images import wf1_base, wf1_upkeep
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_clean import Cleaner
from capstore.images.wf1_engine import Engine
from capstore.schema.errors import NoSpace, NotFound
from capstore.schema.limits import KIB, MIB
from tests.backers.wf1devices import GatedDevice, formatted, over, until
from tests.contract.harness import content_of, names_of, populate, replace_content, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE


# Readers -----------------------------------------------------------------------------------------


def test_waiting_for_earlier_readers_only() -> None:
    readers = Readers()
    readers.wait_for_earlier()
    inside, leave, waited = threading.Event(), threading.Event(), threading.Event()

    def read() -> None:
        with readers:
            inside.set()
            assert leave.wait(30)

    def wait() -> None:
        readers.wait_for_earlier()
        waited.set()

    early = threading.Thread(target=read)
    early.start()
    assert inside.wait(30)
    period = readers._period
    waiter = threading.Thread(target=wait)
    waiter.start()
    # Until the waiter has ended the period, who enters here counts as earlier, and leaves again.
    while readers._period == period:
        with readers:
            assert not waited.is_set()
    with readers:
        assert not waited.is_set()
        leave.set()
        # One who entered later is not waited for.
        assert waited.wait(30)
    early.join()
    waiter.join()
    readers.wait_for_earlier()


async def _content(_: DirectoryNode, file: FileNode) -> None:
    buffer = bytearray(3000)
    assert await file.read_into(0, memoryview(buffer)) == 3000
    assert buffer == b"old" * 1000


Look = Callable[[DirectoryNode, FileNode], Awaitable[object]]
LOOKS: dict[str, Look] = {
    "read": _content,
    "lookup": lambda root, _: root.lookup("g"),
    "list": lambda root, _: names_of(root),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_no_segment_is_made_free_under_a_reader(look: str) -> None:
    device = GatedDevice(formatted(MIB))
    volume = await over(device)
    await populate(volume.root, {"f": b"old" * 1000, "g": {"h": b""}})
    await volume.change(Engine.checkpoint)
    engine = volume._engine
    file = await volume.root.open("f")
    number = (await file.stat()).node_id
    # What is cached would not be waited for.
    tables = engine.upkeep._tables[-1]
    tables._pages.clear()
    for cache in (tables._entries, tables._ids, tables._nodes, tables._ranges, tables._files):
        cache._found.clear()

    def change(engine: Engine) -> None:
        engine.write(number, 0, b"new" * 1000)
        engine.checkpoint()

    device.catch_read()
    task: asyncio.Future[object] = asyncio.ensure_future(LOOKS[look](volume.root, file))
    await until(device.waiting.is_set)
    base = engine.state.base
    checkpoint = asyncio.ensure_future(volume.change(change))
    await until(lambda: engine.state.base is not base)
    await asyncio.sleep(0.01)
    # The reader still looks at the old tables and data, and the new ones are there for others.
    assert not checkpoint.done()
    assert not task.done()
    assert await content_of(volume.root, "f") == b"new" * 1000
    device.read_gate.set()
    await task
    await checkpoint
    await volume.close()


async def test_readers_do_not_wait_for_the_writer() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    await populate(volume.root, {"d": {"f": b"content"}})
    device.flush_gate.clear()
    checkpoint = asyncio.ensure_future(volume.change(Engine.checkpoint))
    await until(device.waiting.is_set)
    # The lane stands still.
    async with asyncio.timeout(10):
        assert await tree_of(volume.root) == {"d": {"f": b"content"}}
        directory = await volume.root.sub("d")
        file = await directory.open("f", WRITE)
        await file.close()
    assert not checkpoint.done()
    device.flush_gate.set()
    await checkpoint
    await volume.close()


async def test_a_checkpoint_beside_operations_holds_nobody_up() -> None:
    device = GatedDevice(formatted())
    volume = await over(device)
    engine = volume._engine
    await populate(volume.root, {"d": {"f": b"content"}})
    device.flush_gate.clear()

    def begin(engine: Engine) -> None:
        engine.upkeep._work = engine.upkeep.checkpoint_steps()

    generation = engine.writer.superblock.generation
    await volume.change(begin)
    await until(device.waiting.is_set)
    async with asyncio.timeout(10):
        for number in range(10):
            await replace_content(volume.root, f"{number}", b"beside a checkpoint")
    assert engine.has_work
    assert engine.writer.superblock.generation == generation
    device.flush_gate.set()
    # And it comes to its end when nobody does anything.
    await until(lambda: not engine.has_work)
    assert engine.writer.superblock.generation == generation + 1
    await volume.close()


# Under load --------------------------------------------------------------------------------------


@pytest.fixture
def turns() -> Iterator[None]:
    """Has threads take turns often, so that they meet in the middle of things."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00002)
    yield
    sys.setswitchinterval(before)


_BLOCK = 8 * KIB
_UNIT = 16 * KIB


async def _change(root: DirectoryNode, name: str, data: bytes, what: int) -> None:
    """Each in one piece, so that who reads a file sees one letter."""
    if what == 0:
        await root.remove(name)
    elif what == 1:
        await replace_content(root, "new " + name, data)
        await root.rename("new " + name, root, name)
    else:
        file = await root.open(name, WRITE | OpenFlags.CREATE)
        await file.write(0, data[:1] * max(len(data), await file.size()))
        await file.close()


async def _write(root: DirectoryNode, seed: int, is_over: Callable[[], bool]) -> int:
    """Overwrites, replaces, makes and removes files of one repeated letter each."""
    chance = random.Random(seed)
    steps = 0
    while not is_over():
        steps += 1
        await asyncio.sleep(0)
        name = f"{seed} {chance.randrange(6)}"
        data = bytes([chance.randrange(1, 256)]) * chance.choice([1, 5000, _BLOCK, 3 * _BLOCK])
        # Snapshots may hold what there is room for.
        with suppress(NotFound, NoSpace):
            await _change(root, name, data, chance.randrange(4))
        if steps % 50 == 0:
            await root.sync()
    return steps


async def _read(root: DirectoryNode, is_over: Callable[[], bool]) -> int:
    steps = 0
    while not is_over():
        for entry in (await root.list()).entries:
            try:
                file = await root.open(entry.name)
            except NotFound:
                continue
            data = bytes(await file.read(0, 4 * _BLOCK))
            assert data == data[:1] * len(data)
            await file.close()
            steps += 1
            await asyncio.sleep(0)
    return steps


async def _snapshots(root: DirectoryNode, is_over: Callable[[], bool]) -> None:
    while not is_over():
        snapshot = await root.snapshot()
        before = await tree_of(snapshot)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert await tree_of(snapshot) == before


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("size", [2 * MIB, None])
@pytest.mark.parametrize("at_hand", [True, False])
async def test_readers_see_whole_contents(
    monkeypatch: pytest.MonkeyPatch, size: int | None, at_hand: bool
) -> None:
    # So little is cached that tables are read again and again.
    monkeypatch.setattr(wf1_base, "CACHED_PAGES_MAX", 3)
    monkeypatch.setattr(wf1_base, "CACHED_RECORDS_MAX", 3)
    for name, value in (
        ("LOG_BYTES_MIN", 8 * KIB),
        ("DATA_BYTES_MIN", 256 * KIB),
        ("DEAD_BYTES_MIN", MIB // 2),
    ):
        monkeypatch.setattr(wf1_upkeep, name, value)
    device = formatted(size)
    volume = await over(device if at_hand else GatedDevice(device))
    cleaned = _counting(monkeypatch)
    generation = volume._engine.writer.superblock.generation
    end = time.monotonic() + 0.7

    def is_over() -> bool:
        return time.monotonic() > end

    root = volume.root
    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(_write(root, seed, is_over)) for seed in range(3)]
        readers = [group.create_task(_read(root, is_over)) for _ in range(3)]
        group.create_task(_snapshots(root, is_over))
    assert min(task.result() for task in (*writers, *readers)) > 5
    assert volume._engine.writer.superblock.generation > generation + 3
    # A small region is cleaned when it is full, which snapshots see to now and then.
    assert cleaned or size
    before = await tree_of(root)
    await volume.sync()
    volume_again = await over(MemoryDevice(device.read(0, device.size())))
    assert await tree_of(volume_again.root) == before
    await volume_again.close()
    await volume.close()


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[Cleaner]:
    """What cleans from now on."""
    made: list[Cleaner] = []

    class Counted(Cleaner):
        def __init__(self, engine: Engine, room: int | None = None) -> None:
            super().__init__(engine, room)
            made.append(self)

    monkeypatch.setattr(wf1_upkeep, "Cleaner", Counted)
    return made


async def test_a_growing_volume_is_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wf1_upkeep, "DEAD_BYTES_MIN", 4 * MIB)
    monkeypatch.setattr(wf1_upkeep, "DATA_BYTES_MIN", 4 * MIB)
    device = formatted()
    volume = await over(device)
    # Files that stay lie between such that go, so that no segment is free by itself.
    for number in range(48):
        await replace_content(volume.root, f"stays {number}", bytes([number]) * (256 * KIB))
        await replace_content(volume.root, f"goes {number}", bytes(768 * KIB))
    for number in range(48):
        await volume.root.remove(f"goes {number}")
    await volume.change(Engine.checkpoint)
    assert volume._engine.has_work
    await until(lambda: not volume._engine.has_work)
    assert volume._engine.space.dead_bytes < 24 * MIB
    size = device.size()
    for number in range(16):
        await replace_content(volume.root, f"new {number}", bytes(MIB))
    assert device.size() == size
    for number in range(48):
        content = await content_of(volume.root, f"stays {number}")
        assert content == bytes([number]) * (256 * KIB)
    await volume.close()


async def test_cleaning_beside_changes_keeps_the_changes() -> None:
    volume = await over(formatted(4 * MIB))
    files: list[FileNode] = []
    for number in range(4):
        file = await volume.root.create(f"{number}")
        for unit in range(24):
            await file.write(unit * _UNIT, b"a" * _UNIT)
        files.append(file)
    # Every second unit dies, so every segment is worth its cleaning.
    for file in files:
        for unit in range(0, 24, 2):
            await file.write(unit * _UNIT, b"b" * _UNIT)
    await volume.change(Engine.checkpoint)
    expected = [bytearray(await file.read(0, MIB)) for file in files]
    engine = volume._engine
    steps = Cleaner(engine).steps()
    count = 0
    for _ in steps:
        for file, content in zip(files, expected, strict=True):
            at = count * 9973 % (380 * KIB)
            await file.write(at, b"c" * 5000)
            content[at : at + 5000] = b"c" * 5000
        if count == 3:
            await files[0].truncate(100)
            del expected[0][100:]
        count += 1
        assert count < 1000
    assert count >= 4
    for file, content in zip(files, expected, strict=True):
        assert bytes(await file.read(0, MIB)) == bytes(content)
    await volume.close()
