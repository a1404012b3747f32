"""Making a CAPOSST1 image as small as what is in it, and repairing what a crash leaves.

Invariants: everything here is done by the engine's own operations, so a crash in between loses
nothing; the file is cut where nothing that a durable superblock leads to lies behind.
"""

from __future__ import annotations

from typing import Final

from capstore.images.device import BlockDevice
from capstore.images.segments import FREE
from capstore.images.st1_engine import Clock, St1Engine
from capstore.images.st1_open import open_st1
from capstore.images.st1_writer import Entropy

# A table goes where there is room, and the next one where that was: enough to be in front.
_ROUNDS_MAX: Final = 8


def compact(engine: St1Engine) -> None:
    """Compacts until nothing more can be had, and moves what is at the end of a store that grows
    to where there is room in front of it.

    Raises `NoSpace` where even a table has no room, `Corrupt`, and what the device raises.
    """
    engine.compact()
    if not engine.space.grows:
        return
    for _ in range(_ROUNDS_MAX):
        used = _used(engine)
        if engine.space.count <= used:
            return
        engine.upkeep.move_behind(used)


def _used(engine: St1Engine) -> int:
    return sum(use != FREE for use in engine.space.use)


def repair(device: BlockDevice, *, clock: Clock, entropy: Entropy) -> None:
    """Removes what a crash left and the crash contract calls lost: a torn tail of the log, and a
    superblock that was being written.

    Raises `Corrupt` and `Unsupported`, with nothing written, for what cannot be opened; `NoSpace`.
    """
    engine = open_st1(device, clock=clock, entropy=entropy)
    engine.upkeep.begin_generation()
    engine.sync()
