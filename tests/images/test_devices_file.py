"""Files as block devices, mapped or not: opening, locks, failures, reading without waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice, MappedDevice, WindowDevice
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    Denied,
    InvalidArgument,
    NoSpace,
    NotFound,
    StorageError,
    StorageIOError,
)
from tests.images.devices import file_with

CONTENT = bytes(range(256)) * 8 + b"tail"
SIZE = len(CONTENT)


def whole(device: BlockDevice) -> bytes:
    return device.read(0, device.size())


# Opening ---------------------------------------------------------------------------------------


def open_writable(path: Path) -> FileDevice:
    return FileDevice.open(path)


def open_read_only(path: Path) -> FileDevice:
    return FileDevice.open(path, writable=False)


openers = pytest.mark.parametrize(
    "opener", [open_writable, open_read_only, MappedDevice.open], ids=["rw", "r", "mapped"]
)
Opener = Callable[[Path], BlockDevice]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return file_with(tmp_path, CONTENT)


def test_what_was_flushed_is_in_the_file(path: Path) -> None:
    device = FileDevice.open(path)
    device.resize(SIZE + 100)
    device.write(SIZE, b"more")
    device.flush()
    assert path.read_bytes() == CONTENT + b"more" + bytes(96)
    device.close()


@openers
def test_a_file_that_is_not_there(opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        opener(tmp_path / "nothing")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InvalidArgument):
        opener(Path("nul\0byte"))


@openers
def test_a_pipe_is_refused_at_once(opener: Opener, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidArgument):
        opener(pipe)


@openers
def test_other_kinds_of_files_are_refused(opener: Opener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for strange in (tmp_path, Path("/dev/null"), tmp_path / "socket"):
            with pytest.raises(InvalidArgument):
                opener(strange)


@openers
def test_a_symbolic_link_is_followed(opener: Opener, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    device = opener(link)
    assert whole(device) == CONTENT
    device.close()


def open_descriptors() -> set[int]:
    numbers = os.listdir("/proc/self/fd")  # with that of the listing itself, now closed
    return {int(number) for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")}


def test_descriptors_are_not_inherited_and_do_not_stay(path: Path) -> None:
    before = open_descriptors()
    device = FileDevice.open(path)
    (number,) = open_descriptors() - before
    assert not os.get_inheritable(number)
    assert os.get_blocking(number)
    device.close()
    for refused in (path.parent, Path("/dev/null"), path.with_name("nothing")):
        with pytest.raises(StorageError):
            MappedDevice.open(refused)
    MappedDevice.open(path).close()
    assert open_descriptors() == before


def test_dropping_a_device_closes_it(path: Path) -> None:
    device = FileDevice.open(path)
    del device
    FileDevice.open(path).close()


def test_creating_makes_a_new_and_private_file(tmp_path: Path) -> None:
    path = tmp_path / "new"
    device = FileDevice.open(path, create=True)
    assert device.size() == 0
    device.resize(10)
    device.write(0, b"0123456789")
    device.close()
    assert path.read_bytes() == b"0123456789"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AlreadyExists):
        FileDevice.open(path, create=True)
    assert path.read_bytes() == b"0123456789"
    with pytest.raises(InvalidArgument):
        FileDevice.open(tmp_path / "other", create=True, writable=False)
    assert not (tmp_path / "other").exists()


def test_creating_syncs_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "new"
    FileDevice.open(path, create=True).close()
    assert synced == [str(tmp_path)]
    FileDevice.open(path).close()
    assert synced == [str(tmp_path)]


def test_a_new_file_is_taken_back_when_its_name_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageIOError):
        FileDevice.open(tmp_path / "new", create=True)
    assert not (tmp_path / "new").exists()


def test_what_may_not_be_opened_is_denied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with pytest.raises(Denied) as caught:
        FileDevice.open(path)
    assert str(path) not in str(caught.value)


# Locks -----------------------------------------------------------------------------------------


def test_one_writer_or_many_readers(path: Path) -> None:
    writer = FileDevice.open(path)
    for opener in (open_writable, open_read_only, MappedDevice.open):
        with pytest.raises(Busy):
            opener(path)
    writer.close()
    readers = [open_read_only(path), MappedDevice.open(path)]
    with pytest.raises(Busy):
        FileDevice.open(path)
    for reader in readers:
        reader.close()
    FileDevice.open(path).close()


_HOLDER = """
import sys
from capstore.images.devices import FileDevice, MappedDevice
device = eval(sys.argv[1])(sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, how, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_another_process_has_the_lock(
    path: Path, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = holder("FileDevice.open")
    with pytest.raises(Busy):
        FileDevice.open(path)
    with pytest.raises(Busy):
        MappedDevice.open(path)
    process.kill()  # a lock does not outlive its process
    process.wait()
    FileDevice.open(path).close()


def test_another_process_reads(path: Path, holder: Callable[[str], subprocess.Popen[str]]) -> None:
    holder("MappedDevice.open")
    with pytest.raises(Busy):
        FileDevice.open(path)
    MappedDevice.open(path).close()


def test_a_file_replaced_while_it_was_opened_is_busy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def replaced_meanwhile(fd: int, how: int) -> None:
        new = path.with_name("new")
        new.write_bytes(b"newer")
        new.replace(path)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    with pytest.raises(Busy):
        FileDevice.open(path)
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: path.unlink())
    with pytest.raises(NotFound):
        FileDevice.open(path)


def test_a_block_device_has_a_fixed_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def as_block_device(fd: int) -> object:
        found = real(fd)
        return SimpleNamespace(
            st_mode=0o060600, st_dev=found.st_dev, st_ino=found.st_ino, st_size=0
        )

    monkeypatch.setattr(os, "fstat", as_block_device)
    device = FileDevice.open(path)
    assert device.size() == SIZE
    with pytest.raises(NoSpace):
        device.resize(SIZE + 1)
    assert "fixed" in repr(device)
    device.close()
    mapped = MappedDevice.open(path)
    assert mapped.view == CONTENT
    mapped.close()


# Failures --------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., int]:
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number), "/a/path/of/the/host")

    return fail


