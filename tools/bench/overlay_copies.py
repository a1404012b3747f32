"""Copy-up beside a plain copy between the same backers, and renaming a lower directory.

Invariants: a turn has volumes of its own and counts for what its contestant does, flushed in the
end; what it prepares and cleans up counts for nothing.  The plain copy is what anybody would write:
a piece of a MiB is read, then written, and so on.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.node import DirectoryNode, FileNode, OpenFlags, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.schema.limits import MIB
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.overlay_site import (
    FILES,
    LARGE,
    LOWER,
    UPPER,
    Item,
    Site,
    fill,
    name_of,
    opened,
    small_files,
    spec_of,
)
from capstore.tools.bench.wf1_taken import Batch, Taken

COPY = "copy"

_DIRECTORIES_RENAMED = 8
_RENAMED = "renamed"


class Pair(NamedTuple):
    """A volume that an overlay copies from, and an empty one that it copies to."""

    lower: Volume
    upper: Volume


# Both, with a lower layer of these items, for a turn in this directory.
Between = Callable[[Site, list[Item], Path], AbstractAsyncContextManager[Pair]]
# What a contestant does in its turn.
Turn = Callable[[Site, Path], Coroutine[Any, Any, Taken]]


def batches(site: Site, turns: Mapping[str, Turn]) -> Mapping[str, Batch]:
    """Those of contestants, each with a loop of its own."""

    def batch(turn: Turn) -> Batch:
        return lambda rng, scratch: asyncio.run(turn(site, scratch))

    return {name: batch(turn) for name, turn in turns.items()}


async def _seconds(work: Awaitable[object]) -> float:
    """How long `work` takes on a disk that has nothing left to write of anybody else."""
    gc.collect()
    os.sync()
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


# Where from and where to -------------------------------------------------------------------------


@asynccontextmanager
async def archive_to_image(site: Site, items: list[Item], folder: Path) -> AsyncIterator[Pair]:
    """From a tar archive to a CAPOSWF1 image."""
    lower = spec_of("tar", site.archive(_key(items), items))
    upper = spec_of("wf1", folder / "upper.wf1", ",create")
    async with opened(lower) as source, opened(upper) as target:
        yield Pair(source, target)


@asynccontextmanager
async def memory_to_memory(site: Site, items: list[Item], folder: Path) -> AsyncIterator[Pair]:
    """From memory to memory."""
    room = 2 * sum(item.size + MIB for item in items)
    spec = f"memory:,max-bytes={room},max-file-bytes={room}"
    async with opened(spec) as source, opened(spec) as target:
        await fill(source.root, items, site.block)
        yield Pair(source, target)


@asynccontextmanager
async def directory_to_directory(
    site: Site, items: list[Item], folder: Path
) -> AsyncIterator[Pair]:
    """From a directory of the host to another."""
    lower = await site.directory(_key(items), items)
    (folder / "upper").mkdir()
    specs = spec_of("dir", lower, ",ro"), spec_of("dir", folder / "upper")
    async with opened(specs[0]) as source, opened(specs[1]) as target:
        yield Pair(source, target)


def _key(items: list[Item]) -> str:
    """What the site knows a layer by."""
    return f"copied-{len(items)}-{items[0].size}"


async def _over(pair: Pair) -> OverlayVolume:
    """The overlay of both, which who has opened them closes."""
    return await OverlayVolume.over(await open_upper(pair.upper), [open_layer(pair.lower)])


# A long file -------------------------------------------------------------------------------------


def copying_large(between: Between) -> Mapping[str, Turn]:
    """A long file comes up when its first byte is written, or is copied so."""
    return {
        SUBJECT: lambda site, folder: _large(between, _copy_up, site, folder),
        COPY: lambda site, folder: _large(between, _plain_copy, site, folder),
    }


async def _large(
    between: Between,
    copy: Callable[[Pair, str], Awaitable[None]],
    site: Site,
    folder: Path,
) -> Taken:
    size = site.parameters.overlay_copied_bytes
    async with between(site, [Item(LARGE, size)], folder) as pair:
        seconds = await _seconds(copy(pair, LARGE))
        copied = await pair.upper.root.lookup(LARGE)
        return Taken(checked(between.__name__, copied.stat.size, size), seconds)


async def _copy_up(pair: Pair, name: str) -> None:
    volume = await _over(pair)
    file = await volume.root.open(name, OpenFlags.WRITE)
    await file.write(0, b"\0")
    await file.close()
    await volume.sync()


async def _plain_copy(pair: Pair, name: str) -> None:
    source, target = await pair.lower.root.open(name), await pair.upper.root.create(name)
    await _copied(source, target)
    await target.write(0, b"\0")
    await target.close()
    await pair.upper.sync()


async def _copied(source: FileNode, target: FileNode) -> None:
    size = await source.size()
    for offset in range(0, size, MIB):
        await target.write(offset, await source.read(offset, MIB))


# Many files --------------------------------------------------------------------------------------


def _many(site: Site) -> list[Item]:
    parameters = site.parameters
    return small_files(LOWER, parameters.overlay_renamed_files, parameters.small_bytes)


async def _copy_all(source: DirectoryNode, target: DirectoryNode, count: int) -> None:
    """Copies small files by a piece each."""
    for index in range(count):
        name = name_of(LOWER, index)
        file, copy = await source.open(name), await target.create(name)
        await copy.write(0, await file.read(0, MIB))
        await file.close()
        await copy.close()


async def _copy_files(pair: Pair, count: int) -> None:
    await _copy_all(await pair.lower.root.sub(FILES), await pair.upper.root.mkdir(FILES), count)
    await pair.upper.sync()


def copying_small(between: Between) -> Mapping[str, Turn]:
    """Small files come up one by one as they are written, or are copied."""
    return {
        SUBJECT: lambda site, folder: _files(between, _copy_up_files, site, folder),
        COPY: lambda site, folder: _files(between, _copy_files, site, folder),
    }


def renaming_by_copying(between: Between) -> Mapping[str, Turn]:
    """A lower directory is renamed where all in it has to be copied, beside the copying alone."""
    return {
        SUBJECT: lambda site, folder: _files(between, _rename, site, folder),
        COPY: lambda site, folder: _files(between, _copy_files, site, folder),
    }


async def _files(
    between: Between,
    work: Callable[[Pair, int], Awaitable[None]],
    site: Site,
    folder: Path,
) -> Taken:
    items = _many(site)
    async with between(site, items, folder) as pair:
        seconds = await _seconds(work(pair, len(items)))
    return Taken(len(items), seconds)


async def _copy_up_files(pair: Pair, count: int) -> None:
    volume = await _over(pair)
    directory = await volume.root.sub(FILES)
    for index in range(count):
        file = await directory.open(name_of(LOWER, index), OpenFlags.WRITE)
        await file.write(0, b"\0")
        await file.close()
    await volume.sync()


async def _rename(pair: Pair, count: int) -> None:
    volume = await _over(pair)
    await volume.root.rename(FILES, volume.root, _RENAMED)
    await volume.sync()


# A directory that stays below --------------------------------------------------------------------


async def _redirects(site: Site, folder: Path) -> Taken:
    """Renames a lower directory of many files, in one overlay after the other."""
    items = _many(site)
    seconds = 0.0
    async with opened(spec_of("tar", site.archive(_key(items), items))) as lower:
        for number in range(_DIRECTORIES_RENAMED):
            spec = spec_of("wf1", folder / f"{number}.wf1", ",create")
            async with opened(spec) as upper:
                volume = await _over(Pair(lower, upper))
                seconds += await _renamed(volume)
                renamed = await volume.root.sub(_RENAMED)
                found = await renamed.lookup(name_of(LOWER, len(items) - 1))
                checked(SUBJECT, found.stat.size, items[-1].size)
    return Taken(_DIRECTORIES_RENAMED, seconds)


async def _own_renames(site: Site, folder: Path) -> Taken:
    """Renames a directory of as many files that is an image's own."""
    items = _many(site)
    seconds = 0.0
    for number in range(_DIRECTORIES_RENAMED):
        path = folder / f"{number}.wf1"
        shutil.copyfile(await site.image(_key(items), items), path)
        async with opened(spec_of("wf1", path)) as volume:
            seconds += await _renamed(volume)
        path.unlink()
    return Taken(_DIRECTORIES_RENAMED, seconds)


async def _renamed(volume: Volume) -> float:
    began = time.perf_counter()
    await volume.root.rename(FILES, volume.root, _RENAMED)
    return time.perf_counter() - began


RENAMING_BY_REDIRECT: Mapping[str, Turn] = {SUBJECT: _redirects, UPPER: _own_renames}
