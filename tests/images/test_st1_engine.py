"""CAPOSST1: operations, room, compaction, and doing things at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from capstore.images import st1, st1_index, st1_upkeep
from capstore.images.devices import FileDevice, MemoryDevice
from capstore.images.faults import CountdownDevice
from capstore.images.segments import FREE
from capstore.images.st1_open import format_st1, open_st1
from capstore.images.st1_verify import verify
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.schema.errors import (
    Closed,
    Conflict,
    Corrupt,
    InvalidArgument,
    NoSpace,
    NotFound,
    ReadOnly,
    StorageIOError,
    TooLarge,
)
from capstore.schema.limits import MIB
from capstore.schema.objects import Condition, Delete, Put
from tests.images.st1model import KIB, Clock, content_of, entropy, new_store, reopened


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# Operations --------------------------------------------------------------------------------------


def test_putting_and_getting() -> None:
    engine = new_store()
    stat = engine.put(b"key", b"value")
    assert (stat.key, stat.size, stat.version) == (b"key", 5, 1)
    assert engine.get(b"key") == b"value"
    assert engine.stat(b"key") == stat
    assert engine.put(b"key", bytearray(b"more")).version == 2
    assert engine.read(b"key", 1, 2) == (b"or", engine.stat(b"key"))
    assert engine.read(b"key", 3, 100)[0] == b"e"
    assert engine.read(b"key", 4, 1)[0] == b""
    engine.delete(b"key")
    for call in (engine.get, engine.stat, engine.delete):
        with pytest.raises(NotFound):
            call(b"key")
    # A version is never used again.
    engine.compact()
    engine.sync()
    assert reopened(engine.device).put(b"key", b"").version == 3


@pytest.mark.parametrize("key", [b"x" * 1025, b"x" * 5000])
def test_keys_are_short(key: bytes) -> None:
    engine = new_store(None, 64 * KIB)
    calls: list[Callable[[], object]] = [
        lambda: engine.put(key, b""),
        lambda: engine.get(key),
        lambda: engine.stat(key),
        lambda: engine.delete(key),
        lambda: engine.read(key, 0, 1),
        lambda: engine.begin(key),
        lambda: engine.batch([Put(b"a", b""), Put(key, b"")]),
        lambda: engine.batch([Put(b"a", b""), Delete(key)]),
        lambda: engine.get(b""),
        lambda: engine.delete(b""),
        lambda: engine.read(b"k", -1, 1),
        lambda: engine.read(b"k", 1, -1),
        lambda: engine.begin(b"k", size=-1),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument):
            call()
    assert content_of(engine) == {}
    engine.put(b"x" * 1024, b"long")
    engine.compact()
    assert content_of(engine) == {b"x" * 1024: b"long"}


def test_content_is_under_its_hash() -> None:
    engine = new_store(None, 64 * KIB)
    for data in (b"", b"short", b"long" * 50_000):
        key = engine.put(b"", data).key
        assert key == sha(data)
        assert engine.get(key) == data
        # The key that the content has anyway is as good as none; other content is refused.
        assert engine.put(key, data).version == engine.version
        with pytest.raises(Conflict):
            engine.put(key, b"other")
        with pytest.raises(Conflict):
            engine.batch([Put(b"a", b"a"), Put(key, b"other")])
    assert len(content_of(engine)) == 3
    # What was put with a key, and not with its own hash, gives way to content.
    stolen = sha(b"content")
    engine.put(stolen, b"something else")
    assert engine.put(b"", b"content").key == stolen
    assert engine.get(stolen) == b"content"


def test_the_same_content_again_takes_no_room() -> None:
    engine = new_store(None, 64 * KIB)
    data = Random(1).randbytes(40_000)
    first = engine.put(b"", data)
    used = sum(engine.space.live)
    again = engine.put(b"", data)
    assert again.version > first.version
    assert again.created > first.created
    assert sum(engine.space.live) == used
    assert engine.writer.data_segment >= 0


def test_conditions() -> None:
    engine = new_store(None, 64 * KIB)
    version = engine.put(b"k", b"1", Condition(absent=True)).version
    with pytest.raises(Conflict):
        engine.put(b"k", b"2", Condition(absent=True))
    with pytest.raises(Conflict):
        engine.put(b"other", b"2", Condition(version=version))
    with pytest.raises(Conflict):
        engine.delete(b"k", Condition(version=version + 1))
    engine.put(b"k", b"2", Condition(version=version))
    with pytest.raises(Conflict):
        engine.put(b"k", b"3", Condition(version=version))
    assert engine.get(b"k") == b"2"


def test_a_batch_is_all_or_nothing() -> None:
    engine = new_store(None, 64 * KIB)
    engine.put(b"a", b"1")
    with pytest.raises(NotFound):
        engine.batch([Put(b"b", b"2"), Delete(b"a"), Delete(b"missing")])
    with pytest.raises(Conflict):
        engine.batch([Put(b"b", b"2"), Put(b"a", b"2", Condition(absent=True))])
    with pytest.raises(TooLarge):
        engine.batch([Put(b"x%d" % n, b"") for n in range(1001)])
    assert content_of(engine) == {b"a": b"1"}
    # Later changes see what earlier ones did.
    versions = engine.batch(
        [
            Delete(b"a"),
            Put(b"a", b"new", Condition(absent=True)),
            Put(b"", b"hash"),
            Put(b"", b"hash"),
            Put(b"z", b"big" * 20_000),
            Delete(b"z"),
        ]
    )
    assert versions == [0, 2, 3, 4, 5, 0]
    assert content_of(engine) == {b"a": b"new", sha(b"hash"): b"hash"}
    engine.sync()
    assert content_of(reopened(engine.device)) == content_of(engine)
    assert engine.batch([]) == []


def test_a_batch_longer_than_a_frame_is_one_change() -> None:
    device = MemoryDevice()
    engine = new_store(None, 4 * KIB, device)
    wanted = {b"%0100d" % n: b"%d" % n * 60 for n in range(400)}
    engine.batch([Put(key, value) for key, value in wanted.items()])
    engine.sync()
    assert content_of(reopened(MemoryDevice(device.view))) == wanted
    # Without its last frame there is nothing of it.
    raw = bytearray(device.view)
    position = engine.writer.position
    start = engine.geometry.start(position.segment)
    raw[start : start + position.offset] = bytes(position.offset)
    assert content_of(reopened(MemoryDevice(raw))) == {}


@pytest.mark.parametrize("length", [0, 1, 4096, 256 * KIB - 1, 256 * KIB, 700_001])
def test_a_put_in_pieces(length: int) -> None:
    engine = new_store()
    data = Random(length).randbytes(length)
    for key in (b"", b"key"):
        writing = engine.begin(key, size=length)
        for at in range(0, length, 100_000):
            writing.write(data[at : at + 100_000])
        assert not content_of(engine) if not key else True
        stat = writing.commit()
        assert stat.key == key or sha(data)
        with pytest.raises(Closed):
            writing.commit()
        with pytest.raises(Closed):
            writing.write(b"")
        writing.abort()
        assert engine.get(stat.key) == data
        assert engine.read(stat.key, 250 * KIB, 10 * KIB)[0] == data[250 * KIB : 260 * KIB]
    engine.sync()
    engine.compact()
    assert not list(verify(engine.device))
    assert engine.get(b"key") == data
    assert not engine.upkeep.held


def test_a_put_in_pieces_is_bounded() -> None:
    engine = new_store(128 * KIB)
    with pytest.raises(TooLarge):
        engine.begin(b"k", size=1025 * MIB)
    writing = engine.begin(b"k")
    with pytest.raises(NoSpace):
        for _ in range(40):
            writing.write(bytes(4 * KIB))
    writing.abort()
    engine.compact()
    engine.put(b"k", bytes(60 * KIB))
    assert engine.get(b"k") == bytes(60 * KIB)


def test_pieces_outlive_compaction() -> None:
    engine = new_store(None, 16 * KIB)
    data = Random(3).randbytes(100 * KIB)
    writing = engine.begin(b"slow")
    for at in range(0, len(data), 10 * KIB):
        writing.write(data[at : at + 10 * KIB])
        engine.put(b"other", data[: at + 1])
        engine.compact()
    writing.commit()
    engine.compact()
    assert engine.get(b"slow") == data
    assert not list(verify(engine.device))


def test_lists_are_in_order_and_paged() -> None:
    engine = new_store(None, 64 * KIB)
    keys = sorted(b"%d" % (n * 7919 % 1000) for n in range(500))
    for number, key in enumerate(Random(1).sample(keys, len(keys))):
        engine.put(key, key)
        if number == 300:
            engine.compact()
    for key in keys[::7]:
        engine.delete(key)
    left = [key for key in keys if key not in keys[::7]]
    assert list(content_of(engine)) == left
    for prefix in (b"", b"1", b"12", b"999", b"x"):
        wanted = [key for key in left if key.startswith(prefix)]
        found, more = engine.list(prefix, limit=5)
        assert [stat.key for stat in found] == wanted[:5]
        assert more == (len(wanted) > 5)
        found, more = engine.list(prefix, after=b"50")
        assert [stat.key for stat in found] == [key for key in wanted if key > b"50"]


# Opening and closing -----------------------------------------------------------------------------


def test_a_closed_store() -> None:
    device = MemoryDevice()
    engine = new_store(None, 64 * KIB, device)
    engine.put(b"k", b"v")
    engine.close()
    engine.close()
    with pytest.raises(Closed):
        engine.get(b"k")
    with pytest.raises(Closed):
        engine.put(b"k", b"")
    with pytest.raises(Closed):
        engine.list()


def test_a_store_that_is_open_for_reading_writes_nothing() -> None:
    device = MemoryDevice()
    engine = new_store(None, 64 * KIB, device)
    engine.put(b"k", b"v" * 40_000)
    engine.sync()
    before = bytes(device.view)
    reading = reopened(MemoryDevice(before, read_only=True), writable=False)
    assert reading.get(b"k") == b"v" * 40_000
    for call in (
        lambda: reading.put(b"k", b""),
        lambda: reading.delete(b"k"),
        lambda: reading.begin(b"k"),
        reading.compact,
        reading.sync,
    ):
        with pytest.raises(ReadOnly):
            call()
    reading.close()


def test_after_a_failure_nothing_is_written_any_more() -> None:
    inner = MemoryDevice()
    new_store(None, 64 * KIB, inner)
    engine = reopened(CountdownDevice(inner, 2, "write"))
    engine.put(b"a", b"1")
    engine.sync()
    engine.put(b"b", b"2")
    with pytest.raises(StorageIOError):
        engine.sync()
    with pytest.raises(StorageIOError):
        engine.put(b"c", b"3")
    assert engine.get(b"a") == b"1"
    assert content_of(reopened(MemoryDevice(inner.view))) == {b"a": b"1"}


# Room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [36 * KIB, 64 * KIB, 128 * KIB, 512 * KIB])
@pytest.mark.parametrize("length", [0, 100, 600, 3000])
def test_a_full_store_can_be_emptied(size: int, length: int) -> None:
    engine = new_store(size)
    device = engine.device
    wanted: dict[bytes, bytes] = {}
    with pytest.raises(NoSpace):
        for number in range(100_000):
            key = b"%06d" % number
            engine.put(key, key[:1] * length)
            wanted[key] = key[:1] * length
            if number % 3 == 0:
                engine.sync()
    assert content_of(engine) == wanted
    engine.sync()
    engine = reopened(device)
    assert content_of(engine) == wanted
    with pytest.raises(NoSpace):
        for number in range(100_000):
            engine.put(b"again%06d" % number, bytes(length))
            wanted[b"again%06d" % number] = bytes(length)
    for key in list(wanted):
        engine.delete(key)
        engine.sync()
    engine.compact()
    assert engine.counts.entries == 0
    # And filled anew, to the same measure.
    count = 0
    with pytest.raises(NoSpace):
        while True:
            engine.put(b"%06d" % count, bytes(length))
            count += 1
    assert count >= 0.6 * len(wanted)
    engine.sync()
    assert not list(verify(device))


def test_overwriting_goes_on_for_ever() -> None:
    engine = new_store(128 * KIB)
    random = Random(5)
    wanted: dict[bytes, bytes] = {}
    for number in range(3000):
        key = b"%d" % random.randrange(20)
        wanted[key] = random.randbytes(random.choice((10, 500, 2000)))
        engine.put(key, wanted[key])
        if number % 7 == 0:
            engine.sync()
    assert content_of(engine) == wanted
    assert not list(verify(engine.device)) or engine.sync() is None


# Compaction --------------------------------------------------------------------------------------


def test_compaction_in_steps_with_operations_in_between() -> None:
    engine = new_store(None, 64 * KIB)
    random = Random(7)
    wanted: dict[bytes, bytes] = {}

    def change() -> None:
        key = b"%05d" % random.randrange(6000)
        if random.random() < 0.3 and key in wanted:
            engine.delete(key)
            del wanted[key]
        else:
            wanted[key] = random.randbytes(random.randrange(300))
            engine.put(key, wanted[key])

    for _ in range(8000):
        change()
    for _ in range(2):
        steps = 0
        for _ in engine.compact_steps():
            steps += 1
            change()
        assert steps > 3
        assert content_of(engine) == wanted
    engine.sync()
    assert not list(verify(engine.device))
    assert content_of(reopened(engine.device)) == wanted


def test_compaction_gives_space_back(tmp_path: Path) -> None:
    device = FileDevice.open(tmp_path / "store", create=True)
    format_st1(device, segment_bytes=64 * KIB, clock=Clock(), entropy=entropy)
    engine = open_st1(device, clock=Clock(), entropy=entropy)
    random = Random(8)
    for number in range(3000):
        engine.put(b"%04d" % random.randrange(1500), random.randbytes(4000))
        if number % 100 == 0:
            engine.sync()
    for number in range(0, 1500, 3):
        engine.batch([Delete(key) for key in [b"%04d" % number] if engine.find(b"\0" + key)])
    wanted = content_of(engine)
    live = sum(map(len, wanted.values()))
    assert device.size() > 2 * live
    engine.compact()
    engine.sync()
    allocated = (tmp_path / "store").stat().st_blocks * 512
    # The table, the log's segment, and the ends of segments.
    assert allocated < 1.1 * live + 6 * 64 * KIB
    assert content_of(engine) == wanted
    engine.close()
    assert content_of(reopened(FileDevice.open(tmp_path / "store"))) == wanted


def test_compaction_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st1_upkeep, "LOG_BYTES_MIN", 64 * KIB)
    monkeypatch.setattr(st1_upkeep, "DEAD_BYTES_MIN", 512 * KIB)
    engine = new_store(None, 64 * KIB)
    for number in range(20_000):
        engine.put(b"%d" % (number % 50), bytes(300))
    engine.sync()
    assert engine.writer.superblock.generation > 10
    assert engine.device.size() < 3 * MIB
    assert len(content_of(engine)) == 50


def test_a_damaged_value_is_not_moved() -> None:
    device = MemoryDevice()
    engine = new_store(None, 16 * KIB, device)
    for number in range(200):
        engine.put(b"%03d" % number, b"%03d" % number * 100)
    engine.compact()
    for number in range(0, 200, 2):
        engine.delete(b"%03d" % number)
    engine.sync()
    entry = engine.find(b"\000101")
    assert entry is not None
    at = engine.writer.place_of(entry)
    device.write(at + 5, b"!")
    engine = reopened(device)
    engine.compact()
    with pytest.raises(Corrupt, match=str(at)):
        engine.get(b"101")
    for number in range(1, 200, 2):
        if number != 101:
            assert engine.get(b"%03d" % number) == b"%03d" % number * 100
    engine.sync()
    assert [finding.offset for finding in verify(device)] == [at]
    # What is put in its place is sound, and then the segment can go.
    engine.put(b"101", b"new")
    engine.compact()
    assert engine.get(b"101") == b"new"
    engine.sync()
    assert not list(verify(device))


def test_a_damaged_table_is_not_compacted() -> None:
    device = MemoryDevice()
    engine = new_store(None, 16 * KIB, device)
    for number in range(500):
        engine.put(b"%03d" % number, b"")
    engine.compact()
    engine.close = lambda: None  # type: ignore[method-assign]
    head = engine.view.table.head
    device.write(engine.view.table.place(head.sections.entries + 64 * 300), b"!")
    engine = reopened(device)
    engine.put(b"new", b"value")
    for _ in range(3):
        with pytest.raises(Corrupt):
            engine.compact()
        assert engine.get(b"new") == b"value"
        engine.put(b"new", b"value")
    engine.sync()
    engine = reopened(MemoryDevice(device.view))
    assert engine.get(b"new") == b"value"
    assert engine.counts.entries == 501


# At once -----------------------------------------------------------------------------------------


class Untouchable(MemoryDevice):
    """A device that nobody may touch while `locked`, but to read what is at hand."""

    locked = False
    at_hand = False

    def read_into(self, offset: int, view: memoryview) -> None:
        assert not self.locked
        super().read_into(offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        if self.at_hand:
            view[:] = self.view[offset : offset + len(view)]
        return self.at_hand

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert not self.locked
        super().write(offset, data)


def test_at_once_or_not_at_all() -> None:
    device = Untouchable()
    engine = new_store(None, 16 * KIB, device)
    random = Random(11)
    wanted: dict[bytes, bytes] = {}
    done = waited = 0
    for number in range(3000):
        key, value = (
            b"%03d" % random.randrange(300),
            random.randbytes(random.choice((5, 300, 9000))),
        )
        kind = random.choice(("put", "put", "delete", "get", "list", "batch"))
        before = (engine.version, engine.counts, engine.writer.position)

        def act(kind: str = kind, key: bytes = key, value: bytes = value) -> None:
            if kind == "put":
                engine.put(key, value)
                wanted[key] = value
            elif kind == "delete":
                engine.delete(key)
                del wanted[key]
            elif kind == "get":
                assert engine.get(key) == wanted[key]
            elif kind == "batch":
                engine.batch([Put(key, value), Put(key + b"x", b"")])
                wanted.update({key: value, key + b"x": b""})
            else:
                found = [stat.key for stat in engine.list(key, limit=3)[0]]
                assert found == sorted(k for k in wanted if k.startswith(key))[:3]

        device.locked, device.at_hand = True, random.random() < 0.5
        try:
            with WITHOUT_WAITING:
                act()
            done += 1
        except NotFound:
            assert key not in wanted
        except WouldWait:
            waited += 1
            assert (engine.version, engine.counts, engine.writer.position) == before
            device.locked = False
            try:
                act()
            except NotFound:
                assert key not in wanted
        device.locked = False
        if number % 20 == 0:
            engine.sync()
        if number % 500 == 0:
            engine.compact()
    assert done > 500
    assert waited > 500
    assert content_of(engine) == wanted


# The index ---------------------------------------------------------------------------------------


def test_keys_of_one_checksum_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index has no room for more keys of a checksum, they are found all the same."""
    monkeypatch.setattr("capstore.images.st1_shadow.crc32c", lambda data: 77)
    monkeypatch.setattr("capstore.images.st1_table.crc32c", lambda data: 77)
    monkeypatch.setattr("capstore.images.st1_state.crc32c", lambda data: 77)
    engine = new_store(None, 64 * KIB)
    for number in range(900):
        engine.put(b"%d" % number, b"%d" % number)
    engine.compact()
    engine.view.cache.clear()
    assert st1_index.PROBES_MAX < 900
    for number in range(900):
        assert engine.get(b"%d" % number) == b"%d" % number
    with pytest.raises(NotFound):
        engine.get(b"missing")


def test_a_table_of_several_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st1_index, "PARTITION_SLOTS", 64)
    monkeypatch.setattr("capstore.images.st1_table.PARTITION_SLOTS", 64)
    engine = new_store(None, 64 * KIB)
    for number in range(2000):
        engine.put(b"%d" % number, b"")
    engine.compact()
    engine.view.cache.clear()
    for number in range(2000):
        assert engine.find(b"\0%d" % number)
        assert not engine.find(b"\0x%d" % number)
    assert not list(verify(engine.device))


def test_an_empty_store_is_small() -> None:
    engine = new_store(st1.COMBINED_BLOCKS * 512)
    assert sum(use != FREE for use in engine.space.use) == 2
    assert engine.usage().free_bytes > 90 * KIB
