"""Copying entries and whole trees between a source and a sink.

Invariants:

* A copy has the content, kind, executable bit and modification time of its original; symbolic
  links are copied as links, hard links become files of their own, special nodes are passed over
  with a warning.
* At most `LEAVES_MAX` files are under way, and of those longer than one transfer at most
  `LARGE_MAX`, so memory is bounded whatever is copied.
* A failure is reported with its path; the rest is copied all the same.
* Every copy ends, also one into its own original: the directory that copies go to is not copied
  where it can be told, and nothing is that lies more than `DEPTH_MAX` levels deep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from capstore.backers.node import Buffer, Entry, NodeKind, Stat
from capstore.schema.errors import InvalidArgument, IsDirectory, StorageError, TooLarge
from capstore.schema.limits import TRANSFER_BYTES_MAX
from capstore.schema.names import check_name
from capstore.tools.console import Failed, about, complain, explained, shown
from capstore.tools.progress import Meter
from capstore.tools.trees import Content, Sink, Source
from capstore.tools.walk import Branch, Visitor, walk

S = TypeVar("S")
D = TypeVar("D")

LARGE_MAX: Final = 4
DEPTH_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Place(Generic[D]):
    """Where copies go: into `directory`, as `name` if there is to be one copy of that name."""

    directory: D
    name: str = ""

    def name_for(self, original: str) -> str:
        """The name of the copy of `original`."""
        return self.name or original


@dataclass(frozen=True, slots=True)
class Original(Generic[S]):
    """What is to be copied: `entry` in `parent`, or (without an entry's name) `parent` itself."""

    parent: S
    entry: Entry
    path: tuple[str, ...]


class Copier(Visitor[tuple[S, D]], Generic[S, D]):
    """Copies from `source` to `sink`.

    `avoid` is the node of the directory that receives the copies, where both ends are in the same
    volume.
    """

    def __init__(
        self, source: Source[S], sink: Sink[D], meter: Meter, *, avoid: int | None = None
    ) -> None:
        self._avoid = avoid
        self._depth_max = DEPTH_MAX
        self._source = source
        self._sink = sink
        self._meter = meter
        self._large = asyncio.Semaphore(LARGE_MAX)

    async def copy(self, original: Original[S], place: Place[D], *, recursive: bool) -> None:
        """One copy.  What fails below a directory is reported and counted by the meter.

        Raises `IsDirectory` for a directory unless `recursive`, and `StorageError` for what is no
        directory.
        """
        entry = original.entry
        if entry.stat.kind is NodeKind.DIRECTORY:
            if not recursive:
                raise IsDirectory(f"{shown(original.path)} is a directory: use -r")
            await self._copy_tree(original, place)
            return
        name = place.name_for(entry.name)
        if not name:
            raise InvalidArgument(
                "what the URI stands for has no name: say what the copy is to be called"
            )
        if entry.stat.kind is NodeKind.FILE:
            self._meter.total = entry.stat.size
        try:
            await self._copy_leaf(original.parent, entry, place.directory, name, original.path)
        except StorageError as error:
            raise about(original.path, error) from error

    async def _copy_tree(self, original: Original[S], place: Place[D]) -> None:
        self._refuse_itself(original.entry, original.path)
        self._depth_max = len(original.path) + DEPTH_MAX
        entry, name = original.entry, place.name_for(original.entry.name)
        target = place.directory
        if name:
            try:
                target = await self._sink.directory(place.directory, name)
            except StorageError as error:
                raise about(original.path, error) from error
        source = original.parent
        if entry.name:
            source = self._source.sub(original.parent, entry.name)
        root: Branch[tuple[S, D]] = Branch(entry, None, original.path)
        root.state = (source, target)
        await walk(self, root)

    # A walk's visitor ----------------------------------------------------------------------------

    async def enter(self, branch: Branch[tuple[S, D]]) -> None:
        if branch.parent is None:
            return
        self._refuse_itself(branch.entry)
        if len(branch.path) > self._depth_max:
            raise TooLarge(
                f"more than {DEPTH_MAX} levels deep: is this a copy of a directory into itself?"
            )
        name = check_name(branch.entry.name)
        source, target = branch.parent.held
        branch.state = (
            self._source.sub(source, name),
            await self._sink.directory(target, name),
        )

    def _refuse_itself(self, entry: Entry, path: Sequence[str] = ()) -> None:
        if self._avoid is not None and entry.stat.node_id == self._avoid:
            where = f"{shown(path)} is" if path else "this is"
            raise InvalidArgument(f"{where} where the copies go: it cannot be copied into itself")

    def pages(self, branch: Branch[tuple[S, D]]) -> AsyncGenerator[Sequence[Entry], None]:
        return self._source.pages(branch.held[0])

    async def visit(self, branch: Branch[tuple[S, D]], entry: Entry) -> None:
        source, target = branch.held
        path = (*branch.path, entry.name)
        await self._copy_leaf(source, entry, target, check_name(entry.name), path)

    async def leave(self, branch: Branch[tuple[S, D]]) -> None:
        self._meter.entries += 1
        await self._sink.finish(branch.held[1], branch.entry.stat)

    def failed(self, path: Sequence[str], error: StorageError) -> None:
        self._meter.failed(explained(about(path, error)))

    # Leaves --------------------------------------------------------------------------------------

    async def _copy_leaf(
        self, source: S, entry: Entry, target: D, name: str, path: Sequence[str]
    ) -> None:
        kind = entry.stat.kind
        if kind is NodeKind.SYMLINK:
            await self._sink.symlink(target, name, entry.target or "", entry.stat)
        elif kind is NodeKind.FILE:
            await self._copy_file(source, entry, target, name)
        else:
            self._meter.warn(f"passed over: {shown(path)} is neither file, directory nor link")
            return
        self._meter.entries += 1

    async def _copy_file(self, source: S, entry: Entry, target: D, name: str) -> None:
        if entry.stat.size < TRANSFER_BYTES_MAX:
            content = await self._source.content(source, entry)
            await self._put(target, name, content, entry.stat)
            return
        async with self._large:
            content = await self._source.content(source, entry)
            await self._put(target, name, content, entry.stat)

    async def _put(self, target: D, name: str, content: Content, stat: Stat) -> None:
        await self._sink.file(target, name, counted(content, self._meter), stat)


def counted(content: Content, meter: Meter) -> Content:
    """`content`, counted by `meter` as it goes by."""
    meter.bytes += len(content.first)
    if content.rest is None:
        return content
    return Content(content.first, _counted(content.rest, meter))


async def _counted(pieces: AsyncIterator[Buffer], meter: Meter) -> AsyncIterator[Buffer]:
    async for piece in pieces:
        meter.bytes += len(piece)
        yield piece


def summed_up(meter: Meter) -> None:
    """Raises `Failed`, with a summary on stderr, if anything failed."""
    if meter.failures:
        total = meter.entries + meter.failures
        # Of a single entry, its own line has said it all.
        if total > 1:
            complain(f"{meter.failures} of {total} entries failed")
        raise Failed
