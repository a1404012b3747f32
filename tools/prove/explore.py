"""Going through the states that crashes leave of a workload, one after the other.

Invariants: a state is chosen and examined by the workload, the search and its own place alone.
After a crash the workload goes on with its next part, or with opening the image and a few
operations (`Subject.after`), so that crashes during recovery are gone through as well.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from capstore.images.faults import Flush, Mode, replay
from capstore.images.faults_image import SectorImage
from capstore.images.faults_states import SectorState, sector_states
from capstore.schema.errors import InvalidArgument, StorageError
from capstore.tools.prove.examine import Outcome, Verdict
from capstore.tools.prove.recording import Disagreement, Recording, record
from capstore.tools.prove.subject import AnySubject
from capstore.tools.prove.workload import Step, Workload

_FAILURES_KEPT_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Search:
    """Which states: see `capstore.images.faults_states`.

    `nested_max` of the states of a part, chosen by chance, are gone on with, each `depth_max` times
    in a row, or as often as the workload has parts.
    """

    name: str
    modes: tuple[Mode, ...]
    subset_changes_max: int = 6
    samples: int = 12
    seed: int = 0
    nested_max: int = 1
    depth_max: int = 2


LINEAR: Final = Search("linear", (Mode.LINEAR,))


def exhaustive(changes_max: int, *, nested_max: int = 1) -> Search:
    """Every subset of up to `changes_max` unflushed writes; prefixes, single drops and tears."""
    modes = tuple(mode for mode in Mode if mode is not Mode.RANDOM)
    return Search(f"exhaustive({changes_max})", modes, changes_max, nested_max=nested_max)


def chance(seed: int, *, nested_max: int = 1) -> Search:
    """Subset, order and tears by chance."""
    return Search(f"random({seed})", (Mode.RANDOM,), samples=24, seed=seed, nested_max=nested_max)


@dataclass(frozen=True, slots=True)
class Failure:
    """A state that is not as it must be; `state` replays it."""

    state: str
    outcome: str
    detail: str
    steps: str


# What is counted: the family of the workload, what was being done, the mode that found the state,
# and what became of it.
Shape = tuple[str, str, str, str]


@dataclass(slots=True)
class Tally:
    """What was examined."""

    shapes: Counter[Shape] = field(default_factory=Counter)
    workloads: int = 0
    # Of the states, those that were met before in the same chunk of work, with the same promises.
    repeated: int = 0
    # And those of the others that differed from earlier ones only in what nothing reads.
    recognised: int = 0
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0

    @property
    def states(self) -> int:
        """How many."""
        return sum(self.shapes.values())

    def add(self, other: Tally) -> None:
        """Counts in what another one counted."""
        self.shapes.update(other.shapes)
        self.workloads += other.workloads
        self.repeated += other.repeated
        self.recognised += other.recognised
        self.failed += other.failed
        room = _FAILURES_KEPT_MAX - len(self.failures)
        self.failures += other.failures[: max(0, room)]

    def fail(self, failure: Failure) -> None:
        """Counts a failure."""
        self.failed += 1
        if len(self.failures) < _FAILURES_KEPT_MAX:
            self.failures.append(failure)


class Explorer:
    """Goes through workloads that have states in common, and examines none of these twice."""

    def __init__(self, subject: AnySubject) -> None:
        self._subject = subject
        self._examiner = subject.examiner()
        self._known: dict[tuple[int, bytes, tuple[int, ...]], Verdict] = {}

    def explore(self, workload: Workload, searches: Sequence[Search]) -> Tally:
        """Examines the states of a workload."""
        tally = Tally(workloads=1)
        recording = self.first_life(tally, workload)
        if recording is not None:
            self.examine(tally, workload, searches, recording)
        return tally

    def first_life(self, tally: Tally, workload: Workload) -> Recording | None:
        """What the workload does before there is a crash; None if that failed, which is counted."""
        base, model = self._subject.begin(workload)
        image = self._examiner.image(base)
        return self._recorded(tally, workload, workload.name, image, model, 0)

    def examine(
        self, tally: Tally, workload: Workload, searches: Sequence[Search], recording: Recording
    ) -> None:
        """Examines the states that crashes leave of that, and of what follows upon them."""
        for search in searches:
            self._life(tally, workload, search, workload.name, recording, 0)

    def _recorded(
        self, tally: Tally, workload: Workload, at: str, image: SectorImage, model: Any, depth: int
    ) -> Recording | None:
        """One life of the image, which begins at the state `at`."""
        try:
            return record(
                self._subject, image, model, part_of(self._subject, workload, depth), depth
            )
        except Disagreement as error:
            outcome, detail = "disagreement", str(error)
        except StorageError as error:
            outcome, detail = "failed", repr(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            outcome, detail = Outcome.FOREIGN.value, repr(error)
        tally.fail(Failure(at, outcome, detail, str(workload)))
        return None

    def _life(
        self,
        tally: Tally,
        workload: Workload,
        search: Search,
        at: str,
        recording: Recording,
        depth: int,
    ) -> None:
        chosen: list[tuple[SectorState, int]] = []
        depth_max = max(search.depth_max, len(workload.parts) - 1)
        random = Random(f"{at} {search.seed}")  # noqa: S311 - the same each time
        states = self._states(tally, workload, search, at, recording, depth)
        for number, (state, verdict) in enumerate(states):
            # A sample of all, of a size that is known before (Vitter's algorithm R).
            if verdict.moment < 0 or depth >= depth_max:
                continue
            if len(chosen) < search.nested_max:
                chosen.append((state, verdict.moment))
            elif chosen and (place := random.randrange(number + 1)) < len(chosen):
                chosen[place] = (state, verdict.moment)
        for state, moment in chosen:
            found = recording.moments[moment].model
            below = f"{at}@{state.id}"
            more = self._recorded(tally, workload, below, state.image, found, depth + 1)
            if more is not None:
                self._life(tally, workload, search, below, more, depth + 1)

    def _states(
        self,
        tally: Tally,
        workload: Workload,
        search: Search,
        at: str,
        recording: Recording,
        depth: int,
    ) -> Iterator[tuple[SectorState, Verdict]]:
        family = workload.name.partition("-")[0]
        epoch: _Epoch | None = None
        for state in sector_states(
            recording.log,
            recording.base,
            modes=search.modes,
            subset_changes_max=search.subset_changes_max,
            samples=search.samples,
            seed=search.seed,
        ):
            if epoch is None or epoch.at != state.at:
                epoch = _Epoch.of(recording, state.at, depth)
            verdict = self._examined(tally, state.image, recording, epoch)
            tally.shapes[family, epoch.phase, state.mode.value, verdict.outcome.value] += 1
            if not verdict.outcome.holds:
                name, outcome = f"{at}@{state.id}", verdict.outcome.value
                tally.fail(Failure(name, outcome, verdict.detail, str(workload)))
            yield state, verdict

    def _examined(
        self, tally: Tally, image: SectorImage, recording: Recording, epoch: _Epoch
    ) -> Verdict:
        digest = hashlib.blake2b(image.key, digest_size=16).digest()
        key = (epoch.first, digest, epoch.marks)
        verdict = self._known.get(key)
        if verdict is not None:
            tally.repeated += 1
            return verdict
        before = self._examiner.pieces.done
        verdict = self._examiner.judged(image, recording.moments, epoch.first, epoch.last)
        tally.recognised += self._examiner.pieces.done == before
        self._known[key] = verdict
        return verdict


@dataclass(frozen=True, slots=True)
class _Epoch:
    """What is the same for all states of an epoch: the moments that may be there."""

    at: int
    first: int
    last: int
    marks: tuple[int, ...]
    phase: str

    @classmethod
    def of(cls, recording: Recording, at: int, depth: int) -> _Epoch:
        """That of a crash when the log was `at` long, behind `depth` others."""
        first, last = recording.promised(at), recording.latest(at)
        phase = recording.phase(at)
        if depth and phase == "operation":
            phase = "operation after a crash"
        return cls(at, first, last, recording.marks(first, last), phase)


def explore(subject: AnySubject, workload: Workload, *searches: Search) -> Tally:
    """Examines the states of one workload."""
    return Explorer(subject).explore(workload, searches)


def part_of(subject: AnySubject, workload: Workload, depth: int) -> tuple[Step, ...]:
    """What is done after so many crashes."""
    if depth < len(workload.parts):
        return workload.parts[depth]
    after = subject.after
    return tuple(after[zlib.crc32(f"{workload.name} {depth}".encode()) % len(after)])


def replayed(
    subject: AnySubject, workload: Workload, states: list[str]
) -> tuple[bytes, Recording, Verdict]:
    """The image that is left by these crashes in a row, the recording it is of, and what it is.

    Raises `InvalidArgument` for what is no state of the workload.
    """
    examiner = subject.examiner()
    image, model = subject.begin(workload)
    if not states:
        raise InvalidArgument("an id names a workload and at least one state")
    for depth, state in enumerate(states):
        part = part_of(subject, workload, depth)
        recording = record(subject, examiner.image(image), model, part, depth)
        image = replay(recording.log, image, state)
        epoch = _Epoch.of(recording, _at(recording, state), depth)
        left = examiner.image(image)
        verdict = examiner.judged(left, recording.moments, epoch.first, epoch.last)
        if verdict.moment < 0:
            break
        model = recording.moments[verdict.moment].model
    return image, recording, verdict


def _at(recording: Recording, state: str) -> int:
    """How long the log was at the end of the epoch that a state's id names."""
    epoch = int(state.removeprefix("epoch=").partition("/")[0])
    ends = [at for at, operation in enumerate(recording.log) if isinstance(operation, Flush)]
    return [*ends, len(recording.log)][epoch]


__all__ = [
    "LINEAR",
    "Explorer",
    "Failure",
    "Outcome",
    "Search",
    "Shape",
    "Tally",
    "chance",
    "exhaustive",
    "explore",
    "replayed",
]
