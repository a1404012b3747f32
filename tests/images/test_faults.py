"""The devices that fail, and a proof by them of an engine small enough to see through."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest

from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.faults import (
    CountdownDevice,
    CrashState,
    Failing,
    Flush,
    FreezingDevice,
    Mode,
    PowerLost,
    RecordingDevice,
    Resize,
    Write,
    apply_log,
    crash_states,
    replay,
)
from capstore.schema.errors import InvalidArgument, NoSpace, StorageError, StorageIOError


def image_of(device: MemoryDevice) -> bytes:
    return bytes(device.view)


# Recording -------------------------------------------------------------------------------------


def test_a_recording_has_everything_in_order() -> None:
    inner = MemoryDevice(b"abc")
    device = RecordingDevice(inner)
    data = bytearray(b"xy")
    device.write(1, data)
    data[0] = 0  # what is kept is a copy
    device.flush()
    device.resize(5)
    device.write(3, memoryview(b"z"))
    device.read(0, 3)
    assert list(device.log) == [Write(1, b"xy"), Flush(), Resize(5), Write(3, b"z")]
    assert image_of(inner) == b"axyz\0" == apply_log(device.log, b"abc")
    assert repr(device) == "RecordingDevice(4 operations) on MemoryDevice(5 bytes, rw)"
    device.close()
    assert image_of(inner) == b"axyz\0"  # the inner device is somebody else's


def test_a_recording_has_only_what_was_done() -> None:
    device = RecordingDevice(CountdownDevice(MemoryDevice(b"abc", size_max=3), 0, "flush"))
    for call in (
        lambda: device.write(3, b"x"),
        lambda: device.resize(4),
        device.flush,
        lambda: device.write(0, b"x"),
    ):
        with pytest.raises(StorageError):
            call()
    assert list(device.log) == []


# Freezing --------------------------------------------------------------------------------------


def test_freezing_keeps_what_was_there_at_the_flush() -> None:
    inner = MemoryDevice(bytes(4))
    device = FreezingDevice(inner, 2)
    device.write(0, b"a")
    device.flush()
    assert not device.frozen
    device.write(1, b"b")
    device.flush()
    assert device.frozen
    assert "frozen" in repr(device)
    view = memoryview(bytearray(1))
    for call in (
        device.size,
        device.flush,
        lambda: device.write(2, b"c"),
        lambda: device.resize(0),
        lambda: device.read(0, 1),
        lambda: device.read_now(0, view),
    ):
        with pytest.raises(PowerLost):
            call()
    device.close()
    assert image_of(inner) == b"ab\0\0"


def test_freezing_at_once() -> None:
    inner = MemoryDevice(b"a")
    with pytest.raises(PowerLost):
        FreezingDevice(inner, 0).write(0, b"b")
    assert image_of(inner) == b"a"


# Counting down ---------------------------------------------------------------------------------


def assert_latched(device: BlockDevice) -> None:
    for call in (device.flush, lambda: device.write(0, b"?"), lambda: device.resize(1)):
        with pytest.raises(StorageIOError):
            call()
    assert "latched" in repr(device)


def test_the_next_write_after_so_many_fails() -> None:
    inner = MemoryDevice(bytes(6))
    device = CountdownDevice(inner, 2, "write")
    device.write(0, b"ab")
    device.flush()
    device.resize(6)
    device.write(2, b"cd")
    assert not device.failed
    with pytest.raises(StorageIOError):
        device.write(4, b"ef")
    assert device.failed
    assert_latched(device)
    assert device.read(0, 6) == b"abcd\0\0"


def test_a_torn_write_is_there_by_half() -> None:
    inner = MemoryDevice(bytes(6))
    device = CountdownDevice(inner, 0, torn=True)
    with pytest.raises(StorageIOError):
        device.write(0, b"abcdef")
    assert image_of(inner) == b"abc\0\0\0"
    assert_latched(device)


def test_space_that_is_missing_once() -> None:
    inner = MemoryDevice(bytes(4))
    device = CountdownDevice(inner, 1, "any", NoSpace)
    device.write(0, b"a")
    with pytest.raises(NoSpace):
        device.write(1, b"b")
    assert image_of(inner) == b"a\0\0\0"
    device.write(1, b"c")  # nothing was lost, and there is space again
    device.flush()
    resizing = CountdownDevice(inner, 0, "resize", NoSpace)
    with pytest.raises(NoSpace):
        resizing.resize(9)
    resizing.resize(9)
    assert image_of(inner) == b"ac" + bytes(7)


def test_space_that_is_missing_in_the_middle_of_a_write() -> None:
    device = CountdownDevice(MemoryDevice(bytes(4)), 0, "any", NoSpace, torn=True)
    with pytest.raises(NoSpace):
        device.write(0, b"abcd")
    assert device.read(0, 4) == b"ab\0\0"
    assert_latched(device)


@pytest.mark.parametrize("error", [StorageIOError, NoSpace])
def test_a_failing_reserve_has_no_room_and_changes_nothing(
    error: type[StorageIOError | NoSpace],
) -> None:
    device = CountdownDevice(MemoryDevice(bytes(4)), 2, "any", error)
    device.write(0, b"a")
    device.reserve(0, 4)
    with pytest.raises(NoSpace):
        device.reserve(0, 4)
    device.reserve(0, 4)
    device.flush()
    assert (device.counted, device.failed) == (5, True)
    with pytest.raises(InvalidArgument):
        device.reserve(1, 4)
    only = CountdownDevice(MemoryDevice(bytes(4)), 0, "reserve")
    only.write(0, b"b")
    only.flush()
    with pytest.raises(NoSpace):
        only.reserve(0, 1)


def test_what_is_discarded_is_recorded_as_zeros() -> None:
    inner = MemoryDevice(b"abcd")
    device = RecordingDevice(inner)
    device.discard(1, 2)
    assert image_of(inner) == b"a\0\0d"
    assert list(device.log) == [Write(1, b"\0\0")]


@pytest.mark.parametrize("error", [StorageIOError, NoSpace, PowerLost])
def test_a_failing_flush_latches(error: type[StorageIOError | NoSpace]) -> None:
    device = CountdownDevice(MemoryDevice(bytes(4)), 0, "flush", error)
    device.write(0, b"a")
    with pytest.raises(PowerLost if error is PowerLost else StorageIOError):
        device.flush()
    assert_latched(device)


def test_what_counts_and_what_is_refused() -> None:
    device = CountdownDevice(MemoryDevice(bytes(4)), 3)
    device.write(0, b"a")
    device.resize(4)
    device.flush()
    with pytest.raises(InvalidArgument):
        device.write(4, b"a")  # what is outside does not count
    with pytest.raises(StorageIOError):
        device.resize(5)
    assert_latched(device)
    with pytest.raises(InvalidArgument):
        CountdownDevice(MemoryDevice(), -1)


# A proof by crash states, of an engine small enough to see through --------------------------------

MAGIC = b"TOY!"
HEADER_BYTES = len(MAGIC) + 2


class ToyLog:
    """Records, each with its length and CRC; `append` promises that the record is durable.

    `flawed` names what is left out.
    """

    def __init__(self, device: BlockDevice, flawed: str = "") -> None:
        self._device = device
        self._flawed = flawed
        self.records: list[bytes] = []
        self._end = 0
        while (record := self._record_at(self._end)) is not None:
            self.records.append(record)
            self._end += HEADER_BYTES + len(record) + 4
        device.resize(self._end)  # what a crash left there must not come back behind new records
        device.flush()

    def append(self, record: bytes) -> None:
        body = MAGIC + len(record).to_bytes(2, "little") + record
        raw = body + zlib.crc32(body).to_bytes(4, "little")
        self._device.resize(self._end + len(raw))
        if self._flawed == "header last":
            self._device.write(self._end + HEADER_BYTES, raw[HEADER_BYTES:])
            self._device.write(self._end, raw[:HEADER_BYTES])
        else:
            self._device.write(self._end, raw)
        if self._flawed != "flush":
            self._device.flush()
        self._end += len(raw)
        self.records.append(record)

    def _record_at(self, offset: int) -> bytes | None:
        left = self._device.size() - offset
        if left < HEADER_BYTES + 4:
            return None
        header = self._device.read(offset, HEADER_BYTES)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != MAGIC or left < HEADER_BYTES + length + 4:
            return None
        record = self._device.read(offset + HEADER_BYTES, length)
        crc = self._device.read(offset + HEADER_BYTES + length, 4)
        if zlib.crc32(header + record).to_bytes(4, "little") != crc and self._flawed != "checksum":
            return None
        return record


RECORDS = [bytes([65 + i]) * length for i, length in enumerate((5, 700, 0, 1500, 30, 512))]


def proof(flawed: str, **bounds: int) -> Iterator[tuple[CrashState, str]]:
    """Each crash state of some appends, with what is wrong in it or nothing."""
    recorder = RecordingDevice(MemoryDevice())
    log = ToyLog(recorder, flawed)
    promised = [0]
    for record in RECORDS:
        log.append(record)
        promised.append(len(recorder.log))
    for state in crash_states(recorder.log, b"", **bounds):
        after = ToyLog(MemoryDevice(state.image), flawed)
        durable = sum(at <= state.at for at in promised) - 1
        found = after.records
        after.append(b"goes on")
        if found[:-1] != RECORDS[: len(found) - 1]:
            yield state, "not a prefix"
        elif len(found) - 1 < durable:
            yield state, "lost"
        else:
            yield state, ""


def test_a_sound_log_survives_every_crash() -> None:
    examined = list(proof(""))
    assert [state.id for state, wrong in examined if wrong] == []
    assert len(examined) > 30
    assert {state.mode for state, _ in examined} >= {Mode.LINEAR, Mode.PREFIXES, Mode.TEARS}


def test_a_missing_flush_is_found_out() -> None:
    wrong = [(state, what) for state, what in proof("flush") if what]
    assert {what for _, what in wrong} == {"lost"}
    assert wrong[0][0].mode is Mode.LINEAR


def test_a_missing_checksum_is_found_out_by_tears() -> None:
    wrong = [(state, what) for state, what in proof("checksum") if what]
    assert {what for _, what in wrong} == {"not a prefix"}
    assert wrong[0][0].mode is Mode.TEARS


def test_the_sound_log_may_write_in_parts() -> None:
    assert not any(wrong for _, wrong in proof("header last"))


def test_a_failing_state_is_had_again_by_its_id() -> None:
    recorder = RecordingDevice(MemoryDevice())
    log = ToyLog(recorder, "flush")
    for record in RECORDS:
        log.append(record)
    for state, wrong in proof("flush"):
        if wrong:
            again = ToyLog(MemoryDevice(replay(recorder.log, b"", state.id)))
            assert again.records != RECORDS
            assert again.records == ToyLog(MemoryDevice(state.image)).records


def freeze(flushes: int) -> tuple[bytes, int]:
    inner = MemoryDevice()
    done = 0
    try:
        log = ToyLog(FreezingDevice(inner, flushes))
        for record in RECORDS:
            log.append(record)
            done += 1
    except PowerLost:
        pass
    return image_of(inner), done


def test_the_frozen_log_has_what_it_promised() -> None:
    counts = []
    for flushes in range(len(RECORDS) + 2):
        image, done = freeze(flushes)
        assert ToyLog(MemoryDevice(image)).records == RECORDS[:done]
        counts.append(done)
    assert counts == [0, *range(len(RECORDS) + 1)]
    assert all(a <= b for a, b in pairwise(counts))


@pytest.mark.parametrize("what", ["write", "flush", "resize", "any"])
@pytest.mark.parametrize("torn", [False, True])
def test_the_log_survives_a_failure_anywhere(what: Failing, torn: bool) -> None:
    for failures_after in range(20):
        inner = MemoryDevice()
        device = CountdownDevice(inner, failures_after, what, torn=torn)
        done = 0
        try:
            log = ToyLog(device)
            for record in RECORDS:
                log.append(record)
                done += 1
        except StorageIOError:
            pass
        after = ToyLog(MemoryDevice(inner.view)).records
        assert after[:done] == RECORDS[:done]
        assert after == RECORDS[: len(after)]
