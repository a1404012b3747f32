"""The KJ event loop inside asyncio's: one per running loop, shared by all who need it.

Invariants:

* It runs as long as anybody is inside `kj_loop_running`; the last one out ends it.  pycapnp allows
  one per asyncio loop, while a process may have a service and several clients on one.
* While a KJ loop runs, Python's cyclic collector runs on the loop's thread and on no other.  KJ
  aborts the process when an object of its loop is freed elsewhere, and the collector runs wherever
  it is triggered: in a worker thread, for one.  So automatic collection is switched off, and the
  loop itself looks several times a second whether a collection is due.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import capnp

from capstore.images.collecting import collection_paused, is_collection_wanted

_LOOK_SECONDS = 0.2
_OLDEST = 2
# So many times as long as a full collection took there is none.
_FULL_SHARE = 100
_full_at = 0.0


@dataclass
class _Shared:
    users: int = 0
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = WeakKeyDictionary()


@asynccontextmanager
async def kj_loop_running() -> AsyncIterator[None]:
    """While inside, pycapnp works on this asyncio loop.

    A KJ loop that somebody else runs (``capnp.run``) is used as it is.
    """
    loop = asyncio.get_running_loop()
    shared = _by_loop.setdefault(loop, _Shared())
    async with shared.changing:
        if shared.users == 0 and not hasattr(loop, "_kj_loop"):
            async with AsyncExitStack() as entering:
                await entering.enter_async_context(_collecting_here())
                await entering.enter_async_context(capnp.kj_loop())
                shared.stack = entering.pop_all()
        shared.users += 1
    try:
        yield
    finally:
        # Counted before anything that a cancellation could keep from happening.
        shared.users -= 1
        async with shared.changing:
            if shared.users == 0:
                await shared.stack.aclose()
                shared.stack = AsyncExitStack()


@asynccontextmanager
async def _collecting_here() -> AsyncIterator[None]:
    """While inside, this loop does what automatic garbage collection would do."""
    with collection_paused():
        collector = asyncio.create_task(_collect_when_due())
        try:
            yield
        finally:
            collector.cancel()


async def _collect_when_due() -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        collect_if_due()


def collect_if_due() -> None:
    """Collects the generation that automatic collection would collect now, if any.

    The oldest, which stops the loop for as long as it takes to look at everything, only so often
    that it takes a hundredth of the time.
    """
    global _full_at  # noqa: PLW0603 - there is one collector
    thresholds, counts = gc.get_threshold(), gc.get_count()
    if not is_collection_wanted() or not thresholds[0] or counts[0] <= thresholds[0]:
        return
    due = [
        generation
        for generation in (1, 2)
        if thresholds[generation] and counts[generation] > thresholds[generation]
    ]
    begin = time.monotonic()
    if due and due[-1] == _OLDEST and begin >= _full_at:
        gc.collect(_OLDEST)
        end = time.monotonic()
        _full_at = end + _FULL_SHARE * (end - begin)
    else:
        gc.collect(min(1, max(due, default=0)))
