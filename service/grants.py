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
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from capstore.backers.node import Volume
from capstore.schema.errors import Expired, InvalidArgument, ReadOnly, StorageError, TooLarge
from capstore.schema.limits import GRANT_DEPTH_MAX


class Effect(enum.Enum):
    """What a method does to the storage."""

    OBSERVE = "observe"
    CHANGE = "change"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an attenuation takes away.

    `expires_at` is ns since 1970, 0 for never.  Whether a `Revoker` is handed out is no matter of
    the policy: every grant can be revoked by whoever holds that power.
    """

    read_only: bool = False
    expires_at: int = 0

    def under(self, outer: Policy) -> Policy:
        """This policy and `outer` at once."""
        ends = [at for at in (self.expires_at, outer.expires_at) if at]
        return Policy(
            read_only=self.read_only or outer.read_only,
            expires_at=min(ends, default=0),
        )

    def check(self) -> Policy:
        """This policy if it makes sense, else raises `InvalidArgument`."""
        if self.expires_at < 0:
            raise InvalidArgument("a policy cannot expire before 1970")
        return self


class Guarded(Protocol):
    """What a grant releases when it ends."""

    def release(self) -> None:
        """Drops what is held; called once at most, when no call will use it again."""


@dataclass(frozen=True, slots=True)
class ServedVolume:
    """A volume and the name it is served under."""

    name: str
    volume: Volume


class Grant:
    """One link of authority over one volume; see the module's invariants."""

    __slots__ = (
        "__weakref__",
        "_changes",
        "_children",
        "_clock",
        "_ended",
        "_handles",
        "_idle",
        "_reading",
        "depth",
        "expires_at",
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
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        whole = policy if parent is None else policy.under(parent.whole_policy)
        self.served = served
        self.policy = policy
        self.parent = parent
        self.reference_id = reference_id
        self.depth: int = 0 if parent is None else parent.depth + 1
        self._reading: Grant | None = None
        self.read_only = whole.read_only
        self.expires_at = whole.expires_at
        self._ended: StorageError | None = None if parent is None else parent._ended
        self._children: WeakSet[Grant] = WeakSet()
        self._handles: WeakSet[Guarded] = WeakSet()
        self._changes = 0
        self._idle: asyncio.Event | None = None
        self._clock = clock
        if parent is not None:
            parent._children.add(self)

    @property
    def whole_policy(self) -> Policy:
        """The policies of the chain from the root to here, at once."""
        return Policy(self.read_only, self.expires_at)

    @property
    def revoked(self) -> bool:
        """Whether this grant has ended by revocation."""
        return self._ended is not None

    def derive(self, policy: Policy, *, reference_id: int = 0) -> Grant:
        """A grant below this one.  Raises `TooLarge` below `GRANT_DEPTH_MAX` others."""
        if self.depth >= GRANT_DEPTH_MAX:
            raise TooLarge(f"a capability is attenuated and saved at most {GRANT_DEPTH_MAX} times")
        return self._child(policy.check(), reference_id)

    def _child(self, policy: Policy, reference_id: int = 0) -> Grant:
        return Grant(self.served, policy, self, reference_id=reference_id, clock=self._clock)

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
        todo = list(self._children)
        while todo:
            grant = todo.pop()
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
