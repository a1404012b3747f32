"""Another time, and another token, for a saved reference.

Invariants:

* No reference lives longer than the one it was saved from; only who holds that one, or one above,
  gives it another time.
* A reference has one token; the one it had before is as good as any wrong one, from before the new
  one is told.
* Either is on disk before it is answered; one that could not be written has not happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from capstore.schema.errors import Denied, InvalidArgument, NotFound, Unsupported
from capstore.service.grants import Effect
from capstore.service.references import Reference, ReferenceTable, digest_of
from capstore.service.tokens import Tokens

if TYPE_CHECKING:
    from capstore.service.authority import Authority


class Exchanges:
    """What changes references of one authority in their place."""

    def __init__(
        self,
        authority: Authority,
        table: ReferenceTable,
        tokens: Tokens,
        clock: Callable[[], int],
    ) -> None:
        self._authority = authority
        self._table = table
        self._tokens = tokens
        self._clock = clock
        self._exchanging = asyncio.Lock()

    async def renew(self, reference_id: int, expires_at: int) -> Reference:
        """Gives a reference another time, in ns since 1970, 0 for as long as what it was saved
        from; what lives by it follows at once.  Durable on return.

        It is for the caller to know that somebody asks who holds one above.  Raises `NotFound`,
        `InvalidArgument` (a time that is over; nobody has a token of it), `Unsupported` (a standing
        share), `Denied` (an owner's; longer than what it was saved from) and `StorageIOError`.
        """
        async with self._exchanging:
            return await self._renew(reference_id, expires_at)

    async def _renew(self, reference_id: int, expires_at: int) -> Reference:
        self._authority.collect()
        before = self._held(reference_id)
        above = self._table.parent_with_token(before)
        if above is None:
            raise Denied("the reference to a whole volume does not expire")
        if self._tokens.stands(before):
            raise Unsupported("how long this lasts is said by the configuration of the service")
        if expires_at < 0 or 0 < expires_at <= self._clock():
            raise InvalidArgument("this time is over: revoke it instead")
        holder, grant = self._authority.grant_of(above), self._authority.grant_of(before)
        holder.check(Effect.OBSERVE)
        if holder.expires_at and expires_at > holder.expires_at:
            raise Denied("what it was saved from ends before that")
        after = replace(before, policy=replace(before.policy, expires_at=expires_at))
        time_before = grant.renewed(expires_at, holder)
        try:
            await self._table.exchange(before, after)
        except BaseException:
            grant.renewed(*time_before)
            raise
        return self._held(reference_id)

    async def rotate(self, reference_id: int) -> tuple[Reference, str]:
        """Gives a reference another token, and returns it; the old one is wrong from now on.

        What was restored with it, and saved below, stays.  Durable on return.  Raises `NotFound`,
        `InvalidArgument` (nobody has a token of it) and `StorageIOError`, with the old token as
        good as before; only after a crash none may be known.
        """
        async with self._exchanging:
            return await self._rotate(reference_id)

    async def _rotate(self, reference_id: int) -> tuple[Reference, str]:
        self._authority.collect()
        before = self._held(reference_id)
        self._authority.grant_of(before).check(Effect.OBSERVE)
        after = replace(before, rotations=before.rotations + 1)
        if not before.parent:
            self._authority.move_to_next_epoch(before)
            token = self._authority.owner_token(before.volume)
        elif self._tokens.stands(before):
            token = self._tokens.standing(after)
        else:
            token = Tokens.fresh()
        after = replace(after, digest=digest_of(token))
        try:
            await self._table.exchange(before, after)
        except BaseException:
            now = self._table.get(reference_id)
            if not before.parent and now is not None and now.digest == before.digest:
                self._table.epochs[before.volume] -= 1
            raise
        return self._held(reference_id), token

    def _held(self, reference_id: int) -> Reference:
        """Raises `NotFound`, and `InvalidArgument` for an anchor."""
        reference = self._table.get(reference_id)
        if reference is None or not self._authority.serves(reference.volume):
            raise NotFound("no such reference")
        if reference.anchor:
            raise InvalidArgument("nobody holds this one: it bounds those that were saved below it")
        return reference
