"""Pushing a tree into a builder of images.

Invariants:

* The builder's calls come in the order of the walk, in a worker, one batch after another; while one
  batch is being written, the next is read.
* At most `AHEAD_MAX` files are read ahead, each up to one transfer, so memory is bounded whatever
  is in the tree.
* The first failure ends it, with the path in front: half a tree is no image of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, Protocol

from capstore.backers.node import Buffer, Entry, NodeKind
from capstore.backers.workers import in_worker
from capstore.images.builder import Facts, TreeBuilder
from capstore.schema.errors import Conflict, Corrupt, StorageError
from capstore.schema.limits import TRANSFER_BYTES_MAX
from capstore.schema.nodes import Stat
from capstore.tools.console import about, shown
from capstore.tools.image.source import Tree, depth_first
from capstore.tools.progress import Meter
from capstore.tools.trees import Content

AHEAD_MAX: Final = 16
_BATCH_CALLS_MAX: Final = 256

Path = tuple[str, ...]


class _Batches:
    """Calls of the builder that blocks, taken to a worker many at a time."""

    def __init__(self) -> None:
        self._calls: list[tuple[Path, Callable[[], None]]] = []
        self._bytes = 0
        self._under_way: asyncio.Task[None] | None = None

    async def add(self, path: Path, call: Callable[[], None], size: int = 0) -> None:
        """One more call, which is about `path` and holds `size` bytes."""
        self._calls.append((path, call))
        self._bytes += size
        if self._bytes >= TRANSFER_BYTES_MAX or len(self._calls) >= _BATCH_CALLS_MAX:
            await self._start()

    async def _start(self) -> None:
        await self._ended()
        calls, self._calls, self._bytes = self._calls, [], 0
        self._under_way = asyncio.create_task(in_worker(partial(_all_of, calls)))

    async def _ended(self) -> None:
        if self._under_way is not None:
            # Nobody but this waits for it, so a cancellation goes on to it and comes back.
            task, self._under_way = self._under_way, None
            await task

    async def finish(self) -> None:
        """Returns when every call was made."""
        await self._start()
        await self._ended()

    async def drop(self) -> None:
        """Returns when nothing is under way any more, whatever came of it."""
        if self._under_way is not None:
            with suppress(StorageError, asyncio.CancelledError):
                await self._under_way


def _all_of(calls: Sequence[tuple[Path, Callable[[], None]]]) -> None:
    for path, call in calls:
        try:
            call()
        except StorageError as error:
            raise about(path, error) from error


class Pushed(Protocol):
    """An entry of a walk, a directory before what is in it."""

    @property
    def path(self) -> Path:
        """Its names from the root."""

    @property
    def entry(self) -> Entry:
        """What it is."""

    async def content(self) -> Content:
        """The content of the file that it is."""


class _Ahead:
    """A walk whose next files are being read already."""

    def __init__(self, steps: AsyncIterator[Pushed]) -> None:
        self._steps = steps
        self._waiting: deque[tuple[Pushed, asyncio.Task[Content] | None]] = deque()
        self._ended = False

    async def next(self) -> tuple[Pushed, asyncio.Task[Content] | None] | None:
        """The next step, and of a file its content that is on the way; None at the end."""
        while not self._ended and len(self._waiting) < AHEAD_MAX:
            step = await anext(self._steps, None)
            if step is None:
                self._ended = True
                break
            reading = None
            if step.entry.stat.kind is NodeKind.FILE:
                reading = asyncio.create_task(_content_of(step))
            self._waiting.append((step, reading))
        return self._waiting.popleft() if self._waiting else None

    async def drop(self) -> None:
        """Ends what is still being read."""
        tasks = [task for _, task in self._waiting if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Pusher:
    """Pushes trees into `builder`; `facts_of` says what is to be kept of a node, `links` whether
    symbolic links can be."""

    def __init__(
        self,
        builder: TreeBuilder,
        facts_of: Callable[[Stat], Facts],
        meter: Meter,
        *,
        links: bool = True,
    ) -> None:
        self._builder = builder
        self._facts_of = facts_of
        self._meter = meter
        self._links = links
        self._batches = _Batches()
        # Where each node with several names was seen first.
        self._seen: dict[int, Path] = {}

    async def push(self, tree: Tree, *, skip: frozenset[Path] = frozenset()) -> None:
        """All of `tree` but what is at a path in `skip`.

        Raises what the tree and the builder raise, with the path, and `Conflict` for a file that
        changes while it is read.
        """
        async with aclosing(depth_first(tree.root, skip=skip)) as steps:
            await self.push_steps(tree.entry.stat, steps)

    async def push_steps(self, root: Stat, steps: AsyncIterator[Pushed]) -> None:
        """The root and all `steps` below it; raises as `push`."""
        await self._batches.add((), partial(self._builder.directory, (), self._facts_of(root)))
        ahead = _Ahead(steps)
        try:
            while (found := await ahead.next()) is not None:
                await self._one(*found)
            await self._batches.finish()
        finally:
            await ahead.drop()
            await self._batches.drop()

    async def _one(self, step: Pushed, reading: asyncio.Task[Content] | None) -> None:
        path, stat = step.path, step.entry.stat
        if stat.kind is NodeKind.SPECIAL:
            self._meter.warn(f"passed over: {shown(path)} is neither file, directory nor link")
            return
        if stat.kind is NodeKind.SYMLINK and not self._links:
            self._meter.warn(f"passed over: {shown(path)} is a symbolic link")
            return
        self._meter.entries += 1
        if stat.kind is NodeKind.DIRECTORY:
            call = partial(self._builder.directory, path, self._facts_of(stat))
            await self._batches.add(path, call)
            return
        original = self._original(path, stat)
        if original is not None:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await self._batches.add(path, self._link(path, original, self._facts_of(stat)))
        elif reading is not None:
            try:
                await self._file(path, stat, await reading)
            except StorageError as error:
                raise about(path, error) from error
        else:
            await self._symlink(step)

    def _link(self, path: Path, original: Path, facts: Facts) -> Callable[[], None]:
        """What makes `path` another name of `original`, with the same `facts`."""
        return partial(self._builder.link, path, original)

    def _original(self, path: Path, stat: Stat) -> Path | None:
        """Where the node was seen before; None for the first time."""
        if stat.link_count < 2:
            return None
        first = self._seen.setdefault(stat.node_id, path)
        return None if first == path else first

    async def _symlink(self, step: Pushed) -> None:
        if not step.entry.target:
            raise about(step.path, Corrupt("a symbolic link without a target"))
        call = partial(
            self._builder.symlink, step.path, self._facts_of(step.entry.stat), step.entry.target
        )
        await self._batches.add(step.path, call)

    async def _file(self, path: Path, stat: Stat, content: Content) -> None:
        # What came whole is as long as it is, whatever was known of it before.
        size = stat.size if content.rest is not None else len(content.first)
        begin = partial(self._builder.begin_file, path, self._facts_of(stat), size)
        await self._batches.add(path, begin)
        left = size
        async for piece in _pieces_of(content):
            left -= len(piece)
            if left < 0:
                break
            self._meter.bytes += len(piece)
            await self._batches.add(path, partial(self._builder.write, piece), len(piece))
        if left:
            raise Conflict("the file changed while it was read")
        await self._batches.add(path, self._builder.end_file)


async def _content_of(step: Pushed) -> Content:
    return await step.content()


async def _pieces_of(content: Content) -> AsyncIterator[Buffer]:
    if content.first:
        yield content.first
    if content.rest is not None:
        async for piece in content.rest:
            yield piece
