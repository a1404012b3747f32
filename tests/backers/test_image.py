"""Images as volumes: who waits, who is cancelled, what is closed, and what a handle leads to."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from capstore.backers import image as image_module
from capstore.backers.image import ImageDirectory, ImageFile, ImageVolume
from capstore.backers.node import OpenFlags
from capstore.backers.spec import open_volume
from capstore.images.builder import Facts
from capstore.images.devices import FileDevice, MemoryDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.images.ro1_tree import Ro1Tree
from capstore.schema.errors import (
    Busy,
    Closed,
    Corrupt,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageError,
)
from tests.images.archives import END, member
from tests.images.trees import File, Folder, Link, push

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 1000
TREE = Folder({"d": Folder({"f": File(CONTENT)}), "e": File(), "l": Link("d/f")})


class Gated(MemoryDevice):
    """A device whose reads wait until `gate` is set; `entered` says that one does."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, read_only=True)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.ended = 0
        self.gate.set()

    def read_into(self, offset: int, view: memoryview) -> None:
        self.entered.set()
        assert self.gate.wait(20)
        super().read_into(offset, view)
        self.ended += 1

    def read_now(self, offset: int, view: memoryview) -> bool:
        return False


def image_of(tree: Folder) -> bytes:
    device = MemoryDevice()
    push(Ro1Builder(device), tree)
    return device.read(0, device.size())


def gated() -> tuple[ImageVolume, Gated]:
    raw = image_of(TREE)
    device = Gated(raw)
    return ImageVolume(Ro1Tree(device, memoryview(raw))), device


async def file_of(volume: ImageVolume) -> ImageFile:
    file = await (await volume.root.sub("d")).open("f", OpenFlags.READ)
    assert isinstance(file, ImageFile)
    return file


async def started(device: Gated) -> None:
    """Returns when a read waits at the gate."""
    assert await asyncio.to_thread(device.entered.wait, 20)


async def test_a_cancelled_read_leaves_its_buffer_alone() -> None:
    volume, device = gated()
    file = await file_of(volume)
    device.entered.clear()
    device.gate.clear()
    buffer = bytearray(len(CONTENT))
    task = asyncio.ensure_future(file.read_into(0, memoryview(buffer)))
    await started(device)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    device.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = bytes(buffer)
    assert await file.read_into(0, memoryview(bytearray(10))) == 10
    assert bytes(buffer) == before
    await volume.close()


async def test_closing_lets_reads_end_first() -> None:
    volume, device = gated()
    file = await file_of(volume)
    device.entered.clear()
    device.gate.clear()
    buffer = bytearray(len(CONTENT))
    read = asyncio.ensure_future(file.read_into(0, memoryview(buffer)))
    await started(device)
    closing = asyncio.ensure_future(volume.close())
    await asyncio.sleep(0)
    closing.cancel()  # it does not give up the descriptor under the read
    await asyncio.sleep(0)
    assert not closing.done()
    with pytest.raises(Closed):
        await file.read_into(0, memoryview(bytearray(1)))
    device.gate.set()
    assert await read == len(CONTENT)
    assert bytes(buffer) == CONTENT
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(Closed):
        device.size()


async def test_releasing_an_image_is_not_done_on_the_loop() -> None:
    threads: list[threading.Thread] = []

    class Noting(MemoryDevice):
        def close(self) -> None:
            threads.append(threading.current_thread())
            super().close()

    raw = image_of(TREE)
    volume = ImageVolume(Ro1Tree(Noting(raw, read_only=True), memoryview(raw)))
    await volume.close()
    await volume.close()
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_opening_that_is_cancelled_leaves_nothing_open() -> None:
    raw = image_of(TREE)
    device = Gated(raw)
    device.gate.clear()
    opening = asyncio.ensure_future(ImageVolume.open(lambda: Ro1Tree(device, memoryview(raw))))
    await started(device)
    opening.cancel()
    await asyncio.sleep(0)
    device.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with pytest.raises(Closed):
        device.size()


async def test_many_reads_at_once_are_right() -> None:
    volume, _ = gated()
    file = await file_of(volume)

    async def read(offset: int) -> bytes:
        buffer = bytearray(5000)
        got = await file.read_into(offset, memoryview(buffer))
        return bytes(buffer[:got])

    offsets = [*range(0, len(CONTENT) + 5000, 3001), 1 << 62, (1 << 64) + 1]
    found = await asyncio.gather(*(read(offset) for offset in offsets))
    assert found == [CONTENT[offset : offset + 5000] for offset in offsets]
    await volume.close()


