"""YCSB's core workloads A to F, on any of the contestants of the st1 cases.

Source: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB" (SoCC 2010); the generator of
skewed numbers is that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases"
(SIGMOD 1994), with the skew of YCSB.

Invariants: what every caller does was chosen before it is timed.  A record is one object (there ten
fields of 100 bytes).  D is of what was inserted last, by the same caller (there by anybody), so
that it does not depend on who is faster; E's scans are 1 to 100 records long, all lengths alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final, NamedTuple

from capstore.tools.bench.contestants import checked
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.st1_stores import Objects, Pair
from capstore.tools.bench.st1_workloads import Values
from capstore.tools.bench.workers import Worker

_SKEW: Final = 0.99
# FNV-1a of 64 bits, which spreads what is popular over all keys.
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_MASK: Final = (1 << 64) - 1

READ, UPDATE, INSERT, SCAN, MODIFY = "read", "update", "insert", "scan", "modify"


def spread(number: int) -> int:
    """A number of 64 bits that looks like no other's."""
    result = _FNV_OFFSET
    for byte in number.to_bytes(8, "little"):
        result = (result ^ byte) * _FNV_PRIME & _MASK
    return result


def key_of(number: int) -> bytes:
    """The key of a record, in an order that is not that of the numbers."""
    return b"user%020d" % spread(number)


@lru_cache
def _zeta(count: int) -> float:
    return math.fsum(rank**-_SKEW for rank in range(1, count + 1))


class Zipfian:
    """Numbers from 0 to `count` - 1: the lower, the more often."""

    def __init__(self, count: int, rng: Random) -> None:
        self._count = count
        self._rng = rng
        self._zeta = _zeta(count)
        self._exponent = 1 / (1 - _SKEW)
        # With two there is nothing between the second and the last.
        rest = 1 - _zeta(2) / self._zeta
        self._eta = (1 - (2 / count) ** (1 - _SKEW)) / rest if rest else 0.0

    def next(self) -> int:
        """Another one."""
        random = self._rng.random()
        scaled = random * self._zeta
        if scaled < 1:
            return 0
        if scaled < _zeta(2):
            return min(1, self._count - 1)
        found = self._count * (self._eta * random - self._eta + 1) ** self._exponent
        return min(int(found), self._count - 1)


class Operation(NamedTuple):
    """One call: `value` is what is put, `length` how many records are scanned at most."""

    kind: str
    key: bytes
    value: bytes = b""
    length: int = 0


@dataclass(frozen=True, slots=True)
class Mix:
    """A workload: which part of the operations is of which kind; with `is_latest`, what was
    inserted last is the most popular."""

    shares: Mapping[str, float]
    is_latest: bool = False


MIXES: Final[Mapping[str, Mix]] = {
    "a": Mix({READ: 0.5, UPDATE: 0.5}),
    "b": Mix({READ: 0.95, UPDATE: 0.05}),
    "c": Mix({READ: 1.0}),
    "d": Mix({READ: 0.95, INSERT: 0.05}, is_latest=True),
    "e": Mix({SCAN: 0.95, INSERT: 0.05}),
    "f": Mix({READ: 0.5, MODIFY: 0.5}),
}


def records(parameters: Parameters, rng: Random) -> list[Pair]:
    """What is there before."""
    values = Values(rng, parameters.st1_ycsb_record_bytes)
    return [(key_of(number), values.next()) for number in range(parameters.st1_ycsb_records)]


def operations(mix: Mix, parameters: Parameters, caller: int, rng: Random) -> list[Operation]:
    """What one of the callers does."""
    return list(_operations(mix, parameters, caller, rng))


def _operations(mix: Mix, parameters: Parameters, caller: int, rng: Random) -> Iterator[Operation]:
    callers, there = parameters.st1_ycsb_callers, parameters.st1_ycsb_records
    popular, values = Zipfian(there, rng), Values(rng, parameters.st1_ycsb_record_bytes)
    inserted: list[int] = []
    kinds = list(mix.shares)
    count = parameters.st1_ycsb_operations // callers
    for kind in rng.choices(kinds, [mix.shares[kind] for kind in kinds], k=count):
        if kind == INSERT:
            # Each caller has numbers of its own.
            inserted.append(there + caller + callers * len(inserted))
            yield Operation(kind, key_of(inserted[-1]), values.next())
            continue
        rank = popular.next()
        if not mix.is_latest:
            number = spread(rank) % there
        elif rank < len(inserted):
            number = inserted[-1 - rank]
        else:
            number = there - 1 - (rank - len(inserted))
        value = values.next() if kind in (UPDATE, MODIFY) else b""
        length = rng.randint(1, parameters.st1_scan_records_max) if kind == SCAN else 0
        yield Operation(kind, key_of(number), value, length)


def workload(
    letter: str,
) -> Callable[[Objects, Parameters, int, Random], Sequence[Worker]]:
    """The workload that has this letter."""
    mix = MIXES[letter]

    def work(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
        plans = [
            operations(mix, parameters, caller, Random(rng.random()))  # noqa: S311 - a workload
            for caller in range(parameters.st1_ycsb_callers)
        ]
        return [_do(objects, plan, size) for plan in plans]

    return work


async def _do(objects: Objects, plan: Sequence[Operation], size: int) -> int:
    for kind, key, value, length in plan:
        if kind == READ:
            checked(objects.name, await objects.get(key), size)
        elif kind == MODIFY:
            checked(objects.name, await objects.modify(key, value), size)
        elif kind == SCAN:
            got = await objects.scan(key, length)
            # There are fewer only at the end.
            checked(objects.name, got % size or (0 if 0 < got <= length * size else -1), 0)
        else:
            await objects.put(key, value)
    return len(plan)
