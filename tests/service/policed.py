"""A small tree to try policies on, and what calls and listings of it answer."""

from __future__ import annotations

from collections.abc import Awaitable

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, NodeKind, OpenFlags
from capstore.schema.errors import Code, StorageError
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory

WRITE = OpenFlags.WRITE
CREATE = WRITE | OpenFlags.CREATE
FOREVER = 2**62


async def code_of(call: Awaitable[object]) -> Code | None:
    """The code of the error that the call raises."""
    try:
        await call
    except StorageError as error:
        return error.code
    return None


async def a_tree() -> tuple[MemoryVolume, GuardedDirectory]:
    volume = await MemoryVolume.open()
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    for name in ("a", "hidden-a"):
        await (await top.create(name)).write(0, b"content")
    for name in ("d", "hidden-d"):
        inner = await top.mkdir(name)
        await (await inner.create("x")).write(0, b"below")
        await (await inner.create("hidden-x")).write(0, b"below")
    await top.symlink("l", "a")
    return volume, top


async def picture(directory: DirectoryNode) -> list[object]:
    found: list[object] = []
    for entry in (await directory.list()).entries:
        content: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            content = await picture(await directory.sub(entry.name))
        elif entry.stat.kind is NodeKind.FILE:
            file = await directory.open(entry.name)
            content = bytes(await file.read(0, 10_000)), entry.stat.executable
        found.append((entry.name, content))
    return found
