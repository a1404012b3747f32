"""Moves on anything: narrowing it, handing it on, and what ends it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from tests.service.confinement.machine import (
    CLIENT,
    INDEX,
    POLICIES,
    SINGLE,
    Machine,
    busy_if,
    move,
)
from tests.service.confinement.rights import Right
from tests.service.confinement.world import Held, Piece, Saved


class Saving(Machine):
    """Attenuation, saved references, and the end of both."""

    # Narrowing -------------------------------------------------------------------------------

    @move(at=INDEX)
    def read_only(self, at: int) -> None:
        held = self.some(at)
        right = held.right.below(Policy(read_only=True))
        self.step(self.narrow(held, held.real.read_only(), right))

    @move(at=INDEX, policy=POLICIES, revocable=st.booleans(), ends=st.sampled_from([0, 0, 0, 50]))
    def attenuate(self, at: int, policy: Policy, revocable: bool, ends: int) -> None:
        if ends:
            policy = policy.under(Policy(expires_at=self.clock() + ends))
        self.step(self._attenuate(self.some(at), policy, revocable=revocable))

    async def _attenuate(self, held: Held, policy: Policy, *, revocable: bool) -> Held | None:
        right = held.right.below(policy)
        if policy.dry_run:
            self.runs[right] = held.node
            self.world.reach(right, held.node)
        call = held.real.attenuate(policy, revocable=revocable)
        narrowed = await self.narrow(held, call, right)
        if narrowed is None:
            return None
        if revocable:
            self.revokers.append((narrowed.revoker, right))
        return self.held[-1]

    async def narrow(
        self,
        held: Held,
        call: Awaitable[Any],
        right: Right,
        refusals: Sequence[Code] = (),
    ) -> Any:
        """A call that gives the same with less authority."""
        perhaps = {Code.TOO_LARGE} | busy_if(right)
        if held.frozen:
            perhaps.add(Code.UNSUPPORTED)
        found = await self.attempt(
            call,
            held,
            Effect.OBSERVE,
            lambda: None,
            refusals=[*refusals, Code.CLOSED] if held.closed else refusals,
            perhaps=perhaps,
        )
        if found is None:
            return None
        real = getattr(found[0], "capability", found[0])
        await self.is_node(self.got(Held(real, held.node, right, frozen=held.frozen)))
        return found[0]

    # Ending ----------------------------------------------------------------------------------

    @move(at=INDEX)
    @precondition(lambda self: self.revokers)
    def revoke(self, at: int) -> None:
        revoker, right = self.any_of(self.revokers, at)

        async def run() -> None:
            await revoker.revoke()
            right.revoked = True
            await self.look_at_all()

        self.step(run())

    @move(by=st.sampled_from([0, 0, 5, 20]))
    def time_passes(self, by: int) -> None:
        self.clock.now += by

    # Handing on ------------------------------------------------------------------------------

    @move(at=INDEX, client=CLIENT)
    def save(self, at: int, client: int) -> None:
        """A client saves what it has, and puts the token where all of them find it."""
        whole = [each for each in self.held if not isinstance(each.node, Piece)]
        self.step(self._save(self.any_of(whole, at), client))

    async def _save(self, held: Held, client: int) -> Saved | None:
        perhaps = {Code.TOO_LARGE}
        if held.frozen:
            perhaps |= {Code.UNSUPPORTED, Code.NOT_FOUND}
        if not self.world.is_linked(held.node):
            perhaps.add(Code.NOT_FOUND)
        refusals = {Code.CLOSED} if held.closed else set()
        if held.right.is_borrowed:
            refusals.add(Code.DENIED)
        label = f"shared {len(self.by_right)}"
        found = await self.attempt(
            held.real.save(label),
            held,
            Effect.OBSERVE,
            lambda: None,
            refusals=refusals,
            perhaps=perhaps,
        )
        if found is None:
            return None
        id_ = self.authority._table.find(found[0]).id
        name = f"token-{id_}"
        await self.boards[client].write_file(name, found[0].encode())
        right = held.right.below()
        saved = Saved(id_, label, name, right, Held(None, held.node, right, frozen=held.frozen))
        self.saved[name] = self.by_right[right] = saved
        return saved

    async def token_of(self, saved: Saved, client: int) -> str:
        data, _, _ = await self.boards[client].read_file(saved.name)
        return data.decode()

    @move(at=INDEX, client=CLIENT)
    @precondition(lambda self: self.saved)
    def restore(self, at: int, client: int) -> None:
        self.step(self._restore(self.any_of([*self.saved.values()], at), client))

    async def _restore(self, saved: Saved, client: int) -> Held | None:
        token, right = await self.token_of(saved, client), saved.right
        over = right.is_over(self.clock())
        real, code = await self.tried(self.connections[client].restore(token), busy_if(right))
        if code is not None:
            if code is Code.BUSY:
                return None
            assert code is (Code.DENIED if over else Code.NOT_FOUND)
            linked = self.world.is_linked(saved.held.node)
            assert over or not linked or saved.held.frozen or right.dry is not None
            return None
        assert not over, f"done, though {over}"
        self.counts["restored"] += 1
        made = self.got(Held(real, saved.held.node, right, frozen=saved.held.frozen))
        await self.is_node(made)
        return made

    @move(at=INDEX, first=CLIENT, then=CLIENT, policy=SINGLE, ends=st.sampled_from([0, 0, 0, 70]))
    def hand_on(self, at: int, first: int, then: int, policy: Policy, ends: int) -> None:
        """From one client to the next, with less authority."""
        if ends:
            policy = policy.under(Policy(expires_at=self.clock() + ends))

        async def run() -> None:
            narrowed = await self._attenuate(self.some(at), policy, revocable=True)
            saved = narrowed and await self._save(narrowed, first)
            if saved is not None:
                await self._restore(saved, then)

        self.step(run())

    @move()
    @precondition(lambda self: self.saved)
    def start_again(self) -> None:
        """The service stops and starts: what was not saved is gone, but for the owners'."""

        async def run() -> None:
            await self.stop()
            # What nobody has any more is not bound by what ended with it.
            await self.start()
            await self.look_at_all()

        self.step(run())
