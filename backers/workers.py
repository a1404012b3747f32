"""Blocking calls in worker threads, safe under cancellation.

Invariants: when `in_worker` returns or raises, the function is no longer running, cancelled or
not: a caller that was cancelled finds its change made or not made, and its buffers untouched from
then on.  pycapnp cancels with `asyncio.Task.cancel`, from which anyio's shielded scopes do not
protect, so the waiting is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# More threads than cores: they wait for devices.
_pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="capstore-worker")


async def in_worker(function: Callable[[], T]) -> T:
    """Runs `function` in a worker thread and returns its result or raises its exception.

    A cancellation is delivered only when the function has ended; its result is dropped then.
    """
    future = asyncio.get_running_loop().run_in_executor(_pool, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _ended(future)
        raise


async def _ended(future: asyncio.Future[T]) -> None:
    """Waits for `future` whatever happens; swallows what it brings and further cancellations."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # retrieved, so that nobody warns of it
