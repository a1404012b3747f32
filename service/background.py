"""One event loop in a thread of its own, for programs that are not asynchronous.

Invariants:

* A process has at most one background loop, made when it is first needed and ended at exit.  A
  child made by fork has none of its parent's and makes its own.
* `call` may be used from any thread but the loop's own.  When the caller is interrupted, what it
  waited for is cancelled.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from capstore.schema.errors import Closed
from capstore.service.loop import kj_loop_running

T = TypeVar("T")


class BackgroundLoop:
    """A running event loop with KJ inside; get the process's own by `background_loop`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name="capstore", daemon=True
        )
        self._thread.start()
        started.wait()

    @property
    def usable(self) -> bool:
        """Whether it runs, in this process."""
        return self._pid == os.getpid() and self._thread.is_alive() and self._loop is not None

    async def _main(self, started: threading.Event) -> None:
        async with kj_loop_running():
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            started.set()
            await self._stop.wait()
            self._loop = None

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` on the loop and returns its result or raises its exception.

        Raises `Closed` when the loop has ended, and RuntimeError on the loop's own thread, where
        it could only wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("the synchronous interface was called on its own event loop")
        if not self.usable or self._loop is None:
            coroutine.close()
            raise Closed("the background loop has ended")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("the background loop has ended") from None
        except BaseException:
            future.cancel()
            raise

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


def _forget_after_fork() -> None:
    global _current, _making  # noqa: PLW0603
    _current, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
