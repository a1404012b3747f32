"""A write, resize or flush that fails, at every place where one can.

What must hold: the caller is told (`StorageIOError`, `NoSpace`) and nothing else leaves the engine;
what is to be seen is the tree before the operation or the one behind it; after a failure for which
nobody can say what is on the disk every later change is refused, and reading goes on; when the
volume is opened again, what was acknowledged is there, also if a crash comes with the failure.

Invariants: a place is the workload, a number of operations and a way to fail (`WAYS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice, Mode, RecordingDevice
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_states import sector_states
from capstore.images.wf1_engine import Engine
from capstore.schema.errors import NoSpace, StorageError, StorageIOError
from capstore.tools.prove.examine import Examiner
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.model import Model, Refused
from capstore.tools.prove.recording import (
    Disagreement,
    Moment,
    Recording,
    begin,
    opened,
    record,
    seen,
)
from capstore.tools.prove.workload import (
    DURABLE,
    KEEPING,
    Step,
    Workload,
    steps,
    to_engine,
    to_model,
)


@dataclass(frozen=True, slots=True)
class Way:
    """How an operation of the device fails."""

    name: str
    error: type[StorageIOError | NoSpace]
    torn: bool


WAYS: Final = (
    Way("io", StorageIOError, torn=False),
    Way("io-torn", StorageIOError, torn=True),
    Way("full", NoSpace, torn=False),
    Way("full-torn", NoSpace, torn=True),
)
# What is tried once the device has failed.
_MORE: Final = steps("create z; append z 300 9; sync")


def places(workload: Workload) -> int:
    """How many operations of a device the first part of the workload takes."""
    image, model = begin(workload)
    return len(record(SectorImage(Sectors(), image), model, workload.parts[0]).log)


def count_down(workload: Workload, *, crashes: bool = True, every: int = 1) -> Tally:
    """Fails at every place, or each `every`-th, in every way; with `crashes` in a crash, too."""
    tally, examiner = Tally(workloads=1), Examiner()
    for way in WAYS:
        for place in range(0, places(workload), every):
            for outcome, detail in _failed(examiner, workload, place, way, crashes=crashes):
                tally.shapes["countdown", way.name, "countdown", outcome] += 1
                if detail is not None:
                    name = f"{workload.name} {way.name} {place}"
                    tally.fail(Failure(name, outcome, detail, str(workload)))
    return tally


def _failed(
    examiner: Examiner, workload: Workload, place: int, way: Way, *, crashes: bool
) -> Iterator[tuple[str, str | None]]:
    """Outcomes, each with a detail if it is not as it must be."""
    base, model = begin(workload)
    memory = MemoryDevice(base)
    recorder = RecordingDevice(memory)
    device = CountdownDevice(recorder, place, "any", way.error, torn=way.torn)
    recording = Recording(examiner.image(base), recorder.log, [Moment(0, model, model.tree())])
    try:
        _work(recording, device, model, (*workload.parts[0], *_MORE))
    except Disagreement as error:
        yield "disagreement", str(error)
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        yield "foreign exception", repr(error)
        return
    last = len(recording.moments) - 1
    left = [(examiner.image(memory.view), recording.acks[-1][1], last)]
    if crashes:
        modes = (Mode.LINEAR, Mode.DROPS)
        states = list(sector_states(recording.log, recording.base, modes=modes))[-3:]
        left += [(s.image, recording.promised(s.at), recording.latest(s.at)) for s in states]
    for image, first, last in left:
        verdict = examiner.judged(image, recording.moments, first, last)
        yield verdict.outcome.value, None if verdict.outcome.holds else verdict.detail


def _work(
    recording: Recording, device: CountdownDevice, model: Model, part: tuple[Step, ...]
) -> None:
    try:
        engine = opened(device)
    except (StorageIOError, NoSpace):
        return
    broken = False
    for step in part:
        at = len(recording.log)
        before, after = model, model.copy()
        error = _tried(engine, step)
        refused = _refuses(after, step)
        if broken and not isinstance(error, StorageIOError) and not refused:
            raise Disagreement(f"{step} was answered with {error!r} behind a failure")
        broken = broken or isinstance(error, StorageIOError)
        model = _kept(engine, before, after, step, error, refused=refused)
        tree = model.tree()
        if tree != recording.moments[-1].tree:
            recording.moments.append(Moment(at, model, tree))
        if step.op in DURABLE and error is None:
            recording.acks.append((len(recording.log), len(recording.moments) - 1))


def _kept(
    engine: Engine,
    before: Model,
    after: Model,
    step: Step,
    error: StorageError | None,
    *,
    refused: bool,
) -> Model:
    """The model that goes on: which of the two there is to see.  Raises `Disagreement`."""
    tree = seen(engine)
    if not refused and tree == after.tree():
        return after
    if tree == before.tree() and (error is not None or step.op in KEEPING):
        return before
    raise Disagreement(f"{step} was answered with {error!r}, and the tree is neither")


def _tried(engine: Engine, step: Step) -> StorageError | None:
    try:
        to_engine(engine, step)
    except StorageError as error:
        return error
    return None


def _refuses(model: Model, step: Step) -> bool:
    try:
        to_model(model, step)
    except Refused:
        return True
    return False
