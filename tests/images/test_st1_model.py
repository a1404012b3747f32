"""CAPOSST1 beside a dictionary, and after every crash."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.faults import RecordingDevice
from capstore.images.faults_states import Mode, crash_states
from capstore.images.st1_verify import verify
from capstore.schema.errors import NoSpace
from tests.images.st1model import KIB, Model, Pair, content_of, new_store, reopened

SIZES = [(None, 64 * KIB), (None, 4 * KIB), (128 * KIB, None), (64 * KIB, 4 * KIB)]


@pytest.mark.parametrize(("size", "segment_bytes"), SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_a_store_is_a_dictionary(size: int | None, segment_bytes: int | None, seed: int) -> None:
    random = Random(f"{size}/{segment_bytes}/{seed}")
    pair = Pair(new_store(size, segment_bytes), random)
    for number in range(400):
        pair.step()
        if not number % 20:
            pair.check()
        if not number % 67:
            pair.reopen()
            pair.check()
    pair.reopen()
    pair.check()
    if size == 64 * KIB:
        assert pair.refused
    for key in sorted(pair.model):
        pair.engine.delete(key)
    pair.engine.compact()
    pair.engine.sync()
    assert content_of(reopened(pair.engine.device)) == {}


def recorded(seed: int, size: int | None, segment_bytes: int, steps: int) -> None:
    """Crashes of a run of random steps: the state is that after some step, and none before the
    last that was made durable."""
    inner = MemoryDevice()
    new_store(size, segment_bytes, inner)
    base = bytes(inner.view)
    device = RecordingDevice(inner)
    random = Random(seed)
    pair = Pair(reopened(device), random, keys=8)
    # The model after each step, and how many of them are durable when so much is in the log.
    models: list[Model] = [{}]
    durable: list[tuple[int, int]] = [(0, 0)]
    for _ in range(steps):
        pair.step()
        models.append(dict(pair.model))
        if random.random() < 0.4:
            pair.engine.sync()
            durable.append((len(device.log), len(models) - 1))
    examined = 0
    for state in crash_states(
        device.log, base, modes=tuple(Mode), subset_changes_max=3, samples=3, seed=seed
    ):
        known = max(count for at, count in durable if at <= state.at)
        copy = MemoryDevice(state.image)
        found = content_of(reopened(copy))
        assert found in models[known:], (seed, state.id)
        examined += 1
        if not examined % 10:
            # And what was recovered goes on.
            engine = reopened(copy)
            with suppress(NoSpace):
                engine.put(b"more", b"x" * 700)
                found[b"more"] = b"x" * 700
            engine.compact()
            engine.sync()
            assert list(verify(copy)) == [], (seed, state.id)
            assert content_of(reopened(MemoryDevice(copy.view))) == found
    assert examined > 40


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_leaves_a_prefix_of_a_small_region(seed: int) -> None:
    recorded(seed, 64 * KIB, 4 * KIB, 25)


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_leaves_a_prefix_of_a_store_that_grows(seed: int) -> None:
    recorded(seed, None, 8 * KIB, 25)
