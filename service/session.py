"""One connection: what it may use at once, and what it has to give back.

Invariants:

* What a session holds in the service's memory is bounded: a call that would answer with content
  waits while `UNSENT_BYTES_MAX` of earlier answers wait to be taken; above that, and above
  `CALLS_IN_FLIGHT_MAX` or `CALL_BYTES_MAX`, no further message is passed on to RPC or read; above
  `CAPABILITIES_MAX` no further capability is handed out; and who has more than `QUESTIONS_MAX`
  answers that it does not finish is cut off.  So it is for all sessions together, where one that
  holds less than its share is not held up (`Totals`).
* A call is under way from when it is passed on until its answer has left: what RPC keeps of it
  in between, be it a call on the promised result of another, counts.
* Who has shown no token yet is a stranger: it is cut off when it has asked too much
  (`STRANGER_MESSAGES_MAX`, `STRANGER_BYTES_MAX`) or for too long (`STRANGER_SECONDS_MAX`).
* A peer that does not take for `STALL_SECONDS_MAX` what waits for it is cut off, and one that
  holds nothing and asks nothing for `IDLE_SECONDS_MAX`.
* When the connection ends, everything it held is released; nobody else notices.

pycapnp hands the messages of a connection to a transport.  The session stands in between: what
leaves is counted by `MeteredTransport`, what comes in by `capstore.service.inlet`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import capnp

from capstore.schema.errors import Busy, InvalidArgument
from capstore.schema.limits import (
    CALL_BYTES_MAX,
    CALL_BYTES_TOTAL_MAX,
    CALLS_IN_FLIGHT_MAX,
    CALLS_TOTAL_MAX,
    CAPABILITIES_MAX,
    CAPABILITIES_TOTAL_MAX,
    IDLE_SECONDS_MAX,
    SINKS_MAX,
    STALL_SECONDS_MAX,
    STRANGER_BYTES_MAX,
    STRANGER_MESSAGES_MAX,
    STRANGER_SECONDS_MAX,
    TELLINGS_LEFT_MAX,
    TICKET_SECONDS_MAX,
    TICKETS_MAX,
    UNANSWERABLE_MAX,
    UNSENT_BYTES_MAX,
    UNSENT_BYTES_TOTAL_MAX,
    WATCH_CHANGES_TOTAL_MAX,
    WATCHES_MAX,
    WATCHES_TOTAL_MAX,
)
from capstore.service.authority import Authority, Guarded
from capstore.service.commons import CALL_COST, END_COST, Totals, Turns, cost_of
from capstore.service.dispatch import Observer
from capstore.service.frames import (
    CALL,
    FINISH,
    RELEASE,
    WORD,
    Frame,
    Refused,
    return_in,
    words_of,
)
from capstore.service.grants import Effect
from capstore.service.guard import GuardedDirectory
from capstore.service.messages import read_error
from capstore.service.questions import Questions
from capstore.service.transport import Transport

if TYPE_CHECKING:
    from capstore.service.inlet import Inlet
    from capstore.service.watcher import Watch

log = logging.getLogger("capstore.service")

# Tickets of the whole service, so that a capability may be passed over another connection.
TicketTable = dict[bytes, "tuple[Guarded, Session]"]

# What `dispatch` counts for the answer that holds a ticket.
_TICKET_ANSWER_BYTES = 104


class Session:
    """What one connection holds; the capability servers made for it count their calls here."""

    def __init__(
        self,
        number: int,
        authority: Authority,
        tickets: TicketTable,
        totals: Totals,
        turns: Turns,
    ) -> None:
        self.number = number
        self.authority = authority
        self.transport: MeteredTransport | None = None
        self.inlet: Inlet | None = None
        # Whether it has shown no token yet; since when it is there.
        self.is_stranger = True
        self.began = time.monotonic()
        self.is_output_blocked = False
        self.on_proved: Callable[[], None] | None = None
        self.on_make_room: Callable[[], object] | None = None
        # Who looks on, and what is known to them of the other end.
        self.observer: Observer | None = None
        self.peer: Mapping[str, int | str] = {}
        self.calls_in_flight = 0
        self.call_bytes = 0
        self.capabilities = 0
        self.sinks = 0
        self.watches: set[Watch] = set()
        # Held by the watch that tells next; how many watches ended before what they told was
        # answered: RPC keeps of each that there was a question.
        self.telling = asyncio.Lock()
        self.tellings_left = 0
        self._changes_noted = 0
        self.unsent_bytes = 0
        self.reserved_bytes = 0
        self._totals = totals
        self._turns = turns
        self._questions = Questions()
        self._stranger_messages = 0
        self._stranger_bytes = 0
        self._unanswerable = 0
        # How many calls wait for an answer of the peer's own.
        self._asking_back = 0
        # What its answers have of late.
        self._answer_bytes = 0
        self._idle_since: float | None = None
        self._room: deque[asyncio.Future[None]] = deque()
        self._tickets = tickets
        self._own_tickets: dict[bytes, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return (
            f"<Session {self.number}: {self.calls_in_flight} calls, "
            f"{self.unsent_bytes} bytes unsent>"
        )

    # What comes in -----------------------------------------------------------------------------

    def takes(self, frame: Frame) -> bool:
        """Whether the message may be passed on now; then it is on the books.

        Raises `Refused` for one that ends the connection.
        """
        if self.is_stranger and not self._takes_of_stranger(frame):
            return False
        if frame.asks:
            totals, size = self._totals, frame.size
            used, own = totals.call_bytes + size, self._questions.open_bytes + size
            if totals.over_share(used, CALL_BYTES_TOTAL_MAX, own):
                return False
            self._questions.ask(frame)
            if not frame.ends:
                totals.calls += 1
                totals.call_bytes += size
        elif frame.kind == FINISH:
            self._questions.end(frame.question)
        elif frame.kind != RELEASE and self.is_output_blocked:
            # RPC may say something to these, and nobody counts that.
            self._unanswerable += 1
            if self._unanswerable > UNANSWERABLE_MAX:
                raise Refused("it talks without end and does not listen")
        return True

    def _takes_of_stranger(self, frame: Frame) -> bool:
        messages, size = self._stranger_messages + 1, self._stranger_bytes + frame.size
        if messages > STRANGER_MESSAGES_MAX or size > STRANGER_BYTES_MAX:
            if self._questions.open:
                # The answer may be that it is none.
                return False
            raise Refused("a stranger asks too much")
        self._stranger_messages, self._stranger_bytes = messages, size
        return True

    def answered(self, question: int, *, ends: bool) -> None:
        """An answer is on its way to the peer."""
        size = self._questions.answer(question, ends=ends)
        if size:
            self._totals.calls -= 1
            self._totals.call_bytes -= size
            self._reconsider_reading()

    def listens(self) -> None:
        """The peer takes what it is sent."""
        self._unanswerable = 0

    def proved(self) -> None:
        """A token was shown that gives something."""
        self.is_stranger = False
        if self.on_proved is not None:
            self.on_proved()

    def make_room(self) -> None:
        """Ends the connection, be it in its handshake."""
        if self.transport is not None:
            log.info("%r makes room for others", self)
            self.transport.abort()
        elif self.on_make_room is not None:
            self.on_make_room()

    @property
    def is_asking(self) -> bool:
        """Whether a question of the peer has no answer yet."""
        return self._questions.open > 0

    @property
    def asked_bytes(self) -> int:
        """Of the messages that ask what has no answer yet."""
        return self._questions.open_bytes

    @property
    def unfinished_questions(self) -> int:
        """How many questions were answered that the peer has not ended."""
        return self._questions.kept

    def cost_of(self, frame: Frame) -> int:
        """What to expect of the message."""
        if frame.kind == CALL:
            return CALL_COST + cost_of(frame.size) + cost_of(self._answer_bytes)
        return END_COST if frame.kind in (FINISH, RELEASE) else CALL_COST

    # What calls and answers cost --------------------------------------------------------------

    def call_begins(self) -> None:
        """One more call is under way."""
        self.calls_in_flight += 1

    def call_ends(self) -> None:
        """One fewer."""
        self.calls_in_flight -= 1
        self._reconsider_reading()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Around the use of `size` bytes that a call brought."""
        self.call_bytes += size
        try:
            yield
        finally:
            self.call_bytes -= size

    def capability_made(self) -> None:
        """One more capability is handed out.

        Broken ones cannot be refused; who takes far too many of them is cut off.
        """
        self.capabilities += 1
        self._totals.capabilities += 1
        if self.capabilities > 2 * CAPABILITIES_MAX and self.transport is not None:
            log.warning("%r takes capabilities without end and is cut off", self)
            self.transport.abort()

    def capability_dropped(self) -> None:
        """One fewer."""
        self.capabilities -= 1
        self._totals.capabilities -= 1

    def check_capabilities(self) -> None:
        """Raises `Busy` when no further capability is to be handed out; to be asked before there
        is an effect that the capability would be the result of."""
        if self.capabilities >= CAPABILITIES_MAX:
            raise Busy(f"a connection holds at most {CAPABILITIES_MAX} capabilities: drop some")
        totals = self._totals
        if totals.over_share(totals.capabilities, CAPABILITIES_TOTAL_MAX, self.capabilities):
            raise Busy("all connections together hold too many capabilities: drop some")

    def sink_opened(self) -> None:
        """One more put in pieces is open.  Raises `Busy` above `SINKS_MAX`."""
        if self.sinks >= SINKS_MAX:
            raise Busy(f"a connection has at most {SINKS_MAX} puts in pieces open: end some")
        self.sinks += 1

    def sink_ended(self) -> None:
        """One fewer."""
        self.sinks -= 1

    def watch_begins(self, watch: Watch) -> None:
        """One more directory is watched.  Raises `Busy` above `WATCHES_MAX`."""
        if len(self.watches) >= WATCHES_MAX:
            raise Busy(f"a connection has at most {WATCHES_MAX} watches: end some")
        if self.tellings_left >= TELLINGS_LEFT_MAX:
            raise Busy("the connection has left too much of what it was told unanswered")
        totals = self._totals
        if totals.over_share(totals.watches, WATCHES_TOTAL_MAX, len(self.watches)):
            raise Busy("all connections together have too many watches: end some")
        self.watches.add(watch)
        totals.watches += 1

    def watch_ended(self, watch: Watch) -> None:
        """One fewer."""
        self.watches.remove(watch)
        self._totals.watches -= 1

    def may_note_change(self) -> bool:
        """Whether one more change may wait to be told to this connection."""
        totals = self._totals
        return not totals.over_share(totals.changes, WATCH_CHANGES_TOTAL_MAX, self._changes_noted)

    def changes_noted(self, count: int) -> None:
        """So many more changes wait to be told, or fewer."""
        self._changes_noted += count
        self._totals.changes += count

    def answer_queued(self, size: int) -> None:
        """`size` bytes of answers wait to be taken."""
        self.unsent_bytes += size
        self._totals.unsent_bytes += size
        self._answer_bytes += (size - self._answer_bytes) >> _ANSWERS_SHIFT

    def bytes_taken(self, size: int) -> None:
        """The transport took `size` bytes."""
        taken = min(size, self.unsent_bytes)
        self.unsent_bytes -= taken
        self._totals.unsent_bytes -= taken
        self._wake()
        self._reconsider_reading()

    async def reserve(self, size: int) -> None:
        """Waits until an answer of `size` bytes may be made; `unreserve` when it was counted."""
        while self._promised_bytes and self._has_no_room_for(size):
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            await waiter
        self.reserved_bytes += size

    def _has_no_room_for(self, size: int) -> bool:
        promised, totals = self._promised_bytes + size, self._totals
        return promised > UNSENT_BYTES_MAX or totals.over_share(
            totals.unsent_bytes + size, UNSENT_BYTES_TOTAL_MAX, promised
        )

    def unreserve(self, size: int) -> None:
        """Gives back what `reserve` took."""
        self.reserved_bytes -= size
        self._wake()

    @property
    def _promised_bytes(self) -> int:
        return self.unsent_bytes + self.reserved_bytes

    def _wake(self) -> None:
        while self._room and self._promised_bytes < UNSENT_BYTES_MAX:
            waiter = self._room.popleft()
            if not waiter.done():
                # One at a time: each has to find room after the one before.
                waiter.set_result(None)
                asyncio.get_running_loop().call_soon(self._wake)
                break

    def nothing_waits(self) -> None:
        """The peer took everything.  Calls that were cancelled as they were answered are forgotten:
        their answers were counted and never sent."""
        if self.unsent_bytes:
            self.bytes_taken(self.unsent_bytes)

    @property
    def full(self) -> bool:
        """Whether no further message is to be passed on now."""
        questions, totals, unsent = self._questions, self._totals, self.unsent_bytes
        calls = max(questions.open, self.calls_in_flight)
        return (
            calls >= CALLS_IN_FLIGHT_MAX
            or calls - self._asking_back >= self._turns.window
            or questions.open_bytes >= CALL_BYTES_MAX
            or self.call_bytes >= CALL_BYTES_MAX
            or unsent >= UNSENT_BYTES_MAX
            or totals.over_share(totals.calls, CALLS_TOTAL_MAX, calls)
            or totals.over_share(totals.unsent_bytes, UNSENT_BYTES_TOTAL_MAX, unsent)
        )

    def _reconsider_reading(self) -> None:
        inlet = self.inlet
        # Mostly nothing waits; whether there is room is dearer to say.
        if inlet is not None and inlet.has_waiting and not self.full:
            inlet.reconsider()

    # Tickets -----------------------------------------------------------------------------------

    def issue_ticket(self, guarded: Guarded) -> bytes:
        """A one-time word for `guarded`; it is forgotten soon, or when too many follow."""
        guarded.grant.check(Effect.OBSERVE)
        ticket = secrets.token_bytes(32)
        timer = asyncio.get_running_loop().call_later(TICKET_SECONDS_MAX, self._forget, ticket)
        self._tickets[ticket] = (guarded, self)
        self._own_tickets[ticket] = timer
        if len(self._own_tickets) > TICKETS_MAX:
            self._forget(next(iter(self._own_tickets)))
        return ticket

    def _forget(self, ticket: bytes) -> None:
        self._tickets.pop(ticket, None)
        timer = self._own_tickets.pop(ticket, None)
        if timer is not None:
            timer.cancel()

    @contextmanager
    def _waiting_for_peer(self) -> Iterator[None]:
        """While a call waits for what the peer has yet to send, be it behind other calls."""
        self._asking_back += 1
        self._reconsider_reading()
        try:
            yield
        finally:
            self._asking_back -= 1

    async def redeem_ticket(self, capability: Any) -> GuardedDirectory:
        """The directory of this service that `capability` stands for.

        Raises what the capability itself answers when it is broken, and `InvalidArgument` for one
        that is no Directory of this service or does not answer in time.
        """
        try:
            with self._waiting_for_peer():
                async with asyncio.timeout(TICKET_SECONDS_MAX):
                    response = await capability.ticket()
                if response._has("error"):
                    raise read_error(response.error)
                ticket = response.ticket
        except (capnp.KjException, TimeoutError, AttributeError):
            raise InvalidArgument("the target is no directory of this service") from None
        issued = self._tickets.get(ticket)
        if issued is None:
            raise InvalidArgument("the target is no directory of this service")
        directory, issuer = issued
        issuer._forget(ticket)
        # The answer came to this very process: it was counted, and nobody will take it.
        issuer.bytes_taken(_TICKET_ANSWER_BYTES)
        if not isinstance(directory, GuardedDirectory):
            # Whoever passed it serves a Directory himself that hands on the ticket of a store.
            raise InvalidArgument("the target is no directory of this service")
        return directory

    def is_idle(self, now: float) -> bool:
        """Whether it has held nothing and asked nothing for too long; `now` is monotonic."""
        if self.capabilities or self.calls_in_flight:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since > IDLE_SECONDS_MAX

    def close(self) -> None:
        """Gives everything back; the connection is gone."""
        for watch in list(self.watches):
            watch.end()
        self._totals.calls -= self._questions.open
        self._totals.call_bytes -= self._questions.open_bytes
        self._totals.unsent_bytes -= self.unsent_bytes
        self.unsent_bytes = 0
        self._questions = Questions()
        for ticket in list(self._own_tickets):
            self._forget(ticket)
        while self._room:
            self._room.popleft().cancel()
        # Circles would leave all of it to the collector of garbage.
        self.transport = self.inlet = self.on_proved = self.on_make_room = None


