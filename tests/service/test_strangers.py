"""Strangers on the socket: garbage, half messages, wrong tokens, and how long they may stay."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema import wire
from capstore.schema.errors import Denied, Disconnected
from capstore.schema.limits import MESSAGE_BYTES_MAX, STRANGER_BYTES_MAX, STRANGER_MESSAGES_MAX
from capstore.service import admission as admission_module
from capstore.service import inlet as inlet_module
from capstore.service import session as session_module
from capstore.service.client import connect, open_connection
from capstore.service.remote import Directory, File
from capstore.service.uri import CapabilityURI
from tests.service.inprocess import Served, serving
from tests.service.raw_rpc import bootstrap, call, restore, rpc
from tests.service.stranger import looked_after, raw, still_serves, until, until_closed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving({"m": await MemoryVolume.open()}, tls=True) as served:
        yield served


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 64,
        b"\xff" * 64,
        struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF),
        struct.pack("<II", 0, 1) + b"\xff" * 8,
        # A segment table that claims a message over the limit.
        struct.pack("<II", 0, MESSAGE_BYTES_MAX // 8 + 1),
        struct.pack("<IIII", 2, 2**31, 2**31, 2**31),
    ],
    ids=["http", "zeros", "ones", "huge table", "bad pointer", "over the limit", "overflow"],
)
async def test_garbage_ends_the_connection_only(served: Served, garbage: bytes) -> None:
    reader, writer = await raw(served)
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(5):
        while await reader.read(65536):
            pass
    writer.close()
    await still_serves(served)


async def test_a_message_over_the_limit_is_refused_before_it_is_buffered(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(struct.pack("<II", 0, 2**27))  # 1 GiB is announced, none of it is sent
    async with asyncio.timeout(5):
        while await reader.read(65536):
            pass
    writer.close()
    await still_serves(served)


async def test_half_a_message_and_gone(served: Served) -> None:
    for _ in range(20):
        _, writer = await raw(served)
        writer.write(struct.pack("<II", 0, 100) + b"\0" * 50)
        await writer.drain()
        writer.transport.abort()
    await still_serves(served)
    async with asyncio.timeout(5):
        while served.service.sessions:
            await asyncio.sleep(0.01)


async def test_half_a_tls_handshake(served: Served) -> None:
    uri = served.tls["m"]
    _, writer = await asyncio.open_connection(uri.host, uri.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await writer.drain()
    await still_serves(served)
    writer.transport.abort()


async def test_another_key_is_refused_before_a_byte_of_rpc(served: Served) -> None:
    uri = served.tls["m"]
    wrong = CapabilityURI(uri.token, host=uri.host, port=uri.port, fingerprint="A" * 43)
    with pytest.raises(Disconnected, match="another key"):
        async with connect(wrong):
            pass
    await still_serves(served)


async def test_tls_below_1_3_is_refused(served: Served) -> None:
    uri = served.tls["m"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(uri.host, uri.port, ssl=context)


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "A" * 42, "A" * 100_000, "\0", "é" * 43])
async def test_a_wrong_token_is_denied_always_the_same(served: Served, token: str) -> None:
    async with open_connection(served.unix["m"]) as connection:
        with pytest.raises(Denied) as caught:
            await connection.restore(token)
        assert str(caught.value) == "denied: no such reference"


async def test_a_token_that_is_no_text_is_denied(served: Served) -> None:
    async with open_connection(served.unix["m"]) as connection:
        request = connection._gate.raw.restore_request()
        request.token = b"\xff\xfe"
        response = await request.send()
        assert str(response.error.code) == "denied"
        assert response.error.message == "no such reference"


async def test_calls_on_what_was_denied_answer_denied(served: Served) -> None:
    async with open_connection(served.unix["m"]) as connection:
        broken = connection._gate.raw.restore("nothing").capability
        with pytest.raises(Denied):
            await Directory(broken.cast_as(wire.Directory)).list()
        with pytest.raises(Denied):
            await File(broken.cast_as(wire.File)).read(0, 1)


async def test_the_socket_is_private(served: Served) -> None:
    path = Path(str(served.unix["m"].socket))
    assert path.stat().st_mode & 0o777 == 0o600
    assert (served.folder / "state").stat().st_mode & 0o777 == 0o700
    for secret in (served.folder / "state").iterdir():
        assert secret.stat().st_mode & 0o077 == 0, secret.name


# Who has no token, and who has one and is rude ----------------------------------------------------


async def test_a_stranger_asks_so_much_and_no_more(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(bootstrap())
    for number in range(2 * STRANGER_MESSAGES_MAX):
        writer.write(restore("A" * 43, question=number + 1))
    got = await until_closed(reader)
    assert 0 < got.count(b"no such reference") < STRANGER_MESSAGES_MAX
    writer.close()
    await still_serves(served)


async def test_a_stranger_sends_so_many_bytes_and_no_more(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(bootstrap())
    for number in range(20):
        writer.write(restore("A" * 20_000, question=number + 1))
    got = await until_closed(reader)
    assert 0 < got.count(b"no such reference") <= STRANGER_BYTES_MAX // 20_000
    writer.close()
    await still_serves(served)


async def test_questions_of_a_stranger_that_it_never_ends(served: Served) -> None:
    reader, writer = await raw(served)
    for number in range(2 * STRANGER_MESSAGES_MAX):
        writer.write(bootstrap(number))
    await until_closed(reader)
    writer.close()
    await still_serves(served)


async def test_who_shows_a_token_may_send_what_it_likes_behind_it(served: Served) -> None:
    """All of it at once, before the token was looked at."""
    reader, writer = await raw(served)
    writer.write(bootstrap() + restore(served.unix["m"].token))
    count = 4 * STRANGER_MESSAGES_MAX
    for number in range(count):
        stat = call(wire.Directory, 8, wire.Error.new_message(), question=2 + number, of=1, field=0)
        writer.write(stat)
    got = 0
    async with asyncio.timeout(20):
        while got < count * 100:
            data = await reader.read(65536)
            assert data, "cut off"
            got += len(data)
    assert not served.service.sessions[-1].is_stranger
    writer.close()


async def test_a_stranger_stays_so_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "STRANGER_SECONDS_MAX", 0.1)
    async with connect(served.unix["m"]) as root:
        silent, writer = await raw(served)
        asking, other = await raw(served)
        other.write(bootstrap())
        await until(lambda: len(served.service.sessions) == 3)
        await asyncio.sleep(0.15)
        looked_after(served)
        assert await until_closed(silent) == b""
        await until_closed(asking)
        assert isinstance(root, Directory)
        await root.stat()
        writer.close()
        other.close()


async def test_a_message_is_finished_in_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlet_module, "MESSAGE_SECONDS_MAX", 0.1)
    whole = restore("A" * 100_000)
    for cut in (4, 30, 20_000):
        reader, writer = await raw(served)
        writer.write(bootstrap() + whole[:cut])
        await until(lambda: served.service.sessions)
        async with asyncio.timeout(5):
            while served.service.sessions:
                writer.write(b"\0")  # slowly
                await asyncio.sleep(0.03)
                looked_after(served)
        await until_closed(reader)
        writer.close()
    await still_serves(served)


async def test_strangers_make_room_and_holders_do_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "STRANGERS_MAX", 4)
    async with connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        await root.stat()
        half = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(
                served.tls["m"].host, served.tls["m"].port
            )
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            half.append((reader, writer))
        others = [await raw(served) for _ in range(8)]
        await until(lambda: len(served.service.sessions) == 5)
        assert len(half + others) == 11
        await root.stat()
        async with connect(served.unix["m"]) as another:
            assert isinstance(another, Directory)
            await another.stat()
        for _, writer in half + others:
            writer.transport.abort()
    await until(lambda: not served.service.sessions)
    await still_serves(served)


async def test_levels_of_rpc_that_are_not_served_end_the_connection(served: Served) -> None:
    for kind in ("provide", "accept", "join"):
        message = rpc.Message.new_message()
        message.init(kind)
        reader, writer = await raw(served)
        writer.write(bootstrap() + bytes(message.to_bytes()))
        await until_closed(reader)
        writer.close()
    await still_serves(served)
