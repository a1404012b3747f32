"""Reads through an overlay beside the same reads of the layer itself.

Invariants: the overlay is a CAPOSWF1 image over a tar archive, with small files of both in one
directory.  In process, the layer is the very volume that the overlay reads; over RPC, the overlay
and the layer alone have a server each.  What is read is in the page cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from capstore.backers.node import DirectoryNode, FileNode
from capstore.schema.limits import KIB, MIB
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.tools.bench.contestants import BenchError, checked, server_process
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.overlay_site import (
    FILES,
    LOWER,
    UPPER,
    Item,
    Site,
    large_of,
    name_of,
    overlay,
    overlay_spec,
    small_files,
    spec_of,
)
from capstore.tools.bench.slices import Slices

# What an overlay and its layer show, by the name of who takes part.
Roots = Mapping[str, DirectoryNode]
# The roots of an overlay and of one of its layers alone.
Reach = Callable[[Site, str], AbstractAsyncContextManager[Roots]]
Enter = Callable[[Site], AbstractAsyncContextManager[Slices[int]]]

READS = ((4 * KIB, "4k"), (64 * KIB, "64k"), (MIB, "1m"))
# So many reads are a slice, or so many bytes if they are longer.
_SLICE_READS = 64
_SLICE_BYTES = 8 * MIB


def _items(site: Site, layer: str) -> list[Item]:
    parameters = site.parameters
    small = small_files(layer, parameters.small_files, parameters.small_bytes)
    return [*small, Item(large_of(layer), parameters.large_bytes)]


async def _layers(site: Site) -> tuple[Path, Path]:
    """The image and the archive."""
    lower = site.archive("reads", _items(site, LOWER))
    return await site.image("reads", _items(site, UPPER)), lower


@asynccontextmanager
async def in_process(site: Site, layer: str) -> AsyncIterator[Roots]:
    """The overlay, and the volume of its layer that is called so."""
    upper, lower = await _layers(site)
    async with overlay(spec_of("wf1", upper), spec_of("tar", lower)) as volume:
        alone = volume.layers[0 if layer == UPPER else 1].volume
        yield {SUBJECT: volume.root, layer: alone.root}


@asynccontextmanager
async def over_rpc(site: Site, layer: str) -> AsyncIterator[Roots]:
    """The overlay, and its layer alone, as clients of two servers have them."""
    upper, lower = await _layers(site)
    copy = site.folder / "reads-alone.wf1"
    shutil.copyfile(upper, copy)
    both = overlay_spec(spec_of("wf1", upper), spec_of("tar", lower))
    alone = spec_of("wf1", copy) if layer == UPPER else spec_of("tar", lower)
    async with AsyncExitStack() as stack:
        yield {
            SUBJECT: await stack.enter_async_context(_served(site, both)),
            layer: await stack.enter_async_context(_served(site, alone)),
        }


@asynccontextmanager
async def _served(site: Site, spec: str) -> AsyncIterator[DirectoryNode]:
    """The root of a volume that a new process serves."""
    # The path of a socket is short, whatever the directory's that is measured.
    with tempfile.TemporaryDirectory(prefix="capstore-bench-") as folder:
        config = {"volume": spec, "state": f"{folder}/state"}
        config["socket"] = f"{folder}/socket"
        async with server_process(SUBJECT, config) as ready, connect(ready["uri"]) as root:
            if not isinstance(root, Directory):
                raise BenchError("the service gave no directory")
            yield root


# What is done ----------------------------------------------------------------------------------


def reading(reach: Reach, layer: str, size: int) -> Enter:
    """Reads of `size` bytes here and there in a long file of `layer`, which is open; counts
    them."""

    @asynccontextmanager
    async def enter(site: Site) -> AsyncIterator[Slices[int]]:
        places = site.parameters.large_bytes // size
        count = max(1, min(_SLICE_READS, _SLICE_BYTES // size))
        async with reach(site, layer) as roots:
            files = {name: await root.open(large_of(layer)) for name, root in roots.items()}
            for name, file in files.items():
                await _read_all(name, file, site.parameters.large_bytes)
            yield Slices(
                lambda rng: [size * at for at in rng.choices(range(places), k=count)],
                {name: _reads(name, file, size) for name, file in files.items()},
            )
            for file in files.values():
                await file.close()

    return enter


async def _read_all(name: str, file: FileNode, size: int) -> None:
    """Has a file in the page cache."""
    for offset in range(0, size, MIB):
        checked(name, len(await file.read(offset, MIB)), min(MIB, size - offset))


def _reads(name: str, file: FileNode, size: int) -> Callable[[Sequence[int]], Awaitable[int]]:
    async def work(offsets: Sequence[int]) -> int:
        for offset in offsets:
            data = await file.read(offset, size)
            if len(data) != size:
                checked(name, len(data), size)
        return len(offsets)

    return work


def opening(reach: Reach, layer: str) -> Enter:
    """Opens, reads and closes small files of `layer`; counts them."""

    @asynccontextmanager
    async def enter(site: Site) -> AsyncIterator[Slices[int]]:
        parameters = site.parameters
        async with reach(site, layer) as roots:
            directories = {name: await root.sub(FILES) for name, root in roots.items()}
            works = {
                name: _openings(name, directory, layer, parameters.small_bytes)
                for name, directory in directories.items()
            }
            files = range(parameters.small_files)
            for work in works.values():
                await work(files)
            yield Slices(lambda rng: rng.choices(files, k=_SLICE_READS), works)

    return enter


def _openings(
    name: str, directory: DirectoryNode, layer: str, size: int
) -> Callable[[Sequence[int]], Awaitable[int]]:
    read_whole = _read_remote_file if isinstance(directory, Directory) else _read_file

    async def work(indices: Sequence[int]) -> int:
        for index in indices:
            got = await read_whole(directory, name_of(layer, index), size)
            if got != size:
                checked(name, got, size)
        return len(indices)

    return work


async def _read_file(directory: DirectoryNode, name: str, size: int) -> int:
    file = await directory.open(name)
    data = await file.read(0, size)
    await file.close()
    return len(data)


async def _read_remote_file(directory: DirectoryNode, name: str, size: int) -> int:
    """As a client does it, in one round trip."""
    assert isinstance(directory, Directory)  # noqa: S101 - it is a client's
    data, _, file = await directory.read_file(name)
    await file.close()
    return len(data)
