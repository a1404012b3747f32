"""Moves on puts in pieces: what is begun is bound by what ends meanwhile."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from capstore.backers.store import Condition
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.remote import answer_of
from capstore.service.store_messages import read_known
from tests.service.confinement.machine import INDEX, SIZES, move
from tests.service.confinement.stores import CONDITIONS, KEYS, Stores
from tests.service.confinement.world import Held, Piece


class Sinks(Stores):
    """Begin, write, commit and abort, with anything in between."""

    @property
    def has_pieces(self) -> bool:
        return any(isinstance(each.node, Piece) for each in self.held)

    def _piece(self, index: int) -> Held:
        return self.any_of([each for each in self.held if isinstance(each.node, Piece)], index)

    @move(at=INDEX, key=st.one_of(KEYS, st.just(b"")), condition=CONDITIONS)
    def begin(self, at: int, key: bytes, condition: Condition) -> None:
        held = self.store_at(at)
        full, demands, codes = self.target(held, key, condition, b"")
        if not key and not held.right.drops:
            # What it is called is known when it is committed.
            codes.discard(Code.NOT_FOUND)

        def does() -> Piece:
            if full and not held.right.drops:
                store = self.world.store
                store.check(demands, there=full in store.objects)
            return Piece(full, demands)

        async def run() -> None:
            found = await self.attempt(
                held.real.begin(key, condition),
                held,
                Effect.ADD,
                does,
                verb=self.put_verb(held),
                refusals=codes,
            )
            if found is not None:
                piece = found[1] or Piece(full, demands)
                self.got(Held(found[0], piece, held.right))

        self.step(run())

    @move(at=INDEX, size=SIZES)
    @precondition(lambda self: self.has_pieces)
    def write_piece(self, at: int, size: int) -> None:
        held = self._piece(at)
        piece: Any = held.node
        data = self.data(size, held)
        after = piece.data + data

        async def run() -> None:
            found = await self.attempt(
                answer_of(held.real.raw._send("write", data=data)),
                held,
                Effect.ADD,
                lambda: True,
                refusals=self._no_piece(held, len(after)),
            )
            if found is not None:
                piece.data = after
            else:
                piece.failed = True

        self.step(run())

    def _no_piece(self, held: Held, size: int) -> set[Code]:
        piece: Any = held.node
        codes = set() if held.right.may_have(size) else {Code.TOO_LARGE}
        if piece.failed:
            codes |= {Code.TOO_LARGE, Code.QUOTA_EXCEEDED, Code.CLOSED}
            codes |= {Code.REVOKED, Code.EXPIRED, Code.READ_ONLY}
        return codes | ({Code.CLOSED} if held.closed else set())

    @move(at=INDEX)
    @precondition(lambda self: self.has_pieces)
    def commit(self, at: int) -> None:
        held = self._piece(at)
        piece: Any = held.node
        codes = self._no_piece(held, len(piece.data))
        told: list[Any] = []

        async def call() -> Any:
            response = await answer_of(held.real.raw._send("commit"))
            told.append(read_known(response, response.key, response.size))
            return told[0]

        def does() -> bytes:
            place = self.is_put(held, told[0], piece.key, piece.data) if told else piece.key
            return self.world.store.put(piece.data, place, piece.condition)

        async def run() -> None:
            hidden = not piece.key and held.right.hides_key(piece.key)
            found = await self.attempt(
                call(),
                held,
                Effect.ADD,
                does,
                refusals=codes | ({Code.NOT_FOUND} if hidden else set()),
            )
            if found is not None and held.right.dry is not None:
                self.is_put(held, told[0], piece.key, piece.data)
            # Whatever came of it, it is not the same any more.
            self.held.remove(held)

        self.step(run())

    @move(at=INDEX)
    @precondition(lambda self: self.has_pieces)
    def abort(self, at: int) -> None:
        held = self._piece(at)

        async def run() -> None:
            await self.attempt(
                answer_of(held.real.raw._send("abort")), held, Effect.OBSERVE, lambda: None
            )
            self.held.remove(held)

        self.step(run())
