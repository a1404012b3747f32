"""What FAT can hold, and how large a FAT volume has to be for it.

Invariants: what passes `Checker` is held exactly, name for name; the sizes that `plan` gives are
enough for it.  Nothing here touches an image.

Source: Microsoft, *FAT32 File System Specification* 1.03 (fatgen103), 6 December 2000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from capstore.backers.node import NodeKind
from capstore.images.fat_names import folded
from capstore.schema.errors import InvalidArgument, NoSpace, TooLarge, Unsupported
from capstore.schema.limits import KIB
from capstore.schema.sizes import format_size
from capstore.tools.console import about
from capstore.tools.image.source import Step, Tree, depth_first

FILE_BYTES_MAX: Final = (1 << 32) - 1
DIRECTORY_SLOTS_MAX: Final = 65_536
LABEL_CHARS_MAX: Final = 11
SECTORS_MAX: Final = (1 << 32) - 1

SECTOR_BYTES: Final = 512
SLOT_BYTES: Final = 32
_UNITS_PER_SLOT: Final = 13
_NAME_UNITS_MAX: Final = 255
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f"*/:<>?\\|]')
_LABEL_FORBIDDEN: Final = re.compile(r'[^ -~]|["*+,./:;<=>?\[\\\]|]')

Path = Sequence[str]


# What it can hold --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Directory:
    """One that is being filled: its depth, its names as FAT compares them, its slots."""

    depth: int
    names: set[str]
    slots: int


class Checker:
    """Takes the entries of a tree depth first, and sums up what they need.

    `slots` are those of each directory that is complete, `root_slots` of the root; `sizes` those of
    the files, in bytes.
    """

    def __init__(self) -> None:
        # Two slots for `.` and `..`; the root has one for the label instead.
        self._open = [_Directory(0, set(), 1)]
        self.slots: list[int] = []
        self.sizes: list[int] = []

    @property
    def root_slots(self) -> int:
        """How many slots the root directory needs."""
        return self._open[0].slots

    def add(self, path: Path, size: int | None) -> None:
        """The entry at `path`, a file of `size` bytes or (None) a directory.

        Raises `Unsupported` for a name that FAT cannot hold beside the others, and `TooLarge` for
        a file or directory that is.
        """
        while self._open[-1].depth >= len(path):
            self.slots.append(self._open.pop().slots)
        directory = self._open[-1]
        key = folded(_checked(path[-1]))
        if key in directory.names:
            raise Unsupported("FAT takes this name for the same as another one beside it")
        directory.names.add(key)
        directory.slots += _slots_of(path[-1])
        if directory.slots > DIRECTORY_SLOTS_MAX:
            raise TooLarge("a directory of FAT does not hold as many names")
        if size is None:
            self._open.append(_Directory(len(path), set(), 2))
        elif size > FILE_BYTES_MAX:
            raise TooLarge(f"a file of FAT has at most {FILE_BYTES_MAX} bytes")
        else:
            self.sizes.append(size)

    def clusters(self, cluster_bytes: int) -> int:
        """How many clusters of that size all of it takes, the root directory not counted."""
        open_slots = [directory.slots for directory in self._open[1:]]
        needs = [slots * SLOT_BYTES for slots in (*self.slots, *open_slots)]
        return sum(-(-need // cluster_bytes) for need in (*needs, *self.sizes))


def _checked(name: str) -> str:
    found = _FORBIDDEN.search(name)
    if found:
        raise Unsupported(f"FAT holds no name with {found[0]!r}")
    if name[-1] in ". ":
        raise Unsupported("FAT holds no name that ends with a dot or a space")
    if _units(name) > _NAME_UNITS_MAX:
        raise Unsupported("FAT holds no name as long as this")
    return name


def _units(name: str) -> int:
    return len(name.encode("utf-16-le")) // 2


def _slots_of(name: str) -> int:
    return 1 + -(-_units(name) // _UNITS_PER_SLOT)


async def check_tree(tree: Tree, skip: frozenset[tuple[str, ...]]) -> None:
    """Raises for the first entry of `tree` that FAT cannot hold, with its path."""
    checker = Checker()
    linked: set[int] = set()
    async with aclosing(depth_first(tree.root, skip=skip)) as steps:
        async for step in steps:
            try:
                _check_step(checker, step, linked)
            except (Unsupported, TooLarge) as error:
                raise about(step.path, error) from error


def _check_step(checker: Checker, step: Step, linked: set[int]) -> None:
    stat = step.entry.stat
    if stat.kind is NodeKind.SYMLINK:
        raise Unsupported("FAT holds no symbolic links")
    if stat.link_count > 1 and stat.kind is NodeKind.FILE:
        if stat.node_id in linked:
            raise Unsupported("FAT holds no hard links")
        linked.add(stat.node_id)
    if stat.kind is not NodeKind.SPECIAL:
        checker.add(step.path, None if step.is_directory else stat.size)


def checked_label(label: str) -> str:
    """`label` as FAT writes it.  Raises `InvalidArgument`."""
    label = label.upper()
    if len(label) > LABEL_CHARS_MAX or _LABEL_FORBIDDEN.search(label) or label != label.strip():
        raise InvalidArgument(
            f"a label of FAT has at most {LABEL_CHARS_MAX} characters, letters and digits of ASCII"
        )
    return label


# How large it has to be --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """A volume: `bits` of its FAT's entries, sectors of a cluster and of all, slots of the root
    directory (0 for FAT32)."""

    bits: int
    cluster_sectors: int
    root_slots: int
    sectors: int


# (bits, sectors of a cluster): the first that fits is taken.
_SHAPES: Final = (
    *((12, 1 << power) for power in range(4)),
    *((16, 1 << power) for power in range(7)),
    *((32, 1 << power) for power in range(7)),
)
# Of clusters; a few away from where drivers disagree.
_CLUSTERS: Final = {12: (1, 4_080), 16: (4_100, 65_500), 32: (65_550, 0x0FFFFF00)}
_RESERVED: Final = {12: 1, 16: 1, 32: 32}
_ROOT_SLOTS_MIN: Final = 512
# mkfs.fat makes the size a multiple of a track, and the tables one of a cluster.
_TRACK_SECTORS: Final = 64
_ALIGNED_AREAS: Final = 4


def plan(content: Checker, *, size: int | None = None, bits: int | None = None) -> Shape:
    """The smallest sensible volume for `content`, or one of `size` bytes.

    Raises `NoSpace` where `size` is too small, `InvalidArgument` where no FAT (or not one of
    `bits`) is as large or as small, `TooLarge`.
    """
    if size is not None and size < KIB:
        raise InvalidArgument("a FAT image has at least 1 KiB")
    for shape in _candidates(content, size, bits):
        if shape.sectors > SECTORS_MAX:
            raise TooLarge("this is more than FAT can hold")
        return shape
    if size is None:
        raise TooLarge("this is more than FAT can hold" + (f"{bits}" if bits else ""))
    if any(True for _ in _candidates(None, size, bits)):
        raise NoSpace(f"the content does not fit into {format_size(size)}")
    raise InvalidArgument(f"there is no FAT{bits or ''} of {format_size(size)}")


def _candidates(content: Checker | None, size: int | None, bits: int | None) -> Iterator[Shape]:
    for kind, cluster in _SHAPES:
        if bits not in (None, kind):
            continue
        least, most = _CLUSTERS[kind]
        need = 0 if content is None else _need(content, kind, cluster)
        root_slots = 0 if kind == 32 else _root_slots(content)
        if size is None:
            # Without a demand for it, no volume is padded to be of a larger kind.
            if need > most or (bits is None and need < least):
                continue
            sectors = _sectors(kind, cluster, root_slots, max(need, least))
            yield Shape(kind, cluster, root_slots, sectors)
            continue
        sectors = size // SECTOR_BYTES
        smallest = _sectors(kind, cluster, root_slots, max(need, least))
        if smallest <= sectors <= _sectors(kind, cluster, root_slots, most):
            yield Shape(kind, cluster, root_slots, sectors)


def _need(content: Checker, bits: int, cluster_sectors: int) -> int:
    cluster_bytes = cluster_sectors * SECTOR_BYTES
    root = -(-content.root_slots * SLOT_BYTES // cluster_bytes) if bits == 32 else 0
    return content.clusters(cluster_bytes) + root + 1


def _root_slots(content: Checker | None) -> int:
    per_sector = SECTOR_BYTES // SLOT_BYTES
    need = max(_ROOT_SLOTS_MIN, 0 if content is None else content.root_slots)
    return -(-need // per_sector) * per_sector


def _sectors(bits: int, cluster_sectors: int, root_slots: int, clusters: int) -> int:
    """How many sectors a volume with that many clusters takes at most."""
    fat = -(-(clusters + 2) * bits // (8 * SECTOR_BYTES))
    fixed = _RESERVED[bits] + 2 * fat + root_slots * SLOT_BYTES // SECTOR_BYTES
    total = fixed + (clusters + _ALIGNED_AREAS) * cluster_sectors + _TRACK_SECTORS
    return -(-total // _TRACK_SECTORS) * _TRACK_SECTORS
