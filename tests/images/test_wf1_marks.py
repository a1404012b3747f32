"""Marks of an overlay in CAPOSWF1: whiteouts, opaque and redirected directories, copies; what
crashes leave of each operation, and of a reset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from capstore.images import wf1, wf1_checkpoint, wf1_copyup, wf1_engine, wf1_marks
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice, Mode, RecordingDevice, crash_states
from capstore.images.records import WF1_NODE
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_marks import Mark, mark_of
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_state import Change
from capstore.images.wf1_tree import Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
    StorageIOError,
    TooLarge,
)
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.test_wf1_verify import Forger
from tests.images.wf1marks import (
    LIKE,
    MARKED,
    SHOWN,
    Seen,
    again,
    copied,
    node,
    number,
    opened,
    sample,
    seen,
)
from tests.images.wf1model import new_device

ROOT = wf1.ROOT
Operation = Callable[[Engine], object]

OPERATIONS: dict[str, Operation] = {
    "create over a whiteout": lambda e: e.create(ROOT, "gone"),
    "mkdir over a whiteout": lambda e: e.mkdir(ROOT, "gone"),
    "mkdir opaque": lambda e: e.mkdir(ROOT, "new", opaque=True),
    "symlink over a whiteout": lambda e: e.symlink(ROOT, "gone", "t"),
    "link over a whiteout": lambda e: e.link(ROOT, "f", ROOT, "gone"),
    "cover": lambda e: e.cover(ROOT, "new"),
    "remove a file": lambda e: e.remove(ROOT, "l", cover=True),
    "remove one of two names": lambda e: e.remove(ROOT, "f", cover=True),
    "remove a directory": lambda e: e.remove(ROOT, "empty", cover=True),
    "remove one with whiteouts": lambda e: e.remove(ROOT, "white", cover=True),
    "remove one with whiteouts, uncovered": lambda e: e.remove(ROOT, "white"),
    "remove what is shown below": lambda e: e.remove(ROOT, "shown", cover=True),
    "rename": lambda e: e.rename(ROOT, "f", ROOT, "new", cover=True),
    "rename over a whiteout": lambda e: e.rename(ROOT, "f", ROOT, "gone", cover=True),
    "rename over a file": lambda e: e.rename(ROOT, "l", ROOT, "f", cover=True),
    "rename over what is shown below": lambda e: e.rename(ROOT, "f", ROOT, "shown", cover=True),
    "rename a directory": lambda e: e.rename(
        ROOT, "full", number(e, "empty"), "new", cover=True, mark=MARKED
    ),
    "rename a directory over a whiteout": lambda e: e.rename(
        ROOT, "full", ROOT, "gone", cover=True, mark=MARKED
    ),
    "rename a directory over one with whiteouts": lambda e: e.rename(
        ROOT, "full", ROOT, "white", cover=True, mark=MARKED
    ),
    "rename a marked directory": lambda e: e.rename(ROOT, "marked", ROOT, "new", mark=Mark()),
    "exchange": lambda e: e.exchange(
        ROOT, "full", ROOT, "marked", mark=MARKED, new_mark=Mark(origin=3)
    ),
    "exchange with a file": lambda e: e.exchange(ROOT, "full", ROOT, "f", mark=MARKED),
    "copy up a file": lambda e: copied(e, ROOT, "new", b"copy" * 30_000, SHOWN),
    "copy up a directory": lambda e: e.copy_up.directory(ROOT, "new", LIKE, MARKED),
    "copy up a link": lambda e: e.copy_up.symlink(ROOT, "new", "target", LIKE, SHOWN),
    "adopt": lambda e: e.copy_up.adopt(number(e, "shown"), ROOT, "new"),
    "set a mark": lambda e: e.copy_up.set_mark(number(e, "full"), MARKED),
    "clear a mark": lambda e: e.copy_up.set_mark(number(e, "marked"), Mark()),
    "reset": lambda e: e.reset(),
}


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


# Copying up ---------------------------------------------------------------------------------------


def test_copies_are_silent() -> None:
    for name in (
        "copy up a file",
        "copy up a directory",
        "copy up a link",
        "adopt",
        "set a mark",
    ):
        engine = sample()
        before = node(engine, "")
        full = node(engine, "full")
        OPERATIONS[name](engine)
        assert node(engine, "") == before
        after = node(engine, "full")
        assert (after.version, after.modified) == (full.version, full.modified)


def test_copies_have_the_times_of_what_they_are_copies_of() -> None:
    engine = sample()
    OPERATIONS["copy up a file"](engine)
    file = node(engine, "new")
    assert (file.created, file.modified) == (LIKE.created, LIKE.modified)
    assert file.provenance is Provenance.TAR_HEADER
    assert file.flags == wf1.EXECUTABLE
    assert mark_of(file) == SHOWN
    assert (file.links, file.names) == (2, 1)
    directory = engine.copy_up.directory(
        ROOT, "d", LIKE._replace(created=-(1 << 70), modified=1 << 70), Mark()
    )
    found = engine.state.node(directory)
    assert found is not None
    assert (found.created, found.modified, found.flags) == (-(1 << 63), (1 << 63) - 1, 0)
    engine.sync()
    assert seen(again(engine)) == seen(engine)


def test_copies_go_only_where_nothing_is() -> None:
    engine = sample()
    file = engine.copy_up.unnamed()
    engine.hold(file)
    before = seen(engine)
    removed = engine.mkdir(ROOT, "removed")
    engine.hold(removed)
    engine.remove(ROOT, "removed")
    full = number(engine, "full")
    for directory, name, error in (
        (ROOT, "f", AlreadyExists),
        (ROOT, "gone", AlreadyExists),
        (full, "w", AlreadyExists),
        (removed, "new", NotFound),
        (file, "new", StorageError),
    ):
        for copy in (
            lambda d=directory, n=name: engine.copy_up.name(file, d, n, LIKE, Mark()),
            lambda d=directory, n=name: engine.copy_up.directory(d, n, LIKE, Mark()),
            lambda d=directory, n=name: engine.copy_up.symlink(d, n, "t", LIKE, Mark()),
            lambda d=directory, n=name: engine.copy_up.adopt(number(engine, "shown"), d, n),
        ):
            with pytest.raises(error):
                copy()
    assert seen(engine).nodes.keys() == before.nodes.keys()
    with pytest.raises(InvalidArgument):
        engine.copy_up.name(number(engine, "f"), ROOT, "new", LIKE, Mark())
    with pytest.raises(InvalidArgument):
        engine.copy_up.symlink(ROOT, "new", "", LIKE, Mark())


@pytest.mark.parametrize(
    ("mark", "error"),
    [
        (Mark(opaque=True), InvalidArgument),
        (Mark(redirect="a"), InvalidArgument),
        (Mark(below=1), InvalidArgument),
        (Mark(origin=1 << 64), InvalidArgument),
        (Mark(origin=-1), InvalidArgument),
        (Mark(origin=1, below=1 << 32), InvalidArgument),
        (Mark(origin=1, below=-1), InvalidArgument),
    ],
)
def test_marks_that_no_file_has(mark: Mark, error: type[StorageError]) -> None:
    engine = sample()
    file = engine.copy_up.unnamed()
    engine.hold(file)
    before = seen(engine)
    with pytest.raises(error):
        engine.copy_up.name(file, ROOT, "new", LIKE, mark)
    assert seen(engine) == before


@pytest.mark.parametrize(
    ("mark", "error"),
    [
        (Mark(redirect="x" * 255 + "/x" * 1921), TooLarge),
        (Mark(redirect="/a"), InvalidArgument),
        (Mark(redirect="a/"), InvalidArgument),
        (Mark(redirect="a//b"), InvalidArgument),
        (Mark(redirect="a/../b"), InvalidArgument),
        (Mark(redirect="a\0"), InvalidArgument),
        (Mark(redirect="\udc80"), InvalidArgument),
        (Mark(redirect="x" * 256), InvalidArgument),
        (Mark(origin=1, below=1), InvalidArgument),
    ],
)
def test_marks_that_no_directory_has(mark: Mark, error: type[StorageError]) -> None:
    engine = sample()
    before = seen(engine)
    full = number(engine, "full")
    for refused in (
        lambda: engine.copy_up.set_mark(full, mark),
        lambda: engine.copy_up.directory(ROOT, "new", LIKE, mark),
        lambda: engine.rename(ROOT, "full", ROOT, "new", mark=mark),
        lambda: engine.exchange(ROOT, "full", ROOT, "f", mark=mark),
        lambda: engine.exchange(ROOT, "f", ROOT, "full", new_mark=mark),
    ):
        with pytest.raises(error):
            refused()
    assert seen(engine) == before


def test_the_longest_redirect() -> None:
    engine = sample()
    mark = Mark(redirect="x" * 255 + "/x" * 1920)
    assert len(mark.redirect) == wf1.REDIRECT_BYTES_MAX
    engine.exchange(ROOT, "full", ROOT, "marked", mark=mark, new_mark=mark)
    engine.sync()
    assert mark_of(node(again(engine), "full")) == mark


def test_a_redirected_directory_that_somebody_holds() -> None:
    engine = sample()
    held = number(engine, "marked")
    engine.hold(held)
    engine.remove(ROOT, "marked", cover=True)
    engine.checkpoint()
    assert number(again(engine), "marked") != held
    with pytest.raises(NotFound):
        engine.copy_up.set_mark(held, Mark())
    engine.release(held)
    engine.checkpoint()
    assert seen(again(engine)) == seen(engine)


def test_names_that_are_adopted() -> None:
    engine = sample()
    shown = number(engine, "shown")
    engine.remove(ROOT, "shown", cover=True)
    # It lives without a name, also behind a checkpoint.
    assert engine.state.node(shown) is not None
    engine.checkpoint()
    engine = again(engine)
    found = engine.state.node(shown)
    assert found is not None
    assert (found.links, found.names, found.below) == (1, 0, 2)
    engine.copy_up.adopt(shown, ROOT, "first")
    assert (node(engine, "first").links, node(engine, "first").below) == (2, 1)
    engine.copy_up.adopt(shown, ROOT, "second")
    assert (node(engine, "first").links, node(engine, "first").below) == (2, 0)
    assert node(engine, "first").origin == SHOWN.origin
    with pytest.raises(NotFound):
        engine.copy_up.adopt(shown, ROOT, "third")
    engine.remove(ROOT, "first")
    engine.remove(ROOT, "second")
    assert engine.state.node(shown) is None
    engine.sync()
    assert seen(again(engine)) == seen(engine)


def test_what_is_unnamed_is_gone_when_nobody_holds_it() -> None:
    engine = sample()
    before = seen(engine)
    live = sum(engine.space.live)
    file = engine.copy_up.unnamed()
    engine.hold(file)
    engine.write(file, 0, b"x" * 100_000)
    engine.sync()
    assert seen(again(engine)) == before
    engine.release(file)
    assert engine.state.node(file) is None
    assert sum(engine.space.live) == live


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_a_checkpoint_in_the_middle_of_a_copy(
    monkeypatch: pytest.MonkeyPatch, checkpoints: int
) -> None:
    """It leaves out what has no name yet: that is in the log behind it when it gets one.

    That is so behind `checkpoints` of them, or in the middle of the first."""
    monkeypatch.setattr(wf1_copyup, "_EXTENTS_MAX", 3)
    monkeypatch.setattr(wf1_checkpoint, "STEP_RECORDS", 1)
    engine = sample()
    file = engine.copy_up.unnamed()
    engine.hold(file)
    for at in range(8):
        engine.write(file, at * 100_000, bytes([at + 1]) * 40_000)
    engine.truncate(file, 790_000)
    for _ in range(checkpoints):
        engine.checkpoint()
    steps = engine.upkeep.checkpoint_steps()
    if not checkpoints:
        next(steps)
    engine.write(file, 350_000, b"later")
    engine.truncate(file, 750_000)
    engine.clean()
    engine.copy_up.name(file, ROOT, "copy", LIKE, Mark(origin=5))
    engine.release(file)
    engine.sync()
    after = seen(engine)
    content = after.nodes[file][1]
    assert len(content) == 750_000
    assert content[300_000:400_000] == bytes([4]) * 40_000 + bytes(10_000) + b"later".ljust(
        50_000, b"\0"
    )
    assert seen(again(engine)) == after
    for _ in steps:
        continue
    assert seen(again(engine)) == after
    engine.checkpoint()
    assert seen(again(engine)) == after


def test_crashes_in_the_middle_of_a_copy() -> None:
    engine = sample()
    base = engine.device.read(0, engine.device.size())
    device = RecordingDevice(MemoryDevice(base))
    engine = opened(device)
    before = seen(engine)
    file = engine.copy_up.unnamed()
    engine.hold(file)
    engine.write(file, 0, b"one" * 50_000)
    engine.checkpoint()
    engine.write(file, 200_000, b"two" * 10_000)
    engine.sync()
    engine.copy_up.name(file, ROOT, "new", LIKE, SHOWN)
    after = seen(engine)
    engine.sync()
    promised = len(device.log)
    engine.checkpoint()
    left = set()
    for state in crash_states(device.log, base, samples=6, subset_changes_max=5):
        found = seen(opened(MemoryDevice(state.image)))
        assert found in (before, after), state.id
        assert found == after or state.at < promised, state.id
        left.add(found == after)
    assert left == {False, True}


def test_a_copy_in_a_full_volume() -> None:
    engine = sample(1 << 20)
    file = engine.copy_up.unnamed()
    engine.hold(file)
    before = seen(engine)
    size = 0
    with pytest.raises(NoSpace):
        while True:
            size += engine.append(file, b"x" * 60_000) >= 0
    engine.upkeep.left_out.add(file)
    with pytest.raises(NoSpace):
        engine.copy_up.name(file, ROOT, "new", LIKE, SHOWN)
    assert seen(engine) == before
    engine.release(file)
    assert copied(engine, ROOT, "new", b"x" * 60_000, SHOWN)


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


BIG = (1 << 64) - 1


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


# Resetting ----------------------------------------------------------------------------------------


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
