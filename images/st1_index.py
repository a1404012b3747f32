"""The hash index of a CAPOSST1 table: from the checksum of a key to the row of its entry.

Invariants:

* A slot holds 0 or a row + 1.  Slots are in partitions of `PARTITION_SLOTS`; a key is in the one
  that the checksum's bits above choose, at the slot that its lowest bits say or, with linear
  probing, behind that, around the partition's end.
* Whoever finds an empty slot knows that the key is not there.  Whoever finds `PROBES_MAX` others
  does not know: keys with so many of the same checksum are looked for in the order of rows.

So a table that somebody filled with keys of one checksum is slower, and neither wrong nor stuck.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

SLOT_BYTES: Final = 4
PARTITION_SLOTS: Final = 1 << 16
PROBES_MAX: Final = 256
_SLOTS_MIN: Final = 8


def slots_for(entries: int) -> int:
    """How many slots there are for so many entries: at most half of them are taken."""
    return max(_SLOTS_MIN, 1 << (2 * entries - 1).bit_length()) if entries else 0


class IndexBuilder:
    """Builds the slots for `entries` entries, a partition at a time."""

    def __init__(self, entries: int) -> None:
        self.slots = slots_for(entries)
        self.partition_slots = min(self.slots, PARTITION_SLOTS)
        count = self.slots // self.partition_slots if self.slots else 0
        self._rows: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(count)]

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return len(self._rows)

    def add(self, first: int, sums: npt.NDArray[np.uint32]) -> None:
        """Adds the rows from `first` on, with the checksums of their keys."""
        pairs = np.empty((len(sums), 2), dtype=np.int64)
        pairs[:, 0] = sums & np.uint32(self.slots - 1)
        pairs[:, 1] = np.arange(first + 1, first + 1 + len(sums))
        if len(self._rows) == 1:
            self._rows[0].append(pairs)
            return
        number = pairs[:, 0] // self.partition_slots
        order = np.argsort(number, kind="stable")
        ends = np.searchsorted(number[order], np.arange(len(self._rows) + 1))
        ordered, bounds = pairs[order], ends.tolist()
        for partition, rows in enumerate(self._rows):
            if bounds[partition] < bounds[partition + 1]:
                rows.append(ordered[bounds[partition] : bounds[partition + 1]])

    def partition(self, number: int) -> bytes:
        """The slots of a partition; it is forgotten behind this."""
        slots = np.zeros(self.partition_slots, dtype="<u4")
        rows, self._rows[number] = self._rows[number], []
        if not rows:
            return slots.tobytes()
        pairs = np.concatenate(rows)
        homes = pairs[:, 0] % self.partition_slots
        order = np.argsort(homes, kind="stable")
        homes, values = homes[order], pairs[order, 1]
        counting = np.arange(len(homes))
        # Where each goes if those with lesser homes went before it, and nothing comes around.
        places = np.maximum.accumulate(homes - counting) + counting
        plain = (places < self.partition_slots) & (places - homes < PROBES_MAX)
        if plain.all():
            slots[places] = values
            return slots.tobytes()
        return _probed(slots, homes.tolist(), values.tolist())


def _probed(slots: npt.NDArray[np.uint32], homes: list[int], values: list[int]) -> bytes:
    """The slots, one entry at a time."""
    size = len(slots)
    found = slots.tolist()
    # Behind so many that share their home there is no room: the others need not look for it.
    full: dict[int, int] = {}
    for home, value in zip(homes, values, strict=True):
        if full.get(home, 0) >= PROBES_MAX:
            continue
        for step in range(full.get(home, 0), min(PROBES_MAX, size)):
            slot = (home + step) % size
            if not found[slot]:
                found[slot] = value
                full[home] = step + 1
                break
        else:
            full[home] = PROBES_MAX
    return np.array(found, dtype="<u4").tobytes()
