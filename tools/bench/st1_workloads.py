"""What db_bench does (LevelDB's and RocksDB's), on any of the contestants of the st1 cases.

Invariants: what is done, and in which order, was chosen before it is timed; it depends on nothing
but the parameters and the choices of the round.  Keys are numbers of 16 digits, values are random.

As in db_bench but for: fills and overwrites are in batches that are durable each, for all alike
(there nothing is flushed but in fillsync); reads are of as many keys as the parameters say;
deleterandom takes each key once, since what is not there cannot be deleted in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

from capstore.schema.limits import MIB, TRANSFER_BYTES_MAX
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.st1_stores import Objects, Pair
from capstore.tools.bench.workers import Worker

_KEY_BYTES: Final = 16
_HOT_SHARE: Final = 100

# What is to be done, with values of so many bytes; the workers begin when they are awaited.
Work = Callable[[Objects, Parameters, int, Random], Sequence[Worker]]


def key_of(number: int) -> bytes:
    """The key with this number; they are in the order of their numbers."""
    return b"%016d" % number


class Values:
    """Random values, all of a size; making one takes no longer than copying it."""

    def __init__(self, rng: Random, size: int) -> None:
        self._data = rng.randbytes(MIB + size)
        self._size = size
        self._at = 0

    def next(self) -> bytes:
        """Another one."""
        # No divisor of its range: values differ for long.
        self._at = (self._at + 4099) % MIB
        return self._data[self._at : self._at + self._size]


def pairs_of(numbers: Sequence[int], rng: Random, size: int) -> list[Pair]:
    """A pair for each number."""
    values = Values(rng, size)
    return [(key_of(number), values.next()) for number in numbers]


def batches(pairs: Sequence[Pair], parameters: Parameters, size: int) -> Iterator[Sequence[Pair]]:
    """Parts that can be put at once: over the wire they are one message."""
    step = max(1, min(parameters.st1_batch, TRANSFER_BYTES_MAX // (size + _KEY_BYTES)))
    return (pairs[start : start + step] for start in range(0, len(pairs), step))


async def fill(objects: Objects, pairs: Sequence[Pair], parameters: Parameters, size: int) -> int:
    """Puts all of `pairs`, in batches; how many there are."""
    for batch in batches(pairs, parameters, size):
        await objects.put_all(batch)
    return len(pairs)


def _numbers(parameters: Parameters, rng: Random, count: int) -> list[int]:
    """With repetition, as db_bench has them."""
    return rng.choices(range(parameters.st1_entries), k=count)


def fill_in_order(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """Fillseq of db_bench."""
    pairs = pairs_of(range(parameters.st1_entries), rng, size)
    return [fill(objects, pairs, parameters, size)]


def fill_at_random(
    objects: Objects, parameters: Parameters, size: int, rng: Random
) -> list[Worker]:
    """Fillrandom; overwrite, where all is there already."""
    pairs = pairs_of(_numbers(parameters, rng, parameters.st1_entries), rng, size)
    return [fill(objects, pairs, parameters, size)]


async def _put_each(objects: Objects, pairs: Sequence[Pair]) -> int:
    for key, value in pairs:
        await objects.put(key, value)
    return len(pairs)


def fill_synced(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """Fillsync: each durable before the next."""
    return [
        _put_each(objects, pairs_of(_numbers(parameters, rng, parameters.st1_syncs), rng, size))
    ]


def put_by_many(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """The same by many callers at once, each with its part of the keys."""
    pairs = pairs_of(rng.sample(range(parameters.st1_puts), parameters.st1_puts), rng, size)
    count = parameters.st1_callers
    return [_put_each(objects, pairs[number::count]) for number in range(count)]


async def _get_each(objects: Objects, keys: Sequence[bytes], size: int) -> int:
    for key in keys:
        checked(objects.name, await objects.get(key), size)
    return len(keys)


def read_at_random(
    objects: Objects, parameters: Parameters, size: int, rng: Random
) -> list[Worker]:
    """Readrandom of db_bench."""
    keys = [key_of(number) for number in _numbers(parameters, rng, parameters.st1_reads)]
    return [_get_each(objects, keys, size)]


def read_by_many(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """The same by many callers at once."""
    keys = [key_of(number) for number in _numbers(parameters, rng, parameters.st1_reads)]
    count = parameters.st1_callers
    return [_get_each(objects, keys[number::count], size) for number in range(count)]


def read_missing(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """Readmissing: each key is right behind one that is there."""
    keys = [key_of(number) + b"." for number in _numbers(parameters, rng, parameters.st1_reads)]
    return [_get_each(objects, keys, 0)]


def read_hot(objects: Objects, parameters: Parameters, size: int, rng: Random) -> list[Worker]:
    """Readhot: all reads are of the first hundredth of the keys."""
    hot = range(max(1, parameters.st1_entries // _HOT_SHARE))
    keys = [key_of(number) for number in rng.choices(hot, k=parameters.st1_reads)]
    return [_get_each(objects, keys, size)]


def delete_at_random(
    objects: Objects, parameters: Parameters, size: int, rng: Random
) -> list[Worker]:
    """Deleterandom, until nothing is left."""
    keys = [key_of(number) for number in range(parameters.st1_entries)]
    rng.shuffle(keys)
    step = parameters.st1_batch

    async def worker() -> int:
        for start in range(0, len(keys), step):
            await objects.delete_all(keys[start : start + step])
        return len(keys)

    return [worker()]
