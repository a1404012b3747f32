"""Quotas of stores: what is used is what is there, whatever fails, races or is saved."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.store import Condition, Delete, Put
from capstore.schema.errors import Busy, Conflict, NotFound, QuotaExceeded
from capstore.service import quota as quota_module
from capstore.service.grants import Policy
from capstore.service.remote_store import RemoteStore
from tests.contract.faults import Delays
from tests.contract.store_model import ModelStore
from tests.contract.stores import DelayedStore, contents_of, put_in_pieces
from tests.service.authorities import Clock
from tests.service.policed import code_of
from tests.service.store_authorities import store_authority, store_owner

pytestmark = pytest.mark.anyio


async def quota(store: RemoteStore) -> tuple[int, int]:
    usage = await store.usage()
    return usage.used_bytes, usage.used_nodes


async def test_a_quota_bounds_by_how_much_a_store_grows(store: RemoteStore) -> None:
    await store.put(b"x" * 1000, b"others")
    mine = (await store.attenuate(Policy(max_bytes=100, max_nodes=3))).capability
    await mine.put(b"x" * 60, b"a")
    assert await quota(mine) == (60, 1)
    with pytest.raises(QuotaExceeded):
        await mine.put(b"x" * 41, b"b")
    assert not await mine.has(b"b")
    await mine.put(b"x" * 100, b"a")
    await mine.put(b"x" * 10, b"a")
    assert await quota(mine) == (10, 1)
    await mine.put(b"content")
    await mine.put(b"content")
    assert await quota(mine) == (17, 2)
    await mine.put(b"", b"c")
    with pytest.raises(QuotaExceeded):
        await mine.put(b"", b"d")
    await mine.delete(b"a")
    assert await quota(mine) == (7, 2)
    await mine.delete(b"others")
    assert await quota(mine) == (0, 1)


async def test_what_fails_takes_no_room(store: RemoteStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100, max_nodes=3))).capability
    await mine.put(b"12345", b"a")
    for call in (
        mine.put(b"x" * 20, b"a", Condition(absent=True)),
        mine.put(b"x" * 20, b"b", Condition(version=1)),
        mine.batch([Put(b"b", b"x" * 20), Delete(b"missing")]),
        mine.delete(b"missing"),
        mine.delete(b"a", Condition(absent=True)),
    ):
        assert await code_of(call) in (Conflict.code, NotFound.code)
        assert await quota(mine) == (5, 1)
    await mine.batch([Put(b"b", b"x" * 20), Put(b"b", b"x" * 10), Delete(b"a")])
    assert await quota(mine) == (10, 1)
    with pytest.raises(QuotaExceeded):
        await mine.batch([Put(b"%d" % number, b"") for number in range(3)])


async def test_a_sink_takes_room_as_it_goes(store: RemoteStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100))).capability
    sink = await mine.begin(b"k")
    await sink.write(b"x" * 60)
    while (await quota(mine))[0] != 60:  # sent, not answered
        await asyncio.sleep(0)
    other = await mine.begin(b"l")
    await other.write(b"x" * 60)
    assert await code_of(other.commit()) == QuotaExceeded.code
    await sink.commit()
    assert await quota(mine) == (60, 1)
    aborted = await mine.begin(b"m")
    await aborted.write(b"x" * 40)
    await aborted.abort()
    dropped = await mine.begin(b"m")
    await dropped.write(b"x" * 40)
    dropped.drop()
    del dropped
    async with asyncio.timeout(5):
        while await quota(mine) != (60, 1):
            await asyncio.sleep(0.01)
    with pytest.raises(QuotaExceeded):
        await mine.begin(b"n", size=101)
    pieces = await put_in_pieces(mine, b"x" * 30, piece=10)
    assert pieces.key == hashlib.sha256(b"x" * 30).digest()
    await put_in_pieces(mine, b"y" * 10, b"k", piece=5)
    assert await quota(mine) == (40, 2)


async def test_quotas_nest(store: RemoteStore) -> None:
    outer = (await store.attenuate(Policy(max_bytes=100))).capability
    inner = (await outer.attenuate(Policy(max_bytes=1000))).capability
    part = await (await inner.put_only()).sub_store(b"in/")
    await part.put(b"x" * 60)
    assert await quota(outer) == (60, 1)
    for holder in (part, inner, outer):
        with pytest.raises(QuotaExceeded):
            await holder.put(b"x" * 41, b"k")


async def test_a_race_for_the_last_bytes(store: RemoteStore, model: ModelStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100))).capability

    async def put(number: int) -> bool:
        return await code_of(mine.put(b"x" * 10, b"%d" % number)) is None

    won = await asyncio.gather(*(put(number) for number in range(30)))
    assert won.count(True) == 10
    await asyncio.gather(*(mine.put(b"y" * (number % 11), b"0") for number in range(30)))
    used = sum(len(data) for data in (await contents_of(model)).values())
    assert await quota(mine) == (used, 10)


async def test_cancelled_puts_are_counted_right(store: RemoteStore, model: ModelStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=10_000))).capability
    for turns in range(30):
        task = asyncio.ensure_future(mine.put(b"x" * 10, b"%d" % turns))
        for _ in range(turns % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.sync()
    found = await contents_of(model)
    assert await quota(mine) == (10 * len(found), len(found))


@pytest.mark.parametrize("cancelling", [False, True])
async def test_what_is_used_where_the_store_takes_its_time(
    tmp_path: Path, model: ModelStore, *, cancelling: bool
) -> None:
    slow = DelayedStore(model, Delays())
    mine = (await store_owner(await store_authority(tmp_path, slow))).narrowed(
        Policy(max_bytes=2000)
    )

    async def burst() -> None:
        tasks: list[asyncio.Future[object]] = []
        for number in range(12):
            key = b"%d" % (number % 3)
            calls = [mine.put(b"x" * number, key), mine.delete(key), mine.put(b"y" * number)]
            calls.append(put_in_pieces(mine, b"z" * number, key))
            tasks += [asyncio.ensure_future(call) for call in calls]
        for turn, task in enumerate(tasks):
            if cancelling and turn % 3:
                await asyncio.sleep(0)
            if cancelling:
                task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            _ = task.cancelled() or task.exception()

    for _ in range(10):
        await burst()
        await asyncio.sleep(0)
        gc.collect()
        found = await contents_of(model)
        usage = await mine.usage()
        assert usage.used_bytes == sum(map(len, found.values()))
        assert usage.used_nodes == len(found)


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_used_is_what_is_there(store: RemoteStore, seed: int) -> None:
    mine = (await store.attenuate(Policy(max_bytes=2000, max_nodes=20))).capability
    choose = random.Random(seed)

    def key() -> bytes:
        return choose.choice([b"", b"a", b"b", b"c", b"d", b"e"])

    def data() -> bytes:
        return choose.choice([b"x", b"y"]) * choose.choice([0, 1, 10, 300, 900])

    def condition() -> Condition:
        return choose.choice([Condition()] * 4 + [Condition(absent=True), Condition(version=3)])

    def operation() -> Awaitable[object]:
        kind = choose.randrange(5)
        if kind == 0:
            return put_in_pieces(mine, data(), key(), condition(), piece=100)
        if kind == 1:
            return mine.delete(key() or b"a", condition())
        if kind == 2:
            changes = [Put(key(), data(), condition()) for _ in range(3)]
            return mine.batch([*changes, Delete(key() or b"b")])
        return mine.put(data(), key(), condition())

    for _ in range(40):
        await asyncio.gather(*(code_of(operation()) for _ in range(choose.randrange(1, 6))))
        found = await contents_of(store)
        used = sum(map(len, found.values())), len(found)
        async with asyncio.timeout(5):
            while await quota(mine) != used:  # a sink that failed was dropped a moment ago
                await asyncio.sleep(0.001)
        assert used[0] <= 2000
        assert used[1] <= 20


async def test_saving_does_not_multiply_a_quota(tmp_path: Path, model: ModelStore) -> None:
    authority = await store_authority(tmp_path, model)
    mine = (await store_owner(authority)).narrowed(Policy(max_bytes=100))
    await mine.put(b"x" * 30, b"before")
    tokens = await asyncio.gather(*(authority.save(mine, str(number)) for number in range(3)))
    tokens.append(await authority.save(mine.sub_store(b"a/"), "part"))
    await mine.put(b"x" * 30, b"after")
    await authority.commit()
    for restart in (False, True):
        if restart:
            authority = await store_authority(tmp_path, model)
        for token in tokens:
            holder: Any = await authority.restore(token)
            assert (await holder.usage()).used_bytes == 60
            with pytest.raises(QuotaExceeded):
                await holder.put(b"x" * 41, b"more")
        holder = await authority.restore(tokens[0])
        await holder.put(b"x" * 40, b"full")
        holder = await authority.restore(tokens[3])
        with pytest.raises(QuotaExceeded):
            await holder.put(b"x", b"more")
        await (await authority.restore(tokens[1])).delete(b"full")  # type: ignore[union-attr]
    assert len(authority.below(1)) == len(tokens) + 1


async def test_a_rate(tmp_path: Path, model: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "PACE_SECONDS_MAX", 0)
    clock = Clock()
    store = await store_owner(await store_authority(tmp_path, model, clock))
    await store.put(b"x" * 1000, b"k")
    slow = store.narrowed(Policy(calls_per_second=3))
    below = slow.sub_store(b"k")
    for holder in (slow, below, slow):
        assert await code_of(holder.get(b"k")) in (None, NotFound.code)
    with pytest.raises(Busy):
        await below.put(b"x", b"no effect")
    assert not await store.has(b"kno effect")
    clock.now += 10**9 // 3 + 1
    await slow.get(b"k")
    with pytest.raises(Busy):
        await slow.get(b"k")
    narrow = store.narrowed(Policy(bytes_per_second=100))
    await narrow.get(b"k")
    for call in (narrow.get(b"k"), narrow.put(b"x"), narrow.list()):
        with pytest.raises(Busy):
            await call
    clock.now += 10 * 10**9
    await narrow.put(b"x" * 200, b"l")
    with pytest.raises(Busy):
        await narrow.put(b"x", b"l")
