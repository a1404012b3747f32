"""The protocol between what stores objects and what is built on them.

A backer implements `ObjectStore`; the service, the wrappers that attenuate and the client's remote
stores use and implement the same classes, so each can stand wherever another can.

Invariants that every implementation keeps, and the contract suite checks, beside those of errors,
cancellation, order and the loop in `capstore.backers.node`:

* **Keys** are 1 to `KEY_BYTES_MAX` bytes; anything else is `InvalidArgument`, before anything is
  transferred.  Keys are ordered by their bytes.
* **Durability**: a put, delete, batch, bind or unbind that has returned is durable.
* **Atomicity**: an object appears whole or not at all, with the version that is its alone: whoever
  reads a range is told the version that the range is of.
* **Content**: an object that was put without a key is under the SHA-256 of its data.  Reading it
  gives that data or raises `Corrupt`; a put with a key never takes its place (`Conflict`), unless
  the data has that very hash.
* **Versions** rise with every put of a store, whatever the key, and are never used again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from capstore.schema.errors import NotFound, Unsupported
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import Buffer, Usage
from capstore.schema.objects import (
    ANY,
    Binding,
    Change,
    Collected,
    Condition,
    Delete,
    ObjectStat,
    Put,
    check_key,
)

__all__ = [
    "ANY",
    "Binding",
    "BindingPage",
    "Change",
    "Collected",
    "Condition",
    "Delete",
    "Namespace",
    "ObjectPage",
    "ObjectRange",
    "ObjectSink",
    "ObjectStat",
    "ObjectStore",
    "Put",
    "check_key",
]


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A part of a store's listing, in the order of keys; `more` says that keys follow."""

    objects: Sequence[ObjectStat] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class ObjectRange:
    """`data` of an object from some offset on, and what is known of the object it is of."""

    data: Buffer
    stat: ObjectStat


@dataclass(frozen=True, slots=True)
class BindingPage:
    """A part of a namespace's listing, in the order of names; `more` says that names follow."""

    bindings: Sequence[Binding] = ()
    more: bool = False


class ObjectSink(ABC):
    """One put in pieces.  Dropping it before `commit` leaves no trace."""

    @abstractmethod
    async def write(self, data: Buffer) -> None:
        """Adds a piece, behind those before.  Raises `TooLarge`, `NoSpace`, `Closed`."""

    @abstractmethod
    async def commit(self) -> ObjectStat:
        """The object appears, whole and durable.  Raises as `ObjectStore.put`; `Closed` when it was
        committed or aborted before."""

    @abstractmethod
    async def abort(self) -> None:
        """Gives up; doing so again, or behind `commit`, does nothing."""


class ObjectStore(ABC):
    """Objects by key."""

    @abstractmethod
    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        """Stores `data` under `key`, or with no key under the SHA-256 of `data`.

        Raises `Conflict`, `TooLarge`, `NoSpace`, `InvalidArgument`."""

    @abstractmethod
    async def get(self, key: bytes) -> bytes:
        """The whole object.  Raises `NotFound`, `Corrupt`."""

    @abstractmethod
    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        """`length` bytes from `offset` on, fewer only at the object's end.

        Raises `NotFound`, `Corrupt`, `InvalidArgument` for a negative offset or length."""

    @abstractmethod
    async def stat(self, key: bytes) -> ObjectStat:
        """What is known of the object.  Raises `NotFound`."""

    async def has(self, key: bytes) -> bool:
        """Whether there is such an object."""
        try:
            await self.stat(key)
        except NotFound:
            return False
        return True

    @abstractmethod
    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        """Removes the object.  Raises `NotFound`, `Conflict`."""

    @abstractmethod
    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        """Does all of the changes, in order, or none; returns their versions, 0 for a delete.

        Raises as `put` and `delete`; `TooLarge` for more than `BATCH_CHANGES_MAX` of them."""

    @abstractmethod
    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> ObjectSink:
        """A put in pieces, of `size` bytes in all if that is known.

        Raises `TooLarge` for a size no object has, `InvalidArgument`, and `Conflict` where that is
        clear already; the condition is looked at again when it is committed."""

    @abstractmethod
    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        """Objects whose keys begin with `prefix` and come after `after`, in the order of keys."""

    @abstractmethod
    async def usage(self) -> Usage:
        """Space and objects in use."""

    @abstractmethod
    async def sync(self) -> None:
        """Returns when everything is durable; what was answered already is."""

    @abstractmethod
    async def close(self) -> None:
        """Releases the store; calls after it raise `Closed`, closing again nothing."""

    async def compact(self) -> None:
        """Gives back the space of what was replaced or removed.  Raises `NoSpace`."""
        raise Unsupported("this store does not compact")

    async def collect(self, older_than: float = 0.0) -> Collected:
        """Removes objects that were put without a key at least `older_than` seconds ago, in the
        last such put, and that no name stands for.

        What is put or bound while it runs is kept."""
        raise Unsupported("this store collects no garbage")

    @property
    def names(self) -> Namespace:
        """The names over this store.  Raises `Unsupported`."""
        raise Unsupported("this store has no names")


class Namespace(ABC):
    """Names for contents and for saved references, changed by compare-and-set.

    A name is a single segment (`capstore.schema.names`), else `InvalidName`; a binding and a
    namespace below may have the same one.
    """

    @abstractmethod
    async def resolve(self, name: str) -> Binding:
        """What `name` stands for.  Raises `NotFound`."""

    @abstractmethod
    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        """Has `binding.name` stand for something (its `version` is not looked at); the version.

        Raises `Conflict`, `NotFound` for a hash that the store does not hold, `InvalidArgument`."""

    @abstractmethod
    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        """Removes a name.  Raises `NotFound`, `Conflict`."""

    @abstractmethod
    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        """Bindings whose names come after `after`, in the order of their bytes."""

    @abstractmethod
    async def sub(self, name: str) -> Namespace:
        """The namespace below this one; it needs no making."""
