"""What the figures were taken on.

Invariants: facts for comparing two reports; nothing that identifies the host or its user.
"""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Facts = dict[str, str | int | float | None]


def facts() -> Facts:
    """The machine and the software, by name."""
    return {
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "capstore": _version("capstore"),
        "pycapnp": _version("pycapnp"),
        "asyncssh": _version("asyncssh"),
        "filesystem": filesystem_type(Path(tempfile.gettempdir())),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that `path` is on, as mount calls it."""
    mounts = [
        (mount, kind)
        for mount, kind in map(_mount, Path("/proc/self/mountinfo").read_text().splitlines())
        if path.resolve().is_relative_to(mount)
    ]
    if not mounts:
        return "unknown"  # in a chroot
    # Of two mounts at one place the later one is seen.
    return max(enumerate(mounts), key=lambda item: (len(item[1][0]), item[0]))[1][1]


def _mount(line: str) -> tuple[str, str]:
    """Mount point and type of a line of mountinfo (see proc(5))."""
    mount, _, filesystem = line.partition(" - ")
    return mount.split()[4].encode().decode("unicode_escape"), filesystem.split()[0]
