"""Where the bytes of a connection come in: between asyncio's transport and pycapnp.

Invariants:

* RPC gets whole messages, or what has arrived of one that is longer than `WHOLE_BYTES`, in order,
  and each only when the session has room for it (`Session.takes`) and the connection its turn
  (`Turns`).  Until then they are not read, or wait here: at most what one read of the socket brings
  and the beginning of a message.
* RPC is begun by the first message: who sends nothing costs a socket and little else.
* A message that is refused (`capstore.service.frames`) ends the connection before RPC sees it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import capnp

from capstore.schema.limits import MESSAGE_SECONDS_MAX
from capstore.service.commons import Turns
from capstore.service.frames import Refused, frame_at
from capstore.service.session import MeteredTransport, Session

log = logging.getLogger("capstore.service")

Serve = Callable[[Session, capnp.AsyncIoStream], Coroutine[Any, Any, None]]


class Inlet(asyncio.BufferedProtocol):
    """The protocol that asyncio knows; `serve` serves a stream with RPC to its end.

    `gone` is done when the connection has ended, and what was served on it.
    """

    def __init__(self, session: Session, turns: Turns, serve: Serve) -> None:
        self.number = session.number
        self.is_queued = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session = session
        self._turns = turns
        self._serve = serve
        self._transport: MeteredTransport | None = None
        # pycapnp's protocol, and whether it wants to read.
        self._rpc: Any = None
        self._is_served = False
        self._is_wanted = False
        self._pending = bytearray()
        # What is still to come of the message that RPC has the beginning of.
        self._rest = 0
        # Whether nothing can be passed on before more has arrived.
        self._is_hungry = True
        self._is_direct = False
        self._is_paused = False
        self._is_at_end = False
        self._is_lost = False
        # Whether RPC has come to its end, and nobody takes what still comes.
        self._is_over = False
        self._passed = 0
        self._passed_at_last_look = -1
        self._unfinished_since = 0.0
        session.inlet = self

    def __repr__(self) -> str:
        return f"<Inlet of {self._session!r}: {len(self._pending)} bytes wait>"

    # What asyncio calls --------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = MeteredTransport(transport, self._session)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._is_direct = bool(self._rest and self._is_wanted and not self._pending)
        if self._is_direct:
            view: memoryview = self._rpc.get_buffer(-1)
            return view[: self._rest]
        return self._turns.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_direct:
            self._rest -= nbytes
            self._rpc.buffer_updated(nbytes)
        elif not self._is_over:
            self._pending += self._turns.buffer[:nbytes]
            self._is_hungry = False
            self._turns.ask(self)
        self._settle()

    def eof_received(self) -> bool:
        """Keeps the connection until what came before has been passed on; TLS closes at once."""
        self._is_at_end = True
        if self._rpc is None or self._is_hungry:
            self._end()
        return self._transport is not None and not self._transport.is_encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._pending.clear()
        if self._rpc is not None:
            self._rpc.connection_lost(exc)
        self._finish_if_over()

    def pause_writing(self) -> None:
        self._session.is_output_blocked = True
        if self._rpc is not None:
            self._rpc.pause_writing()

    def resume_writing(self) -> None:
        self._session.is_output_blocked = False
        self._session.listens()
        if self._rpc is not None:
            self._rpc.resume_writing()

    # What pycapnp calls, by its transport --------------------------------------------------------

    def want(self) -> None:
        """RPC wants to read."""
        self._is_wanted = not self._is_over
        self.reconsider()

    def want_no_more(self) -> None:
        """RPC has what it wanted."""
        self._is_wanted = False

    # Turns ---------------------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """Whether anything has arrived that was not passed on."""
        return bool(self._pending)

    @property
    def is_ready(self) -> bool:
        """Whether a message could be passed on now; never of a connection that is lost."""
        is_wanted = self._is_wanted or self._rpc is None
        return bool(self._pending and is_wanted) and not self._is_hungry and not self._session.full

    @property
    def is_fresh(self) -> bool:
        """Whether no call is under way."""
        return not self._session.is_asking

    def reconsider(self) -> None:
        """Goes on with what waits, if it may."""
        if self._pending and (self._is_wanted or self._rpc is None):
            self._turns.ask(self)
        self._settle()

    def pass_on(self, cost_max: int) -> int:
        """Passes on messages that cost `cost_max`, or a little more; returns what they cost."""
        if self._is_lost or not self._pending:
            return 0
        try:
            if self._rpc is None:
                self._begin()
                return 0
            return self._pass_on(cost_max) if self._is_wanted else 0
        except Refused as refusal:
            self.cut(str(refusal))
            return 0

    def _begin(self) -> None:
        if frame_at(self._pending, 0, len(self._pending)) is None:
            self._is_hungry = True
            return
        self._is_served = True
        self._rpc = capnp.AsyncIoStream._connect(self._served)
        self._rpc.connection_made(self._transport)
        if self._session.is_output_blocked:
            self._rpc.pause_writing()

    def _pass_on(self, cost_max: int) -> int:
        session, pending = self._session, self._pending
        view: memoryview = self._rpc.get_buffer(-1)
        room, end = len(view), len(pending)
        at = min(self._rest, end, room)
        rest, cost, passed = self._rest - at, 0, 0
        is_full = session.full
        while at < room and not rest and cost < cost_max and not is_full:
            frame = frame_at(pending, at, end)
            if frame is None or not session.takes(frame):
                self._is_hungry = frame is None
                break
            step = min(frame.size, end - at, room - at)
            at += step
            rest = frame.size - step
            cost += session.cost_of(frame)
            passed += 1
            # What asks nothing takes no room.
            is_full = frame.asks and session.full
        if at:
            view[:at] = pending[:at]
            del pending[:at]
            self._rest = rest
            self._passed += passed
            self._is_hungry = self._is_hungry or not pending
            self._rpc.buffer_updated(at)
        return cost

    # Reading -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Reads from the socket what there is room for, and nothing else."""
        transport = self._transport
        if transport is None or self._is_lost or self._is_over:
            return
        if self._is_at_end:
            if self._is_hungry and not transport.is_closing():
                self._end()
            return
        wanted = self._is_wanted if self._rest and not self._pending else self._is_hungry
        if wanted == self._is_paused and not transport.is_closing():
            self._is_paused = not wanted
            if wanted:
                transport.read()
            else:
                transport.read_no_more()

    def _end(self) -> None:
        """The peer sends no more, and RPC has all of it."""
        if self._rpc is not None:
            self._rpc.eof_received()
        if self._transport is not None:
            self._transport.close()

    def cut(self, reason: str) -> None:
        """Ends the connection at once; `reason` is for the log."""
        log.warning("%r is cut off: %s", self._session, reason)
        self._pending.clear()
        if self._transport is not None:
            self._transport.abort()

    def look(self) -> bool:
        """Cuts off a peer that does not finish a message.  To be called about every second.  True
        if it was cut."""
        now = time.monotonic()
        is_unfinished = bool(self._rest or self._pending) and not self._is_paused
        if not is_unfinished or self._passed != self._passed_at_last_look:
            self._passed_at_last_look, self._unfinished_since = self._passed, now
            return False
        if now - self._unfinished_since < MESSAGE_SECONDS_MAX:
            return False
        self.cut("it does not finish its message")
        return True

    # RPC -----------------------------------------------------------------------------------------

    async def _served(self, stream: capnp.AsyncIoStream) -> None:
        try:
            await self._serve(self._session, stream)
        finally:
            self._is_served = False
            self._is_wanted = False
            self._let_go()
            self._finish_if_over()

    def _let_go(self) -> None:
        """RPC has ended, and so does the connection, when what was answered has left.

        asyncio's TLS forgets a close that comes behind the peer's end, if nobody reads meanwhile.
        """
        self._is_over = True
        self._pending.clear()
        if self._transport is not None and not self._is_lost:
            self._transport.close()
            self._transport.read()

    def _finish_if_over(self) -> None:
        if self._is_lost and not self._is_served and not self.gone.done():
            self.gone.set_result(None)
            # These lead back here: without them what a connection had is freed now, and does not
            # wait for the collector of garbage; TLS has some 100 KB.
            self._transport = self._rpc = None
