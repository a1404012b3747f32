"""Moving file content with several requests in flight.

Invariants:

* At most `WINDOW_REQUESTS` requests of `WINDOW_BYTES` each are under way for one file, so memory
  is bounded whatever its size.
* Content is handed on in order and without gaps.  A writer has failed as a whole when any of its
  writes has; after `Writer.finish` every byte was answered for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from capstore.backers.node import Buffer
from capstore.schema.errors import Corrupt
from capstore.schema.limits import WINDOW_BYTES, WINDOW_REQUESTS
from capstore.service.remote import Call, File, Read


async def read_chunks(
    file: File,
    offset: int = 0,
    end: int | None = None,
    *,
    window: int = WINDOW_REQUESTS,
    block: int = WINDOW_BYTES,
) -> AsyncIterator[bytes]:
    """The content of `file` from `offset` to `end` (None: to its end), in order.

    A file that is changed meanwhile gives some bytes of each moment, as reads do.  Raises as
    `FileNode.read`.
    """
    in_flight: deque[tuple[int, int, Read]] = deque()
    ask = offset
    ended = False
    try:
        while True:
            while not ended and len(in_flight) < window and (end is None or ask < end):
                length = block if end is None else min(block, end - ask)
                in_flight.append((ask, length, file.start_read(ask, length)))
                ask += length
            if not in_flight:
                return
            at, length, call = in_flight.popleft()
            data, eof = await call.data()
            if data:
                yield data
            if eof:
                return
            if not data:
                raise Corrupt("the service answers a read with nothing")
            if len(data) < length:
                # A short read: what was asked for behind it is asked for again, from its end.
                in_flight.clear()
                ask = at + len(data)
    finally:
        in_flight.clear()


class Writer:
    """Writes to `file` from `offset` on, several writes in flight; not to be shared.

    ``await write(data)`` as often as needed, then ``await finish()``.
    """

    def __init__(
        self,
        file: File,
        offset: int = 0,
        *,
        window: int = WINDOW_REQUESTS,
        block: int = WINDOW_BYTES,
    ) -> None:
        self._file = file
        self._window = window
        self._block = block
        self._in_flight: deque[Call] = deque()
        self.offset = offset

    async def write(self, data: Buffer) -> None:
        """Sends `data`; waits for earlier writes where the window is full, and raises for them."""
        view = memoryview(data)
        for start in range(0, len(view), self._block):
            piece = view[start : start + self._block]
            while len(self._in_flight) >= self._window:
                await self._in_flight.popleft().answer()
            self._in_flight.append(self._file.start_write(self.offset, piece))
            self.offset += len(piece)

    async def finish(self) -> None:
        """Waits until every write was answered; raises the first failure."""
        while self._in_flight:
            await self._in_flight.popleft().answer()
