"""Clients that hold a token and are rude: vanishing, never reading, asking for too much at once."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import capnp
import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, OpenFlags
from capstore.schema import wire
from capstore.schema.errors import Busy
from capstore.schema.limits import LIMITS, MESSAGE_CAPABILITIES_MAX, UNSENT_BYTES_MAX
from capstore.service import questions as questions_module
from capstore.service import session as session_module
from capstore.service.client import connect, open_connection
from capstore.service.remote import Directory
from tests.service.inprocess import Served, serving
from tests.service.raw_rpc import bootstrap, call, finish, restore
from tests.service.stranger import asking, looked_after, raw, still_serves, until, until_closed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving({"m": await MemoryVolume.open()}, tls=True) as served:
        yield served


async def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_a_client_that_vanishes_frees_what_it_held(served: Served) -> None:
    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"x" * 100_000)
    used_before = (await served.service.volume("m").usage()).used_bytes
    await asyncio.sleep(0.05)
    before = await descriptors()
    for _ in range(10):
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            files = [await root.open("f") for _ in range(10)]
            late = [asyncio.ensure_future(file.read(0, 1000)) for file in files]
            orphan = await root.create("orphan")
            await orphan.write(0, b"y" * 100_000)
            await root.remove("orphan")
            for task in late:
                task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    del files, late, orphan, root
    async with asyncio.timeout(5):
        while served.service.sessions:
            await asyncio.sleep(0.01)
    assert await descriptors() <= before
    async with asyncio.timeout(5):
        while (await served.service.volume("m").usage()).used_bytes != used_before:
            gc.collect()
            await asyncio.sleep(0.01)


class DeafTransport:
    """Passes everything on to an asyncio transport, but never reads."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def resume_reading(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@asynccontextmanager
async def deaf_client(path: str) -> AsyncIterator[Any]:
    """The gate of a service, for a client that sends and never reads."""
    streams = []

    def connected(stream: capnp.AsyncIoStream) -> None:
        protocol.transport = DeafTransport(protocol.transport)
        streams.append(stream)

    protocol = capnp.AsyncIoStream._connect(connected)
    await asyncio.get_running_loop().create_unix_connection(lambda: protocol, path)
    # Before Python 3.11.4 a transport that is paused as it is made reads all the same (gh-103607).
    protocol.transport._transport.resume_reading()
    protocol.transport._transport.pause_reading()
    rpc = capnp.TwoPartyClient(streams[0])
    try:
        yield rpc.bootstrap().cast_as(wire.Gate)
    finally:
        transport = protocol.transport
        rpc.close()
        transport.abort()


async def test_a_client_that_never_reads_is_bounded_and_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "STALL_SECONDS_MAX", 0.2)
    async with connect(served.unix["m"]) as root:
        await root.write_file("big", b"x" * 2**20)
    async with deaf_client(str(served.unix["m"].socket)) as gate:
        root = gate.restore(served.unix["m"].token).capability.cast_as(wire.Directory)
        file = root.open("big", 0).file
        calls = [file.read(0, 2**20) for _ in range(200)]
        await asyncio.sleep(0.5)
        session = served.service.sessions[-1]
        assert session.unsent_bytes <= UNSENT_BYTES_MAX + 2**20
        assert session.calls_in_flight >= 32, "the calls wait, they were not answered"
        await still_serves(served)
        transport = session.transport
        assert transport is not None
        began = time.monotonic()
        async with asyncio.timeout(5):
            while not transport.look():
                await asyncio.sleep(0.01)
            assert time.monotonic() - began >= 0.2
            while session.calls_in_flight:
                await asyncio.sleep(0.01)
        await still_serves(served)
        del calls, file, root


async def test_a_flood_of_small_calls_without_reading_is_bounded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "UNSENT_BYTES_MAX", 2**18)
    async with deaf_client(str(served.unix["m"].socket)) as gate:
        calls = [gate.restore(served.unix["m"].token)]
        for _ in range(30):
            calls += [gate.info() for _ in range(100)]
            await asyncio.sleep(0.01)
        session = served.service.sessions[-1]
        assert session.full
        # What RPC had read ahead when reading stopped comes on top: some hundred calls, each of
        # which is answered with the table of limits.
        answer_bytes = 64 * len(LIMITS)
        assert session.unsent_bytes <= 2**18 + 250 * answer_bytes
        await still_serves(served)
        del calls


