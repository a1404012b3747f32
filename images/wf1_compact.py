"""Making a CAPOSWF1 image as small as what is in it, and repairing what a crash leaves.

Invariants: everything here is done by the engine's own operations, so a crash in between loses
nothing; the file is cut where nothing that a durable superblock leads to lies behind.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from capstore.images.device import BlockDevice
from capstore.images.segments import DATA, FREE
from capstore.images.wf1_clean import ROUND_BYTES_MAX, Cleaner
from capstore.images.wf1_engine import Clock, Engine
from capstore.images.wf1_open import open_wf1
from capstore.images.wf1_writer import Entropy

# A checkpoint goes where there is room, and the next one where that was: enough to be in front.
_CHECKPOINTS_MAX: Final = 8


def compact(engine: Engine) -> None:
    """Cleans until nothing is worth it, and cuts an image that grows.

    Raises `NoSpace` where even a checkpoint has no room, and what the device raises.
    """
    engine.checkpoint()
    while engine.upkeep.is_worth_cleaning():
        used = _used(engine)
        _clean(engine)
        if _used(engine) >= used:
            break
    if engine.space.grows:
        _move_to_front(engine)
        cut(engine)


def _clean(engine: Engine, victims: Collection[int] | None = None) -> None:
    """Moves what is live out of the worst segments, or out of `victims`."""
    room = ROUND_BYTES_MAX if engine.space.grows else None
    for _ in Cleaner(engine, room, victims=victims).steps():
        continue
    engine.checkpoint()


def _move_to_front(engine: Engine) -> None:
    """Moves data from the end into what is free in front of it."""
    at_once = max(1, ROUND_BYTES_MAX // engine.geometry.segment_bytes)
    while behind := _data_behind(engine, _used(engine)):
        _clean(engine, behind[-at_once:])
        if len(_data_behind(engine, _used(engine))) >= len(behind):
            return


def _data_behind(engine: Engine, segment: int) -> list[int]:
    uses, is_held = engine.space.use, engine.upkeep.is_held
    return [s for s in range(segment, len(uses)) if uses[s] == DATA and not is_held(s)]


def cut(engine: Engine) -> None:
    """Writes a checkpoint as far in front as there is room, and cuts the image behind it.

    Only an image that grows.  Raises as `compact`.
    """
    lowest = _last_used(engine)
    for _ in range(_CHECKPOINTS_MAX):
        engine.checkpoint()
        last = _last_used(engine)
        if last == lowest:
            break
        lowest = min(last, lowest)
    space = engine.space
    count = _last_used(engine) + 1
    del space.use[count:]
    del space.live[count:]
    space.take_stock()
    engine.device.resize(space.geometry.start(count))
    engine.device.flush()


def _used(engine: Engine) -> int:
    return engine.space.count - engine.space.free


def _last_used(engine: Engine) -> int:
    return max(segment for segment, use in enumerate(engine.space.use) if use != FREE)


def repair(device: BlockDevice, *, clock: Clock, entropy: Entropy) -> None:
    """Removes what a crash left and the crash contract calls lost: a torn tail of the log, and a
    superblock that was being written.

    Raises `Corrupt` and `Unsupported`, with nothing written, for what cannot be opened; `NoSpace`.
    """
    engine = open_wf1(device, clock=clock, entropy=entropy)
    engine.upkeep.reclaim(1)
    engine.checkpoint()
