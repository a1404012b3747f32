"""FAT: everything that can be wrong with a volume, found in one pass.

Invariants: each directory is read once more and each cluster followed at most twice (a chain is
left where it meets another), so the work is bounded by the size of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images.fat_boot import ENTRY_BYTES, FIRST_CLUSTER, backup_differs, free_hint
from capstore.images.fat_entries import Listing, decode, dot_clusters
from capstore.images.fat_table import BAD, FREE
from capstore.images.fat_table import decode as decode_table
from capstore.images.fat_volume import ROOT, RawDirectory, Volume
from capstore.images.tree import Finding
from capstore.schema.errors import Corrupt

_PATH_CHARS_MAX: Final = 1000
# Whole entries, whatever their width.
_TRIPLE_BYTES: Final = 12


def findings_of(volume: Volume) -> Iterator[Finding]:
    """One finding for each damage: boot sector, FATs, directories, chains, lost clusters."""
    yield from _boot(volume)
    yield from _copies(volume)
    yield from _Pass(volume).findings()


def _boot(volume: Volume) -> Iterator[Finding]:
    geometry, device = volume.geometry, volume.device
    if backup_differs(device, geometry):
        where = geometry.backup_offset
        yield Finding("backup boot sector", "differs from the boot sector", where)
    try:
        hint = free_hint(device, geometry)
    except Corrupt as error:
        yield Finding("FSInfo", error.message, geometry.info_offset)
    else:
        if hint not in (None, volume.table.free):
            message = f"claims {hint} free clusters, there are {volume.table.free}"
            yield Finding("FSInfo", message, geometry.info_offset)
    at = geometry.copy_offset(geometry.active_fat)
    first = int(decode_table(device.read(at, _TRIPLE_BYTES), geometry.bits)[0])
    if first & 0xFF != geometry.media:
        yield Finding("FAT", f"its first entry does not hold the media {geometry.media:02X}", at)


def _copies(volume: Volume) -> Iterator[Finding]:
    geometry = volume.geometry
    for first, last in volume.table.differing():
        which = f"cluster {first}" if first == last else f"clusters {first} to {last}"
        at = geometry.fat_offset + first * geometry.bits // 8
        yield Finding("FAT", f"the copies differ in {which}", at)


class _Pass:
    """One pass over all directories and chains."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._owned: npt.NDArray[np.bool_] = np.zeros(volume.table.stop, np.bool_)
        # Of each directory but the root: its parent, its name and its first cluster.
        self._above: dict[int, tuple[int, str, int]] = {}

    def findings(self) -> Iterator[Finding]:
        pending = [ROOT]
        while pending:
            below: list[int] = []
            for node in pending:
                yield from self._directory(node, below)
            pending = below
        yield from self._lost()

    def _directory(self, node: int, below: list[int]) -> Iterator[Finding]:
        try:
            raw = self._volume.directory(node)
        except Corrupt as error:
            yield Finding(
                self._path(node), error.message, None if node == ROOT else node * ENTRY_BYTES
            )
            return
        self._owned[raw.clusters] = True
        if node != ROOT:
            yield from self._dots(node, raw)
        listing = decode(raw.slots, raw.ids.tolist())
        for slot, message in listing.problems:
            yield Finding(self._path(node), message, raw.offset_of(slot))
        yield from self._sizes(node, raw)
        yield from self._entries(node, raw, listing, below)

    def _dots(self, node: int, raw: RawDirectory) -> Iterator[Finding]:
        wide = self._volume.geometry.bits == 32
        own, above = dot_clusters(raw.data, wide)
        parent, _, head = self._above[node]
        expected = [0] if parent == ROOT else [self._above[parent][2]]
        if parent == ROOT and self._volume.geometry.root_cluster:
            expected.append(self._volume.geometry.root_cluster)
        if own != head:
            message = f"its own dot entry does not name cluster {head}"
            yield Finding(self._path(node), message, raw.offset_of(0))
        if above not in expected:
            message = f"its dot-dot entry does not name cluster {expected[0]}"
            yield Finding(self._path(node), message, raw.offset_of(1))

    def _sizes(self, node: int, raw: RawDirectory) -> Iterator[Finding]:
        slots = raw.slots
        for slot in slots.entries[slots.directories].tolist():
            if slots.raw["size"][slot]:
                yield Finding(
                    self._path(node), "an entry of a directory has a size", raw.offset_of(slot)
                )

    def _entries(
        self, node: int, raw: RawDirectory, listing: Listing, below: list[int]
    ) -> Iterator[Finding]:
        """Follows the chains of all files, also of those that are not listed."""
        slots = raw.slots
        sizes = slots.raw["size"][slots.entries].tolist()
        for child, head, directory, size in zip(
            raw.ids.tolist(), slots.heads.tolist(), slots.directories.tolist(), sizes, strict=True
        ):
            at = listing.by_id.get(child)
            self._above[child] = (node, "?" if at is None else listing.names[at], head)
            if directory:
                below.append(child)
                continue
            try:
                runs = self._volume.runs(child, head, size).reshape(-1).data
                for first, last in zip(runs[::2], runs[1::2], strict=True):
                    self._owned[first : last + 1] = True
            except Corrupt as error:
                yield Finding(self._path(child), error.message, child * ENTRY_BYTES)
            del self._above[child]

    def _lost(self) -> Iterator[Finding]:
        numbers = self._volume.table.next
        lost = (numbers != FREE) & (numbers != BAD) & ~self._owned
        lost[:FIRST_CLUSTER] = False
        count = int(np.count_nonzero(lost))
        if count:
            first = int(lost.argmax())
            message = f"{count} clusters are in no sound chain, the first is cluster {first}"
            yield Finding("FAT", message, self._volume.geometry.offset_of(first))

    def _path(self, node: int) -> str:
        """The names from the root to the node, cut in front where that is long."""
        path = ""
        while node != ROOT:
            if len(path) > _PATH_CHARS_MAX:
                return f"...{path}"
            node, name, _ = self._above[node]
            path = f"/{name}{path}"
        return path or "/"
