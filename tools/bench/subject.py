"""capstore itself: the real service, and the client that ``capstore.connect`` gives.

Invariants: the client goes through the public adapters (`capstore.service.remote`, `transfer`) and
what the command does, and nothing else, so what is measured is what a user gets.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from capstore.backers.node import Entry, OpenFlags
from capstore.schema.limits import TRANSFER_BYTES_MAX
from capstore.service.client import connect
from capstore.service.remote import Directory, File
from capstore.service.server import start
from capstore.service.state import StateDirectory
from capstore.service.transfer import Writer, read_chunks
from capstore.service.uri import CapabilityURI
from capstore.tools import transfers
from capstore.tools.bench.contestants import (
    BenchError,
    Contestant,
    each,
    server_process,
)
from capstore.tools.bench.corpus import LARGE, Corpus


@asynccontextmanager
async def serve(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Serves the volume of the specification ``volume`` on the unix socket ``socket``."""
    # Backers are the server's business: the client's process does without them.
    from capstore.backers.spec import open_volume

    volume = await open_volume(config["volume"])
    state = StateDirectory.open(Path(config["state"]))
    async with start({"bench": volume}, state) as service:
        await service.listen_unix(Path(config["socket"]))
        ((_, uri),) = service.owner_uris()
        yield {"uri": str(uri)}


class Subject(Contestant):
    """The client of the service."""

    name = "capstore"

    def __init__(
        self,
        *,
        small: Directory,
        many: Directory,
        tree_uri: CapabilityURI,
        large: File,
    ) -> None:
        self._small = small
        self._many = many
        self._tree_uri = tree_uri
        self._large = large

    async def open_and_read(self, name: str, length: int) -> int:
        data, _, _ = await self._small.read_file(name)
        return len(data)

    async def read_open(self, offset: int, length: int) -> int:
        return len(await self._large.read(offset, length))

    async def read_large(self, block: int, in_flight: int) -> int:
        chunks = read_chunks(self._large, window=in_flight, block=block)
        return sum([len(chunk) async for chunk in chunks])

    async def write_large(self, data: bytes, block: int, in_flight: int) -> int:
        writer = Writer(self._large, window=in_flight, block=block)
        await writer.write(data)
        await writer.finish()
        return writer.offset

    async def list_names(self) -> int:
        return len([entry.name async for entry in _entries(self._many)])

    async def list_stats(self) -> int:
        return len([entry async for entry in _entries(self._many)])

    async def get_tree(self, target: Path) -> None:
        # What `capstore get -r` does, a connection of its own included.
        await transfers.get(self._tree_uri, str(target), recursive=True, quiet=True)


async def _entries(directory: Directory) -> AsyncIterator[Entry]:
    after = ""
    while True:
        page = await directory.list(after)
        for entry in page.entries:
            yield entry
        if not page.more:
            return
        after = page.entries[-1].name


def completed(volume: str, corpus: Corpus) -> str:
    """The specification `volume`, with what the bench adds to the short forms."""
    if volume == "dir:":
        return "dir:" + re.sub(r"([,\\])", r"\\\1", str(corpus.root))
    if volume == "memory:":
        size = corpus.parameters.total_bytes
        return f"memory:,max-bytes={size},max-file-bytes={size}"
    return volume


@asynccontextmanager
async def contestant(corpus: Corpus, folder: Path) -> AsyncIterator[Subject]:
    """The service over `corpus`; its socket and state are in `folder`.

    A volume that is not the corpus itself is filled with it, over the wire.
    """
    volume = corpus.parameters.volume
    config = {
        "volume": completed(volume, corpus),
        "state": str(folder / "state"),
        "socket": str(folder / "capstore.socket"),
    }
    async with server_process("capstore", config) as ready, connect(ready["uri"]) as root:
        if not isinstance(root, Directory):
            raise BenchError("the service gave no directory")
        if volume != "dir:":
            await _upload(corpus.root, root, corpus.parameters.calls_in_flight)
        yield Subject(
            small=await root.sub("small"),
            many=await root.sub("many"),
            tree_uri=CapabilityURI.parse(ready["uri"]).below(("tree",)),
            large=await root.open(LARGE, OpenFlags.WRITE),
        )


async def _upload(source: Path, target: Directory, in_flight: int) -> None:
    """Puts the content of the host directory `source` into the directory `target`."""
    directories, files = _children(source)
    for path in directories:
        await _upload(path, await target.mkdir(path.name), in_flight)

    async def put(path: Path) -> None:
        content = _content(path)
        file = await target.write_file(path.name, content[:TRANSFER_BYTES_MAX])
        if len(content) > TRANSFER_BYTES_MAX:
            writer = Writer(file, TRANSFER_BYTES_MAX)
            await writer.write(memoryview(content)[TRANSFER_BYTES_MAX:])
            await writer.finish()

    await each(files, put, in_flight)


def _children(path: Path) -> tuple[list[Path], list[Path]]:
    """The directories and the files in `path`."""
    children = sorted(path.iterdir())
    directories = [child for child in children if child.is_dir()]
    return directories, [child for child in children if not child.is_dir()]


def _content(path: Path) -> bytes:
    return path.read_bytes()
