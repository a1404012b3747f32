"""The questions that a peer asked, as RPC has them on its books: until they are answered and ended.

Invariants: a question is open from when it was passed on until its answer left, and then it is kept
until the peer ends it, unless the answer said that it need not.  So this is what RPC's own table of
answers has, and a peer that ends nothing is found out (``Finish`` in ``rpc.capnp``).
"""

from __future__ import annotations

from capstore.schema.limits import QUESTIONS_MAX
from capstore.service.frames import Frame, Refused


class Questions:
    """Those of one connection."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._kept: set[int] = set()
        self._ended: set[int] = set()
        self.open_bytes = 0

    @property
    def open(self) -> int:
        """How many have no answer yet."""
        return len(self._open)

    @property
    def kept(self) -> int:
        """How many are answered and not ended."""
        return len(self._kept)

    def ask(self, frame: Frame) -> None:
        """One more.  Raises `Refused` for one that is on the books, or one too many."""
        number = frame.question
        if number in self._open or number in self._kept:
            raise Refused("a question is asked twice")
        if len(self._kept) >= QUESTIONS_MAX:
            raise Refused("it ends none of its questions")
        if frame.ends:
            self._kept.add(number)
            return
        self._open[number] = frame.size
        self.open_bytes += frame.size

    def end(self, number: int) -> None:
        """The peer is done with the answer, or does not wait for it."""
        if number in self._open:
            self._ended.add(number)
        else:
            self._kept.discard(number)

    def answer(self, number: int, *, ends: bool) -> int:
        """The answer has left; returns how many bytes the question had."""
        size = self._open.pop(number, 0)
        self.open_bytes -= size
        if number in self._ended:
            self._ended.discard(number)
        elif not ends:
            self._kept.add(number)
        return size
