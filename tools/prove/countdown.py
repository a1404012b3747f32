"""A write, resize or flush that fails, at every place where one can.

What must hold: the caller is told (`StorageIOError`, `NoSpace`) and nothing else leaves the engine;
what is to be seen is what there was before the operation or behind it; after a failure for which
nobody can say what is on the disk every later change is refused, and reading goes on; when the
image is opened again, what was acknowledged is there, also if a crash comes with the failure.

Invariants: a place is the workload, a number of operations and a way to fail (`WAYS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice, Mode, RecordingDevice
from capstore.images.faults_states import sector_states
from capstore.schema.errors import NoSpace, StorageError, StorageIOError
from capstore.tools.prove.examine import Examiner
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.recording import Disagreement, Moment, Recording
from capstore.tools.prove.subject import AnySubject, Refused, Tree
from capstore.tools.prove.workload import Step, Workload

# More than any workload takes.
_NEVER: Final = 1 << 60


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


def places(subject: AnySubject, workload: Workload) -> int:
    """How many operations that can fail the workload's first part takes."""
    base, _ = subject.begin(workload)
    device = CountdownDevice(MemoryDevice(base), _NEVER)
    with subject.settings():
        engine = subject.opened(device)
        for step in workload.parts[0]:
            _tried(subject, engine, step)
    return device.counted


def count_down(
    subject: AnySubject, workload: Workload, *, crashes: bool = True, every: int = 1
) -> Tally:
    """Fails at every place, or each `every`-th, in every way; with `crashes` in a crash, too."""
    tally, examiner = Tally(workloads=1), subject.examiner()
    for way in WAYS:
        for place in range(0, places(subject, workload), every):
            run = _Run(subject, examiner, workload, place, way)
            for outcome, detail in run.outcomes(crashes=crashes):
                tally.shapes["countdown", way.name, "countdown", outcome] += 1
                if detail is not None:
                    name = f"{workload.name} {way.name} {place}"
                    tally.fail(Failure(name, outcome, detail, str(workload)))
    return tally


class _Run:
    """A workload whose device fails at `place`."""

    def __init__(
        self,
        subject: AnySubject,
        examiner: Examiner[Any],
        workload: Workload,
        place: int,
        way: Way,
    ) -> None:
        base, self._model = subject.begin(workload)
        self._subject = subject
        self._examiner = examiner
        self._part = (*workload.parts[0], *subject.more)
        self._memory = MemoryDevice(base)
        recorder = RecordingDevice(self._memory)
        self._device = CountdownDevice(recorder, place, "any", way.error, torn=way.torn)
        first = Moment(0, self._model, self._model.tree())
        self._recording = Recording(examiner.image(base), recorder.log, [first])
        # What there is if a step that failed was done all the same; nothing comes behind it.
        self._unsure: Any = None

    def outcomes(self, *, crashes: bool) -> Iterator[tuple[str, str | None]]:
        """Outcomes, each with a detail if it is not as it must be."""
        recording = self._recording
        try:
            with self._subject.settings():
                self._work()
        except Disagreement as error:
            yield "disagreement", str(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            yield "foreign exception", repr(error)
            return
        if self._unsure is not None:
            recording.add(len(recording.log), self._unsure)
        last = len(recording.moments) - 1
        left = [(self._examiner.image(self._memory.view), recording.acks[-1][1], last)]
        if crashes:
            modes = (Mode.LINEAR, Mode.DROPS)
            states = list(sector_states(recording.log, recording.base, modes=modes))[-3:]
            left += [(s.image, recording.promised(s.at), recording.latest(s.at)) for s in states]
        for image, first, last in left:
            verdict = self._examiner.judged(image, recording.moments, first, last)
            yield verdict.outcome.value, None if verdict.outcome.holds else verdict.detail

    def _work(self) -> None:
        subject, recording = self._subject, self._recording
        try:
            engine = subject.opened(self._device)
        except (StorageIOError, NoSpace):
            return
        broken = False
        for step in self._part:
            at = len(recording.log)
            error = _tried(subject, engine, step)
            refused = self._done(engine, at, step, error)
            is_told = isinstance(error, StorageIOError) or step.op in subject.lazy
            if broken and not is_told and not refused:
                raise Disagreement(f"{step} was answered with {error!r} behind a failure")
            broken = broken or isinstance(error, StorageIOError)
            if step.op in subject.durable and error is None:
                recording.acks.append((len(recording.log), len(recording.moments) - 1))

    def _done(self, engine: Any, at: int, step: Step, error: StorageError | None) -> bool:
        """Has the model follow; whether it refused.  Raises `Disagreement`."""
        subject, before, after = self._subject, self._model, self._model.copy()
        try:
            between = subject.to_model(after, step)
            refused = False
        except Refused:
            between, refused = (), True
        tree = self._without_aside(subject.seen(engine))
        possible = [] if refused else [*between, after]
        trees = [self._without_aside(model.tree()) for model in possible]
        # The last that it may be.
        done = len(trees) - trees[::-1].index(tree) if tree in trees else 0
        whole = done == len(possible) and not refused
        unchanged = tree == self._without_aside(before.tree())
        if unchanged and (error is not None or (step.op in subject.keeping and not whole)):
            done, self._model = 0, before.copy()
            subject.gave_up(self._model, step)
            if possible and step.op in subject.unsure and error is not None:
                self._unsure = after
        elif done and (whole or error is not None):
            self._model = possible[done - 1]
        else:
            raise Disagreement(f"{step} was answered with {error!r}, and there is neither to see")
        for model in possible[:done]:
            self._recording.add(at, model)
        return refused

    def _without_aside(self, tree: Tree) -> Tree:
        # An engine that failed in the middle may count on from where it was.
        return {name: leaf for name, leaf in tree.items() if name not in self._subject.aside}


def _tried(subject: AnySubject, engine: Any, step: Step) -> StorageError | None:
    try:
        subject.to_engine(engine, step)
    except StorageError as error:
        return error
    return None
