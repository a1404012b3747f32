"""A real power cut: ext4 on a loop device, shut down by its ioctl under a process that works.

``EXT4_IOC_SHUTDOWN`` with ``EXT4_GOING_FLAGS_NOLOGFLUSH`` stops the filesystem as a cut does: what
is in the host's cache, the journal's running transaction included, never reaches the device.  After
mounting again the image has to hold what was said to be durable.

What counts is what was said before: a machine without power says nothing, while a process on a
filesystem that was shut down goes on, and a flush that is under way then may return as if it had
been done (ext4 gives up the conversion of extents that were reserved without telling the flush).

Invariants: needs root, loop devices and mkfs.ext4, and says which is missing.  What was mounted is
unmounted whatever happens.
"""

from __future__ import annotations

import array
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from capstore.tools.prove.examine import Verdict
from capstore.tools.prove.kill import Killed, Worker, compared_with
from capstore.tools.prove.load import OPERATIONS, Load

_SHUTDOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2
_DISK_BYTES: Final = 96 << 20


def why_no_power_cut(folder: Path) -> str | None:
    """Why the power cannot be cut on this machine; None if it can."""
    if os.geteuid() != 0:
        return "only root mounts filesystems"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed"
    disk = _disk(folder)
    try:
        with _mounted(disk, folder / "probe"):
            return None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return f"no ext4 can be mounted here: {said[0] if said else error.returncode}"
    finally:
        disk.unlink()


def cut_power(folder: Path, load: Load, seed: int) -> tuple[Killed, Verdict]:
    """One worker, whose filesystem is shut down at a moment by chance."""
    disk, mount = _disk(folder), folder / "mount"
    try:
        with _mounted(disk, mount):
            load.make(str(mount / "image"))
            os.sync()
            with Worker(load, mount / "image", seed) as worker:
                worker.wait_for_chance(load, seed)
                said = worker.said()
                _shut_down(mount)
                worker.kill()
        with _mounted(disk, mount):
            # A worker that was told of the failure before it was killed has said so.
            image = (mount / "image").read_bytes()
        return said, compared_with(load.subject, image, load.streams(seed, OPERATIONS), said)
    finally:
        disk.unlink()


def _disk(folder: Path) -> Path:
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    _run("mkfs.ext4", "-q", "-F", str(disk))
    return disk


@contextmanager
def _mounted(disk: Path, mount: Path) -> Iterator[None]:
    mount.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", str(disk), str(mount))
    try:
        yield
    finally:
        _run("umount", str(mount))


def _shut_down(mount: Path) -> None:
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, array.array("I", [_NO_LOG_FLUSH]))
    finally:
        os.close(fd)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
