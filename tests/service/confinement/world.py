"""What there is: a tree, a store with names, the time, and what clients hold of it.

The tree is that of `tests.contract.model`, the store is dictionaries.  Effects are exact; of the
codes of a refusal the model gives all that may be the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from capstore.backers.store import ANY, Condition, Put
from capstore.backers.store import Change as StoreChange
from capstore.schema.errors import Conflict, NotFound
from tests.contract.model import Directory, File, Node, Symlink, within
from tests.service.confinement.rights import Growth, Right

__all__ = ["Held", "Names", "Objects", "Piece", "Saved", "Thing", "World", "hash_of", "size_of"]


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(eq=False)
class Objects:
    """The store: what is under its keys, and what its names stand for: a hash, or what was
    saved."""

    objects: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[tuple[str, ...], bytes | Saved] = field(default_factory=dict)

    def is_content(self, key: bytes) -> bool:
        return key in self.objects and hash_of(self.objects[key]) == key

    def get(self, key: bytes) -> bytes:
        if key not in self.objects:
            raise NotFound
        return self.objects[key]

    def put(self, data: bytes, key: bytes, condition: Condition = ANY) -> bytes:
        key = key or hash_of(data)
        self.check(condition, there=key in self.objects)
        if self.is_content(key) and hash_of(data) != key:
            raise Conflict
        self.objects[key] = data
        return key

    def delete(self, key: bytes, condition: Condition = ANY) -> None:
        self.get(key)
        self.check(condition, there=True)
        del self.objects[key]

    def batch(self, changes: Sequence[StoreChange]) -> None:
        after = Objects(dict(self.objects))
        for change in changes:
            if isinstance(change, Put):
                after.put(bytes(change.data), change.key, change.condition)
            else:
                after.delete(change.key, change.condition)
        self.objects = after.objects

    @staticmethod
    def check(condition: Condition, *, there: bool) -> None:
        """No version that is ever asked for is the right one."""
        if condition.version is not None or (condition.absent and there):
            raise Conflict

    def resolve(self, path: tuple[str, ...]) -> bytes | Saved:
        if path not in self.names:
            raise NotFound
        return self.names[path]

    def bind(self, path: tuple[str, ...], what: bytes | Saved, condition: Condition) -> None:
        self.check(condition, there=path in self.names)
        if isinstance(what, bytes) and not self.is_content(what):
            raise NotFound
        self.names[path] = what

    def unbind(self, path: tuple[str, ...], condition: Condition) -> None:
        self.resolve(path)
        self.check(condition, there=True)
        del self.names[path]

    def collect(self) -> None:
        bound = {what for what in self.names.values() if isinstance(what, bytes)}
        self.objects = {
            key: data
            for key, data in self.objects.items()
            if not self.is_content(key) or key in bound
        }

    def shown(self, right: Right) -> dict[bytes, bytes]:
        """The objects that a capability shows, in their order."""
        return {key: self.objects[key] for key in sorted(self.objects) if right.shows_key(key)}


@dataclass(eq=False)
class Names:
    """The names below a path."""

    path: tuple[str, ...] = ()


@dataclass(eq=False)
class Piece:
    """A put in pieces, and whether one of them failed."""

    key: bytes
    condition: Condition
    data: bytes = b""
    failed: bool = False


Thing = Node | Objects | Names | Piece


@dataclass(eq=False)
class Held:
    """A capability that some client has: the real one, and what it is."""

    real: Any
    node: Thing
    right: Right
    frozen: bool = False  # of a snapshot
    closed: bool = False

    @property
    def is_directory(self) -> bool:
        return isinstance(self.node, Directory)

    @property
    def is_file(self) -> bool:
        return isinstance(self.node, File)

    @property
    def is_store(self) -> bool:
        return isinstance(self.node, Objects)


@dataclass(eq=False)
class Saved:
    """What was saved: the number and the label that the service knows it by, and under what name
    its token is found."""

    id: int
    label: str
    name: str
    right: Right
    held: Held


class World:
    """The tree, the store, and the time."""

    def __init__(self) -> None:
        self.root = Directory()
        self.store = Objects()
        self.now = 1_000
        self.executable: set[Node] = set()

    def visible(self, directory: Directory, right: Right) -> dict[str, Node]:
        """The entries that a capability shows, in their order."""
        return {
            name: directory.entries[name]
            for name in sorted(directory.entries)
            if not right.hides(name)
        }

    def is_linked(self, thing: Thing) -> bool:
        return not isinstance(thing, Node) or within(thing, self.root)

    def size(self) -> Growth:
        """Of all that has a name or a key."""
        names, nodes = 0, set()
        todo: list[Directory] = [self.root]
        while todo:
            for node in todo.pop().entries.values():
                names += 1
                nodes.add(node)
                if isinstance(node, Directory):
                    todo.append(node)
        objects = self.store.objects
        size = sum(map(size_of, nodes)) + sum(map(len, objects.values()))
        return Growth(size, names + len(objects))

    def reach(self, run: Right, base: Thing) -> None:
        """Notes what a dry run may show now."""
        if not isinstance(base, Node):
            shown = self.store.shown(run)
            run.keys |= shown.keys()
            run.shown.update(*shown.values())
            return
        todo = [base, *run.reached]
        seen: set[Node] = set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                if isinstance(node, Directory):
                    todo.extend(self.visible(node, run).values())
                elif isinstance(node, File):
                    run.shown.update(node.data)
        run.reached |= seen


def size_of(node: Node) -> int:
    """As quotas count it."""
    if isinstance(node, File):
        return len(node.data)
    return len(node.target) if isinstance(node, Symlink) else 0
