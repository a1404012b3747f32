"""Crash states: which there are, that none is missed, and that an id gives its own again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstore.images.devices import MemoryDevice
from capstore.images.faults import (
    SECTOR_BYTES,
    CrashState,
    Flush,
    Mode,
    Operation,
    RecordingDevice,
    Resize,
    Write,
    apply_log,
    crash_states,
    replay,
)
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_states import sector_states
from capstore.schema.errors import InvalidArgument

S = SECTOR_BYTES


def image_of(device: MemoryDevice) -> bytes:
    return bytes(device.view)


# Crash states: what is enumerated --------------------------------------------------------------


def states(log: Sequence[Operation], base: bytes, *modes: Mode, **bounds: int) -> dict[str, bytes]:
    found = {state.id: state.image for state in crash_states(log, base, modes=modes, **bounds)}
    for state_id, image in found.items():
        assert replay(log, base, state_id) == image
    return found


THREE = [Write(0, b"a"), Flush(), Write(1, b"b"), Write(2, b"c"), Write(3, b"d")]


def test_linear_states_are_what_was_flushed() -> None:
    log = [Write(0, b"a"), Flush(), Write(0, b"b"), Write(1, b"c"), Flush()]
    found = list(crash_states(log, b"--", modes=[Mode.LINEAR]))
    assert [(s.id, s.image, s.at) for s in found] == [
        ("epoch=0/first=0", b"--", 1),
        ("epoch=1/first=0", b"a-", 4),
        ("epoch=2/first=0", b"bc", 5),
    ]


def test_prefixes() -> None:
    assert states(THREE, b"----", Mode.PREFIXES) == {
        "epoch=0/first=0": b"----",
        "epoch=0/first=1": b"a---",
        "epoch=1/first=0": b"a---",
        "epoch=1/first=1": b"ab--",
        "epoch=1/first=2": b"abc-",
        "epoch=1/first=3": b"abcd",
    }


def test_drops() -> None:
    assert states(THREE, b"----", Mode.DROPS) == {
        "epoch=0/first=0": b"----",
        "epoch=1/drop=0": b"a-cd",
        "epoch=1/drop=1": b"ab-d",
        "epoch=1/first=2": b"abc-",
    }


def test_subsets_of_a_short_epoch_are_all_there() -> None:
    found = states(THREE, b"----", Mode.SUBSETS)
    assert set(found.values()) == {b"----"} | {
        b"a" + b"".join((b"-", letter)[have] for letter, have in zip(letters, mask, strict=True))
        for letters in [(b"b", b"c", b"d")]
        for mask in [(i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8)]
    }
    assert found["epoch=1/ops=2"] == b"a--d"


def test_subsets_of_a_long_epoch_are_samples() -> None:
    log = [Write(i, b"x") for i in range(40)]
    found = states(log, bytes(40), Mode.SUBSETS, samples=50)
    assert 20 < len(found) <= 50
    lengths = {image.count(b"x") for image in found.values()}
    assert min(lengths) < 10 < 30 < max(lengths)
    assert found == states(log, bytes(40), Mode.SUBSETS, samples=50)
    assert found != states(log, bytes(40), Mode.SUBSETS, samples=50, seed=1)


def test_reorders_show_where_writes_overlap() -> None:
    log = [Write(0, b"aaa"), Write(5, b"-"), Write(2, b"bbb")]
    assert states(log, bytes(6), Mode.REORDERS) == {
        "epoch=0/ops=2,0": b"aaabb\0",
        "epoch=0/ops=2,0-1": b"aaabb-",
    }
    assert states(log, bytes(6), Mode.PREFIXES, Mode.REORDERS).keys() >= {"epoch=0/ops=2,0-1"}
    assert states(log[:2], bytes(6), Mode.REORDERS) == {}


def test_reorders_of_one_place_leave_any_of_its_writes() -> None:
    log = [Write(0, bytes([letter]) * 2) for letter in b"abcd"]
    found = states(log, b"--", Mode.REORDERS)
    possible = {apply_log(order, b"--") for order in permutations(log)}
    assert set(found.values()) == possible


def test_nothing_overtakes_a_cut() -> None:
    log = [Write(0, b"aa"), Resize(0), Resize(2), Write(0, b"bb"), Write(1, b"c")]
    assert states(log, b"--", Mode.REORDERS) == {"epoch=0/ops=4,3": b"bb"}
    for state_id in states(log, b"--", Mode.RANDOM, samples=300):
        if "ops=" in state_id:
            order = [int(run[0]) for run in state_id.partition("ops=")[2].split(",")]
            assert 0 not in order[1:], "the write before the cut is first where it is there"


def test_torn_writes_lack_sectors() -> None:
    log = [Write(100, b"a" * (3 * S)), Write(0, b"b")]
    found = states(log, bytes(4 * S), Mode.TEARS)

    def sectors(*there: int) -> bytes:
        image = bytearray(4 * S)
        for sector in there:
            start, end = max(100, sector * S), min(100 + 3 * S, (sector + 1) * S)
            image[start:end] = b"a" * (end - start)
        return bytes(image)

    for text, there in {
        "0": (0,),
        "0-1": (0, 1),
        "0-2": (0, 1, 2),
        "1-3": (1, 2, 3),
        "2-3": (2, 3),
        "3": (3,),
        "0,2-3": (0, 2, 3),
        "0-1,3": (0, 1, 3),
    }.items():
        assert found.pop(f"epoch=0/first=1/torn=0@{text}") == sectors(*there)
        assert found.pop(f"epoch=0/first=2/torn=0@{text}") == b"b" + sectors(*there)[1:]
    assert found == {}  # a write inside one sector is not torn


def test_tears_of_a_long_write_are_bounded() -> None:
    found = states([Write(0, b"a" * (200 * S))], bytes(200 * S), Mode.TEARS, samples=10)
    assert 20 <= len(found) <= 30


def test_resizes_may_be_lost() -> None:
    grown = [Resize(4), Write(3, b"x"), Resize(6)]
    assert states(grown, b"ab", Mode.SUBSETS) == {
        "epoch=0/first=0": b"ab",
        "epoch=0/first=1": b"ab\0\0",
        "epoch=0/ops=1": b"ab\0x",  # the write extends it
        "epoch=0/ops=2": b"ab\0\0\0\0",
        "epoch=0/drop=0": b"ab\0x\0\0",
    }
    cut = [Resize(1), Resize(3), Write(2, b"x")]
    assert set(states(cut, b"abcd", Mode.SUBSETS).values()) == {
        b"abcd",
        b"a",
        b"a\0\0",
        b"abxd",
        b"a\0x",
    }


def test_random_states_do_everything_at_once() -> None:
    log: list[Operation] = [Write(i * S // 2, bytes([65 + i]) * (2 * S)) for i in range(6)]
    found = states(log, bytes(8 * S), Mode.RANDOM, samples=200)
    assert len(found) > 100
    assert any("torn" in state_id and "ops=" in state_id for state_id in found)


def test_states_of_an_epoch_are_distinct_and_name_the_mode_that_found_them() -> None:
    log = [Write(0, b"ab"), Write(1, b"cd"), Flush(), Write(1, b"c")]
    found = list(crash_states(log, b"----"))
    for epoch in ("epoch=0/", "epoch=1/"):
        images = [state.image for state in found if state.id.startswith(epoch)]
        assert len(set(images)) == len(images)
    modes = {state.id: state.mode for state in found}
    assert modes["epoch=0/first=0"] is Mode.LINEAR
    assert modes["epoch=0/first=1"] is Mode.PREFIXES
    assert modes["epoch=0/drop=0"] is Mode.DROPS
    assert modes["epoch=0/ops=1,0"] is Mode.REORDERS
    assert "epoch=1/first=1" not in modes  # writes what is there


def test_the_enumeration_is_lazy() -> None:
    base = bytes(1 << 20)
    log = [Write(i, b"x") for i in range(20)]
    found = crash_states(log, base, subset_changes_max=20)
    assert next(found).image == base
    found.close()


def test_an_empty_log_has_one_state() -> None:
    assert list(crash_states([], b"abc")) == [CrashState("epoch=0/first=0", b"abc", 0, Mode.LINEAR)]


# Properties -------------------------------------------------------------------------------------


operations = st.lists(
    st.one_of(
        st.builds(Write, st.integers(0, 2000), st.binary(min_size=0, max_size=1300)),
        st.builds(Resize, st.integers(0, 2500)),
        st.just(Flush()),
    ),
    max_size=8,
)
bases = st.binary(max_size=1500)


def recorded(log: list[Operation], base: bytes) -> tuple[Sequence[Operation], bytes]:
    """What of `log` a device takes, as it is recorded there, and what is on it then."""
    inner = MemoryDevice(base)
    device = RecordingDevice(inner)
    for operation in log:
        if isinstance(operation, Flush):
            device.flush()
        elif isinstance(operation, Resize):
            device.resize(operation.size)
        elif operation.offset + len(operation.data) <= device.size():
            device.write(operation.offset, operation.data)
    return device.log, image_of(inner)


@settings(max_examples=60, deadline=None)
@given(wanted=operations, base=bases, seed=st.integers(0, 3))
def test_every_id_gives_the_same_bytes(wanted: list[Operation], base: bytes, seed: int) -> None:
    log, final = recorded(wanted, base)
    assert apply_log(log, base) == final
    found = list(crash_states(log, base, subset_changes_max=4, samples=8, seed=seed))
    assert found == list(crash_states(log, base, subset_changes_max=4, samples=8, seed=seed))
    for state in found:
        assert replay(log, base, state.id) == state.image
    assert len({state.id for state in found}) == len(found)
    # Without a crash: all that there is of the last epoch.
    flushes = [at for at, operation in enumerate(log) if isinstance(operation, Flush)]
    last = len(log) - (flushes[-1] + 1 if flushes else 0)
    assert replay(log, base, f"epoch={len(flushes)}/first={last}") == final


@settings(max_examples=60, deadline=None)
@given(wanted=operations, base=bases)
def test_a_crash_changes_only_what_was_not_flushed(wanted: list[Operation], base: bytes) -> None:
    log, _ = recorded(wanted, base)
    flushes = [-1, *(at for at, operation in enumerate(log) if isinstance(operation, Flush))]
    ends = [*flushes[1:], len(log)]
    durable = [apply_log(log[: start + 1], base) for start in flushes]
    for state in crash_states(log, base, subset_changes_max=4, samples=8):
        epoch = int(state.id.split("/")[0].removeprefix("epoch="))
        assert state.at == ends[epoch]
        changed = [op for op in log[flushes[epoch] + 1 : state.at] if not isinstance(op, Flush)]
        assert_only_touched(durable[epoch], state.image, changed)


def assert_only_touched(before: bytes, after: bytes, changes: list[Write | Resize]) -> None:
    ends = [len(before)]
    touched = bytearray(max(len(before), len(after)))
    for change in changes:
        if isinstance(change, Resize):
            ends.append(change.size)
            touched[change.size :] = b"\1" * len(touched[change.size :])
        else:
            end = change.offset + len(change.data)
            ends += range(change.offset, end + 1)
            touched[change.offset : end] = b"\1" * len(touched[change.offset : end])
    assert len(after) in ends
    for at, (old, new) in enumerate(zip(before, after, strict=False)):
        assert old == new or touched[at]


@settings(max_examples=60, deadline=None)
@given(wanted=operations, base=bases)
@example(wanted=[Write(0, b"ab"), Resize(1)], base=b"--")
@example(wanted=[Write(0, b"a"), Write(2, b"b"), Resize(1), Resize(3)], base=b"----")
def test_states_have_the_sectors_of_their_images(wanted: list[Operation], base: bytes) -> None:
    log, _ = recorded(wanted, base)
    sectors = Sectors()
    found = list(sector_states(log, SectorImage(sectors, base), subset_changes_max=5, samples=8))
    plain = list(crash_states(log, base, subset_changes_max=5, samples=8))
    assert [(s.id, bytes(s.image), s.at, s.mode) for s in found] == [
        (s.id, s.image, s.at, s.mode) for s in plain
    ]
    assert all(state.image.sectors is sectors for state in found)


WRONG_IDS = [
    "",
    "epoch=1",
    "epoch=1/",
    "epoch=1/first=",
    "epoch=1/first=4",
    "epoch=1/first=-1",
    "epoch=1/first=٣",
    "epoch=1/drop=3",
    "epoch=2/first=0",
    "epoch=9999999999/first=0",
    "epoch=1/ops=",
    "epoch=1/ops=0,0",
    "epoch=1/ops=0-2,1",
    "epoch=1/ops=2-0-1",
    "epoch=1/ops=0,,1",
    "epoch=1/ops=-",
    "epoch=1/ops=3",
    "epoch=1/ops=" + "0-2," * 10_000 + "0",
    "epoch=1/ops=0/torn=1@0",
    "epoch=1/first=3/torn=0@1",
    "epoch=1/first=3/torn=0@",
    "epoch=1/first=3/torn=2@0",
    "epoch=1/first=3 ",
    "epoch=1/first=3\n",
]


@pytest.mark.parametrize("wrong", WRONG_IDS, ids=range(len(WRONG_IDS)))
def test_wrong_ids_are_refused(wrong: str) -> None:
    log = [Flush(), Write(0, b"a"), Write(1, b"b"), Resize(9)]
    with pytest.raises(InvalidArgument):
        replay(log, b"----", wrong)


@settings(max_examples=200, deadline=None)
@given(text=st.from_regex(r"epoch=[01]/(first|drop|ops)=[0-4,-]{1,6}(/torn=[0-3]@[0-3,-]{1,4})?"))
def test_an_id_is_replayed_or_refused(text: str) -> None:
    log = [Flush(), Write(0, b"a" * 1200), Write(1, b"b"), Resize(9)]
    try:
        image = replay(log, b"----", text)
    except InvalidArgument:
        return
    assert len(image) in (0, 2, 4, 9, 512, 1024, 1200)
