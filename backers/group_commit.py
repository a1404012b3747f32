"""Syncs of a volume or store that share a flush: group commit.

Invariants:

* A round writes what is pending to the log, in the lane, then flushes while the lane goes on.  It
  covers whoever asked for it before it began; who asks later waits for the next, with all who do so
  until that begins.  One round runs at a time.
* When a round fails, all who wait for it get the error; the engine has latched.
* What nobody asked to sync is made durable when it is much, or some seconds old.  Nothing runs
  where nothing was written: rounds are tasks that end.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Final, Protocol

from capstore.backers.workers import Lane
from capstore.schema.limits import MIB

# What nobody asks to sync is durable after about so long all the same.
UNFLUSHED_SECONDS_MAX: Final = 5.0
# So much is written until a flush begins that nobody asked for: what is not known to be durable
# has to be looked at when a volume is opened after a crash.
UNFLUSHED_BYTES_MAX: Final = 32 * MIB


class Committing(Protocol):
    """What an engine does for a round."""

    @property
    def durable(self) -> int:
        """The sequence of the last frame that is known to be durable."""

    def commit(self) -> int:
        """Writes what is pending; the sequence of the last frame."""

    def flush(self, sequence: int) -> None:
        """Makes the frames up to `sequence` durable, in any thread."""


class GroupCommit:
    """The rounds of one engine; used from one event loop."""

    def __init__(self, engine: Committing, lane: Lane) -> None:
        self._engine = engine
        self._lane = lane
        # What those wait for who have asked since the last round began, each by himself: who is
        # cancelled does not disturb the others.
        self._next: list[asyncio.Future[None]] = []
        self._running: asyncio.Task[None] | None = None
        self._unflushed_bytes = 0
        self._flushes_for_itself = False
        self._timer: asyncio.TimerHandle | None = None

    async def sync(self) -> None:
        """Returns when all before is durable.  Raises `StorageIOError`."""
        await self._asked()

    async def flush(self) -> None:
        """As `sync`, with a flush also where nothing is to be made durable."""
        self._flushes_for_itself = True
        await self.sync()

    def wrote(self, size: int) -> None:
        """Counts what was written, and begins a round when that is much."""
        self._unflushed_bytes += size
        if self._unflushed_bytes >= UNFLUSHED_BYTES_MAX:
            self._asked()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            # The timer does not keep a volume that was dropped.
            me = weakref.ref(self)
            self._timer = loop.call_later(UNFLUSHED_SECONDS_MAX, _ask, me)

    async def finish(self) -> None:
        """Waits until nothing is under way; nothing begins by itself behind this."""
        self._stop_timer()
        while self._running is not None:
            await asyncio.wait([self._running])

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _asked(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        asked = loop.create_future()
        self._next.append(asked)
        if self._running is None:
            # A task begins with the next turn of the loop: who asks in this one goes along.
            self._running = loop.create_task(self._rounds())
        return asked

    async def _rounds(self) -> None:
        try:
            while waiting := self._next:
                self._next = []
                error: BaseException | None = None
                try:
                    await self._round()
                except BaseException as failed:  # noqa: BLE001 - whatever it is, it is theirs
                    error = failed
                for asked in waiting:
                    _answer(asked, error)
        finally:
            self._running = None

    async def _round(self) -> None:
        engine = self._engine
        self._unflushed_bytes = 0
        self._stop_timer()
        needed, self._flushes_for_itself = self._flushes_for_itself, False

        def flush(sequence: int) -> None:
            if needed or sequence > engine.durable:
                engine.flush(sequence)

        # In one trip: the lane goes on to others while the same worker flushes.
        await self._lane.run(engine.commit, flush)


def _answer(asked: asyncio.Future[None], error: BaseException | None) -> None:
    if asked.done():
        return
    if error is None:
        asked.set_result(None)
    else:
        asked.set_exception(error)
        # There may be nobody who waits.
        asked.exception()


def _ask(reference: weakref.ref[GroupCommit]) -> None:
    """Begins a round of whoever is still there."""
    commits = reference()
    if commits is not None:
        commits._asked()
