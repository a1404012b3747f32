"""How much: what a capability may store, and how fast it may be used.

Invariants:

* What a `Book` holds as used is never less than by how much the store, or tree, grew through its
  capability, whatever fails or is cancelled: room is reserved before a change and given back
  behind it.
* Changes of one key that are accounted for run one after the other (`KeyLocks`), so that what each
  replaces is known.
* What is over a rate waits, in the order of coming and for `PACE_SECONDS_MAX` at most, or is
  `Busy`; until its turn has come it has had no effect, and cancelled it is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from capstore.schema.errors import Busy, QuotaExceeded
from capstore.schema.limits import PACE_SECONDS_MAX
from capstore.schema.nodes import Usage

T = TypeVar("T")


class Book:
    """What may be stored (0 is no bound), and what is."""

    __slots__ = ("_dry", "_of", "bytes_max", "bytes_used", "nodes_max", "nodes_used")

    def __init__(
        self,
        bytes_max: int,
        nodes_max: int,
        bytes_used: int = 0,
        nodes_used: int = 0,
        *,
        dry: bool = False,
    ) -> None:
        """`dry`: of a dry run, from its beginning on."""
        self._dry = dry
        self._of: Book | None = None
        self.bytes_max, self.nodes_max = bytes_max, nodes_max
        self.bytes_used, self.nodes_used = bytes_used, nodes_used

    def __repr__(self) -> str:
        return (
            f"<Book {self.bytes_used}/{self.bytes_max} bytes, "
            f"{self.nodes_used}/{self.nodes_max} nodes>"
        )

    def copy(self) -> Book:
        """One for a dry run over this one: with the same bounds, of which as much is used."""
        copy = Book(self.bytes_max, self.nodes_max, self.bytes_used, self.nodes_used, dry=True)
        copy._of = self
        return copy

    def anew(self) -> Book:
        """One for a dry run that begins anew, for which no other one counts."""
        book = self
        while book._of is not None:
            book = book._of
        return Book(book.bytes_max, book.nodes_max, dry=True) if book._dry else book.copy()

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


def usage_of(books: Sequence[Book]) -> Usage:
    """Limit and use of the tightest of some books: of bytes, and of nodes, each for itself."""
    for_bytes = min(
        (book for book in books if book.bytes_max),
        key=lambda book: book.bytes_max - book.bytes_used,
        default=books[-1],
    )
    for_nodes = min(
        (book for book in books if book.nodes_max),
        key=lambda book: book.nodes_max - book.nodes_used,
        default=books[-1],
    )
    return Usage(
        total_bytes=for_bytes.bytes_max,
        used_bytes=for_bytes.bytes_used,
        free_bytes=max(0, for_bytes.bytes_max - for_bytes.bytes_used),
        total_nodes=for_nodes.nodes_max,
        used_nodes=for_nodes.nodes_used,
    )


class Pace:
    """At most so many calls and bytes a second (0 is no bound), with one second's worth at once.

    A call may take the last of what is left and more; those behind it wait for that.  Who comes
    first is first; who would wait for more than `PACE_SECONDS_MAX` is `Busy` at once.
    """

    __slots__ = (
        "_at",
        "_bytes_left",
        "_calls_left",
        "_clock",
        "_turn",
        "_waiting",
        "_waiting_bytes",
        "bytes_rate",
        "calls_rate",
    )

    def __init__(
        self, calls_rate: int, bytes_rate: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.calls_rate, self.bytes_rate = calls_rate, bytes_rate
        self._calls_left, self._bytes_left = float(calls_rate), float(bytes_rate)
        self._clock = clock
        self._at = clock()
        # A lock is given in the order of asking.
        self._turn = asyncio.Lock()
        self._waiting = self._waiting_bytes = 0

    def __repr__(self) -> str:
        return (
            f"<Pace {self._calls_left:.1f}/{self.calls_rate} calls, "
            f"{self._bytes_left:.0f}/{self.bytes_rate} bytes, {self._waiting} wait>"
        )

    async def begin(self, size: int = 0) -> None:
        """One more call, which brings `size` bytes; returns when it may go on.

        Raises `Busy` for one that would have to wait for too long; it has taken nothing.
        """
        if not self._waiting and self._seconds_left() <= 0:
            self._take(size)
            return
        if self._seconds_left(self._waiting, self._waiting_bytes) > PACE_SECONDS_MAX:
            raise _busy()
        self._waiting += 1
        self._waiting_bytes += size
        try:
            async with asyncio.timeout(PACE_SECONDS_MAX), self._turn:
                while (seconds := self._seconds_left()) > 0:  # noqa: ASYNC110 - time passes
                    await asyncio.sleep(seconds)
                self._take(size)
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    def _seconds_left(self, calls: int = 0, size: int = 0) -> float:
        """How long the next call has to wait behind so many others that bring so many bytes."""
        now = self._clock()
        seconds, self._at = max(0, now - self._at) / 1e9, now
        self._calls_left = min(self.calls_rate, self._calls_left + seconds * self.calls_rate)
        self._bytes_left = min(self.bytes_rate, self._bytes_left + seconds * self.bytes_rate)
        wait = 0.0
        if self.calls_rate:
            wait = (1 + calls - self._calls_left) / self.calls_rate
        if self.bytes_rate:
            wait = max(wait, (size - self._bytes_left) / self.bytes_rate)
        return wait

    def _take(self, size: int) -> None:
        self._calls_left -= 1
        self._bytes_left -= size

    def give_back(self, size: int) -> None:
        """A call that began brings nothing after all."""
        self._calls_left += 1
        self._bytes_left += size

    def moved(self, size: int) -> None:
        """So many more bytes are moved by the call."""
        self._bytes_left -= size


def _busy() -> Busy:
    return Busy("over the rate of this capability; try again later")


class KeyLocks:
    """A lock for each key that is being changed."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def held(self, keys: Iterable[bytes]) -> AsyncIterator[None]:
        """Holds all of `keys`, taken in one order so that two never wait for each other."""
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self.one(key))
            yield

    def one(self, key: bytes) -> _KeyLock:
        """Holds one key, as the context that it is."""
        return _KeyLock(self._locks, key)


class _KeyLock:
    """A class of its own, since `asynccontextmanager` costs more than the lock."""

    __slots__ = ("_key", "_locks")

    def __init__(self, locks: dict[bytes, tuple[asyncio.Lock, int]], key: bytes) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._key) or (asyncio.Lock(), 0)
        self._locks[self._key] = lock, users + 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *exc: object) -> None:
        self._locks[self._key][0].release()
        self._leave()

    def _leave(self) -> None:
        lock, users = self._locks.pop(self._key)
        if users > 1:
            self._locks[self._key] = lock, users - 1


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
