"""The case about readers of a CAPOSWF1 volume while it is written to, checkpointed and cleaned.

Invariants: the reader and the writer are tasks of one event loop, as clients of one service are.
A pause is the time from one read's end to the next one's, with one turn of the loop in between, in
which anybody else may have the loop or the interpreter.  The reader alone is the floor.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from capstore.backers.node import FileNode, OpenFlags
from capstore.backers.wf1 import Wf1Volume
from capstore.images.devices import MemoryDevice
from capstore.images.wf1 import SEGMENTS_AT, SUPERBLOCK_LBAS, superblock_at
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB, MIB
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.wf1_images import Site
from capstore.tools.bench.wf1_taken import Batch, Taken, timed

ALONE: Final = "alone"

_FILE_BYTES: Final = 16 * KIB
_READ_BYTES: Final = 4 * KIB
_WRITES_PER_SYNC: Final = 64
_IMAGE: Final = "files.wf1"

# What goes on beside the reader, until it returns.
_Beside = Callable[[Wf1Volume, Random], Coroutine[Any, Any, None]]


@contextmanager
def reading_while_written(site: Site) -> Iterator[Batch]:
    """Reads while files are overwritten at random: many times what is live, so that it has to be
    cleaned; counts reads."""
    yield lambda rng, scratch: _taken(site.parameters, rng, scratch, _writer(site.parameters))


@contextmanager
def reading_alone(site: Site) -> Iterator[Batch]:
    """Reads for some seconds while nothing else is done; counts reads."""

    async def wait(volume: Wf1Volume, rng: Random) -> None:
        await asyncio.sleep(site.parameters.wf1_alone_seconds)

    yield lambda rng, scratch: _taken(site.parameters, rng, scratch, wait)


def _writer(parameters: Parameters) -> _Beside:
    async def write(volume: Wf1Volume, rng: Random) -> None:
        data = rng.randbytes(_FILE_BYTES)
        for count in range(parameters.wf1_pause_bytes // _FILE_BYTES):
            name = _name(rng.randrange(parameters.wf1_pause_files))
            file = await volume.root.open(name, OpenFlags.WRITE)
            await file.write(0, data)
            await file.close()
            if count % _WRITES_PER_SYNC == 0:
                await volume.sync()
        await volume.sync()

    return write


def _name(index: int) -> str:
    return f"file-{index:06}"


def _taken(parameters: Parameters, rng: Random, scratch: Path, beside: _Beside) -> Taken:
    path = scratch / _IMAGE
    pauses = array("d")
    with asyncio.Runner() as runner:
        volume, files = runner.run(_made(path, parameters, rng))
        before = _generation(path)
        reading = _read_beside(files, Random(rng.random()), beside(volume, rng), pauses)  # noqa: S311
        taken = timed(lambda: runner.run(reading))
        details = {
            "checkpoints": _generation(path) - before,
            "image_mib": path.stat().st_size / MIB,
        }
        del files
        runner.run(volume.close())
    ordered = sorted(1000 * pause for pause in pauses)
    for name, part in (("p50_ms", 500), ("p99_ms", 990), ("p999_ms", 999)):
        details[name] = ordered[part * len(ordered) // 1000]
    return Taken(taken.units, taken.seconds, {**details, "max_ms": ordered[-1]})


def _generation(path: Path) -> int:
    """That of the newest superblock; every checkpoint writes one."""
    with path.open("rb") as file:
        device = MemoryDevice(file.read(SEGMENTS_AT))
    found = []
    for lba in SUPERBLOCK_LBAS:
        # One may be missing, or half written.
        with suppress(Corrupt):
            found.append(superblock_at(device, lba).generation)
    return max(found)


async def _made(
    path: Path, parameters: Parameters, rng: Random
) -> tuple[Wf1Volume, list[FileNode]]:
    """A new volume, and its files."""
    volume = await Wf1Volume.open(path, create=True)
    files = []
    for index in range(parameters.wf1_pause_files):
        file = await volume.root.create(_name(index))
        await file.write(0, rng.randbytes(_FILE_BYTES))
        files.append(file)
    await volume.sync()
    return volume, files


async def _read_beside(
    files: Sequence[FileNode], rng: Random, beside: Coroutine[Any, Any, None], pauses: array[float]
) -> int:
    """Reads until `beside` is done; how often it did."""
    reader = asyncio.create_task(_read(files, rng, pauses))
    try:
        await beside
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
    return len(pauses)


async def _read(files: Sequence[FileNode], rng: Random, pauses: array[float]) -> None:
    view = memoryview(bytearray(_READ_BYTES))
    last = time.perf_counter()
    while True:
        await rng.choice(files).read_into(0, view)
        await asyncio.sleep(0)
        now = time.perf_counter()
        pauses.append(now - last)
        last = now
