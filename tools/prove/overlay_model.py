"""What an overlay shows, in the simplest words: directories, files and links, without layers.

Invariants: a model says nothing about layers and disks, and copying up does nothing to it.  A
file's bytes never change in place, so a copy of a model shares them.  What a model refuses changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy as shallow
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from capstore.tools.prove.subject import Leaf, Refused, Tree

# What there is to see of a time that a clock gave, and of a node that a lower layer never had.
NOW: Final = -1
OWN: Final = 0


@dataclass(eq=False)
class Item:
    """A node: its names share it.  `node_id` is what a lower layer's has, else `OWN`."""

    modified: int = NOW
    node_id: int = OWN


@dataclass(eq=False)
class Directory(Item):
    """A directory."""

    entries: dict[str, Item] = field(default_factory=dict)


@dataclass(eq=False)
class File(Item):
    """A file."""

    data: bytes = b""
    executable: bool = False


@dataclass(eq=False)
class Link(Item):
    """A symbolic link."""

    target: str = ""


AnyItem = TypeVar("AnyItem", bound=Item)


class Model:
    """A tree of names, and the files that somebody has open.  `lower` is the tree that a reset
    goes back to; it never changes."""

    def __init__(self, root: Directory, lower: Directory, held: Sequence[File] = ()) -> None:
        self.root = root
        self.lower = lower
        self.held = list(held)
        # Whether the workload has directories copied up to move without a redirect, which leaves
        # marks that mean nothing any more.
        self.flat = False

    def copy(self) -> Model:
        """The same, to go on with by itself."""
        known: dict[Item, Item] = {}
        root = _copied(self.root, known)
        model = Model(root, self.lower, [_copied(file, known) for file in self.held])
        model.flat = self.flat
        return model

    # Finding -------------------------------------------------------------------------------------

    def directory(self, path: str) -> Directory:
        """The directory at a path, which is empty for the root.  Raises `Refused`."""
        at: Item = self.root
        for name in path.split("/") if path else ():
            if not isinstance(at, Directory) or name not in at.entries:
                raise Refused(path)
            at = at.entries[name]
        if not isinstance(at, Directory):
            raise Refused(path)
        return at

    def place(self, path: str) -> tuple[Directory, str]:
        """The directory that a path is in, and its name there.  Raises `Refused`."""
        above, _, name = path.rpartition("/")
        return self.directory(above), name

    def item(self, path: str) -> Item:
        """What a path stands for.  Raises `Refused`."""
        at, name = self.place(path)
        if name not in at.entries:
            raise Refused(path)
        return at.entries[name]

    def has(self, path: str) -> bool:
        """Whether something is there.  Raises `Refused` where its directory is not."""
        at, name = self.place(path)
        return name in at.entries

    def file(self, path: str) -> File:
        """The file at a path.  Raises `Refused`."""
        found = self.item(path)
        if not isinstance(found, File):
            raise Refused(path)
        return found

    # Changing: each raises `Refused` -------------------------------------------------------------

    def make(self, path: str, item: Item) -> None:
        """Puts something where there is nothing."""
        at, name = self.place(path)
        if name in at.entries:
            raise Refused(path)
        at.entries[name] = item
        at.modified = NOW

    def link(self, path: str, new: str) -> None:
        """A second name for what is no directory."""
        found = self.item(path)
        if isinstance(found, Directory):
            raise Refused(path)
        self.make(new, found)

    def remove(self, path: str) -> None:
        """Removes a name; of a directory only if nothing is in it."""
        found = self.item(path)
        if isinstance(found, Directory) and found.entries:
            raise Refused(path)
        at, name = self.place(path)
        del at.entries[name]
        at.modified = NOW

    def rename(self, path: str, new: str, *, replace: bool) -> None:
        """Moves a name, onto another one with `replace`."""
        moved, (at, name), (goal, new_name) = self.item(path), self.place(path), self.place(new)
        there = goal.entries.get(new_name)
        if there is not None and not replace:
            raise Refused(new)
        if there is moved:
            return
        if _is_within(goal, moved):
            raise Refused(new)
        if there is not None and isinstance(moved, Directory) != isinstance(there, Directory):
            raise Refused(new)
        if isinstance(there, Directory) and there.entries:
            raise Refused(new)
        del at.entries[name]
        goal.entries[new_name] = moved
        at.modified = goal.modified = NOW

    def exchange(self, path: str, other: str) -> None:
        """Has two names change what they stand for."""
        one, two = self.item(path), self.item(other)
        (at, name), (goal, new_name) = self.place(path), self.place(other)
        if one is two:
            return
        if _is_within(goal, one) or _is_within(at, two):
            raise Refused(path)
        at.entries[name], goal.entries[new_name] = two, one
        at.modified = goal.modified = NOW

    def reset(self) -> None:
        """Goes back to the lower layers, if nobody has anything open."""
        if self.held:
            raise Refused("a file is open")
        self.root = _copied(self.lower, {})

    # Looking -------------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """What it looks like from outside, by path; see `leaf_of`."""
        found = list(walk(self.root))
        names: dict[Item, list[str]] = {}
        for path, item in found:
            names.setdefault(item, []).append(path)
        return {path: _leaf(item, names[item]) for path, item in found}


def write(file: File, offset: int, data: bytes) -> None:
    """Writes into a file, with zeros in front where it is too short."""
    head = file.data[:offset].ljust(offset, b"\0")
    file.data = head + data + file.data[offset + len(data) :]
    file.modified = NOW


def truncate(file: File, size: int) -> None:
    """Cuts or extends a file."""
    file.data = file.data[:size].ljust(size, b"\0")
    file.modified = NOW


def walk(directory: Directory, above: str = "") -> Iterator[tuple[str, Item]]:
    """All below a directory, with their paths."""
    for name, item in directory.entries.items():
        yield above + name, item
        if isinstance(item, Directory):
            yield from walk(item, f"{above}{name}/")


def _leaf(item: Item, names: list[str]) -> Leaf:
    """The kind, the time and the node; of a file or link what it holds, whether it is executable,
    how many names it has, and which is the first."""
    about = (item.modified, item.node_id)
    if isinstance(item, File):
        return ("f", *about, item.data, item.executable, len(names), min(names))
    if isinstance(item, Link):
        return ("l", *about, item.target, False, len(names), min(names))
    return ("d", *about)


def _is_within(directory: Directory, item: Item) -> bool:
    """Whether `directory` is `item` or below it."""
    if not isinstance(item, Directory):
        return False
    return item is directory or any(below is directory for _, below in walk(item))


def _copied(item: AnyItem, known: dict[Item, Item]) -> AnyItem:
    """A copy of `item` and all below it; `known` are those that there are."""
    copy = known.get(item)
    if copy is None:
        copy = known[item] = shallow(item)
        if isinstance(copy, Directory):
            below = copy.entries.items()
            copy.entries = {name: _copied(child, known) for name, child in below}
    return cast("AnyItem", copy)
