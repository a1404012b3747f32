"""The contract of block devices, for every kind, and what memory and windows add to it."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.device import BlockDevice, read_checked
from capstore.images.devices import MemoryDevice, WindowDevice
from capstore.schema.errors import (
    Closed,
    Corrupt,
    InvalidArgument,
    NoSpace,
    ReadOnly,
)
from tests.images.devices import FENCE, KINDS, Kind

CONTENT = bytes(range(256)) * 8 + b"tail"
SIZE = len(CONTENT)
WRITABLE = [kind for kind in KINDS if kind.writable]
RESIZABLE = [kind for kind in WRITABLE if kind.resizable]


def kinds(chosen: list[Kind] | tuple[Kind, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", chosen, ids=lambda kind: kind.name.replace(" ", "-"))


def whole(device: BlockDevice) -> bytes:
    return device.read(0, device.size())


# The contract ----------------------------------------------------------------------------------


@kinds(KINDS)
def test_reads_what_is_there(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    assert device.size() == SIZE
    for offset, length in ((0, SIZE), (0, 1), (511, 2), (SIZE - 1, 1), (SIZE, 0), (0, 0)):
        assert device.read(offset, length) == CONTENT[offset : offset + length]
    buffer = bytearray(b"?" * 12)
    device.read_into(300, memoryview(buffer)[1:11])
    assert buffer == b"?" + CONTENT[300:310] + b"?"
    numbers = np.zeros(4, dtype=np.uint32)
    device.read_into(4, memoryview(numbers))
    assert numbers.tobytes() == CONTENT[4:20]
    device.close()


@kinds(KINDS)
def test_empty_devices_work(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, b"")
    assert device.size() == 0
    assert device.read(0, 0) == b""
    with pytest.raises(InvalidArgument):
        device.read(0, 1)
    device.flush()
    device.close()


@kinds(KINDS)
@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (-5, 0), (SIZE, 1), (SIZE - 1, 2), (1 << 70, 1), (SIZE + 1, 0)]
)
def test_outside_is_refused_and_touches_nothing(
    kind: Kind, offset: int, length: int, tmp_path: Path
) -> None:
    device = kind.make(tmp_path, CONTENT)
    view = memoryview(bytearray(length))
    for call in (
        lambda: device.read(offset, length),
        lambda: device.read_into(offset, view),
        lambda: device.read_now(offset, view),
    ):
        with pytest.raises(InvalidArgument):
            call()
    if kind.writable:
        with pytest.raises(InvalidArgument):
            device.write(offset, b"!" * length)
    with pytest.raises(Corrupt, match="the table at offset"):
        read_checked(device, offset, length, "the table")
    assert whole(device) == CONTENT
    device.close()


@kinds(WRITABLE)
def test_reads_back_what_was_written(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    expected = bytearray(CONTENT)
    for offset, data in (
        (0, b"head"),
        (510, bytearray(b"over the edge")),
        (SIZE - 3, memoryview(b"end")),
        (1000, memoryview(np.array([1, 2], dtype=np.uint16))),
        (SIZE, b""),
    ):
        device.write(offset, data)
        raw = bytes(data)
        expected[offset : offset + len(raw)] = raw
        assert whole(device) == expected
    device.flush()
    assert whole(device) == expected
    device.close()


@kinds(RESIZABLE)
def test_resizing_cuts_and_extends_with_zeros(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    device.resize(1000)
    assert whole(device) == CONTENT[:1000]
    with pytest.raises(InvalidArgument):
        device.read(0, 1001)
    device.resize(5000)
    assert whole(device) == CONTENT[:1000] + bytes(4000)
    device.resize(5000)
    device.resize(0)
    assert whole(device) == b""
    with pytest.raises(InvalidArgument):
        device.resize(-1)
    with pytest.raises(NoSpace):
        device.resize(1 << 80)
    device.write(0, b"")
    device.flush()  # not latched
    device.close()


@kinds([kind for kind in WRITABLE if not kind.resizable])
def test_fixed_sizes_do_not_change(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    device.resize(SIZE)
    for size in (0, SIZE - 1, SIZE + 1, 1 << 80):
        with pytest.raises(NoSpace):
            device.resize(size)
    with pytest.raises(InvalidArgument):
        device.resize(-1)
    device.write(0, b"still")
    assert whole(device) == b"still" + CONTENT[5:]
    device.close()


@kinds([kind for kind in KINDS if not kind.writable])
def test_read_only_devices_refuse_changes(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    with pytest.raises(ReadOnly):
        device.write(0, b"x")
    with pytest.raises((ReadOnly, NoSpace)):
        device.resize(0)
    device.flush()
    assert whole(device) == CONTENT
    device.close()


@kinds(KINDS)
def test_after_close_everything_is_closed(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    device.close()
    device.close()
    assert "closed" in repr(device)
    view = memoryview(bytearray(1))
    for call in (
        device.size,
        device.flush,
        lambda: device.read(0, 1),
        lambda: device.read_into(0, view),
        lambda: device.read_now(0, view),
        lambda: device.write(0, b"x"),
        lambda: device.resize(1),
    ):
        with pytest.raises(Closed):
            call()


@kinds(KINDS)
def test_read_now_gives_the_bytes_or_says_no(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    buffer = bytearray(100)
    if device.read_now(700, memoryview(buffer)):
        assert buffer == CONTENT[700:800]
    else:
        assert device.read(700, 100) == CONTENT[700:800]
    device.close()


@kinds(KINDS)
def test_threads_may_read_at_once_and_while_it_is_closed(kind: Kind, tmp_path: Path) -> None:
    device = kind.make(tmp_path, CONTENT)
    wrong: list[object] = []
    under_way = threading.Barrier(4)

    def reader(number: int) -> None:
        try:
            for turn in range(1_000_000):
                at = (number * 97 + turn * 31) % (SIZE - 64)
                if device.read(at, 64) != CONTENT[at : at + 64]:
                    wrong.append(at)
                if turn == 50:
                    under_way.wait(30)
        except Closed:
            return
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=reader, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    under_way.wait(30)
    device.close()
    # Whoever gets the descriptor's number next must not be read by mistake.
    strangers = [os.open("/dev/zero", os.O_RDONLY) for _ in range(4)]
    for thread in threads:
        thread.join(30)
    for stranger in strangers:
        os.close(stranger)
    assert wrong == []


offsets = st.integers(0, 3000)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, st.binary(max_size=700)),
        st.tuples(st.just("resize"), offsets, st.just(b"")),
        st.tuples(st.just("flush"), st.just(0), st.just(b"")),
    ),
    max_size=20,
)


@kinds(WRITABLE)
@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=2000), work=steps)
def test_behaves_as_a_bytearray(
    kind: Kind, content: bytes, work: list[tuple[str, int, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        device = kind.make(Path(directory), content)
        model = bytearray(content)
        for step, offset, data in work:
            take_step(device, model, step, offset, data, resizable=kind.resizable)
            assert whole(device) == model
        device.close()


def take_step(
    device: BlockDevice, model: bytearray, step: str, offset: int, data: bytes, *, resizable: bool
) -> None:
    if step == "flush":
        device.flush()
    elif step == "resize":
        if resizable or offset == len(model):
            device.resize(offset)
            model[:] = model[:offset].ljust(offset, b"\0")
        else:
            with pytest.raises(NoSpace):
                device.resize(offset)
    elif offset + len(data) > len(model):
        with pytest.raises(InvalidArgument):
            device.write(offset, data)
    else:
        device.write(offset, data)
        model[offset : offset + len(data)] = data


# Memory ----------------------------------------------------------------------------------------


def test_read_only_memory_is_not_copied() -> None:
    raw = np.arange(16, dtype=np.uint8)
    device = MemoryDevice(memoryview(raw), read_only=True)
    raw[3] = 99
    assert device.read(3, 1) == b"c"
    assert np.shares_memory(np.frombuffer(device.view, dtype=np.uint8), raw)
    assert device.view.readonly


def test_writable_memory_is_a_copy() -> None:
    raw = bytearray(b"abc")
    device = MemoryDevice(raw)
    device.write(0, b"x")
    assert raw == b"abc"
    assert device.view == b"xbc"
    assert device.view.readonly


def test_memory_is_resized_under_a_view() -> None:
    device = MemoryDevice(b"abcdef")
    view = device.view
    device.resize(8)
    assert view == b"abcdef"
    assert device.view == b"abcdef\0\0"
    view = device.view
    device.resize(2)
    assert view == b"abcdef\0\0"
    assert device.view == b"ab"


def test_memory_has_a_bound() -> None:
    device = MemoryDevice(b"abc", size_max=5)
    device.resize(5)
    with pytest.raises(NoSpace):
        device.resize(6)
    assert device.view == b"abc\0\0"
    with pytest.raises(InvalidArgument):
        MemoryDevice(b"abc", size_max=2)
    with pytest.raises(NoSpace):
        MemoryDevice().resize(1 << 62)


# Windows ---------------------------------------------------------------------------------------


def test_a_window_leaves_the_rest_alone() -> None:
    inner = MemoryDevice(FENCE + CONTENT + FENCE)
    window = WindowDevice(inner, len(FENCE), SIZE)
    window.write(0, b"!" * SIZE)
    window.flush()
    assert inner.view == FENCE + b"!" * SIZE + FENCE
    window.close()
    assert inner.size() == SIZE + 2 * len(FENCE)  # still open
    owner = WindowDevice(inner, 0, 1, owns=True)
    owner.close()
    with pytest.raises(Closed):
        inner.size()


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 11), (10, 1), (5, -1), (1 << 70, 0)])
def test_a_window_is_inside_its_device(start: int, length: int) -> None:
    with pytest.raises(InvalidArgument):
        WindowDevice(MemoryDevice(bytes(10)), start, length)


def test_windows_in_windows() -> None:
    inner = MemoryDevice(bytes(range(100)))
    window = WindowDevice(WindowDevice(inner, 10, 50), 5, 10)
    assert whole(window) == bytes(range(15, 25))
    assert repr(window) == (
        "WindowDevice(10 bytes at 5 of WindowDevice(50 bytes at 10 of MemoryDevice(100 bytes, rw)))"
    )
