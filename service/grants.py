"""Authority: what a capability may do, for how long, and what ends it.

Invariants:

* A `Grant` is one link in a chain of attenuation.  It has all that its parent has, less what its
  own policy takes away; nothing gives authority back.
* Everything served stands under a grant: the owner's, a saved reference's, or an attenuation's.
* The state that decides a call is flat (`_ended`, `read_only`, `expires_at` are those of the whole
  chain), so a check costs the same at any depth.  Revoking walks down once and marks every link.
* After `end`, no call begins or answers under the grant; after `settled`, no change begun under
  it is still under way.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakSet

from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import Expired, InvalidArgument, ReadOnly, StorageError, TooLarge
from capstore.schema.limits import GRANT_DEPTH_MAX
from capstore.service.quota import Book, KeyLocks, Pace


class Effect(enum.Enum):
    """What a method does to the storage."""

    OBSERVE = "observe"
    CHANGE = "change"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an attenuation takes away.

    `expires_at` is ns since 1970, 0 for never.  `max_bytes` and `max_nodes` bound by how much a
    store grows, `calls_per_second` and `bytes_per_second` how fast it is used; 0 is no bound, and
    only stores know them.  Whether a `Revoker` is handed out is no matter of the policy: every
    grant can be revoked by whoever holds that power.
    """

    read_only: bool = False
    expires_at: int = 0
    max_bytes: int = 0
    max_nodes: int = 0
    calls_per_second: int = 0
    bytes_per_second: int = 0

    def under(self, outer: Policy) -> Policy:
        """This policy and `outer` at once."""
        return Policy(
            read_only=self.read_only or outer.read_only,
            expires_at=_least(self.expires_at, outer.expires_at),
            max_bytes=_least(self.max_bytes, outer.max_bytes),
            max_nodes=_least(self.max_nodes, outer.max_nodes),
            calls_per_second=_least(self.calls_per_second, outer.calls_per_second),
            bytes_per_second=_least(self.bytes_per_second, outer.bytes_per_second),
        )

    def check(self) -> Policy:
        """This policy if it makes sense, else raises `InvalidArgument`."""
        if self.expires_at < 0:
            raise InvalidArgument("a policy cannot expire before 1970")
        return self

    @property
    def counts(self) -> bool:
        """Whether it bounds an amount or a rate: what is used up is then part of the authority."""
        return bool(
            self.max_bytes or self.max_nodes or self.calls_per_second or self.bytes_per_second
        )


def _least(one: int, other: int) -> int:
    """The lesser of two bounds, of which 0 is none."""
    return min(one, other) if one and other else one or other


class Guarded(Protocol):
    """What a grant releases when it ends."""

    def release(self) -> None:
        """Drops what is held; called once at most, when no call will use it again."""


@dataclass(frozen=True, slots=True)
class ServedVolume:
    """A volume, or a store, and the name it is served under."""

    name: str
    volume: Volume | ObjectStore
    locks: KeyLocks = field(default_factory=KeyLocks, compare=False, repr=False)


