"""Emptying a directory of the host in one step, also when it is killed in the middle."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstore.backers import hostreset
from capstore.schema.errors import Busy, NotDirectory, NotFound, Unsupported


def filled(place: Path, count: int = 30) -> Path:
    """A tree with deep, closed and strange directories in it."""
    root = place / "root"
    root.mkdir(mode=0o2751)
    root.chmod(0o2751)
    for number in range(count):
        below = root / f"d{number}" / "in"
        below.mkdir(parents=True)
        (below / "file").write_bytes(b"1234")
        (below / "loop").symlink_to("..")
        os.link(below / "file", root / f"hard{number}")
    (root / "outside").symlink_to(place)
    (root / os.fsdecode(b"\xff\n")).mkdir()
    return root


def deep(root: Path, levels: int) -> None:
    """A chain of directories, longer than a path can be."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("x" * 200, dir_fd=fd)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_a_directory_keeps_what_it_is(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.write_bytes(b"outside")
    root = filled(tmp_path)
    deep(root, 100)
    before = root.stat()
    hostreset.reset_directory(str(root))
    after = root.stat()
    assert list(root.iterdir()) == []
    assert after.st_ino != before.st_ino
    assert after.st_mode == before.st_mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["keep", "root"]
    assert keep.read_bytes() == b"outside"


def test_owner_is_kept(tmp_path: Path) -> None:
    # Only root can give a directory away.
    owner = (os.getuid(), os.getgid()) if os.getuid() else (1234, 2345)
    root = filled(tmp_path, 1)
    os.chown(root, *owner)
    root.chmod(0o3700)
    hostreset.reset_directory(str(root))
    assert (root.stat().st_uid, root.stat().st_gid) == owner
    assert root.stat().st_mode & 0o7777 == 0o3700


def test_what_a_path_leads_to_is_reset(tmp_path: Path) -> None:
    root = filled(tmp_path, 2)
    link = tmp_path / "link"
    link.symlink_to("root")
    hostreset.reset_directory(str(link))
    assert link.is_symlink()
    assert list(root.iterdir()) == []
    for name, error in (("no", NotFound), ("file", NotDirectory)):
        (tmp_path / "file").touch()
        with pytest.raises(error):
            hostreset.reset_directory(str(tmp_path / name))
    long = tmp_path / ("n" * 255)
    long.mkdir()
    (long / "file").touch()
    hostreset.reset_directory(str(long))
    assert list(long.iterdir()) == []


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        yield Path(folder)


def test_closed_directories_are_removed_too(reachable: Path) -> None:
    """By their owner, who may not look into them."""
    root = filled(reachable, 2)
    root.chmod(0o755)
    os.chmod(root / "d0" / "in", 0)
    os.chmod(root / "d0", 0o500)
    script = (
        "import os, sys\n"
        "from capstore.backers.hostreset import reset_directory\n"
        "if not os.getuid():\n"
        "    os.setgid(1234); os.setuid(1234)\n"
        "reset_directory(sys.argv[1])\n"
    )
    if not os.getuid():
        for folder, _, files in os.walk(reachable):
            os.chown(folder, 1234, 1234)
            for name in files:
                os.chown(os.path.join(folder, name), 1234, 1234, follow_symlinks=False)
    subprocess.run([sys.executable, "-c", script, str(root)], check=True, timeout=30)
    assert list(root.iterdir()) == []
    assert [one.name for one in reachable.iterdir()] == ["root"]


def test_whose_lock_somebody_has_is_busy(tmp_path: Path) -> None:
    root = filled(tmp_path, 2)
    before = sorted(root.rglob("*"))
    fd = os.open(root, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    with pytest.raises(Busy):
        hostreset.reset_directory(str(root))
    os.close(fd)
    assert sorted(root.rglob("*")) == before
    assert [one.name for one in tmp_path.iterdir()] == ["root"]
    hostreset.reset_directory(str(root))


@pytest.mark.parametrize("number", ["EBUSY", "EXDEV", "EINVAL", "ENOSYS"])
def test_what_cannot_be_exchanged_stays(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(hostreset, "rename_at", refuse)
    root = filled(tmp_path, 2)
    before = sorted(root.rglob("*"))
    with pytest.raises(Unsupported):
        hostreset.reset_directory(str(root))
    assert sorted(root.rglob("*")) == before
    assert [one.name for one in tmp_path.iterdir()] == ["root"]


def test_nothing_is_removed_of_what_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = filled(tmp_path, 2)
    before = sorted(root.rglob("*"))
    for inner in (root, root / "d0" / "a b\\c"):
        shown = str(inner).replace("\\", r"\134").replace(" ", r"\040")
        table = tmp_path / "table"
        table.write_text(f"1 2 0:3 / / rw - x y z\n4 1 0:5 / {shown} rw - tmpfs none rw\n")
        monkeypatch.setattr(hostreset, "MOUNTS", table)
        with pytest.raises(Unsupported, match="mounted"):
            hostreset.reset_directory(str(root))
    assert sorted(root.rglob("*")) == before
    table.write_text(f"4 1 0:5 / {root}2 rw - tmpfs none rw\n")
    hostreset.reset_directory(str(root))
    assert list(root.iterdir()) == []


# Has a child kill itself at its k-th system call that changes something, for each k; tells what is
# there then, and after another reset.
_KILLED = """
import json, os, shutil, signal, sys
from capstore.backers import hostreset

root, backup = sys.argv[1:]
calls, at = 0, 0

def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def told():
    print(json.dumps([sorted(os.listdir(root)), sorted(os.listdir(os.path.dirname(root)))]))

original = os.unlink, os.rmdir
status = 1
while status:
    at += 1
    shutil.copytree(backup, root, symlinks=True)
    child = os.fork()
    if not child:
        for name in ("mkdir", "rmdir", "unlink", "rename", "fchmod", "fchown", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
        hostreset.rename_at = counted(hostreset.rename_at)
        hostreset.reset_directory(root)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    told()
    hostreset.reset_directory(root)
    told()
    os.rmdir(root)
"""


def test_killed_anywhere_it_is_full_or_empty(tmp_path: Path) -> None:
    """And the next reset takes away what was left."""
    folder = tmp_path / "folder"
    folder.mkdir()
    root = filled(folder, 2)
    backup = root.rename(tmp_path / "backup")
    ran = subprocess.run(
        [sys.executable, "-c", _KILLED, str(root), str(backup)],
        capture_output=True,
        timeout=60,
        check=True,
    )
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    names = json.loads(json.dumps(sorted(os.listdir(backup))))
    assert len(told) > 40
    assert all(after == [[], ["root"]] for after in told[1::2])
    left = [".root.capstore-reset", "root"]
    # Before anything, with the new one beside it, with the old one beside it, and done.
    states = [[names, ["root"]], [names, left], [[], left], [[], ["root"]]]
    assert all(one in states for one in told[::2])
    assert all(one in told[::2] for one in states)


def test_killed_in_the_middle_of_a_big_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in range(10):
        (root / str(folder)).mkdir(parents=True)
        for number in range(500):
            (root / str(folder) / str(number)).touch()
    script = (
        "import sys; from capstore.backers import hostreset as h; h.reset_directory(sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(root)])
    while process.poll() is None and os.listdir(root):
        pass
    process.kill()
    process.wait(20)
    assert os.listdir(root) == []
    (root / "new").touch()
    hostreset.reset_directory(str(root))
    assert os.listdir(root) == []
    assert os.listdir(tmp_path) == ["root"]
