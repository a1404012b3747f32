"""Names over a store, and the collection of what none of them stands for."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

import pytest

from capstore.backers.store import Binding, Condition, Namespace, ObjectStore, Put
from capstore.schema.errors import Conflict, InvalidArgument, InvalidName, NotFound
from tests.contract.stores import keys_of

pytestmark = pytest.mark.anyio

ABSENT = Condition(absent=True)


async def names_of(names: Namespace, limit: int = 1000) -> list[str]:
    found: list[str] = []
    while True:
        page = await names.list(found[-1] if found else "", limit)
        found += [binding.name for binding in page.bindings]
        if not page.more:
            return found


async def test_a_name_stands_for_a_content(store: ObjectStore) -> None:
    names = store.names
    key = (await store.put(b"content")).key
    version = await names.bind(Binding("latest", hash=key))
    assert version > 0
    assert await names.resolve("latest") == Binding("latest", version, hash=key)
    other = (await store.put(b"other")).key
    assert await names.bind(Binding("latest", 12345, hash=other)) > version
    assert (await names.resolve("latest")).hash == other
    await names.unbind("latest")
    with pytest.raises(NotFound):
        await names.resolve("latest")
    with pytest.raises(NotFound):
        await names.unbind("latest")
    assert await store.has(key)


async def test_compare_and_set(store: ObjectStore) -> None:
    names = store.names
    one, two = (await store.put(b"1")).key, (await store.put(b"2")).key
    first = await names.bind(Binding("n", hash=one), ABSENT)
    for condition in (ABSENT, Condition(version=first + 1)):
        with pytest.raises(Conflict):
            await names.bind(Binding("n", hash=two), condition)
        with pytest.raises(Conflict):
            await names.unbind("n", condition)
    second = await names.bind(Binding("n", hash=two), Condition(version=first))
    with pytest.raises(Conflict):
        await names.bind(Binding("n", hash=one), Condition(version=first))
    assert await names.resolve("n") == Binding("n", second, hash=two)
    await names.unbind("n", Condition(version=second))
    with pytest.raises(Conflict):
        await names.bind(Binding("n", hash=one), Condition(version=second))


async def test_one_of_many_binds(store: ObjectStore) -> None:
    names = store.names
    keys = [(await store.put(b"%d" % number)).key for number in range(10)]

    async def bind(key: bytes) -> bool:
        try:
            await names.bind(Binding("n", hash=key), ABSENT)
        except Conflict:
            return False
        return True

    won = await asyncio.gather(*(bind(key) for key in keys))
    assert won.count(True) == 1
    assert (await names.resolve("n")).hash == keys[won.index(True)]


async def test_a_name_needs_something_to_stand_for(store: ObjectStore) -> None:
    names = store.names
    await store.put(b"x", b"k" * 32)
    for binding, error in (
        (Binding("n"), InvalidArgument),
        (Binding("n", hash=b"\0" * 32, reference=1), InvalidArgument),
        (Binding("n", hash=b"\0" * 32), NotFound),
        # There is such an object, but it may be replaced by another one.
        (Binding("n", hash=b"k" * 32), NotFound),
    ):
        with pytest.raises(error):
            await names.bind(binding)
    assert await names_of(names) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "\0", "x" * 256, "\ud800"])
async def test_a_name_is_one_segment(store: ObjectStore, name: str) -> None:
    names = store.names
    key = (await store.put(b"x")).key
    for call in (
        names.bind(Binding(name, hash=key)),
        names.resolve(name),
        names.unbind(name),
        names.sub(name),
    ):
        with pytest.raises(InvalidName):
            await call


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_listing(store: ObjectStore, limit: int) -> None:
    names = store.names
    key = (await store.put(b"x")).key
    wanted = ["a", "a b", "ab", "b", "ü", "\U0001f600"]
    for name in reversed(wanted):
        await names.bind(Binding(name, hash=key))
    below = await names.sub("a")
    await below.bind(Binding("inner", hash=key))
    assert await names_of(names, limit) == sorted(wanted, key=str.encode)
    assert await names_of(below, limit) == ["inner"]


async def test_namespaces_below(store: ObjectStore) -> None:
    names = store.names
    one, two = (await store.put(b"1")).key, (await store.put(b"2")).key
    deep = await (await names.sub("a")).sub("b")
    await deep.bind(Binding("n", hash=one))
    await names.bind(Binding("a", hash=two))
    assert (await (await (await names.sub("a")).sub("b")).resolve("n")).hash == one
    assert (await names.resolve("a")).hash == two
    assert await names_of(names) == ["a"]
    with pytest.raises(NotFound):
        await names.resolve("b")
    await names.unbind("a")
    assert (await deep.resolve("n")).hash == one


# Collection --------------------------------------------------------------------------------------


async def test_what_no_name_stands_for_is_collected(store: ObjectStore) -> None:
    names = store.names
    kept = (await store.put(b"kept")).key
    below = (await store.put(b"kept below")).key
    await store.put(b"garbage!")
    await store.put(b"not content-addressed", b"k")
    await names.bind(Binding("n", hash=kept))
    await (await names.sub("s")).bind(Binding("n", hash=below))
    assert (await store.collect(3600)).objects == 0
    collected = await store.collect()
    assert (collected.objects, collected.bytes) == (1, 8)
    assert await keys_of(store) == sorted([kept, below, b"k"])
    await names.unbind("n")
    assert (await store.collect()).objects == 1
    assert await keys_of(store) == sorted([below, b"k"])


async def test_what_is_put_or_bound_meanwhile_is_kept(store: ObjectStore) -> None:
    names = store.names
    await store.batch([Put(b"", b"old %d" % number) for number in range(200)])
    victim = hashlib.sha256(b"old 1").digest()

    async def bind() -> list[bytes]:
        bound = []
        for number in range(0, 200, 10):
            for _ in range(100):
                key = (await store.put(b"old %d" % number)).key
                with suppress(NotFound):  # collected in between
                    await names.bind(Binding(f"n{number}", hash=key))
                    bound.append(key)
                    break
        return bound

    async def put() -> list[bytes]:
        while await store.has(victim):  # it has begun when this is gone
            await asyncio.sleep(0)
        return [(await store.put(b"new %d" % number)).key for number in range(20)]

    bound, fresh, collected = await asyncio.gather(bind(), put(), store.collect())
    assert len(bound) == 20
    assert collected.objects <= 200
    assert set(await keys_of(store)) >= {*bound, *fresh}
    await store.collect()
    assert await keys_of(store) == sorted(bound)