# What an answer weighs in the mean of the last ones, as a power of two.
_ANSWERS_SHIFT: Final = 2


class MeteredTransport(Transport):
    """What pycapnp takes for the transport: tells the session what leaves, and leaves to the inlet
    when to read."""

    def __init__(self, transport: Any, session: Session) -> None:
        super().__init__(transport)
        self._session = session
        self._written = 0
        self._written_at_last_look = 0
        # Since when what was written up to here waits.
        self._written_at_mark = 0
        self._marked: float | None = None
        # What is still to be written of a message, and whether its first segment is next.
        self._rest = 0
        self._is_first_next = False
        self.is_encrypted = transport.get_extra_info("sslcontext") is not None
        session.transport = self

    # What leaves -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        # pycapnp writes a message in pieces: its segment table, then each segment.
        if not self._rest:
            self._rest = words_of(data) * WORD
            self._is_first_next = True
        else:
            self._rest -= len(data)
            if self._is_first_next:
                self._is_first_next = False
                answer = return_in(data)
                if answer is not None:
                    self._session.answered(answer.question, ends=answer.ends)
        super().write(data)

    def pass_on(self, data: bytes) -> None:
        self._written += len(data)
        super().pass_on(data)
        self._session.bytes_taken(len(data))

    # What comes in -----------------------------------------------------------------------------

    def resume_reading(self) -> None:
        """RPC wants to read."""
        if self._session.inlet is not None:
            self._session.inlet.want()

    def pause_reading(self) -> None:
        """RPC has what it wanted."""
        if self._session.inlet is not None:
            self._session.inlet.want_no_more()

    def read(self) -> None:
        """Reads from the socket."""
        super().resume_reading()

    def read_no_more(self) -> None:
        """Reads no more for now."""
        super().pause_reading()

    # Looking after it --------------------------------------------------------------------------

    def look(self) -> bool:
        """Ends the connection if its peer does not take what waits, does not finish what it sends,
        holds nothing or shows no token for too long.  To be called about every second.  True if it
        was cut.
        """
        now = time.monotonic()
        session = self._session
        for watch in list(session.watches):
            watch.look()
        if session.is_idle(now):
            log.info("%r holds nothing and is closed", session)
            self.abort()
            return True
        if session.is_stranger and now - session.began > STRANGER_SECONDS_MAX:
            log.info("%r shows no token and is closed", session)
            self.abort()
            return True
        if session.inlet is not None:
            if session.inlet.look():
                return True
            session.inlet.reconsider()
        return self._is_stuck(now)

    def _is_stuck(self, now: float) -> bool:
        waiting = self.unsent_bytes
        if not waiting:
            if self._written == self._written_at_last_look:
                self._session.nothing_waits()
            self._written_at_last_look = self._written
            self._marked = None
            return False
        written = self._written + self._gathered_bytes
        if self._marked is None or written - waiting >= self._written_at_mark:
            self._marked, self._written_at_mark = now, written
        if now - self._marked < STALL_SECONDS_MAX:
            return False
        log.warning("%r takes no answers and is cut off", self._session)
        self.abort()
        return True