class Grant:
    """One link of authority over one volume; see the module's invariants."""

    __slots__ = (
        "__weakref__",
        "_changes",
        "_children",
        "_clock",
        "_ended",
        "_handles",
        "_holder",
        "_idle",
        "_reading",
        "book",
        "books",
        "borrowed",
        "depth",
        "expires_at",
        "paces",
        "parent",
        "policy",
        "read_only",
        "reference_id",
        "served",
    )

    def __init__(
        self,
        served: ServedVolume,
        policy: Policy,
        parent: Grant | None = None,
        *,
        reference_id: int = 0,
        used: tuple[int, int] = (0, 0),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        whole = policy if parent is None else policy.under(parent.whole_policy)
        self.served = served
        self.policy = policy
        self.parent = parent
        self.reference_id = reference_id
        self.depth: int = 0 if parent is None else parent.depth + 1
        self._reading: Grant | None = None
        self._holder: Grant | None = None
        self.read_only = whole.read_only
        self.expires_at = whole.expires_at
        self._ended: StorageError | None = None if parent is None else parent._ended
        self._children: WeakSet[Grant] = WeakSet()
        self._handles: WeakSet[Guarded] = WeakSet()
        self._changes = 0
        self._idle: asyncio.Event | None = None
        self._clock = clock
        # What was lent by a name is not saved: its reference would not know of the name's end.
        self.borrowed: bool = parent is not None and parent.borrowed
        bounded = policy.max_bytes or policy.max_nodes
        self.book = Book(policy.max_bytes, policy.max_nodes, *used) if bounded else None
        self.books: tuple[Book, ...] = () if parent is None else parent.books
        if self.book is not None:
            self.books += (self.book,)
        self.paces: tuple[Pace, ...] = () if parent is None else parent.paces
        if policy.calls_per_second or policy.bytes_per_second:
            self.paces += (Pace(policy.calls_per_second, policy.bytes_per_second, clock),)
        if parent is not None:
            parent._children.add(self)

    @property
    def whole_policy(self) -> Policy:
        """What the policies of the chain from the root to here forbid, at once; what they count is
        in `books` and `paces`."""
        return Policy(self.read_only, self.expires_at)

    @property
    def attenuated(self) -> bool:
        """Whether anything was taken away on the way here."""
        return bool(self.read_only or self.expires_at or self.books or self.paces)

    @property
    def revoked(self) -> bool:
        """Whether this grant has ended by revocation."""
        return self._ended is not None

    def derive(
        self, policy: Policy, *, reference_id: int = 0, used: tuple[int, int] = (0, 0)
    ) -> Grant:
        """A grant below this one; `used` is what is used of its quota, in bytes and nodes.

        Raises `TooLarge` below `GRANT_DEPTH_MAX` others.
        """
        if self.depth >= GRANT_DEPTH_MAX:
            raise TooLarge(f"a capability is attenuated and saved at most {GRANT_DEPTH_MAX} times")
        return self._child(policy.check(), reference_id, used)

    def _child(
        self, policy: Policy, reference_id: int = 0, used: tuple[int, int] = (0, 0)
    ) -> Grant:
        return Grant(
            self.served, policy, self, reference_id=reference_id, used=used, clock=self._clock
        )

    def lent_to(self, holder: Grant) -> Grant:
        """A grant below this one that is bound by `holder` too: by its policies, and its end.

        Raises `TooLarge` as `derive`.
        """
        if holder.depth >= GRANT_DEPTH_MAX:
            raise TooLarge(f"names lead from one to another at most {GRANT_DEPTH_MAX} times")
        lent = self.derive(holder.whole_policy)
        lent.depth = max(lent.depth, holder.depth + 1)
        lent.books = tuple(dict.fromkeys(lent.books + holder.books))
        lent.paces = tuple(dict.fromkeys(lent.paces + holder.paces))
        lent.borrowed = True
        # What ends above `holder` has to reach this one though nobody holds `holder` any more.
        lent._holder = holder
        if holder._ended is not None:
            lent._ended = holder._ended
        holder._children.add(lent)
        return lent

    def reading(self) -> Grant:
        """This grant, or one below it that only reads; always the same."""
        if self.read_only:
            return self
        if self._reading is None:
            self._reading = self._child(Policy(read_only=True))
        return self._reading

    def check(self, effect: Effect) -> None:
        """Returns if a method of this effect may run now; else raises what the caller gets.

        Raises `Revoked`, `Expired` or `ReadOnly`, in this order.
        """
        if self._ended is not None:
            raise type(self._ended)(self._ended.message)
        if self.expires_at and self._clock() >= self.expires_at:
            raise Expired("the capability's time is over")
        if self.read_only and effect is Effect.CHANGE:
            raise ReadOnly("the capability only reads")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around a change: `settled` waits for it."""
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            if self._idle is not None and not self._changes:
                self._idle.set()

    def adopt(self, handle: Guarded) -> None:
        """Registers what `end` is to release; held weakly."""
        self._handles.add(handle)

    def stands_under(self, other: Grant) -> bool:
        """Whether `other` is this grant or one above it: its policies all hold here too."""
        grant: Grant | None = self
        while grant is not None:
            if grant is other:
                return True
            grant = grant.parent
        return False

    def below(self) -> Iterator[Grant]:
        """Every live grant below this one; the caller may keep them, nothing here does."""
        seen: set[Grant] = set()
        todo = list(self._children)
        while todo:
            grant = todo.pop()
            # What a name lent is below two.
            if grant not in seen:
                seen.add(grant)
                yield grant
                todo.extend(grant._children)

    def nearest_reference(self) -> int:
        """The id of the saved reference that this grant came from."""
        grant: Grant | None = self
        while grant is not None:
            if grant.reference_id:
                return grant.reference_id
            grant = grant.parent
        return 0

    def policy_since_reference(self) -> Policy:
        """All that was taken away since the saved reference that this grant came from."""
        policy, grant = Policy(), self
        while grant.reference_id == 0 and grant.parent is not None:
            policy = policy.under(grant.policy)
            grant = grant.parent
        return policy

    def end(self, reason: StorageError) -> list[Grant]:
        """Marks this grant and all below as ended, at once; returns them.

        Who wants to know that no change is under way any more awaits `settled` of each.
        """
        grants = [self, *self.below()]
        for grant in grants:
            if grant._ended is None:
                grant._ended = reason
                for handle in list(grant._handles):
                    handle.release()
        return grants

    async def settled(self) -> None:
        """Returns when no change begun under this grant is under way."""
        while self._changes:
            if self._idle is None:
                self._idle = asyncio.Event()
            self._idle.clear()
            await self._idle.wait()
