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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from capstore.tools.bench.cases import Case
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.parameters import Parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slices(Generic[T]):
    """What there is to do: a slice's choices, and by contestant what does them all and answers how
    many units that was, with what has to be done before, in nobody's time."""

    choose: Callable[[Random], Sequence[T]]
    works: Mapping[str, Callable[[Sequence[T]], Awaitable[int]]]
    ready: Mapping[str, Callable[[Sequence[T]], Awaitable[object]]] = field(default_factory=dict)

    async def take(self, name: str, choices: Sequence[T]) -> float:
        """How many seconds a unit of a slice took."""
        if name in self.ready:
            await self.ready[name](choices)
        work = self.works[name]
        began = time.perf_counter()
        units = await work(choices)
        return (time.perf_counter() - began) / units


async def measured(
    parameters: Parameters, case: Case, slices: Slices[T], advance: Callable[[str], None]
) -> Outcome:
    """All rounds of `case`, each of ``parameters.seconds`` for each contestant, what is done in
    nobody's time included; `advance` hears its name after each figure."""
    figures: dict[str, list[float]] = {name: [] for name in slices.works}
    # As a service does when it begins: what stays is not looked through again and again.
    gc.collect()
    gc.freeze()
    for number in range(case.rounds(parameters.rounds)):
        rng = Random(f"{parameters.seed}/{case.name}/{number}")  # noqa: S311 - a workload
        if number == 0:
            # What is done for the first time counts for nothing.
            await _in_turn(slices, rng, 0)
        for name, figure in (await _round(parameters.seconds, slices, rng)).items():
            figures[name].append(figure)
            advance(case.name)
    gc.unfreeze()
    return Outcome(case, {name: Spread(rounds) for name, rounds in figures.items()})


async def _round(seconds: float, slices: Slices[T], rng: Random) -> dict[str, float]:
    """Units per second by contestant."""
    gc.collect()
    taken: list[Mapping[str, float]] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(slices.works) or not taken:
        taken.append(await _in_turn(slices, rng, len(taken)))
    return {name: 1 / middle([one[name] for one in taken]) for name in slices.works}


async def _in_turn(slices: Slices[T], rng: Random, number: int) -> Mapping[str, float]:
    """One slice of all contestants: how many seconds a unit took."""
    choices = slices.choose(rng)
    names = list(slices.works)
    first = number % len(names)
    return {name: await slices.take(name, choices) for name in (*names[first:], *names[:first])}


def middle(values: Sequence[float]) -> float:
    """The mean of the half of `values` in the middle (the interquartile mean)."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
