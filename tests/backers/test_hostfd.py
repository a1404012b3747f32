"""Descriptors: closed once, never under a call, and opened in the way that the kernel offers."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from capstore.backers import hostfd
from capstore.backers.hostfd import OwnedFd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_closes_exactly_once(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_PATH)
    fd = OwnedFd(number)
    fd.close()
    other = os.open(tmp_path, os.O_PATH)
    assert other == number  # the host gives the number away again
    fd.close()
    del fd
    assert is_open(other)
    os.close(other)


def test_closes_when_nobody_holds_it(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_PATH)
    fd = OwnedFd(number)
    assert is_open(number)
    del fd
    assert not is_open(number)


def test_a_lease_keeps_the_number(tmp_path: Path) -> None:
    fd = OwnedFd(os.open(tmp_path, os.O_PATH))
    with fd.lease() as number:
        with fd.lease():
            fd.close()
        assert is_open(number)
        assert fd.closed
        with pytest.raises(OSError, match="Bad file descriptor"):
            fd.fileno()
    assert not is_open(number)


def test_leases_from_many_threads(tmp_path: Path) -> None:
    fd = OwnedFd(os.open(tmp_path, os.O_PATH))
    failures: list[BaseException] = []

    def use() -> None:
        try:
            while True:
                with fd.lease() as number:
                    os.fstat(number)
        except OSError as error:
            if error.strerror is None or fd.closed is False:
                failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    fd.close()
    for thread in threads:
        thread.join()
    assert not failures
    assert repr(fd) == "OwnedFd(closed)"


@pytest.mark.parametrize("openat2", [True, False])
def test_open_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openat2: bool) -> None:
    monkeypatch.setattr(hostfd.support(), "openat2", openat2)
    (tmp_path / "link").symlink_to("file")
    above = OwnedFd(os.open(tmp_path, os.O_PATH))
    at = above.fileno()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with hostfd.open_at(at, b"file", flags, 0o600) as made:
        assert os.write(made.fileno(), b"abc") == 3
        assert not os.get_inheritable(made.fileno())
    with pytest.raises(FileExistsError):
        hostfd.open_at(at, b"file", flags, 0o600)
    with pytest.raises(FileNotFoundError):
        hostfd.open_at(at, b"nothing", os.O_PATH)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        hostfd.open_at(at, b"link", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        hostfd.open_at(at, b"link", os.O_PATH | os.O_DIRECTORY)
    with hostfd.open_at(at, b"link", os.O_PATH) as link:
        assert os.readlink(b"", dir_fd=link.fileno()) == b"file"
    if not openat2:
        assert hostfd.open_at_once(at, b"file", os.O_PATH) is None


def test_a_race_is_tried_again_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hostfd.support().openat2:
        pytest.skip("this kernel has no openat2")
    real, answers = hostfd._openat2, [errno.EAGAIN, errno.EINTR]

    def racing(*arguments: int) -> int:
        if answers:
            raise OSError(answers.pop(), "raced")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hostfd, "_openat2", racing)
    above = OwnedFd(os.open(tmp_path, os.O_PATH))
    (tmp_path / "file").touch()
    hostfd.open_at(above.fileno(), b"file", os.O_PATH).close()
    assert not answers
    answers.extend([errno.EAGAIN] * 1000)
    with pytest.raises(BlockingIOError):
        hostfd.open_at(above.fileno(), b"file", os.O_PATH)
    assert hostfd.open_at_once(above.fileno(), b"file", os.O_PATH) is None


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_or_filter_without_the_call_is_found_out(number: int) -> None:
    def refused() -> int:
        raise OSError(number, "refused")

    assert not hostfd._answers(refused)


@pytest.mark.parametrize("statx", [True, False])
def test_stat_agrees_with_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statx: bool
) -> None:
    monkeypatch.setattr(hostfd.support(), "statx", statx)
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "link").symlink_to("file")
    above = OwnedFd(os.open(tmp_path, os.O_PATH))
    for name in ("file", "link"):
        plain = (tmp_path / name).lstat()
        found = hostfd.stat_at(above.fileno(), name.encode())
        assert found[:5] == (
            plain.st_mode,
            plain.st_nlink,
            plain.st_dev,
            plain.st_ino,
            plain.st_size,
        )
        assert found.blocks == plain.st_blocks
        assert (found.accessed, found.modified, found.changed) == (
            plain.st_atime_ns,
            plain.st_mtime_ns,
            plain.st_ctime_ns,
        )
        assert found.created == 0 or statx
        with hostfd.open_at(above.fileno(), name.encode(), os.O_PATH) as fd:
            assert hostfd.stat_fd(fd.fileno()) == found
