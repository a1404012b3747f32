"""What a node is and what is known of it: the vocabulary of ``capstore.capnp`` as Python types.

Invariants: values of the enumerations are the enumerants of ``capstore.capnp``; every value here is
immutable.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Bytes-like objects that reads give and writes take.
Buffer = bytes | bytearray | memoryview


class NodeKind(enum.Enum):
    """What a node is; values are the enumerants of ``NodeKind`` in ``capstore.capnp``."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    SPECIAL = "special"


class Provenance(enum.Enum):
    """Where the times of a `Stat` come from; values as in ``capstore.capnp``."""

    UNKNOWN = "unknown"
    WALL_CLOCK = "wallClock"
    TAR_HEADER = "tarHeader"
    FAT_DIRECTORY_ENTRY = "fatDirectoryEntry"
    CPIO_HEADER = "cpioHeader"
    HOST_FILESYSTEM = "hostFilesystem"


class Stat(NamedTuple):
    """What is known of a node without reading it.

    `size` is in bytes (of a symbolic link: of its target; of a directory: 0); times are
    nanoseconds since 1970 and mean nothing when `provenance` is unknown; `node_id` is unique in
    the volume for the life of the node; `version` differs after each change of content or entries.
    """

    kind: NodeKind
    size: int
    node_id: int
    version: int
    created: int = 0
    modified: int = 0
    provenance: Provenance = Provenance.UNKNOWN
    executable: bool = False
    link_count: int = 1


class Entry(NamedTuple):
    """One name in a directory; `target` is what a symbolic link points to."""

    name: str
    stat: Stat
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, in the order of the names' bytes; `more` says that names follow."""

    entries: Sequence[Entry]
    more: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Space and nodes of a volume; a total of 0 means that no bound is known."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    total_nodes: int = 0
    used_nodes: int = 0
    label: str = ""


class ChangeKind(enum.Enum):
    """What became of an entry of a directory that is watched."""

    CREATED = "created"
    REMOVED = "removed"
    MODIFIED = "modified"
    OVERFLOW = "overflow"


class Change(NamedTuple):
    """One change of an entry, as a watch tells it.

    `node_id` is that of the node that the name got, lost or has; 0 where it could not be found out.
    Of an overflow, which means that changes were dropped, name and node are empty.
    """

    kind: ChangeKind
    name: str = ""
    node_id: int = 0
