"""Upper layers over volumes that hold names alone: marks are the names of OCI image layers.

Works on the node protocol, so a host directory, a PyFilesystem2 filesystem, a directory of a
service or another overlay can be what an overlay writes to.

Invariants:

* Each operation has one step that counts, in one call of the volume.  Before it come steps that
  change nothing for users: a whiteout beside what is still there, an opaque mark in a directory
  that has nothing below to show, notes of a node that has no name yet.  When it fails they are
  undone.  Behind it comes tidying, which may fail.
* An operation of several steps runs to its end, also when its caller is cancelled.
* Directories are not copied to other names: what moves is renamed by the volume.

What cannot be kept: redirects; that a name of more than `COVERED_BYTES_MAX` bytes is gone, which
is refused; the version of a directory in which something silent is done, and times that the volume
does not set.  Without hard links, names of one lower file become files of their own when it is
copied up (`Mark.below` is 0 then).  Where ids of nodes differ from one opening of the volume to
the next, so do those of copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from capstore.backers.layer import Mark, Upper
from capstore.backers.named_changes import NamedChanges, check_mark, whole
from capstore.backers.named_file import UnnamedFile
from capstore.backers.named_layer import COVERED_BYTES_MAX, OPAQUE, NamedLayer, peek, whiteout_of
from capstore.backers.named_notes import Notes, make, new_token, silently
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    FileNode,
    OpenFlags,
    Provenance,
    RenameMode,
    Stat,
    Volume,
)
from capstore.schema.errors import AlreadyExists, CrossVolume, StorageError, Unsupported

__all__ = ["COVERED_BYTES_MAX", "NamedLayer", "NamedUpper"]


class NamedUpper(NamedChanges, Upper):
    """A volume as the layer that takes all changes; made by `open`."""

    @classmethod
    async def open(cls, volume: Volume) -> NamedUpper:
        """The layer that `volume` is, with what an earlier opening left undone removed.

        Raises `Corrupt` when something else has the name of its notes, and what making them raises.
        """
        return cls(volume, await whole(Notes.open(volume)))

    @property
    def redirects(self) -> bool:
        return False

    # Looking -------------------------------------------------------------------------------------

    def _noted(self, stat: Stat) -> tuple[Stat, Mark]:
        return self._notes.about(stat)

    async def linked(self, origin: int) -> Stat | None:
        return await self._notes.linked(origin)

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        return await self._notes.open_linked(origin, flags)

    async def origins(self) -> Sequence[int]:
        return self._notes.origins()

    # Copying up, which is silent -----------------------------------------------------------------

    async def unnamed(self) -> FileNode:
        async def work() -> FileNode:
            await self._notes.sweep()
            token = new_token()
            file = UnnamedFile(self._notes, token, await self._notes.making.create(token))
            await self._is_new(file)
            return file

        return await whole(work())

    async def name_file(
        self, file: FileNode, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        self._check(name)
        if not isinstance(file, UnnamedFile) or file.notes is not self._notes:
            raise CrossVolume("a file of another layer")
        await whole(self._name_file(file, directory, name, like, mark))

    async def _name_file(
        self, file: UnnamedFile, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        token = file.token
        executable = (Attributes(executable=True),) if like.executable else ()
        for change in (*executable, *_times(like)):
            with suppress(Unsupported):
                await file.set_attributes(change)
        # Else a name could be durable before the content is, and hide what is below.
        await file.sync()
        await self._publish(token, await file.stat(), directory, name, mark)
        file.token = ""

    async def copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        self._check(name)
        check_mark(mark)
        return await whole(self._copy_directory(directory, name, like, mark))

    async def _copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        try:
            return await self._copy_aside(directory, name, like, mark)
        except Unsupported:
            # Not every filesystem renames directories.  Then it is incomplete for a moment.
            async with silently(directory):
                made = await directory.mkdir(name)
            await self._complete(made, like, mark)
            return made

    async def _copy_aside(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        token = new_token()
        made = await self._notes.making.mkdir(token)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._discarded, self._notes.making, token)
            await self._complete(made, like, mark)
            await self._publish(token, await made.stat(), directory, name, mark._replace(below=0))
            undo.pop_all()
        return made

    async def _complete(self, made: DirectoryNode, like: Stat, mark: Mark) -> None:
        """Gives a copy of a directory its times and marks."""
        if mark.opaque:
            await make(made, OPAQUE)
        for change in _times(like):
            with suppress(Unsupported):
                await made.set_attributes(change)
        await self._notes.note((await made.stat()).node_id, mark.origin)

    async def copy_symlink(
        self, directory: DirectoryNode, name: str, target: str, like: Stat, mark: Mark
    ) -> None:
        self._check(name)
        await whole(self._copy_symlink(directory, name, target, like, mark))

    async def _copy_symlink(
        self, directory: DirectoryNode, name: str, target: str, like: Stat, mark: Mark
    ) -> None:
        token, making = new_token(), self._notes.making
        await making.symlink(token, target)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._discarded, making, token)
            for change in _times(like):
                with suppress(Unsupported):
                    await making.set_attributes(change, token)
            stat = (await making.lookup(token)).stat
            await self._publish(token, stat, directory, name, mark)
            undo.pop_all()

    async def _publish(
        self, token: str, stat: Stat, directory: DirectoryNode, name: str, mark: Mark
    ) -> None:
        """Gives what was made in `making` its place, with what is to be noted of it."""
        notes = self._notes
        async with AsyncExitStack() as undo:
            await notes.note(stat.node_id, mark.origin)
            undo.push_async_callback(notes.forget, stat.node_id)
            if mark.below:
                await notes.link(token, stat.node_id, mark)
                undo.push_async_callback(self._unlinked, mark.origin)
            async with silently(directory):
                await _rename_to_nothing(notes.making, token, directory, name)
            undo.pop_all()
        notes.named(mark.origin)

    async def _unlinked(self, origin: int) -> None:
        with suppress(StorageError):
            await self._notes.unlink(origin)

    async def adopt(self, origin: int, directory: DirectoryNode, name: str) -> None:
        self._check(name)

        async def work() -> None:
            async with silently(directory):
                await self._notes.adopt(origin, directory, name)

        await whole(work())

    async def set_mark(self, directory: DirectoryNode, mark: Mark) -> None:
        """As `Upper.set_mark`; what a whiteout beside a directory makes opaque remains so."""
        check_mark(mark)

        async def work() -> None:
            async with silently(directory):
                if mark.opaque:
                    await make(directory, OPAQUE)
                else:
                    await self._notes.discard(directory, OPAQUE)
            await self._notes.note((await directory.stat()).node_id, mark.origin)

        await whole(work())

    async def uncover(self, directory: DirectoryNode, name: str) -> None:
        self._check(name)

        async def work() -> None:
            async with silently(directory):
                await self._notes.discard(directory, whiteout_of(name))

        await whole(work())


def _times(like: Stat) -> tuple[Attributes, ...]:
    """The times of `like`, those that are known."""
    if like.provenance is Provenance.UNKNOWN:
        return ()
    created = (Attributes(created=like.created),) if like.created else ()
    return (*created, Attributes(modified=like.modified))


async def _rename_to_nothing(
    source: DirectoryNode, name: str, target: DirectoryNode, new_name: str
) -> None:
    """Moves an entry to where nothing is.  Raises `AlreadyExists`."""
    try:
        await source.rename(name, target, new_name, RenameMode.NO_REPLACE)
    except Unsupported:
        # Not every filesystem has that.
        if await peek(target, new_name) is not None:
            raise AlreadyExists("the name is taken") from None
        await source.rename(name, target, new_name)
