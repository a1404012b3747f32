"""What the service answers while strangers are at its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.service.inprocess import Served


async def still_serves(served: Served) -> None:
    async with asyncio.timeout(5), connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        await root.write_file("alive", b"yes")
        assert (await root.read_file("alive"))[0] == b"yes"


async def raw(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(served.unix["m"].socket)


def asking(capability: Any, method: str, **fields: Any) -> Any:
    """A request; pycapnp's own takes no parameter called `name` by keyword."""
    request = getattr(capability, f"{method}_request")()
    for field, value in fields.items():
        setattr(request, field, value)
    return request


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """What came before the service closed the connection."""
    got = b""
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                got += data
    return got


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def looked_after(served: Served) -> None:
    """What the service does every second."""
    for session in served.service.sessions:
        if session.transport is not None:
            session.transport.look()
