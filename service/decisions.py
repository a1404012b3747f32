"""What every method does, and what every policy makes of it: the one table.

Invariants:

* Each method of each interface of ``capstore.capnp`` has a row in `ROWS`; a test derives the list
  from the schema, so a method without a decision fails it.
* What a policy makes of a method follows from the row alone (`decide`), whatever other policies
  there are and in whatever order they were put on.
* Where several policies refuse a call, the answer is the first of: `revoked`, `expired`,
  `readOnly`, `denied`, `notFound` (a hidden name), `busy` (a rate), `tooLarge`, `quotaExceeded`.

The guards take the effects of methods from here (`effect_of`); what a name, a size or an item of a
call makes of it (`Row.may`) they look at themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from capstore.backers.node import OpenFlags

__all__ = ["POLICIES", "ROWS", "Act", "Decision", "Effect", "Row", "decide", "effect_of", "opening"]


class Effect(enum.Enum):
    """What a method does to the storage."""

    OBSERVE = "observe"
    ADD = "add"  # what was there stays as it is
    CHANGE = "change"


class Act(enum.Enum):
    """What a method does, as far as policies tell one from another."""

    CONTROL = "control"  # of references, revokers and connections: no policy bears on it
    DERIVE = "derive"  # another capability, or a word for this one; the storage is not asked
    OBSERVE = "observe"
    APPEND = "append"
    CREATE = "create"  # under a name where nothing is
    PUT = "put"  # under a key or name where something may be
    WRITE = "write"
    TRUNCATE = "truncate"
    ATTRIBUTES = "attributes"
    REMOVE = "remove"
    RENAME = "rename"
    MAINTAIN = "maintain"  # the store as a whole

    @property
    def effect(self) -> Effect:
        """What it does to the storage."""
        return _EFFECTS.get(self, Effect.CHANGE)


_EFFECTS: Final = {
    Act.CONTROL: Effect.OBSERVE,
    Act.DERIVE: Effect.OBSERVE,
    Act.OBSERVE: Effect.OBSERVE,
    Act.APPEND: Effect.ADD,
    Act.CREATE: Effect.ADD,
    Act.PUT: Effect.ADD,
}


class Decision(enum.Enum):
    """What becomes of a call; values are the words of the guide."""

    YES = "yes"
    READ_ONLY = "`readOnly`"
    DENIED = "`denied`"
    REVOKED = "`revoked`"
    EXPIRED = "`expired`"
    HIDDEN = "`notFound` if hidden"
    LEFT_OUT = "without what is hidden"
    NEW_ONLY = "new ones, else `conflict`"
    OVER_QUOTA = "`quotaExceeded` if over"
    TOO_LARGE = "`tooLarge` if over"
    LATER = "later, or `busy`"
    AS_IF = "as if"


@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    `names`: the parameters that name an entry, a key or a binding; `lists`: whether the answer
    lists them.  `adds_bytes`, `adds_nodes`: what quotas count; `grows`: whether a file or an object
    may get longer.  `may`: what its flags or items may make of the call besides.  `uncounted`: it
    takes room that no quota counts, so that under a quota it is read-only.
    """

    act: Act
    names: tuple[str, ...] = ()
    lists: bool = False
    adds_bytes: bool = False
    adds_nodes: bool = False
    grows: bool = False
    may: Mapping[str, Act] | None = None
    uncounted: bool = False

    @property
    def paced(self) -> bool:
        """Whether it is a call as rates count them."""
        return self.act not in (Act.CONTROL, Act.DERIVE)


_CONTROL, _DERIVE, _OBSERVE = Row(Act.CONTROL), Row(Act.DERIVE), Row(Act.OBSERVE)
_NAMED: Final = Row(Act.OBSERVE, ("name",))
_KEYED: Final = Row(Act.OBSERVE, ("key",))

