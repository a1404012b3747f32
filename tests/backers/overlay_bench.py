"""What the tests of overlays, family by family, share: a stack and its twin, and some trees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from capstore.backers.node import Expect, Volume
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import (
    Entry,
    Folder,
    Hard,
    Link,
    Stack,
    facts,
    file,
    folder,
    ideal,
    stacked,
)
from tests.contract import model

SOURCES: dict[str, Entry] = {
    "file": file(b"source", 1, executable=True),
    "empty": folder({}, 2),
    "populated": folder({"deep": folder({"x": file(b"x", 4)}, 5), "y": file(b"y", 6)}, 3),
    "link": Link("x", facts(7)),
}

TREE = folder(
    {
        "a": folder({"f": file(b"a's f", 1), "sub": folder({"g": file(b"a's g", 2)}, 3)}, 4),
        "b": folder({"f": file(b"b's f", 5)}, 6),
        "c": folder({}, 7),
        "f": file(b"f", 8),
        "g": file(b"g", 9),
    },
    10,
)

LINKED = folder(
    {
        "d": folder({"three": Hard(("a",)), "x": file(b"x", 2)}, 3),
        "a": file(b"one file", 1),
        "e": Link("a", facts(4)),
        "l": Hard(("e",)),
        "two": Hard(("a",)),
    },
    5,
)


@dataclass
class Bench:
    """A stack that is open, and its twin."""

    stack: Stack
    volume: Volume
    twin: Twin

    async def again(self) -> None:
        """Closes all and opens it again, with a look at everything before and after."""
        await self.twin.close()
        await self.volume.close()
        self.volume = await self.stack.open()
        self.twin.reopened(self.volume.root)
        await self.twin.check_all()


@asynccontextmanager
async def bench(name: str, tree: Folder) -> AsyncIterator[Bench]:
    """The stack `name` over `tree`; compared at the end, and once more when opened again."""
    async with stacked(name, tree) as stack:
        volume = await stack.open()
        made = Bench(stack, volume, Twin.of(volume.root, ideal(stack.tree)))
        await made.twin.check()
        yield made
        await made.again()
        await made.volume.close()


async def remove_all(twin: Twin, path: str) -> None:
    """Removes what is at `path`, with all below."""
    number, name = await twin.at(path)
    node = twin.directory(number)[1].entries[name]
    if isinstance(node, model.Directory):
        for below in sorted(node.entries):
            await remove_all(twin, f"{path}/{below}")
    await twin.do("remove", path, Expect.ANY)


async def make(twin: Twin, path: str, what: Entry) -> None:
    """Makes something like `what` at `path`."""
    if isinstance(what, Folder):
        await twin.do("mkdir", path)
        for name, entry in what.entries.items():
            await make(twin, f"{path}/{name}", entry)
    elif isinstance(what, Link):
        await twin.do("symlink", path)
    else:
        await twin.put(path, b"made again")
