"""Upper layers for the suite that each of them passes (`tests/backers/test_uppers.py`).

A factory gives an empty layer, and, where what it holds outlives the volume, a way to close it and
open it again.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.layer import Upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.named import NamedUpper
from capstore.backers.node import Volume
from capstore.backers.pyfs import PyfsVolume
from tests.contract.wf1 import FOLDER


@dataclass
class UpperHarness:
    """A layer under test, and what it is able to do."""

    upper: Upper
    # Opens the volume again, and gives the layer it is then.
    reopen: Callable[[], Awaitable[Upper]] | None = None
    # Nobody else makes or removes nodes in the filesystem that counts them.
    counts_nodes: bool = True
    # What is silent leaves a directory's version, too.
    keeps_versions: bool = True
    created_times: bool = True
    links: bool = True
    # It exchanges names, and renames directories.
    exchanges: bool = True
    # Files are executable or not, and times of files and directories are what they should be.
    attributes: bool = True

    async def again(self) -> Upper:
        """The layer, opened again if it persists."""
        if self.reopen is not None:
            self.upper = await self.reopen()
        return self.upper


UpperFactory = Callable[[], AbstractAsyncContextManager[UpperHarness]]
UPPERS: dict[str, UpperFactory] = {}

Opened = Callable[[Path], Awaitable[Volume]]
Layered = Callable[[Volume], Awaitable[Upper]]


def persistent(
    opened: Opened, layered: Layered, *, keeps_versions: bool = True, on_host: bool = False
) -> UpperFactory:
    """Layers over what `opened` opens in a folder."""

    @asynccontextmanager
    async def factory() -> AsyncIterator[UpperHarness]:
        with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as folder:

            async def reopen() -> Upper:
                await harness.upper.volume.close()
                return await layered(await opened(Path(folder)))

            harness = UpperHarness(
                await layered(await opened(Path(folder))),
                reopen,
                keeps_versions=keeps_versions,
                created_times=not on_host,
                counts_nodes=not on_host,
            )
            yield harness
            await harness.upper.volume.close()

    return factory


async def _dir(folder: Path) -> Volume:
    return await HostVolume.open(str(folder))


async def _memory(folder: Path) -> Volume:
    return await MemoryVolume.open(file=str(folder / "saved"))


async def _wf1(folder: Path) -> Volume:
    from capstore.backers.wf1 import Wf1Volume

    return await Wf1Volume.open(folder / "image", create=True)


async def _memory_layer(volume: Volume) -> Upper:
    from capstore.backers.memory_layer import MemoryUpper

    assert isinstance(volume, MemoryVolume)
    return MemoryUpper(volume)


async def _wf1_layer(volume: Volume) -> Upper:
    from capstore.backers.wf1 import Wf1Volume
    from capstore.backers.wf1_layer import Wf1Upper

    assert isinstance(volume, Wf1Volume)
    return Wf1Upper(volume)


@asynccontextmanager
async def _names_over_pyfs() -> AsyncIterator[UpperHarness]:
    """Where there are no links, no exchange and no renaming of directories."""
    volume = await PyfsVolume.open("mem://")
    yield UpperHarness(
        await NamedUpper.open(volume),
        keeps_versions=False,
        created_times=False,
        counts_nodes=False,
        links=False,
        exchanges=False,
        attributes=False,
    )
    await volume.close()


UPPERS["names over memory"] = persistent(_memory, NamedUpper.open, keeps_versions=False)
UPPERS["names over dir"] = persistent(_dir, NamedUpper.open, keeps_versions=False, on_host=True)
UPPERS["names over pyfs"] = _names_over_pyfs
UPPERS["memory"] = persistent(_memory, _memory_layer)
UPPERS["wf1"] = persistent(_wf1, _wf1_layer)
