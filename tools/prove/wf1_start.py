"""What CAPOSWF1 workloads begin with, and what there is to see of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_state import State
from capstore.schema.errors import Corrupt
from capstore.tools.prove.recording import Clock, Disagreement, entropy
from capstore.tools.prove.subject import Leaf, Tree
from capstore.tools.prove.wf1_model import Model
from capstore.tools.prove.wf1_steps import to_engine, to_model
from capstore.tools.prove.workload import steps

_NAMES_MAX: Final = 1000
# What every volume begins with; the checkpoint behind it puts it into tables.
START: Final = (
    "mkdir d; mkdir e; create a; append a 1000 1; create d/a; append d/a 600 2; chmod d/a 1;"
    " symlink s a; checkpoint; truncate d/a 500; sync"
)
# What another volume's log has behind the same steps.
_ANOTHER: Final = "create ghost; sync; create d/ghost; append d/ghost 600 3; sync; remove a; sync"


def opened(device: BlockDevice, life: int = 0, *, writable: bool = True) -> Engine:
    """The engine on a device, with a clock and an entropy that are the same each time."""
    return open_wf1(device, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable)


def seen(engine: Engine, state: State | None = None) -> Tree:
    """What the volume holds, read through the engine.  Raises `Corrupt`."""
    found: dict[str, int] = {}
    state = state or engine.state
    _walk(state, wf1.ROOT, "", found)
    names: dict[int, list[str]] = {}
    for path, number in found.items():
        names.setdefault(number, []).append(path)
    leaves = {number: _leaf(engine, state, number, mine) for number, mine in names.items()}
    return {path: leaves[number] for path, number in found.items()}


def _walk(state: State, directory: int, above: str, found: dict[str, int]) -> None:
    for name, number in state.list_names(directory, "", _NAMES_MAX):
        found[above + name] = number
        node = state.node(number)
        if node is not None and node.is_directory:
            _walk(state, number, f"{above}{name}/", found)


def _leaf(engine: Engine, state: State, number: int, names: Sequence[str]) -> Leaf:
    node = state.node(number)
    if node is None:
        raise Corrupt(f"{names[0]} stands for a node that is not there")
    if node.is_directory:
        return ("d",)
    # The count that the node has, not that of its names: they have to be the same.
    if node.kind == wf1.SYMLINK:
        return ("l", node.target, False, node.links, min(names))
    buffer = bytearray(node.size)
    engine.read_into(state, number, 0, memoryview(buffer))
    return ("f", bytes(buffer), bool(node.flags & wf1.EXECUTABLE), node.links, min(names))


@lru_cache(maxsize=8)
def start(spare_segments: int, *, over_another: bool = False) -> tuple[bytes, Model]:
    """An image to begin with, and what is in it.

    With `over_another` it was made where another volume was, whose log is still there: it has the
    same frames in the same places, and more behind them.
    """
    device, model = MemoryDevice(), Model()
    if over_another:
        engine = _made(device, spare_segments, "another")
        for step in steps(f"{START}; {_ANOTHER}"):
            to_engine(engine, step)
    engine = _made(device, spare_segments, "life 0")
    for step in steps(START):
        to_model(model, step)
        to_engine(engine, step)
    if seen(engine) != model.tree():
        raise Disagreement("the starting tree is not what it should be")
    return device.read(0, device.size()), model


def _made(device: BlockDevice, spare_segments: int, life: str) -> Engine:
    size = wf1.SEGMENTS_AT + (wf1.SEGMENTS_MIN + spare_segments) * wf1.SEGMENT_BYTES_MIN
    format_wf1(
        device,
        size=size if spare_segments else None,
        segment_bytes=wf1.SEGMENT_BYTES_MIN,
        clock=Clock(),
        entropy=entropy(f"format {life}"),
    )
    return open_wf1(device, clock=Clock(), entropy=entropy(life))
