"""How much: what a capability may store, and how fast it may be used.

Invariants:

* What a `Book` holds as used is never less than by how much the store grew through its capability,
  whatever fails or is cancelled: room is reserved before a change and given back behind it.
* Changes of one key that are accounted for run one after the other (`KeyLocks`), so that what each
  replaces is known.
* A `Pace` never waits: what is over the rate is `Busy`, and has had no effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from capstore.schema.errors import Busy, QuotaExceeded

T = TypeVar("T")


class Book:
    """What may be stored (0 is no bound), and what is."""

    __slots__ = ("bytes_max", "bytes_used", "nodes_max", "nodes_used")

    def __init__(
        self, bytes_max: int, nodes_max: int, bytes_used: int = 0, nodes_used: int = 0
    ) -> None:
        self.bytes_max, self.nodes_max = bytes_max, nodes_max
        self.bytes_used, self.nodes_used = bytes_used, nodes_used

    def __repr__(self) -> str:
        return (
            f"<Book {self.bytes_used}/{self.bytes_max} bytes, "
            f"{self.nodes_used}/{self.nodes_max} nodes>"
        )

    def check(self, size: int, nodes: int) -> None:
        """Raises `QuotaExceeded` where so much more does not fit."""
        over_bytes = self.bytes_max and size and self.bytes_used + size > self.bytes_max
        over_nodes = self.nodes_max and nodes and self.nodes_used + nodes > self.nodes_max
        if over_bytes or over_nodes:
            raise QuotaExceeded("over the quota of this capability")

    def add(self, size: int, nodes: int) -> None:
        """So much more, or less, is used; never less than nothing."""
        self.bytes_used = max(0, self.bytes_used + size)
        self.nodes_used = max(0, self.nodes_used + nodes)


def reserve(books: Iterable[Book], size: int, nodes: int) -> None:
    """Takes room in all of `books` or, raising `QuotaExceeded`, in none."""
    for book in books:
        book.check(size, nodes)
    give_back(books, -size, -nodes)


def give_back(books: Iterable[Book], size: int, nodes: int) -> None:
    """Gives room back to all of `books`."""
    for book in books:
        book.add(-size, -nodes)


class Pace:
    """At most so many calls and bytes a second (0 is no bound), with one second's worth at once.

    A call may take the last of what is left and more; those behind it wait for that.
    """

    __slots__ = ("_at", "_bytes_left", "_calls_left", "_clock", "bytes_rate", "calls_rate")

    def __init__(
        self, calls_rate: int, bytes_rate: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.calls_rate, self.bytes_rate = calls_rate, bytes_rate
        self._calls_left, self._bytes_left = float(calls_rate), float(bytes_rate)
        self._clock = clock
        self._at = clock()

    def begin(self) -> None:
        """One more call.  Raises `Busy` over either rate."""
        now = self._clock()
        seconds, self._at = max(0, now - self._at) / 1e9, now
        self._calls_left = min(self.calls_rate, self._calls_left + seconds * self.calls_rate)
        self._bytes_left = min(self.bytes_rate, self._bytes_left + seconds * self.bytes_rate)
        if (self.calls_rate and self._calls_left < 1) or (self.bytes_rate and self._bytes_left < 0):
            raise Busy("over the rate of this capability; try again later")
        self._calls_left -= 1

    def moved(self, size: int) -> None:
        """So many bytes are moved by the call."""
        self._bytes_left -= size


class KeyLocks:
    """A lock for each key that is being changed."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def held(self, keys: Iterable[bytes]) -> AsyncIterator[None]:
        """Holds all of `keys`, taken in one order so that two never wait for each other."""
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self._one(key))
            yield

    @asynccontextmanager
    async def _one(self, key: bytes) -> AsyncIterator[None]:
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


async def uninterrupted(change: Coroutine[Any, Any, T]) -> T:
    """Awaits `change` to its end; who is cancelled meanwhile is so behind it."""
    task = asyncio.ensure_future(change)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # What it raised is of no interest to who was cancelled; it must be looked at all the same.
        _ = task.cancelled() or task.exception()
        try:
            raise cancelled
        finally:
            # It keeps this frame, so this frame must not keep it.
            del cancelled
    return task.result()
