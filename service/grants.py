"""Authority: what a capability may do, for how long, and what ends it.

Invariants:

* A `Grant` is one link in a chain of attenuation.  It has all that its parent has, less what its
  own policy takes away; nothing gives authority back.
* Everything served stands under a grant: the owner's, a saved reference's, or an attenuation's.
* The state that decides a call is flat (`_ended`, `read_only`, `expires_at` and the rest are those
  of the whole chain), so a check costs the same at any depth.  Revoking walks down once and marks
  every link.
* What a dry run counts is its own: it begins with copies of the books above, and those stay as they
  are.
* Nobody gets a traced grant where nothing records its calls (`check_traced`).
* After `end`, no call begins or answers under the grant; after `settled`, no change begun under
  it is still under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import (
    Denied,
    Expired,
    ReadOnly,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import GRANT_DEPTH_MAX
from capstore.service.decisions import Effect
from capstore.service.hidden import check_all, hidden_of
from capstore.service.ledger import Ledger
from capstore.service.policy import Policy
from capstore.service.policy import least as _least
from capstore.service.quota import Book, Pace
from capstore.service.watching import Hub

__all__ = ["Effect", "Grant", "Guarded", "Policy", "ServedVolume"]

_OBSERVE, _CHANGE = Effect.OBSERVE, Effect.CHANGE


class Guarded(Protocol):
    """What a grant releases when it ends."""

    def release(self) -> None:
        """Drops what is held; called once at most, when no call will use it again."""


@dataclass(frozen=True, slots=True)
class ServedVolume:
    """A volume, or a store, and the name it is served under; `audited` is whether the calls of
    what is traced are recorded."""

    name: str
    volume: Volume | ObjectStore
    audited: bool = True
    ledger: Ledger = field(default_factory=Ledger, compare=False, repr=False)
    hub: Hub = field(default_factory=Hub, compare=False, repr=False)
    # The dry runs under way, and the holders that each is counted for.
    dry_runs: WeakKeyDictionary[object, Sequence[int]] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )

    def check_audited(self) -> None:
        """Raises `Unsupported` if nothing records the calls of what is traced."""
        if not self.audited:
            raise Unsupported("tracing needs the service to be started with an audit (--audit)")


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
        "_timed_by",
        "accounts",
        "append_only",
        "book",
        "books",
        "borrowed",
        "depth",
        "dry_run",
        "expires_at",
        "hidden",
        "hidden_names",
        "hub",
        "ledger",
        "max_file_bytes",
        "paces",
        "parent",
        "policy",
        "read_only",
        "reference_id",
        "served",
        "traced",
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
        self._timed_by: Grant | None = None
        self.read_only = whole.read_only
        self.append_only = whole.append_only
        self.expires_at = whole.expires_at
        self.max_file_bytes = whole.max_file_bytes
        self.hidden_names = whole.hidden_names
        self.hidden = hidden_of(whole.hidden_names)
        self.dry_run = whole.dry_run
        self.traced = whole.traced
        self._ended: StorageError | None = None if parent is None else parent._ended
        self._children: WeakSet[Grant] = WeakSet()
        self._handles: WeakSet[Guarded] = WeakSet()
        self._changes = 0
        self._idle: asyncio.Event | None = None
        self._clock = clock
        # What was lent by a name is not saved: its reference would not know of the name's end.
        self.borrowed: bool = parent is not None and parent.borrowed
        self.ledger: Ledger = served.ledger if parent is None else parent.ledger
        self.books: tuple[Book, ...] = () if parent is None else parent.books
        self.hub: Hub = served.hub if parent is None else parent.hub
        if policy.dry_run:
            self.hub = Hub()
            self.ledger, self.books = Ledger(), tuple(book.copy() for book in self.books)
        # Of a dry run nothing is saved.
        self.book: Book | None = None
        if policy.max_bytes or policy.max_nodes:
            book = Book(policy.max_bytes, policy.max_nodes, *used, dry=self.dry_run)
            self.book = None if self.dry_run else book
            self.books += (book,)
        # Whether changes of files have to be looked at for their size.
        self.accounts = bool(self.books or self.max_file_bytes)
        self.paces: tuple[Pace, ...] = () if parent is None else parent.paces
        if policy.calls_per_second or policy.bytes_per_second:
            self.paces += (Pace(policy.calls_per_second, policy.bytes_per_second, clock),)
        if parent is not None:
            parent._children.add(self)

    @property
    def whole_policy(self) -> Policy:
        """What the policies of the chain from the root to here forbid, at once; what they count is
        in `books` and `paces`."""
        return Policy(
            read_only=self.read_only,
            expires_at=self.expires_at,
            append_only=self.append_only,
            max_file_bytes=self.max_file_bytes,
            hidden_names=self.hidden_names,
            dry_run=self.dry_run,
            traced=self.traced,
        )

    @property
    def attenuated(self) -> bool:
        """Whether anything was taken away on the way here."""
        return bool(
            self.books or self.paces or replace(self.whole_policy, traced=False) != Policy()
        )

    @property
    def revoked(self) -> bool:
        """Whether this grant has ended by revocation."""
        return self._ended is not None

    def derive(
        self, policy: Policy, *, reference_id: int = 0, used: tuple[int, int] = (0, 0)
    ) -> Grant:
        """A grant below this one; `used` is what is used of its quota, in bytes and nodes.

        Raises `TooLarge` below `GRANT_DEPTH_MAX` others, and `Unsupported` for one that would be
        traced, and is no saved one, where nothing is.
        """
        if policy.traced and not reference_id:
            self.served.check_audited()
        if self.depth >= GRANT_DEPTH_MAX:
            raise TooLarge(f"a capability is attenuated and saved at most {GRANT_DEPTH_MAX} times")
        if policy.check().hidden_names:
            check_all(policy.under(self.whole_policy).hidden_names)
        return self._child(policy, reference_id, used)

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
        lent.accounts = bool(lent.books or lent.max_file_bytes)
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

        Raises `Revoked`, `Expired`, `ReadOnly` or `Denied`, in this order.
        """
        if self._ended is not None:
            raise type(self._ended)(self._ended.message)
        if self.expires_at and self._clock() >= self.expires_at:
            raise Expired("the capability's time is over")
        if effect is _OBSERVE:
            return
        if self.read_only:
            raise ReadOnly("the capability only reads")
        if self.append_only and effect is _CHANGE:
            raise Denied("the capability only adds")

    def check_traced(self) -> None:
        """Raises `Unsupported` if it is to be traced and nothing records its calls."""
        if self.traced:
            self.served.check_audited()

    async def paced(self, effect: Effect, size: int = 0) -> None:
        """Waits for this call's turn, which brings `size` bytes, under a rate.

        Raises `Busy`, and as `check`, which is done again behind the wait.
        """
        begun: list[Pace] = []
        try:
            for pace in self.paces:
                await pace.begin(size)
                begun.append(pace)
        except BaseException:
            for pace in begun:
                pace.give_back(size)
            raise
        self.check(effect)

    def moved(self, size: int) -> None:
        """So many bytes were read by a call under a rate."""
        for pace in self.paces:
            pace.moved(size)

    def restarted(self) -> Grant:
        """This grant, or, under a dry run, one for another that begins anew."""
        if not self.dry_run:
            return self
        anew = self._child(Policy(dry_run=True), self.reference_id)
        anew.books = tuple(book.anew() for book in self.books)
        return anew

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

    def holders(self) -> Sequence[int]:
        """The saved references that this grant came from, from the top down, without that of its
        volume's owner.  What a name lent is held by who uses the name."""
        found: dict[int, None] = {}
        link: Grant | None = self
        while link is not None:
            above = link._holder or link.parent
            if link.reference_id and (above is not None or link.served is not self.served):
                found[link.reference_id] = None
            link = above
        return list(found)[::-1]

    def policy_since_reference(self) -> Policy:
        """All that was taken away since the saved reference that this grant came from."""
        policy, grant = Policy(), self
        while grant.reference_id == 0 and grant.parent is not None:
            policy = policy.under(grant.policy)
            grant = grant.parent
        return policy

    def renewed(self, expires_at: int, above: Grant | None) -> tuple[int, Grant | None]:
        """Gives this link another time, instead of its own and those of the links between it and
        `above`; what is below follows at once.  Returns what, given here, takes it back."""
        before = self.policy.expires_at, self._timed_by
        self.policy = replace(self.policy, expires_at=expires_at)
        self._timed_by = above
        for grant in (self, *self.below()):
            grant.expires_at = grant._least_time()
        return before

    def _least_time(self) -> int:
        """When this grant ends by the policies of its chain; 0 is never."""
        ends, link = 0, self
        while True:
            ends = _least(ends, link.policy.expires_at)
            if link._holder is not None:
                ends = _least(ends, link._holder._least_time())
            above = link._timed_by or link.parent
            if above is None:
                return ends
            link = above

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
