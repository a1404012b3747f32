"""Objects: put, get, ranges, conditions, versions, content addressing, keys."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from capstore.backers.store import Condition, Delete, ObjectStore, Put
from capstore.schema.errors import Closed, Conflict, InvalidArgument, NotFound, TooLarge
from capstore.schema.limits import BATCH_CHANGES_MAX, KEY_BYTES_MAX, MIB, OBJECT_BYTES_MAX
from tests.contract.stores import contents_of, keys_of, stats_of

pytestmark = pytest.mark.anyio

ABSENT = Condition(absent=True)
BIG = bytes(range(251)) * (3 * MIB // 251)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [0, 1, 100, 65_536, MIB, MIB + 1, 3 * MIB + 17])
async def test_what_was_put_is_got(store: ObjectStore, size: int) -> None:
    data = BIG[:size] if size <= len(BIG) else BIG + b"x" * (size - len(BIG))
    stat = await store.put(data, b"key")
    assert (stat.key, stat.size) == (b"key", size)
    assert await store.get(b"key") == data
    assert await store.stat(b"key") == stat
    assert await store.has(b"key")


@pytest.mark.parametrize("size", [0, 100, MIB + 1])
async def test_without_a_key_the_hash_of_the_data_is_the_key(store: ObjectStore, size: int) -> None:
    data = BIG[:size]
    stat = await store.put(data)
    assert stat.key == sha(data)
    assert await store.get(stat.key) == data
    again = await store.put(data)
    assert again.key == stat.key
    assert again.version > stat.version
    assert await keys_of(store) == [stat.key]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_is_put(store: ObjectStore, kind: type) -> None:
    source = bytearray(b"content")
    await store.put(kind(source), b"k")
    source[:] = b"another"
    assert await store.get(b"k") == b"content"


async def test_a_hash_never_stands_for_anything_else(store: ObjectStore) -> None:
    key = (await store.put(b"content")).key
    with pytest.raises(Conflict):
        await store.put(b"something else", key)
    with pytest.raises(Conflict):
        await store.batch([Put(b"k", b"v"), Put(key, b"something else")])
    assert await contents_of(store) == {key: b"content"}
    assert (await store.put(b"content", key)).key == key


async def test_a_key_that_is_the_hash_is_as_good_as_none(store: ObjectStore) -> None:
    key = sha(b"content")
    await store.put(b"content", key)
    with pytest.raises(Conflict):
        await store.put(b"something else", key)


async def test_a_put_takes_the_place_of_another(store: ObjectStore) -> None:
    first = await store.put(b"first", b"k")
    second = await store.put(b"the second", b"k")
    assert second.version > first.version
    assert await store.get(b"k") == b"the second"
    assert await stats_of(store) == [second]


async def test_versions_rise_over_all_keys_and_are_never_used_again(store: ObjectStore) -> None:
    versions = []
    for _ in range(3):
        for key in (b"a", b"b"):
            versions.append((await store.put(b"x", key)).version)
        await store.delete(b"a")
    versions += list(await store.batch([Put(b"c", b""), Put(b"d", b"")]))
    assert versions == sorted(set(versions))
    assert versions[0] > 0


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (8, 4, b"89"),
        (0, 0, b""),
        (10, 4, b""),
        (2**40, 4, b""),
        (0, MIB * 2, b"0123456789"),
    ],
)
async def test_ranges(store: ObjectStore, offset: int, length: int, expected: bytes) -> None:
    stat = await store.put(b"0123456789", b"k")
    found = await store.read(b"k", offset, length)
    assert bytes(found.data) == expected
    assert found.stat == stat


async def test_long_ranges(store: ObjectStore) -> None:
    stat = await store.put(BIG, b"k")
    found = await store.read(b"k", 1000, 2 * MIB + 5)
    assert bytes(found.data) == BIG[1000 : 2 * MIB + 1005]
    assert found.stat == stat
    assert bytes((await store.read(b"k", len(BIG) - 3, MIB)).data) == BIG[-3:]


async def test_negative_ranges_are_refused(store: ObjectStore) -> None:
    await store.put(b"x", b"k")
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(InvalidArgument):
            await store.read(b"k", offset, length)


async def test_what_is_not_there(store: ObjectStore) -> None:
    await store.put(b"x", b"removed")
    await store.delete(b"removed")
    for key in (b"never", b"removed"):
        assert not await store.has(key)
        for call in (store.get(key), store.stat(key), store.read(key, 0, 1), store.delete(key)):
            with pytest.raises(NotFound):
                await call


# Conditions --------------------------------------------------------------------------------------


async def test_absent(store: ObjectStore) -> None:
    first = await store.put(b"first", b"k", ABSENT)
    with pytest.raises(Conflict):
        await store.put(b"second", b"k", ABSENT)
    with pytest.raises(Conflict):
        await store.delete(b"k", ABSENT)
    assert await stats_of(store) == [first]
    await store.delete(b"k")
    await store.put(b"second", b"k", ABSENT)
    assert await store.get(b"k") == b"second"
    await store.put(b"content", condition=ABSENT)
    with pytest.raises(Conflict):
        await store.put(b"content", condition=ABSENT)


async def test_at_a_version(store: ObjectStore) -> None:
    first = await store.put(b"first", b"k")
    second = await store.put(b"second", b"k", Condition(version=first.version))
    for condition in (Condition(version=first.version), Condition(version=second.version + 1)):
        with pytest.raises(Conflict):
            await store.put(b"third", b"k", condition)
        with pytest.raises(Conflict):
            await store.delete(b"k", condition)
    with pytest.raises(Conflict):
        await store.put(b"other", b"absent", Condition(version=second.version))
    assert await contents_of(store) == {b"k": b"second"}
    await store.delete(b"k", Condition(version=second.version))
    assert await contents_of(store) == {}


def test_a_condition_is_one_thing() -> None:
    with pytest.raises(InvalidArgument):
        Condition(absent=True, version=1)


async def test_one_of_many_wins(store: ObjectStore) -> None:
    async def take(number: int) -> bool:
        try:
            await store.put(str(number).encode(), b"lock", ABSENT)
        except Conflict:
            return False
        return True

    won = await asyncio.gather(*(take(number) for number in range(20)))
    assert won.count(True) == 1
    assert await store.get(b"lock") == str(won.index(True)).encode()


async def test_counting_by_compare_and_set(store: ObjectStore) -> None:
    await store.put(b"0", b"count")

    async def add() -> None:
        while True:
            found = await store.read(b"count", 0, 100)
            value = str(int(bytes(found.data)) + 1).encode()
            try:
                await store.put(value, b"count", Condition(version=found.stat.version))
            except Conflict:
                continue
            return

    await asyncio.gather(*(add() for _ in range(12)))
    assert await store.get(b"count") == b"12"


# Batches -----------------------------------------------------------------------------------------


async def test_a_batch_does_all_in_order(store: ObjectStore) -> None:
    await store.put(b"old", b"gone")
    versions = await store.batch(
        [Put(b"a", b"1"), Delete(b"gone"), Put(b"", b"hashed"), Put(b"a", b"2"), Put(b"b", b"3")]
    )
    assert await contents_of(store) == {b"a": b"2", b"b": b"3", sha(b"hashed"): b"hashed"}
    assert versions[1] == 0
    puts = [versions[0], *versions[2:]]
    assert puts == sorted(set(puts))
    assert [stat.version for stat in await stats_of(store, b"a")] == [versions[3]]
    assert await store.batch([]) == []


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (Put(b"a", b"x", ABSENT), Conflict),
        (Put(b"new", b"x", Condition(version=77)), Conflict),
        (Delete(b"missing"), NotFound),
        (Delete(b"a", Condition(version=10**6)), Conflict),
        (Put(b"x" * (KEY_BYTES_MAX + 1), b""), InvalidArgument),
        (Delete(b""), InvalidArgument),
    ],
)
async def test_or_nothing_of_it(
    store: ObjectStore, last: Put | Delete, error: type[Exception]
) -> None:
    await store.put(b"before", b"a")
    await store.put(b"before", b"b")
    before = await stats_of(store)
    with pytest.raises(error):
        await store.batch([Put(b"new", b"1"), Delete(b"b"), last])
    assert await stats_of(store) == before
    assert await contents_of(store) == {b"a": b"before", b"b": b"before"}


async def test_batches_are_seen_whole(store: ObjectStore) -> None:
    async def write() -> None:
        for number in range(20):
            value = str(number).encode()
            await store.batch([Put(bytes([97 + at]), value) for at in range(5)])
            await asyncio.sleep(0)

    async def look() -> None:
        while not writing.done():
            found = {stat.version for stat in await stats_of(store)}
            assert not found or max(found) - min(found) == 4
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await look()
    await writing


async def test_a_batch_has_so_many_changes(store: ObjectStore) -> None:
    changes = [Put(str(number).encode(), b"") for number in range(BATCH_CHANGES_MAX)]
    await store.batch(changes)
    assert len(await keys_of(store)) == BATCH_CHANGES_MAX
    with pytest.raises(TooLarge):
        await store.batch([*changes, Put(b"one more", b"")])
    assert not await store.has(b"one more")


# Limits ------------------------------------------------------------------------------------------


async def test_keys_have_a_length(store: ObjectStore) -> None:
    longest = b"k" * KEY_BYTES_MAX
    await store.put(b"x", longest)
    assert await store.get(longest) == b"x"
    assert await keys_of(store) == [longest]
    for key in (b"", longest + b"k"):
        for call in (
            store.get(key),
            store.has(key),
            store.stat(key),
            store.read(key, 0, 1),
            store.delete(key),
        ):
            with pytest.raises(InvalidArgument):
                await call
    for call in (store.put(b"x", longest + b"k"), store.begin(longest + b"k")):
        with pytest.raises(InvalidArgument):
            await call


async def test_what_is_over_the_limit_is_refused_before_it_is_looked_at(store: ObjectStore) -> None:
    # Never touched, so never in memory.
    huge = bytes(OBJECT_BYTES_MAX + 1)
    for call in (
        store.put(huge, b"k"),
        store.put(huge),
        store.begin(b"k", size=OBJECT_BYTES_MAX + 1),
        store.batch([Put(b"k", huge)]),
    ):
        with pytest.raises(TooLarge):
            await call
    assert await keys_of(store) == []


async def test_any_bytes_are_a_key(store: ObjectStore) -> None:
    keys = [b"\0", b"\0\0", b"/", b"..", b"\xff\xfe", "ü".encode(), b"a/b/../c", b"%00"]
    for key in keys:
        await store.put(key[::-1], key)
    assert await keys_of(store) == sorted(keys)
    for key in keys:
        assert await store.get(key) == key[::-1]


# Listing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_listing_goes_by_pages_in_the_order_of_keys(store: ObjectStore, limit: int) -> None:
    keys = [b"a", b"a/1", b"a/2", b"a0", b"b", b"\xff", b"\xff\xff"]
    for key in reversed(keys):
        await store.put(key, key)
    assert await keys_of(store, limit=limit) == keys
    assert await keys_of(store, b"a/", limit) == [b"a/1", b"a/2"]
    assert await keys_of(store, b"\xff", limit) == [b"\xff", b"\xff\xff"]
    assert await keys_of(store, b"none", limit) == []
    page = await store.list(b"a", b"a/1", 1)
    assert [stat.key for stat in page.objects] == [b"a/2"]
    assert page.more
    page = await store.list(b"", b"b\0", 2)
    assert [stat.key for stat in page.objects] == [b"\xff", b"\xff\xff"]
    assert not page.more


async def test_long_keys_are_listed_whole(store: ObjectStore) -> None:
    keys = [b"%04d" % number + b"x" * (KEY_BYTES_MAX - 4) for number in range(700)]
    await store.batch([Put(key, b"") for key in keys])
    assert await keys_of(store) == keys


async def test_what_nobody_touches_is_listed_once_whatever_else_changes(store: ObjectStore) -> None:
    steady = [b"steady %03d" % number for number in range(60)]
    await store.batch([Put(key, b"") for key in steady])

    async def churn() -> None:
        number = 0
        while True:
            key = b"steady %03d changing" % (number * 7 % 60)
            await store.put(b"", key)
            await asyncio.sleep(0)
            await store.delete(key)
            number += 1

    churning = asyncio.create_task(churn())
    try:
        for limit in (1, 7):
            listed = await keys_of(store, limit=limit)
            assert [key for key in listed if not key.endswith(b"changing")] == steady
            assert listed == sorted(set(listed))
    finally:
        churning.cancel()
        await asyncio.gather(churning, return_exceptions=True)


# The store as a whole ----------------------------------------------------------------------------


async def test_usage_counts(store: ObjectStore) -> None:
    await store.put(b"x" * 10_000, b"k")
    await store.put(b"x", b"l")
    usage = await store.usage()
    assert usage.used_nodes == 2
    assert usage.used_bytes >= 10_001


async def test_syncing_and_compacting_change_nothing(store: ObjectStore) -> None:
    for number in range(10):
        await store.put(str(number).encode(), b"k")
    await store.put(b"x", b"gone")
    await store.delete(b"gone")
    before = await stats_of(store)
    await store.sync()
    await store.compact()
    assert await stats_of(store) == before
    assert await contents_of(store) == {b"k": b"9"}
    assert (await store.put(b"x", b"gone")).version > before[0].version


async def test_after_closing_everything_is_closed(store: ObjectStore) -> None:
    await store.put(b"x", b"k")
    await store.close()
    await store.close()
    for call in (
        store.put(b"x"),
        store.get(b"k"),
        store.has(b"k"),
        store.stat(b"k"),
        store.delete(b"k"),
        store.list(),
        store.batch([Put(b"k", b"")]),
        store.begin(b"k"),
        store.sync(),
        store.usage(),
    ):
        with pytest.raises(Closed):
            await call


async def test_a_get_never_mixes_versions(store: ObjectStore) -> None:
    size = 2 * MIB + 1
    await store.put(b"a" * size, b"k")
    stop = asyncio.Event()

    async def replace() -> None:
        number = 0
        while not stop.is_set():
            await store.put(bytes([97 + number % 26]) * size, b"k")
            number += 1
            await asyncio.sleep(0.02)

    replacing = asyncio.create_task(replace())
    try:
        for _ in range(3):
            try:
                data = await store.get(b"k")
                ranged = bytes((await store.read(b"k", 10, size)).data)
            except Conflict:
                continue
            assert len(data) == size
            assert data == data[:1] * size
            assert len(ranged) == size - 10
            assert ranged == ranged[:1] * (size - 10)
    finally:
        stop.set()
        await replacing
