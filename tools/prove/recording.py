"""What a workload wrote, when it was promised, and what there was to see at each moment.

Invariants: the model goes along with the engine, step by step, and both refuse the same; so what a
crash leaves is compared with what was really there, and a difference without any crash is found
as well.  The same workload gives the same log: clock and entropy are counters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Final

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.faults import Flush, Operation, RecordingDevice
from capstore.images.faults_image import SectorImage
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_state import State
from capstore.schema.errors import Corrupt, NoSpace, StorageError, StorageIOError
from capstore.tools.prove.model import Leaf, Model, Refused, Tree
from capstore.tools.prove.tracing import ImageDevice
from capstore.tools.prove.workload import DURABLE, Step, Workload, held, steps, to_engine, to_model

_NAMES_MAX: Final = 1000
# What every volume begins with; the checkpoint behind it puts it into tables.
START: Final = (
    "mkdir d; mkdir e; create a; append a 1000 1; create d/a; append d/a 600 2; chmod d/a 1;"
    " symlink s a; checkpoint; truncate d/a 500; sync"
)
# What another volume's log has behind the same steps.
_ANOTHER: Final = "create ghost; sync; create d/ghost; append d/ghost 600 3; sync; remove a; sync"
# Of what a step that fails may be a sign, beside a refusal.
_FAULTS: Final = (Corrupt, StorageIOError)


class Disagreement(AssertionError):
    """Engine and model did not do the same, without a crash."""


class Clock:
    """Nanoseconds that go on by one each time."""

    def __init__(self) -> None:
        self._now = 10**18

    def __call__(self) -> int:
        self._now += 1
        return self._now


def entropy(seed: str) -> Callable[[int], bytes]:
    """What stands for random bytes."""
    return Random(seed).randbytes  # noqa: S311 - the same each time


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


@dataclass(frozen=True, slots=True)
class Moment:
    """What there was to see when the log was `at` operations long, until the next moment."""

    at: int
    model: Model
    tree: Tree


@dataclass(slots=True)
class Recording:
    """What one life of a volume wrote onto the image `base`.

    `acks` are pairs of how long the log was and which moment was durable then.  `phases` are the
    ends of steps in the log, with what was done.
    """

    base: SectorImage
    log: Sequence[Operation]
    moments: list[Moment]
    acks: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    phases: list[tuple[int, str]] = field(default_factory=list)

    def promised(self, at: int) -> int:
        """The moment that has to be there, or a later one, when the log was so long."""
        return max(moment for length, moment in self.acks if length <= at)

    def latest(self, at: int) -> int:
        """The last moment there had been when the log was so long."""
        return max(n for n, moment in enumerate(self.moments) if moment.at <= at)

    def marks(self, first: int, last: int) -> tuple[int, ...]:
        """Equal for equal trees of these moments, within this process."""
        trees = [moment.tree for moment in self.moments[first : last + 1]]
        return tuple(hash(frozenset(tree.items())) for tree in trees)

    def phase(self, at: int) -> str:
        """What was being done."""
        for end, phase in self.phases:
            if at < end:
                return phase
        return "operation"


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


def begin(workload: Workload) -> tuple[bytes, Model]:
    """What a workload begins with."""
    return start(workload.spare_segments, over_another=workload.over_another)


def record(base: SectorImage, model: Model, part: Sequence[Step], life: int = 0) -> Recording:
    """Does the steps on a volume whose tree is `model`; what was written, beginning with opening.

    Raises `Disagreement`, and the `StorageError` of a step that must not fail.
    """
    device = RecordingDevice(ImageDevice(base.copy()))
    model = model.copy()
    recording = Recording(base, device.log, [Moment(0, model, model.tree())])
    engine = opened(device, life)
    recording.phases.append((len(device.log), "recovery"))
    cleaned = False
    # What there was to see when the snapshots were taken that are held.
    moments: list[Tree] = []
    for step in part:
        at = len(device.log)
        model = _follow(recording, engine, model, step)
        if step.op == "snapshot":
            moments.append(recording.moments[-1].tree)
        elif step.op == "drop":
            moments.clear()
        _check_snapshots(engine, moments, step)
        # What cleaning writes is in danger until the next flush, which is another step's.
        cleaned = cleaned or (step.op == "clean" and len(device.log) > at)
        phase = "checkpoint" if step.op == "checkpoint" else "operation"
        recording.phases.append((len(device.log), "cleaning" if cleaned else phase))
        cleaned = cleaned and not any(isinstance(o, Flush) for o in device.log[at:])
    return recording


def _follow(recording: Recording, engine: Engine, model: Model, step: Step) -> Model:
    after = model.copy()
    at = len(recording.log)
    outcome = attempt(engine, after, step)
    if outcome is not None:
        after = model
    tree = after.tree()
    if seen(engine) != tree:
        raise Disagreement(f"after {step} the tree is not what it should be")
    if tree != recording.moments[-1].tree:
        recording.moments.append(Moment(at, after, tree))
    if step.op in DURABLE and outcome is None:
        recording.acks.append((len(recording.log), len(recording.moments) - 1))
    return after


def _check_snapshots(engine: Engine, moments: Sequence[Tree], step: Step) -> None:
    """What is held shows what it showed when it was taken."""
    for snapshot, tree in zip(held(engine).snapshots, moments, strict=True):
        if seen(engine, snapshot.state) != tree:
            raise Disagreement(f"after {step} a snapshot is not what it was")


def attempt(engine: Engine, model: Model, step: Step) -> StorageError | None:
    """Does a step on both; the error if the engine had no room, or both refused.

    Raises `Disagreement` if one of them only refused."""
    error: StorageError | None = None
    try:
        to_engine(engine, step)
    except _FAULTS:
        raise
    except StorageError as refused:
        error = refused
    if isinstance(error, NoSpace):
        return error
    try:
        to_model(model, step)
    except Refused:
        if error is None:
            raise Disagreement(f"{step} was done, and cannot be") from None
        return error
    if error is not None:
        raise Disagreement(f"{step} was refused: {error}") from error
    return None
