"""An event loop on which the same work is the same each time.

Invariants:

* One thread does everything: what would be done in a worker is done at once, in its caller's turn.
  So whatever a device records is in the order in which it was asked for.
* Time stands still: nothing happens because some time has gone by.
* `run` returns when nothing is left to do, also of what was begun beside the work.
* What a `StorageError` came through is let go of at the end of `run`, and not when the garbage
  collector comes by: with it goes whatever that held of a volume, which may write to its log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context
from functools import cache
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

from capstore.backers import overlay_tree, workers
from capstore.schema.errors import StorageError

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class _AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is its caller's
            future.set_exception(error)
        return future


class _Clocked:
    """What stands for the module `time` in what is not given a clock."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.time_ns = clock


class StillLoop(asyncio.BaseEventLoop):
    """A loop without time, descriptors and other threads."""

    def __init__(self) -> None:
        super().__init__()
        # What the loop asks for events: it has none, and what is not ready will never be.
        self._selector = self
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._kept)

    def time(self) -> float:
        return 0.0

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """A timer that never goes off."""
        return asyncio.TimerHandle(when, callback, args, self, context)

    def _kept(
        self, loop: asyncio.AbstractEventLoop, work: Any, /, **about: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **about)
        self.tasks.append(task)
        return task

    def forget(self, kept: BaseException | None) -> None:
        """Breaks the circles of exceptions and the frames that they came through; `kept` is not
        looked at."""
        for task in self.tasks:
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None and error is not kept:
                error.__context__ = error.__cause__ = error.__traceback__ = None
        self.tasks.clear()

    def select(self, timeout: float | None) -> list[NoReturn]:
        """Where the loop would wait there is nothing left to do."""
        if timeout != 0:
            self.stop()
        return []

    def _process_events(self, events: list[NoReturn]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It was never to go off."""

    def __del__(self) -> None:
        self.close()


_AT_ONCE: Final = _AtOnce()


@cache
def _loop() -> StillLoop:
    return StillLoop()


@contextmanager
def _at_once(clock: Callable[[], int]) -> Iterator[None]:
    """Has workers and the time be those of this module."""
    pool, time = workers._pool, vars(overlay_tree)["time"]
    vars(workers)["_pool"], vars(overlay_tree)["time"] = _AT_ONCE, _Clocked(clock)
    try:
        yield
    finally:
        vars(workers)["_pool"], vars(overlay_tree)["time"] = pool, time


def run(work: Coroutine[Any, Any, T], clock: Callable[[], int]) -> T:
    """What `work` returns, when nothing is left to do.

    Raises what it raises; a `StorageError` keeps nothing alive of what raised it.
    """
    loop = _loop()
    task = loop.create_task(work)
    with _at_once(clock):
        loop.run_forever()
    if not task.done():
        task.cancel()
        raise AssertionError("it waits for what never comes")
    error = task.exception()
    # Of what is no refusal it is to be seen where it came from.
    loop.forget(None if isinstance(error, StorageError) else error)
    with _at_once(clock):
        loop.run_forever()
    try:
        return task.result()
    finally:
        # Else there is another circle.
        del task, error
