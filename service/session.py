"""One connection: what it may use at once, and what it has to give back.

Invariants:

* What a session holds in the service's memory is bounded: a call that would answer with content
  waits while `UNSENT_BYTES_MAX` of earlier answers wait to be taken; above that, and above
  `CALLS_IN_FLIGHT_MAX` or `CALL_BYTES_MAX`, no further message is read from the connection; and
  above `CAPABILITIES_MAX` no further capability is handed out.
* A peer that takes nothing of what waits for it for `STALL_SECONDS_MAX` is cut off, and one that
  holds nothing and asks nothing for `IDLE_SECONDS_MAX`.
* When the connection ends, everything it held is released; nobody else notices.

pycapnp hands the messages of a connection to a transport.  The session stands in between
(`MeteredTransport`): that is where unsent answers can be counted, and reading be put off.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import capnp

from capstore.schema.errors import Busy, InvalidArgument
from capstore.schema.limits import (
    CALL_BYTES_MAX,
    CALLS_IN_FLIGHT_MAX,
    CAPABILITIES_MAX,
    IDLE_SECONDS_MAX,
    SINKS_MAX,
    STALL_SECONDS_MAX,
    TICKET_SECONDS_MAX,
    TICKETS_MAX,
    UNSENT_BYTES_MAX,
)
from capstore.service.authority import Authority, Guarded
from capstore.service.grants import Effect
from capstore.service.guard import GuardedDirectory
from capstore.service.messages import read_error
from capstore.service.transport import Transport

log = logging.getLogger("capstore.service")

# Tickets of the whole service, so that a capability may be passed over another connection.
TicketTable = dict[bytes, "tuple[Guarded, Session]"]

# What `dispatch` counts for the answer that holds a ticket.
_TICKET_ANSWER_BYTES = 104


class Session:
    """What one connection holds; the capability servers made for it count their calls here."""

    def __init__(self, number: int, authority: Authority, tickets: TicketTable) -> None:
        self.number = number
        self.authority = authority
        self.transport: MeteredTransport | None = None
        self.calls_in_flight = 0
        self.call_bytes = 0
        self.capabilities = 0
        self.sinks = 0
        self.unsent_bytes = 0
        self.reserved_bytes = 0
        self._idle_since: float | None = None
        self._room: deque[asyncio.Future[None]] = deque()
        self._tickets = tickets
        self._own_tickets: dict[bytes, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return (
            f"<Session {self.number}: {self.calls_in_flight} calls, "
            f"{self.unsent_bytes} bytes unsent>"
        )

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
        if self.capabilities > 2 * CAPABILITIES_MAX and self.transport is not None:
            log.warning("%r takes capabilities without end and is cut off", self)
            self.transport.abort()

    def capability_dropped(self) -> None:
        """One fewer."""
        self.capabilities -= 1

    def check_capabilities(self) -> None:
        """Raises `Busy` when no further capability is to be handed out; to be asked before there
        is an effect that the capability would be the result of."""
        if self.capabilities >= CAPABILITIES_MAX:
            raise Busy(f"a connection holds at most {CAPABILITIES_MAX} capabilities: drop some")

    def sink_opened(self) -> None:
        """One more put in pieces is open.  Raises `Busy` above `SINKS_MAX`."""
        if self.sinks >= SINKS_MAX:
            raise Busy(f"a connection has at most {SINKS_MAX} puts in pieces open: end some")
        self.sinks += 1

    def sink_ended(self) -> None:
        """One fewer."""
        self.sinks -= 1

    def answer_queued(self, size: int) -> None:
        """`size` bytes of answers wait to be taken."""
        self.unsent_bytes += size

    def bytes_taken(self, size: int) -> None:
        """The transport took `size` bytes."""
        self.unsent_bytes = max(0, self.unsent_bytes - size)
        self._wake()
        self._reconsider_reading()

    async def reserve(self, size: int) -> None:
        """Waits until an answer of `size` bytes may be made; `unreserve` when it was counted."""
        while self._promised_bytes and self._promised_bytes + size > UNSENT_BYTES_MAX:
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            await waiter
        self.reserved_bytes += size

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
        """Whether no further message is to be read now."""
        return (
            self.calls_in_flight >= CALLS_IN_FLIGHT_MAX
            or self.call_bytes >= CALL_BYTES_MAX
            or self.unsent_bytes >= UNSENT_BYTES_MAX
        )

    def _reconsider_reading(self) -> None:
        if self.transport is not None and not self.full:
            self.transport.read_if_wanted()

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

    async def redeem_ticket(self, capability: Any) -> GuardedDirectory:
        """The directory of this service that `capability` stands for.

        Raises what the capability itself answers when it is broken, and `InvalidArgument` for one
        that is no Directory of this service or does not answer in time.
        """
        try:
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
        for ticket in list(self._own_tickets):
            self._forget(ticket)
        while self._room:
            self._room.popleft().cancel()
        self.transport = None


class MeteredTransport(Transport):
    """Tells a session what goes through it, and reads when the session has room."""

    def __init__(self, transport: Any, session: Session) -> None:
        super().__init__(transport)
        self._session = session
        self._read_wanted = False
        self._written = 0
        self._written_at_last_look = 0
        self._taken_at_last_look = 0
        self._stalled_since: float | None = None
        session.transport = self

    def pass_on(self, data: bytes) -> None:
        self._written += len(data)
        super().pass_on(data)
        self._session.bytes_taken(len(data))

    def resume_reading(self) -> None:
        """Reads on, now or when the session has room."""
        if self._session.full:
            self._read_wanted = True
        else:
            super().resume_reading()

    def read_if_wanted(self) -> None:
        """Takes up the reading that was put off."""
        if self._read_wanted:
            self._read_wanted = False
            super().resume_reading()

    def pause_reading(self) -> None:
        self._read_wanted = False
        super().pause_reading()

    def look(self) -> bool:
        """Ends the connection if its peer takes nothing of what waits, or holds nothing, for too
        long.  To be called about every second.  True if it was cut.
        """
        now = time.monotonic()
        if self._session.is_idle(now):
            log.info("%r holds nothing and is closed", self._session)
            self.abort()
            return True
        waiting = self.unsent_bytes
        taken = self._written + self._gathered_bytes - waiting
        if not waiting:
            if self._written == self._written_at_last_look:
                self._session.nothing_waits()
            self._written_at_last_look = self._written
            self._stalled_since = None
            return False
        if self._stalled_since is None or taken != self._taken_at_last_look:
            self._taken_at_last_look, self._stalled_since = taken, now
        if now - self._stalled_since < STALL_SECONDS_MAX:
            return False
        log.warning("%r takes no answers and is cut off", self._session)
        self.abort()
        return True
