"""CAPOSST1 as a store: when a put is answered, what shares a flush, what goes on meanwhile."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from contextlib import suppress
from pathlib import Path

import pytest

from capstore.backers.spec import open_backer, open_volume
from capstore.backers.st1 import St1Store
from capstore.backers.store import Binding, Condition, Delete, ObjectPage, Put
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.st1_open import format_st1
from capstore.images.st1_verify import verify
from capstore.schema.errors import (
    Busy,
    Closed,
    Conflict,
    Corrupt,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageIOError,
    TooLarge,
)
from capstore.schema.limits import KIB, MIB, OBJECT_BYTES_MAX
from tests.backers.wf1devices import CountdownDevice, GatedDevice, until

pytestmark = pytest.mark.anyio


def formatted(size: int | None = None) -> MemoryDevice:
    device = MemoryDevice()
    format_st1(device, size=size)
    return device


async def over(device: BlockDevice) -> St1Store:
    return await St1Store.over(lambda: device)


async def contents(store: St1Store) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    page = ObjectPage(more=True)
    after = b""
    while page.more:
        page = await store.list(after=after, limit=7)
        for each in page.objects:
            found[each.key] = await store.get(each.key)
            after = each.key
    return found


# What is durable ---------------------------------------------------------------------------------


async def test_a_put_is_answered_when_it_is_durable() -> None:
    inner = formatted()
    device = GatedDevice(inner)
    store = await over(device)
    device.flush_gate.clear()
    task = asyncio.ensure_future(store.put(b"data", b"key"))
    await until(device.waiting.is_set)
    await asyncio.sleep(0.01)
    assert not task.done()
    # It is seen all the same, as whatever has happened.
    assert await store.get(b"key") == b"data"
    device.flush_gate.set()
    await task
    crashed = await over(MemoryDevice(inner.view))
    assert await contents(crashed) == {b"key": b"data"}
    await store.close()


async def test_puts_that_come_together_share_a_flush() -> None:
    device = GatedDevice(formatted())
    store = await over(device)
    before = device.flushes
    await asyncio.gather(*(store.put(b"data", b"%d" % n) for n in range(64)))
    assert device.flushes <= before + 2
    await store.close()


async def test_after_a_failed_flush_nothing_is_answered_as_durable() -> None:
    # The first flush is that of the opening, the second that of the first put.
    store = await over(CountdownDevice(formatted(), 2, "flush"))
    await store.put(b"kept", b"key")
    results = await asyncio.gather(
        *(store.put(b"lost", b"%d" % n) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(result, StorageIOError) for result in results)
    with pytest.raises(StorageIOError):
        await store.delete(b"key")
    assert await store.get(b"key") == b"kept"
    await store.close()


async def test_a_cancelled_put_is_there_or_not(tmp_path: Path) -> None:
    store = await St1Store.open(tmp_path / "image", create=True)
    for turns in range(30):
        task = asyncio.ensure_future(store.put(b"%d" % turns * 1000, b"key"))
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        found = (await contents(store)).get(b"key", b"")
        assert not found or found == found[: len(found) // 1000] * 1000
    await store.close()


# Objects of any length ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4 * KIB, 64 * KIB, 70 * KIB, MIB, 5 * MIB + 7])
async def test_objects_of_any_length(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    store = await St1Store.open(tmp_path / "image", create=True)
    stat = await store.put(data, b"key")
    hashed = await store.put(data)
    assert hashed.key == hashlib.sha256(data).digest()
    sink = await store.begin(b"sunk", size=size)
    for at in range(0, size, 300_000):
        await sink.write(data[at : at + 300_000])
    assert (await sink.commit()).size == size == stat.size
    for key in (b"key", hashed.key, b"sunk"):
        assert await store.get(key) == data
        for _ in range(10):
            offset = random.randrange(size + 2)
            length = random.randrange(200_000)
            found = await store.read(key, offset, length)
            assert bytes(found.data) == data[offset : offset + length]
    await store.close()
    store = await St1Store.open(tmp_path / "image", read_only=True)
    assert await store.get(b"key") == data == await store.get(hashed.key)
    with pytest.raises(ReadOnly):
        await store.put(b"", b"key")
    await store.close()


async def test_what_is_too_long_is_refused_before_it_moves() -> None:
    store = await over(formatted())
    with pytest.raises(TooLarge):
        await store.begin(b"key", size=OBJECT_BYTES_MAX + 1)
    for key in (b"", b"k" * 1025):
        for call in (store.get, store.stat, store.delete):
            with pytest.raises(InvalidArgument):
                await call(key)
    with pytest.raises(InvalidArgument):
        await store.put(b"", b"k" * 1025)
    assert (await store.put(b"", b"k" * 1024)).size == 0
    await store.close()


async def test_a_sink_that_is_dropped_leaves_nothing() -> None:
    device = formatted()
    store = await over(device)
    before = (await store.usage()).used_bytes
    for _ in range(3):
        sink = await store.begin(b"key")
        for _ in range(6):
            await sink.write(bytes(MIB))
        del sink
        gc.collect()
    await until(lambda: store._driver.is_idle)
    await store.compact()
    assert await contents(store) == {}
    assert (await store.usage()).used_bytes <= before + 64 * KIB
    assert list(verify(MemoryDevice(device.view))) == []
    await store.close()


async def test_a_sink_ends_once() -> None:
    store = await over(formatted())
    sink = await store.begin(b"key", Condition(absent=True))
    await sink.write(b"data")
    await store.put(b"first", b"key")
    with pytest.raises(Conflict):
        await sink.commit()
    await sink.abort()
    await sink.abort()
    for call in (sink.commit, lambda: sink.write(b"")):
        with pytest.raises(Closed):
            await call()
    assert await store.get(b"key") == b"first"
    await store.close()


# Beside one another ------------------------------------------------------------------------------


async def test_gets_and_puts_go_on_while_it_is_compacted(tmp_path: Path) -> None:
    store = await St1Store.open(tmp_path / "image", create=True)
    expected = {b"%04d" % n: random.Random(n).randbytes(n % 3000) for n in range(2000)}
    for round_ in range(2):
        items = list(expected.items())
        for at in range(0, len(items), 500):
            batch = [Put(key, data if round_ else b"old") for key, data in items[at : at + 500]]
            await store.batch(batch)
    compacting = asyncio.ensure_future(store.compact())
    steps = 0
    while not compacting.done():
        key = b"%04d" % random.randrange(2500)
        if steps % 3 == 0:
            expected[key] = b"new %d" % steps
            await store.put(expected[key], key)
        elif steps % 3 == 1 and key in expected:
            await store.delete(key)
            del expected[key]
        elif key in expected:
            assert await store.get(key) == expected[key]
        steps += 1
    await compacting
    assert await contents(store) == expected
    await store.close()
    store = await St1Store.open(tmp_path / "image")
    assert await contents(store) == expected
    await store.close()


async def test_conditional_puts_of_many_lose_nothing() -> None:
    store = await over(formatted())
    await store.put(b"0", b"counter")

    async def count() -> None:
        for _ in range(10):
            while True:
                found = await store.read(b"counter", 0, 100)
                value = b"%d" % (int(bytes(found.data)) + 1)
                with suppress(Conflict):
                    await store.put(value, b"counter", Condition(version=found.stat.version))
                    break

    await asyncio.gather(*(count() for _ in range(8)))
    assert await store.get(b"counter") == b"80"
    await store.close()


async def test_garbage_goes_and_what_is_used_stays() -> None:
    store = await over(formatted())
    kept = await store.put(b"kept" * 1000)
    lost = await store.put(b"lost" * 1000)
    again = await store.put(b"again" * 1000)
    plain = await store.put(b"plain", b"key")
    await (await store.names.sub("releases")).bind(Binding("current", hash=kept.key))
    collecting = asyncio.ensure_future(store.collect())
    # Whoever puts it meanwhile finds it there afterwards.
    assert (await store.put(b"again" * 1000)).key == again.key
    collected = await collecting
    found = await contents(store)
    assert kept.key in found
    assert lost.key not in found
    assert plain.key in found
    assert collected.objects >= 1
    if again.key not in found:
        assert collected.objects == 2, "it was put after it had gone, or it is there"
    assert (await store.collect(older_than=3600)).objects == 0
    await store.close()


async def test_what_a_put_answered_during_a_collection_is_there_afterwards() -> None:
    store = await over(formatted())
    data = [b"%d" % n * 500 for n in range(1500)]
    await store.batch([Put(b"", each) for each in data[:1000]])
    await store.batch([Put(b"", each) for each in data[1000:]])
    engine = store._driver.engine
    collecting = asyncio.ensure_future(store.collect())
    await until(lambda: engine.marking is not None)
    answered = []
    for each in data:
        answered.append((await store.put(each)).key)
        await asyncio.sleep(0)
    await collecting
    for key in answered:
        assert await store.has(key)
    await store.close()


# Opening and closing -----------------------------------------------------------------------------


async def test_specifications(tmp_path: Path) -> None:
    spec = f"st1:{tmp_path / 'image'}"
    with pytest.raises(NotFound):
        await open_backer(spec)
    store = await open_backer(f"{spec},create")
    with pytest.raises(Busy):
        await open_backer(spec)
    await store.close()
    readers = [await open_backer(f"{spec},ro") for _ in range(2)]
    with pytest.raises(Busy):
        await open_backer(spec)
    for reader in readers:
        await reader.close()
    for wrong in ("st1:", f"{spec},size=1MiB", f"{spec},create,ro", f"{spec},part=1"):
        with pytest.raises(InvalidArgument):
            await open_backer(wrong)
    with pytest.raises(InvalidArgument, match="a store of objects"):
        await open_volume(spec)
    with pytest.raises(Corrupt):
        await open_backer(f"wf1:{tmp_path / 'image'}")


async def test_after_close_everything_is_closed() -> None:
    store = await over(formatted())
    sink = await store.begin(b"key")
    await store.close()
    await store.close()
    for call in (
        lambda: store.get(b"k"),
        lambda: store.put(b"", b"k"),
        lambda: store.delete(b"k"),
        lambda: store.batch([Delete(b"k")]),
        store.list,
        store.usage,
        store.sync,
        store.compact,
        store.collect,
        lambda: store.names.resolve("n"),
        lambda: sink.write(b""),
        sink.commit,
    ):
        with pytest.raises(Closed):
            await call()
    await sink.abort()
