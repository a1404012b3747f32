"""What the tour goes through: a service with a volume for each purpose, on a thread of its own.

with running(folder) as service:
    service.unix, service.tls     # files with the URIs, one for each way to connect
    service.do(function)          # calls it where the service lives
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from capstore.backers.image import ImageVolume
from capstore.backers.memory import MemoryDirectory, MemoryVolume
from capstore.backers.node import Entry
from capstore.backers.spec import open_backer, open_volume
from capstore.images.builder import Facts
from capstore.images.devices_file import FileDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.schema.errors import Code, StorageError
from capstore.service.server import Service
from tests.service.inprocess import serving
from tests.service.on_a_thread import OnAThread

T = TypeVar("T")


class FailingVolume(MemoryVolume):
    """Looking up the name of an error code fails with it; any other name meets a bug."""

    @property
    def root(self) -> MemoryDirectory:
        return FailingDirectory(self, self.tree.root)


class FailingDirectory(MemoryDirectory):
    async def lookup(self, name: str) -> Entry:
        try:
            code = Code(name)
        except ValueError:
            raise RuntimeError(f"a bug in {__file__}") from None
        raise StorageError.of(code, f"as asked: {name}")


async def damaged(folder: Path) -> ImageVolume:
    """A volume whose one file has a byte that nobody wrote."""
    content = b"as it was written" * 100
    image = folder / "damaged.ro1"
    device = FileDevice.open(image, create=True)
    builder = Ro1Builder(device)
    builder.directory((), Facts())
    builder.begin_file(("damaged",), Facts(), len(content))
    builder.write(content)
    builder.end_file()
    builder.finish()
    device.close()
    data = image.read_bytes()
    assert data.count(content) == 1
    image.write_bytes(data.replace(content, content.upper()))
    volume = await open_volume(f"ro1:{image}")
    assert isinstance(volume, ImageVolume)
    return volume


class RunningService(OnAThread):
    """Made by `running`."""

    service: Service

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unix, self.tls = folder / "unix", folder / "tls"
        super().__init__("service of the tour")

    async def serve(self) -> None:
        (self.folder / "d").mkdir()
        volumes = {
            "m": await MemoryVolume.open(),
            "small": await MemoryVolume.open(total_bytes_max=64 << 10),
            "failing": await FailingVolume.open(),
            "d": await open_backer(f"dir:{self.folder / 'd'}"),
            "o": await open_backer(f"st1:{self.folder / 'o.st1'},create"),
            "archive": await damaged(self.folder),
        }
        async with serving(volumes, folder=self.folder, tls=True) as served:
            for path, uris in ((self.unix, served.unix), (self.tls, served.tls)):
                path.touch(mode=0o600)
                path.write_text("".join(f"{name}\t{uri}\n" for name, uri in uris.items()))
            self.service = served.service
            await self.until_stopped()
        del self.service

    def do(self, function: Callable[[], T]) -> T:
        async def called() -> T:
            return function()

        return self.run(called())


@contextmanager
def running(folder: Path) -> Iterator[RunningService]:
    service = RunningService(folder)
    try:
        yield service
    finally:
        service.stop()
