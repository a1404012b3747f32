"""Copies in CAPOSWF1: what they look like, where they go, their marks, what crashes leave."""

from __future__ import annotations

import pytest

from capstore.images import wf1, wf1_checkpoint, wf1_copyup
from capstore.images.devices import MemoryDevice
from capstore.images.faults import RecordingDevice, crash_states
from capstore.images.wf1_marks import Mark, mark_of
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    NoSpace,
    NotFound,
    StorageError,
    TooLarge,
)
from capstore.schema.nodes import Provenance
from tests.images.wf1marks import (
    LIKE,
    OPERATIONS,
    ROOT,
    SHOWN,
    again,
    copied,
    node,
    number,
    opened,
    sample,
    seen,
)


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