async def test_what_is_there_is_read_without_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path / "image", TREE)
    volume = await open_image_volume(f"ro1:{path}")
    file = await file_of(volume)
    whole = bytearray(len(CONTENT))
    await file.read_into(0, memoryview(whole))  # now the pages are there
    calls: list[object] = []
    real = image_module.in_worker

    async def counted(function: Callable[[], object]) -> object:
        calls.append(function)
        return await real(function)

    monkeypatch.setattr(image_module, "in_worker", counted)
    await volume.call(lambda tree: tree.root, waits=True)
    assert len(calls) == 1
    again = bytearray(len(CONTENT))
    assert await file.read_into(0, memoryview(again)) == len(CONTENT)
    assert again == whole == CONTENT
    # tmpfs and some others cannot say what is there; then a worker reads it, equally.
    assert len(calls) <= 2
    await volume.close()


async def test_many_extents_are_checked_in_a_worker() -> None:
    device = MemoryDevice()
    builder = Ro1Builder(device)
    builder.directory((), Facts())
    piece = b"x" + bytes(131_071)
    builder.begin_file(("many",), Facts(), len(piece) * 1100)
    for _ in range(1100):
        builder.write(piece)
    builder.end_file()
    builder.begin_file(("one",), Facts(), 1)
    builder.write(b"x")
    builder.end_file()
    builder.finish()
    tree = Ro1Tree(device, device.view)
    assert tree.content_waits(tree.lookup(0, "many").stat.node_id)
    assert not tree.content_waits(tree.lookup(0, "one").stat.node_id)
    assert not tree.content_waits(0)


async def test_everything_is_closed_behind_close() -> None:
    volume, _ = gated()
    root = volume.root
    file = await file_of(volume)
    handle = await volume.handle_of(file)
    await file.close()
    assert (await file.stat()).size == len(CONTENT)
    with pytest.raises(Closed):
        await file.read_into(0, memoryview(bytearray(1)))
    file = await file_of(volume)
    await volume.close()
    calls: list[Callable[[], object]] = [
        lambda: root.stat(),
        lambda: root.lookup("d"),
        lambda: root.list(),
        lambda: root.sub("d"),
        lambda: root.open("e"),
        lambda: root.usage(),
        lambda: root.sync(),
        lambda: root.snapshot(),
        lambda: file.stat(),
        lambda: file.size(),
        lambda: file.sync(),
        lambda: file.read_into(0, memoryview(bytearray(1))),
        lambda: volume.usage(),
        lambda: volume.sync(),
        lambda: volume.handle_of(file),
        lambda: volume.node_of(handle),
    ]
    for call in calls:
        with pytest.raises(Closed):
            await call()  # type: ignore[misc]
    with pytest.raises(Closed):
        _ = volume.root


async def test_a_snapshot_is_the_directory_itself() -> None:
    volume, _ = gated()
    snapshot = await volume.root.snapshot()
    assert (await snapshot.list()) == (await volume.root.list())
    with pytest.raises(ReadOnly):
        await snapshot.mkdir("x")
    await volume.close()


# Handles ------------------------------------------------------------------------------------------


def build(path: Path, tree: Folder) -> Path:
    path.unlink(missing_ok=True)
    device = FileDevice.open(path, create=True)
    push(Ro1Builder(device), tree)
    device.close()
    return path


async def open_image_volume(spec: str, cache: Path | None = None) -> ImageVolume:
    volume = await open_volume(spec, cache=cache)
    assert isinstance(volume, ImageVolume)
    return volume


def make_tar(path: Path, **files: bytes) -> Path:
    raw = b"".join(member(data, name=name.encode()) for name, data in files.items())
    path.write_bytes(raw + END)
    return path


