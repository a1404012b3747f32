"""Sequences of operations over several volumes, compared with a plain model after each.

The model is one tree of directories (`tests.contract.model`) that know their mount and which of
their names are fixed; everything that is refused because of that is said in `Shown` and the
functions behind it, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import DirectoryNode, Expect, FileNode, Node, OpenFlags, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Code,
    CrossVolume,
    IsDirectory,
    ReadOnly,
)
from tests.contract import model
from tests.contract.harness import entries_of, populate, tree_of
from tests.contract.test_model import both

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class Shown(model.Directory):
    """A directory of the tree: of which mount (None: of no volume), and with what fixed in it."""

    mount: int | None = 0
    fixed: frozenset[str] = frozenset()

    def check_changes(self) -> None:
        if self.mount is None:
            raise ReadOnly


# Both volumes have something where others are mounted.
ROOT = {"a": {"b": {"hidden": b""}, "x": b"1"}, "m": b"hidden", "x": {"y": b"2"}}
AT_B = {"x": b"3", "y": {"a": b"4"}}
AT_C = {"a": b"5", "b": {"x": {}}}


async def made() -> tuple[MountsVolume, Shown]:
    """`ROOT` with `AT_B` at ``/a/b`` and `AT_C` at ``/m/n/a``, where ``/m/n`` is in no volume."""
    volume = MountsVolume.over(
        {
            "/": await memory(ROOT),
            "/a/b": await memory(AT_B),
            "/m/n/a": await memory(AT_C),
        }
    )
    b = Shown({"x": file(b"3"), "y": Shown({"a": file(b"4")}, 1)}, 1)
    c = Shown({"a": file(b"5"), "b": Shown({"x": Shown({}, 2)}, 2)}, 2)
    n = Shown({"a": c}, None, frozenset("a"))
    m = Shown({"n": n}, None, frozenset("n"))
    a = Shown({"b": b, "x": file(b"1")}, 0, frozenset("b"))
    x = Shown({"y": file(b"2")}, 0)
    return volume, Shown({"a": a, "m": m, "x": x}, 0, frozenset("am"))


async def memory(tree: dict[str, object]) -> MemoryVolume:
    volume = await MemoryVolume.open()
    await populate(volume.root, tree)  # type: ignore[arg-type]
    return volume


def file(data: bytes) -> model.File:
    return model.File(bytearray(data))


# The model's operations --------------------------------------------------------------------------


def make(directory: Shown, name: str, node: model.Node) -> None:
    directory.check_changes()
    model.make(directory, name, node)


def open_file(directory: Shown, name: str, flags: OpenFlags) -> model.File:
    if flags.writes:
        directory.check_changes()
    return model.open_file(directory, name, flags)


def remove(directory: Shown, name: str, expect: Expect) -> None:
    directory.check_changes()
    if name in directory.fixed:
        raise IsDirectory if expect is Expect.NOT_DIRECTORY else Busy
    model.remove(directory, name, expect)


def check_partners(source: Shown, target: Shown) -> None:
    source.check_changes()
    target.check_changes()
    if source.mount != target.mount:
        raise CrossVolume


def rename(source: Shown, name: str, target: Shown, new_name: str, mode: RenameMode) -> None:
    check_partners(source, target)
    if name not in source.fixed and new_name not in target.fixed:
        model.rename(source, name, target, new_name, mode)
    elif new_name in target.fixed and mode is RenameMode.NO_REPLACE:
        raise AlreadyExists
    elif source is not target or name != new_name:
        raise Busy


def link(source: Shown, name: str, target: Shown, new_name: str) -> None:
    check_partners(source, target)
    if new_name in target.fixed and name not in source.fixed:
        raise AlreadyExists
    model.link(source, name, target, new_name)


# Both ---------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "m", "n", "x", "y"])
INDEX = st.integers(0, 15)
FLAGS = st.sampled_from(
    [
        OpenFlags.READ,
        OpenFlags.WRITE,
        OpenFlags.WRITE | OpenFlags.CREATE,
        OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE,
        OpenFlags.WRITE | OpenFlags.TRUNCATE,
    ]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("mkdir"), INDEX, NAMES),
    st.tuples(st.just("symlink"), INDEX, NAMES),
    st.tuples(st.just("sub"), INDEX, NAMES),
    st.tuples(st.just("open"), INDEX, NAMES, FLAGS),
    st.tuples(st.just("append"), INDEX),
    st.tuples(st.just("remove"), INDEX, NAMES, st.sampled_from(Expect)),
    st.tuples(st.just("rename"), INDEX, NAMES, INDEX, NAMES, st.sampled_from(RenameMode)),
    st.tuples(st.just("link"), INDEX, NAMES, INDEX, NAMES),
    st.tuples(st.just("again"), INDEX),
    st.tuples(st.just("snapshot"), INDEX),
)


@dataclass
class Pair:
    """The real tree and the model's, with handles that stand for each other."""

    volume: MountsVolume
    directories: list[tuple[DirectoryNode, Shown]]
    files: list[tuple[FileNode, model.File]] = field(default_factory=list)

    def directory(self, index: int) -> tuple[DirectoryNode, Shown]:
        return self.directories[index % len(self.directories)]

    async def mkdir(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        node = Shown({}, ideal.mount)
        found = await both(real.mkdir(name), lambda: make(ideal, name, node))
        if found is not None:
            self.directories.append((found, node))

    async def symlink(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        await both(real.symlink(name, "t"), lambda: make(ideal, name, model.Symlink("t")))

    async def sub(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        found = await both(real.sub(name), lambda: model.sub(ideal, name))
        if found is not None:
            node = model.sub(ideal, name)
            assert isinstance(node, Shown)
            self.directories.append((found, node))

    async def open(self, index: int, name: str, flags: OpenFlags) -> None:
        real, ideal = self.directory(index)
        found = await both(real.open(name, flags), lambda: open_file(ideal, name, flags))
        if found is not None and flags.writes:
            self.files.append((found, model.open_file(ideal, name, OpenFlags.READ)))

    async def append(self, index: int) -> None:
        if self.files:
            real, ideal = self.files[index % len(self.files)]
            assert await real.append(b"more") == len(ideal.data)
            model.write(ideal, len(ideal.data), b"more")

    async def remove(self, index: int, name: str, expect: Expect) -> None:
        real, ideal = self.directory(index)
        await both(real.remove(name, expect), lambda: remove(ideal, name, expect))

    async def rename(self, index: int, name: str, to: int, new_name: str, mode: RenameMode) -> None:
        (real, ideal), (target, ideal_target) = self.directory(index), self.directory(to)
        other = ideal_target.entries.get(new_name)
        around = isinstance(other, model.Directory) and model.within(ideal, other)
        await both(
            real.rename(name, target, new_name, mode),
            lambda: rename(ideal, name, ideal_target, new_name, mode),
            also=Code.NOT_EMPTY if around else None,
        )

    async def link(self, index: int, name: str, to: int, new_name: str) -> None:
        (real, ideal), (target, ideal_target) = self.directory(index), self.directory(to)
        await both(
            real.link(name, target, new_name), lambda: link(ideal, name, ideal_target, new_name)
        )

    async def again(self, index: int) -> None:
        """By its handle a directory is found with everything that is fixed in it."""
        real, ideal = self.directory(index)
        found = await self.volume.node_of(await self.volume.handle_of(real))
        assert isinstance(found, DirectoryNode)
        assert await found.stat() == await real.stat()
        self.directories.append((found, ideal))

    async def snapshot(self, index: int) -> None:
        real, ideal = self.directory(index)
        snapshot = await real.snapshot()
        assert await tree_of(snapshot) == model.dump(ideal)
        assert await entries_of(snapshot) == await entries_of(real)

    async def check(self) -> None:
        root, ideal_root = self.directories[0]
        assert await tree_of(root) == model.dump(ideal_root)
        nodes: dict[int, model.Node] = {}
        await same_ids(root, ideal_root, nodes)
        # Handles of directories that are gone would need a model of their own.
        self.directories = [pair for pair in self.directories if model.within(pair[1], ideal_root)]


async def same_ids(real: Node, ideal: model.Node, nodes: dict[int, model.Node]) -> None:
    """Ids are the same for names of one node, and for no others."""
    node_id = (await real.stat()).node_id
    assert nodes.setdefault(node_id, ideal) is ideal
    if isinstance(real, DirectoryNode) and isinstance(ideal, model.Directory):
        for limit in (1, 2):
            assert [entry.name for entry in await entries_of(real, limit)] == sorted(ideal.entries)
        for entry in await entries_of(real):
            below = ideal.entries[entry.name]
            assert nodes.setdefault(entry.stat.node_id, below) is below
            assert entry == await real.lookup(entry.name)
            if isinstance(below, model.Directory):
                await same_ids(await real.sub(entry.name), below, nodes)


Operation = tuple[str | int | OpenFlags | Expect | RenameMode, ...]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, max_size=25))
async def test_a_sequence_of_operations(operations: list[Operation]) -> None:
    volume, root = await made()
    pair = Pair(volume, [(volume.root, root)])
    # Places are at hand from the beginning; a sequence seldom gets to all of them.
    for index, name in ((0, "a"), (1, "b"), (0, "m"), (3, "n"), (4, "a"), (0, "x")):
        await pair.sub(index, name)
    await pair.check()
    for operation, *arguments in operations:
        call: Callable[..., object] = getattr(pair, str(operation))
        await call(*arguments)  # type: ignore[misc]
        await pair.check()
    for real, ideal in pair.files:
        assert bytes(await real.read(0, len(ideal.data) + 1)) == bytes(ideal.data)
    await volume.close()
