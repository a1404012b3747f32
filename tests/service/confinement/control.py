"""Moves on saved references: who has a token controls what was saved under it, and below."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from capstore.schema.errors import Code
from capstore.service.policy import Policy
from capstore.service.remote import ReferenceControl
from tests.service.confinement.machine import CLIENT, INDEX, move
from tests.service.confinement.saving import Saving
from tests.service.confinement.world import Held, Saved


class Control(Saving):
    """Ending, renewing, rotating and listing references."""

    @move(
        at=INDEX,
        client=CLIENT,
        what=st.sampled_from(["revoke", "rotate", "renew", "list"]),
        of=INDEX,
        ends=st.sampled_from([0, 5, 15, 35, 10**6, -5]),
    )
    @precondition(lambda self: self.saved)
    def control(self, at: int, client: int, what: str, of: int, ends: int) -> None:
        """Who has a token ends, renews or rotates any reference whose number it knows."""
        saved = [*self.saved.values()]
        # The owner has a token, too.
        has = (
            self.any_of(saved, at) if at % 16 else self.by_right[self.owners[["m", "s"][at // 128]]]
        )
        other = self.any_of(saved, of // 4) if of % 4 else has
        self.step(self._control(has, client, what, other, self.clock() + ends if ends else 0))

    @move(at=INDEX, client=CLIENT, ends=st.sampled_from([0, 5, 35, 10**6]))
    def family(self, at: int, client: int, ends: int) -> None:
        """One reference below another, and what each can do with the other and with itself."""
        self.step(self._family(self.some(at), client, ends))

    async def _family(self, held: Held, client: int, ends: int) -> None:
        policy = Policy(expires_at=self.clock() + 50)
        narrowed = await self._attenuate(held, policy, revocable=False)
        parent = narrowed and await self._save(narrowed, client)
        got = parent and await self._restore(parent, 0)
        child = got and await self._save(got, 1)
        if not parent or not child:
            return
        for what in ("rotate", "renew", "revoke"):
            await self._control(child, client, what, parent, self.clock() + 5)
        await self._control(child, client, "renew", child, self.clock() + 5)
        for has, of in ((parent, parent), (parent, child), (child, child)):
            await self._control(has, client, "list", of, 0)
            await self._control(has, client, "rotate", of, 0)
        for has in (parent, *(self.by_right[right] for right in self.owners.values())):
            await self._control(has, client, "renew", child, self.clock() + ends if ends else 0)
        await self._control(parent, client, "revoke", child, 0)
        await self._control(parent, client, "renew", child, self.clock() + 5)

    async def _control(self, has: Saved, client: int, what: str, other: Saved, ends: int) -> None:
        owns = has.right in self.owners.values()
        token = self.tokens[has.name] if owns else await self.token_of(has, client)
        over = has.right.is_over(self.clock())
        control, code = await self.tried(self.connections[client].reference(token))
        assert code is (Code.DENIED if over else None), f"done, though {over}: {code}"
        if control is None:
            return
        if what == "list":
            await self._listed(control, has)
        elif what == "renew":
            await self._renew(control, has, other, ends)
        elif owns and other is has:
            # The rest would be nothing but refusals.
            return
        else:
            does = self._revoke if what == "revoke" else self._rotate
            await does(control, has, other, client)

    def _not_below(self, has: Saved, other: Saved) -> set[Code]:
        """Why control over `has` gives none over `other`."""
        if not other.right.stands_under(has.right):
            return {Code.NOT_FOUND}
        return set()

    def _gone(self, other: Saved) -> set[Code]:
        """What is said of one that has ended."""
        if other.right.is_over(self.clock()):
            return {Code.NOT_FOUND, Code.EXPIRED, Code.REVOKED}
        return set()

    def _expect(self, code: Code | None, because: set[Code], perhaps: set[Code]) -> bool:
        """Whether it was done; it may not be if there is a reason why not."""
        if code is None:
            assert not because, f"done, though {because}"
            return True
        assert code in because | perhaps, (code, because, perhaps)
        return False

    async def _revoke(
        self, control: ReferenceControl, has: Saved, other: Saved, client: int
    ) -> None:
        _, code = await self.tried(control.revoke(other.id))
        if self._expect(code, self._not_below(has, other), self._gone(other)):
            other.right.revoked = True
            await self.look_at_all()

    async def _rotate(
        self, control: ReferenceControl, has: Saved, other: Saved, client: int
    ) -> None:
        connection = self.connections[client]
        old = await self.token_of(other, client)
        elsewhere, _ = await self.tried(connection.reference(old))
        new, code = await self.tried(control.rotate(other.id))
        gone = self._gone(other)
        if not self._expect(code, self._not_below(has, other) | gone, set()):
            return
        assert new is not None
        await self.boards[client].write_file(other.name, new.encode())
        _, code = await self.tried(connection.restore(old))
        assert code is Code.DENIED, "done, though the token is an old one"
        if elsewhere is not None:
            _, code = await self.tried(elsewhere.status())
            assert code is Code.DENIED, "done, though it was had with an old token"

    async def _renew(self, control: ReferenceControl, has: Saved, other: Saved, ends: int) -> None:
        because = self._not_below(has, other) | self._gone(other)
        above = self.above(other)
        if other is has or above is None or (above.right.end and ends > above.right.end):
            because.add(Code.DENIED)
        if 0 < ends <= self.clock():
            because.add(Code.INVALID_ARGUMENT)
        info, code = await self.tried(control.renew(other.id, ends))
        if self._expect(code, because, set()):
            assert above is not None
            assert info is not None
            assert info.policy.expires_at == ends
            # Instead of all that was between it and what it was saved from.
            other.right.ends, other.right.timed_by = ends, above.right
            await self.look_at_all()

    def above(self, saved: Saved) -> Saved | None:
        """What it was saved from: the nearest of which somebody has a token."""
        links: Any = list(saved.right.ancestors())[1:]
        return next((self.by_right[link] for link in links if link in self.by_right), None)

    async def _listed(self, control: ReferenceControl, has: Saved) -> None:
        infos, _ = await self.tried(control.list())
        assert infos is not None
        found = {info.id: info for info in infos if not info.anchor}
        below = {
            each.id: each
            for each in self.by_right.values()
            if each is not has and each.right.stands_under(has.right)
        }
        live = {id_ for id_, each in below.items() if not each.right.is_over(self.clock())}
        assert live <= found.keys() <= below.keys(), "it lists what is not below"
        for id_, info in found.items():
            above = self.above(below[id_])
            assert (info.label, info.saved_by) == (below[id_].label, above and above.label)
            assert info.volume == has.name if has.right in self.owners.values() else True
