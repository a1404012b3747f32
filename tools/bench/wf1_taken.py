"""What a batch of a wf1 case comes to, and how its time is taken.

Invariants: what a batch prepares and cleans up takes no part in its time; the disk has nothing
left to write of anybody else when the time begins.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass(frozen=True, slots=True)
class Taken:
    """So many units in so many seconds; `details` are what else was measured, with its unit."""

    units: int
    seconds: float
    details: Mapping[str, float] = field(default_factory=dict)


# Does one batch with these choices, in a directory that is new and gone behind it.
Batch = Callable[[Random, Path], Taken]


def timed(work: Callable[[], int]) -> Taken:
    """What `work` takes; it answers how many units it did."""
    gc.collect()
    os.sync()
    began = time.perf_counter()
    units = work()
    return Taken(units, time.perf_counter() - began)
