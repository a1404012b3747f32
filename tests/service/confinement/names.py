"""Moves on names in a store: for contents, and for what was saved."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from capstore.backers.store import Binding, Condition
from capstore.schema.errors import Code, NotFound
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from capstore.service.remote import answer_of
from capstore.service.remote_store import RemoteNamespace, RemoteStore
from tests.contract import model
from tests.service.confinement.machine import CLIENT, INDEX, NAMES, busy_if, move
from tests.service.confinement.stores import CONDITIONS, CONTENT, Stores
from tests.service.confinement.world import Held, Names, Saved, hash_of

HASHES = st.sampled_from([hash_of(CONTENT), hash_of(CONTENT), hash_of(b"nothing")])


class Naming(Stores):
    """Binding, resolving and lending."""

    @property
    def has_names(self) -> bool:
        return any(isinstance(each.node, Names) for each in self.held)

    def names_at(self, index: int) -> Held:
        return self.any_of([each for each in self.held if isinstance(each.node, Names)], index)

    @move(at=INDEX)
    def namespace(self, at: int) -> None:
        self.step(self._namespace(self.store_at(at)))

    async def _namespace(self, held: Held) -> None:
        right = held.right
        found = await self.attempt(
            _names_of(held.real),
            held,
            Effect.OBSERVE,
            lambda: None,
            refusals=[] if right.is_whole else [Code.DENIED],
        )
        if found is not None:
            if right.quotas:
                right = right.below(Policy(read_only=True))
            self.got(Held(found[0], Names(), right))

    @move(at=INDEX, name=NAMES)
    @precondition(lambda self: self.has_names)
    def names_below(self, at: int, name: str) -> None:
        held = self.names_at(at)
        node: Any = held.node

        async def run() -> None:
            found = await self.attempt(
                held.real.sub(name), held, Effect.OBSERVE, lambda: None, names=[name]
            )
            if found is not None:
                self.got(Held(found[0], Names((*node.path, name)), held.right))

        self.step(run())

    @move(at=INDEX)
    @precondition(lambda self: self.has_names)
    def list_bindings(self, at: int) -> None:
        held = self.names_at(at)
        node: Any = held.node

        def does() -> list[str]:
            names = (path for path in self.world.store.names if path[:-1] == node.path)
            return sorted(path[-1] for path in names if not held.right.hides(path[-1]))

        async def run() -> None:
            found = await self.attempt(held.real.list(), held, Effect.OBSERVE, does)
            if found is not None:
                told = [binding.name for binding in found[0].bindings]
                assert not any(map(held.right.hides, told)), "a listing tells what is hidden"
                assert found[1] is None or told == found[1], "a listing tells more, or less"

        self.step(run())

    # Binding ---------------------------------------------------------------------------------

    @move(at=INDEX, name=NAMES, hash_=HASHES, condition=CONDITIONS)
    @precondition(lambda self: self.has_names)
    def bind_content(self, at: int, name: str, hash_: bytes, condition: Condition) -> None:
        held = self.names_at(at)
        hidden = {Code.NOT_FOUND} if held.right.hides_key(hash_) else set()
        call = held.real.bind(Binding(name, hash=hash_), condition)
        self.step(self._bind(held, call, name, hash_, condition, hidden))

    @move(at=INDEX, name=NAMES, of=INDEX, client=CLIENT, condition=CONDITIONS)
    @precondition(lambda self: self.has_names and self.saved)
    def bind_token(self, at: int, name: str, of: int, client: int, condition: Condition) -> None:
        """Has a name stand for something of which there is a token."""
        saved = self.any_of([*self.saved.values()], of)
        self.step(self._bind_token(self.names_at(at), name, saved, client, condition))

    async def _bind_token(
        self, held: Held, name: str, saved: Saved, client: int, condition: Condition
    ) -> None:
        over = {Code.DENIED} if saved.right.is_over(self.clock()) else set()
        call = held.real.bind_token(name, await self.token_of(saved, client), condition)
        await self._bind(held, call, name, saved, condition, over)

    @move(at=INDEX, name=NAMES, of=INDEX, condition=CONDITIONS)
    @precondition(lambda self: self.has_names and self.saved)
    def bind_number(self, at: int, name: str, of: int, condition: Condition) -> None:
        """Has a name stand for something of which nothing but the number is known."""
        held = self.names_at(at)
        known = [*self.saved.values(), *map(self.by_right.__getitem__, self.owners.values())]
        saved = self.any_of(known, of)
        because = {Code.DENIED} if saved.right.is_over(self.clock()) else set()
        if not saved.right.stands_under(held.right) or saved.right is held.right:
            because.add(Code.DENIED)
        call = held.real.bind(Binding(name, reference=saved.id), condition)
        self.step(self._bind(held, call, name, saved, condition, because, {Code.DENIED}))

    async def _bind(
        self,
        held: Held,
        call: Any,
        name: str,
        what: bytes | Saved,
        condition: Condition,
        refusals: set[Code],
        perhaps: set[Code] | None = None,
    ) -> None:
        node: Any = held.node
        demands = condition
        if held.right.adds_only:
            if condition.version is not None:
                refusals = refusals | {Code.DENIED}
            demands = Condition(absent=True)
        await self.attempt(
            call,
            held,
            Effect.ADD,
            lambda: self.world.store.bind((*node.path, name), what, demands),
            names=[name],
            refusals=refusals,
            perhaps=perhaps or (),
        )

    @move(at=INDEX, name=NAMES, condition=CONDITIONS)
    @precondition(lambda self: self.has_names)
    def unbind(self, at: int, name: str, condition: Condition) -> None:
        held = self.names_at(at)
        node: Any = held.node
        self.step(
            self.attempt(
                held.real.unbind(name, condition),
                held,
                Effect.CHANGE,
                lambda: self.world.store.unbind((*node.path, name), condition),
                names=[name],
            )
        )

    # Resolving -------------------------------------------------------------------------------

    @move(at=INDEX, name=NAMES)
    @precondition(lambda self: self.has_names)
    def resolve(self, at: int, name: str) -> None:
        self.step(self._resolve(self.names_at(at), name))

    async def _resolve(self, held: Held, name: str) -> None:
        node: Any = held.node

        def does() -> bytes | Saved:
            what = self.world.store.resolve((*node.path, name))
            if isinstance(what, Saved) and what.right.is_over(self.clock()):
                raise NotFound
            return what

        found = await self.attempt(
            held.real.resolve_capability(name),
            held,
            Effect.OBSERVE,
            does,
            names=[name],
            perhaps=self._not_lent(held, name),
        )
        if found is None:
            return
        (binding, real), what = found
        if what is None and binding.reference is not None:
            # A dry run has names of its own.
            known = [each for each in self.by_right.values() if each.id == binding.reference]
            what = known[0]
            assert not what.right.is_over(self.clock()), "done, though it has ended"
        if isinstance(what, Saved):
            assert binding.reference == what.id
            await self._lent(held, what, real)
        elif what is not None:
            assert binding.hash == what

    async def _lent(self, held: Held, what: Saved, real: Any) -> None:
        self.counts["lent"] += 1
        right = what.right.lent_to(held.right)
        if right.policy.dry_run:
            self.runs[right] = what.held.node
            self.world.reach(right, what.held.node)
        lent = self.got(Held(real, what.held.node, right, frozen=what.held.frozen))
        await self.is_node(lent)

    def _not_lent(self, held: Held, name: str) -> set[Code]:
        """Why what a name stands for may not be lent though it has not ended."""
        node: Any = held.node
        what = self.world.store.names.get((*node.path, name))
        codes = {Code.TOO_LARGE}
        if isinstance(what, Saved):
            codes |= busy_if(what.right)
            gone = isinstance(what.held.node, model.Node) and not self.world.is_linked(
                what.held.node
            )
            if gone or what.held.frozen or what.right.dry is not None:
                codes.add(Code.NOT_FOUND)
        return codes

    @move(at=INDEX, to=INDEX, name=NAMES, client=CLIENT)
    def lend(self, at: int, to: int, name: str, client: int) -> None:
        """Puts something under a name, and has it resolved."""

        async def run() -> None:
            await self._namespace(self.store_at(to))
            saved = await self._save(self.some(at), client)
            if saved is not None and isinstance(self.held[-1].node, Names):
                names = self.held[-1]
                await self._bind_token(names, name, saved, client, Condition())
                await self._resolve(names, name)

        self.step(run())


async def _names_of(store: RemoteStore) -> RemoteNamespace:
    return RemoteNamespace((await answer_of(store.raw.namespace())).namespace)