class Leaky(DirectoryNode):
    """A directory with a bug in every method: its message holds a path and a secret."""

    async def _bug(self, *args: object, **more: object) -> Any:
        raise RuntimeError("/etc/shadow secret-in-message")

    lookup = list = open = create = mkdir = sub = remove = rename = _bug
    symlink = link = set_attributes = usage = stat = sync = snapshot = _bug


class LeakyVolume(MemoryVolume):
    @property
    def root(self) -> DirectoryNode:
        return Leaky()  # type: ignore[abstract]


async def test_a_bug_is_an_opaque_internal_and_the_log_knows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    volume = await MemoryVolume.open()
    volume.__class__ = LeakyVolume
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        for call in (
            root.raw.lookup("x"),
            root.raw.list(b"", 0),
            root.raw.open("x", 0),
            root.raw.mkdir("x"),
            root.raw.stat(),
            root.raw.usage(),
        ):
            response = await call
            assert str(response.error.code) == "internal"
            text = str(response)
            assert "shadow" not in text
            assert "Traceback" not in text
            assert ".py" not in text
    assert "secret-in-message" in caplog.text
    assert "Traceback" in caplog.text


async def test_bad_arguments_are_results_not_exceptions(served: Served) -> None:
    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"1234")
        directory = root.raw
        for request, code in (
            (asking(directory, "open", name=b"\xff"), "invalidName"),
            (asking(directory, "open", name="a/b"), "invalidName"),
            (asking(directory, "open", name="a\0b"), "invalidName"),
            (asking(directory, "open", name=".."), "invalidName"),
            (asking(directory, "open", name="x" * 256), "invalidName"),
            (asking(directory, "open", name="f", flags=16), "invalidArgument"),
            (asking(directory, "open", name="f", flags=2), "invalidArgument"),
            (asking(directory, "list", cursor=b"\xff"), "invalidArgument"),
            (asking(directory, "symlink", name="l", target=""), "invalidArgument"),
            (asking(directory, "symlink", name="l", target="x" * 4096), "invalidArgument"),
            (asking(directory, "rename", name="f", newName="g"), "invalidArgument"),
            (asking(directory, "link", name="f", newName="g"), "invalidArgument"),
            (asking(directory, "save", label="x" * 201), "invalidArgument"),
            (asking(directory, "save", label="\x1b[31m"), "invalidArgument"),
            (asking(directory, "watch"), "invalidArgument"),
        ):
            response = await request.send()
            assert response._has("error"), (request, code)
            assert str(response.error.code) == code, request
        opened = directory.open("f", int(OpenFlags.WRITE)).file
        for request, code in (
            (asking(opened, "write", offset=0, data=b"x" * (2**20 + 1)), "tooLarge"),
            (asking(opened, "append", data=b"x" * (2**20 + 1)), "tooLarge"),
        ):
            response = await request.send()
            assert str(response.error.code) == code
        response = await asking(opened, "write", offset=2**64 - 1, data=b"x").send()
        assert str(response.error.code) in ("tooLarge", "invalidArgument", "noSpace")
        response = await asking(opened, "read", offset=2**64 - 1, length=2**32 - 1).send()
        assert not response._has("error")
        assert response.data == b""
        assert response.eof
        request = asking(directory, "attenuate")
        request.init("policy").fieldsKnown = 1000
        assert str((await request.send()).error.code) == "unsupported"
        request = asking(directory, "attenuate")
        request.init("policy").expiresAt = -1
        assert str((await request.send()).error.code) == "invalidArgument"


async def test_a_target_of_the_clients_own_is_refused(served: Served) -> None:
    class Fake(wire.Directory.Server):  # type: ignore[misc]
        async def ticket_context(self, context: Any) -> None:
            context.results.ticket = b"x" * 32

    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"")
        request = asking(root.raw, "rename", name="f", newName="g")
        request.target = Fake()
        assert str((await request.send()).error.code) == "invalidArgument"


async def test_a_target_that_never_answers_does_not_hang(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "TICKET_SECONDS_MAX", 0.1)

    class Silent(wire.Directory.Server):  # type: ignore[misc]
        async def ticket_context(self, context: Any) -> None:
            await asyncio.sleep(3600)

    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"")
        request = asking(root.raw, "rename", name="f", newName="g")
        request.target = Silent()
        async with asyncio.timeout(5):
            assert str((await request.send()).error.code) == "invalidArgument"


