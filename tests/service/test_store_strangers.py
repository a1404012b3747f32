"""Strangers at a store: floods, half puts, wrong kinds, forged words, a service that lies."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.store import ANY, Condition, ObjectRange, ObjectStat, Put
from capstore.schema import wire
from capstore.schema.errors import (
    Busy,
    Closed,
    Code,
    Conflict,
    Corrupt,
    InvalidArgument,
    StorageError,
    TooLarge,
    TransportError,
)
from capstore.schema.limits import BATCH_CHANGES_MAX, KEY_BYTES_MAX, MIB, TRANSFER_BYTES_MAX
from capstore.service import scope
from capstore.service import session as session_module
from capstore.service.client import connect, open_connection
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteStore
from capstore.service.store_messages import read_binding, read_change, read_condition
from tests.contract.store_model import ModelStore
from tests.contract.stores import contents_of, keys_of
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(model: ModelStore) -> AsyncIterator[Served]:
    volumes = {"s": model, "other": ModelStore(), "m": await MemoryVolume.open()}
    async with serving(volumes) as served:
        yield served


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            gc.collect()
            await asyncio.sleep(0.01)


async def code_of(call: Any) -> str:
    response = await call
    # What is not set reads as the first code there is.
    assert response._has("error")
    return str(response.error.code)


# Sinks -------------------------------------------------------------------------------------------


async def test_a_flood_of_sinks_is_refused(
    served: Served, store: RemoteStore, model: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SINKS_MAX", 5)
    held = [await store.begin(b"%d" % number) for number in range(5)]
    for _ in range(20):
        with pytest.raises(Busy):
            await store.begin(b"one more")
    assert model.sinks_open == 5
    await store.put(b"still", b"works")
    async with connect(served.unix["s"]) as other:
        await (await other.begin(b"other")).commit()
    await held[0].commit()
    await held[1].abort()
    held[2].drop()
    await until(lambda: served.service.sessions[0].sinks == 2)
    again = [await store.begin(b"again") for _ in range(3)]
    with pytest.raises(Busy):
        await store.begin(b"one more")
    with pytest.raises(InvalidArgument):
        await store.begin(b"k" * (KEY_BYTES_MAX + 1))
    for sink in (*held, *again):
        sink.drop()
    await until(lambda: served.service.sessions[0].sinks == 0 and not model.sinks_open)


async def test_what_failed_to_begin_is_no_sink(
    served: Served, store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SINKS_MAX", 2)
    await store.put(b"x", b"k")
    for _ in range(5):
        with pytest.raises(Conflict):
            await store.begin(b"k", Condition(absent=True))
    assert served.service.sessions[0].sinks == 0


async def test_a_client_that_vanishes_leaves_no_half_object(
    served: Served, model: ModelStore
) -> None:
    async with open_connection(served.unix["s"]) as connection:
        store: Any = await connection.root()
        sinks = [await store.begin(key) for key in (b"a", b"b", b"")]
        for sink in sinks:
            await sink.write(b"x" * 3 * MIB)
        assert model.sinks_open == 3
        # No farewell: the socket is gone.
        transport = served.service.sessions[0].transport
        assert transport is not None
        transport.abort()
        await connection.disconnected()
        with pytest.raises(TransportError):
            await sinks[0].commit()
    del store, sinks, sink
    await until(lambda: not served.service.sessions and not model.sinks_open)
    assert await contents_of(model) == {}


async def test_a_put_in_pieces_is_cut_off_in_the_middle(served: Served, model: ModelStore) -> None:
    async with open_connection(served.unix["s"]) as connection:
        store: Any = await connection.root()
        putting = asyncio.ensure_future(store.put(b"x" * 64 * MIB, b"k"))
        while not model.sinks_open:
            await asyncio.sleep(0)
        transport = served.service.sessions[0].transport
        assert transport is not None
        transport.abort()
        with pytest.raises(TransportError):
            await putting
    del store, putting
    await until(lambda: not served.service.sessions and not model.sinks_open)
    assert await contents_of(model) == {}


async def test_pieces_are_taken_in_the_order_they_are_sent(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.contract.store_model import ModelSink

    write, waits = ModelSink.write, [5, 0, 3, 0, 1]

    async def slow(self: Any, data: Any) -> None:
        for _ in range(waits.pop() if waits else 0):
            await asyncio.sleep(0)
        await write(self, data)

    monkeypatch.setattr(ModelSink, "write", slow)
    sink = (await store.begin(b"k")).raw
    answers = [sink.write(b"%d" % number) for number in range(8)]
    committed = await sink.commit()
    for answer in answers:
        assert not (await answer)._has("error")
    assert committed.size == 8
    assert await store.get(b"k") == b"01234567"


async def test_behind_a_piece_that_failed_nothing_is_committed(
    store: RemoteStore, model: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "OBJECT_BYTES_MAX", 1000)
    sink = (await store.begin(b"k")).raw
    calls = [sink.write(b"x" * 900), sink.write(b"y" * 200), sink.write(b"z"), sink.commit()]
    assert not (await calls[0])._has("error")
    for call in calls[1:]:
        assert await code_of(call) == "tooLarge"
    whole = await store.begin(b"k")
    with pytest.raises(TooLarge):
        for _ in range(20):
            await whole.write(b"x" * 100)
        await whole.commit()
    with pytest.raises((TooLarge, Closed)):
        await whole.commit()
    assert await contents_of(model) == {}


async def test_a_piece_over_the_limit_is_refused(store: RemoteStore) -> None:
    sink = (await store.begin(b"k")).raw
    assert await code_of(sink.write(b"x" * (TRANSFER_BYTES_MAX + 1))) == "tooLarge"
    assert await code_of(sink.commit()) == "tooLarge"


# Messages ----------------------------------------------------------------------------------------


async def test_bad_arguments_are_results(store: RemoteStore) -> None:
    raw, long = store.raw, b"k" * (KEY_BYTES_MAX + 1)
    for key in (b"", long):
        assert await code_of(raw.get(key)) == "invalidArgument"
        assert await code_of(raw.has(key)) == "invalidArgument"
        assert await code_of(raw.stat(key)) == "invalidArgument"
        assert await code_of(raw.read(key, 0, 1)) == "invalidArgument"
        assert await code_of(raw.delete(key)) == "invalidArgument"
    for call in (
        raw.put(b"x", long),
        raw.begin(long),
        raw.subStore(long),
        raw.list(prefix=long),
        raw.list(after=long),
    ):
        assert await code_of(call) == "invalidArgument"
    too_large = b"x" * (TRANSFER_BYTES_MAX + 1)
    assert await code_of(raw.put(too_large, b"k")) == "tooLarge"
    assert await code_of(raw.begin(b"k", size=2**64 - 1)) == "tooLarge"
    request = raw.batch_request()
    request.init("items", BATCH_CHANGES_MAX + 1)
    assert await code_of(request.send()) == "tooLarge"
    request = raw.batch_request()
    for item in request.init("items", 2):
        item.key, item.put = b"k", b"x" * (TRANSFER_BYTES_MAX // 2)
    assert await code_of(request.send()) == "tooLarge"
    assert await code_of(raw.read(b"k", 2**64 - 1, 2**32 - 1)) == "notFound"
    await store.put(b"x", b"k")
    answer = await raw.read(b"k", 2**64 - 1, 2**32 - 1)
    assert answer.data == b""
    assert answer.eof
    assert answer.size == 1
    assert (await raw.collect(2**64 - 1)).objects == 0
    assert await keys_of(store) == [b"k"]


@pytest.mark.parametrize(
    ("struct_of", "fields", "read"),
    [
        (wire.Condition, {"version": 7}, read_condition),
        (wire.BatchItem, {"key": b"k", "put": b"x"}, read_change),
        (wire.Binding, {"name": "n", "reference": 3}, read_binding),
    ],
)
def test_a_choice_that_is_not_known(struct_of: Any, fields: dict[str, Any], read: Any) -> None:
    raw = bytearray(struct_of.new_message(**fields).to_bytes())
    at = 16 + struct_of.schema.node.struct.discriminantOffset * 2
    raw[at : at + 2] = struct.pack("<H", 99)
    with struct_of.from_bytes(bytes(raw)) as reader, pytest.raises((InvalidArgument, Corrupt)):
        read(reader)


async def test_a_get_over_a_message_says_so(store: RemoteStore) -> None:
    await store.put(b"x" * (TRANSFER_BYTES_MAX + 1), b"k")
    assert await code_of(store.raw.get(b"k")) == "tooLarge"
    assert len((await store.raw.read(b"k", 0, 2**32 - 1)).data) == TRANSFER_BYTES_MAX


async def test_a_cursor_is_of_one_listing(served: Served, store: RemoteStore) -> None:
    async with connect(served.unix["other"]) as other:
        assert isinstance(other, RemoteStore)
        for each in (store, other):
            await each.batch([Put(b"%d" % number, b"") for number in range(5)])
        cursor = (await store.raw.list(limit=2)).cursor
        page = await store.raw.list(cursor=cursor, limit=2)
        assert [each.key for each in page.objects] == [b"2", b"3"]
        part = await store.sub_store(b"1")
        for call in (
            other.raw.list(cursor=cursor),
            part.raw.list(cursor=cursor),
            store.raw.list(prefix=b"1", cursor=cursor),
            store.raw.list(cursor=cursor[:-1]),
            store.raw.list(cursor=cursor + b"0"),
            store.raw.list(cursor=bytes([cursor[0] ^ 1]) + cursor[1:]),
            store.raw.list(cursor=b"x"),
            store.names.raw.list(cursor=cursor),
        ):
            assert await code_of(call) == "invalidArgument"
        # It needs no release, and outlives the connection.
        async with connect(served.unix["s"]) as again:
            page = await again.raw.list(cursor=cursor, limit=2)
            assert page.objects[0].key == b"2"


async def test_names_that_are_no_text(store: RemoteStore) -> None:
    raw = store.names.raw
    for method in ("resolve", "bind", "unbind", "sub"):
        request = getattr(raw, f"{method}_request")()
        request.name = b"\xff\xfe"
        assert await code_of(request.send()) == "invalidName"
    request = raw.list_request()
    request.after = b"\xff"
    assert await code_of(request.send()) == "invalidArgument"
    request = raw.bind_request()
    request.name, request.token, request.binding.reference = "n", b"\xff", 1
    assert await code_of(request.send()) == "denied"
    request = raw.bind_request()
    request.name, request.binding.hash = "n", b"short"
    assert await code_of(request.send()) == "invalidArgument"


# Capabilities ------------------------------------------------------------------------------------


class Impostor(wire.Directory.Server):  # type: ignore[misc]
    """A Directory that hands on the ticket of a store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def ticket(self, _context: Any, **_: Any) -> bytes:
        ticket: bytes = (await self._store.ticket()).ticket
        return ticket


