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
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

T = TypeVar("T")


def _new_pool() -> ThreadPoolExecutor:
    # More threads than cores: they wait for devices.
    return ThreadPoolExecutor(max_workers=16, thread_name_prefix="capstore-worker")


_pool = _new_pool()


def renew_workers() -> None:
    """Ends the worker threads when what they have to do is done, and waits for that.

    Those that are begun from then on inherit what the thread that needs them was restricted to.
    """
    global _pool
    ending, _pool = _pool, _new_pool()
    ending.shutdown()


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
    finally:
        # Its exception holds this frame, so this frame must not hold it.
        del future


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

    __slots__ = ("_trip", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[_Call] = []
        self._trip: _Trip | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits in it."""
        return (self._trip is None or self._trip.is_over) and not self._waiting

    async def run(self, function: Callable[[], T], behind: Callable[[T], None] | None = None) -> T:
        """Runs `function` behind what is waiting; returns its result or raises its exception.

        `behind` is given the result in the same worker, when the lane has gone on to others; it is
        waited for, too.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, behind, loop.create_future())
        self._waiting.append(call)
        self._go_on(loop)
        return cast("T", await finished(call.future))

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins a trip with whoever waits, if none is under way."""
        if not self._waiting or not (self._trip is None or self._trip.is_over):
            return
        batch, self._waiting = self._waiting, []
        self._trip = trip = _Trip()
        try:
            _pool.submit(self._make, loop, trip, batch)
        except RuntimeError as error:
            # The interpreter is going down.
            trip.is_over = True
            for call in batch:
                _settle((call, None, error))

    def _make(self, loop: asyncio.AbstractEventLoop, trip: _Trip, batch: list[_Call]) -> None:
        """In a worker: makes the calls, and what comes behind them."""
        done, left = _made(batch)
        # From here on who comes begins the next trip; who has come before has to be seen to.
        trip.is_over = True
        # The loop may be closed, and then nobody waits.
        with suppress(RuntimeError):
            if done or self._waiting:
                loop.call_soon_threadsafe(self._deliver, loop, done)
            while left:
                loop.call_soon_threadsafe(_settle, _outcome_behind(*left.pop(0)))

    def _deliver(self, loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
        # The worker has the same list, and may be slow to return: it keeps no results alive.
        while outcomes:
            _settle(outcomes.pop(0))
        self._go_on(loop)


class _Trip:
    """Calls in a worker; `is_over` when all are made, but for what comes behind them."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False


class _Call(NamedTuple):
    function: Callable[[], Any]
    behind: Callable[[Any], None] | None
    future: asyncio.Future[Any]


_Outcome = tuple[_Call, Any, BaseException | None]


def _made(batch: list[_Call]) -> tuple[list[_Outcome], list[_Outcome]]:
    """What came of the calls, which `batch` has no more: those done, and those with more to do."""
    done: list[_Outcome] = []
    left: list[_Outcome] = []
    for call in batch:
        outcome = _outcome(call)
        goes_on = call.behind is not None and outcome[2] is None
        (left if goes_on else done).append(outcome)
    batch.clear()
    return done, left


def _outcome(call: _Call) -> _Outcome:
    try:
        return call, call.function(), None
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is its caller's
        return call, None, error


def _outcome_behind(call: _Call, result: Any, _: BaseException | None) -> _Outcome:
    assert call.behind is not None  # noqa: S101 - for whoever reads types
    try:
        call.behind(result)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is its caller's
        return call, None, error
    return call, result, None


def _settle(outcome: _Outcome) -> None:
    call, result, error = outcome
    if call.future.done():
        return
    if error is None:
        call.future.set_result(result)
    else:
        call.future.set_exception(error)
