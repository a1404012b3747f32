"""Whether volumes share a place on this machine: layers of one overlay must not.

Invariants:

* What is compared is what a path leads to, symbolic links resolved, and the device and inode of
  each directory above it, so that a bind mount or a hard link is known again.
* Nothing is opened.  A path that is not there yet (``wf1:up.wf1,create``) stands in the directory
  that will hold it.
* Only what a specification names itself is compared: the parts of a composed one (``overlay:``,
  ``mounts:``) are passed one by one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capstore.schema.errors import InvalidArgument

if TYPE_CHECKING:
    # Specifications are opened with the help of this module.
    from capstore.backers.spec_text import Spec

__all__ = ["check_disjoint"]

_COMPOSED = frozenset({"overlay", "mounts"})
# PyFilesystem2's own kinds of URL whose resource is a path of this machine.
_HOST_DIRECTORIES = frozenset({"osfs", "file"})
_HOST_FILES = frozenset({"zip", "tar"})

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a volume is: its resolved path, and device and inode of that and of all above it."""

    shown: str
    path: Path
    part: str | None
    identity: _Identity | None
    around: frozenset[_Identity]

    def holds(self, other: _Place) -> bool:
        """Whether `other` is the same place or within this one."""
        return other.path.is_relative_to(self.path) or self.identity in other.around

    def same(self, other: _Place) -> bool:
        """Whether both are one file or directory."""
        return self.holds(other) and other.holds(self)


def check_disjoint(specs: Sequence[Spec]) -> None:
    """Raises `InvalidArgument` where two of `specs` are the same place or one is within the other.

    Different partitions of one image are different places.  Blocks on the disk.
    """
    places = [place for place in map(_place_of, specs) if place is not None]
    for one, other in itertools.combinations(places, 2):
        if one.same(other):
            if one.part == other.part or None in (one.part, other.part):
                raise InvalidArgument(_same(one, other))
        elif one.holds(other):
            raise InvalidArgument(f"{other.shown} is within {one.shown}")
        elif other.holds(one):
            raise InvalidArgument(f"{one.shown} is within {other.shown}")


def _same(one: _Place, other: _Place) -> str:
    if one.shown == other.shown:
        return f"{one.shown} is given twice"
    return f"{one.shown} and {other.shown} are the same"


def _place_of(spec: Spec) -> _Place | None:
    """Where the volume is; None for one that is nowhere on this machine, or cannot be."""
    named = _path_in(spec)
    if not named:
        return None
    try:
        path = Path(os.path.realpath(named))
    except (OSError, ValueError):
        # No path: opening it says why.
        return None
    identity = _identity(path)
    found = (identity, *map(_identity, path.parents))
    around = frozenset(each for each in found if each is not None)
    # A URL may hold a password.
    shown = f'"{spec.scheme}:{"..." if spec.scheme == "pyfs" else spec.argument}"'
    return _Place(shown, path, spec.options.get("part"), identity, around)


def _path_in(spec: Spec) -> str:
    """The path of this machine that a specification names, empty for none."""
    if spec.scheme == "pyfs":
        return _path_in_url(spec.argument)
    return "" if spec.scheme in _COMPOSED else spec.argument


def _path_in_url(url: str) -> str:
    # fs takes a third of a second to import.
    from fs.opener.errors import ParseError
    from fs.opener.parse import parse_fs_url

    try:
        parsed = parse_fs_url(url)
    except ParseError:
        return ""
    if parsed.protocol in _HOST_DIRECTORIES:
        folder = os.path.expanduser(parsed.resource)  # noqa: PTH111 - as fs itself does it
        return os.path.join(folder, (parsed.path or "").lstrip("/"))  # noqa: PTH118
    return parsed.resource if parsed.protocol in _HOST_FILES else ""


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
