"""A service with a loop on a thread of its own, for tests of what is not asynchronous."""

from __future__ import annotations

import asyncio
import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class OnAThread(ABC):
    """Serves from when it was made until `stop`; raises what starting raises."""

    def __init__(self, name: str) -> None:
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()
        assert self._ready.wait(20)
        if self._failure is not None:
            raise self._failure

    @abstractmethod
    async def serve(self) -> None:
        """Starts, waits in `until_stopped`, and ends."""

    async def until_stopped(self) -> None:
        self._ready.set()
        await self._done.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        await self.serve()
        # What pycapnp made here has to be freed here, cycles included.
        gc.collect()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work` where the service lives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the service does not stop"
