"""Doing a workload: coroutines, each of which counts what it did.

Invariants: those of whoever has an event loop wait on it; those of whoever blocks never wait, and
each of many has a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from capstore.tools.bench.contestants import BenchError

# A part of a workload; what it comes to is how many units it did.
Worker = Coroutine[Any, Any, int]


async def gathered(workers: Sequence[Worker]) -> int:
    """Does all of `workers` at once, on the loop; how many units that was."""
    if len(workers) == 1:
        return await workers[0]
    return sum(await asyncio.gather(*workers))


def in_threads(workers: Sequence[Worker]) -> int:
    """Does all of `workers` at once, none of which ever waits; how many units that was."""
    if len(workers) == 1:
        return driven(workers[0])
    try:
        with ThreadPoolExecutor(max_workers=len(workers)) as pool:
            return sum(pool.map(driven, workers))
    finally:
        # When one has failed, others may not have begun.
        for worker in workers:
            worker.close()


def driven(worker: Worker) -> int:
    """What a coroutine comes to that never waits.  Raises `BenchError` for one that does."""
    try:
        worker.send(None)
    except StopIteration as done:
        return int(done.value)
    worker.close()
    raise BenchError("a contestant waits where nobody would wake it")
