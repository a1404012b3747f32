"""Work that is recognised by what it reads comes to the same as work that is done."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.faults import SECTOR_BYTES, RecordingDevice
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_states import sector_states
from capstore.images.segments import Space
from capstore.images.wf1_base import Head
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_verify import verify
from capstore.schema.errors import InvalidArgument, ReadOnly
from capstore.tools.prove.recording import record
from capstore.tools.prove.running import workload_of
from capstore.tools.prove.tracing import ImageDevice, Pieces
from capstore.tools.prove.wf1_subject import SUBJECT

S = SECTOR_BYTES
SECTORS = 8


def wander(device: BlockDevice, steps: int) -> bytes:
    """Reads and writes where what was read before says."""
    digest = hashlib.blake2b(b"start", digest_size=8)
    for _ in range(steps):
        word = int.from_bytes(digest.digest()[:4], "little")
        size = device.size()
        offset = word % size
        length = min(size - offset, word % (3 * S))
        if word % 7 == 0:
            device.write(offset, digest.digest() * (length // 8))
        elif word % 31 == 1:
            device.resize(max(S, size + (word % 5 - 2) * S // 2))
        else:
            # Of what is read little is used, so that many images go the same way.
            digest.update(bytes([sum(device.read(offset, length)) % 3]))
        digest.update(b".")
    return digest.digest()


@settings(max_examples=50, deadline=None)
@given(
    images=st.lists(st.binary(min_size=SECTORS, max_size=SECTORS), min_size=2, max_size=12),
    steps=st.integers(1, 30),
)
def test_recognised_work_comes_to_the_same(images: list[bytes], steps: int) -> None:
    sectors, pieces = Sectors(), Pieces()
    for fills in [*images, images[0]]:
        content = b"".join(bytes([fill % 2]) * S for fill in fills)
        device, plain = ImageDevice(SectorImage(sectors, content)), MemoryDevice(content)
        found = pieces.do("wander", device, lambda d=device: wander(d, steps))
        assert found == wander(plain, steps)
        assert bytes(device.image) == plain.view
    assert pieces.recognised


def test_what_is_not_read_makes_no_difference() -> None:
    sectors, pieces = Sectors(), Pieces()
    for tail in (b"a", b"b", b"c"):
        device = ImageDevice(SectorImage(sectors, b"head".ljust(S, b"\0") + tail * S))
        assert pieces.do("read", device, lambda d=device: d.read(0, 4)) == b"head"
    assert (pieces.done, pieces.recognised) == (1, 2)
    # Another key is other work, and so is another length.
    assert pieces.do("write", device, lambda: device.write(S, b"x" * S)) is None
    longer = ImageDevice(SectorImage(sectors, b"head".ljust(3 * S, b"\0")))
    assert pieces.do("read", longer, lambda: longer.read(0, 4)) == b"head"
    assert pieces.done == 3


def test_a_sector_that_is_written_whole_is_not_asked_for() -> None:
    device = ImageDevice(SectorImage(Sectors(), bytes(4 * S)))
    device.write(S, b"x" * S)
    assert device.read(S, S) == b"x" * S
    assert not device.asked
    device.write(2 * S + 1, b"x")
    assert [runs for runs, _ in device.asked] == [((2, 3),)]


def test_work_that_is_not_determined_is_noticed() -> None:
    sectors, pieces, places = Sectors(), Pieces(), iter((0, S))
    with pytest.raises(AssertionError, match="read otherwise"):
        for tail in (b"a", b"b"):
            device = ImageDevice(SectorImage(sectors, tail * 2 * S))
            pieces.do("read", device, lambda d=device: d.read(next(places), S))


def test_a_device_that_is_not_to_be_written() -> None:
    device = ImageDevice(SectorImage(Sectors(), bytes(S)))
    device.writable = False
    with pytest.raises(ReadOnly):
        device.write(0, b"x")
    with pytest.raises(ReadOnly):
        device.resize(0)
    with pytest.raises(InvalidArgument):
        device.read(0, S + 1)
    assert bytes(device.image) == bytes(S)


# Examining ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scenario-space-reused", "scenario-growth-lost", "random-7-20"])
def test_verdicts_are_those_of_examining_each_state_by_itself(name: str) -> None:
    examiner, workload = SUBJECT.examiner(), workload_of(SUBJECT, name)
    base, model = SUBJECT.begin(workload)
    recording = record(SUBJECT, examiner.image(base), model, workload.parts[0])
    count = 0
    for state in list(sector_states(recording.log, recording.base, samples=3))[::5]:
        first, last = recording.promised(state.at), recording.latest(state.at)
        verdict = examiner.judged(state.image, recording.moments, first, last)
        assert verdict.outcome.holds
        alone = SUBJECT.examiner()
        image = alone.image(bytes(state.image))
        assert verdict == alone.judged(image, recording.moments, first, last)
        # And what a device of bytes shows, which nothing is kept of.
        raw = bytes(state.image)
        assert (
            SUBJECT.seen(SUBJECT.opened(MemoryDevice(raw)))
            == recording.moments[verdict.moment].tree
        )
        assert {f.where for f in verify(MemoryDevice(raw, read_only=True))} <= {"log"}
        count += 1
    assert count > 10
    assert examiner.pieces.recognised


def test_all_that_recovery_finds_tells_states_apart() -> None:
    """What an engine begins with is in the key under which it is recognised: if there is more of
    it one day, it belongs there."""
    assert set(Recovered.__dataclass_fields__) == {
        "superblock",
        "tables",
        "state",
        "space",
        "position",
        "log_segments",
        "log_bytes",
        "discarded",
    }
    workload = workload_of(SUBJECT, "ace1-0")
    device = RecordingDevice(MemoryDevice(SUBJECT.begin(workload)[0]))
    space = SUBJECT.opened(device).space
    assert isinstance(space, Space)
    assert set(vars(space)) == {"geometry", "grows", "_device", "use", "live", "_free"}
    assert set(Head.__dataclass_fields__) >= {"sequence", "next_node", "counts", "runs", "usage"}
