"""Nothing is left of a connection that has ended, however it ended."""

from __future__ import annotations

import asyncio
import gc
import logging
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.service import commons, loop
from capstore.service.client import connect
from capstore.service.inlet import Inlet
from capstore.service.remote import Directory
from capstore.service.session import Session
from capstore.service.tls import pinning_context
from capstore.service.uri import CapabilityURI
from capstore.tools.fuzz import wire_tls
from tests.service.inprocess import Served, serving
from tests.service.raw_rpc import bootstrap, restore, rpc

pytestmark = pytest.mark.anyio

SECONDS = 5.0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving({"m": await MemoryVolume.open()}, tls=True) as served:
        yield served


async def all_gone(served: Served) -> None:
    async with asyncio.timeout(SECONDS):
        while served.service.sessions:
            await asyncio.sleep(0.001)
    # What ends now is freed when the turn of the loop is over.
    await asyncio.sleep(0.01)


def abort() -> bytes:
    message = rpc.Message.new_message()
    message.init("abort").reason = "enough"
    return bytes(message.to_bytes())


# What a connection had -------------------------------------------------------------------------


async def works(served: Served, uri: CapabilityURI) -> None:
    async with connect(uri) as root:
        assert isinstance(root, Directory)
        await root.write_file("a", b"content")
        await root.list()


async def sends_garbage(served: Served, uri: CapabilityURI) -> None:
    if uri.socket is not None:
        reader, writer = await asyncio.open_unix_connection(uri.socket)
    else:
        context = pinning_context(uri.fingerprint or "")
        reader, writer = await asyncio.open_connection(uri.host, uri.port, ssl=context)
    writer.write(b"\xff" * 64)
    await reader.read()
    writer.transport.abort()


async def sends_nothing(served: Served, uri: CapabilityURI) -> None:
    if uri.socket is not None:
        _, writer = await asyncio.open_unix_connection(uri.socket)
    else:
        _, writer = await asyncio.open_connection(uri.host, uri.port)
    while not served.service.sessions:
        await asyncio.sleep(0)
    writer.transport.abort()


async def shakes_no_hands(served: Served, uri: CapabilityURI) -> None:
    reader, writer = await asyncio.open_connection(uri.host, uri.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.transport.abort()


@contextmanager
def without_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While inside, garbage in circles stays."""
    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "collect_if_due", lambda: None)
        # What is logged of a session is kept by pytest.
        patch.setattr(logging.getLogger("capstore.service"), "disabled", True)
        yield


def alive() -> int:
    """How many objects there are that a connection has one of, but for one: who looks after the
    connections holds the last one for a second."""
    found = [type(each) for each in gc.get_objects() if isinstance(each, (Inlet, SSLProtocol))]
    sessions = sum(isinstance(each, Session) for each in gc.get_objects())
    return len(found) + max(0, sessions - 1)


@pytest.mark.parametrize("way", ["unix", "tls"])
@pytest.mark.parametrize("ends", [works, sends_garbage, sends_nothing, shakes_no_hands])
async def test_it_is_freed_at_once(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    ends: Callable[[Served, CapabilityURI], Awaitable[None]],
) -> None:
    uri = (served.unix if way == "unix" else served.tls)["m"]
    if ends is shakes_no_hands and way == "unix":
        uri = served.tls["m"]
    with without_collector(monkeypatch):
        before = alive()
        for _ in range(5):
            await ends(served, uri)
        await all_gone(served)
        assert alive() <= before


# What was to come of it ------------------------------------------------------------------------


@contextmanager
def nobody_has_a_turn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(commons, "_FRESH_BUDGET", 0)
        yield


async def test_who_ended_while_waiting_for_a_turn_waits_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = served.service._turns
    uri = served.tls["m"]
    with nobody_has_a_turn(monkeypatch):
        for _ in range(5):
            context = pinning_context(uri.fingerprint or "")
            _, writer = await asyncio.open_connection(uri.host, uri.port, ssl=context)
            writer.write(bootstrap())
            await writer.drain()
            writer.close()
        async with asyncio.timeout(SECONDS):
            while len(turns._fresh) < 5 or served.service.sessions:
                await asyncio.sleep(0.001)
    async with asyncio.timeout(SECONDS):
        while turns._fresh:
            await asyncio.sleep(0)


async def test_the_end_of_tls_is_seen_by_who_does_not_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio forgets a close behind an end that came while reading was paused."""
    uri = served.tls["m"]
    frames = [bootstrap(), restore(uri.token), abort()]
    with nobody_has_a_turn(monkeypatch):
        sending = asyncio.create_task(wire_tls.send(uri, frames, (), None))
        async with asyncio.timeout(SECONDS):
            while not any(
                each._eof_received for each in gc.get_objects() if isinstance(each, SSLProtocol)
            ):
                await asyncio.sleep(0.01)
    async with asyncio.timeout(SECONDS):
        await sending
    await all_gone(served)
