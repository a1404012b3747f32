"""FAT: the entries of one directory, decoded together.

Invariants: an entry is what is in front of the end mark, not deleted, no part of a long name, no
volume label and no dot entry.  Damage in one entry costs its own name or time and no other entry.

Times have no zone and are taken for UTC: `created` in units of 10 ms, `modified` of 2 s, from 1980
to 2107.  A date that is none is not recorded; without a modification time nothing is.

Source: fatgen103, "FAT Directory Structure".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images.fat_boot import ENTRY_BYTES
from capstore.images.fat_names import folded, is_name, long_name, short_name
from capstore.schema.nodes import Entry, NodeKind, Provenance, Stat

SHORT: Final = np.dtype(
    [
        ("name", "u1", (11,)),
        ("attributes", "u1"),
        ("case", "u1"),
        ("created_10ms", "u1"),
        ("created_time", "<u2"),
        ("created_date", "<u2"),
        ("accessed_date", "<u2"),
        ("cluster_high", "<u2"),
        ("modified_time", "<u2"),
        ("modified_date", "<u2"),
        ("cluster_low", "<u2"),
        ("size", "<u4"),
    ]
)
LONG: Final = np.dtype(
    [
        ("order", "u1"),
        ("first", "u1", (10,)),
        ("attributes", "u1"),
        ("type", "u1"),
        ("checksum", "u1"),
        ("second", "u1", (12,)),
        ("cluster_low", "<u2"),
        ("third", "u1", (4,)),
    ]
)
ATTRIBUTE_VOLUME: Final = 0x08
ATTRIBUTE_DIRECTORY: Final = 0x10
_ATTRIBUTES_LONG: Final = 0x0F
_ATTRIBUTES: Final = 0x3F
_DELETED: Final = 0xE5
_LAST: Final = 0x40
_ORDER_MAX: Final = 20
_UNITS_BYTES: Final = 26
_DOT: Final = b".          "
_DOT_DOT: Final = b"..         "
_VERSION: Final = 1
_MS_10: Final = 10_000_000
_SECOND: Final = 1_000_000_000

Rows = npt.NDArray[np.int64]
Raw = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Slots:
    """A directory's slots up to its end mark, and which of them (`entries`) are entries."""

    raw: Raw
    entries: Rows
    heads: npt.NDArray[np.uint32]
    directories: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Listing:
    """A directory: its `entries` in the order of their names, and where to find them.

    `names` are the entries' names; `by_name` has folded names, long ones and short ones, `by_id`
    node ids; both give the position in `entries`.  `heads` has each entry's first cluster.
    `problems` are pairs (slot, what is wrong with it).
    """

    entries: list[Entry]
    names: list[str]
    by_name: dict[str, int]
    by_id: dict[int, int]
    heads: list[int]
    problems: list[tuple[int, str]] = field(default_factory=list)


