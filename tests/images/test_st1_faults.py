"""CAPOSST1 on devices that fail, and beside readers in other threads."""

from __future__ import annotations

import threading
from random import Random

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import format_st1
from capstore.schema.errors import NoSpace, NotFound, StorageError, StorageIOError
from tests.images.st1model import KIB, Clock, Model, Pair, content_of, entropy, new_store, reopened


@pytest.mark.parametrize("size", [None, 64 * KIB])
@pytest.mark.parametrize("error", [StorageIOError, NoSpace])
def test_a_failure_at_any_point_loses_nothing_that_was_durable(
    size: int | None, error: type[StorageIOError | NoSpace]
) -> None:
    for failures_after in range(0, 60, 3):
        inner = MemoryDevice()
        new_store(size, 4 * KIB, inner)
        durable, models = 0, [Model()]
        try:
            device = CountdownDevice(inner, failures_after, "any", error)
            pair = Pair(reopened(device), Random(failures_after), keys=8)
            for _ in range(60):
                pair.step()
                models.append(dict(pair.model))
                pair.engine.sync()
                durable = len(models) - 1
        except StorageError:
            models.append(dict(pair.model) if len(models) > 1 else {})
        found = content_of(reopened(MemoryDevice(inner.view)))
        # The operation that failed may be there.
        assert found in models[durable:] or len(found) >= len(models[durable]) - 1


def test_readers_beside_the_writer() -> None:
    """Whoever reads while everything is written anew sees each key with one of its values."""
    engine = new_store(None, 16 * KIB)
    counts = [0, 0]
    active = [0]
    changed = threading.Condition()

    def settle() -> None:
        # The reader is between two readings for a moment.
        with changed:
            before = active[0]
            if before % 2:
                changed.wait_for(lambda: active[0] != before, timeout=10)

    engine.settle = settle
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        random = Random(1)
        while not stop.is_set():
            with changed:
                active[0] += 1
                changed.notify_all()
            try:
                key = b"%02d" % random.randrange(40)
                value = engine.get(key)
                assert value == value[:2] * (len(value) // 2)
                assert value[:2] == key
                listed = [stat.key for stat in engine.list(limit=5)[0]]
                assert listed == sorted(set(listed))
                counts[0] += 1
            except NotFound:
                counts[1] += 1
            except BaseException as error:
                errors.append(error)
                stop.set()
            finally:
                with changed:
                    active[0] += 1
                    changed.notify_all()

    reader = threading.Thread(target=read)
    reader.start()
    random = Random(2)
    for number in range(1500):
        key = b"%02d" % random.randrange(40)
        if random.random() < 0.2 and engine.find(b"\0" + key):
            engine.delete(key)
        else:
            engine.put(key, key * random.choice((3, 200, 5000)))
        if number % 20 == 0:
            engine.sync()
        if number % 100 == 0:
            engine.compact()
    stop.set()
    reader.join()
    assert not errors
    assert counts[0] > 20


def test_a_device_that_is_too_small_for_what_it_says() -> None:
    device = MemoryDevice(size_max=100 * KIB)
    format_st1(device, segment_bytes=4 * KIB, clock=Clock(), entropy=entropy)
    engine: St1Engine = reopened(device)
    wanted: Model = {}
    with pytest.raises(NoSpace):
        for number in range(10_000):
            engine.put(b"%d" % number, bytes(100))
            wanted[b"%d" % number] = bytes(100)
    engine.sync()
    assert content_of(reopened(MemoryDevice(device.view))) == wanted
    for key in wanted:
        engine.delete(key)
    engine.compact()
    engine.put(b"key", bytes(1000))
    engine.sync()
    assert content_of(reopened(MemoryDevice(device.view))) == {b"key": bytes(1000)}
