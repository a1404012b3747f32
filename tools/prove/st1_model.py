"""What a store holds, in the simplest words: a dictionary of objects and one of names.

Invariants: a model says nothing about disks.  Values never change in place, so a copy of a model
shares them.  What a model refuses changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from capstore.tools.prove.subject import Leaf, Refused, Tree

# The last version that was given is a part of what there is to see, under a name that no object
# has.
VERSION: Final = "version"


class Object(NamedTuple):
    """What is under a key; `is_hashed` if that is the SHA-256 of its value."""

    value: bytes
    version: int
    is_hashed: bool


class Bound(NamedTuple):
    """What a name stands for: a hash, or the id of a reference."""

    target: bytes | int
    version: int


@dataclass(frozen=True)
class Sink:
    """A put in pieces that has begun."""

    key: bytes
    absent: bool
    value: bytes = b""


@dataclass(frozen=True)
class Collection:
    """A collection that goes on step by step.

    `to_mark` is how many names are yet to be looked at; what they stood for when it began, or
    since, is `marked`.  Objects behind `behind` are yet to be looked at."""

    version: int
    to_mark: int
    marked: frozenset[bytes]
    behind: bytes = b""


def object_name(key: bytes) -> str:
    """What an object is called in trees."""
    return f"o:{key.hex()}"


def is_object(name: str) -> bool:
    """Whether something in a tree is an object."""
    return name.startswith("o:")


def object_leaf(value: bytes, version: int) -> Leaf:
    """An object in a tree."""
    return (value, version)


def bound_name(path: str) -> str:
    """What a name is called in trees."""
    return f"n:{path}"


def bound_leaf(target: bytes | int, version: int) -> Leaf:
    """A name in a tree."""
    return (target, version)


@dataclass
class Model:
    """A store; `version` is the last that was given."""

    objects: dict[bytes, Object] = field(default_factory=dict)
    names: dict[str, Bound] = field(default_factory=dict)
    version: int = 0
    # What a process holds.
    sinks: tuple[Sink, ...] = ()
    collection: Collection | None = None

    def copy(self) -> Model:
        """The same store, to go on with by itself."""
        return replace(self, objects=dict(self.objects), names=dict(self.names))

    def reborn(self) -> Model:
        """The same store in a new process."""
        return replace(self.copy(), sinks=(), collection=None)

    # Changing: each raises `Refused` -------------------------------------------------------------

    def put(
        self, key: bytes, value: bytes, *, absent: bool = False, version: int | None = None
    ) -> None:
        """Puts a value under a key, with no key under its hash; if the key is absent, or has this
        version."""
        digest = hashlib.sha256(value).digest()
        is_hashed = not key or key == digest
        key = key or digest
        self._check(self.objects.get(key), absent=absent, version=version)
        before = self.objects.get(key)
        if before is not None and before.is_hashed and not is_hashed:
            raise Refused(key.hex())
        self.version += 1
        self.objects[key] = Object(value, self.version, is_hashed)

    @staticmethod
    def _check(before: Object | Bound | None, *, absent: bool, version: int | None) -> None:
        if absent and before is not None:
            raise Refused("there is something")
        if version is not None and (before is None or before.version != version):
            raise Refused("there is another version")

    def delete(self, key: bytes, *, version: int | None = None) -> None:
        """Removes an object."""
        before = self.objects.get(key)
        if before is None:
            raise Refused(key.hex())
        self._check(before, absent=False, version=version)
        del self.objects[key]

    def bind(self, path: str, target: bytes | int, *, absent: bool = False) -> None:
        """Has a name stand for something."""
        if isinstance(target, bytes):
            found = self.objects.get(target)
            if found is None or not found.is_hashed:
                raise Refused(path)
        self._check(self.names.get(path), absent=absent, version=None)
        self.version += 1
        self.names[path] = Bound(target, self.version)
        if self.collection is not None and isinstance(target, bytes):
            marked = self.collection.marked | {target}
            self.collection = replace(self.collection, marked=marked)

    def unbind(self, path: str) -> None:
        """Removes a name."""
        if path not in self.names:
            raise Refused(path)
        del self.names[path]

    # Collecting ----------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """One step of a collection, which is begun if there is none; whether there is more."""
        now = self.collection
        if now is None:
            targets = [bound.target for bound in self.names.values()]
            marked = frozenset(target for target in targets if isinstance(target, bytes))
            now = Collection(self.version, len(targets), marked)
        if now.to_mark:
            self.collection = replace(now, to_mark=now.to_mark - 1)
            return True
        key = min((key for key in self.objects if key > now.behind), default=None)
        if key is None:
            self.collection = None
            return False
        self.collection = replace(now, behind=key)
        found = self.objects[key]
        if found.is_hashed and found.version <= now.version and key not in now.marked:
            del self.objects[key]
        return True

    # Looking -------------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """All of it, to compare."""
        found: Tree = {VERSION: (self.version,)}
        for key, item in self.objects.items():
            found[object_name(key)] = object_leaf(item.value, item.version)
        for path, bound in self.names.items():
            found[bound_name(path)] = bound_leaf(bound.target, bound.version)
        return found
