"""Calls by name, for directories in which case does not count and `secret` is hidden."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Expect,
    OpenFlags,
    RenameMode,
    Volume,
)
from capstore.service.grants import Grant, ServedVolume
from capstore.service.guard import GuardedDirectory
from capstore.service.policy import Policy

WRITE, CREATE, TRUNCATE = OpenFlags.WRITE, OpenFlags.CREATE, OpenFlags.TRUNCATE


async def content_of(directory: DirectoryNode, name: str) -> bytes:
    file = await directory.open(name)
    try:
        return bytes(await file.read(0, 100))
    finally:
        await file.close()


async def write(directory: DirectoryNode, name: str, content: bytes) -> None:
    file = await directory.open(name, WRITE | CREATE)
    await file.write(0, content)
    await file.close()


async def names_of(directory: DirectoryNode) -> list[str]:
    return [entry.name for entry in (await directory.list()).entries]


def hiding(volume: Volume) -> GuardedDirectory:
    """The root, for who does not see what is called `secret`."""
    grant = Grant(ServedVolume("volume", volume), Policy())
    return GuardedDirectory(volume.root, grant).narrowed(Policy(hidden_names=("secret*",)))


Call = Callable[[DirectoryNode, str], Awaitable[object]]

# Everything that takes the name of what is there.
FINDING: dict[str, Call] = {
    "lookup": lambda at, name: at.lookup(name),
    "open": lambda at, name: at.open(name),
    "open to write": lambda at, name: at.open(name, WRITE),
    "empty": lambda at, name: at.open(name, WRITE | TRUNCATE),
    "sub": lambda at, name: at.sub(name),
    "remove": lambda at, name: at.remove(name),
    "remove a file": lambda at, name: at.remove(name, Expect.NOT_DIRECTORY),
    "rename": lambda at, name: at.rename(name, at, "mine"),
    "exchange": lambda at, name: at.rename("own", at, name, RenameMode.EXCHANGE),
    "exchange it": lambda at, name: at.rename(name, at, "own", RenameMode.EXCHANGE),
    "link": lambda at, name: at.link(name, at, "mine"),
    "set attributes": lambda at, name: at.set_attributes(Attributes(modified=1), name),
}
# Everything that takes the name of what is to be.
MAKING: dict[str, Call] = {
    "create": lambda at, name: at.create(name),
    "open or create": lambda at, name: at.open(name, WRITE | CREATE),
    "empty or create": lambda at, name: at.open(name, WRITE | CREATE | TRUNCATE),
    "mkdir": lambda at, name: at.mkdir(name),
    "rename over": lambda at, name: at.rename("own", at, name),
    "rename to": lambda at, name: at.rename("own", at, name, RenameMode.NO_REPLACE),
}
