"""Overlays with one precaution taken out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from capstore.backers import overlay_tree
from capstore.backers.layer import Mark
from capstore.backers.node import Attributes, DirectoryNode, FileNode, NodeKind, Stat
from capstore.backers.overlay_copy import copy_content
from capstore.backers.overlay_core import FileCore
from capstore.backers.overlay_tree import Tree
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.wf1_layer import Wf1Upper
from capstore.images.faults import Mode
from capstore.images.wf1_copyup import CopyUp
from capstore.images.wf1_engine import Engine
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.tools.prove.canaries import Canary, patched
from capstore.tools.prove.explore import Search


def _named_before_its_data() -> AbstractContextManager[None]:
    """A copy has its name, and then gets its content."""
    publish = Tree._publish

    async def nothing_yet(source: FileNode, target: FileNode, length: int) -> None:
        """Copies later."""

    async def named_first(self: Tree, file: FileCore, copy: FileNode, stat: Stat) -> None:
        source = file.file
        await publish(self, file, copy, stat)
        await copy_content(source, copy, stat.size)
        await copy.set_attributes(Attributes(modified=stat.modified, created=stat.created))

    return patched((overlay_tree, "copy_content", nothing_yet), (Tree, "_publish", named_first))


def _left_to_the_tables() -> AbstractContextManager[None]:
    """What a checkpoint left out is not written to the log again when it gets its name."""
    return patched((CopyUp, "_log_again", lambda self, number, decide: None))


def _removed_then_covered() -> AbstractContextManager[None]:
    """A name is removed, and then there is a whiteout."""
    remove = Wf1Upper.remove

    async def in_two(self: Wf1Upper, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        await remove(self, directory, name, cover=False)
        if cover:
            await self.cover(directory, name)

    return patched((Wf1Upper, "remove", in_two))


def _moved_then_covered() -> AbstractContextManager[None]:
    """What moves has its new name, and then there is a whiteout at the old one."""
    rename = Wf1Upper.rename

    async def in_two(
        self: Wf1Upper,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None = None,
    ) -> None:
        await rename(self, source, name, target, new_name, cover=False, mark=mark)
        if cover:
            await self.cover(source, name)

    return patched((Wf1Upper, "rename", in_two))


def _moved_then_redirected() -> AbstractContextManager[None]:
    """A directory has its new name, and then the redirect to where it was."""
    rename = Wf1Upper.rename

    async def in_two(
        self: Wf1Upper,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None = None,
    ) -> None:
        await rename(self, source, name, target, new_name, cover=cover)
        if mark is not None:
            await self.set_mark(await target.sub(new_name), mark)

    return patched((Wf1Upper, "rename", in_two))


def _made_then_opaque() -> AbstractContextManager[None]:
    """A directory is made, and then hides what is below."""
    mkdir = Wf1Upper.mkdir

    async def in_two(
        self: Wf1Upper, directory: DirectoryNode, name: str, *, opaque: bool
    ) -> DirectoryNode:
        made = await mkdir(self, directory, name, opaque=False)
        if opaque:
            await self.set_mark(made, Mark(opaque=True))
        return made

    return patched((Wf1Upper, "mkdir", in_two))


def _sync_without_flush() -> AbstractContextManager[None]:
    def flush(self: Engine, sequence: int = 0) -> None:
        self.writer.flushed(sequence)

    return patched((Engine, "flush", flush))


def _reset_by_steps() -> AbstractContextManager[None]:
    """The upper layer is emptied name by name."""
    reset = Wf1Volume.reset

    async def by_steps(self: Wf1Volume) -> None:
        await _emptied(Wf1Upper(self), self.root)
        await reset(self)

    return patched((Wf1Volume, "reset", by_steps))


async def _emptied(upper: Wf1Upper, directory: DirectoryNode) -> None:
    page = await upper.page(directory, "", PAGE_ENTRIES_MAX)
    for name, found in page.found:
        if found.entry is None:
            await upper.uncover(directory, name)
            continue
        if found.entry.stat.kind is NodeKind.DIRECTORY:
            await _emptied(upper, await directory.sub(name))
        await directory.remove(name)


# Every frame shows them; a wider search would take minutes.
_SEARCH: Final = Search("canary", (Mode.PREFIXES, Mode.DROPS), nested_max=0)


def _canary(
    name: str, without: Callable[[], AbstractContextManager[None]], *scenarios: str
) -> Canary:
    return Canary(name, without, [f"scenario-{word}" for word in scenarios], search=_SEARCH)


CANARIES: Final = (
    _canary("sync without flush", _sync_without_flush, "copy-then-more", "rename-back"),
    _canary("copy named before its data", _named_before_its_data, "copy-of-much"),
    _canary("copy left to the tables", _left_to_the_tables, "checkpoint-in-the-middle-of-a-copy"),
    _canary(
        "removed, then covered",
        _removed_then_covered,
        "one-of-three-names-removed",
        "upper-file-over-a-lower-one",
    ),
    _canary("moved, then covered", _moved_then_covered, "rename-back"),
    _canary("moved, then redirected", _moved_then_redirected, "rename-a-populated-directory"),
    _canary("made, then opaque", _made_then_opaque, "directory-emptied-and-removed"),
    _canary("reset name by name", _reset_by_steps, "reset-of-everything"),
)
