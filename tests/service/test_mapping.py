"""A store as a mapping: over a store on the background loop, and over a connection."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import capstore
from capstore.backers.store import (
    ANY,
    Condition,
    Delete,
    ObjectPage,
    ObjectRange,
    ObjectStat,
    ObjectStore,
    Put,
)
from capstore.schema.errors import (
    Closed,
    Conflict,
    Corrupt,
    InvalidArgument,
    NotFound,
    TooLarge,
)
from capstore.schema.limits import (
    KEY_BYTES_MAX,
    OBJECT_BYTES_MAX,
    PAGE_ENTRIES_MAX,
    TRANSFER_BYTES_MAX,
)
from capstore.service.mapping import ABSENT, ObjectMapping
from capstore.service.object_streams import Blocks
from tests.contract.store_model import ModelStore

LARGE = bytes(range(256)) * 12_345


class Watched(ModelStore):
    """Has short pages, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        self.pages += 1
        return await super().list(prefix, after, min(limit, 10))


class Place:
    """Where a store is; each opening of it gives the same one."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.open = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[ObjectStore]:
        self.open += 1
        yield self.store
        self.open -= 1


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def mapping(store: Watched) -> Iterator[ObjectMapping]:
    with ObjectMapping(Place(store)) as mapping:
        yield mapping


def test_it_is_a_mapping(mapping: ObjectMapping) -> None:
    assert not mapping
    assert len(mapping) == 0
    mapping[b"b"] = b"2"
    mapping[b"a"] = bytearray(b"1")
    mapping[b"\x00\xff"] = memoryview(b"")
    assert mapping
    assert len(mapping) == 3
    assert list(mapping) == [b"\x00\xff", b"a", b"b"]
    assert list(mapping.items()) == [(b"\x00\xff", b""), (b"a", b"1"), (b"b", b"2")]
    assert list(mapping.values()) == [b"", b"1", b"2"]
    assert list(mapping.keys()) == list(mapping)
    assert (b"a", b"1") in mapping.items()
    assert b"2" in mapping.values()
    assert b"3" not in mapping.values()
    assert b"a" in mapping
    assert b"c" not in mapping
    assert mapping.get(b"a") == b"1"
    assert mapping.get(b"c") is None
    assert mapping.get(b"c", b"x") == b"x"
    mapping[b"a"] = b"one"
    assert mapping[b"a"] == b"one"
    mapping.update({b"d": b"4"})
    del mapping[b"a"]
    assert dict(mapping) == {b"\x00\xff": b"", b"b": b"2", b"d": b"4"}
    mapping.clear()
    assert not mapping
    assert mapping != {}
    assert mapping == mapping
    assert len({mapping}) == 1


def test_what_is_not_there_is_a_key_error_of_a_mapping(mapping: ObjectMapping) -> None:
    for action in (
        lambda: mapping[b"a"],
        lambda: mapping.__delitem__(b"a"),
        lambda: mapping.pop(b"a"),
        mapping.popitem,
    ):
        with pytest.raises(KeyError):
            action()
    assert mapping.pop(b"a", None) is None
    for action in (
        lambda: mapping.stat(b"a"),
        lambda: mapping.delete(b"a"),
        lambda: mapping.read(b"a", 0, 1),
        lambda: mapping.get_stream(b"a"),
    ):
        with pytest.raises(NotFound):
            action()


@pytest.mark.parametrize("key", ["a", 1, None, bytearray(b"a")])
def test_keys_are_bytes(mapping: ObjectMapping, key: Any) -> None:
    for action in (
        lambda: mapping[key],
        lambda: mapping.__setitem__(key, b""),
        lambda: mapping.__delitem__(key),
        lambda: key in mapping,
        lambda: mapping.get(key),
        lambda: mapping.pop(key, None),
        lambda: mapping.setdefault(key, b""),
        lambda: mapping.put(b"", key),
        lambda: mapping.put_stream([b""], key),
        lambda: mapping.get_stream(key),
        lambda: mapping.stat(key),
        lambda: mapping.read(key, 0, 0),
        lambda: mapping.delete(key),
    ):
        with pytest.raises(TypeError, match="keys of a store are bytes"):
            action()
    assert not mapping


@pytest.mark.parametrize("key", [b"", b"k" * (KEY_BYTES_MAX + 1)])
def test_what_cannot_be_a_key_is_refused(mapping: ObjectMapping, key: bytes) -> None:
    for action in (
        lambda: mapping[key],
        # Not content-addressed by accident.
        lambda: mapping.__setitem__(key, b""),
        lambda: mapping.__delitem__(key),
        lambda: key in mapping,
        lambda: mapping.setdefault(key, b""),
        lambda: mapping.stat(key),
    ):
        with pytest.raises(InvalidArgument):
            action()
    mapping[b"k" * KEY_BYTES_MAX] = b"x"
    assert len(mapping) == 1


def test_values_are_bytes(mapping: ObjectMapping) -> None:
    for value in ("text", 1, None, [b"x"]):
        with pytest.raises(TypeError, match="values of a store are bytes"):
            mapping[b"a"] = value  # type: ignore[assignment]
        with pytest.raises(TypeError, match="values of a store are bytes"):
            mapping.setdefault(b"a", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values of a store are bytes"):
        mapping.put_stream(["text"])  # type: ignore[list-item]
    assert not mapping


def test_iterating_is_lazy_and_by_pages(store: Watched, mapping: ObjectMapping) -> None:
    mapping.batch([Put(b"%03d" % number, b"v") for number in range(35)])
    store.pages = 0
    keys = iter(mapping)
    assert store.pages == 0
    assert next(keys) == b"000"
    assert store.pages == 1
    # What is removed behind the reader, or put ahead of it, does no harm.
    mapping.clear()
    mapping[b"100"] = b"late"
    assert list(keys)[-1] == b"100"
    mapping.clear()
    mapping.batch([Put(b"%03d" % number, b"v") for number in range(35)])
    store.pages = 0
    assert len(mapping) == 35
    assert store.pages == 4
    store.pages = 0
    assert mapping
    assert store.pages == 1
    assert [stat.key for stat in mapping.list(b"02")] == [b"%03d" % each for each in range(20, 30)]


def test_what_is_removed_before_its_turn_is_passed_over(
    store: Watched, mapping: ObjectMapping
) -> None:
    mapping.batch([Put(b"%03d" % number, b"v" * number) for number in range(25)])
    seen = []
    for key, value in mapping.items():
        assert len(value) == int(key)
        seen.append(key)
        if key == b"009":
            del mapping[b"015"], mapping[b"024"]
    assert seen == [b"%03d" % number for number in range(25) if number not in (15, 24)]


def test_large_values_are_not_fetched_together(mapping: ObjectMapping) -> None:
    for number in range(3):
        mapping[b"%d" % number] = LARGE
    assert [len(value) for value in mapping.values()] == [len(LARGE)] * 3


def test_a_listing_without_end_is_refused(store: Watched, mapping: ObjectMapping) -> None:
    stuck = ObjectPage([ObjectStat(b"a", 1, 1)], more=True)

    async def stuck_list(*_: Any, **__: Any) -> ObjectPage:
        return stuck

    store.list = stuck_list  # type: ignore[method-assign]
    with pytest.raises(Corrupt):
        len(mapping)
    with pytest.raises(Corrupt):
        mapping.clear()
    stuck = ObjectPage([], more=True)
    with pytest.raises(Corrupt):
        list(mapping)


def test_versions_and_conditions(mapping: ObjectMapping) -> None:
    first = mapping.put(b"1", b"a", ABSENT)
    with pytest.raises(Conflict):
        mapping.put(b"2", b"a", ABSENT)
    second = mapping.put(b"2", b"a", Condition(version=first.version))
    assert second.version > first.version
    with pytest.raises(Conflict):
        mapping.put(b"3", b"a", Condition(version=first.version))
    with pytest.raises(Conflict):
        mapping.delete(b"a", Condition(version=first.version))
    assert mapping.stat(b"a") == second
    part = mapping.read(b"a", 0, 10)
    assert (part.data, part.stat) == (b"2", second)
    versions = mapping.batch([Delete(b"a", Condition(version=second.version)), Put(b"b", b"x")])
    assert versions[0] == 0
    assert list(mapping) == [b"b"]
    with pytest.raises(NotFound):
        mapping.batch([Put(b"c", b"x"), Delete(b"nothing")])
    assert list(mapping) == [b"b"]


def test_content_addressed(mapping: ObjectMapping) -> None:
    stat = mapping.put(b"content")
    assert stat.key == hashlib.sha256(b"content").digest()
    assert mapping[stat.key] == b"content"
    assert mapping.put_stream(io.BytesIO(LARGE)).key == hashlib.sha256(LARGE).digest()
    assert mapping.collect().objects == 2
    assert not mapping
    mapping.compact()
    mapping.sync()
    assert mapping.usage().used_nodes == 0


@pytest.mark.parametrize("times", [0, 3])
def test_taking_is_atomic(store: Watched, mapping: ObjectMapping, times: int) -> None:
    mapping[b"a"] = b"0"
    _replace_before_deletes(store, times)
    assert mapping.pop(b"a") == b"%d" % times
    assert b"a" not in mapping


def test_taking_gives_up_on_what_never_rests(store: Watched, mapping: ObjectMapping) -> None:
    mapping[b"a"] = b"0"
    _replace_before_deletes(store, 1000)
    with pytest.raises(Conflict):
        mapping.pop(b"a")
    assert b"a" in mapping


def _replace_before_deletes(store: Watched, times: int) -> None:
    """Has somebody be faster, so many times."""
    delete, counter = store.delete, itertools.count(1)

    async def too_late(key: bytes, condition: Condition = ANY) -> None:
        if (number := next(counter)) <= times:
            store.state.put(b"%d" % number, key, ANY)
        await delete(key, condition)

    store.delete = too_late  # type: ignore[method-assign]


def test_setdefault_keeps_the_first(mapping: ObjectMapping) -> None:
    results: list[bytes] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        results.append(mapping.setdefault(b"k", b"%d" % number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {mapping[b"k"]}
    assert len(results) == 8


def test_popitem_empties_the_store(mapping: ObjectMapping) -> None:
    mapping.update({b"b": b"2", b"a": b"1"})
    assert [mapping.popitem(), mapping.popitem()] == [(b"a", b"1"), (b"b", b"2")]
    assert not mapping


# Streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        TRANSFER_BYTES_MAX - 1,
        TRANSFER_BYTES_MAX,
        TRANSFER_BYTES_MAX + 1,
        2 * TRANSFER_BYTES_MAX,
        len(LARGE),
    ],
)
def test_streams_of_any_size(store: Watched, mapping: ObjectMapping, size: int) -> None:
    data = LARGE[:size]
    stat = mapping.put_stream(io.BytesIO(data), b"k", ABSENT, size)
    assert (stat.size, mapping[b"k"] == data) == (size, True)
    pieces = [data[at : at + 300_000] for at in range(0, size, 300_000)]
    assert mapping.put_stream(iter(pieces), b"l").size == size
    assert mapping[b"l"] == data
    with mapping.get_stream(b"k") as stream:
        assert stream.read() == data
        assert stream.seek(-min(size, 5), io.SEEK_END) == max(0, size - 5)
        assert stream.read() == data[-5:]
        assert stream.seek(0) == 0
        assert stream.read(3) == data[:3]
        assert stream.seek(size + 10) == size + 10
        assert stream.read() == b""
        with pytest.raises(InvalidArgument):
            stream.seek(-1)
    with pytest.raises(Conflict):
        mapping.put_stream([b"x"], b"k", ABSENT)
    with pytest.raises(Conflict):
        mapping.put_stream([LARGE], b"k", ABSENT)
    assert store.sinks_open == 0


def test_a_put_that_fails_leaves_nothing(store: Watched, mapping: ObjectMapping) -> None:
    def pieces() -> Iterator[bytes]:
        yield LARGE
        assert store.sinks_open == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mapping.put_stream(pieces(), b"k")
    with pytest.raises(TooLarge):
        mapping.put_stream([LARGE], b"k", size=OBJECT_BYTES_MAX + 1)
    assert store.sinks_open == 0
    assert not mapping


@pytest.mark.parametrize("remove", [False, True])
def test_a_stream_never_mixes_versions(mapping: ObjectMapping, remove: bool) -> None:
    mapping[b"k"] = LARGE
    with mapping.get_stream(b"k") as stream:
        assert stream.read(10) == LARGE[:10]
        if remove:
            del mapping[b"k"]
        else:
            mapping[b"k"] = LARGE
        with pytest.raises(Conflict):
            stream.read()


@pytest.mark.parametrize(("cut", "size"), [(1, 3), (0, 4), (0, 2), (0, OBJECT_BYTES_MAX + 1)])
def test_a_store_that_lies_about_an_object_is_found_out(
    store: Watched, mapping: ObjectMapping, cut: int, size: int
) -> None:
    mapping[b"k"] = b"abc"
    stat = replace(mapping.stat(b"k"), size=size)

    async def lie(key: bytes, offset: int, length: int) -> ObjectRange:
        return ObjectRange(b"abc"[cut:], stat)

    store.read = lie  # type: ignore[method-assign]
    with pytest.raises(Corrupt):
        mapping.pop(b"k")
    if cut:
        with mapping.get_stream(b"k") as stream, pytest.raises(Corrupt):
            stream.read()


def test_blocks_are_whole_but_for_the_last() -> None:
    blocks = Blocks()
    lengths = [1, 0, TRANSFER_BYTES_MAX, 5, 3 * TRANSFER_BYTES_MAX - 6, 7]
    counter = itertools.count()
    pieces = [bytes([next(counter) + 65]) * length for length in lengths]
    made = [block for piece in pieces for block in blocks.add(piece)]
    assert [len(block) for block in made] == [TRANSFER_BYTES_MAX] * 4
    assert b"".join([*made, blocks.rest()]) == b"".join(pieces)
    assert blocks.rest() == b""


# Names -------------------------------------------------------------------------------------------


def test_names(mapping: ObjectMapping) -> None:
    key = mapping.put(b"content").key
    names = mapping.names
    version = names.bind(capstore.Binding("current", hash=key), ABSENT)
    assert names.resolve("current") == capstore.Binding("current", version, hash=key)
    with pytest.raises(Conflict):
        names.bind(capstore.Binding("current", hash=key), ABSENT)
    below = names.sub("a").sub("b")
    for number in range(15):
        below.bind(capstore.Binding(f"{number:02}", hash=key))
    assert [each.name for each in below.list()] == [f"{number:02}" for number in range(15)]
    assert [each.name for each in names.list()] == ["current"]
    assert mapping.collect().objects == 0
    names.unbind("current", Condition(version=version))
    for binding in list(below.list()):
        below.unbind(binding.name)
    assert mapping.collect().objects == 1
    with pytest.raises(NotFound):
        names.resolve("current")


# Its life ----------------------------------------------------------------------------------------


def test_closing_lets_the_store_go(store: Watched) -> None:
    place = Place(store)
    mapping = ObjectMapping(place)
    assert place.open == 1
    mapping.close()
    mapping.close()
    with pytest.raises(Closed):
        mapping[b"a"] = b"x"
    dropped = ObjectMapping(place)
    dropped[b"a"] = b"x"
    del dropped
    gc.collect()
    other = ObjectMapping(place)
    other.sync()  # behind what was left to do on the loop
    other.sync()
    assert place.open == 1
    other.close()


def test_what_opening_raises(store: Watched) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[ObjectStore]:
        raise Conflict("no")
        yield store

    with pytest.raises(Conflict):
        ObjectMapping(broken)


def test_a_child_made_by_fork_opens_the_store_anew(store: Watched) -> None:
    place = Place(store)
    with ObjectMapping(place) as mapping:
        mapping[b"a"] = b"x"
        assert repr(mapping) == f"<ObjectMapping of {place!r}>"
        child = os.fork()
        if child == 0:
            ok = mapping[b"a"] == b"x" and place.open == 2
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert place.open == 1
