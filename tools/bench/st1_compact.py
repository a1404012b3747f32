"""The case about who uses a CAPOSST1 store while it is compacted.

Invariants: who gets, who puts and who compacts are tasks of one event loop, as clients of one
service are.  A get takes until its caller has its turn again, with one turn of the loop behind the
answer, in which anybody else may have the loop or the interpreter.  What is put is new, so nothing
dies meanwhile; each put is durable when it is acknowledged.  The space is what the image takes of
the disk when it was compacted and closed, beside the bytes of all keys and values.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectStore
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.st1_remote import served
from capstore.tools.bench.st1_site import COMPACTED_VALUE_BYTES, Enter, Site
from capstore.tools.bench.st1_stores import IMAGE
from capstore.tools.bench.st1_workloads import Values, key_of
from capstore.tools.bench.wf1_taken import Batch, Taken, timed

ALONE: Final = "alone"

_STAT_BLOCK_BYTES: Final = 512

# What goes on beside, until it returns; and who opens the store.
_Beside = Callable[[ObjectStore, Site], Awaitable[None]]
_Open = Callable[[Path], AbstractAsyncContextManager[ObjectStore]]


@asynccontextmanager
async def _in_process(image: Path) -> AsyncIterator[ObjectStore]:
    store = await St1Store.open(image)
    try:
        yield store
    finally:
        await store.close()


async def _compact(store: ObjectStore, site: Site) -> None:
    await store.compact()


async def _wait(store: ObjectStore, site: Site) -> None:
    await asyncio.sleep(site.parameters.st1_alone_seconds)


def _using(open_store: _Open, beside: _Beside) -> Enter:
    @contextmanager
    def enter(site: Site) -> Iterator[Batch]:
        yield lambda rng, scratch: _taken(site, rng, scratch, open_store, beside)

    return enter


COMPACTING: Final = _using(_in_process, _compact)
COMPACTING_REMOTELY: Final = _using(served, _compact)
WAITING: Final = _using(_in_process, _wait)


@dataclass(slots=True)
class _Times:
    """In seconds, of each get and of each put that was acknowledged; the time of the whole."""

    gets: array[float] = field(default_factory=lambda: array("d"))
    puts: array[float] = field(default_factory=lambda: array("d"))
    seconds: float = 0.0


def _taken(site: Site, rng: Random, scratch: Path, open_store: _Open, beside: _Beside) -> Taken:
    folder, live = site.half_dead
    image = scratch / IMAGE
    shutil.copyfile(folder / IMAGE, image)
    times = _Times()
    with _nothing_collected():
        taken = timed(lambda: asyncio.run(_used(site, rng, image, live, open_store, beside, times)))
    objects = len(live) + len(times.puts)
    live_bytes = objects * (COMPACTED_VALUE_BYTES + len(key_of(0)))
    details = {
        **_percentiles("get", times.gets),
        **_percentiles("put", times.puts),
        "puts": len(times.puts),
        "took_s": times.seconds,
        "space_ratio": image.stat().st_blocks * _STAT_BLOCK_BYTES / live_bytes,
    }
    return Taken(taken.units, times.seconds, details)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What the bench has made until now takes no part in the collection of garbage, which would
    look at all of it while somebody waits."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _percentiles(what: str, times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(1000 * one for one in times)
    details = {f"{what}_p{part}_ms": ordered[len(ordered) * part // 100] for part in (50, 99)}
    return {**details, f"{what}_max_ms": ordered[-1]}


async def _used(
    site: Site,
    rng: Random,
    image: Path,
    live: Sequence[int],
    open_store: _Open,
    beside: _Beside,
    times: _Times,
) -> int:
    """Gets and puts until `beside` is done; how many gets there were."""
    async with open_store(image) as store:
        done = asyncio.Event()
        choices = [Random(rng.random()) for _ in range(2)]  # noqa: S311 - a workload
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(_get(store, live, choices[0], times.gets, done))
            group.create_task(_put(store, site, choices[1], times.puts, done))
            await beside(store, site)
            done.set()
        times.seconds = time.perf_counter() - began
    return len(times.gets)


async def _get(
    store: ObjectStore, live: Sequence[int], rng: Random, times: array[float], done: asyncio.Event
) -> None:
    while not done.is_set():
        key = key_of(rng.choice(live))
        began = time.perf_counter()
        data = await store.get(key)
        await asyncio.sleep(0)
        times.append(time.perf_counter() - began)
        checked("capstore", len(data), COMPACTED_VALUE_BYTES)


async def _put(
    store: ObjectStore, site: Site, rng: Random, times: array[float], done: asyncio.Event
) -> None:
    values = Values(rng, COMPACTED_VALUE_BYTES)
    first = site.parameters.st1_compact_bytes
    while not done.is_set():
        # Numbers that no object has yet.
        key, value = key_of(first + len(times)), values.next()
        began = time.perf_counter()
        await store.put(value, key)
        times.append(time.perf_counter() - began)
