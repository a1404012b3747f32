"""Superblocks in two slots, which alternate by their generation: what both writable formats do.

Invariants: a superblock counts only if it is whole, of the format, and of a version and features
that are known.  The newest one counts also if what it points to is damaged: the older one is not
what was durable.  The slot that is written is never that of the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, Record
from capstore.schema.errors import Corrupt, Unsupported


class _Superblock(Protocol):
    @property
    def generation(self) -> int:
        """How many superblocks were written before, at least."""

    def pack(self) -> bytes:
        """The sealed record."""


S = TypeVar("S", bound=_Superblock)


@dataclass(frozen=True, slots=True)
class Slots:
    """Where superblocks of the format `name` are, and what makes a record one of them."""

    name: str
    record: Record
    magic: int
    version: int
    lbas: Sequence[int]

    def record_at(self, device: BlockDevice, lba: int) -> Any:
        """The sealed record at block `lba`.

        Raises `Corrupt` where there is none, `Unsupported` for a version or feature that is not
        known."""
        offset = lba * BLOCK_BYTES
        where = f"the superblock at offset {offset}"
        if device.size() < offset + BLOCK_BYTES:
            raise Corrupt(f"{where} is cut off")
        raw = self.record.unpack(device.read(offset, BLOCK_BYTES), "the superblock", offset)
        if raw.magic != self.magic:
            raise Corrupt(f"{where} is none of {self.name}")
        if raw.version > self.version or not raw.version:
            raise Unsupported(f"{self.name} version {raw.version} is not known")
        if raw.features:
            raise Unsupported(f"{self.name} features {raw.features:#x} are not known")
        return raw

    def newest(self, device: BlockDevice, at: Callable[[BlockDevice, int], S]) -> S:
        """The superblock of the highest generation, of those that `at` finds at a block.

        Raises `Corrupt` when there is none, and `Unsupported` as `at` does."""
        found: list[S] = []
        errors: list[Corrupt] = []
        for lba in self.lbas:
            try:
                found.append(at(device, lba))
            except Corrupt as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return max(found, key=lambda superblock: superblock.generation)

    def write(self, device: BlockDevice, superblock: _Superblock) -> None:
        """Writes a superblock into its slot; durable with the next flush."""
        lba = self.lbas[superblock.generation % len(self.lbas)]
        device.write(lba * BLOCK_BYTES, superblock.pack().ljust(BLOCK_BYTES, b"\0"))
