"""The cases: what every contestant is asked to do, and what is aimed for.

Invariants: a case makes the same calls of every contestant in a round (they come from the seed),
and refuses a figure for an answer that was short.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from capstore.schema.limits import KIB, MIB
from capstore.tools.bench import sftp
from capstore.tools.bench.contestants import Contestant, checked, each
from capstore.tools.bench.corpus import small_name
from capstore.tools.bench.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Batch:
    """One helping of a case: `scratch` is a new path for what is written to the host."""

    contestant: Contestant
    parameters: Parameters
    rng: random.Random
    scratch: Path

    def check(self, got: int, wanted: int) -> int:
        """`got` if it is what was asked for, else raises `BenchError`."""
        return checked(self.contestant.name, got, wanted)


@dataclass(frozen=True, slots=True)
class Goal:
    """The ratio to `rival` that the design asks for, and the one asked for first."""

    ratio: float
    milestone: float | None = None
    rival: str = "floor"


@dataclass(frozen=True, slots=True)
class Limit:
    """The most milliseconds that one unit may take, whoever else does it faster."""

    ms_max: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that the detail `measure` may come to, in any round."""

    measure: str
    most: float


@dataclass(frozen=True, slots=True)
class Floor:
    """The least ratio to `rival` of `contestant`, which is capstore in another way."""

    contestant: str
    ratio: float
    rival: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(ABC):
    """What every case has; a figure is in units (of `unit`) per second, so more is faster.

    Where a batch takes many seconds, `rounds_max` says how often it is run, without warming up.
    """

    name: str
    what: str
    unit: str
    goal: Goal | Limit | None = None
    rounds_max: int | None = None
    ceilings: tuple[Ceiling, ...] = ()
    floors: tuple[Floor, ...] = ()

    def rounds(self, wanted: int) -> int:
        """How many rounds are run where `wanted` are asked for."""
        return wanted if self.rounds_max is None else min(wanted, self.rounds_max)

    @abstractmethod
    def turn_count(self) -> int:
        """How many contestants have their turn in each round."""

    def absence(self) -> str | None:
        """Why it cannot be run here, or None if it can."""
        return None

    def missing(self) -> Mapping[str, str]:
        """Who of its contestants cannot take part here: why."""
        return {}


C = TypeVar("C", bound=Case)


def absences(cases: Sequence[Case]) -> dict[str, str]:
    """Which of `cases` cannot be run here, and who cannot take part in the others: why."""
    found = {case.name: reason for case in cases if (reason := case.absence())}
    for case in present(cases):
        found.update(case.missing())
    return found


def present(cases: Sequence[C]) -> list[C]:
    """Those of `cases` that can be run here."""
    return [case for case in cases if case.absence() is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCase(Case):
    """A case for servers and their clients; `run` does a batch and returns how many units."""

    run: Callable[[Batch], Awaitable[int]]

    def turn_count(self) -> int:
        return 3 - len(self.missing())

    def missing(self) -> Mapping[str, str]:
        reason = sftp.absent()
        return {sftp.Sftp.name: reason} if reason else {}


def _open_and_read(in_flight: Callable[[Parameters], int]) -> Callable[[Batch], Awaitable[int]]:
    async def run(batch: Batch) -> int:
        size = batch.parameters.small_bytes

        async def one(index: int) -> None:
            got = await batch.contestant.open_and_read(small_name(index), size)
            batch.check(got, size)

        count = batch.parameters.small_batch
        indices = batch.rng.choices(range(batch.parameters.small_files), k=count)
        await each(indices, one, in_flight(batch.parameters))
        return count

    return run


async def _read_open(batch: Batch) -> int:
    size, count = batch.parameters.small_bytes, batch.parameters.small_batch
    for block in batch.rng.choices(range(batch.parameters.large_bytes // size), k=count):
        batch.check(await batch.contestant.read_open(block * size, size), size)
    return count


def _read_large(block: int) -> Callable[[Batch], Awaitable[int]]:
    async def run(batch: Batch) -> int:
        got = await batch.contestant.read_large(block, batch.parameters.blocks_in_flight)
        return batch.check(got, batch.parameters.large_bytes)

    return run


def _write_large(block: int) -> Callable[[Batch], Awaitable[int]]:
    async def run(batch: Batch) -> int:
        data = bytes(batch.parameters.large_bytes)
        written = await batch.contestant.write_large(data, block, batch.parameters.blocks_in_flight)
        return batch.check(written, len(data))

    return run


async def _list_names(batch: Batch) -> int:
    return batch.check(await batch.contestant.list_names(), batch.parameters.list_entries)


async def _list_stats(batch: Batch) -> int:
    return batch.check(await batch.contestant.list_stats(), batch.parameters.list_entries)


async def _get_tree(batch: Batch) -> int:
    await batch.contestant.get_tree(batch.scratch)
    got = sum(1 for path in batch.scratch.glob("**/*") if path.is_file())
    return batch.check(got, batch.parameters.tree_files)


_SMALL = Goal(0.7, milestone=0.5)
_BLOCKS = ((64 * KIB, "64k"), (256 * KIB, "256k"), (MIB, "1m"))
_WINDOWED = Goal(0.85)

CASES: tuple[ServiceCase, ...] = (
    ServiceCase(
        name="open-read",
        what="open and read a small file, one after another",
        unit="calls/s",
        run=_open_and_read(lambda parameters: 1),
        goal=_SMALL,
    ),
    ServiceCase(
        name="open-read-many",
        what="the same, many in flight",
        unit="calls/s",
        run=_open_and_read(lambda parameters: parameters.calls_in_flight),
        goal=_SMALL,
    ),
    ServiceCase(
        name="read-small",
        what="small reads of an open file, one after another",
        unit="calls/s",
        run=_read_open,
        goal=_SMALL,
    ),
    *(
        ServiceCase(
            name=f"read-{label}",
            what=f"read a large file, {label} blocks in a window",
            unit="bytes/s",
            run=_read_large(size),
            goal=_WINDOWED if label == "256k" else None,
        )
        for size, label in _BLOCKS
    ),
    *(
        ServiceCase(
            name=f"write-{label}",
            what=f"write a large file, {label} blocks in a window",
            unit="bytes/s",
            run=_write_large(size),
        )
        for size, label in _BLOCKS
    ),
    ServiceCase(
        name="list-names",
        what="list a large directory, names",
        unit="entries/s",
        run=_list_names,
    ),
    ServiceCase(
        name="list-stats",
        what="list a large directory, names and stats",
        unit="entries/s",
        run=_list_stats,
    ),
    ServiceCase(
        name="get-tree",
        what="copy a tree of small files to the host",
        unit="files/s",
        run=_get_tree,
        rounds_max=3,
    ),
)
