"""What the figures were taken on.

Invariants: facts for comparing two reports; nothing that identifies the host or its user.
"""

from __future__ import annotations

import os
import platform
import sqlite3
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
        "capstore": version_of("capstore"),
        "pycapnp": version_of("pycapnp"),
        "asyncssh": version_of("asyncssh"),
        "ratarmountcore": version_of("ratarmountcore"),
        "rapidgzip": version_of("rapidgzip"),
        "indexed_gzip": version_of("indexed_gzip"),
        "pyfatfs": version_of("pyfatfs"),
        "sqlite": sqlite3.sqlite_version,
        "lmdb": version_of("lmdb"),
        "ZODB": version_of("ZODB"),
        "filesystem": filesystem_type(Path(tempfile.gettempdir())),
    }


def version_of(distribution: str) -> str | None:
    """Which version of a distribution is installed, None if none is."""
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
