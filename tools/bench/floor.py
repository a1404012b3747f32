"""The floor: a pycapnp server that answers from memory and checks nothing, and raw calls to it.

Invariants: no capstore code is in the way of a call; everything is in memory before the first one.
Calls have keyword arguments and methods take a context: the fastest that pycapnp offers, so that
the floor is one (positional arguments cost 10 microseconds a call more).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import capnp

from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.service.loop import kj_loop_running
from capstore.tools.bench.contestants import Contestant, each, new_directory, save, server_process
from capstore.tools.bench.corpus import LARGE, Corpus

_schema: Any = capnp.load(str(Path(__file__).resolve().parent / "floor.capnp"))


class _FileServer(_schema.File.Server):  # type: ignore[misc]
    def __init__(self, content: bytearray) -> None:
        self._content = content

    async def read_context(self, context: Any) -> None:
        params = context.params
        offset = params.offset
        context.results.data = memoryview(self._content)[offset : offset + params.length]

    async def write_context(self, context: Any) -> None:
        params = context.params
        offset, data = params.offset, params.data
        self._content[offset : offset + len(data)] = data


class _DirectoryServer(_schema.Directory.Server):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        self._directories: dict[str, _DirectoryServer] = {}
        self._files: dict[str, bytearray] = {}
        self._entries: list[tuple[str, bool, int, int]] = []
        for child in sorted(path.iterdir()):
            if child.is_dir():
                self._directories[child.name] = _DirectoryServer(child)
            else:
                self._files[child.name] = bytearray(child.read_bytes())
            stat = child.stat()
            self._entries.append((child.name, child.is_dir(), stat.st_size, stat.st_mtime_ns))

    async def open_context(self, context: Any) -> None:
        context.results.file = _FileServer(self._files[context.params.entry])

    async def sub_context(self, context: Any) -> None:
        context.results.directory = self._directories[context.params.entry]

    async def names_context(self, context: Any) -> None:
        page = self._page(context.params)
        builder = context.results.init("names", len(page))
        for index, entry in enumerate(page):
            builder[index] = entry[0]

    async def entries_context(self, context: Any) -> None:
        page = self._page(context.params)
        builders = context.results.init("entries", len(page))
        for index, (name, directory, size, modified) in enumerate(page):
            builder = builders[index]
            builder.name = name
            builder.directory = directory
            builder.size = size
            builder.modified = modified

    def _page(self, params: Any) -> list[tuple[str, bool, int, int]]:
        start = params.start
        return self._entries[start : start + params.limit]


@asynccontextmanager
async def serve(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Serves the directory ``root`` on the unix socket ``socket``."""
    root = _DirectoryServer(Path(config["root"]))

    async def serve_connection(stream: capnp.AsyncIoStream) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=root).on_disconnect()

    async with capnp.kj_loop():
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: capnp.AsyncIoStream._connect(serve_connection), config["socket"]
        )
        try:
            yield {}
        finally:
            server.close()


class Floor(Contestant):
    """Raw calls to the bare server."""

    name = "floor"

    def __init__(self, corpus: Corpus, root: Any, large: Any) -> None:
        self._corpus = corpus
        self._small = root.sub(entry="small").directory
        self._many = root.sub(entry="many").directory
        self._tree = root.sub(entry="tree").directory
        self._large = large

    async def open_and_read(self, name: str, length: int) -> int:
        response = await self._small.open(entry=name).file.read(offset=0, length=length)
        return len(response.data)

    async def read_open(self, offset: int, length: int) -> int:
        return len((await self._large.read(offset=offset, length=length)).data)

    async def read_large(self, block: int, in_flight: int) -> int:
        size = self._corpus.parameters.large_bytes
        promises: deque[Any] = deque()
        got = ask = 0
        while got < size:
            while ask < size and len(promises) < in_flight:
                promises.append(self._large.read(offset=ask, length=block))
                ask += block
            got += len((await promises.popleft()).data)
        return got

    async def write_large(self, data: bytes, block: int, in_flight: int) -> int:
        view = memoryview(data)
        promises: deque[Any] = deque()
        for start in range(0, len(data), block):
            if len(promises) >= in_flight:
                await promises.popleft()
            promises.append(self._large.write(offset=start, data=view[start : start + block]))
        while promises:
            await promises.popleft()
        return len(data)

    async def list_names(self) -> int:
        names: list[str] = []
        while True:
            page = (await self._many.names(start=len(names), limit=PAGE_ENTRIES_MAX)).names
            names.extend(page)
            if len(page) < PAGE_ENTRIES_MAX:
                return len(names)

    async def list_stats(self) -> int:
        entries: list[tuple[str, bool, int, int]] = []
        while True:
            page = (await self._many.entries(start=len(entries), limit=PAGE_ENTRIES_MAX)).entries
            entries.extend((e.name, e.directory, e.size, e.modified) for e in page)
            if len(page) < PAGE_ENTRIES_MAX:
                return len(entries)

    async def get_tree(self, target: Path) -> None:
        new_directory(target)
        files = list(self._corpus.tree())
        directories = {}
        for name in sorted({directory for directory, _ in files}):
            new_directory(target / name)
            directories[name] = self._tree.sub(entry=name).directory

        async def get(file: tuple[str, str]) -> None:
            directory, name = file
            opened = directories[directory].open(entry=name)
            response = await opened.file.read(offset=0, length=TRANSFER_BYTES_MAX)
            save(target / directory / name, response.data)

        await each(files, get, self._corpus.parameters.calls_in_flight)


@asynccontextmanager
async def contestant(corpus: Corpus, folder: Path) -> AsyncIterator[Floor]:
    """The floor over `corpus`; its socket is in `folder`."""
    socket = str(folder / "floor.socket")
    async with (
        kj_loop_running(),
        server_process("floor", {"root": str(corpus.root), "socket": socket}),
    ):
        stream = await capnp.AsyncIoStream.create_unix_connection(socket)
        rpc = capnp.TwoPartyClient(stream)
        try:
            root = rpc.bootstrap().cast_as(_schema.Directory)
            large = (await root.open(entry=LARGE)).file
            yield Floor(corpus, root, large)
        finally:
            rpc.close()
            stream.close()
