"""Trees out of several volumes for tests, and changes that their fixed names refuse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.schema.errors import AlreadyExists, Busy, IsDirectory
from tests.contract.harness import Tree, entries_of, populate

WRITE = OpenFlags.WRITE
CREATE = OpenFlags.WRITE | OpenFlags.CREATE


async def memory(tree: Tree | None = None) -> MemoryVolume:
    volume = await MemoryVolume.open()
    await populate(volume.root, tree or {})
    return volume


async def mounted(**trees: Tree) -> MountsVolume:
    """A volume with `root` at the root and what other names are for at `/a/b` for `a_b`."""
    return MountsVolume.over(
        {
            "/" if name == "root" else "/" + name.replace("_", "/"): await memory(tree)
            for name, tree in trees.items()
        }
    )


async def at(volume: MountsVolume, path: str) -> DirectoryNode:
    directory: DirectoryNode = volume.root
    for name in filter(None, path.split("/")):
        directory = await directory.sub(name)
    return directory


async def reading(folder: Path, tree: Tree) -> HostVolume:
    """A volume that is read-only and has no snapshots."""
    writing = await HostVolume.open(str(folder))
    await populate(writing.root, tree)
    await writing.close()
    return await HostVolume.open(str(folder), read_only=True)


async def ids_of(directory: DirectoryNode, path: str = "") -> dict[str, int]:
    """The id of each node below, by its path, the same from its names and from its handle."""
    ids = {path or "/": (await directory.stat()).node_id}
    for entry in await entries_of(directory):
        here = f"{path}/{entry.name}"
        ids[here] = entry.stat.node_id
        if entry.stat.kind is NodeKind.DIRECTORY:
            below = await ids_of(await directory.sub(entry.name), here)
            assert below[here] == ids[here]
            ids |= below
        elif entry.stat.kind is NodeKind.FILE:
            file = await directory.open(entry.name)
            assert (await file.stat()).node_id == ids[here]
            await file.close()
    return ids


FIXED: Tree = {"a": {"x": b""}, "d": {}, "f": b"file"}
Change = Callable[[DirectoryNode, str], Awaitable[object]]

BUSY: dict[str, Change] = {
    "remove": lambda root, name: root.remove(name),
    "remove a directory": lambda root, name: root.remove(name, Expect.DIRECTORY),
    "rename": lambda root, name: root.rename(name, root, "new"),
    "rename without replacing": lambda root, name: root.rename(
        name, root, "new", RenameMode.NO_REPLACE
    ),
    "replace with a directory": lambda root, name: root.rename("d", root, name),
    "replace with a file": lambda root, name: root.rename("f", root, name),
    "exchange from": lambda root, name: root.rename(name, root, "d", RenameMode.EXCHANGE),
    "exchange with": lambda root, name: root.rename("f", root, name, RenameMode.EXCHANGE),
}
TAKEN: dict[str, Change] = {
    "mkdir": lambda root, name: root.mkdir(name),
    "create": lambda root, name: root.create(name),
    "symlink": lambda root, name: root.symlink(name, "target"),
    "open exclusively": lambda root, name: root.open(name, CREATE | OpenFlags.EXCLUSIVE),
    "link": lambda root, name: root.link("f", root, name),
    "rename onto": lambda root, name: root.rename("f", root, name, RenameMode.NO_REPLACE),
    "rename onto itself": lambda root, name: root.rename(name, root, name, RenameMode.NO_REPLACE),
}
DIRECTORY: dict[str, Change] = {
    "open": lambda root, name: root.open(name),
    "open to write": lambda root, name: root.open(name, WRITE),
    "open to create": lambda root, name: root.open(name, CREATE),
    "remove a file": lambda root, name: root.remove(name, Expect.NOT_DIRECTORY),
    "give another name": lambda root, name: root.link(name, root, "new"),
}
REFUSED = {
    **{what: (change, Busy) for what, change in BUSY.items()},
    **{what: (change, AlreadyExists) for what, change in TAKEN.items()},
    **{what: (change, IsDirectory) for what, change in DIRECTORY.items()},
}
