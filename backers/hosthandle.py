"""Words by which a host directory volume finds a node again, after a restart too.

Invariants:

* A handle names the node, by its inode number and time of birth; its place is a hint where to look.
  Another node at that place is never taken for it.  A node that was moved by somebody who did not
  tell is `NotFound`, since a host has no way from a node to its names that needs no privilege.
* Looking walks from the root, one contained segment after the other.
* Where a filesystem records no birth (ext4 with 128-byte inodes, most FUSE), the inode number
  alone must do, and a node that got a removed one's number at the same place passes for it.

The device number is no part of a handle, since the host may number devices anew when it boots; only
whether it is the root's own is.
"""

from __future__ import annotations

import errno
import json
import os
import stat as modes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capstore.backers.hostfd import (
    HostStat,
    OwnedFd,
    check_segment,
    open_at,
    own_path,
    reopen_directory,
    stat_fd,
)
from capstore.schema.errors import InvalidArgument, InvalidName, NotFound
from capstore.schema.names import from_bytes, to_bytes

_FORMAT: Final = 1
_NAME_BYTES_MAX: Final = 255
_RACES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Handle:
    """A node: its place as names from the root, and what it is recognised by."""

    place: tuple[bytes, ...]
    directory: bool
    inode: int
    created: int
    foreign: bool

    def encode(self) -> bytes:
        """The handle as one line of JSON."""
        names = [from_bytes(name) for name in self.place]
        kind = "directory" if self.directory else "file"
        fields = [_FORMAT, names, kind, self.inode, self.created, self.foreign]
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def decode(word: bytes) -> Handle:
        """The handle that `encode` made; raises `InvalidArgument` for anything else."""
        try:
            form, names, kind, inode, created, foreign = json.loads(word)
            place = tuple(check_segment(to_bytes(name)) for name in names)
            sound = (
                form == _FORMAT
                and type(names) is list
                and kind in ("directory", "file")
                and type(inode) is int
                and type(created) is int
                and type(foreign) is bool
                and all(len(name) <= _NAME_BYTES_MAX for name in place)
            )
        except (ValueError, TypeError, AttributeError, RecursionError, OSError, InvalidName):
            raise InvalidArgument("this is no handle of a host directory") from None
        if not sound:
            raise InvalidArgument("this is no handle of a host directory")
        return Handle(place, kind == "directory", inode, created, foreign)

    def recognises(self, found: HostStat, root_device: int) -> bool:
        """Whether `found` is the node."""
        return (
            self.directory == modes.S_ISDIR(found.mode)
            and self.inode == found.inode
            and self.created == found.created
            and self.foreign == (found.device != root_device)
            and found.links > 0
        )


def handle_at(root: int, node: int) -> Handle:
    """A handle of the open `node` by the place it has now, checked by going there.  Blocks.

    Raises `NotFound` for a node that has no name below `root` any more.
    """
    found = stat_fd(node)
    foreign = found.device != stat_fd(root).device
    directory = modes.S_ISDIR(found.mode)
    for attempt in range(_RACES_MAX):
        place = _place(root, node)
        handle = Handle(place, directory, found.inode, found.created, foreign)
        try:
            find(root, handle)
        except NotFound:
            # Renamed between the two looks, or gone for good: then its place stays what it is.
            if attempt == _RACES_MAX - 1 or _place(root, node) == place:
                raise
        else:
            return handle
    raise AssertionError("unreachable")


def _place(root: int, node: int) -> tuple[bytes, ...]:
    """The names that lead from `root` to `node` as the kernel has them; only a hint."""
    top, place = (os.fsencode(Path(own_path(fd)).readlink()) for fd in (root, node))
    if place == top:
        return ()
    prefix = top.rstrip(b"/") + b"/"
    if not place.startswith(prefix):
        raise NotFound("the node is not in the volume any more")
    return tuple(place[len(prefix) :].split(b"/"))


def find(root: int, handle: Handle) -> tuple[OwnedFd, OwnedFd]:
    """O_PATH descriptors of the node that `handle` names and of the directory above it.  Blocks.

    Of the root: of itself, twice.  Raises `NotFound`; what the walk finds instead is nobody's
    business.
    """
    above = node = reopen_directory(root)
    try:
        for name in handle.place[:-1]:
            node = open_at(node.fileno(), name, os.O_PATH | os.O_DIRECTORY)
        for name in handle.place[-1:]:
            above, node = node, open_at(node.fileno(), name, os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise NotFound("the node is gone") from None
        raise
    if not handle.recognises(stat_fd(node.fileno()), stat_fd(root).device):
        raise NotFound("the node is gone")
    return above, node
