"""The last step to a FAT image: names and times as they are to be, and a look at all of it.

Invariants: what is written stays inside of entries that are there; afterwards the volume holds
exactly the entries that were planned, with their names, kinds, sizes and times.

Times are in UTC, modified to 2 s and created to 10 ms; those outside of 1980 to 2107 become the
nearest in it, and what has no recorded time gets the earliest.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice
from capstore.images.fat_entries import LONG, SHORT, Raw, decode
from capstore.images.fat_volume import ROOT, RawDirectory, Volume
from capstore.schema.errors import Corrupt
from capstore.schema.nodes import Entry, NodeKind, Provenance

if TYPE_CHECKING:
    from capstore.tools.image.fatbuild import Planned

_SECOND: Final = 10**9
_EARLIEST: Final = int(datetime(1980, 1, 1, tzinfo=UTC).timestamp()) * _SECOND
_LATEST: Final = int(datetime(2107, 12, 31, 23, 59, 58, tzinfo=UTC).timestamp()) * _SECOND
_UNITS_PER_SLOT: Final = 13
_PADDING: Final = b"\xff"
_DOTS: Final = 2


def finish(path: Path, root: Planned) -> None:
    """Puts names and times right in the image at `path`, which was made of `root`.

    Raises `Corrupt` where it is not what was planned, and `StorageIOError`.
    """
    with closing(FileDevice.open(path, fixed=True)) as device:
        for raw, planned in _directories(Volume.open(device), root):
            _finish_directory(device, raw, planned, is_root=planned is root)
        for raw, planned in _directories(Volume.open(device), root, final=True):
            _check_directory(raw, planned)
        device.flush()


def _directories(
    volume: Volume, root: Planned, *, final: bool = False
) -> list[tuple[RawDirectory, Planned]]:
    """Every directory with its plan; `final` says that names are those to be."""
    found = []
    pending = deque([(ROOT, root)])
    while pending:
        node, planned = pending.popleft()
        raw = volume.directory(node)
        found.append((raw, planned))
        plans = _plans(planned, final=final)
        for entry in decode(raw.slots, raw.ids.tolist()).entries:
            if entry.stat.kind is NodeKind.DIRECTORY:
                pending.append((entry.stat.node_id, _plan_of(plans, entry)))
    return found


def _plans(planned: Planned, *, final: bool) -> dict[str, Planned]:
    if final:
        return planned.entries
    return {entry.first_name: entry for entry in planned.entries.values()}


def _plan_of(plans: dict[str, Planned], entry: Entry) -> Planned:
    try:
        return plans[entry.name]
    except KeyError:
        raise Corrupt(f'the image has an entry "{entry.name}" that nobody asked for') from None


def _finish_directory(
    device: BlockDevice, raw: RawDirectory, planned: Planned, *, is_root: bool
) -> None:
    ids = raw.ids.tolist()
    slot_of = dict(zip(ids, raw.slots.entries.tolist(), strict=True))
    if not is_root:
        for slot in range(_DOTS):
            _write_times(device, raw, slot, planned)
    plans = _plans(planned, final=False)
    for entry in decode(raw.slots, ids).entries:
        plan = _plan_of(plans, entry)
        slot = slot_of[entry.stat.node_id]
        _write_times(device, raw, slot, plan)
        if plan.name != plan.first_name:
            _write_name(device, raw, slot, plan.name)


def _write_times(device: BlockDevice, raw: RawDirectory, slot: int, planned: Planned) -> None:
    record = raw.slots.raw[slot : slot + 1].copy()
    facts = planned.facts
    known = facts.provenance is not Provenance.UNKNOWN
    date, time, _ = _fat_time(facts.modified if known else 0)
    record["modified_date"], record["modified_time"], record["accessed_date"] = date, time, date
    born = (0, 0, 0)
    if known and facts.created:
        born = _fat_time(facts.created)
    record["created_date"], record["created_time"], record["created_10ms"] = born
    _write(device, raw, slot, record)


def _fat_time(nanoseconds: int) -> tuple[int, int, int]:
    """Date, time (in units of 2 s) and what is over, in units of 10 ms."""
    bounded = max(_EARLIEST, min(nanoseconds, _LATEST))
    at = datetime.fromtimestamp(bounded // _SECOND, UTC)
    date = (at.year - 1980) << 9 | at.month << 5 | at.day
    time = at.hour << 11 | at.minute << 5 | at.second // 2
    over = at.second % 2 * 100 + bounded % _SECOND // 10_000_000
    return date, time, over


def _write_name(device: BlockDevice, raw: RawDirectory, slot: int, name: str) -> None:
    """Writes `name` over the long name in front of `slot`, which is as long."""
    units = name.encode("utf-16-le")
    count = -(-len(units) // (2 * _UNITS_PER_SLOT))
    room = count * 2 * _UNITS_PER_SLOT
    units = (units + b"\0\0")[:room].ljust(room, _PADDING)
    longs = raw.slots.raw.view(LONG)
    for order in range(1, count + 1):
        piece = np.frombuffer(units, np.uint8)[(order - 1) * 26 : order * 26]
        record = longs[slot - order : slot - order + 1].copy()
        record["first"], record["second"], record["third"] = piece[:10], piece[10:22], piece[22:]
        _write(device, raw, slot - order, record.view(SHORT))


def _write(device: BlockDevice, raw: RawDirectory, slot: int, record: Raw) -> None:
    device.write(raw.offset_of(slot), record.tobytes())


def _check_directory(raw: RawDirectory, planned: Planned) -> None:
    listing = decode(raw.slots, raw.ids.tolist())
    found = {
        entry.name: None if entry.stat.kind is NodeKind.DIRECTORY else entry.stat.size
        for entry in listing.entries
    }
    wanted = {entry.name: entry.size for entry in planned.entries.values()}
    if found != wanted or listing.problems:
        raise Corrupt(f'the directory "{planned.name}" of the image is not what it was to be')
