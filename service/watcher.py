"""One watch: what is to be told to one client of one directory, and its end.

Invariants:

* Nothing is told that the holder could not list: hidden names are left out when they are noted, and
  authority is asked for before each telling, in the very step that sends it.  Whatever ends the
  authority ends the watch, and when it has ended nothing more is sent.
* One telling is under way at a time.  Until it is answered what follows is noted: once for the same
  change of the same name, and `WATCH_CHANGES_MAX` at most, or less where all watches together have
  too many (`Session.may_note_change`).  What does not fit makes it one overflow.
* Whoever changes something is never held up by it: noting waits for nothing.  A client that never
  answers keeps what is noted for it, and its one telling, until it is gone.
* A telling is a call of the service's own: it is on the session's books with the bytes that it
  sends, as an answer is, and is no call of the client's, so it gives it no further one.
* A watch that has ended holds nothing but the reason: neither node nor client, and no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import capnp

from capstore.schema import wire
from capstore.schema.errors import Closed, NotFound, StorageError
from capstore.schema.limits import WATCH_CHANGES_MAX
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.dispatch import Server, answers
from capstore.service.grants import Effect
from capstore.service.guard import GuardedDirectory
from capstore.service.messages import write_changes

if TYPE_CHECKING:
    from capstore.service.session import Session

__all__ = ["Watch", "WatchServer"]

_OVERFLOW: Final = Change(ChangeKind.OVERFLOW)
# What a telling takes on the wire: its call, and each change, beside the name.
_CALL_BYTES: Final = 72
_CHANGE_BYTES: Final = 24


class Watch:
    """One watch of `directory` for `watcher`, a capability of a client; made by `begun`."""

    def __init__(self, session: Session, directory: GuardedDirectory, watcher: Any) -> None:
        self.grant = directory.grant
        # Holding the directory keeps its id from going to another.
        self._directory: GuardedDirectory | None = directory
        self._directory_id: int | None = None
        self._watcher = watcher
        self._session = session
        self._noted: dict[Change, None] = {}
        self._telling: asyncio.Task[None] | None = None
        self._is_begun = False
        self._reason: StorageError | None = None

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else f"{len(self._noted)} changes"
        return f"<Watch of {self._directory_id}: {state}>"

    @classmethod
    async def begun(cls, session: Session, directory: GuardedDirectory, watcher: Any) -> Watch:
        """A watch that is told of every change that begins from now on.

        Raises `Busy` for one too many, `NotFound` for a directory that was removed, and as the
        directory does.
        """
        watch = cls(session, directory, watcher)
        session.watch_begins(watch)
        directory.grant.adopt(watch)
        try:
            watch._directory_id = await directory.node_id()
            watch._check()
            await watch.grant.hub.begin(watch._directory_id, watch)
            if not (await directory.node.stat()).link_count:
                watch.removed()
            watch._check()
        except BaseException:
            watch.end()
            raise
        # What has happened so far is to be seen in the directory.
        watch._forget()
        watch._is_begun = True
        return watch

    # Its end -------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is told."""
        return self._watcher is None

    def _check(self) -> None:
        """Raises what the watch has ended with, or its authority."""
        self.grant.check(Effect.OBSERVE)
        if self._reason is not None:
            raise StorageError.of(self._reason.code, self._reason.message)
        if self.has_ended:
            raise Closed("the watch was closed")

    def end(self, reason: StorageError | None = None) -> None:
        """Nothing more is told, because of `reason`, or of whoever watches; again does nothing."""
        if self.has_ended:
            return
        if reason is not None:
            # What was raised keeps the frames that it passed through.
            self._reason = StorageError.of(reason.code, reason.message)
        self._forget()
        self._watcher = self._directory = None
        if self._directory_id is not None:
            self.grant.hub.end(self._directory_id, self)
        self._session.watch_ended(self)
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()

    def close(self) -> None:
        """Ends it.  Raises what it has ended with already, if that was not its holder."""
        self.look()
        reason = self._reason
        if reason is not None:
            raise StorageError.of(reason.code, reason.message)
        self.end()

    def look(self) -> None:
        """Ends it if its authority has ended."""
        try:
            self.grant.check(Effect.OBSERVE)
        except StorageError as error:
            self.end(error)

    def release(self) -> None:
        """Its grant has ended."""
        self.look()

    def removed(self) -> None:
        self.end(NotFound("the directory was removed"))

    # What is told --------------------------------------------------------------------------------

    def note(self, change: Change) -> None:
        hidden = self.grant.hidden
        if self.has_ended or (hidden is not None and hidden.name(change.name)):
            return
        noted = self._noted
        if change in noted:
            # What was last is told last.
            del noted[change]
        elif _OVERFLOW in noted:
            return
        elif (
            change.kind is ChangeKind.OVERFLOW
            or len(noted) >= WATCH_CHANGES_MAX
            or not self._session.may_note_change()
        ):
            self._forget()
            self._session.changes_noted(1)
            change = _OVERFLOW
        else:
            self._session.changes_noted(1)
        noted[change] = None
        self._go_on()

    def _forget(self) -> None:
        self._session.changes_noted(-len(self._noted))
        self._noted.clear()

    def _go_on(self) -> None:
        if self._noted and self._is_begun and self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        """Tells what is noted, until nothing is."""
        failure: StorageError | None = None
        try:
            while self._noted:
                await self._told()
        except StorageError as error:
            failure = error
        except (capnp.KjException, AttributeError):
            # It may be what anybody passes: one that is gone, or no Watcher at all.
            failure = Closed("the watcher is gone, or does not answer as one")
        self._telling = None
        if failure is not None:
            self.end(failure)

    async def _told(self) -> None:
        session = self._session
        async with session.telling:
            # One for each connection in a pass of the loop: others have their turns in between.
            await asyncio.sleep(0)
        room = _size_of(list(self._noted))
        await session.reserve(room)
        try:
            answer = self._sent()
        finally:
            session.unreserve(room)
        # Nothing of it is kept meanwhile: how long that takes is up to the client.
        try:
            await answer
        except asyncio.CancelledError:
            session.tellings_left += 1
            raise

    def _sent(self) -> Any:
        """Sends what is noted; returns the answer to come."""
        self._check()
        changes = list(self._noted)
        self._forget()
        request = self._watcher.changed_request()
        write_changes(request, changes)
        answer = request.send()
        self._session.answer_queued(_size_of(changes))
        return answer


def _size_of(changes: Sequence[Change]) -> int:
    """The bytes of a telling on the wire, or a few less: see `dispatch`."""
    names = sum((len(change.name.encode()) + 8) & ~7 for change in changes)
    return _CALL_BYTES + len(changes) * _CHANGE_BYTES + names


class WatchServer(Server, wire.Watch.Server):  # type: ignore[misc]
    """Serves the life of one watch."""

    def __init__(self, session: Session, watch: Watch) -> None:
        self._watch = watch
        super().__init__(session, watch.grant)

    @answers
    async def close_context(self, params: Any, results: Any) -> None:
        self._watch.close()

    def __del__(self) -> None:
        self._watch.end()
        super().__del__()
