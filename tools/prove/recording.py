"""What a workload wrote, when it was promised, and what there was to see at each moment.

Invariants: the model goes along with the engine, step by step, and both refuse the same; so what a
crash leaves is compared with what was really there, and a difference without any crash is found
as well.  The same workload gives the same log: clock and entropy are counters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from capstore.images.faults import Flush, Operation, RecordingDevice
from capstore.images.faults_image import SectorImage
from capstore.schema.errors import Corrupt, NoSpace, StorageError, StorageIOError
from capstore.tools.prove.subject import E, M, Refused, Subject, Tree
from capstore.tools.prove.tracing import ImageDevice
from capstore.tools.prove.workload import Step

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


@dataclass(frozen=True, slots=True)
class Moment:
    """What there was to see when the log was `at` operations long, until the next moment; `model`
    is of the subject's own kind."""

    at: int
    model: Any
    tree: Tree


@dataclass(slots=True)
class Recording:
    """What one life of an image wrote onto the image `base`.

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

    def add(self, at: int, model: Any) -> None:
        """Takes down what there is to see, if it is other than before."""
        tree = model.tree()
        if tree != self.moments[-1].tree:
            self.moments.append(Moment(at, model, tree))


def record(
    subject: Subject[E, M], base: SectorImage, model: M, part: Sequence[Step], life: int = 0
) -> Recording:
    """Does the steps on an image that holds `model`; what was written, beginning with opening.

    Raises `Disagreement`, and the `StorageError` of a step that must not fail.
    """
    with subject.settings():
        return _record(subject, base, model, part, life)


def _record(
    subject: Subject[E, M], base: SectorImage, model: M, part: Sequence[Step], life: int
) -> Recording:
    device = RecordingDevice(ImageDevice(base.copy()))
    model = subject.reborn(model)
    recording = Recording(base, device.log, [Moment(0, model, model.tree())])
    engine = subject.opened(device, life)
    follow = subject.follower()
    recording.phases.append((len(device.log), "recovery"))
    lingering = ""
    for step in part:
        at = len(device.log)
        model = _follow(subject, recording, engine, model, step)
        follow(engine, step, recording.moments[-1].tree)
        phase = subject.phase(engine, step)
        if phase in subject.lingering and len(device.log) > at:
            lingering = phase
        recording.phases.append((len(device.log), lingering or phase))
        if any(isinstance(operation, Flush) for operation in device.log[at:]):
            lingering = ""
    return recording


def _follow(subject: Subject[E, M], recording: Recording, engine: E, model: M, step: Step) -> M:
    after: M = model.copy()
    at = len(recording.log)
    error, between = attempt(subject, engine, after, step)
    tree = subject.seen(engine)
    if error is not None:
        after = model
    if isinstance(error, NoSpace):
        # A step of several things may have done some of them.
        done = next((n for n, moment in enumerate(between, 1) if moment.tree() == tree), 0)
        between = between[:done]
        after = (between[-1] if between else model).copy()
        subject.gave_up(after, step)
    if tree != after.tree():
        raise Disagreement(f"after {step} there is something else to see than there should be")
    for moment in (*between, after):
        recording.add(at, moment)
    if step.op in subject.durable and error is None:
        recording.acks.append((len(recording.log), len(recording.moments) - 1))
    return after


def attempt(
    subject: Subject[E, M], engine: E, model: M, step: Step
) -> tuple[StorageError | None, Sequence[M]]:
    """Does a step on both; the error if the engine had no room, or both refused, and what there
    was in between.

    Raises `Disagreement` if one of them only refused."""
    error: StorageError | None = None
    try:
        subject.to_engine(engine, step)
    except _FAULTS:
        raise
    except StorageError as refused:
        error = refused
    try:
        between = subject.to_model(model, step)
    except Refused:
        if error is None:
            raise Disagreement(f"{step} was done, and cannot be") from None
        return error, ()
    if error is not None and not isinstance(error, NoSpace):
        raise Disagreement(f"{step} was refused: {error}") from error
    return error, between
