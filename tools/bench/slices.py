"""Rounds of a case in which contestants take turns of some milliseconds, again and again.

Invariants:

* All do the same in a slice of a round, with what was chosen before its time begins; who is first
  changes from slice to slice.
* A figure leaves out the fastest and the slowest quarter of its slices: on a busy machine some are
  interrupted, and a ratio of two things that differ by little is of those that are not.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Generic, NamedTuple, TypeVar

from capstore.tools.bench.cases import Case
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.parameters import Parameters

T = TypeVar("T")

# What only grows, of a contestant.
Meter = Callable[[], float]


class Taken(NamedTuple):
    """What a unit of a slice took: seconds, and by how much each meter of its contestant grew."""

    seconds: float
    grown: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Slices(Generic[T]):
    """What there is to do: a slice's choices, and by contestant what does them all and answers how
    many units that was, with what has to be done before, in nobody's time.

    `meters` are by contestant and name of a detail; `facts` details that were measured already."""

    choose: Callable[[Random], Sequence[T]]
    works: Mapping[str, Callable[[Sequence[T]], Awaitable[int]]]
    ready: Mapping[str, Callable[[Sequence[T]], Awaitable[object]]] = field(default_factory=dict)
    meters: Mapping[str, Mapping[str, Meter]] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    async def take(self, name: str, choices: Sequence[T]) -> Taken:
        """What a unit of a slice took."""
        if name in self.ready:
            await self.ready[name](choices)
        work, meters = self.works[name], self.meters.get(name, {})
        before = {what: meter() for what, meter in meters.items()}
        began = time.perf_counter()
        units = await work(choices)
        seconds = (time.perf_counter() - began) / units
        return Taken(seconds, {what: (meters[what]() - before[what]) / units for what in meters})


@contextmanager
def quiet_collector() -> Iterator[None]:
    """While inside, what is there already is not looked through again and again for garbage: as a
    service has it when it begins."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def measured(
    parameters: Parameters, case: Case, slices: Slices[T], advance: Callable[[str], None]
) -> Outcome:
    """All rounds of `case`, each of ``parameters.seconds`` for each contestant, what is done in
    nobody's time included; `advance` hears its name after each figure."""
    rounds: dict[str, list[Taken]] = {name: [] for name in slices.works}
    with quiet_collector():
        for number in range(case.rounds(parameters.rounds)):
            rng = Random(f"{parameters.seed}/{case.name}/{number}")  # noqa: S311 - a workload
            if number == 0:
                # What is done for the first time counts for nothing.
                await _in_turn(slices, rng, 0)
            for name, taken in (await _round(parameters.seconds, slices, rng)).items():
                rounds[name].append(taken)
                advance(case.name)
    return Outcome(
        case,
        {name: Spread([1 / one.seconds for one in taken]) for name, taken in rounds.items()},
        {name: _details(slices.facts.get(name, {}), taken) for name, taken in rounds.items()},
    )


def _details(facts: Mapping[str, float], rounds: Sequence[Taken]) -> dict[str, Spread]:
    metered = {what: Spread([one.grown[what] for one in rounds]) for what in rounds[0].grown}
    return {what: Spread([value]) for what, value in facts.items()} | metered


async def _round(seconds: float, slices: Slices[T], rng: Random) -> dict[str, Taken]:
    """What a unit took, by contestant."""
    gc.collect()
    taken: list[Mapping[str, Taken]] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(slices.works) or not taken:
        taken.append(await _in_turn(slices, rng, len(taken)))
    return {name: _middle_of([one[name] for one in taken]) for name in slices.works}


def _middle_of(taken: Sequence[Taken]) -> Taken:
    return Taken(
        middle([one.seconds for one in taken]),
        {what: middle([one.grown[what] for one in taken]) for what in taken[0].grown},
    )


async def _in_turn(slices: Slices[T], rng: Random, number: int) -> Mapping[str, Taken]:
    """One slice of all contestants: what a unit took."""
    choices = slices.choose(rng)
    names = list(slices.works)
    first = number % len(names)
    return {name: await slices.take(name, choices) for name in (*names[first:], *names[:first])}


def middle(values: Sequence[float]) -> float:
    """The mean of the half of `values` in the middle (the interquartile mean)."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
