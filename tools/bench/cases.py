"""The cases: what every contestant is asked to do, and what is aimed for.

Invariants: a case makes the same calls of every contestant in a round (they come from the seed),
and refuses a figure for an answer that was short.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from capstore.schema.limits import KIB, MIB
from capstore.tools.bench.contestants import BenchError, Contestant, each
from capstore.tools.bench.corpus import small_name
from capstore.tools.bench.parameters import Parameters

_LONG_ROUNDS_MAX = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """One helping of a case: `scratch` is a new path for what is written to the host."""

    contestant: Contestant
    parameters: Parameters
    rng: random.Random
    scratch: Path

    def check(self, got: int, wanted: int) -> int:
        """`got` if it is what was asked for, else raises `BenchError`."""
        if got != wanted:
            raise BenchError(f"{self.contestant.name} answered {got} where {wanted} was asked for")
        return got


@dataclass(frozen=True, slots=True)
class Goal:
    """The ratio to the floor that the design asks for, and the one asked for first."""

    ratio: float
    milestone: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One case; `run` does a batch and returns how many units (of `unit`) that was.

    Where a batch takes many seconds (`long`), there are fewer rounds, and no warming up.
    """

    name: str
    what: str
    unit: str
    run: Callable[[Batch], Awaitable[int]]
    goal: Goal | None = None
    long: bool = False

    def rounds(self, wanted: int) -> int:
        """How many rounds are run where `wanted` are asked for."""
        return min(wanted, _LONG_ROUNDS_MAX) if self.long else wanted


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

CASES: tuple[Case, ...] = (
    Case(
        "open-read",
        "open and read a small file, one after another",
        "calls/s",
        _open_and_read(lambda parameters: 1),
        _SMALL,
    ),
    Case(
        "open-read-many",
        "the same, many in flight",
        "calls/s",
        _open_and_read(lambda parameters: parameters.calls_in_flight),
        _SMALL,
    ),
    Case(
        "read-small",
        "small reads of an open file, one after another",
        "calls/s",
        _read_open,
        _SMALL,
    ),
    *(
        Case(
            f"read-{label}",
            f"read a large file, {label} blocks in a window",
            "bytes/s",
            _read_large(size),
            _WINDOWED if label == "256k" else None,
        )
        for size, label in _BLOCKS
    ),
    *(
        Case(
            f"write-{label}",
            f"write a large file, {label} blocks in a window",
            "bytes/s",
            _write_large(size),
        )
        for size, label in _BLOCKS
    ),
    Case("list-names", "list a large directory, names", "entries/s", _list_names),
    Case("list-stats", "list a large directory, names and stats", "entries/s", _list_stats),
    Case("get-tree", "copy a tree of small files to the host", "files/s", _get_tree, long=True),
)
