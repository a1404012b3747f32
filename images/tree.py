"""What a read-only image shows, whatever its format: a tree of nodes with ids.

Invariants that every format keeps, and the contract suite checks through the backers:

* Nothing here changes the image.  The same call gives the same answer for as long as the tree is
  open, so node ids, versions and listings are stable.
* Names are those of `capstore.schema.names`; a listing is in the order of their bytes.
* Damage is `Corrupt`, names the structure and its offset, and concerns only what it is in: the
  rest stays readable.  The work that one call does is bounded by the size of the image.
* Calls are safe from several threads at once.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capstore.images.device import BlockDevice
from capstore.schema.errors import Corrupt, InvalidArgument
from capstore.schema.nodes import Entry, Page, Stat, Usage

# Rows of (offset in the file, length, offset in the device), in bytes, ascending and disjoint.
Extents = npt.NDArray[np.int64]


SIZE_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of the image for its map: `length` bytes at `start`.

    `kind` is one of `REGION_KINDS`, `label` says which one it is.
    """

    start: int
    length: int
    kind: str
    label: str = ""


REGION_KINDS = (
    "superblock",
    "table",
    "directory",
    "header",
    "log",
    "data",
    "dead",
    "free",
    "unused",
    "damaged",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an image: in `where`, at `offset` in bytes if that is known.

    `repairable` says that a crash leaves such, and that it can be removed with nothing lost.
    """

    where: str
    message: str
    offset: int | None = None
    repairable: bool = False


class Content(ABC):
    """The bytes of one file."""

    size: int

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> int:
        """Fills `view` from `offset`; returns how many bytes that were, less than asked for only
        at the end.  May wait for the device.  Raises `Corrupt`, `StorageIOError`."""

    def read_now(self, offset: int, view: memoryview) -> int | None:
        """As `read_into` if that needs no waiting, else None."""
        return None

    def _clip(self, offset: int, view: memoryview) -> int:
        """How many bytes of `view` the file has at `offset`.  Raises `InvalidArgument`."""
        if offset < 0:
            raise InvalidArgument("an offset is not negative")
        return max(0, min(len(view), self.size - offset))


class ExtentContent(Content):
    """A file whose bytes are in place on a device; what no extent covers reads as zeros."""

    def __init__(self, device: BlockDevice, size: int, extents: Extents) -> None:
        """Raises `Corrupt` for extents that are empty, overlap, or lie outside the file or the
        device."""
        self.size = size
        self._device = device
        _check_extents(extents, size, device.size())
        self._starts = extents[:, 0]
        self._ends = extents[:, 0] + extents[:, 1]
        self._extents = extents

    @property
    def extents(self) -> Extents:
        """What of the file is stored; the rest is holes."""
        return self._extents

    def read_into(self, offset: int, view: memoryview) -> int:
        got = self._clip(offset, view)
        for at, source, length in self._pieces(offset, got):
            piece = view[at : at + length]
            if source < 0:
                piece[:] = bytes(length)
            else:
                self._device.read_into(source, piece)
        return got

    def read_now(self, offset: int, view: memoryview) -> int | None:
        got = self._clip(offset, view)
        for at, source, length in self._pieces(offset, got):
            piece = view[at : at + length]
            if source < 0:
                piece[:] = bytes(length)
            elif not self._device.read_now(source, piece):
                return None
        return got

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(offset in the view, offset in the device or -1 for zeros, length), in order."""
        if not length:
            return
        end = offset + length
        row = int(np.searchsorted(self._ends, offset, side="right"))
        at = offset
        while at < end:
            if row == len(self._extents) or end <= (start := int(self._starts[row])):
                yield at - offset, -1, end - at
                return
            if at < start:
                yield at - offset, -1, start - at
                at = start
            stop = min(end, int(self._ends[row]))
            yield at - offset, int(self._extents[row, 2]) + at - start, stop - at
            at = stop
            row += 1


def _check_extents(extents: Extents, size: int, device_size: int) -> None:
    if not 0 <= size <= SIZE_MAX:
        raise Corrupt("the file is longer than any file can be")
    if not len(extents):
        return
    starts, lengths, sources = extents[:, 0], extents[:, 1], extents[:, 2]
    # Each term is compared before it is added to: sums of forged numbers wrap around.
    sound = (
        (extents >= 0).all()
        and (lengths > 0).all()
        and (lengths <= size).all()
        and (starts <= size - lengths).all()
        and (starts[1:] - starts[:-1] >= lengths[:-1]).all()
        and (lengths <= device_size).all()
        and (sources <= device_size - lengths).all()
    )
    if not sound:
        raise Corrupt("the file's extents do not fit the file and the image")


def extents_of(rows: Sequence[tuple[int, int, int]]) -> Extents:
    """`Extents` out of rows."""
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


class ImageTree(ABC):
    """An open image.  A node is named by its id: `root`, or what a `Stat` says."""

    root: int

    @abstractmethod
    def stat(self, node: int) -> Stat:
        """What is known of the node.  Raises `Corrupt`, `NotFound` for what is no id."""

    @abstractmethod
    def lookup(self, directory: int, name: str) -> Entry:
        """What `name` stands for; the entry's name is the stored one.

        Raises `NotFound`, `InvalidName`, `Corrupt`."""

    @abstractmethod
    def list(self, directory: int, after: str, limit: int) -> Page:
        """Up to `limit` entries behind `after`, bounded as `PAGE_BYTES_MAX` has it."""

    @abstractmethod
    def content(self, node: int) -> Content:
        """The bytes of a file.  Raises `Corrupt` where they cannot be found."""

    def waits(self, directory: int) -> bool:
        """Whether looking in this directory, or at what is in it, may wait for the device."""
        return False

    def content_waits(self, node: int) -> bool:
        """Whether `content` of this node may wait for the device, or take long."""
        return False

    def mark(self, node: int) -> bytes:
        """A word that is another one when the id was given to another node, which happens when
        the image is replaced while it is not open."""
        return hashlib.sha256(repr(self.stat(node)).encode()).digest()[:16]

    @abstractmethod
    def usage(self) -> Usage:
        """Space and nodes, with the label of the volume if it has one."""

    @abstractmethod
    def regions(self) -> Iterator[Region]:
        """The map of the image: ascending, disjoint; what is left out is not accounted for."""

    @abstractmethod
    def verify(self) -> Iterator[Finding]:
        """Checks every structure; gives one finding per damage.  The bytes of files are not read:
        `content` checks them for whoever does."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The image's own facts (version, sizes, counts, label) as JSON values, for inspection."""

    @abstractmethod
    def close(self) -> None:
        """Releases the image; closing again does nothing."""
