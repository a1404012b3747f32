"""Marks of an overlay in CAPOSWF1: whiteouts, opaque and redirected directories; what crashes
leave of each operation, and what damage is found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from capstore.images import wf1, wf1_engine, wf1_marks
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.faults import Mode, RecordingDevice, crash_states
from capstore.images.records import WF1_NODE
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_marks import Mark, mark_of
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_state import Change
from capstore.images.wf1_tree import Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    Corrupt,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
)
from capstore.schema.nodes import NodeKind
from tests.images.wf1forge import BIG, Forger
from tests.images.wf1marks import (
    MARKED,
    OPERATIONS,
    ROOT,
    Operation,
    again,
    node,
    number,
    opened,
    sample,
    seen,
)


def is_whiteout(engine: Engine, path: str) -> bool:
    return node(engine, path).kind == wf1.WHITEOUT


# One operation, and what comes of it --------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("tables", [False, True], ids=["log", "tables"])
def test_every_operation_is_there_again(operation: Operation, *, tables: bool) -> None:
    engine = sample()
    if tables:
        engine.checkpoint()
    before = seen(engine)
    operation(engine)
    after = seen(engine)
    assert after != before
    engine.sync()
    assert seen(again(engine)) == after
    engine.checkpoint()
    reopened = again(engine)
    assert seen(reopened) == after
    # Rows that did not change are copied from one checkpoint to the next.
    reopened.create(ROOT, "another")
    reopened.checkpoint()
    reopened.remove(ROOT, "another")
    names, nodes = seen(again(reopened))
    assert names.keys() - {(ROOT, "another")} == after.names.keys()
    assert all(nodes[number] == found for number, found in after.nodes.items() if number != ROOT)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_crash_leaves_all_of_an_operation_or_nothing(operation: Operation) -> None:
    base = bytes(sample().device.read(0, sample().device.size()))
    device = RecordingDevice(MemoryDevice(base))
    engine = opened(device)
    before = seen(engine)
    operation(engine)
    after = seen(engine)
    engine.sync()
    promised = len(device.log)
    left = set()
    for state in crash_states(device.log, base, samples=12):
        image = MemoryDevice(state.image)
        found = seen(opened(image))
        assert found in (before, after), state.id
        assert found == after or state.at < promised, state.id
        left.add(found == after)
    assert left == {False, True}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_fails_has_changed_nothing(operation: Operation) -> None:
    """No room in a fixed volume, whatever is done first."""
    engine = sample(1 << 20)
    file = engine.create(ROOT, "large")
    with pytest.raises(NoSpace):
        while True:
            engine.append(file, b"x" * 60_000)
    before = seen(engine)
    try:
        operation(engine)
    except NoSpace:
        assert seen(engine) == before
    else:
        assert seen(engine) != before
    engine.sync()
    assert seen(again(engine)) == seen(engine)


# Whiteouts ----------------------------------------------------------------------------------------


def test_whiteouts_are_no_entries() -> None:
    engine = sample()
    for refused in (
        lambda: engine.remove(ROOT, "gone"),
        lambda: engine.rename(ROOT, "gone", ROOT, "x"),
        lambda: engine.exchange(ROOT, "gone", ROOT, "f"),
        lambda: engine.exchange(ROOT, "f", ROOT, "gone"),
        lambda: engine.link(ROOT, "gone", ROOT, "x"),
    ):
        with pytest.raises(NotFound):
            refused()


def test_what_comes_takes_the_place_of_a_whiteout() -> None:
    for name in ("create over a whiteout", "symlink over a whiteout", "link over a whiteout"):
        engine = sample()
        nodes = engine.state.counts.nodes
        OPERATIONS[name](engine)
        assert not is_whiteout(engine, "gone")
        assert engine.state.counts.nodes == nodes - (name == "link over a whiteout")
    engine = sample()
    OPERATIONS["mkdir over a whiteout"](engine)
    assert mark_of(node(engine, "gone")) == Mark(opaque=True)
    engine.rename(ROOT, "f", number(engine, "full"), "w", replace=False)
    assert node(engine, "full/w") == node(engine, "g")
    with pytest.raises(AlreadyExists):
        engine.rename(ROOT, "g", ROOT, "gone", replace=False)


def test_a_whiteout_takes_the_place_of_what_goes() -> None:
    for name, path in (
        ("remove a file", "l"),
        ("remove one of two names", "f"),
        ("remove a directory", "empty"),
        ("remove one with whiteouts", "white"),
        ("rename", "f"),
        ("rename over a file", "l"),
        ("rename a directory", "full"),
        ("cover", "new"),
    ):
        engine = sample()
        OPERATIONS[name](engine)
        assert is_whiteout(engine, path)
    with pytest.raises(AlreadyExists):
        engine.cover(ROOT, "f")


def test_a_directory_with_whiteouts_is_empty() -> None:
    engine = sample()
    nodes = engine.state.counts.nodes
    with pytest.raises(NotEmpty):
        engine.remove(ROOT, "full")
    with pytest.raises(NotEmpty):
        engine.rename(ROOT, "empty", ROOT, "full")
    with pytest.raises(IsDirectory):
        engine.rename(ROOT, "f", ROOT, "white")
    with pytest.raises(NotDirectory):
        engine.rename(ROOT, "white", ROOT, "f")
    held = number(engine, "white")
    engine.hold(held)
    engine.rename(ROOT, "full", ROOT, "white")
    assert engine.state.counts.nodes == nodes - 4
    assert not engine.state.list_names(held, "", 9)
    engine.release(held)
    assert engine.state.counts.nodes == nodes - 5
    assert seen(again(engine)) != seen(engine)
    engine.sync()
    assert seen(again(engine)) == seen(engine)


MANY = 2 * wf1_marks.WHITEOUTS_AT_ONCE_MAX + 7


def covered(engine: Engine, count: int) -> int:
    directory = engine.mkdir(ROOT, "many")
    for index in range(count):
        engine.cover(directory, f"{index:0250}")
    return directory


@pytest.mark.parametrize("count", [MANY, wf1_marks.WHITEOUTS_AT_ONCE_MAX])
@pytest.mark.parametrize("renames", [False, True])
def test_many_whiteouts_go_with_their_directory(count: int, *, renames: bool) -> None:
    engine = sample(1 << 20)
    before = engine.state.counts.nodes
    covered(engine, count)
    if renames:
        engine.rename(ROOT, "full", ROOT, "many")
    else:
        engine.remove(ROOT, "many", cover=True)
    assert engine.state.counts.nodes == before + (not renames)
    engine.sync()
    assert seen(again(engine)) == seen(engine)


def test_many_whiteouts_and_an_entry() -> None:
    engine = sample()
    directory = covered(engine, MANY)
    engine.create(directory, "z")
    before = seen(engine)
    with pytest.raises(NotEmpty):
        engine.remove(ROOT, "many")
    with pytest.raises(NotEmpty):
        engine.rename(ROOT, "empty", ROOT, "many")
    with pytest.raises(IsDirectory):
        engine.remove(ROOT, "many", directories=False)
    assert seen(engine) == before


def shown(engine: Engine, lower: Sequence[str]) -> set[str] | None:
    """What is in "many", merged with one that has `lower` in it below; None when it is gone."""
    state = engine.state
    directory = state.node(state.child(ROOT, "many"))
    assert directory is not None
    if directory.kind == wf1.WHITEOUT:
        return None
    names = dict(state.names_behind(directory.id))
    below = set() if directory.flags & wf1.OPAQUE else set(lower) - names.keys()
    return below | {name for name, n in names.items() if not wf1_marks.is_whiteout(state, n)}


def test_a_crash_among_many_whiteouts_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (wf1_marks, wf1_engine):
        monkeypatch.setattr(module, "WHITEOUTS_AT_ONCE_MAX", 2)
    engine = sample()
    directory = engine.mkdir(ROOT, "many")
    lower = [f"{index}" for index in range(7)]
    for name in lower:
        engine.cover(directory, name)
    engine.sync()
    base = engine.device.read(0, engine.device.size())
    device = RecordingDevice(MemoryDevice(base))
    engine = opened(device)
    perform = engine.perform

    def performed(change: Change) -> None:
        """Every change in a frame of its own."""
        perform(change)
        engine.commit()

    monkeypatch.setattr(engine, "perform", performed)
    engine.remove(ROOT, "many", cover=True)
    states = []
    for state in crash_states(device.log, base, modes=(Mode.PREFIXES, Mode.DROPS)):
        left = opened(MemoryDevice(state.image))
        assert shown(left, lower) in (set(), None), state.id
        states.append(left.state.counts.nodes)
    # Some of them were taken in the middle.
    assert len(set(states)) > 4


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> bytes:
    engine = sample(1 << 20)
    engine.checkpoint()
    return bytes(engine.device.read(0, engine.device.size()))


def forged(image: bytes, path: str, **values: int) -> bytes:
    """The image with other values in the record of a node."""
    forger = Forger(image)
    wanted = number(opened(MemoryDevice(image)), path)
    (row,) = [n for n, r in enumerate(forger.found.tables.records()) if r.id == wanted]
    forger.change(WF1_NODE, forger.at(0, WF1_NODE, row), **values)
    return bytes(forger.image)


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("marked", {"textSum": 0}, "redirect with a wrong checksum"),
        ("marked", {"redirectAt": 0}, "redirect with a wrong checksum"),
        ("marked", {"redirectAt": BIG}, "not there"),
        ("marked", {"redirectBytes": 5}, "redirect with a wrong checksum"),
        ("marked", {"redirectBytes": 0xFFFFFFFF}, "not there"),
        ("marked", {"redirectBytes": 3, "textSum": crc32c(b"usr")}, "were counted"),
        ("marked", {"redirectBytes": 4, "textSum": crc32c(b"usr/")}, "redirect that no directory"),
        (
            "marked",
            {"redirectBytes": 9, "textSum": crc32c("usr/lib/ä".encode()[:9])},
            "redirect that is no UTF-8",
        ),
        ("marked", {"below": 1}, "no file or link"),
        ("gone", {"below": 1}, "no file or link"),
        ("f", {"redirectBytes": 1}, "is no directory"),
        ("f", {"below": 1}, "it has 2 names and lower layers show it, but says 2"),
        ("shown", {"below": 0}, "it has 1 names, but says 2"),
        ("shown", {"links": 1}, "it has 1 names and lower layers show it, but says 1"),
        ("shown", {"links": 0}, "no link for the layers below"),
        ("f", {"flags": wf1.OPAQUE}, "opaque, but no directory"),
    ],
)
def test_forged_marks(path: str, values: dict[str, int], message: str, image: bytes) -> None:
    found = list(verify(MemoryDevice(forged(image, path, **values))))
    assert any(message in f"{f.where}: {f.message}" for f in found), found


def test_every_bit_of_a_redirect(image: bytes) -> None:
    tables = recover(MemoryDevice(image)).tables
    (record,) = [record for record in tables.records() if record.redirectBytes]
    at = tables.place(tables.head.starts[3] + record.redirectAt)
    assert image[at : at + record.redirectBytes] == MARKED.redirect.encode()
    for bit in range(8 * record.redirectBytes):
        damaged = bytearray(image)
        damaged[at + bit // 8] ^= 1 << bit % 8
        engine = opened(MemoryDevice(damaged))
        with pytest.raises(Corrupt):
            node(engine, "marked")
        assert list(verify(MemoryDevice(damaged)))


def test_damaged_marks_in_the_log() -> None:
    engine = sample()
    engine.create(ROOT, "behind")
    engine.sync()
    damaged = bytearray(engine.device.read(0, engine.device.size()))
    damaged[damaged.index(MARKED.redirect.encode())] ^= 1
    # What is behind it says that it was durable.
    with pytest.raises(Corrupt):
        opened(MemoryDevice(damaged))


def test_tables_with_forged_redirects_are_not_copied(image: bytes) -> None:
    for values in ({"redirectAt": 0}, {"redirectBytes": 500}, {"redirectAt": BIG}):
        engine = opened(MemoryDevice(forged(image, "marked", **values)))
        engine.create(ROOT, "new")
        with pytest.raises(Corrupt):
            engine.checkpoint()


def test_a_tree_for_reading(image: bytes) -> None:
    tree = Wf1Tree(MemoryDevice(image))
    found = tree.lookup(tree.root, "shown")
    assert found.stat.link_count == 1
    assert tree.lookup(tree.root, "gone").stat.kind is NodeKind.SPECIAL
    assert tree.lookup(tree.root, "marked").target is None
