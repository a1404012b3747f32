"""The protocol's tree in some lines of Python: what every backer is compared with.

A node is a `File`, a `Link` or a dict of names; hard links are the same object under two names.
Each operation returns what the backer's returns, or raises the same error, checked in the order
of the protocol: is the name there, does the kind fit, is the target free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capstore.backers.node import Expect, OpenFlags, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    Unsupported,
)
from tests.contract.harness import Link, Tree


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class Symlink:
    target: str


@dataclass(eq=False)
class Directory:
    entries: dict[str, Node] = field(default_factory=dict)


Node = File | Symlink | Directory


def dump(directory: Directory) -> Tree:
    """For comparison with `harness.tree_of`."""
    tree: dict[str, bytes | Link | Tree] = {}
    for name in sorted(directory.entries):
        node = directory.entries[name]
        if isinstance(node, Directory):
            tree[name] = dump(node)
        elif isinstance(node, Symlink):
            tree[name] = Link(node.target)
        else:
            tree[name] = bytes(node.data)
    return tree


def find(directory: Directory, name: str) -> Node:
    if name not in directory.entries:
        raise NotFound
    return directory.entries[name]


def sub(directory: Directory, name: str) -> Directory:
    node = find(directory, name)
    if not isinstance(node, Directory):
        raise NotDirectory
    return node


def make(directory: Directory, name: str, node: Node) -> None:
    if name in directory.entries:
        raise AlreadyExists
    directory.entries[name] = node


def open_file(directory: Directory, name: str, flags: OpenFlags) -> File:
    if name in directory.entries and flags & OpenFlags.EXCLUSIVE:
        raise AlreadyExists
    if name not in directory.entries and flags & OpenFlags.CREATE:
        directory.entries[name] = File()
    node = find(directory, name)
    if isinstance(node, Directory):
        raise IsDirectory
    if isinstance(node, Symlink):
        raise Unsupported
    if flags & OpenFlags.TRUNCATE:
        node.data.clear()
    return node


def write(file: File, offset: int, data: bytes) -> None:
    if data:
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data


def truncate(file: File, size: int) -> None:
    del file.data[size:]
    file.data.extend(bytes(size - len(file.data)))


def remove(directory: Directory, name: str, expect: Expect) -> None:
    node = find(directory, name)
    if isinstance(node, Directory):
        if expect is Expect.NOT_DIRECTORY:
            raise IsDirectory
        if node.entries:
            raise NotEmpty
    elif expect is Expect.DIRECTORY:
        raise NotDirectory
    del directory.entries[name]


def link(directory: Directory, name: str, target: Directory, new_name: str) -> None:
    node = find(directory, name)
    if isinstance(node, Directory):
        raise IsDirectory
    make(target, new_name, node)


def within(directory: Node, ancestor: Node) -> bool:
    """Whether `directory` is `ancestor` or below it."""
    if directory is ancestor:
        return True
    below = ancestor.entries.values() if isinstance(ancestor, Directory) else ()
    return any(within(directory, node) for node in below)


def rename(
    source: Directory, name: str, target: Directory, new_name: str, mode: RenameMode
) -> None:
    moved = find(source, name)
    other = target.entries.get(new_name)
    if mode is RenameMode.EXCHANGE and other is None:
        raise NotFound
    if mode is RenameMode.NO_REPLACE and other is not None:
        raise AlreadyExists
    if moved is other:
        return
    if within(target, moved):
        raise InvalidArgument
    if mode is RenameMode.EXCHANGE:
        assert other is not None
        if within(source, other):
            raise InvalidArgument
        source.entries[name] = other
    else:
        _check_replaces(moved, other)
        del source.entries[name]
    target.entries[new_name] = moved


def _check_replaces(moved: Node, other: Node | None) -> None:
    if other is None:
        return
    if not isinstance(moved, Directory):
        if isinstance(other, Directory):
            raise IsDirectory
    elif not isinstance(other, Directory):
        raise NotDirectory
    elif other.entries:
        raise NotEmpty
