"""An overlay that workloads work with: its upper layer is a CAPOSWF1 volume on a given device.

Invariants:

* Every call here returns when all is done that it led to, on a loop without time and threads
  (`overlay_loop`), so the same steps write the same bytes in the same order.
* Each change of the upper layer gets a frame of its own while `apart` is set, so a crash can come
  between any two of them, as it can wherever somebody else syncs the volume.
* The lower layers are everybody's, and never change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeVar

from capstore.backers.layer import Layer, Mark
from capstore.backers.node import (
    DirectoryNode,
    Entry,
    FileNode,
    Node,
    NodeKind,
    Stat,
    Volume,
)
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_tree import Tree as LayerTree
from capstore.backers.overlay_union import Union
from capstore.backers.overlay_verify import verify_layers
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.wf1_layer import Wf1Layer, Wf1Upper
from capstore.images.tree import Finding
from capstore.images.wf1_engine import Engine
from capstore.schema.errors import Busy, Corrupt, StorageError
from capstore.tools.prove.overlay_loop import run
from capstore.tools.prove.overlay_model import NOW, OWN
from capstore.tools.prove.recording import Clock
from capstore.tools.prove.subject import Leaf, Tree

T = TypeVar("T")

# Times from here on were given by a clock of the proof, others are a lower layer's or a step's.
_CLOCKS_FROM: Final = 10**18
_NUMBER_MASK: Final = 0xFF
_CONTENTS_KEPT: Final = 1000
# What is being done, the most particular first.
PHASES: Final = ("reset", "directory rename", "copy-up", "whiteout")


class _Volume(Wf1Volume):
    """A volume whose changes are in frames of their own while `apart` is set, as if somebody else
    committed behind each of them; who is told if that fails."""

    apart = True
    # Whether directories that move get a redirect; without, all in them is copied up before.
    redirects = True

    async def change(self, function: Callable[[Engine], T], written: int = 0) -> T:
        result = await super().change(function, written)
        if self.apart:
            with suppress(StorageError):
                self._engine.commit()
        return result


class _Upper(Wf1Upper):
    """An upper layer that knows what is done to it; what is `armed` is done in the middle of the
    next copy, before it gets its name."""

    def __init__(self, volume: _Volume) -> None:
        super().__init__(volume)
        self._asked = volume
        self.armed: list[Callable[[], Awaitable[object]]] = []
        self.done: set[str] = set()

    @property
    def redirects(self) -> bool:
        return self._asked.redirects

    async def name_file(
        self, file: FileNode, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        self.done.add("copy-up")
        while self.armed:
            await self.armed.pop(0)()
        await super().name_file(file, directory, name, like, mark)

    async def copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        self.done.add("copy-up")
        return await super().copy_directory(directory, name, like, mark)

    async def remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        self.done.update(["whiteout"] * cover)
        await super().remove(directory, name, cover=cover)

    async def cover(self, directory: DirectoryNode, name: str) -> None:
        self.done.add("whiteout")
        await super().cover(directory, name)

    async def rename(
        self,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None = None,
    ) -> None:
        self.done.update(["whiteout"] * cover)
        self.done.update(["directory rename"] * (mark is not None))
        await super().rename(source, name, target, new_name, cover=cover, mark=mark)


class Session:
    """An overlay of an open volume on `lowers`, from the top to the bottom."""

    def __init__(self, engine: Engine, lowers: Sequence[Layer], *, writable: bool = True) -> None:
        self.engine = engine
        self._lowers = lowers
        self._writable = writable
        # Files that steps have left open.
        self.held: list[FileNode] = []
        self._clock = Clock()
        self.volume = self.run(self._driven())
        self._upper: _Upper | None = None
        self._overlay: OverlayVolume | None = None
        self.done: set[str] = set()

    def __repr__(self) -> str:
        return f"<Session {self.engine!r}>"

    def run(self, work: Awaitable[T]) -> T:
        """What `work` returns, when all is done that it led to."""

        async def waited() -> T:
            return await work

        return run(waited(), self._clock)

    async def _driven(self) -> _Volume:
        # It has to be made on the loop.
        return _Volume(self.engine, read_only=not self._writable)

    async def overlay(self) -> OverlayVolume:
        """The overlay, which is made when it is first asked for: what cannot be read is not found
        by opening.  Without a writable volume it shows the same, and cannot be changed."""
        if self._overlay is None and self._writable:
            self._upper = _Upper(self.volume)
            self._overlay = await OverlayVolume.over(self._upper, self._lowers)
        elif self._overlay is None:
            upper = Wf1Layer(self.volume)
            tree = LayerTree(Union(upper, self._lowers), None, writable_files=False)
            self._overlay = OverlayVolume(tree, await tree.root(), [upper, *self._lowers])
        return self._overlay

    async def upper(self) -> _Upper:
        """The upper layer, where it can be written."""
        await self.overlay()
        assert self._upper is not None  # noqa: S101 - for whoever works with it
        return self._upper

    async def reset(self) -> None:
        """Takes the upper layer back.  Raises `Busy` while a file is open, `NoSpace`."""
        if self.held:
            raise Busy("a file is open")
        self.done.add("reset")
        self._overlay = self._upper = None
        await self.volume.reset()

    def phase(self) -> str:
        """What the upper layer was last asked to do, until it is forgotten."""
        if self._upper is not None:
            self.done |= self._upper.done
            self._upper.done.clear()
        return next((phase for phase in PHASES if phase in self.done), "operation")

    def seen(self) -> Tree:
        """What there is to see.  Raises `Corrupt`."""
        return self.run(self._seen())

    async def _seen(self) -> Tree:
        return await seen(await self.overlay())

    def findings(self) -> list[Finding]:
        """What is wrong with the upper layer for the lower ones."""
        return self.run(self._findings())

    async def _findings(self) -> list[Finding]:
        upper = Wf1Layer(self.volume)
        return [found async for found in verify_layers(upper, self._lowers, repair=False)]


# Looking ------------------------------------------------------------------------------------------


async def seen(volume: Volume) -> Tree:
    """What a volume shows, as a model says it.  Raises `Corrupt`."""
    found = [one async for one in _walk(volume.root, "")]
    names: dict[int, list[str]] = {}
    for path, entry, _ in found:
        names.setdefault(entry.stat.node_id, []).append(path)
    return {path: _leaf(entry, data, names[entry.stat.node_id]) for path, entry, data in found}


async def _walk(directory: DirectoryNode, above: str) -> AsyncIterator[tuple[str, Entry, bytes]]:
    page = await directory.list()
    if page.more:
        raise Corrupt("more entries than there ever were")
    for entry in page.entries:
        path, data = above + entry.name, b""
        if await directory.lookup(entry.name) != entry:
            raise Corrupt(f"{path} is listed as something else than is found")
        if entry.stat.kind is NodeKind.DIRECTORY:
            below = await directory.sub(entry.name)
            await _check_same(below, entry, path)
            yield path, entry, data
            async for one in _walk(below, f"{path}/"):
                yield one
            continue
        if entry.stat.kind is NodeKind.FILE:
            data = await _content(directory, entry, path)
        yield path, entry, data


async def _content(directory: DirectoryNode, entry: Entry, path: str) -> bytes:
    file = await directory.open(entry.name)
    try:
        await _check_same(file, entry, path)
        return _one(bytes(await file.read(0, entry.stat.size + 1)))
    finally:
        await file.close()


async def _check_same(node: Node, entry: Entry, path: str) -> None:
    """Raises `Corrupt` where a node says something else of itself than its directory does."""
    if await node.stat() != entry.stat:
        raise Corrupt(f"{path} is listed as something else than it is")


@lru_cache(maxsize=_CONTENTS_KEPT)
def _one(data: bytes) -> bytes:
    """The same bytes, as one object: trees of thousands of states are kept and compared."""
    return data


def _leaf(entry: Entry, data: bytes, names: Sequence[str]) -> Leaf:
    """As `overlay_model` has it."""
    stat = entry.stat
    modified = stat.modified if stat.modified < _CLOCKS_FROM else NOW
    about = (modified, stat.node_id if stat.node_id & _NUMBER_MASK else OWN)
    # The count that the node has, not that of its names: they have to be the same.
    if stat.kind is NodeKind.FILE:
        return ("f", *about, data, stat.executable, stat.link_count, min(names))
    if stat.kind is NodeKind.SYMLINK:
        return ("l", *about, entry.target or "", False, stat.link_count, min(names))
    return ("d", *about)
