"""What CAPOSST1 workloads begin with, and what there is to see of a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Final
from unittest.mock import patch

from capstore.images import st1, st1_collect, st1_names, st1_shadow, st1_upkeep
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import format_st1, open_st1
from capstore.tools.prove.recording import Clock, Disagreement, entropy
from capstore.tools.prove.st1_model import (
    VERSION,
    Model,
    bound_leaf,
    bound_name,
    object_leaf,
    object_name,
)
from capstore.tools.prove.st1_steps import to_engine, to_model
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.workload import steps

# What every store begins with: a table, and behind it a log that replaces and removes some of it.
START: Final = (
    "put a 300 1; put b 5000 2; hashed 700 3; hashed 300 4; hashed 20 5; bind n h-300-4; put c 100"
    " 6; put e 0 7; compact; put a 301 8; delete c; put d 900 9; sync"
)
# What another store's log has behind the same steps.
_ANOTHER: Final = (
    "put ghost 40 1; sync; put a 5 2; sync; delete b; put b 4 3; sync; put z 9 4; sync"
)
# The region in front of a CAPOSWF1 volume has so many segments; others have it beside what is there
# to begin with.
SMALLEST: Final = 1000
_SEGMENTS: Final = 16
# In how little a step of long work ends, so that there are many.
_STEPS: Final = (
    (st1_shadow, "STEP_ENTRIES", 3),
    (st1_shadow, "STEP_MOVES", 1),
    (st1_collect, "_STEP", 1),
    (st1_upkeep, "_REPLACED_STEP", 1),
)


@contextmanager
def small_steps() -> Iterator[None]:
    """Has compaction and collection take many steps."""
    with ExitStack() as stack:
        for module, name, value in _STEPS:
            stack.enter_context(patch.object(module, name, value))
        yield


def opened(device: BlockDevice, life: int = 0, *, writable: bool = True) -> St1Engine:
    """The engine on a device, with a clock and an entropy that are the same each time."""
    return open_st1(device, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable)


def seen(engine: St1Engine) -> Tree:
    """What the store holds, read through the engine.  Raises `Corrupt`."""
    found: Tree = {VERSION: (engine.version,)}
    for stored, entry in engine.entries(st1.OBJECTS):
        value, stat = engine.read_pair(stored[1:])
        if (stat.size, stat.version) != (len(value), entry.version):
            raise Disagreement("an object is not what is known of it")
        found[object_name(stored[1:])] = object_leaf(value, stat.version)
    for stored, entry in engine.entries(st1.NAMES):
        *above, name = stored[1:].decode().split("/")
        binding = st1_names.resolve(engine, above, name)
        target = binding.hash if binding.hash is not None else binding.reference
        assert target is not None  # noqa: S101 - for whoever reads types
        found[bound_name(stored[1:].decode())] = bound_leaf(target, entry.version)
    return found


@lru_cache(maxsize=8)
def start(room: int, *, over_another: bool = False) -> tuple[bytes, Model]:
    """An image to begin with, and what is in it.

    With `over_another` it was made where another store was, whose log is still there: it has the
    same frames in the same places, and more behind them.
    """
    device, model = MemoryDevice(), Model()
    if over_another:
        engine = _made(device, room, "another")
        for step in steps(f"{START}; {_ANOTHER}"):
            to_engine(engine, step)
    engine = _made(device, room, "life 0")
    for step in steps(START):
        to_model(model, step)
        to_engine(engine, step)
    if seen(engine) != model.tree():
        raise Disagreement("the starting store is not what it should be")
    return device.read(0, device.size()), model


def _made(device: BlockDevice, room: int, life: str) -> St1Engine:
    size = st1.SEGMENTS_AT + (_SEGMENTS + room) * st1.SEGMENT_BYTES_MIN
    if room == SMALLEST:
        size = st1.COMBINED_BLOCKS * BLOCK_BYTES
    format_st1(
        device,
        size=size if room else None,
        segment_bytes=st1.SEGMENT_BYTES_MIN,
        clock=Clock(),
        entropy=entropy(f"format {life}"),
    )
    return open_st1(device, clock=Clock(), entropy=entropy(life))
