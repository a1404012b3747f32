"""Resetting a volume of CAPOSWF1: all of it or nothing, whatever fails."""

from __future__ import annotations

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice, RecordingDevice, crash_states
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_marks import Mark, mark_of
from capstore.schema.errors import Busy, NoSpace, StorageIOError
from tests.images.wf1marks import ROOT, Seen, again, node, number, opened, sample, seen
from tests.images.wf1model import new_device


def test_reset() -> None:
    engine = sample(1 << 20)
    engine.copy_up.set_mark(ROOT, Mark(opaque=True, redirect="a", origin=7))
    before = node(engine, "")
    used, last = engine.usage(), engine.state.next_node
    data = b"x" * 60_000
    for round_ in range(5):
        file = engine.create(ROOT, "large")
        for _ in range(5):
            engine.append(file, data)
        changes = engine.state.changes
        engine.reset()
        assert engine.state.counts.nodes == 1
        assert not any(engine.space.live)
        root = node(engine, "")
        assert root.version == engine.state.changes == changes + 1
        assert root.modified > before.modified
        assert mark_of(root) == Mark()
        assert root.links == 1
        assert seen(again(engine)) == seen(engine), round_
    assert engine.usage().used_bytes < used.used_bytes + 60_000
    assert engine.create(ROOT, "new") >= last + 5
    engine.sync()
    assert seen(again(engine)) == seen(engine)
    # As much fits as in a new volume.
    assert filled(engine) >= filled(opened(new_device(1 << 20))) - 1


def filled(engine: Engine) -> int:
    file, count = engine.create(ROOT, "filling"), 0
    with pytest.raises(NoSpace):
        while True:
            engine.append(file, b"x" * 60_000)
            count += 1
    return count


def test_nothing_is_reset_that_somebody_has() -> None:
    engine = sample()
    before = seen(engine)
    engine.hold(number(engine, "f"))
    with pytest.raises(Busy):
        engine.reset()
    engine.release(number(engine, "f"))
    snapshot = engine.snapshot()
    with pytest.raises(Busy):
        engine.reset()
    assert seen(engine) == before
    engine.drop(snapshot)
    engine.reset()
    assert seen(engine) != before


def test_crashes_of_a_reset_between_changes() -> None:
    engine = sample()
    base = engine.device.read(0, engine.device.size())
    device = RecordingDevice(MemoryDevice(base))
    engine = opened(device)
    moments: list[Seen] = [seen(engine)]
    engine.write(engine.create(ROOT, "more"), 0, b"more" * 30_000)
    moments.append(seen(engine))
    engine.reset()
    moments.append(seen(engine))
    promised = len(device.log)
    engine.create(ROOT, "behind")
    moments.append(seen(engine))
    engine.sync()
    left = []
    for state in crash_states(device.log, base, samples=10, subset_changes_max=6):
        found = seen(opened(MemoryDevice(state.image)))
        left.append(found)
        # A file that is made and then written to.
        assert found in moments or found.nodes.keys() == moments[1].nodes.keys(), state.id
        assert found in moments[2:] or state.at < promised, state.id
    assert all(moment in left for moment in moments)


def test_a_reset_that_fails() -> None:
    engine = sample()
    engine.sync()
    base = engine.device.read(0, engine.device.size())
    for count in range(100):
        device = CountdownDevice(MemoryDevice(base), count, "any")
        engine = opened(device) if count > 3 else None
        if engine is None:
            continue
        before = seen(engine)
        try:
            engine.reset()
        except StorageIOError:
            left = seen(opened(MemoryDevice(device.inner.read(0, device.inner.size()))))
            assert left == before or len(left.nodes) == 1
        else:
            break
    assert engine is not None
    assert engine.state.counts.nodes == 1


def test_a_reset_without_room() -> None:
    engine = sample()
    before = seen(engine)
    base = engine.device.read(0, engine.device.size())
    for count in range(3):
        device = CountdownDevice(MemoryDevice(base), count, "reserve")
        engine = opened(device)
        try:
            engine.reset()
        except NoSpace:
            assert seen(engine) == before
            engine.create(ROOT, "more")
            engine.sync()
            assert len(seen(again(engine)).nodes) == len(before.nodes) + 1
        else:
            break
    assert engine.state.counts.nodes == 1
    assert count > 0
