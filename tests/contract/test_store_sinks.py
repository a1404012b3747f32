"""Puts in pieces, and puts that are cancelled: whole or not at all."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from capstore.backers.store import Condition, Delete, ObjectSink, ObjectStore, Put
from capstore.schema.errors import Closed, Conflict
from capstore.schema.limits import MIB
from tests.contract.stores import StoreHarness, contents_of, keys_of, put_in_pieces, stats_of

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 1024


async def test_pieces_are_one_object(store: ObjectStore) -> None:
    for piece in (1000, 65_536, len(DATA)):
        stat = await put_in_pieces(store, DATA, b"k", piece=piece)
        assert stat == await store.stat(b"k")
        assert (stat.key, stat.size) == (b"k", len(DATA))
        assert await store.get(b"k") == DATA


async def test_pieces_without_a_key(store: ObjectStore) -> None:
    stat = await put_in_pieces(store, DATA)
    assert stat.key == hashlib.sha256(DATA).digest()
    assert await store.get(stat.key) == DATA


async def test_a_piece_may_be_long_and_there_may_be_none(store: ObjectStore) -> None:
    long = DATA * 20
    sink = await store.begin(b"long")
    await sink.write(long)
    await sink.write(b"")
    await sink.commit()
    assert await store.get(b"long") == long
    sink = await store.begin(b"empty")
    await sink.commit()
    assert await store.get(b"empty") == b""


async def test_nothing_is_seen_before_the_commit(store: ObjectStore) -> None:
    await store.put(b"before", b"k")
    sink = await store.begin(b"k")
    await sink.write(DATA)
    assert await store.get(b"k") == b"before"
    hashed = await store.begin()
    await hashed.write(b"content")
    assert await keys_of(store) == [b"k"]
    await sink.commit()
    assert await store.get(b"k") == DATA
    await hashed.abort()


async def test_what_is_aborted_or_dropped_leaves_no_trace(store: ObjectStore) -> None:
    before = (await store.usage()).used_nodes
    sink = await store.begin(b"aborted")
    await sink.write(DATA)
    await sink.abort()
    await sink.abort()
    for call in (sink.write(b"x"), sink.commit()):
        with pytest.raises(Closed):
            await call
    dropped = await store.begin(b"dropped")
    await dropped.write(DATA)
    del dropped, sink
    gc.collect()
    assert await keys_of(store) == []
    assert (await store.usage()).used_nodes == before


async def test_committed_is_committed(store: ObjectStore) -> None:
    sink = await store.begin(b"k")
    await sink.write(b"x")
    await sink.commit()
    await sink.abort()
    for call in (sink.write(b"x"), sink.commit()):
        with pytest.raises(Closed):
            await call
    assert await store.get(b"k") == b"x"


async def test_the_condition_is_looked_at_when_it_is_committed(store: ObjectStore) -> None:
    sink = await store.begin(b"k", Condition(absent=True))
    await sink.write(b"late")
    first = await store.put(b"early", b"k")
    with pytest.raises(Conflict):
        await sink.commit()
    assert await contents_of(store) == {b"k": b"early"}
    with pytest.raises(Conflict):
        await store.begin(b"k", Condition(absent=True))
    stat = await put_in_pieces(store, DATA, b"k", Condition(version=first.version))
    assert await stats_of(store) == [stat]


async def test_pieces_do_not_take_the_place_of_a_content(store: ObjectStore) -> None:
    key = (await store.put(b"content")).key
    with pytest.raises(Conflict):
        await put_in_pieces(store, b"something else", key)
    assert await store.get(key) == b"content"
    await put_in_pieces(store, b"content", key)


async def test_many_at_once(store: ObjectStore) -> None:
    async def one(number: int) -> None:
        await put_in_pieces(store, DATA[number:], b"%d" % number, piece=40_000)

    await asyncio.gather(*(one(number) for number in range(10)))
    assert await contents_of(store) == {b"%d" % number: DATA[number:] for number in range(10)}


# Cancellation ------------------------------------------------------------------------------------

BIG = DATA * 6
BEFORE = {b"a": b"old", b"b": DATA}


async def _commit(sink: ObjectSink) -> None:
    await sink.write(BIG)
    await sink.commit()


async def _in_pieces(store: ObjectStore) -> None:
    await _commit(await store.begin(b"a"))


CHANGES: dict[str, tuple[Callable[[ObjectStore], Awaitable[object]], dict[bytes, bytes]]] = {
    "put": (lambda store: store.put(b"new", b"a"), {b"a": b"new", b"b": DATA}),
    "put in pieces": (lambda store: store.put(BIG, b"a"), {b"a": BIG, b"b": DATA}),
    "sink": (_in_pieces, {b"a": BIG, b"b": DATA}),
    "delete": (lambda store: store.delete(b"a"), {b"b": DATA}),
    "batch": (
        lambda store: store.batch([Put(b"a", b"1"), Delete(b"b"), Put(b"c", b"2")]),
        {b"a": b"1", b"c": b"2"},
    ),
    "get": (lambda store: store.get(b"b"), BEFORE),
    "compact": (lambda store: store.compact(), BEFORE),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_whole_or_not_at_all(store_harness: StoreHarness, name: str) -> None:
    store = store_harness.store
    change, after = CHANGES[name]

    async def run() -> None:
        await change(store)

    for turns in (1, 2, 3, 5, 8, 13, 21, 40):
        for key in await keys_of(store):
            await store.delete(key)
        await store.batch([Put(key, data) for key, data in BEFORE.items()])
        task = asyncio.create_task(run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await store_harness.settled()
        found = await contents_of(store)
        assert found in (BEFORE, after)
        await asyncio.sleep(0)
        assert await contents_of(store) == found


async def test_a_sink_that_lost_a_piece_commits_nothing(store_harness: StoreHarness) -> None:
    store = store_harness.store
    for turns in range(1, 12):
        sink = await store.begin(b"k")
        await sink.write(b"first")
        piece = asyncio.create_task(sink.write(BIG * 2))
        for _ in range(turns):
            await asyncio.sleep(0)
        piece.cancel()
        lost = False
        try:
            await piece
        except asyncio.CancelledError:
            lost = True
        try:
            await sink.commit()
        except Closed:
            assert lost
            assert not await store.has(b"k")
            continue
        assert await store.get(b"k") in (b"first", b"first" + BIG * 2)
        assert lost or await store.get(b"k") == b"first" + BIG * 2
        await store.delete(b"k")
    assert 2 * len(BIG) > MIB