async def test_calls_that_wait_for_the_peer_do_not_keep_its_answers_out(served: Served) -> None:
    """More moves than calls are shared between clients, each to a directory of another connection:
    the service asks this client for each ticket, and hears of it behind all of the calls."""
    count = 200
    async with connect(served.unix["m"]) as root, connect(served.unix["m"]) as other:
        assert isinstance(root, Directory)
        assert isinstance(other, Directory)
        await root.write_file("f", b"")
        await other.stat()
        requests = []
        for number in range(count):
            request = asking(root.raw, "link", name="f", newName=str(number))
            request.target = other.raw
            requests.append(request.send())
        async with asyncio.timeout(8):
            for request in requests:
                assert not (await request)._has("error")
        assert served.service.sessions[0]._turns.window < count


async def test_a_ticket_works_once(served: Served) -> None:
    class Replaying(wire.Directory.Server):  # type: ignore[misc]
        def __init__(self, ticket: bytes) -> None:
            self.ticket = ticket

        async def ticket_context(self, context: Any) -> None:
            context.results.ticket = self.ticket

    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"")
        ticket = (await root.raw.ticket()).ticket
        codes = []
        for new_name in ("g", "h"):
            request = asking(root.raw, "rename", name="f", newName=new_name)
            request.target = Replaying(ticket)
            response = await request.send()
            codes.append(str(response.error.code) if response._has("error") else "done")
        assert codes == ["done", "invalidArgument"]


async def test_the_count_of_unsent_bytes_does_not_drift(served: Served) -> None:
    async with connect(served.unix["m"]) as root:
        file = await root.write_file("f", b"x" * 300_000)
        session = served.service.sessions[-1]
        for _ in range(300):
            await root.stat()
            await root.list()
            await file.read(0, 300_000)
        assert session.unsent_bytes < 4096
        for round_ in range(50):
            reads = [asyncio.ensure_future(file.read(0, 300_000)) for _ in range(8)]
            for _ in range(round_ % 7):
                await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
        assert session.transport is not None
        async with asyncio.timeout(5):
            while session.unsent_bytes:
                await asyncio.sleep(0.05)
                session.transport.look()
        assert await file.read(0, 5) == b"xxxxx"
        assert session.calls_in_flight == 0


