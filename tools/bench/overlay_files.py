"""Changes of small files through an overlay beside those of the layer that takes them.

Invariants: both are CAPOSWF1 images with the same files; below the overlay's there is an archive
with others.  Nothing is flushed: that would be the same for both.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from capstore.backers.node import DirectoryNode, OpenFlags
from capstore.schema.errors import NotFound
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.overlay_site import (
    FILES,
    LOWER,
    UPPER,
    Site,
    name_of,
    opened,
    overlay,
    put,
    small_files,
    spec_of,
)
from capstore.tools.bench.slices import Slices

Enter = Callable[[Site], AbstractAsyncContextManager[Slices[str]]]
# Does something with a file of this name, of that content.
Change = Callable[[DirectoryNode, str, bytes], Awaitable[None]]

_SLICE_FILES = 32


async def create(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Makes it."""
    await put(directory, name, len(data), data)


async def write(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Opens it and writes it anew."""
    file = await directory.open(name, OpenFlags.WRITE)
    await file.write(0, data)
    await file.close()


async def remove(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Removes it."""
    await directory.remove(name)


async def rename(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Renames it."""
    await directory.rename(name, directory, _renamed(name))


def _renamed(name: str) -> str:
    return f"renamed-{name}"


async def absent(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Has it be nowhere."""
    with suppress(NotFound):
        await directory.remove(name)


async def present(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Has it be there, and not renamed."""
    await absent(directory, _renamed(name), data)
    await absent(directory, name, data)
    await create(directory, name, data)


def changing(change: Change, before: Change) -> Enter:
    """Does `change` with files that are the upper layer's, when `before` was done, and counts
    them."""

    @asynccontextmanager
    async def enter(site: Site) -> AsyncIterator[Slices[str]]:
        count, size = site.parameters.small_files, site.parameters.small_bytes
        names = [name_of(UPPER, index) for index in range(count)]
        lower = spec_of("tar", site.archive("changed", small_files(LOWER, count, size)))
        with tempfile.TemporaryDirectory(dir=site.folder) as folder:
            uppers = [await _upper(site, Path(folder) / name) for name in ("over", "alone")]
            async with overlay(uppers[0], lower) as over, opened(uppers[1]) as alone:
                directories = {
                    SUBJECT: await over.root.sub(FILES),
                    UPPER: await alone.root.sub(FILES),
                }
                data = site.block[:size]
                yield Slices(
                    lambda rng: rng.sample(names, min(count, _SLICE_FILES)),
                    {name: _each(change, one, data) for name, one in directories.items()},
                    {name: _each(before, one, data) for name, one in directories.items()},
                )

    return enter


async def _upper(site: Site, path: Path) -> str:
    """A new image with small files."""
    parameters = site.parameters
    items = small_files(UPPER, parameters.small_files, parameters.small_bytes)
    shutil.copyfile(await site.image("changed", items), path)
    return spec_of("wf1", path)


def _each(
    change: Change, directory: DirectoryNode, data: bytes
) -> Callable[[Sequence[str]], Awaitable[int]]:
    async def work(names: Sequence[str]) -> int:
        for name in names:
            await change(directory, name, data)
        return len(names)

    return work
