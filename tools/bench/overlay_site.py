"""Where overlay cases are: the layers that they put on top of one another, each made once.

Invariants: what a case changes it has for itself, in a directory of its own; what is here does not
change once it was made.  The content of a file is the beginning of a block of random bytes, again
and again: nothing of it is zeros, which an overlay would not write.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from random import Random
from typing import Final, NamedTuple

from capstore.backers.node import DirectoryNode, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.spec import open_volume
from capstore.schema.limits import MIB
from capstore.tools.bench.parameters import Parameters

# The directory that small files are in, and the long file, of each layer that has them.
FILES: Final = "files"
LARGE: Final = "large"
LOWER, UPPER = "lower", "upper"


class Item(NamedTuple):
    """A file of a layer; in `FILES`, or beside it where it is a long one."""

    path: str
    size: int


def name_of(layer: str, index: int) -> str:
    """The name of one of a layer's small files; those of two layers come by turns in a listing."""
    return f"file-{index:06}-{layer}"


def large_of(layer: str) -> str:
    """The name of a layer's long file."""
    return f"{LARGE}-{layer}"


def small_files(layer: str, count: int, size: int) -> list[Item]:
    """Items of small files."""
    return [Item(f"{FILES}/{name_of(layer, index)}", size) for index in range(count)]


def spec_of(scheme: str, path: Path, options: str = "") -> str:
    """The specification of what is at `path`."""
    return f"{scheme}:" + re.sub(r"([,\\])", r"\\\1", str(path)) + options


def overlay_spec(*components: str) -> str:
    """The specification of an overlay, from the top to the bottom."""
    return "overlay:" + "+".join(component.replace("+", r"\+") for component in components)


@asynccontextmanager
async def opened(spec: str) -> AsyncIterator[Volume]:
    """A volume while it is used."""
    volume = await open_volume(spec)
    try:
        yield volume
    finally:
        await volume.close()


@asynccontextmanager
async def overlay(*components: str) -> AsyncIterator[OverlayVolume]:
    """An overlay while it is used."""
    async with opened(overlay_spec(*components)) as volume:
        assert isinstance(volume, OverlayVolume)  # noqa: S101 - as the scheme says
        yield volume


class _Content(io.RawIOBase):
    """A block again and again."""

    def __init__(self, block: bytes) -> None:
        self._block = block

    def read(self, size: int = -1) -> bytes:
        """`size` bytes from the beginning: where the one who reads has come to does not matter."""
        return (self._block * (size // len(self._block) + 1))[:size]


class Site:
    """A directory on the disk that is measured, and the layers there, each made when it is first
    asked for; `tell` hears what is being made."""

    def __init__(self, folder: Path, parameters: Parameters, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.parameters = parameters
        self.tell = tell
        self.block = Random(parameters.seed).randbytes(MIB)  # noqa: S311 - a workload
        self._made: set[Path] = set()

    def _path(self, name: str) -> tuple[Path, bool]:
        """Where a layer is, and whether it was made."""
        path = self.folder / name
        is_made = path in self._made
        if not is_made:
            self.tell(f"making {name}")
            self._made.add(path)
        return path, is_made

    def archive(self, name: str, items: Sequence[Item]) -> Path:
        """A tar archive of `items`, all of them in directories of their own."""
        path, is_made = self._path(f"{name}.tar")
        if not is_made:
            with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
                for item in items:
                    info = tarfile.TarInfo(item.path)
                    info.size = item.size
                    archive.addfile(info, _Content(self.block))
        return path

    async def image(self, name: str, items: Sequence[Item]) -> Path:
        """A CAPOSWF1 image with `items`, closed."""
        path, is_made = self._path(f"{name}.wf1")
        if not is_made:
            async with opened(spec_of("wf1", path, ",create")) as volume:
                await fill(volume.root, items, self.block)
        return path

    async def directory(self, name: str, items: Sequence[Item]) -> Path:
        """A directory of the host with `items`."""
        path, is_made = self._path(name)
        if not is_made:
            path.mkdir()
            async with opened(spec_of("dir", path)) as volume:
                await fill(volume.root, items, self.block)
        return path


async def fill(root: DirectoryNode, items: Sequence[Item], block: bytes) -> None:
    """Makes `items` in an empty directory, with what is above them."""
    directories = {".": root}
    for item in items:
        path = PurePosixPath(item.path)
        parent = str(path.parent)
        if parent not in directories:
            directories[parent] = await root.mkdir(parent)
        await put(directories[parent], path.name, item.size, block)


async def put(directory: DirectoryNode, name: str, size: int, block: bytes) -> None:
    """Makes a file of `size` bytes."""
    file = await directory.create(name)
    for offset in range(0, size, len(block)):
        await file.write(offset, memoryview(block)[: size - offset])
    await file.close()
