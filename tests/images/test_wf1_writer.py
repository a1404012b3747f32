"""What a CAPOSWF1 engine writes when: units that wait, frames, rooms on a full host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capstore.images import wf1
from capstore.images.devices import MemoryDevice
from capstore.images.faults import RecordingDevice, Write
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_verify import verify
from capstore.images.wf1_writer import SHORT_BYTES_MAX, WAITING_BYTES_MAX
from capstore.schema.errors import AlreadyExists, NoSpace
from tests.images.wf1model import frozen_state, read

MIB = 1 << 20


class Host(MemoryDevice):
    """A device on a host that has `room` more bytes, to be reserved before they are written."""

    def __init__(self, image: bytes = b"") -> None:
        super().__init__(image)
        self.room = 1 << 40
        self._reserved: set[int] = set()

    def reserve(self, offset: int, length: int) -> None:
        super().reserve(offset, length)
        new = set(range(offset // 512, (offset + length) // 512)) - self._reserved
        if 512 * len(new) > self.room:
            raise NoSpace("the host is full")
        self.room -= 512 * len(new)
        self._reserved |= new


class Untouchable(MemoryDevice):
    """A device that nobody may use while `closed_to_all`."""

    closed_to_all = False

    def read_into(self, offset: int, view: memoryview) -> None:
        assert not self.closed_to_all
        super().read_into(offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        return False

    def write(self, offset: int, data: object) -> None:
        assert not self.closed_to_all
        super().write(offset, data)  # type: ignore[arg-type]

    def resize(self, size: int) -> None:
        assert not self.closed_to_all
        super().resize(size)

    def reserve(self, offset: int, length: int) -> None:
        assert not self.closed_to_all

    def flush(self) -> None:
        assert not self.closed_to_all


def opened(device: MemoryDevice) -> Engine:
    format_wf1(device)
    return open_wf1(device)


def test_short_units_wait_side_by_side_and_are_read_meanwhile() -> None:
    device = RecordingDevice(MemoryDevice())
    format_wf1(device)
    engine = open_wf1(device)
    files = [engine.create(wf1.ROOT, f"{n}") for n in range(20)]
    begin = len(device.log)
    for number, file in enumerate(files):
        engine.write(file, 0, bytes([number]) * (700 + number))
    assert not [each for each in device.log[begin:] if isinstance(each, Write)]
    for number, file in enumerate(files):
        assert read(engine, engine.state, file) == bytes([number]) * (700 + number)
    engine.sync()
    writes = [each for each in device.log[begin:] if isinstance(each, Write)]
    assert len(writes) == 2, "the units in one, then the frame"
    for number, file in enumerate(files):
        assert read(engine, engine.state, file) == bytes([number]) * (700 + number)


def test_no_more_waits_than_is_said() -> None:
    device = RecordingDevice(MemoryDevice())
    format_wf1(device)
    engine = open_wf1(device)
    file = engine.create(wf1.ROOT, "f")
    unit = SHORT_BYTES_MAX - 512
    begin = len(device.log)
    for number in range(2 * WAITING_BYTES_MAX // unit):
        engine.write(file, number * unit, bytes([number + 1]) * unit)
    written = sum(len(each.data) for each in device.log[begin:] if isinstance(each, Write))
    assert written >= WAITING_BYTES_MAX - unit


def test_the_frame_of_many_names_has_their_directory_once() -> None:
    device = MemoryDevice()
    engine = opened(device)
    position = engine.writer.position
    for number in range(100):
        engine.create(wf1.ROOT, f"{number:03}")
    engine.sync()
    # A node and a name each, and the directory.
    size = engine.writer.position.offset - position.offset
    assert size < 100 * (128 + 40) + 128 + 2 * 512
    assert sorted(frozen_state(open_wf1(MemoryDevice(device.view)), engine.state)) == [
        f"{number:03}" for number in range(100)
    ]


def test_a_directory_that_comes_and_goes_in_one_frame() -> None:
    device = MemoryDevice()
    engine = opened(device)
    kept = engine.mkdir(wf1.ROOT, "kept")
    for name in ("a", "b"):
        inner = engine.mkdir(kept, name)
        engine.create(inner, "file")
        engine.remove(inner, "file")
    engine.remove(kept, "a")
    engine.rename(kept, "b", wf1.ROOT, "b")
    engine.sync()
    image = MemoryDevice(device.view)
    assert list(verify(image)) == []
    again = open_wf1(image)
    assert frozen_state(again, again.state) == frozen_state(engine, engine.state)


@pytest.mark.parametrize("size", [None, 8 * MIB])
def test_a_full_host_is_met_before_anything_is_done(size: int | None) -> None:
    host = Host()
    format_wf1(host, size=size)
    engine = open_wf1(host)
    host.room = 3 * MIB
    made = 0
    with pytest.raises(NoSpace):
        while True:
            file = engine.create(wf1.ROOT, f"file {made}")
            engine.write(file, 0, bytes([made % 255 + 1]) * 20_000)
            made += 1
    assert made > 50
    engine.sync()
    image = MemoryDevice(host.view)
    assert list(verify(image)) == []
    again = open_wf1(image)
    before = frozen_state(again, again.state)
    assert before == frozen_state(engine, engine.state)
    if size is not None:
        # An image that does not grow has holes: not even its log has room there.
        host.room = MIB
    for number in range(made):
        engine.remove(wf1.ROOT, f"file {number}")
    engine.sync()
    host.room = 64 * MIB
    file = engine.create(wf1.ROOT, "one more")
    engine.write(file, 0, b"x" * 100_000)
    engine.sync()
    again = open_wf1(MemoryDevice(host.view))
    assert read(again, again.state, file) == b"x" * 100_000


OPERATIONS: dict[str, Callable[[Engine, int], object]] = {
    "create": lambda engine, n: engine.create(wf1.ROOT, f"new {n}"),
    "mkdir": lambda engine, n: engine.mkdir(wf1.ROOT, f"new {n}"),
    "symlink": lambda engine, n: engine.symlink(wf1.ROOT, f"new {n}", "target"),
    "write": lambda engine, n: engine.write(engine.state.child(wf1.ROOT, "f"), 10 * n, b"data"),
    "append": lambda engine, n: engine.append(engine.state.child(wf1.ROOT, "f"), b"d" * 5000),
    "write much": lambda engine, n: engine.write(
        engine.state.child(wf1.ROOT, "f"), 0, b"d" * 100_000
    ),
    "truncate": lambda engine, n: engine.truncate(engine.state.child(wf1.ROOT, "f"), n),
    "rename": lambda engine, n: engine.rename(wf1.ROOT, f"{n:04}", wf1.ROOT, f"renamed {n}"),
    "remove": lambda engine, n: engine.remove(wf1.ROOT, f"{n:04}"),
    "link": lambda engine, n: engine.link(wf1.ROOT, "f", wf1.ROOT, f"link {n}"),
    "checkpoint": lambda engine, n: engine.checkpoint(),
    "clean": lambda engine, n: engine.clean(),
    "commit": lambda engine, n: engine.commit(),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("based", [False, True], ids=["in memory", "on a checkpoint"])
def test_what_may_not_wait_touches_no_device_and_is_done_or_not(name: str, based: bool) -> None:
    device = Untouchable()
    engine = opened(device)
    engine.append(engine.create(wf1.ROOT, "f"), b"some data")
    for number in range(1100):
        engine.create(wf1.ROOT, f"{number:04}")
    if based:
        engine.checkpoint()
        engine.sync()
    begin = open_wf1(MemoryDevice(device.view)) if based else None
    refused = done = 0
    for number in range(1100):
        state, device.closed_to_all = engine.state, True
        try:
            with WITHOUT_WAITING:
                OPERATIONS[name](engine, number)
            done += 1
        except WouldWait:
            assert engine.state is state
            refused += 1
        finally:
            device.closed_to_all = False
        if engine.state is state and refused:
            # As whoever may wait goes on.
            OPERATIONS[name](engine, number)
        if refused >= 3:
            break
    assert refused
    assert name in {"write much", "checkpoint", "clean", "commit"} or done or based
    engine.sync()
    again = open_wf1(MemoryDevice(device.view))
    assert frozen_state(again, again.state) == frozen_state(engine, engine.state)
    assert begin is None or begin.state.counts.nodes


def test_what_is_refused_is_refused_at_once() -> None:
    engine = opened(Untouchable())
    engine.create(wf1.ROOT, "f")
    with WITHOUT_WAITING, pytest.raises(AlreadyExists):
        engine.create(wf1.ROOT, "f")
