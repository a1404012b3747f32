"""A service that lies to its clients, or goes away under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema import wire
from capstore.schema.errors import Corrupt, TransportError
from capstore.service.client import open_connection
from capstore.service.remote import Directory, File
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving({"m": await MemoryVolume.open()}, tls=True) as served:
        yield served


async def test_calls_after_the_service_went_raise_disconnected() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served:
        connection_context = open_connection(served.unix["m"])
        connection = await connection_context.__aenter__()
        root = await connection.root()
        await served.service.stop()
        async with asyncio.timeout(5):
            with pytest.raises(TransportError):
                await root.list()
        await connection_context.__aexit__(None, None, None)


class Lying(wire.Directory.Server):  # type: ignore[misc]
    """A service that answers with what no directory could hold."""

    def __init__(self, names: list[str], *, more: bool = False) -> None:
        self.names = names
        self.more = more

    async def list_context(self, context: Any) -> None:
        entries = context.results.init("entries", len(self.names))
        for index, name in enumerate(self.names):
            entries[index].name = name
        if self.more:
            context.results.cursor = b"on and on"


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (["../../etc/passwd"], False),
        (["/etc/passwd"], False),
        ([".."], False),
        ([""], False),
        (["a\0b"], False),
        (["b", "a"], False),
        (["a", "a"], False),
        ([], True),
    ],
)
async def test_a_lying_service_is_found_out(served: Served, names: list[str], more: bool) -> None:
    left = wire.Directory._new_client(Lying(names, more=more))
    with pytest.raises(Corrupt):
        await Directory(left).list()
    with pytest.raises(Corrupt):
        await Directory(wire.Directory._new_client(Lying(["a"], more=True))).list("a")


async def test_a_read_that_is_too_long_is_found_out(served: Served) -> None:
    class Generous(wire.File.Server):  # type: ignore[misc]
        async def read_context(self, context: Any) -> None:
            context.results.data = b"x" * (context.params.length + 1)

    file = File(wire.File._new_client(Generous()))
    with pytest.raises(Corrupt):
        await file.read_into(0, memoryview(bytearray(10)))
