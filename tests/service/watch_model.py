"""The model of watches: what clients do, and one who keeps a directory by what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from capstore.backers.node import Attributes, DirectoryNode, Expect, FileNode, OpenFlags, RenameMode
from capstore.schema.errors import StorageError
from capstore.schema.nodes import Change
from tests.service.watches import CREATED, OVERFLOW, REMOVED

NAMES = st.sampled_from(("a", "b", "c"))
PLACES = st.sampled_from((0, 1))
MODES = st.sampled_from(tuple(RenameMode))
FLAGS = st.sampled_from(
    (
        OpenFlags.WRITE,
        OpenFlags.WRITE | OpenFlags.CREATE,
        OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE,
        OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE,
    )
)
MOVES = st.one_of(
    st.tuples(st.just("open"), PLACES, NAMES, FLAGS),
    st.tuples(st.just("create"), PLACES, NAMES),
    st.tuples(st.just("append"), st.integers(0, 9)),
    st.tuples(st.just("truncate"), st.integers(0, 9)),
    st.tuples(st.just("mkdir"), PLACES, NAMES),
    st.tuples(st.just("symlink"), PLACES, NAMES),
    st.tuples(st.just("remove"), PLACES, NAMES),
    st.tuples(st.just("rename"), PLACES, NAMES, PLACES, NAMES, MODES),
    st.tuples(st.just("set"), PLACES, NAMES),
)
LINKS = st.tuples(st.just("link"), PLACES, NAMES, PLACES, NAMES)


class Player:
    """A client that changes things, one after the other."""

    def __init__(self, directories: Sequence[DirectoryNode]) -> None:
        self._directories = directories
        self._files: list[FileNode] = []

    async def play(self, moves: Sequence[tuple[Any, ...]]) -> None:
        for move in moves:
            with suppress(StorageError):
                await getattr(self, f"_{move[0]}")(*move[1:])

    async def _open(self, place: int, name: str, flags: OpenFlags) -> None:
        self._files.append(await self._directories[place].open(name, flags))

    async def _create(self, place: int, name: str) -> None:
        self._files.append(await self._directories[place].create(name))

    async def _append(self, number: int) -> None:
        if self._files:
            await self._files[number % len(self._files)].append(b"x" * (number + 1))

    async def _truncate(self, number: int) -> None:
        if self._files:
            await self._files[number % len(self._files)].truncate(number * 7)

    async def _mkdir(self, place: int, name: str) -> None:
        await self._directories[place].mkdir(name)

    async def _symlink(self, place: int, name: str) -> None:
        await self._directories[place].symlink(name, "target")

    async def _remove(self, place: int, name: str) -> None:
        await self._directories[place].remove(name, Expect.ANY)

    async def _rename(self, place: int, name: str, to: int, new: str, mode: RenameMode) -> None:
        await self._directories[place].rename(name, self._directories[to], new, mode)

    async def _set(self, place: int, name: str) -> None:
        await self._directories[place].set_attributes(Attributes(modified=10**9), name)

    async def _link(self, place: int, name: str, to: int, new: str) -> None:
        await self._directories[place].link(name, self._directories[to], new)


class Mirror:
    """One who keeps a directory as it is: the node of each name, and which are to be looked at."""

    def __init__(self, directory: DirectoryNode, pause: int) -> None:
        self.directory = directory
        # How many turns of the loop it takes over each change.
        self._pause = pause
        self.nodes: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.overflows = 0

    async def look(self) -> None:
        entries = (await self.directory.list()).entries
        self.nodes = {entry.name: entry.stat.node_id for entry in entries}
        self.sizes = {entry.name: entry.stat.size for entry in entries}

    async def follow(self, changes: AsyncIterable[Change], end: str) -> None:
        async for change in changes:
            for _ in range(self._pause):
                await asyncio.sleep(0)
            if change.kind is OVERFLOW:
                self.overflows += 1
                await self.look()
                # What marks the end may be among what was left out.
                if end in self.nodes:
                    return
            elif change.name == end:
                self.nodes[end] = change.node_id
                return
            else:
                self.apply(change)

    def apply(self, change: Change) -> None:
        name = change.name
        if change.kind is REMOVED:
            self.nodes.pop(name, None)
            self.sizes.pop(name, None)
            return
        if change.kind is CREATED:
            self.nodes[name] = change.node_id
        else:
            # It follows its name, and the node is the one that it has.
            assert self.nodes.get(name, change.node_id) == change.node_id
        self.sizes[name] = -1

    async def check(self, *, sizes: bool) -> None:
        entries = (await self.directory.list()).entries
        assert self.nodes == {entry.name: entry.stat.node_id for entry in entries}
        if sizes:
            for entry in entries:
                # -1 is what was told to have changed.
                assert self.sizes.get(entry.name, -1) in (-1, entry.stat.size), entry.name
