"""Moves on watches: who watches is told names that its holder may list, and nothing behind the end.

What was sent before an end may arrive behind it; so each connection is asked for something behind
each step, and what arrives in front of the answer was sent before that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis.stateful import precondition

from capstore.schema import wire
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.remote import answer_of
from tests.contract import model
from tests.service.confinement.looking import Looking
from tests.service.confinement.machine import INDEX, move
from tests.service.confinement.world import Held

_WATCHES_MAX = 8


class Ears(wire.Watcher.Server):  # type: ignore[misc]
    """Hears, and answers at once."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def changed(self, changes: Any, _context: Any, **_more: Any) -> None:
        self.heard += [str(change.name) for change in changes]


@dataclass(eq=False)
class Watched:
    """A watch: what was heard, and every name that its directory ever had meanwhile."""

    real: Any
    ears: Ears
    held: Held
    names: set[str] = field(default_factory=set)
    was_over: bool = False


class Watching(Looking):
    """Watching directories, while anything happens to them and to the right to do so."""

    def __init__(self) -> None:
        self.watches: list[Watched] = []
        super().__init__()

    def forget(self) -> None:
        self.watches.clear()
        super().forget()

    @move(at=INDEX)
    def watch(self, at: int) -> None:
        # Dropping one ends it.
        del self.watches[: -_WATCHES_MAX + 1]
        self.step(self._watch(self.directory(at)))

    async def _watch(self, held: Held) -> None:
        node = held.node
        assert isinstance(node, model.Directory)
        ears = Ears()
        perhaps = []
        if held.frozen or not self.alive(node):
            perhaps = [Code.NOT_FOUND, Code.UNSUPPORTED]
        found = await self.attempt(
            answer_of(held.real.raw.watch(wire.Watcher._new_client(ears))),
            held,
            Effect.OBSERVE,
            lambda: None,
            perhaps=perhaps,
        )
        if found is not None:
            self.watches.append(Watched(found[0].watch, ears, held, set(node.entries)))

    @move(at=INDEX)
    @precondition(lambda self: self.watches)
    def end_watch(self, at: int) -> None:
        """It is closed; whoever heard of it hears no more."""
        watched = self.any_of(self.watches, at)
        refusals = {Code.NOT_FOUND, Code.CLOSED, Code.UNSUPPORTED}

        async def run() -> None:
            _, code = await self.tried(answer_of(watched.real.close()))
            over = watched.held.right.refusals(Effect.OBSERVE, self.clock())
            assert code is None or code in refusals | over, code
            await self._hear()
            watched.was_over = True

        self.step(run())

    async def check(self) -> None:
        await super().check()
        if self.watches:
            await self._hear()
            for watched in self.watches:
                over = watched.held.right.is_over(self.clock())
                watched.was_over = watched.was_over or over

    async def _hear(self) -> None:
        for connection in self.connections:
            await connection.info()
        for watched in self.watches:
            heard, watched.ears.heard = watched.ears.heard, []
            node, right = watched.held.node, watched.held.right
            assert isinstance(node, model.Directory)
            watched.names |= node.entries.keys()
            assert not (heard and watched.was_over), "it is told something though it has ended"
            for name in filter(None, heard):
                self.counts["told"] += 1
                assert not right.hides(name), "it is told of what is hidden"
                if right.dry is None:
                    assert name in watched.names, "it is told of what is elsewhere"
