"""The engine of CAPOSWF1 beside a model: random steps, re-opened, cleaned, full and emptied."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from capstore.images import wf1, wf1_checkpoint
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_compact import compact
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
)
from tests.images.wf1model import Driver, File, Folder, frozen_state, new_device, read

MIB = 1 << 20


@pytest.fixture(params=[1, wf1_checkpoint.STEP_RECORDS], ids=["stepwise", "at once"])
def _steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint in as many steps as there can be: operations go on in between."""
    monkeypatch.setattr(wf1_checkpoint, "STEP_RECORDS", request.param)


@pytest.mark.usefixtures("_steps")
@pytest.mark.parametrize("size", [MIB, None])
@pytest.mark.parametrize("seed", range(6))
def test_random_steps(seed: int, size: int | None) -> None:
    driver = Driver(new_device(size), random.Random(seed), 100_000)
    for number in range(150):
        driver.step()
        if number % 10 == 0:
            driver.check()
    driver.check()
    driver.empty()
    driver.engine.checkpoint()
    assert list(verify(MemoryDevice(driver.device.view))) == []


@pytest.mark.parametrize("seed", [202, *range(4)])
def test_a_volume_that_is_full_again_and_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wf1_checkpoint, "STEP_RECORDS", 1)
    driver = Driver(new_device(MIB), random.Random(seed), 400_000)
    for _ in range(3):
        for _ in range(200):
            driver.step()
        driver.check()
        driver.empty()
    assert driver.full
    # As much fits as in a new volume, but for what was rounded.
    number = driver.engine.create(wf1.ROOT, "large")
    driver.engine.write(number, 0, bytes(MIB // 4))


# No room ----------------------------------------------------------------------------------------


def _by_small_files(engine: Engine, number: int) -> None:
    file = engine.create(wf1.ROOT, f"file {number}")
    engine.write(file, 0, number.to_bytes(4, "big") * 300)


def _by_one_file(engine: Engine, number: int) -> None:
    if not number:
        engine.create(wf1.ROOT, "file")
    file = engine.state.child(wf1.ROOT, "file")
    engine.append(file, bytes([number % 255 + 1]) * 200_000)


def _by_directories(engine: Engine, number: int) -> None:
    engine.mkdir(wf1.ROOT, f"{number:0250}")


def _by_links(engine: Engine, number: int) -> None:
    engine.symlink(wf1.ROOT, f"{number}", "t" * 4095)


def _by_hard_links(engine: Engine, number: int) -> None:
    if not number:
        engine.create(wf1.ROOT, "file")
    engine.link(wf1.ROOT, "file", wf1.ROOT, f"{number:0250}")


FILLS = (_by_small_files, _by_one_file, _by_directories, _by_links, _by_hard_links)


def filled(engine: Engine, fill: Callable[[Engine, int], None], *, synced: bool) -> int:
    """Fills the volume; returns how often that was done."""
    number = 0
    while True:
        try:
            fill(engine, number)
        except NoSpace:
            return number
        number += 1
        if synced:
            engine.sync()


def emptied(engine: Engine, *, synced: bool) -> None:
    while names := engine.state.list_names(wf1.ROOT, "", 100):
        for name, _ in names:
            engine.remove(wf1.ROOT, name)
            if synced:
                engine.sync()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("synced", [False, True])
def test_a_full_volume_can_be_emptied_and_filled_again(
    fill: Callable[[Engine, int], None], synced: bool
) -> None:
    device = new_device(MIB)
    engine = open_wf1(device)
    counts = []
    for _ in range(3):
        counts.append(filled(engine, fill, synced=synced))
        engine.sync()
        assert list(verify(MemoryDevice(device.view))) == []
        emptied(engine, synced=synced)
    assert min(counts) > 0.8 * max(counts) > 0


def test_a_full_disk_of_16_mib() -> None:
    device = new_device(32_768 * 512)
    engine = open_wf1(device)
    # Most of it is for data.
    assert filled(engine, _by_one_file, synced=False) * 200_000 > 14 * MIB
    emptied(engine, synced=False)
    assert filled(engine, _by_links, synced=False) > 1000
    engine.sync()
    copy = MemoryDevice(device.view)
    assert list(verify(copy)) == []
    engine = open_wf1(copy)
    emptied(engine, synced=True)
    assert filled(engine, _by_one_file, synced=True) * 200_000 > 14 * MIB


def test_a_full_volume_takes_any_number_of_changes_that_need_no_more() -> None:
    engine = open_wf1(new_device(MIB))
    filled(engine, _by_small_files, synced=False)
    for number in range(2000):
        engine.truncate(engine.state.child(wf1.ROOT, "file 1"), max(0, 1000 - number))
        engine.sync()


# What else is kept -------------------------------------------------------------------------------


def test_a_snapshot_keeps_its_moment() -> None:
    engine = open_wf1(new_device(2 * MIB))
    contents = {}
    source = random.Random(1)
    for number in range(8):
        name = f"file {number}"
        contents[name] = source.randbytes(50_000)
        engine.write(engine.create(wf1.ROOT, name), 0, contents[name])
    snapshot = engine.snapshot()
    for round_ in range(30):
        for name in contents:
            file = engine.state.child(wf1.ROOT, name)
            engine.write(file, 1000 * round_, source.randbytes(3000))
        engine.clean()
        engine.checkpoint()
    emptied(engine, synced=True)
    engine.checkpoint()
    for name, content in contents.items():
        assert read(engine, snapshot.state, snapshot.state.child(wf1.ROOT, name)) == content
    engine.drop(snapshot)
    engine.checkpoint()
    assert sum(engine.space.live) == 0
    assert engine.space.free >= engine.space.count - 3


def test_what_dies_during_a_checkpoint_is_not_reused_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint leads to it until the change that removed it is durable."""
    monkeypatch.setattr(wf1_checkpoint, "STEP_RECORDS", 1)
    device = new_device(4 * MIB)
    engine = open_wf1(device)
    for number in range(20):
        engine.create(wf1.ROOT, f"{number}")
    file = engine.create(wf1.ROOT, "durable")
    engine.write(file, 0, b"a" * 200_000)
    engine.write(engine.create(wf1.ROOT, "more"), 0, b"b" * 65_536)
    engine.sync()
    engine.checkpoint()
    # As `work` does, but step by step.
    steps = engine.upkeep.checkpoint_steps()
    next(steps)
    engine.remove(wf1.ROOT, "durable")
    for _ in steps:
        continue
    engine.write(engine.create(wf1.ROOT, "other"), 0, b"c" * 300_000)
    # Nothing since was durable.
    again = open_wf1(MemoryDevice(device.view), writable=False)
    found = again.state.child(wf1.ROOT, "durable")
    assert not found or read(again, again.state, found) == b"a" * 200_000


class _Logging(MemoryDevice):
    """Remembers the writes since `since` was called."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.since()

    def since(self) -> None:
        self.before = bytes(self.view)
        self.writes: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().write(offset, data)
        self.writes.append((offset, bytes(data)))


def test_a_frame_that_was_cut_off_does_not_come_back() -> None:
    """A crash loses the frame with which the log goes on in another segment, and keeps the one
    that is there; the next life's log comes to lie in that segment."""
    device = _Logging(bytes(new_device(4 * MIB).view))
    engine = open_wf1(device)
    number = 0
    # Two frames are written at once where the log goes on elsewhere, and only there.
    while len(device.writes) != 2:
        engine.sync()
        device.since()
        number += 1
        engine.create(wf1.ROOT, f"file {number}")
        engine.commit()
    image = bytearray(device.before)
    offset, data = device.writes[1]
    image[offset : offset + len(data)] = data
    second = MemoryDevice(image)
    engine = open_wf1(second)
    assert not engine.state.child(wf1.ROOT, f"file {number}")
    engine.checkpoint()
    third = open_wf1(MemoryDevice(second.view))
    assert not third.state.child(wf1.ROOT, f"file {number}")


def test_sparse_files() -> None:
    engine = open_wf1(new_device(MIB))
    file = engine.create(wf1.ROOT, "file")
    engine.write(file, (1 << 40) + 5, b"end")
    engine.truncate(file, 1 << 50)
    engine.write(file, 3, b"begin")
    engine.checkpoint()
    view = memoryview(bytearray(b"\xff" * 10))
    for offset, expected in (
        (0, b"\0\0\0begin\0\0"),
        (1 << 30, bytes(10)),
        ((1 << 40) + 1, b"\0\0\0\0end\0\0\0"),
        ((1 << 50) - 2, b"\0\0"),
        (1 << 50, b""),
    ):
        got = engine.read_into(engine.state, file, offset, view)
        assert bytes(view[:got]) == expected
    engine.truncate(file, 5)
    engine.truncate(file, 9)
    assert read(engine, engine.state, file) == b"\0\0\0be\0\0\0\0"
    assert sum(engine.space.live) == 2


def _ways() -> list[tuple[str, str, bool]]:
    names = ("file", "other", "hard", "empty", "full", "inner", "missing", "link")
    return [(a, b, r) for a in names for b in names for r in (True, False)]


def test_every_rename_and_exchange() -> None:
    for name, new_name, replace in _ways():
        driver = Driver(new_device(MIB), random.Random(0), 1000)
        engine, root = driver.engine, driver.root
        for made in ("file", "other"):
            engine.create(wf1.ROOT, made)
            root.entries[made] = File()
        engine.symlink(wf1.ROOT, "link", "target")
        engine.link(wf1.ROOT, "file", wf1.ROOT, "hard")
        for made in ("empty", "full"):
            engine.mkdir(wf1.ROOT, made)
        inner = engine.mkdir(engine.state.child(wf1.ROOT, "full"), "inner")
        before = frozen_state(engine, engine.state)
        wanted = _outcome(name, new_name, replace=replace)
        got: type[StorageError] | None = None
        try:
            engine.rename(wf1.ROOT, name, wf1.ROOT, new_name, replace=replace)
        except StorageError as error:
            got = type(error)
        assert got is wanted, (name, new_name, replace)
        same = bool(wanted) or name == new_name or {name, new_name} == {"file", "hard"}
        after = frozen_state(engine, engine.state)
        assert (after == before) == same
        assert len(after) == len(before) - (new_name in before and not same)
        full = engine.state.child(wf1.ROOT, "full")
        if full:
            with pytest.raises(InvalidArgument):
                engine.rename(wf1.ROOT, "full", inner, "deeper")
            with pytest.raises(InvalidArgument):
                engine.exchange(wf1.ROOT, "full", full, "inner")


def _outcome(name: str, new_name: str, *, replace: bool) -> type[StorageError] | None:
    """What a rename within the root is to raise."""
    missing, directories = {"missing", "inner"}, {"empty", "full"}
    if name in missing:
        return NotFound
    if new_name in missing:
        return None
    if not replace:
        return AlreadyExists
    if name == new_name or {name, new_name} == {"file", "hard"}:
        return None
    if (name in directories) != (new_name in directories):
        return NotDirectory if name in directories else IsDirectory
    return NotEmpty if new_name == "full" else None


def test_compacting_moves_everything_to_the_front() -> None:
    device = new_device(None)
    engine = open_wf1(device)
    source = random.Random(1)
    contents = {}
    for number in range(40):
        contents[f"{number}"] = source.randbytes(150_000)
        engine.write(engine.create(wf1.ROOT, f"{number}"), 0, contents[f"{number}"])
    for number in range(32):
        engine.remove(wf1.ROOT, f"{number}")
        del contents[f"{number}"]
    engine.sync()
    before = device.size()
    compact(engine)
    assert device.size() < before / 3
    assert list(verify(MemoryDevice(device.view))) == []
    engine = open_wf1(MemoryDevice(device.view))
    for name, content in contents.items():
        assert read(engine, engine.state, engine.state.child(wf1.ROOT, name)) == content
    engine.write(engine.create(wf1.ROOT, "new"), 0, bytes([1]) * MIB)
    engine.sync()
    assert list(verify(MemoryDevice(engine.device.read(0, engine.device.size())))) == []


def test_an_empty_region_that_is_too_small() -> None:
    with pytest.raises(InvalidArgument):
        format_wf1(MemoryDevice(), size=600_000)


def test_the_model_notices() -> None:
    """A driver whose model has another content than the engine does not get through."""
    driver = Driver(new_device(MIB), random.Random(0), 1000)
    driver.engine.create(wf1.ROOT, "a")
    with pytest.raises(AssertionError):
        driver.check()
    driver.root = Folder({"a": File()})
    driver.check()
