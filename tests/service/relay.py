"""A relay in front of a unix socket that delays what passes, to see how often a client waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from capstore.service.uri import CapabilityURI


@contextmanager
def delayed(uri: CapabilityURI, folder: Path, seconds: float) -> Iterator[CapabilityURI]:
    """The same capability by a way on which everything takes `seconds` in each direction."""
    path = folder / f"relay-{seconds}"
    loop = asyncio.new_event_loop()
    upstream = uri.socket or ""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                loop.call_later(seconds, writer.write, data)
        loop.call_later(seconds, writer.close)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(upstream)
        writers.extend((writer, up_writer))
        await asyncio.gather(carry(reader, up_writer), carry(up_reader, writer))

    async def serve(ready: threading.Event) -> None:
        async with await asyncio.start_unix_server(accept, path):
            ready.set()
            await stopping.wait()
        await asyncio.sleep(2 * seconds)
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await asyncio.sleep(2 * seconds)

    stopping, ready = asyncio.Event(), threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(ready)))
    thread.start()
    ready.wait()
    try:
        yield replace(uri, socket=str(path))
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
