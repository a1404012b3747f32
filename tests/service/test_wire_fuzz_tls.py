"""The fuzzer of the wire through TLS on a short budget, and what it does to records."""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl

import pytest

from capstore.service.tls import pinning_context
from capstore.tools.fuzz import wire, wire_records, wire_tls
from capstore.tools.fuzz.wire import WAYS, fuzz, lines
from capstore.tools.fuzz.wire_records import (
    MUTATORS,
    Damage,
    Sent,
    extensions_of,
    record,
    records_of,
    with_extensions,
)

SEED = 50_000
CASES = 60


def test_a_short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cases again come first, and are always the same."""
    monkeypatch.setattr(wire, "_BATCH", CASES)
    report = fuzz(secrets.randbits(48), CASES, None, way=WAYS["tls"])
    assert not report.faults, "\n".join(lines(report))
    assert report.cases == CASES
    assert set(report.counts) <= {"answered", "closed"}
    assert report.counts["answered"] > CASES // 5, "most cases do not get far"
    assert report.quiet_calls > 0


@pytest.mark.long
def test_fifty_thousand_cases() -> None:
    report = fuzz(secrets.randbits(48), 50_000, None, way=WAYS["tls"])
    print("\n".join(lines(report)))
    assert not report.faults


# What becomes of records -------------------------------------------------------------------------


def hello() -> bytes:
    """A ClientHello."""
    outgoing = ssl.MemoryBIO()
    connection = pinning_context("A" * 43).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="a.test"
    )
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


HELLO = hello()
DATA = record(wire_records.DATA, b"x" * 100)


def sent(damage: Damage) -> Sent:
    return [*damage.sent(HELLO), *damage.sent(DATA * 2), *damage.sent(DATA)]


def test_a_case_does_the_same_to_the_same_records() -> None:
    def made() -> list[Sent | None]:
        damages = [wire_tls.damage_of(seed, (b"name",)) for seed in range(400)]
        return [None if damage is None else sent(damage) for damage in damages]

    done = made()
    assert done == made()
    assert 150 < sum(each is None for each in done) < 250
    untouched = [HELLO, DATA, DATA, DATA]
    assert sum(each not in (None, untouched) for each in done) > 130


@pytest.mark.parametrize("mutator", dict.fromkeys(MUTATORS))
@pytest.mark.parametrize("data", [HELLO, DATA, b"", b"x", HELLO[:20]], ids=range(5))
def test_every_mutator_bears_every_record(
    monkeypatch: pytest.MonkeyPatch, mutator: wire_records.Mutator, data: bytes
) -> None:
    for seed in range(100):
        for piece in mutator(Damage(random.Random(seed), (b"name",)), data):
            assert isinstance(piece, bytes | float)
    if data == HELLO:
        made = [mutator(Damage(random.Random(seed)), data) for seed in range(100)]
        assert any(each != [data] for each in made)


def test_a_hello_is_taken_apart_and_put_together() -> None:
    places = extensions_of(HELLO)
    assert {0, 43, 51} <= {kind for _, kind in places}
    assert with_extensions(HELLO, HELLO[places[0][0] :]) == HELLO
    assert list(records_of(HELLO + DATA + DATA[:7])) == [HELLO, DATA, DATA[:7]]
    assert not extensions_of(DATA)


def test_nothing_follows_what_was_cut() -> None:
    damage = Damage(random.Random(1))
    damage._plan = {1: [wire_records._cut]}
    first, *rest = sent(damage)
    assert first == HELLO
    assert len(rest) == 1
    assert rest[0] != DATA


# That it would notice ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_end_that_does_not_come_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    monkeypatch.setattr(wire_tls.wire_send, "CASE_SECONDS_MAX", 0.2)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        uri = wire_tls.CapabilityURI("", host="127.0.0.1", port=port, fingerprint="A" * 43)
        with pytest.raises(TimeoutError):
            await wire_tls.send(uri, [b"x"], (), None)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
