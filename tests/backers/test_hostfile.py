"""Files of a host directory: the page cache, want of space, appends, and what sync promises."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from capstore.backers import hostfile, hostnode
from capstore.backers.hostdir import HostVolume
from capstore.backers.hostfile import HostFile
from capstore.backers.node import DirectoryNode, OpenFlags
from capstore.schema.errors import Closed, NoSpace, StorageIOError
from capstore.schema.limits import TRANSFER_BYTES_MAX
from tests.backers.hosts import mounted_tmpfs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[DirectoryNode]:
    volume = await HostVolume.open(str(tmp_path))
    yield volume.root
    await volume.close()


def refuse_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(function: object) -> None:
        raise AssertionError("a worker thread was used")

    monkeypatch.setattr("capstore.backers.hostfile.in_worker", refuse)
    monkeypatch.setattr("capstore.backers.hostdir.in_worker", refuse)


# Reading ---------------------------------------------------------------------------------------


async def test_what_is_cached_is_read_without_a_thread(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"cached")
    warm = await (await root.sub("d")).open("f")
    if (await warm.read(0, 1)) != b"c" or not isinstance(warm, HostFile) or not warm._cached_reads:
        pytest.skip("this filesystem has no RWF_NOWAIT")
    refuse_workers(monkeypatch)
    directory = await root.sub("d")
    assert (await directory.lookup("f")).stat.size == 6
    file = await directory.open("f")
    assert bytes(await file.read(0, 100)) == b"cached"
    assert (await file.stat()).size == 6
    await file.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.EAGAIN])
async def test_without_nowait_a_worker_reads(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "f").write_bytes(b"content")
    real, asked = os.preadv, []

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            asked.append(offset)
            raise OSError(number, "no")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    file = await root.open("f")
    for _ in range(3):
        assert bytes(await file.read(2, 100)) == b"ntent"
    assert len(asked) == (3 if number == errno.EAGAIN else 1)


async def test_a_read_that_is_cached_in_part_is_completed(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 40
    (tmp_path / "f").write_bytes(data)
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT and offset >= 4096:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        return real(fd, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    file = await root.open("f")
    assert bytes(await file.read(0, len(data))) == data
    assert bytes(await file.read(100, len(data))) == data[100:]


async def test_a_very_long_read_does_not_hold_the_loop(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1000) * (3 * TRANSFER_BYTES_MAX // 1000)
    (tmp_path / "f").write_bytes(data)
    file = await root.open("f")
    threads = set()
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        threads.add(threading.current_thread())
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert bytes(await file.read(0, len(data))) == data
    assert threading.main_thread() not in threads


# Appending -------------------------------------------------------------------------------------


async def test_appends_of_another_process_do_not_disturb_the_offsets(
    root: DirectoryNode, tmp_path: Path
) -> None:
    files = [await root.open("log", OpenFlags.WRITE | OpenFlags.CREATE) for _ in range(4)]
    ended = threading.Event()

    def foreign() -> None:
        with open(tmp_path / "log", "ab", buffering=0) as log:
            while not ended.is_set():
                log.write(b"FFFFFFF")

    stranger = threading.Thread(target=foreign)
    stranger.start()
    at: list[tuple[int, bytes]] = []

    async def append(number: int) -> None:
        for step in range(50):
            data = f"<{number}:{step}>".encode()
            at.append((await files[number].append(data), data))

    try:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(append, number)
    finally:
        ended.set()
        stranger.join()
    content = (tmp_path / "log").read_bytes()
    assert len(at) == 200
    for offset, data in at:
        assert content[offset : offset + len(data)] == data


async def test_an_append_cut_short_is_taken_back(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await root.create("f")
    await file.append(b"before")
    real, answers = os.pwritev, [2, 0]

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        size = answers.pop(0)
        if not size:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, [buffers[0][:size]], offset, flags)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(NoSpace):
        await file.append(b"after")
    assert (tmp_path / "f").read_bytes() == b"before"
    answers = [2, 3]
    assert await file.append(b"after") == 6
    assert (tmp_path / "f").read_bytes() == b"beforeafter"


# Want of space ---------------------------------------------------------------------------------


async def test_a_full_filesystem_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    try:
        with mounted_tmpfs(tmp_path, "256k"):
            await _fill(tmp_path)
    except PermissionError:
        pytest.skip("mounting needs privilege")


async def _fill(folder: Path) -> None:
    volume = await HostVolume.open(str(folder))
    file = await volume.root.create("f")
    data = os.urandom(100_000)
    await file.write(0, data)
    for offset in (50_000, 100_000, 150_000):
        with pytest.raises(NoSpace):
            await file.write(offset, bytes(300_000))
        assert (folder / "f").stat().st_size == 100_000
    with pytest.raises(NoSpace):
        await file.append(bytes(300_000))
    assert (folder / "f").read_bytes()[:50_000] == data[:50_000]
    sparse = await volume.root.create("sparse")
    await sparse.truncate(1 << 20)
    await sparse.write(0, b"kept")
    with pytest.raises(NoSpace):
        await sparse.write(2, b"\xff" * 600_000)
    assert (folder / "sparse").stat().st_size == 1 << 20
    assert bytes(await sparse.read(0, 8)) == b"kept\0\0\0\0"
    await volume.root.remove("sparse")
    await sparse.close()
    await file.append(b"there is space again")
    await volume.close()


# Sync ------------------------------------------------------------------------------------------


async def test_sync_makes_the_name_durable_too(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    file = await (await root.mkdir("d")).create("f")
    await file.sync()
    assert synced == [(tmp_path / path).stat().st_ino for path in ("d/f", "d")]


async def test_a_failed_sync_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "the medium is gone")

    volume = await HostVolume.open(str(tmp_path))
    root = volume.root
    file = await root.create("f")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageIOError):
            await file.sync()
    with pytest.raises(StorageIOError):  # the kernel itself would now say that all is well
        await file.sync()
    await (await root.open("f")).sync()
    with monkeypatch.context() as patch:
        patch.setattr(hostnode, "sync_filesystem", fail)
        with pytest.raises(StorageIOError):
            await root.sync()
    with pytest.raises(StorageIOError):
        await root.sync()
    with pytest.raises(StorageIOError):
        await volume.close()
    with pytest.raises(Closed):
        await root.stat()


# Closing ---------------------------------------------------------------------------------------


async def test_close_waits_for_what_is_under_way_with_the_number(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    real = hostfile._truncate

    def slow(fd: int, size: int, lock: hostnode.InodeLock) -> None:
        entered.set()
        assert go_on.wait(10)
        real(fd, size, lock)

    monkeypatch.setattr(hostfile, "_truncate", slow)
    file = await root.create("f")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(file.truncate, 7)
        while not entered.is_set():
            await anyio.sleep(0.001)
        await file.close()
        other = await root.create("other")  # must not get the number of "f"
        go_on.set()
    assert (tmp_path / "f").stat().st_size == 7
    assert await other.size() == 0


async def test_a_closed_file_still_says_what_it_was(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    before = await file.stat()
    await file.close()
    assert await file.stat() == before
    with pytest.raises(Closed):
        await file.size()
