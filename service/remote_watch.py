"""A watch of a remote directory, as whoever watches has it.

Invariants:

* What was told and not yet asked for is bounded: the service is answered when all of it was taken,
  and tells nothing before; one that does so all the same has it made an overflow, and is answered
  at once.
* Nothing that goes wrong here is told to the service.
* Whoever drops or closes the watch lets go of everything; so does its end at the service.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from capstore.schema import wire
from capstore.schema.errors import StorageError, TransportError
from capstore.schema.limits import WATCH_CHANGES_MAX
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.messages import read_changes
from capstore.service.remote import Held, answer_of

__all__ = ["Watching"]

_OVERFLOW: Final = Change(ChangeKind.OVERFLOW)


class _Inbox:
    """What was told and not yet asked for."""

    def __init__(self) -> None:
        self.changes: deque[Change] = deque()
        self.failure: StorageError | None = None
        # Whether nothing more comes.
        self.is_over = False
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        # Whether a telling waits for all to be taken.
        self._is_awaited = False

    async def put(self, changes: list[Change]) -> None:
        """Returns when all that was told so far was taken, or nobody takes anything any more."""
        if self.is_over:
            return
        if self._is_awaited or len(self.changes) + len(changes) > WATCH_CHANGES_MAX:
            self.changes.clear()
            changes = [_OVERFLOW]
        self.changes.extend(changes)
        self._arrived.set()
        if self.changes and not self._is_awaited:
            self._taken.clear()
            self._is_awaited = True
            try:
                await self._taken.wait()
            finally:
                self._is_awaited = False

    async def filled(self) -> None:
        """Returns when there is something to be taken, or nothing more comes."""
        while not self.changes and not self.is_over:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self) -> Change:
        """The first of what was told."""
        change = self.changes.popleft()
        if not self.changes:
            self._taken.set()
        return change

    def end(self, failure: StorageError | None = None) -> None:
        """Nothing more comes; what has come may still be taken."""
        self.failure = self.failure or failure
        self.is_over = True
        self._arrived.set()
        self._taken.set()


class _Watcher(wire.Watcher.Server):  # type: ignore[misc]
    """What the service has of an inbox; it drops it when the watch has ended."""

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()

    async def changed_context(self, context: Any) -> None:
        try:
            changes = read_changes(context.params)
        except StorageError as error:
            self._inbox.end(error)
            return
        await self._inbox.put(changes)

    def __del__(self) -> None:
        # RuntimeError: the loop has ended, and nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._inbox.end)


class Watching:
    """Changes of the entries of a directory, in the order in which they took effect.

    An asynchronous iterator, and the context in which to use it: it watches from when it is entered
    (or, without that, first asked) until it is left, closed or dropped.  A listing that is made
    when it has been entered, followed by what it gives, is the directory as it is.  Of changes that
    were not asked for in time some are left out, and an overflow stands for them: list again.

    When the watch ends at the service, iterating raises why, once: `Revoked`, `Expired`, `NotFound`
    (the directory was removed), `Disconnected`.  Entering raises these too, and `Busy`.
    """

    def __init__(self, directory: Any) -> None:
        self._directory: Held | None = Held(directory)
        self._watch: Held | None = None
        self._inbox = _Inbox()

    def __repr__(self) -> str:
        state = "over" if self._inbox.is_over else f"{len(self._inbox.changes)} changes"
        return f"<Watching {state}>"

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if self._directory is not None:
            await self._begin()
        await self._inbox.filled()
        if self._inbox.changes:
            return self._inbox.take()
        watch, self._watch = self._watch, None
        if self._inbox.failure is not None:
            failure, self._inbox.failure = self._inbox.failure, None
            raise failure
        if watch is not None:
            # Closing what has ended tells why it has.
            await answer_of(watch.raw.close())
        raise StopAsyncIteration

    async def _begin(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            response = await answer_of(directory.raw.watch(_Watcher(self._inbox)))
            watch = response.watch
            # It would keep the answer, for which RPC at the service keeps what it was asked with,
            # so that the end of the watch there would not drop the watcher here.
            watch._parent = None
            self._watch = Held(watch)

    async def aclose(self) -> None:
        """Ends the watch, at the service too if it can be reached; again does nothing."""
        watch, self._watch = self._watch, None
        self._directory = None
        self._inbox.changes.clear()
        self._inbox.end()
        if watch is not None:
            # It may have ended already, for whatever reason.
            with suppress(StorageError, TransportError):
                await answer_of(watch.raw.close())