async def test_a_connection_holds_so_many_capabilities(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CAPABILITIES_MAX", 10)
    async with connect(served.unix["m"]) as root:
        await root.write_file("f", b"")
        held: list[Any] = [await root.open("f") for _ in range(9)]
        with pytest.raises(Busy, match="drop some"):
            await root.open("f")
        with pytest.raises(Busy):
            await root.read_only()
        await still_serves(served)
        held.clear()
        async with asyncio.timeout(5):
            while served.service.sessions[0].capabilities > 1:
                await root.stat()
        await root.open("f")


async def test_calls_in_flight_hold_so_many_bytes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CALL_BYTES_MAX", 2**21)
    volume = served.service.volume("m")
    async with connect(served.unix["m"]) as root:
        file = await root.create("f")
        gate = asyncio.Event()
        write = type(await volume.root.open("f", OpenFlags.WRITE)).write
        most = 0

        async def slow(self: Any, offset: int, data: Any) -> None:
            nonlocal most
            most = max(most, served.service.sessions[0].call_bytes)
            await gate.wait()
            await write(self, offset, data)

        monkeypatch.setattr(type(await volume.root.open("f")), "write", slow)
        writes = [file.start_write(i * 2**18, b"x" * 2**18) for i in range(60)]
        await asyncio.sleep(0.3)
        assert served.service.sessions[0].full
        # One read of the socket may bring the beginning of a message more.
        assert most <= 2**21 + 2**19
        gate.set()
        for each in writes:
            await each.answer()
        assert (await file.stat()).size == 60 * 2**18


# Who has no token, and who has one and is rude ----------------------------------------------------


async def test_a_slow_reader_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes a little now and then."""
    monkeypatch.setattr(session_module, "STALL_SECONDS_MAX", 0.3)
    async with connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        await root.write_file("big", b"x" * 2**20)
    endpoint = socket.socket(socket.AF_UNIX)
    endpoint.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(endpoint, str(served.unix["m"].socket))
    sent = bootstrap() + restore(served.unix["m"].token)
    opening = wire.Error.new_message(message="big")
    sent += call(wire.Directory, 0, opening, question=2, of=1, field=0)
    for number in range(12):
        reading = call(wire.File, 0, _read_params(2**20), question=3 + number, of=2, field=0)
        sent += reading
    await loop.sock_sendall(endpoint, sent)
    await until(lambda: any(session.unsent_bytes > 2**20 for session in served.service.sessions))
    taken = 0
    async with asyncio.timeout(10):
        while served.service.sessions:
            with suppress(ConnectionError):
                taken += len(await loop.sock_recv(endpoint, 1000))
            await asyncio.sleep(0.02)
            looked_after(served)
    assert taken > 2000
    endpoint.close()
    await still_serves(served)


def _read_params(length: int) -> Any:
    """What ``File.read`` takes: an offset and a length, as the words of another struct."""
    return wire.Usage.new_message(totalBytes=0, usedBytes=length)


@pytest.mark.parametrize("capabilities", [16, 17])
async def test_a_call_brings_so_many_capabilities(served: Served, capabilities: int) -> None:
    reader, writer = await raw(served)
    nothing = wire.Error.new_message()
    writer.write(bootstrap() + call(wire.Gate, 1, nothing, capabilities=capabilities))
    if capabilities > MESSAGE_CAPABILITIES_MAX:
        assert b"protocolVersion" not in await until_closed(reader)
        assert not served.service.sessions
    else:
        async with asyncio.timeout(5):
            got = b""
            while b"capstore" not in got:
                data = await reader.read(65536)
                assert data
                got += data
    writer.close()
    await still_serves(served)


async def test_questions_are_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_module, "QUESTIONS_MAX", 50)
    reader, writer = await raw(served)
    writer.write(bootstrap() + restore(served.unix["m"].token))
    nothing = wire.Error.new_message()
    for number in range(100):
        asked = call(wire.Directory, 9, nothing, question=2 + number, of=1, field=0)
        writer.write(asked + finish(2 + number))
    await until(lambda: any(not each.is_stranger for each in served.service.sessions))
    (session,) = served.service.sessions
    await until(lambda: not session.is_asking and session.unfinished_questions == 2)
    for number in range(100):
        writer.write(call(wire.Directory, 9, nothing, question=200 + number, of=1, field=0))
    await until(lambda: session.unfinished_questions > 50)
    writer.write(call(wire.Directory, 9, nothing, question=300, of=1, field=0))
    await until_closed(reader)
    writer.close()
    await still_serves(served)


async def test_calls_that_wait_for_others_count(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls on what another call is to give wait in RPC, where nobody sees them."""
    monkeypatch.setattr(session_module, "CALL_BYTES_MAX", 2**21)
    volume = served.service.volume("m")
    gate = asyncio.Event()
    make = type(volume.root).create

    async def slow(self: Any, name: str, **how: Any) -> Any:
        await gate.wait()
        return await make(self, name, **how)

    async with connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        with monkeypatch.context() as patching:
            patching.setattr(type(volume.root), "create", slow)
            file = asking(root.raw, "create", name="f").send().file
            writes = [file.write(i * 2**18, b"x" * 2**18) for i in range(40)]
            await asyncio.sleep(0.3)
            (session,) = served.service.sessions
            assert session.calls_in_flight == 1
            assert session.full
            assert session.asked_bytes <= 2**21 + 2**19
            gate.set()
            for each in writes:
                assert not (await each)._has("error")
        assert (await root.lookup("f")).stat.size == 40 * 2**18


async def test_what_was_sent_before_the_end_is_answered_or_dropped(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(bootstrap() + restore(served.unix["m"].token) + bootstrap(7)[:20])
    writer.write_eof()
    await until_closed(reader)
    writer.close()
    await until(lambda: not served.service.sessions)
    await still_serves(served)


async def test_malformed_parameters_are_an_answer_and_no_traceback(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await raw(served)
    writer.write(bootstrap() + restore(served.unix["m"].token))
    text = wire.Error.new_message(message="where a policy should be")
    writer.write(call(wire.Directory, 10, text, question=2, of=1, field=0))
    got = b""
    async with asyncio.timeout(5):
        while b"malformed" not in got:
            data = await reader.read(65536)
            assert data
            got += data
    assert b"Traceback" not in got
    assert b"layout" not in got
    assert "Traceback" not in caplog.text
    writer.close()
    await still_serves(served)