async def test_the_ticket_of_a_store_is_for_no_directory(
    served: Served, store: RemoteStore
) -> None:
    async with connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        await root.mkdir("d")
        request = root.raw.rename_request()
        request.name, request.newName = "d", "e"
        request.target = Impostor(store.raw)
        with pytest.raises(InvalidArgument):
            await answer_of(request.send())
        assert not served.service._tickets


async def test_another_kind_than_it_is(store: RemoteStore) -> None:
    directory = Directory(store.raw.cast_as(wire.Directory))
    with pytest.raises(TransportError) as caught:
        await directory.list()
    assert "Traceback" not in str(caught.value)
    sink = RemoteStore((await store.begin(b"k")).raw.cast_as(wire.Store))
    with pytest.raises(TransportError):
        await sink.get(b"k")
    await store.sync()


async def test_a_chain_reports_its_first_cause(store: RemoteStore) -> None:
    drop = await store.put_only()
    chain = drop.raw.getOnly().store.subStore(b"x").store
    assert await code_of(chain.get(b"k")) == "denied"
    assert await code_of(drop.raw.namespace().namespace.sub("x").namespace.list()) == "denied"
    assert await code_of(store.raw.begin(b"k" * 2000).sink.write(b"x")) == "invalidArgument"


async def test_capabilities_of_a_store_are_counted(
    served: Served, store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CAPABILITIES_MAX", 3)
    held = [await store.get_only(), await store.begin(b"k")]
    for call in (store.put_only(), store.sub_store(b"a"), store.begin(b"l"), store.names.list()):
        with pytest.raises(Busy):
            await call
    assert len(held) == 2
    assert served.service.sessions[0].sinks == 1


async def test_a_bug_is_opaque(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("/secret/path")

    for name in ("put", "read", "stat", "list", "begin", "batch"):
        monkeypatch.setattr(ModelStore, name, broken)
    for call in (store.put(b"x"), store.get(b"k"), store.list(), store.begin(), store.batch([])):
        with pytest.raises(StorageError) as caught:
            await call
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in str(caught.value)
    assert "/secret/path" in caplog.text


async def test_answers_that_wait_are_bounded(served: Served, store: RemoteStore) -> None:
    await store.put(b"x" * MIB, b"k")
    session = served.service.sessions[0]
    most = 0
    reading = [asyncio.ensure_future(store.get(b"k")) for _ in range(60)]
    while not all(each.done() for each in reading):
        most = max(most, session.unsent_bytes + session.reserved_bytes)
        await asyncio.sleep(0)
    assert MIB <= most <= session_module.UNSENT_BYTES_MAX + 2 * MIB
    assert session.reserved_bytes == 0


# A service that lies -----------------------------------------------------------------------------


class Liar(wire.Store.Server):  # type: ignore[misc]
    """Answers as it was told to."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    async def read(self, _context: Any, **_: Any) -> None:
        for name, value in self._answers.items():
            setattr(_context.results, name, value)

    stat = list = batch = read


@asynccontextmanager
async def lying(**answers: Any) -> AsyncIterator[RemoteStore]:
    from capstore.service.loop import kj_loop_running

    async with kj_loop_running():
        yield RemoteStore(wire.Store._new_client(Liar(**answers)))


async def test_a_read_that_is_too_long_is_found_out() -> None:
    async with lying(data=b"x" * 100, size=100) as store:
        with pytest.raises(Corrupt):
            await store.read(b"k", 0, 10)


async def test_another_object_than_was_asked_for_is_found_out() -> None:
    for key in (b"other", b"", b"k" * (KEY_BYTES_MAX + 1)):
        async with lying(stat={"key": key}) as store:
            with pytest.raises(Corrupt):
                await store.stat(b"k")


@pytest.mark.parametrize(
    ("keys", "cursor"),
    [
        ([b"b", b"a"], b""),
        ([b"a", b"a"], b""),
        ([b"a"], b""),
        ([b"p"], b""),
        ([], b"more"),
        ([b"p/x", b"q"], b""),
    ],
)
async def test_a_listing_out_of_order_is_found_out(keys: list[bytes], cursor: bytes) -> None:
    async with lying(objects=[{"key": key} for key in keys], cursor=cursor) as store:
        with pytest.raises(Corrupt):
            await store.list(b"p/", b"p/a")


async def test_versions_that_are_missing_are_found_out() -> None:
    async with lying(versions=[1]) as store:
        with pytest.raises(Corrupt):
            await store.batch([Put(b"a", b""), Put(b"b", b"")])


# Versions of what is read ------------------------------------------------------------------------


async def test_a_get_that_meets_a_new_version_begins_anew(
    store: RemoteStore, model: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = b"o" * (3 * MIB), b"n" * (2 * MIB)
    await store.put(old, b"k")
    read, count = ModelStore.read, 0

    async def replacing(self: ModelStore, key: bytes, offset: int, length: int) -> ObjectRange:
        nonlocal count
        count += 1
        if count == 6:
            await ModelStore.put(self, new, key, ANY)
        return await read(self, key, offset, length)

    monkeypatch.setattr(ModelStore, "read", replacing)
    assert await store.get(b"k") == new
    stat: ObjectStat = await store.stat(b"k")
    await store.put(old, b"k")
    with pytest.raises(Conflict):
        async for _ in store.chunks(stat):
            pass
    pieces = [piece async for piece in store.chunks(await store.stat(b"k"), MIB)]
    assert b"".join(pieces) == old[MIB:]


async def test_what_changes_all_the_time_is_a_conflict(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(b"x" * 2 * MIB, b"k")
    read = ModelStore.read

    async def replacing(self: ModelStore, key: bytes, offset: int, length: int) -> ObjectRange:
        await ModelStore.put(self, bytes(2 * MIB), key, ANY)
        return await read(self, key, offset, length)

    monkeypatch.setattr(ModelStore, "read", replacing)
    async with asyncio.timeout(10):
        with pytest.raises(Conflict):
            await store.get(b"k")