ROWS: Final[Mapping[tuple[str, str], Row]] = {
    ("File", "read"): _OBSERVE,
    ("File", "write"): Row(Act.WRITE, adds_bytes=True, grows=True),
    ("File", "stat"): _OBSERVE,
    ("File", "truncate"): Row(Act.TRUNCATE, adds_bytes=True, grows=True),
    ("File", "sync"): _OBSERVE,
    ("File", "close"): _DERIVE,
    ("File", "append"): Row(Act.APPEND, adds_bytes=True, grows=True),
    ("File", "readOnly"): _DERIVE,
    ("File", "attenuate"): _DERIVE,
    ("File", "setAttributes"): Row(Act.ATTRIBUTES),
    ("File", "save"): _DERIVE,
    ("Directory", "open"): Row(
        Act.OBSERVE,
        ("name",),
        may={"write": Act.APPEND, "create": Act.CREATE, "truncate": Act.TRUNCATE},
    ),
    ("Directory", "list"): Row(Act.OBSERVE, lists=True),
    ("Directory", "mkdir"): Row(Act.CREATE, ("name",), adds_nodes=True),
    ("Directory", "remove"): Row(Act.REMOVE, ("name",)),
    ("Directory", "sub"): _NAMED,
    ("Directory", "create"): Row(Act.CREATE, ("name",), adds_nodes=True),
    ("Directory", "rename"): Row(Act.RENAME, ("name", "newName")),
    ("Directory", "lookup"): _NAMED,
    ("Directory", "stat"): _OBSERVE,
    ("Directory", "readOnly"): _DERIVE,
    ("Directory", "attenuate"): _DERIVE,
    ("Directory", "sync"): _OBSERVE,
    ("Directory", "symlink"): Row(Act.CREATE, ("name",), adds_bytes=True, adds_nodes=True),
    ("Directory", "link"): Row(Act.CREATE, ("name", "newName"), adds_nodes=True),
    ("Directory", "setAttributes"): Row(Act.ATTRIBUTES, ("name",)),
    ("Directory", "usage"): _OBSERVE,
    ("Directory", "snapshot"): _OBSERVE,
    ("Directory", "watch"): Row(Act.DERIVE, lists=True),
    ("Directory", "ticket"): _DERIVE,
    ("Directory", "save"): _DERIVE,
    ("Store", "put"): Row(Act.PUT, ("key",), adds_bytes=True, adds_nodes=True, grows=True),
    ("Store", "get"): _KEYED,
    ("Store", "has"): _KEYED,
    ("Store", "delete"): Row(Act.REMOVE, ("key",)),
    ("Store", "list"): Row(Act.OBSERVE, lists=True),
    ("Store", "stat"): _KEYED,
    ("Store", "read"): _KEYED,
    ("Store", "begin"): Row(Act.PUT, ("key",), adds_bytes=True, grows=True),
    ("Store", "batch"): Row(
        Act.PUT,
        ("items",),
        adds_bytes=True,
        adds_nodes=True,
        grows=True,
        may={"delete": Act.REMOVE},
    ),
    ("Store", "sync"): _OBSERVE,
    ("Store", "usage"): _OBSERVE,
    ("Store", "getOnly"): _DERIVE,
    ("Store", "putOnly"): _DERIVE,
    ("Store", "subStore"): _DERIVE,
    ("Store", "attenuate"): _DERIVE,
    ("Store", "ticket"): _DERIVE,
    ("Store", "save"): _DERIVE,
    ("Store", "compact"): Row(Act.MAINTAIN),
    ("Store", "collect"): Row(Act.MAINTAIN),
    ("Store", "namespace"): _DERIVE,
    ("Sink", "write"): Row(Act.APPEND, adds_bytes=True, grows=True),
    ("Sink", "commit"): Row(Act.PUT, adds_bytes=True, adds_nodes=True),
    ("Sink", "abort"): _DERIVE,
    ("Namespace", "resolve"): _NAMED,
    ("Namespace", "bind"): Row(Act.PUT, ("name",), uncounted=True),
    ("Namespace", "unbind"): Row(Act.REMOVE, ("name",), uncounted=True),
    ("Namespace", "list"): Row(Act.OBSERVE, lists=True),
    ("Namespace", "sub"): _NAMED,
    ("Namespace", "save"): _DERIVE,
    ("Watcher", "changed"): _CONTROL,
    ("Watch", "close"): _CONTROL,
    ("Revoker", "revoke"): _CONTROL,
    ("Revoker", "status"): _CONTROL,
    ("Gate", "restore"): _CONTROL,
    ("Gate", "info"): _CONTROL,
    ("Gate", "reference"): _CONTROL,
    ("Reference", "status"): _CONTROL,
    ("Reference", "list"): _CONTROL,
    ("Reference", "revoke"): _CONTROL,
    ("Reference", "renew"): _CONTROL,
    ("Reference", "rotate"): _CONTROL,
}

