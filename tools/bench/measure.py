"""Rounds: every contestant in turn, again and again, and ratios within a round.

Invariants: a ratio is of two figures of one round, taken one right after the other; the ratio that
is reported is the median over the rounds, with the least and the greatest beside it.
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from capstore.tools.bench import floor, sftp, subject
from capstore.tools.bench.cases import Batch, Case, ServiceCase
from capstore.tools.bench.contestants import Contestant
from capstore.tools.bench.corpus import Corpus
from capstore.tools.bench.parameters import Parameters

SUBJECT = subject.Subject.name

# Does one batch of a case and returns how many units that was; given are where its choices come
# from, and a new path for what is written to the host.
Run = Callable[[random.Random, Path], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of each round."""

    rounds: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.rounds)

    @property
    def least(self) -> float:
        """The smallest."""
        return min(self.rounds)

    @property
    def greatest(self) -> float:
        """The largest."""
        return max(self.rounds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case came to: units per second, by contestant, and what else was measured of each."""

    case: Case
    figures: Mapping[str, Spread]
    details: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)

    def ratio_to(self, other: str, one: str = SUBJECT) -> Spread | None:
        """Our figure (or that of `one`) as a part of another's; None if either took no part."""
        if other not in self.figures or one not in self.figures:
            return None
        pairs = zip(self.figures[one].rounds, self.figures[other].rounds, strict=True)
        return Spread([ours / theirs for ours, theirs in pairs])


@asynccontextmanager
async def contestants(parameters: Parameters) -> AsyncIterator[list[Contestant]]:
    """All who can take part, over one corpus; it is gone when the context is left."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="capstore-bench-"))
        folder = Path(name)
        corpus = Corpus.make(folder / "corpus", parameters)
        entered: list[Contestant] = [
            await stack.enter_async_context(subject.contestant(corpus, folder)),
            await stack.enter_async_context(floor.contestant(corpus, folder)),
        ]
        if sftp.absent() is None:
            entered.append(await stack.enter_async_context(sftp.contestant(corpus, folder)))
        yield entered


async def run(
    parameters: Parameters, cases: Sequence[ServiceCase], advance: Callable[[str], None]
) -> list[Outcome]:
    """Measures `cases`; calls `advance` with a case's name after each figure.

    Raises `BenchError`.
    """
    if not cases:
        return []
    async with contestants(parameters) as entered:
        return [
            await measured(
                parameters,
                case,
                {one.name: _service_run(parameters, case, one) for one in entered},
                advance,
            )
            for case in cases
        ]


def _service_run(parameters: Parameters, case: ServiceCase, one: Contestant) -> Run:
    return lambda rng, scratch: case.run(Batch(one, parameters, rng, scratch))


async def measured(
    parameters: Parameters, case: Case, runs: Mapping[str, Run], advance: Callable[[str], None]
) -> Outcome:
    """All rounds of `case`, in each of which all of `runs` have their turn."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(case.rounds(parameters.rounds)):
        for name, one in runs.items():
            figures[name].append(await _figure(parameters, case, one, number))
            advance(case.name)
    return Outcome(case, {name: Spread(rounds) for name, rounds in figures.items()})


async def _figure(parameters: Parameters, case: Case, one: Run, number: int) -> float:
    """Units per second over at least ``parameters.seconds``.

    The first round is warmed up by one batch, which counts for nothing, unless batches are long.
    """
    rng = random.Random(f"{parameters.seed}/{case.name}/{number}")  # noqa: S311 - a workload
    with tempfile.TemporaryDirectory(prefix="capstore-bench-") as scratch:
        if number == 0 and case.rounds_max is None:
            await one(rng, Path(scratch) / "warm")
        gc.collect()
        done = batches = 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < parameters.seconds or not done:
            done += await one(rng, Path(scratch) / str(batches))
            batches += 1
        return done / elapsed
