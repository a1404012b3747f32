"""Copying, moving and removing within one tree.

Invariants:

* Nothing is lost when source and target are the same, or one inside the other, by whatever names:
  what is the same is left alone, a directory is not moved into itself, and a copy leaves out the
  directory that it is made in.
* Symbolic links in a tree are copied, moved and removed as links; no removal follows one.
* A move is a rename of what is moved, so times, identity and links stay; only where the service
  cannot rename between two volumes is it a copy and a removal.
* At most `FILES_AT_ONCE` files are under way together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from capstore.backers.node import Attributes, Entry, Expect, NodeKind, OpenFlags, RenameMode, Stat
from capstore.schema.errors import (
    AlreadyExists,
    CrossVolume,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    Unsupported,
)
from capstore.schema.limits import TRANSFER_BYTES_MAX, WINDOW_REQUESTS
from capstore.service.links import Path, Place, resolve, together
from capstore.service.pyfs_tree import Found, Tree, all_entries
from capstore.service.remote import REPLACE, Directory, File
from capstore.service.transfer import Writer, read_chunks

T = TypeVar("T")

FILES_AT_ONCE = WINDOW_REQUESTS


# Files -------------------------------------------------------------------------------------------


async def move_file(tree: Tree, source: Path, target: Path, mode: RenameMode) -> None:
    """Renames what `source` names, a link as a link, or copies and removes it where a rename cannot
    be.  Neither is the root.  Raises as `DirectoryNode.rename`.
    """
    tree.changes.count += 1
    try:
        await _rename(tree.root, source, target, mode)
    except CrossVolume:
        stat = (await tree.find(source)).stat
        overwrite = mode is RenameMode.REPLACE
        await copy(tree, source, target, stat, overwrite=overwrite, keep_time=True)
        await tree.remove(source, Expect.NOT_DIRECTORY)
    finally:
        tree.changes.count += 1


async def _rename(root: Directory, source: Path, target: Path, mode: RenameMode) -> None:
    try:
        await _send_rename(root, source, target, mode)
    except NotDirectory:
        real_source = await resolve(root, source, follow_last=False)
        real_target = await resolve(root, target, follow_last=False)
        if (real_source.path, real_target.path) == (source, target):
            raise
        await _send_rename(root, real_source.path, real_target.path, mode)


async def _send_rename(root: Directory, source: Path, target: Path, mode: RenameMode) -> None:
    parent, target_parent = root.pipelined(source[:-1]), root.pipelined(target[:-1])
    await parent.rename(source[-1], target_parent, target[-1], mode)


@dataclass(frozen=True, slots=True)
class Ends:
    """What a copy begins with: its source, and whether its target is there, and is the source."""

    source: Found
    target_exists: bool
    same: bool


async def look_at(tree: Tree, source: Path, target: Path) -> Ends:
    """Both ends of a copy, followed.  Raises `NotFound` for the source alone."""
    found, other = await asyncio.gather(tree.find(source), _find_if_any(tree, target))
    same = other is not None and await _is_same(tree, source, found, target, other)
    return Ends(found, other is not None, same)


async def _find_if_any(tree: Tree, path: Path) -> Found | None:
    with suppress(NotFound, NotDirectory):
        return await tree.find(path)
    return None


async def _is_same(tree: Tree, source: Path, found: Found, target: Path, other: Found) -> bool:
    """Whether both paths lead to one file.

    Node ids are of one volume, and a tree may be made of several: so equal stats of one file under
    one name only count if the paths are really one.
    """
    if other.stat != found.stat:
        return False
    if found.stat.link_count > 1:
        return True
    return (await tree.place(source)).path == (await tree.place(target)).path


async def copy(
    tree: Tree, source: Path, target: Path, stat: Stat, *, overwrite: bool, keep_time: bool
) -> None:
    """Copies the content of a file that `look_at` found not to be the target, and has `stat`.

    Raises `AlreadyExists` if it is not to `overwrite`, and as writing does.
    """
    flags = REPLACE if overwrite else OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE
    data, rest = await tree.start_reading(source)
    if rest is None:
        file = await tree.write(target, data, flags)
    else:
        file, writer = await tree.start_writing(target, flags)
        while data:
            await writer.write(data)
            data = bytes(await rest.read(writer.offset, TRANSFER_BYTES_MAX))
        await writer.finish()
        tree.changes.count += 1
    await _set_like(file, stat, keep_time=keep_time)


async def _set_like(file: File, stat: Stat, *, keep_time: bool) -> None:
    """Makes a copy executable like its original, and as old if wanted and known."""
    change = Attributes(
        executable=True if stat.executable else None,
        modified=stat.modified if keep_time and stat.modified else None,
    )
    if change != Attributes():
        with suppress(Unsupported):
            await file.set_attributes(change)


# Directories -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DirectoryEnds:
    """What copying or moving a directory begins with: how its target stands to its source."""

    target_exists: bool
    target_is_below: bool


async def look_at_directories(tree: Tree, source: Path, target: Path) -> DirectoryEnds:
    """Both ends, followed.  Raises `NotFound` and `NotDirectory` for the source alone."""
    from_path = (await _directory_place(tree, source)).path
    try:
        to_place = await tree.place(target)
    except (NotFound, NotDirectory):
        return DirectoryEnds(target_exists=False, target_is_below=False)
    below = is_inside(to_place.path, from_path) and to_place.path != from_path
    return DirectoryEnds(target_exists=to_place.kind is not None, target_is_below=below)


async def _directory_place(tree: Tree, path: Path, *, follow_last: bool = True) -> Place:
    place = await resolve(tree.root, path, follow_last=follow_last)
    if place.kind is None:
        raise NotFound("no directory of this name")
    if place.kind is not NodeKind.DIRECTORY:
        raise NotDirectory("this is no directory")
    return place


def is_inside(path: Path, other: Path) -> bool:
    """Whether `path` is `other` or below it."""
    return path[: len(other)] == other


async def copy_directory(
    tree: Tree, source_path: Path, target_path: Path, *, keep_time: bool
) -> None:
    """Copies what is in one directory into another, which is made if it is missing."""
    source, target = await tree.place(source_path), await tree.place(target_path)
    if source.path == target.path:
        return
    fresh = await _make_target(target)
    skipped = target.path[len(source.path) :] if is_inside(target.path, source.path) else None
    try:
        await _copy_entries(
            source.directory, target.directory, fresh=fresh, skipped=skipped, keep_time=keep_time
        )
    finally:
        tree.changes.count += 1


async def _make_target(target: Place) -> bool:
    """Makes the directory if it is missing; whether it did."""
    if target.kind is None:
        await target.parent.mkdir(target.name)
        return True
    if target.kind is not NodeKind.DIRECTORY:
        raise NotDirectory("the target is no directory")
    return False


async def _copy_entries(
    source: Directory, target: Directory, *, fresh: bool, skipped: Path | None, keep_time: bool
) -> None:
    """Copies all that is below `source` but for the path `skipped`; `fresh` if nothing is there.

    Directories are opened when it is their turn: as many are held as the tree is deep.
    """
    inner = await _copy_files(source, target, fresh=fresh, keep_time=keep_time)
    todo: list[tuple[Directory, Directory, Path]] = [(source, target, (name,)) for name in inner]
    while todo:
        from_parent, to_parent, path = todo.pop()
        if path == skipped:
            continue
        fresh = await _make_or_use(to_parent, path[-1])
        from_directory = from_parent.pipelined(path[-1:])
        to_directory = to_parent.pipelined(path[-1:])
        inner = await _copy_files(from_directory, to_directory, fresh=fresh, keep_time=keep_time)
        todo += [(from_directory, to_directory, (*path, name)) for name in inner]


async def _copy_files(
    source: Directory, target: Directory, *, fresh: bool, keep_time: bool
) -> list[str]:
    """Copies what is no directory; returns the names of directories."""
    entries = await all_entries(source)
    others = [entry for entry in entries if entry.stat.kind is not NodeKind.DIRECTORY]
    for batch in _batches(others):
        await together(
            [_copy_entry(source, one, target, fresh=fresh, keep_time=keep_time) for one in batch]
        )
    return [entry.name for entry in entries if entry.stat.kind is NodeKind.DIRECTORY]


async def _make_or_use(directory: Directory, name: str) -> bool:
    """Makes a directory unless there is one; whether it did.  Raises `NotDirectory`."""
    try:
        await directory.mkdir(name)
    except AlreadyExists:
        await directory.sub(name)
        return False
    return True


async def _copy_entry(
    source: Directory, entry: Entry, target: Directory, *, fresh: bool, keep_time: bool
) -> None:
    """Copies what is no directory.  A link in its place is replaced, not followed."""
    name = entry.name
    if not fresh:
        with suppress(NotFound):
            there = await target.lookup(name)
            if there.stat == entry.stat and entry.stat.link_count > 1:
                return
            if NodeKind.SYMLINK in (there.stat.kind, entry.stat.kind):
                await target.remove(name, Expect.NOT_DIRECTORY)
    if entry.stat.kind is NodeKind.SYMLINK:
        await target.symlink(name, entry.target or "")
        return
    data, eof, from_file = await source.read_file(name)
    to_file = await target.write_file(name, data)
    if not eof:
        writer = Writer(to_file, len(data))
        async for piece in read_chunks(from_file, len(data)):
            await writer.write(piece)
        await writer.finish()
    await _set_like(to_file, entry.stat, keep_time=keep_time)


async def move_directory(tree: Tree, source_path: Path, target_path: Path) -> None:
    """Moves what is in one directory into another, and the directory itself if that is missing.

    A target that is there stays the directory it is, for those who hold it; what is moved replaces
    what has its name, and directories are merged.  Raises `InvalidArgument` for a directory into
    itself.
    """
    source, target = await tree.place(source_path), await tree.place(target_path)
    if source.path == target.path:
        return
    if is_inside(target.path, source.path):
        raise InvalidArgument("a directory does not move into itself")
    tree.changes.count += 1
    if target.kind is None:
        await _move_entry(source.parent, source.name, target.parent, target.name, new=True)
    elif target.kind is not NodeKind.DIRECTORY:
        raise NotDirectory("the target is no directory")
    else:
        await _merge(source.directory, target.directory)
        # What stands in a source inside of its target may have been moved there.
        with suppress(*([NotEmpty] if is_inside(source.path, target.path) else [])):
            await source.parent.remove(source.name, Expect.DIRECTORY)


async def _merge(source: Directory, target: Directory) -> None:
    """Moves all that is in `source` into `target`; `source` is empty then."""
    todo = [(source, target, name, False) for name in await _move_entries(source, target)]
    while todo:
        from_parent, to_parent, name, emptied = todo.pop()
        if emptied:
            await from_parent.remove(name, Expect.DIRECTORY)
            continue
        todo.append((from_parent, to_parent, name, True))
        from_directory, to_directory = from_parent.pipelined((name,)), to_parent.pipelined((name,))
        inner = await _move_entries(from_directory, to_directory)
        todo += [(from_directory, to_directory, one, False) for one in inner]


async def _move_entries(source: Directory, target: Directory) -> list[str]:
    """Moves entries; returns the names of directories to be merged with what is there."""
    unmoved: list[str] = []
    # Listed before anything is moved, so that nothing is met twice.
    for entry in await all_entries(source):
        try:
            await _move_entry(source, entry.name, target, entry.name)
        except NotEmpty:
            unmoved.append(entry.name)
    return unmoved


async def _move_entry(
    source: Directory, name: str, target: Directory, new_name: str, *, new: bool = False
) -> None:
    """Renames an entry, or copies and removes it where a rename cannot be.

    Raises `NotEmpty` for a directory in the place of another one with entries.
    """
    mode = RenameMode.NO_REPLACE if new else RenameMode.REPLACE
    try:
        await source.rename(name, target, new_name, mode)
    except CrossVolume:
        await _copy_and_remove(source, name, target, new_name)


async def _copy_and_remove(source: Directory, name: str, target: Directory, new_name: str) -> None:
    entry = await source.lookup(name)
    if entry.stat.kind is NodeKind.DIRECTORY:
        fresh = await _make_or_use(target, new_name)
        from_directory, to_directory = source.pipelined((name,)), target.pipelined((new_name,))
        await _copy_entries(from_directory, to_directory, fresh=fresh, skipped=None, keep_time=True)
        await remove_entries(from_directory)
        await source.remove(name, Expect.DIRECTORY)
        return
    if name != new_name:
        raise IsDirectory("only a directory is moved to another name here")
    await _copy_entry(source, entry, target, fresh=False, keep_time=True)
    await source.remove(name, Expect.NOT_DIRECTORY)


async def remove_tree(tree: Tree, path: Path, *, itself: bool = True) -> None:
    """Removes a directory with all below it; if it is the root, or not `itself`, what is below."""
    tree.changes.count += 1
    if not path:
        await remove_entries(tree.root)
        return
    place = await _directory_place(tree, path, follow_last=not itself)
    await remove_entries(place.directory)
    if itself:
        await place.parent.remove(place.name, Expect.DIRECTORY)
    tree.changes.count += 1


async def remove_entries(directory: Directory) -> None:
    """Removes all that is below `directory`; what somebody else removes meanwhile is no error."""
    todo = [(directory, name, False) for name in await _remove_files(directory)]
    while todo:
        parent, name, emptied = todo.pop()
        if emptied:
            await _remove(parent, name, Expect.DIRECTORY)
            continue
        todo.append((parent, name, True))
        here = parent.pipelined((name,))
        todo += [(here, inner, False) for inner in await _remove_files(here)]


async def _remove_files(directory: Directory) -> list[str]:
    """Removes what is no directory; returns the names of directories."""
    try:
        entries = await all_entries(directory)
    except NotFound:
        return []
    others = [entry.name for entry in entries if entry.stat.kind is not NodeKind.DIRECTORY]
    for batch in _batches(others):
        await together([_remove(directory, name, Expect.NOT_DIRECTORY) for name in batch])
    return [entry.name for entry in entries if entry.stat.kind is NodeKind.DIRECTORY]


async def _remove(directory: Directory, name: str, expect: Expect) -> None:
    with suppress(NotFound):
        await directory.remove(name, expect)


def _batches(items: Sequence[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, FILES_AT_ONCE)):
        yield batch
