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
from typing import Any, TypeVar

T = TypeVar("T")

# More threads than cores: they wait for devices.
_pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="capstore-worker")


async def in_worker(function: Callable[[], T]) -> T:
    """Runs `function` in a worker thread and returns its result or raises its exception.

    A cancellation is delivered only when the function has ended; its result is dropped then.
    """
    return await finished(asyncio.get_running_loop().run_in_executor(_pool, function))


async def finished(future: asyncio.Future[T]) -> T:
    """What `future` brings; a cancellation is delivered only when it has ended."""
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


class Lane:
    """Blocking calls one after another, those that wait together in one trip to a worker.

    A trip costs more than a small write does, and calls that would wait for the same lock gain
    nothing from threads of their own.  To be used from one event loop; a call is cancelled as
    `in_worker` has it.
    """

    __slots__ = ("_busy", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._busy = False

    async def run(self, function: Callable[[], T]) -> T:
        """Runs `function` behind what is waiting; returns its result or raises its exception."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((function, future))
        if not self._busy:
            self._busy = True
            self._start(asyncio.get_running_loop())
        return await finished(future)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []
        trip = loop.run_in_executor(_pool, lambda: [_outcome(function) for function, _ in batch])
        trip.add_done_callback(lambda done: self._deliver(loop, batch, done))

    def _deliver(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting],
        trip: asyncio.Future[list[tuple[Any, BaseException | None]]],
    ) -> None:
        for (_, future), (result, error) in zip(batch, trip.result(), strict=True):
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if self._waiting:
            self._start(loop)
        else:
            self._busy = False


_Waiting = tuple[Callable[[], Any], "asyncio.Future[Any]"]


def _outcome(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is its caller's
        return None, error
