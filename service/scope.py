"""Which keys of a store a capability is about, and what may be done with them.

Invariants: narrowing takes away (`only`, `below`); a drop box never meets what is there (`target`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from capstore.backers.store import ANY, Condition, ObjectStat, check_key
from capstore.schema.errors import Denied, InvalidArgument, NotFound, TooLarge
from capstore.schema.limits import KEY_BYTES_MAX, OBJECT_BYTES_MAX

__all__ = ["ALL", "DELETE", "DROP", "GET", "LIST", "PUT", "Scope", "check_size"]

# What a scope allows; the bits are in saved references.
GET, LIST, PUT, DELETE, DROP = 1, 2, 4, 8, 16
ALL = GET | LIST | PUT | DELETE

# What a drop box adds to a key, as hexadecimal digits: no two are ever the same.
_DROP_BYTES = 16


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be done (`verbs`), and with the keys below which `prefix`."""

    verbs: int = ALL
    prefix: bytes = b""

    @property
    def whole(self) -> bool:
        """Whether it is the whole key space with all that can be done with it."""
        return self.verbs == ALL and not self.prefix

    @property
    def handle(self) -> bytes:
        """As a saved reference holds it; nothing for the whole."""
        return b"" if self.whole else bytes([self.verbs]) + self.prefix

    @staticmethod
    def of(handle: bytes) -> Scope:
        """The scope of a handle.  Raises `NotFound` for what is none."""
        if not handle:
            return Scope()
        if not 0 < handle[0] <= ALL | DROP or len(handle) > 1 + KEY_BYTES_MAX:
            raise NotFound("what was saved is gone")
        return Scope(handle[0], handle[1:])

    def demand(self, verb: int) -> None:
        """Raises `Denied` where `verb` is withheld."""
        if not self.verbs & verb:
            raise Denied("this capability of a store does not allow that")

    def only(self, needed: int, verbs: int) -> Scope:
        """The scope with nothing but `verbs`.  Raises `Denied` where none of `needed` is there."""
        self.demand(needed)
        return replace(self, verbs=verbs)

    def below(self, prefix: bytes) -> Scope:
        """The part of it below `prefix`.  Raises `InvalidArgument` for one that leaves no key."""
        whole = self.prefix + prefix
        if len(whole) >= KEY_BYTES_MAX:
            raise InvalidArgument(f"a prefix has fewer than {KEY_BYTES_MAX} bytes in all")
        return replace(self, prefix=whole)

    def key(self, key: bytes) -> bytes:
        """The store's own key.  Raises `InvalidArgument`."""
        check_key(key)
        return check_key(self.prefix + key) if self.prefix else key

    def target(self, key: bytes, condition: Condition) -> tuple[bytes, Condition]:
        """Where a put goes, and what it demands.

        In a drop box that is a new key, whatever is there: neither the answer nor the time it
        takes tells of a key or a content that exists, and nothing is ever lost.  Raises `Denied`
        for a condition there, `InvalidArgument` for a key that is none.
        """
        if self.verbs & DROP and not self.verbs & PUT:
            if condition != ANY:
                raise Denied("a drop box does not tell what is there")
            unique = secrets.token_hex(_DROP_BYTES).encode()
            return check_key(self.prefix + key + unique), Condition(absent=True)
        if not key and self.prefix:
            raise InvalidArgument("below a prefix a put needs a key: the hash of a content is none")
        return (self.key(key) if key else key), condition

    def shown(self, stat: ObjectStat) -> ObjectStat:
        """`stat` as the holder may see it."""
        if self.prefix:
            stat = replace(stat, key=stat.key[len(self.prefix) :])
        # A version tells how much was put by all.
        return stat if self.verbs & (GET | PUT) else replace(stat, version=0)


def check_size(size: int) -> None:
    """Raises `TooLarge` for what no object has."""
    if size > OBJECT_BYTES_MAX:
        raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes")