# The fields of `Policy` that take something away, or ask for something.
POLICIES: Final = (
    "readOnly",
    "revocable",
    "expiresAt",
    "appendOnly",
    "maxBytes",
    "maxNodes",
    "maxFileBytes",
    "callsPerSecond",
    "bytesPerSecond",
    "hiddenNames",
    "dryRun",
    "traced",
)


def effect_of(interface: str, method: str) -> Effect:
    """What a method does to the storage, whatever its flags."""
    return ROWS[interface, method].act.effect


def opening(flags: OpenFlags) -> Effect:
    """What opening a file with `flags` does."""
    value = int(flags)
    if value & int(OpenFlags.TRUNCATE):
        return Effect.CHANGE
    return Effect.ADD if value & int(OpenFlags.WRITE) else Effect.OBSERVE


def decide(policy: str, row: Row) -> Decision:
    """What the policy with this name (as in `POLICIES`) makes of a call of this row.

    A refusal of a policy that holds in some cases is told as that: a call without a hidden name, or
    below the quota, is as it would be without the policy.
    """
    if row.act is Act.CONTROL:
        return Decision.YES
    if row.act is Act.MAINTAIN and policy not in ("readOnly", "revocable", "expiresAt", "traced"):
        return Decision.DENIED
    rule = _DECIDE.get(policy)
    return Decision.YES if rule is None else rule(row)


def _read_only(row: Row) -> Decision:
    return Decision.YES if row.act.effect is Effect.OBSERVE else Decision.READ_ONLY


def _append_only(row: Row) -> Decision:
    if row.act is Act.PUT:
        return Decision.NEW_ONLY
    return Decision.DENIED if row.act.effect is Effect.CHANGE else Decision.YES


def _quota(*, bounds: bool, row: Row) -> Decision:
    if row.uncounted:
        return Decision.READ_ONLY
    return Decision.OVER_QUOTA if bounds else Decision.YES


def _hidden(row: Row) -> Decision:
    if row.lists:
        return Decision.LEFT_OUT
    return Decision.HIDDEN if row.names else Decision.YES


_DECIDE: Final[Mapping[str, Callable[[Row], Decision]]] = {
    "readOnly": _read_only,
    "revocable": lambda row: Decision.REVOKED,
    "expiresAt": lambda row: Decision.EXPIRED,
    "appendOnly": _append_only,
    "maxBytes": lambda row: _quota(bounds=row.adds_bytes, row=row),
    "maxNodes": lambda row: _quota(bounds=row.adds_nodes, row=row),
    "maxFileBytes": lambda row: Decision.TOO_LARGE if row.grows else Decision.YES,
    "callsPerSecond": lambda row: Decision.LATER if row.paced else Decision.YES,
    "bytesPerSecond": lambda row: Decision.LATER if row.paced else Decision.YES,
    "hiddenNames": _hidden,
    "dryRun": lambda row: Decision.YES if row.act.effect is Effect.OBSERVE else Decision.AS_IF,
}
