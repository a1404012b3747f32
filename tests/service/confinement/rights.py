"""Authority in some lines of Python: what a capability may do and show, whatever its past.

A `Right` is one link of attenuation, saving, opening or lending; what holds for a capability is
what any link of its chain says, found by walking up, so nothing here can have been forgotten on
the way.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from tests.contract.model import Node

__all__ = ["ALL", "Growth", "Right", "Verb", "matches"]


class Verb(enum.Enum):
    """What may be done with a store."""

    GET = "get"
    LIST = "list"
    PUT = "put"
    DELETE = "delete"
    DROP = "drop"  # what a drop box does


ALL = frozenset(Verb)


@dataclass(frozen=True)
class Growth:
    size: int
    names: int

    def __add__(self, other: Growth) -> Growth:
        return Growth(self.size + other.size, self.names + other.names)

    def __sub__(self, other: Growth) -> Growth:
        return Growth(self.size - other.size, self.names - other.names)


@dataclass(eq=False)
class Right:
    """One link of a chain of authority."""

    policy: Policy = field(default_factory=Policy)
    parent: Right | None = None
    # Of what a name gave: that of the namespace.  It has to allow everything, too.
    holder: Right | None = None
    # Of a store: what is added to the prefix, and what may still be done.
    prefix: bytes = b""
    verbs: frozenset[Verb] = ALL
    revoked: bool = False
    # Another time than that of its policy, and the next link above whose time counts.
    ends: int | None = None
    timed_by: Right | None = None
    # Of a quota: by how much the tree or store grew through it, in bytes and names.
    grown: Growth = field(default_factory=lambda: Growth(0, 0))
    # Of a dry run: every node and key that was ever in reach of it, and every byte it may show.
    reached: set[Node] = field(default_factory=set)
    keys: set[bytes] = field(default_factory=set)
    shown: set[int] = field(default_factory=set)

    # Making others ---------------------------------------------------------------------------

    def below(self, policy: Policy | None = None) -> Right:
        return Right(policy or Policy(), self)

    def part(self, prefix: bytes = b"", verbs: frozenset[Verb] = ALL) -> Right:
        return Right(parent=self, prefix=prefix, verbs=verbs)

    def lent_to(self, holder: Right) -> Right:
        return Right(Policy(dry_run=holder.dry is not None), self, holder)

    # The chain -------------------------------------------------------------------------------

    def ancestors(self) -> Iterator[Right]:
        """Itself and what it was made from."""
        link: Right | None = self
        while link is not None:
            yield link
            link = link.parent

    def chain(self) -> Iterator[Right]:
        """All whose word counts, once each."""
        seen: set[Right] = set()
        todo = [self]
        while todo:
            for link in todo.pop().ancestors():
                if link in seen:
                    break
                seen.add(link)
                yield link
                if link.holder is not None:
                    todo.append(link.holder)

    def stands_under(self, other: Right) -> bool:
        return any(link is other for link in self.ancestors())

    # What it allows --------------------------------------------------------------------------

    def refusals(self, effect: Effect, now: int, verb: Verb | None = None) -> set[Code]:
        """Why a call of this effect has none; nothing if it may have it."""
        codes = {Code.EXPIRED} if self._is_late(now) else set()
        for link in self.chain():
            policy = link.policy
            if link.revoked:
                codes.add(Code.REVOKED)
            if policy.read_only and effect is not Effect.OBSERVE:
                codes.add(Code.READ_ONLY)
            if policy.append_only and effect is Effect.CHANGE:
                codes.add(Code.DENIED)
        if verb is not None and not self.allows(verb):
            codes.add(Code.DENIED)
        return codes

    def _is_late(self, now: int) -> bool:
        end = self.end
        return bool(end) and now >= end

    @property
    def end(self) -> int:
        """When its time is over; 0 is never."""
        ends: list[int] = []
        link: Right | None = self
        while link is not None:
            ends.append(link.policy.expires_at if link.ends is None else link.ends)
            if link.holder is not None:
                ends.append(link.holder.end)
            link = link.timed_by or link.parent
        return min(filter(None, ends), default=0)

    def is_over(self, now: int) -> bool:
        return bool(self.refusals(Effect.OBSERVE, now))

    def hides(self, name: str) -> bool:
        return any(
            fnmatch.fnmatchcase(name, glob)
            for link in self.chain()
            for glob in link.policy.hidden_names
        )

    def may_have(self, size: int) -> bool:
        """Whether a file or an object may grow to `size` bytes."""
        bounds = [link.policy.max_file_bytes for link in self.chain()]
        return all(not bound or size <= bound for bound in bounds)

    @property
    def adds_only(self) -> bool:
        return any(link.policy.append_only for link in self.chain())

    @property
    def quotas(self) -> list[Right]:
        return [link for link in self.chain() if link.policy.max_bytes or link.policy.max_nodes]

    @property
    def is_attenuated(self) -> bool:
        return any(replace(link.policy, traced=False) != Policy() for link in self.chain())

    @property
    def is_borrowed(self) -> bool:
        return any(link.holder is not None for link in self.ancestors())

    # Of stores -------------------------------------------------------------------------------

    def allows(self, verb: Verb) -> bool:
        return all(verb in link.verbs for link in self.chain())

    @property
    def drops(self) -> bool:
        """Whether it is a drop box."""
        return self.allows(Verb.DROP) and not self.allows(Verb.PUT)

    @property
    def base(self) -> bytes:
        """Below which prefix it is."""
        return b"".join(link.prefix for link in reversed([*self.ancestors()]))

    @property
    def is_whole(self) -> bool:
        return not self.base and all(map(self.allows, Verb))

    def hides_key(self, full: bytes) -> bool:
        """Whether a key of the whole store is hidden: each pattern is for the keys that whoever put
        it there saw."""
        return any(
            full.startswith(link.base) and matches(full[len(link.base) :], glob)
            for link in self.chain()
            for glob in link.policy.hidden_names
        )

    def shows_key(self, full: bytes) -> bool:
        return full.startswith(self.base) and not self.hides_key(full)

    # Of dry runs -----------------------------------------------------------------------------

    @property
    def runs(self) -> list[Right]:
        """The dry runs that it stands in."""
        return [link for link in self.chain() if link.policy.dry_run]

    @property
    def dry(self) -> Right | None:
        """The outermost of them."""
        runs = self.runs
        return runs[-1] if runs else None

    @property
    def may_show(self) -> set[int]:
        """The bytes that may be in what a dry run shows."""
        return {0}.union(*(run.shown for run in self.runs))


def matches(key: bytes, glob: str) -> bool:
    return fnmatch.fnmatchcase(key.decode("latin-1"), glob)
