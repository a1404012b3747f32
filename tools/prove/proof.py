"""The whole proof, part by part, and what came of it.

Invariants: the parameters say all of what is done; what this machine does not allow is skipped with
its reason and never silently.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from capstore.tools.prove.canaries import caught
from capstore.tools.prove.countdown import count_down
from capstore.tools.prove.damage import damaged_image, flipped, truncated, used_places
from capstore.tools.prove.explore import Failure, Search, Tally, chance, exhaustive
from capstore.tools.prove.kill import count, kill, why_no_strace
from capstore.tools.prove.power import cut_power, why_no_power_cut
from capstore.tools.prove.running import (
    ace_names,
    chance_names,
    chunks,
    run,
    scenario_names,
    workload_of,
)
from capstore.tools.prove.subject import AnySubject, subject_of

STATES: Final = 20_000
# How many workloads by chance are got ready for each state that is asked for.
_CHANCE_SHARE: Final = 100
_COUNTED_DOWN: Final = 8
_DAMAGED: Final = 2000
_HISTORIES: Final = 20
_KILLS: Final = 4
_POWER_CUTS: Final = 2


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is done: workloads of `length` are gone through without an end by `states_max`."""

    seed: int
    operations: int
    length: int
    states_max: int
    searches: tuple[Search, ...]
    processes: int = 0
    format: str = "wf1"

    @property
    def subject(self) -> AnySubject:
        """What is proved."""
        return subject_of(self.format)

    @classmethod
    def usual(cls, seed: int, operations: int, length: int, states_max: int) -> Parameters:
        """With both kinds of search."""
        return cls(seed, operations, length, states_max, (exhaustive(6), chance(seed)))


@dataclass(slots=True)
class Proof:
    """What came of it."""

    parameters: Parameters
    tally: Tally = field(default_factory=Tally)
    canaries: list[tuple[str, Failure | None]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    # Seconds of each part.
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, and every canary was noticed."""
        return not self.tally.failed and all(failure for _, failure in self.canaries)


Progress = Callable[[str, int, int], None]


def prove(parameters: Parameters, progress: Progress = lambda what, states, failed: None) -> Proof:
    """Does all of it; `progress` is told the part, and states and failures so far."""
    proof = Proof(parameters)
    parts: Sequence[tuple[str, Callable[[Proof, Callable[[Tally], None]], None]]] = (
        ("canaries", _canaries),
        ("crashes", _crashes),
        ("failing devices", _devices),
        ("damaged images", _damage),
        ("histories", _histories),
        ("processes", _processes),
        ("power cuts", _power),
    )
    for name, part in parts:
        began = time.monotonic()

        def said(tally: Tally, name: str = name) -> None:
            states, failed = proof.tally.states + tally.states, proof.tally.failed + tally.failed
            progress(name, states, failed)

        said(Tally())
        part(proof, said)
        proof.seconds[name] = time.monotonic() - began
    return proof


def _canaries(proof: Proof, said: Callable[[Tally], None]) -> None:
    subject = proof.parameters.subject
    for canary in subject.canaries():
        proof.canaries.append((canary.name, caught(subject, canary)))
        said(Tally())


def _crashes(proof: Proof, said: Callable[[Tally], None]) -> None:
    asked = proof.parameters
    subject = asked.subject
    first = scenario_names(subject) + ace_names(subject, 1)
    rest = chance_names(asked.seed, max(1, asked.states_max // _CHANCE_SHARE), asked.operations)
    whole = chunks(subject, first, asked.searches)
    if asked.length > 1:
        whole += chunks(subject, ace_names(subject, 2), asked.searches)
    else:
        rest += ace_names(subject, 2)
    tally = run(whole, processes=asked.processes, progress=said)
    if (left := asked.states_max - tally.states) > 0:
        sampled = chunks(subject, rest, asked.searches, asked.seed)
        before = Tally()
        before.add(tally)

        def both(more: Tally) -> None:
            total = Tally()
            total.add(before)
            total.add(more)
            said(total)

        tally.add(run(sampled, processes=asked.processes, states_max=left, progress=both))
    proof.tally.add(tally)


def _devices(proof: Proof, said: Callable[[Tally], None]) -> None:
    random = Random(f"devices {proof.parameters.seed}")  # noqa: S311 - the same each time
    subject = proof.parameters.subject
    names = random.sample([*scenario_names(subject), *ace_names(subject, 1)], _COUNTED_DOWN)
    for name in names:
        proof.tally.add(count_down(subject, workload_of(subject, name)))
        said(Tally())


def _damage(proof: Proof, said: Callable[[Tally], None]) -> None:
    random = Random(f"damage {proof.parameters.seed}")  # noqa: S311 - the same each time
    subject = proof.parameters.subject
    length = len(damaged_image(subject)[0])
    proof.tally.add(truncated(subject, sorted(random.sample(range(length), _DAMAGED))))
    places = random.sample(used_places(subject), _DAMAGED)
    proof.tally.add(flipped(subject, (8 * at + random.randrange(8) for at in places)))
    said(Tally())


def _histories(proof: Proof, said: Callable[[Tally], None]) -> None:
    tally = proof.parameters.subject.histories(proof.parameters.seed, _HISTORIES)
    if tally is not None:
        proof.tally.add(tally)
    said(Tally())


def _processes(proof: Proof, said: Callable[[Tally], None]) -> None:
    if (reason := why_no_strace()) is not None:
        proof.skipped.append(f"killing at chosen system calls: {reason}")
    asked = proof.parameters
    with tempfile.TemporaryDirectory() as folder:
        proof.tally.add(kill(Path(folder), asked.subject.loads, asked.seed, _KILLS))
    said(Tally())


def _power(proof: Proof, said: Callable[[Tally], None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (reason := why_no_power_cut(folder)) is not None:
            proof.skipped.append(f"power cuts: {reason}")
            return
        tally = Tally()
        for seed in range(proof.parameters.seed, proof.parameters.seed + _POWER_CUTS):
            for load in proof.parameters.subject.loads:
                _, verdict = cut_power(folder, load, seed)
                kind = f"{load.name}, power cut"
                count(tally, kind, f"{kind}, seed {seed}", verdict)
        proof.tally.add(tally)
    said(Tally())
