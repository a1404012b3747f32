"""Another TLS key, and what becomes of URIs that pin the one before."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import Busy, Corrupt, Denied, Disconnected, InvalidArgument, TooLarge
from capstore.schema.limits import SERVICE_KEYS_OLD_MAX
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.service.state import StateDirectory
from capstore.service.tls import ServiceKey, ServiceKeys, key_name, pinning_context
from capstore.service.uri import CapabilityURI
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio

DAY = 24 * 3600 * 10**9


def rotate(folder: Path, keep_until: int = 0) -> ServiceKeys:
    state = StateDirectory.open(folder / "state")
    try:
        return state.rotate_service_key(keep_until)
    finally:
        state.close()


@asynccontextmanager
async def served_at(folder: Path) -> AsyncIterator[Served]:
    async with serving({"m": await MemoryVolume.open()}, folder=folder, tls=True) as served:
        yield served


async def works(uri: CapabilityURI) -> None:
    async with connect(uri) as root:
        assert isinstance(root, Directory)
        await root.list()


async def refused(uri: CapabilityURI) -> None:
    with pytest.raises(Disconnected, match="another key than the URI says"):
        await works(uri)


def here(uri: CapabilityURI, served: Served) -> CapabilityURI:
    """A URI of an earlier start, at the port of this one."""
    return replace(uri, port=served.tls["m"].port)


async def test_old_uris_work_until_a_date_and_new_ones_have_the_new_key(tmp_path: Path) -> None:
    async with served_at(tmp_path) as served:
        first = served.tls["m"]
        await works(first)
    rotate(tmp_path, time.time_ns() + DAY)
    async with served_at(tmp_path) as served:
        second = served.tls["m"]
        assert second.token == first.token
        assert second.fingerprint != first.fingerprint
        await works(second)
        await works(here(first, served))
        # Names of hosts stay what they are.
        await works(replace(here(first, served), host="localhost"))
        await refused(replace(second, fingerprint="A" * 43))
        with pytest.raises(Denied):
            await works(replace(here(first, served), token="A" * 43))
    # Once more: both keep their dates.
    rotate(tmp_path, time.time_ns() + 2 * DAY)
    async with served_at(tmp_path) as served:
        for uri in (first, second):
            await works(here(uri, served))
    # Without a date no old key is served, whatever was said before.
    assert rotate(tmp_path).old == ()
    async with served_at(tmp_path) as served:
        for uri in (first, second):
            await refused(here(uri, served))
        await works(served.tls["m"])
        # The token is another matter: it is as good as before.
        await works(replace(served.tls["m"], token=first.token))


async def test_a_date_that_passes_while_the_service_runs_ends_the_old_key() -> None:
    now = 10 * DAY
    keys = ServiceKeys(ServiceKey.from_pem(ServiceKey.generate_pem())).rotated(11 * DAY, now)
    old = keys.old[0].fingerprint
    context = keys.server_context(lambda: now)
    assert await presented(context, key_name(old)) == old
    assert await presented(context, key_name(old).upper()) == old
    for other in ("localhost", key_name(keys.current.fingerprint), "x" + key_name(old), None):
        assert await presented(context, other) == keys.current.fingerprint
    now = 11 * DAY
    assert await presented(context, key_name(old)) == keys.current.fingerprint


async def presented(context: ssl.SSLContext, name: str | None) -> str:
    """The fingerprint of the key that a server with `context` presents to who asks for `name`."""
    from cryptography import x509

    from capstore.service.tls import fingerprint_of

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=name
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        await asyncio.sleep(0)
        return fingerprint_of(x509.load_der_x509_certificate(der))


async def test_a_second_attempt_is_pinned_like_the_first() -> None:
    keys = ServiceKeys(ServiceKey.from_pem(ServiceKey.generate_pem())).rotated(2 * DAY, DAY)
    stranger = ServiceKeys(ServiceKey.from_pem(ServiceKey.generate_pem()))

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = stranger.server_context()
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        old = keys.old[0].fingerprint
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=pinning_context(old), server_hostname=key_name(old)
            )


def test_a_key_is_not_rotated_under_a_running_service(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    keys = state.service_keys()
    with pytest.raises(Busy):
        rotate(tmp_path)
    assert state.service_keys() == keys
    state.close()


def test_only_a_time_to_come_keeps_a_key(tmp_path: Path) -> None:
    keys = rotate(tmp_path)
    for until in (1, time.time_ns(), -DAY, 10_000 * 366 * DAY):
        with pytest.raises(InvalidArgument):
            rotate(tmp_path, until)
    state = StateDirectory.open(tmp_path / "state")
    assert state.service_keys() == keys
    state.close()


def test_keys_whose_time_is_over_leave_and_there_are_so_many() -> None:
    keys = ServiceKeys(ServiceKey.from_pem(ServiceKey.generate_pem()))
    for number in range(SERVICE_KEYS_OLD_MAX):
        keys = keys.rotated((100 + number) * DAY, DAY)
    assert ServiceKeys.from_pem(keys.to_pem()) == keys
    with pytest.raises(TooLarge):
        keys.rotated(200 * DAY, DAY)
    later = keys.rotated(200 * DAY, 102 * DAY)
    assert [key.until // DAY for key in later.old] == [200, *range(107, 102, -1)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda pem: pem.replace(b"until ", b"Until "),
        lambda pem: pem.replace(b"-01-", b"-13-"),
        lambda pem: pem.replace(b"until ", b"# until ", 1),
        lambda pem: pem + b"x",
        lambda pem: b"\n" + pem,
        lambda pem: pem[: pem.index(b"until ") + 28],
        lambda pem: pem.replace(b"CERTIFICATE", b"CERTIFICATES"),
        lambda pem: b"",
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(damage: object) -> None:
    keys = ServiceKeys(ServiceKey.from_pem(ServiceKey.generate_pem())).rotated(20 * DAY, DAY)
    assert b"until 1970-01-21T00:00:00Z\n" in keys.to_pem()
    with pytest.raises(Corrupt):
        ServiceKeys.from_pem(damage(keys.to_pem()))  # type: ignore[operator]


def test_a_file_with_one_key_is_as_it_always_was() -> None:
    pem = ServiceKey.generate_pem()
    assert ServiceKeys.from_pem(pem).to_pem() == pem
