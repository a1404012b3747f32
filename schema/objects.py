"""What an object of a store is, and what is asked of a store: the words of stores as Python types.

Invariants: every value here is immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.schema.nodes import Buffer, Provenance


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """One object of a store: `size` in bytes, `version` of this key, `created` (when this version
    was put) in ns since 1970."""

    key: bytes
    size: int
    version: int
    created: int = 0
    provenance: Provenance = Provenance.UNKNOWN


@dataclass(frozen=True, slots=True)
class Condition:
    """What a change demands of its key: nothing, absence, or exactly `version`.

    A change whose condition does not hold raises `Conflict`."""

    absent: bool = False
    version: int | None = None

    def __post_init__(self) -> None:
        if self.absent and self.version is not None:
            raise InvalidArgument("a key is absent, or has a version")


ANY = Condition()


@dataclass(frozen=True, slots=True)
class Put:
    """One put of a batch; an empty `key` is the hash of `data`."""

    key: bytes
    data: Buffer
    condition: Condition = ANY


@dataclass(frozen=True, slots=True)
class Delete:
    """One delete of a batch."""

    key: bytes
    condition: Condition = ANY


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed: `objects` with `bytes` of data."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name stands for: the content whose SHA-256 is `hash`, or the saved reference whose id
    is `reference`.  Exactly one of them is given."""

    name: str
    version: int = 0
    hash: bytes | None = None
    reference: int | None = None


def check_key(key: bytes, *, empty: bool = False) -> bytes:
    """`key` if it can be one (with `empty`, also none).  Raises `InvalidArgument`."""
    if len(key) > KEY_BYTES_MAX or (not key and not empty):
        raise InvalidArgument(f"a key has 1 to {KEY_BYTES_MAX} bytes")
    return key
