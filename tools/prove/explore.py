"""Going through the states that crashes leave of a workload, one after the other.

Invariants: a state is chosen and examined by the workload, the search and its own place alone.
After a crash the workload goes on with its next part, or with opening the volume and a few
operations (`AFTER`), so that crashes during recovery are gone through as well.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from capstore.images.faults import CrashState, Mode, crash_states, replay
from capstore.schema.errors import InvalidArgument, StorageError
from capstore.tools.prove.examine import Outcome, Verdict, examine
from capstore.tools.prove.model import Model
from capstore.tools.prove.recording import Disagreement, Recording, record, start
from capstore.tools.prove.workload import Step, Workload, steps

# What is done with a volume after a crash that ends a workload.
AFTER: Final = (
    steps("create z; append z 700 9001; commit; rename z a; sync"),
    steps("create z; sync; append z 5000 9001; checkpoint; remove z; sync"),
    steps("symlink z z; commit; clean; sync"),
    steps("create z; append z 700 9001; commit; rename z s; sync"),
)
# Verdicts are kept while a process goes through neighbouring workloads: they have states in common.
_KNOWN_MAX: Final = 100_000
_FAILURES_KEPT_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Search:
    """Which states: see `capstore.images.faults.crash_states`.

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
    # Of the states, those that were met before in the same process, with the same promises.
    repeated: int = 0
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
        self.failed += other.failed
        room = _FAILURES_KEPT_MAX - len(self.failures)
        self.failures += other.failures[: max(0, room)]

    def fail(self, failure: Failure) -> None:
        """Counts a failure."""
        self.failed += 1
        if len(self.failures) < _FAILURES_KEPT_MAX:
            self.failures.append(failure)


def explore(workload: Workload, search: Search) -> Tally:
    """Examines the states of a workload."""
    tally = Tally(workloads=1)
    image, model = start(workload.spare_segments)
    _Exploration(workload, search, tally).life(workload.name, image, model, 0)
    return tally


class _Exploration:
    def __init__(self, workload: Workload, search: Search, tally: Tally) -> None:
        self._workload = workload
        self._search = search
        self._tally = tally
        self._depth_max = max(search.depth_max, len(workload.parts) - 1)
        self._family = workload.name.partition("-")[0]

    def life(self, at: str, image: bytes, model: Model, depth: int) -> None:
        """One life of the volume, which begins at the state `at`."""
        try:
            recording = record(image, model, part_of(self._workload, depth), depth)
        except (StorageError, Disagreement) as error:
            outcome = "disagreement" if isinstance(error, Disagreement) else "failed"
            self._tally.fail(Failure(at, outcome, repr(error), str(self._workload)))
            return
        chosen: list[tuple[CrashState, int]] = []
        random = Random(f"{at} {self._search.seed}")  # noqa: S311 - the same each time
        for number, (state, verdict) in enumerate(self._states(recording, at, depth)):
            # A sample of all, of a size that is known before (Vitter's algorithm R).
            if verdict.moment < 0 or depth >= self._depth_max:
                continue
            if len(chosen) < self._search.nested_max:
                chosen.append((state, verdict.moment))
            elif chosen and (place := random.randrange(number + 1)) < len(chosen):
                chosen[place] = (state, verdict.moment)
        for state, moment in chosen:
            found = recording.moments[moment].model
            self.life(f"{at}@{state.id}", state.image, found, depth + 1)

    def _examined(self, state: CrashState, recording: Recording) -> Verdict:
        first, last = recording.promised(state.at), recording.latest(state.at)
        marks = tuple(moment.mark for moment in recording.moments[first : last + 1])
        # No checksum: images differ in records that carry theirs, so that all have the same.
        key = (first, hash(state.image), marks)
        verdict = _known.get(key)
        if verdict is None:
            verdict = examine(state.image, recording, state.at)
            if len(_known) >= _KNOWN_MAX:
                _known.clear()
            _known[key] = verdict
        else:
            self._tally.repeated += 1
        return verdict

    def _states(
        self, recording: Recording, at: str, depth: int
    ) -> Iterator[tuple[CrashState, Verdict]]:
        search = self._search
        for state in crash_states(
            recording.log,
            recording.base,
            modes=search.modes,
            subset_changes_max=search.subset_changes_max,
            samples=search.samples,
            seed=search.seed,
        ):
            verdict = self._examined(state, recording)
            phase = recording.phase(state.at)
            if depth and phase == "operation":
                phase = "operation after a crash"
            shape = (self._family, phase, state.mode.value, verdict.outcome.value)
            self._tally.shapes[shape] += 1
            if not verdict.outcome.holds:
                self._tally.fail(
                    Failure(
                        f"{at}@{state.id}",
                        verdict.outcome.value,
                        verdict.detail,
                        str(self._workload),
                    )
                )
            yield state, verdict


_known: dict[tuple[int, int, tuple[int, ...]], Verdict] = {}


def forget() -> None:
    """Forgets what was examined."""
    _known.clear()


def part_of(workload: Workload, depth: int) -> tuple[Step, ...]:
    """What is done after so many crashes."""
    if depth < len(workload.parts):
        return workload.parts[depth]
    return AFTER[zlib.crc32(f"{workload.name} {depth}".encode()) % len(AFTER)]


def replayed(workload: Workload, states: list[str]) -> tuple[bytes, Recording, Verdict]:
    """The image that is left by these crashes in a row, the recording it is of, and what it is.

    Raises `InvalidArgument` for what is no state of the workload.
    """
    image, model = start(workload.spare_segments)
    if not states:
        raise InvalidArgument("an id names a workload and at least one state")
    for depth, state in enumerate(states):
        recording = record(image, model, part_of(workload, depth), depth)
        image = replay(recording.log, image, state)
        verdict = examine(image, recording, _at(recording, state))
        if verdict.moment < 0:
            break
        model = recording.moments[verdict.moment].model
    return image, recording, verdict


def _at(recording: Recording, state: str) -> int:
    """How long the log was at the end of the epoch that a state's id names."""
    from capstore.images.faults import Flush

    epoch = int(state.removeprefix("epoch=").partition("/")[0])
    ends = [at for at, operation in enumerate(recording.log) if isinstance(operation, Flush)]
    return [*ends, len(recording.log)][epoch]


__all__ = [
    "AFTER",
    "LINEAR",
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
