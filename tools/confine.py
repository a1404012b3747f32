"""The sandbox of ``capstore serve --sandbox``: what a service goes on reaching by a name.

Invariants:

* What a volume holds open needs no rule: images and archives have none, however they grow.
* A directory that is served is below its rule, for reading only if the volume is; so is the one
  that the file of a memory volume is saved in, whose new file has a name of its own.
* The file of a socket is not removed at the stop, unless it is in a directory of the service's own:
  the right to remove it would be one to remove its neighbours.  The next start replaces it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from capstore.backers.overlay_spec import OCI
from capstore.backers.spec_text import Spec
from capstore.backers.workers import renew_workers
from capstore.schema.errors import Unsupported
from capstore.service import sandbox

__all__ = ["Sandbox", "confine", "reached"]

log = logging.getLogger("capstore.serve")


class Sandbox(IntEnum):
    """Whether a service gives up what it does not need; the stricter is the greater."""

    OFF = 0
    AS_FAR_AS_IT_GOES = 1
    REQUIRED = 2

    @staticmethod
    def of(*, wanted: bool, required: bool) -> Sandbox:
        """What two switches ask for."""
        if required:
            return Sandbox.REQUIRED
        return Sandbox.AS_FAR_AS_IT_GOES if wanted else Sandbox.OFF


async def confine(leaves: Iterable[Spec], own: Iterable[Path], *, required: bool) -> None:
    """Enters the sandbox, with all that runs here; says what was given up.

    `leaves` are what the volumes are made of, `own` the directories that the service itself makes
    files in: its state, and those of files that it rotates.  Raises `Unsupported` for a volume that
    cannot live there and, if it is `required`, for whatever this machine cannot do; and what
    entering it raises.
    """
    readable, served = reached(leaves)
    # Names are looked up in threads that asyncio keeps; the sandbox is for threads begun in it.
    await asyncio.get_running_loop().shutdown_default_executor()
    renew_workers()
    applied = sandbox.enter(readable, [*served, *own])
    for what in applied.done:
        log.info("in the sandbox: %s", what)
    for what in applied.missing:
        if required:
            raise Unsupported(f"the sandbox lacks {what}")
        log.warning("the sandbox lacks %s", what)


def reached(leaves: Iterable[Spec]) -> tuple[list[Path], list[Path]]:
    """The paths that are looked below while the service runs, to read and to write.

    Raises `Unsupported` for a filesystem that is neither a directory of this machine nor held.
    """
    readable: list[Path] = []
    writable: list[Path] = []
    for spec in leaves:
        path = _path_below(spec)
        if path is not None:
            (readable if "ro" in spec.options or spec.scheme == OCI else writable).append(path)
    return readable, writable


def _path_below(spec: Spec) -> Path | None:
    if spec.scheme == "dir":
        return Path(spec.argument)
    if spec.scheme == OCI:
        # An archive is held.
        return path if (path := Path(spec.argument)).is_dir() else None
    if spec.scheme == "memory" and spec.argument:
        return Path(spec.argument).resolve().parent
    if spec.scheme == "pyfs":
        return _path_in_url(spec.argument)
    return None


def _path_in_url(url: str) -> Path | None:
    from fs.opener.parse import parse_fs_url

    parsed = parse_fs_url(url)
    if parsed.protocol in ("osfs", "file"):
        return Path(parsed.resource).expanduser() / (parsed.path or "").lstrip("/")
    if parsed.protocol in ("zip", "tar", "mem"):
        return None
    raise Unsupported(
        f"pyfs:{parsed.protocol}:// opens and connects as it goes: it cannot be in the sandbox"
    )
