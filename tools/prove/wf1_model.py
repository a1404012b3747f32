"""What a volume holds, in the simplest words: dictionaries of names.

Invariants: a model says nothing about disks.  A file's bytes never change in place, so a copy of a
model shares them.  What a model refuses changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from capstore.tools.prove.subject import Leaf, Refused, Tree


@dataclass(eq=False)
class File:
    """A file: its names share it."""

    data: bytes = b""
    executable: bool = False


@dataclass(eq=False)
class Link:
    """A symbolic link: its names share it."""

    target: str


Item = dict[str, "Item"] | File | Link


class Model:
    """A tree of names: a directory is a dict."""

    def __init__(self, root: dict[str, Item] | None = None) -> None:
        self.root: dict[str, Item] = {} if root is None else root

    def copy(self) -> Model:
        """The same tree, to go on with by itself."""
        return Model(_copied(self.root, {}))

    # Finding -------------------------------------------------------------------------------------

    def place(self, path: str) -> tuple[dict[str, Item], str]:
        """The directory that a path is in, and its name there.  Raises `Refused`."""
        *above, name = path.split("/")
        at = self.root
        for step in above:
            below = at.get(step)
            if not isinstance(below, dict):
                raise Refused(path)
            at = below
        return at, name

    def item(self, path: str) -> Item:
        """What a path stands for.  Raises `Refused`."""
        at, name = self.place(path)
        if name not in at:
            raise Refused(path)
        return at[name]

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
        if name in at:
            raise Refused(path)
        at[name] = item

    def link(self, path: str, new: str) -> None:
        """A second name for what is no directory."""
        found = self.item(path)
        if isinstance(found, dict):
            raise Refused(path)
        self.make(new, found)

    def remove(self, path: str) -> None:
        """Removes a name; of a directory only if nothing is in it."""
        if self.item(path) and isinstance(self.item(path), dict):
            raise Refused(path)
        at, name = self.place(path)
        del at[name]

    def rename(self, path: str, new: str, *, replace: bool) -> None:
        """Moves a name, onto another one with `replace`."""
        moved, (at, name), (goal, new_name) = self.item(path), self.place(path), self.place(new)
        there = goal.get(new_name)
        if there is not None and not replace:
            raise Refused(new)
        if there is moved:
            return
        if _is_within(goal, moved):
            raise Refused(new)
        if there is not None and (isinstance(moved, dict) != isinstance(there, dict)):
            raise Refused(new)
        if there and isinstance(there, dict):
            raise Refused(new)
        del at[name]
        goal[new_name] = moved

    def exchange(self, path: str, other: str) -> None:
        """Has two names change what they stand for."""
        one, two = self.item(path), self.item(other)
        (at, name), (goal, new_name) = self.place(path), self.place(other)
        if one is two:
            return
        if _is_within(goal, one) or _is_within(at, two):
            raise Refused(path)
        at[name], goal[new_name] = two, one

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Writes into a file, with zeros in front where it is too short."""
        file = self.file(path)
        head = file.data[:offset].ljust(offset, b"\0")
        file.data = head + data + file.data[offset + len(data) :]

    def truncate(self, path: str, size: int) -> None:
        """Cuts or extends a file."""
        file = self.file(path)
        file.data = file.data[:size].ljust(size, b"\0")

    def chmod(self, path: str, executable: bool) -> None:
        """Says whether a file is executable."""
        self.file(path).executable = executable

    # Looking -------------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """What a tree looks like from outside, by path: "d"; or "l" or "f", a link's target or a
        file's bytes, whether that is executable, how many names it has, and which is the first."""
        found: list[tuple[str, Item]] = []
        _walk(self.root, "", found)
        names: dict[int, list[str]] = {}
        for path, item in found:
            names.setdefault(id(item), []).append(path)
        return {path: _leaf(item, names[id(item)]) for path, item in found}


def _leaf(item: Item, names: list[str]) -> Leaf:
    if isinstance(item, dict):
        return ("d",)
    if isinstance(item, File):
        return ("f", item.data, item.executable, len(names), min(names))
    return ("l", item.target, False, len(names), min(names))


def _walk(directory: dict[str, Item], above: str, found: list[tuple[str, Item]]) -> None:
    for name, item in directory.items():
        found.append((above + name, item))
        if isinstance(item, dict):
            _walk(item, f"{above}{name}/", found)


def _is_within(directory: dict[str, Item], item: Item) -> bool:
    """Whether `directory` is `item` or below it."""
    if not isinstance(item, dict):
        return False
    return item is directory or any(_is_within(directory, below) for below in item.values())


def _copied(directory: dict[str, Item], known: dict[int, File]) -> dict[str, Item]:
    copy: dict[str, Item] = {}
    for name, item in directory.items():
        if isinstance(item, dict):
            copy[name] = _copied(item, known)
        elif isinstance(item, File):
            copy[name] = known.setdefault(id(item), File(item.data, item.executable))
        else:
            copy[name] = item
    return copy
