"""One event loop in a thread of its own, for programs that are not asynchronous.

Invariants:

* A process has at most one background loop, made when it is first needed and ended at exit.  A
  child made by fork has none of its parent's and makes its own.
* `call` may be used from any thread but the loop's own.  When the caller is interrupted, what it
  waited for is cancelled.
* What pycapnp hands out is used and freed on the loop's own thread: freed on another, it aborts the
  process.  Other threads hold it by `Kept` handles; no result of `call` and no frame in the
  traceback of what it raises leads to it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import ctypes
import itertools
import os
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from capstore.schema.errors import Closed, StorageError, TransportError
from capstore.service.loop import kj_loop_running

T = TypeVar("T")
Closer = Callable[[], Awaitable[None]]


class Kept(Generic[T]):
    """A handle, for any thread, to an object that lives on a background loop."""

    __slots__ = ("_key", "_loop")

    def __init__(self, loop: BackgroundLoop, key: int) -> None:
        self._loop = loop
        self._key = key

    @property
    def value(self) -> T:
        """The object; on the loop only.  Raises `Closed` when it was released."""
        thing: T = self._loop.kept(self._key)
        return thing

    def release(self) -> None:
        """Lets the loop drop the object; may be called again and from any thread."""
        self._loop.release(self._key)

    def __del__(self) -> None:
        self.release()


class BackgroundLoop:
    """A running event loop with KJ inside; get the process's own by `background_loop`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._kept: dict[int, tuple[Any, Closer | None]] = {}
        self._keys = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._run(started), name="capstore", daemon=True
        )
        self._thread.start()
        started.wait()

    @property
    def usable(self) -> bool:
        """Whether it runs, in this process."""
        return self._pid == os.getpid() and self._thread.is_alive() and self._loop is not None

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._main(started))
        finally:
            # Also when it failed: who waits must not wait for ever.
            started.set()

    async def _main(self, started: threading.Event) -> None:
        async with kj_loop_running():
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            started.set()
            await self._stop.wait()
            self._loop = None
            for key in reversed(list(self._kept)):
                self._drop(key)
            while self._closing:
                await asyncio.wait(self._closing)

    def keep(self, thing: T, close: Closer | None = None) -> Kept[T]:
        """A handle to `thing` for other threads; to be called on the loop.

        When the handle is released, or the loop ends, `close` is awaited on the loop.
        """
        key = next(self._keys)
        self._kept[key] = (thing, close)
        return Kept(self, key)

    def kept(self, key: int) -> Any:
        """What was kept under `key`; to be called on the loop.  Raises `Closed`."""
        if self._pid != os.getpid() or key not in self._kept:
            raise Closed("it was released")
        return self._kept[key][0]

    def release(self, key: int) -> None:
        """Drops what was kept under `key`, soon and on the loop; never waits, from any thread."""
        loop = self._loop
        # RuntimeError: the loop ended since, and with it everything that was kept.
        if loop is not None and self._pid == os.getpid():
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._drop, key)

    def _drop(self, key: int) -> None:
        _, close = self._kept.pop(key, (None, None))
        if close is not None:
            closing = asyncio.create_task(_closed(close))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` on the loop and returns its result or raises its exception.

        Raises `Closed` when the loop has ended, and RuntimeError on the loop's own thread, where
        it could only wait for itself.
        """
        future = self.submit(coroutine)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("the background loop has ended") from None
        except BaseException:
            future.cancel()
            raise
        finally:
            # It holds the exception whose traceback holds this frame.
            del future

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """As `call`, for who waits in a way of its own: on another event loop, say."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("the synchronous interface was called on its own event loop")
        loop = self._loop
        if not self.usable or loop is None:
            coroutine.close()
            raise Closed("the background loop has ended")
        guarded = _without_frames(coroutine)
        try:
            return asyncio.run_coroutine_threadsafe(guarded, loop)
        except RuntimeError:
            guarded.close()
            coroutine.close()
            raise Closed("the background loop has ended") from None

    def stop(self) -> None:
        """Ends the loop; calls under way raise `Closed`."""
        loop, stop = self._loop, self._stop
        if self._pid != os.getpid() or loop is None or stop is None:
            return
        loop.call_soon_threadsafe(stop.set)
        self._thread.join(timeout=10)


_current: BackgroundLoop | None = None
_making = threading.Lock()


def background_loop() -> BackgroundLoop:
    """The background loop of this process."""
    global _current  # noqa: PLW0603 - one loop for each process is the point
    with _making:
        if _current is None or not _current.usable:
            _current = BackgroundLoop()
            atexit.register(_current.stop)
        return _current


async def _without_frames(coroutine: Coroutine[Any, Any, T]) -> T:
    """Awaits `coroutine`; what it raises comes without the frames it passed through.

    They hold capabilities, and an exception is freed on the thread that catches it.
    """
    try:
        return await coroutine
    except BaseException as error:  # noqa: BLE001 - it is raised again
        if not isinstance(error, StorageError | TransportError | asyncio.CancelledError):
            # A bug, probably: at least say where.
            error.add_note("".join(traceback.format_tb(error.__traceback__)))
        _forget_frames(error)
        raise error.with_traceback(None)  # noqa: B904 - the same one, not one caused by it


def _forget_frames(error: BaseException) -> None:
    """Takes the tracebacks from `error` and from all that led to it."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            todo += [one.__cause__, one.__context__]


async def _closed(close: Closer) -> None:
    # Closing a connection that is gone may fail; nobody is left to be told.
    with suppress(Exception):
        await close()


_PyObject_IncRef = ctypes.pythonapi.Py_IncRef


def _forget_after_fork() -> None:
    global _current, _making
    if _current is not None:
        # Its capabilities belong to a thread and a socket of the parent; the child must never get
        # to free them.
        _PyObject_IncRef(ctypes.py_object(_current))
    _current, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