def scan(data: bytes, wide: bool) -> Slots:
    """Finds the entries among a directory's bytes; `wide` says that clusters have 32 bits."""
    raw = np.frombuffer(data, SHORT, len(data) // ENTRY_BYTES)
    first = raw["name"][:, 0]
    end = np.flatnonzero(first == 0)
    if len(end):
        raw, first = raw[: end[0]], first[: end[0]]
    attributes = raw["attributes"]
    shown = (first != _DELETED) & ((attributes & ATTRIBUTE_VOLUME) == 0)
    for at in np.flatnonzero(shown & (first == _DOT[0])):
        if raw["name"][at].tobytes() in (_DOT, _DOT_DOT):
            shown[at] = False
    entries = np.flatnonzero(shown)
    heads = raw["cluster_low"][entries].astype(np.uint32)
    if wide:
        heads |= raw["cluster_high"][entries].astype(np.uint32) << 16
    directories = (attributes[entries] & ATTRIBUTE_DIRECTORY) != 0
    return Slots(raw, entries, heads, directories)


def has_dots(data: bytes) -> bool:
    """Whether this can be a directory other than the root: `.` is its first entry, or `..` its
    second (one of both may be damaged)."""
    return data[: len(_DOT)] == _DOT or data[ENTRY_BYTES:].startswith(_DOT_DOT)


def dot_clusters(data: bytes, wide: bool) -> tuple[int | None, int | None]:
    """The clusters that `.` and `..` name; None for one that is not there."""
    raw = np.frombuffer(data, SHORT, 2)
    found: list[int | None] = []
    for row, name in zip(raw, (_DOT, _DOT_DOT), strict=True):
        high = int(row["cluster_high"]) << 16 if wide else 0
        sound = row["name"].tobytes() == name and row["attributes"] & ATTRIBUTE_DIRECTORY
        found.append(high | int(row["cluster_low"]) if sound else None)
    return found[0], found[1]


def volume_label(slots: Slots) -> bytes | None:
    """The eleven bytes of the label among a root directory's slots."""
    first, attributes = slots.raw["name"][:, 0], slots.raw["attributes"]
    kind = attributes & (ATTRIBUTE_VOLUME | ATTRIBUTE_DIRECTORY)
    found = (first != _DELETED) & (kind == ATTRIBUTE_VOLUME)
    found &= (attributes & _ATTRIBUTES) != _ATTRIBUTES_LONG
    rows = np.flatnonzero(found)
    return slots.raw["name"][rows[0]].tobytes() if len(rows) else None


def decode(slots: Slots, ids: list[int]) -> Listing:
    """The listing of a directory whose entries have the node ids `ids`."""
    problems: list[tuple[int, str]] = []
    shorts = _short_names(slots)
    longs = _long_names(slots, problems)
    stats = _stats(slots, ids)
    chosen: dict[str, int] = {}
    names: list[str] = []
    for index, (short, long) in enumerate(zip(shorts, longs, strict=True)):
        name = short if long is None else long
        names.append(name)
        slot = slots.entries[index]
        if long is None and not is_name(name):
            problems.append((int(slot), "the entry has no valid name"))
        elif chosen.setdefault(folded(name), index) != index:
            problems.append((int(slot), f"the directory has another entry {name!r}"))
    order = sorted(chosen.values(), key=names.__getitem__)
    position = {index: at for at, index in enumerate(order)}
    by_name = {key: position[index] for key, index in chosen.items()}
    heads = slots.heads.tolist()
    for index in sorted(order):
        at = by_name.setdefault(folded(shorts[index]), position[index])
        if at != position[index]:
            problems.append((int(slots.entries[index]), "another entry has the same short name"))
    return Listing(
        entries=[Entry(names[index], stats[index]) for index in order],
        names=[names[index] for index in order],
        by_name=by_name,
        by_id={ids[index]: at for at, index in enumerate(order)},
        heads=[heads[index] for index in order],
        problems=problems,
    )


def _short_names(slots: Slots) -> list[str]:
    raw = slots.raw[slots.entries]
    packed = raw["name"].tobytes()
    return [
        short_name(packed[at * 11 : at * 11 + 11], case)
        for at, case in enumerate(raw["case"].tolist())
    ]


def _long_names(slots: Slots, problems: list[tuple[int, str]]) -> list[str | None]:
    """For each entry its long name, or None; notes long entries that belong to no entry."""
    raw = slots.raw.view(LONG)
    count = len(raw)
    is_long = (raw["order"] != _DELETED) & ((raw["attributes"] & _ATTRIBUTES) == _ATTRIBUTES_LONG)
    order = raw["order"] & ~np.uint8(_LAST)
    owners = np.arange(count) + order
    is_entry = np.zeros(count, np.bool_)
    is_entry[slots.entries] = True
    sums = np.zeros(count, np.uint8)
    sums[slots.entries] = _checksums(slots.raw["name"][slots.entries])
    sound = is_long & (order >= 1) & (order <= _ORDER_MAX) & (owners < count)
    owners[~sound] = 0
    sound &= is_entry[owners] & (sums[owners] == raw["checksum"]) & (raw["type"] == 0)
    owners[~sound] = -1
    owner_of, last = owners.tolist(), ((raw["order"] & _LAST) != 0).tolist()
    # Backwards, so that the pieces of a name are in the order of its characters.
    units = np.concatenate([raw["first"], raw["second"], raw["third"]], axis=1)[::-1].tobytes()
    names: list[str | None] = []
    used = np.zeros(count, np.bool_)
    for slot in slots.entries.tolist():
        pieces = _pieces(slot, owner_of, last)
        start = (count - slot) * _UNITS_BYTES
        name = long_name(units[start : start + pieces * _UNITS_BYTES]) if pieces else None
        names.append(name)
        used[slot - pieces : slot] = True
        if pieces and name is None:
            problems.append((slot, "the long name is no name"))
    orphans = np.flatnonzero(is_long & ~used).tolist()
    problems.extend((slot, "a long entry belongs to no short entry") for slot in orphans)
    return names


def _pieces(slot: int, owner_of: list[int], last: list[bool]) -> int:
    """How many slots in front of `slot` are its whole long name; 0 for none."""
    at = slot - 1
    while at >= 0 and owner_of[at] == slot:
        if last[at]:
            return slot - at
        at -= 1
    return 0


def _checksums(names: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The checksum of each row of eleven bytes that its long entries carry."""
    total = np.zeros(len(names), np.uint8)
    for column in range(names.shape[1]):
        total = (total >> 1) + ((total & 1) << 7) + names[:, column]
    return total


def _stats(slots: Slots, ids: list[int]) -> list[Stat]:
    raw = slots.raw[slots.entries]
    both, sound = _times(
        np.stack([raw["modified_date"], raw["created_date"]]),
        np.stack([raw["modified_time"], raw["created_time"]]),
    )
    (modified, created), (known, created_known) = both, sound
    fine = raw["created_10ms"].astype(np.int64)
    created += np.where(created_known & (fine < 200), fine * _MS_10, 0)
    created[~known] = 0
    sizes = np.where(slots.directories, 0, raw["size"])
    return [
        Stat(
            NodeKind.DIRECTORY if directory else NodeKind.FILE,
            size,
            node,
            _VERSION,
            born,
            changed,
            Provenance.FAT_DIRECTORY_ENTRY if timed else Provenance.UNKNOWN,
        )
        for directory, size, node, born, changed, timed in zip(
            slots.directories.tolist(),
            sizes.tolist(),
            ids,
            created.tolist(),
            modified.tolist(),
            known.tolist(),
            strict=True,
        )
    ]


def _times(
    dates: npt.NDArray[np.uint16], times: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Dates and times as ns since 1970, and which of them are dates and times; 0 for the others."""
    date, time = dates.astype(np.int64), times.astype(np.int64)
    year, month, day = 1980 + (date >> 9), (date >> 5) & 0x0F, date & 0x1F
    hour, minute, pair = time >> 11, (time >> 5) & 0x3F, time & 0x1F
    known = (month >= 1) & (month <= 12) & (hour < 24) & (minute < 60) & (pair < 30)
    months = np.where(known, (year - 1970) * 12 + month - 1, 0)
    starts = _month_starts(months)
    known &= (day >= 1) & (day <= _month_starts(months + 1) - starts)
    seconds = ((starts + day - 1) * 24 + hour) * 3600 + minute * 60 + pair * 2
    return np.where(known, seconds * _SECOND, 0), known


def _month_starts(months: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The day, counted from 1970, on which months counted from January 1970 begin."""
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
