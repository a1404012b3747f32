"""A process to be killed: ``python -m capstore.tools.prove.wf1_backer_worker``, with the arguments
of `wf1_worker`.

Each client is a task that works through the backer: one writer that all of them wait for, syncs
that share a flush, work beside operations, threads.  See `capstore.tools.prove.load` for what it
says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    FileNode,
    Node,
    NodeKind,
    OpenFlags,
    RenameMode,
)
from capstore.backers.wf1 import Wf1Volume
from capstore.schema.errors import Corrupt, NoSpace, StorageError, StorageIOError
from capstore.tools.prove.load import DONE, FAILED, READY, Stream, say
from capstore.tools.prove.wf1_load import clients
from capstore.tools.prove.wf1_steps import DURABLE
from capstore.tools.prove.workload import Step, content


class Client:
    """Does the steps of a stream; keeps the nodes and snapshots that they hold."""

    def __init__(self, number: int, volume: Wf1Volume, stream: Stream) -> None:
        self._number = number
        self._volume = volume
        self._stream = stream
        self._nodes: list[Node] = []
        self._snapshots: list[Node] = []

    async def work(self) -> None:
        """Does all of them, and says which are durable."""
        for number, step in enumerate(self._stream.steps):
            try:
                await self._done(step)
            except (Corrupt, NoSpace, StorageIOError) as error:
                say(f"{FAILED} {error!r}")
                raise
            except StorageError:
                # Refused, as the model will do.
                continue
            if step.op in DURABLE:
                say(f"{self._number} {number + 1}")
            # What was done at once lets the others go on, too.
            await asyncio.sleep(0)

    async def _done(self, step: Step) -> None:
        if step.op in DURABLE:
            await self._volume.sync()
        elif step.op in _ON_NAMES:
            directory, name = await self._place(step.paths[0])
            await _ON_NAMES[step.op](directory, name, step)
        elif step.op in _ON_FILES:
            directory, name = await self._place(step.paths[0])
            file = await directory.open(name, OpenFlags.WRITE)
            try:
                await _ON_FILES[step.op](file, step)
            finally:
                await file.close()
        elif step.op in _ON_PAIRS:
            directory, name = await self._place(step.paths[0])
            target, new_name = await self._place(step.paths[1])
            await _ON_PAIRS[step.op](directory, name, target, new_name)
        else:
            await self._held(step)

    async def _held(self, step: Step) -> None:
        """Steps that hold something, or let go of it; of others the backer knows nothing."""
        match step.op:
            case "orphan":
                directory, name = await self._place(step.paths[0])
                self._nodes += await _opened(directory, name)
                await directory.remove(name)
            case "release":
                self._nodes.clear()
            case "snapshot":
                self._snapshots.append(await self._volume.root.snapshot())
            case "drop":
                self._snapshots.clear()

    async def _place(self, path: str) -> tuple[DirectoryNode, str]:
        *above, name = path.split("/")
        at: DirectoryNode = self._volume.root
        for step in above:
            at = await at.sub(step)
        return at, name


async def _opened(directory: DirectoryNode, name: str) -> list[Node]:
    kind = (await directory.lookup(name)).stat.kind
    if kind is NodeKind.FILE:
        return [await directory.open(name)]
    return [await directory.sub(name)] if kind is NodeKind.DIRECTORY else []


async def _create(directory: DirectoryNode, name: str, _: Step) -> None:
    await (await directory.create(name)).close()


async def _mkdir(directory: DirectoryNode, name: str, _: Step) -> None:
    await directory.mkdir(name)


_ON_NAMES: Final[dict[str, Callable[[DirectoryNode, str, Step], Awaitable[object]]]] = {
    "create": _create,
    "mkdir": _mkdir,
    "symlink": lambda at, name, step: at.symlink(name, step.paths[1]),
    "remove": lambda at, name, _: at.remove(name),
    "chmod": lambda at, name, step: at.set_attributes(
        Attributes(executable=bool(step.numbers[0])), name
    ),
}
_ON_FILES: Final[dict[str, Callable[[FileNode, Step], Awaitable[object]]]] = {
    "write": lambda file, s: file.write(s.numbers[0], content(s.numbers[2], s.numbers[1])),
    "append": lambda file, s: file.append(content(s.numbers[1], s.numbers[0])),
    "truncate": lambda file, s: file.truncate(s.numbers[0]),
}
_Pair = Callable[[DirectoryNode, str, DirectoryNode, str], Awaitable[object]]
_ON_PAIRS: Final[dict[str, _Pair]] = {
    "link": lambda at, name, target, new: at.link(name, target, new),
    "rename": lambda at, name, target, new: at.rename(name, target, new),
    "move": lambda at, name, target, new: at.rename(name, target, new, RenameMode.NO_REPLACE),
    "exchange": lambda at, name, target, new: at.rename(name, target, new, RenameMode.EXCHANGE),
}


async def main(path: str, seed: int, operations: int) -> None:
    """Has all clients work at once."""
    volume = await Wf1Volume.open(path)
    say(READY)
    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(clients(seed, operations)):
            group.create_task(Client(number, volume, stream).work())
    say(DONE)
    await volume.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