def assert_latched(device: BlockDevice) -> None:
    for call in (
        device.flush,
        lambda: device.write(0, b"x"),
        lambda: device.resize(1),
        lambda: device.write(1 << 50, b"x"),
    ):
        with pytest.raises(StorageIOError):
            call()
    assert "latched" in repr(device)


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADF, errno.ENXIO, errno.EINVAL, 0])
def test_a_failed_write_latches(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(number))
        with pytest.raises(StorageIOError) as caught:
            device.write(0, b"x")
    assert "host" not in str(caught.value)
    assert_latched(device)
    assert whole(device) == CONTENT  # reading goes on
    device.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_flush_latches(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(path)
    device.write(0, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(number))
        with pytest.raises(StorageIOError):
            device.flush()
    assert_latched(device)
    device.close()
    FileDevice.open(path).close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_latches_only_when_something_was_written(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.open(path)
    real = os.pwrite
    room = 0

    def full(fd: int, data: memoryview, offset: int) -> int:
        nonlocal room
        count = min(room, len(data))
        if not count:
            raise OSError(number, os.strerror(number))
        room -= count
        return real(fd, data[:count], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpace):
            device.write(0, b"0123456789")
        assert whole(device) == CONTENT
        room = 10
        device.write(0, b"0123456789")
        device.flush()
        room = 4
        with pytest.raises(NoSpace):
            device.write(0, b"abcdefghij")
    assert whole(device) == b"abcd456789" + CONTENT[10:]
    assert_latched(device)
    device.close()


def test_a_failed_resize_latches_unless_there_was_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", failing(errno.ENOSPC))
        with pytest.raises(NoSpace):
            device.resize(SIZE + 1)
        assert device.size() == SIZE
        device.flush()
        patch.setattr(os, "ftruncate", failing(errno.EIO))
        with pytest.raises(StorageIOError):
            device.resize(SIZE + 1)
    assert_latched(device)
    device.close()


def test_a_really_full_device(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the kernel writes what fits, then says EFBIG."""
    script = (
        "import resource, sys\n"
        "from capstore.images.devices import FileDevice\n"
        "from capstore.schema.errors import NoSpace, StorageIOError\n"
        "device = FileDevice.open(sys.argv[1], create=True)\n"
        "device.resize(8192)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "for call in (lambda: device.resize(9000), lambda: device.write(6000, b'x'),\n"
        "             lambda: device.write(5000, bytes(3000))):\n"
        "    try:\n"
        "        call()\n"
        "    except NoSpace:\n"
        "        print(device)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "new")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split("\n") == [
        "FileDevice(8192 bytes, rw)",
        "FileDevice(8192 bytes, rw)",
        "FileDevice(8192 bytes, rw, latched)",
        "",
    ]


def test_short_and_stuck_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(path)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    device.write(5, b"0123456789")
    assert device.read(4, 12) == CONTENT[4:5] + b"0123456789" + CONTENT[15:16]
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(StorageIOError):
        device.write(5, b"x")
    assert_latched(device)
    device.close()


def test_an_interrupted_write_latches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(path)

    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            device.write(0, b"x")
    assert_latched(device)
    device.close()


@openers
def test_a_file_that_others_cut_off(opener: Opener, path: Path) -> None:
    device = opener(path)
    os.truncate(path, 1000)
    assert device.read(0, 1000) == CONTENT[:1000]
    for offset, length in ((999, 2), (1000, 1), (0, SIZE)):
        with pytest.raises(StorageIOError, match="at 1000"):
            device.read(offset, length)
    device.close()


@openers
def test_failing_reads(opener: Opener, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opener(path)
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    buffer = memoryview(bytearray(4))
    for call in (lambda: device.read_into(0, buffer), lambda: device.read_now(0, buffer)):
        with pytest.raises(StorageIOError) as caught:
            call()
        assert "host" not in str(caught.value)
    device.close()


def test_a_window_shows_the_failures_of_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.open(path)
    window = WindowDevice(device, 0, 100, owns=True)
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    with pytest.raises(StorageIOError):
        window.flush()
    with pytest.raises(StorageIOError):
        window.write(0, b"x")
    window.close()


# Reading without waiting -----------------------------------------------------------------------


@openers
def test_read_now_asks_for_what_is_cached(
    opener: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opener(path)
    real = os.preadv
    cached = 0
    asked: list[int] = []

    def some(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        asked.append(flags)
        if flags and offset >= cached:
            raise BlockingIOError(errno.EAGAIN, "")
        return real(fd, [buffers[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", some)
    buffer = bytearray(250)
    assert not device.read_now(0, memoryview(buffer))
    cached = 200
    assert not device.read_now(0, memoryview(buffer))
    assert asked == [os.RWF_NOWAIT] * 4
    cached = SIZE
    assert device.read_now(0, memoryview(buffer))
    assert buffer == CONTENT[:250]
    os.truncate(path, 10)
    with pytest.raises(StorageIOError, match="at 10"):
        device.read_now(0, memoryview(buffer))
    device.close()


@openers
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_read_now_where_the_filesystem_does_not_know_it(
    opener: Opener, number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opener(path)
    calls = 0
    real = os.preadv

    def unknown(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        nonlocal calls
        if flags:
            calls += 1
            raise OSError(number, "")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", unknown)
    buffer = memoryview(bytearray(4))
    assert not device.read_now(0, buffer)
    assert not device.read_now(0, buffer)
    assert calls == 1
    assert device.read(0, 4) == CONTENT[:4]
    device.close()


# Mapped files ----------------------------------------------------------------------------------


def test_the_view_is_the_file(path: Path) -> None:
    device = MappedDevice.open(path)
    assert device.view == CONTENT
    assert device.view.readonly
    assert np.frombuffer(device.view, dtype="<u2", count=2).tolist() == [0x0100, 0x0302]
    device.close()
    with pytest.raises(Closed):
        _ = device.view


def test_an_empty_file_has_an_empty_view(tmp_path: Path) -> None:
    device = MappedDevice.open(file_with(tmp_path, b""))
    assert device.view == b""
    device.close()


def test_arrays_stay_valid_after_close(path: Path) -> None:
    device = MappedDevice.open(path)
    array = np.frombuffer(device.view, dtype=np.uint8)
    part = device.view[100:200]
    device.close()
    assert array.tobytes() == CONTENT
    assert part == CONTENT[100:200]
    with pytest.raises(Busy):  # so that nobody cuts off what they show
        FileDevice.open(path)
    del array
    with pytest.raises(Busy):
        FileDevice.open(path)
    del part
    FileDevice.open(path).close()


def test_the_view_of_a_file_that_was_cut_off_is_refused(path: Path) -> None:
    device = MappedDevice.open(path)
    os.truncate(path, 1000)
    with pytest.raises(StorageIOError, match="at 1000"):
        _ = device.view
    device.close()


@pytest.mark.parametrize("error", [OSError(errno.ENODEV, ""), ValueError(), OverflowError()])
def test_what_cannot_be_mapped(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", refuse)
        with pytest.raises(StorageIOError):
            MappedDevice.open(path)
    FileDevice.open(path).close()  # the lock was let go
