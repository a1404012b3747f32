"""Filesystems in which case does not count, mounted for tests where that is possible."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

IMAGE_BYTES = 4 << 20


def run(*command: str | Path) -> str:
    return subprocess.run(
        [str(each) for each in command], check=True, capture_output=True, text=True
    ).stdout.strip()


def try_to(*command: str | Path) -> str:
    """As `run`; what cannot be done here is not tested here."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    try:
        return run(*command)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{command[0]}: {error.stderr.strip()}")


@contextmanager
def _mounted(folder: Path, make: tuple[str, ...], mount: tuple[str, ...]) -> Iterator[Path]:
    image, at = folder / "image", folder / "at"
    at.mkdir()
    with image.open("wb") as made:
        made.truncate(IMAGE_BYTES)
    try_to(*make, image)
    device = try_to("losetup", "--find", "--show", image)
    try:
        try_to(*mount, device, at)
        if not at.is_mount():
            pytest.skip("no FUSE here")
        try:
            yield at
        finally:
            gc.collect()
            run("umount", "--lazy", at)
    finally:
        run("losetup", "--detach", device)


def exfat(folder: Path) -> AbstractContextManager[Path]:
    """exFAT; each spelling of a name has an inode number of its own."""
    return _mounted(folder, ("mkfs.exfat",), ("mount.exfat-fuse",))


def ntfs(folder: Path) -> AbstractContextManager[Path]:
    """NTFS, as it is mounted for Windows programs; all names are listed in small letters."""
    return _mounted(folder, ("mkntfs", "-q", "-F"), ("lowntfs-3g", "-o", "ignore_case"))


@contextmanager
def overlayfs(folder: Path) -> Iterator[Path]:
    """overlayfs, in the lower layer of which case does not count, and in the upper one it does."""
    upper, work, at = (folder / name for name in ("upper", "work", "merged"))
    for each in (upper, work, at):
        each.mkdir()
    with exfat(folder) as lower:
        for name in ("folder", "folder/sub"):
            (lower / name).mkdir()
        (lower / "folder" / "secret").write_bytes(b"what it was")
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        try_to("mount", "-t", "overlay", "overlay", "-o", layers, at)
        try:
            yield at
        finally:
            gc.collect()
            run("umount", "--lazy", at)


FOLDINGS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "exfat": exfat,
    "ntfs": ntfs,
}