async def test_handles_outlive_an_opening_and_not_an_image(tmp_path: Path) -> None:
    path = build(tmp_path / "image", TREE)
    volume = await open_image_volume(f"ro1:{path}")
    file = await file_of(volume)
    handles = [await volume.handle_of(volume.root), await volume.handle_of(file)]
    await volume.close()

    volume = await open_image_volume(f"ro1:{path}")
    root, again = [await volume.node_of(handle) for handle in handles]
    assert isinstance(root, ImageDirectory)
    assert isinstance(again, ImageFile)
    buffer = bytearray(10)
    assert await again.read_into(256, memoryview(buffer)) == 10
    assert buffer == CONTENT[:10]
    await volume.close()

    build(path, Folder({"d": Folder({"f": File(CONTENT[::-1])}), "e": File(), "l": Link("d/f")}))
    volume = await open_image_volume(f"ro1:{path}")
    for handle in handles:
        with pytest.raises(NotFound):
            await volume.node_of(handle)
    await volume.close()


async def test_handles_of_an_archive_hold_with_and_without_its_index(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "it.tar", a=b"1", b=b"2")
    first = await open_image_volume(f"tar:{path}", tmp_path / "cache")
    handle = await first.handle_of(await first.root.open("b"))
    await first.close()
    for cache in (tmp_path / "cache", None):
        volume = await open_image_volume(f"tar:{path}", cache)
        file = await volume.node_of(handle)
        assert isinstance(file, ImageFile)
        buffer = bytearray(1)
        await file.read_into(0, memoryview(buffer))
        assert buffer == b"2"
        await volume.close()
    make_tar(path, b=b"2", c=b"1")
    volume = await open_image_volume(f"tar:{path}", tmp_path / "cache")
    with pytest.raises(NotFound):
        await volume.node_of(handle)
    await volume.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda handle: b"",
        lambda handle: handle[:8],
        lambda handle: handle[:-1],
        lambda handle: handle + b"x",
        lambda handle: b"\xff" * 8 + handle[8:],
        lambda handle: handle[:8] + bytes(16),
    ],
    ids=["empty", "number", "short", "long", "huge", "mark"],
)
async def test_what_is_no_handle(change: Callable[[bytes], bytes]) -> None:
    volume, _ = gated()
    handle = await volume.handle_of(volume.root)
    with pytest.raises((InvalidArgument, NotFound)):
        await volume.node_of(change(handle))
    other, _ = gated()
    with pytest.raises(InvalidArgument):
        await other.handle_of(volume.root)


# Files that change under their readers ------------------------------------------------------------


async def test_an_archive_that_is_replaced_stays_what_it_was(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "it.tar", f=b"old" * 1000)
    volume = await open_image_volume(f"tar:{path}", tmp_path / "cache")
    file = await volume.root.open("f")
    make_tar(tmp_path / "new", f=b"new" * 1000).replace(path)
    buffer = bytearray(3000)
    assert await file.read_into(0, memoryview(buffer)) == 3000
    assert buffer == b"old" * 1000
    again = await open_image_volume(f"tar:{path}", tmp_path / "cache")
    await (await again.root.open("f")).read_into(0, memoryview(buffer))
    assert buffer == b"new" * 1000
    await again.close()
    await volume.close()


async def test_an_archive_that_is_cut_off_under_its_readers(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "it.tar", f=b"old" * 10_000)
    volume = await open_image_volume(f"tar:{path}")
    file = await volume.root.open("f")
    os.truncate(path, 512)
    with pytest.raises(StorageError) as caught:
        await file.read_into(0, memoryview(bytearray(30_000)))
    assert str(tmp_path) not in str(caught.value)
    await volume.close()


@pytest.mark.parametrize("scheme", ["ro1", "tar", "cpio", "fat"])
async def test_a_failed_opening_leaves_the_file_unlocked(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"nothing of the kind " * 1000)
    with pytest.raises(StorageError) as caught:
        await open_volume(f"{scheme}:{path}", cache=tmp_path / "cache")
    assert isinstance(caught.value, Corrupt)
    assert str(tmp_path) not in str(caught.value)
    FileDevice.open(path).close()


async def test_an_open_image_is_locked_and_a_closed_one_is_not(tmp_path: Path) -> None:
    for spec in (
        f"ro1:{build(tmp_path / 'image', TREE)}",
        f"tar:{make_tar(tmp_path / 't', f=b'')}",
    ):
        path = spec.partition(":")[2]
        volume = await open_image_volume(spec, tmp_path / "cache")
        await volume.root.list()
        file = await volume.root.open("e" if spec.startswith("ro1") else "f")
        with pytest.raises(Busy):
            FileDevice.open(path)
        await volume.close()
        FileDevice.open(path).close()
        with pytest.raises(Closed):
            await file.size()
