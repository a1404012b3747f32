"""Sequences of operations, compared with a model after each (`tests.contract.model`).

Directories and files are held as they are found, so that operations also go through handles
whose names changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.node import DirectoryNode, Expect, FileNode, OpenFlags, RenameMode
from capstore.schema.errors import Code, StorageError
from tests.contract import model
from tests.contract.harness import Harness, clear, tree_of

pytestmark = pytest.mark.anyio

T = TypeVar("T")

# Few names, so that operations meet; several handles, chosen by index.
NAMES = st.sampled_from(["a", "b", "c", "é", "-"])
INDEX = st.integers(0, 7)
DATA = st.sampled_from([b"", b"1", b"hello", b"x" * 5000])
OFFSETS = st.sampled_from([0, 1, 3, 4096, 70_000])
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
    st.tuples(st.just("create"), INDEX, NAMES),
    st.tuples(st.just("symlink"), INDEX, NAMES),
    st.tuples(st.just("sub"), INDEX, NAMES),
    st.tuples(st.just("open"), INDEX, NAMES, FLAGS),
    st.tuples(st.just("remove"), INDEX, NAMES, st.sampled_from(Expect)),
    st.tuples(st.just("rename"), INDEX, NAMES, INDEX, NAMES, st.sampled_from(RenameMode)),
    st.tuples(st.just("link"), INDEX, NAMES, INDEX, NAMES),
    st.tuples(st.just("write"), INDEX, OFFSETS, DATA),
    st.tuples(st.just("append"), INDEX, DATA),
    st.tuples(st.just("truncate"), INDEX, OFFSETS),
)


@dataclass
class Pair:
    """The backer's tree and the model's, with handles that stand for each other."""

    directories: list[tuple[DirectoryNode, model.Directory]]
    hard_links: bool
    files: list[tuple[FileNode, model.File]] = field(default_factory=list)

    def directory(self, index: int) -> tuple[DirectoryNode, model.Directory]:
        return self.directories[index % len(self.directories)]

    def file(self, index: int) -> tuple[FileNode, model.File]:
        return self.files[index % len(self.files)]

    async def mkdir(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        node = model.Directory()
        made = await both(real.mkdir(name), lambda: model.make(ideal, name, node))
        if made is not None:
            self.directories.append((made, node))

    async def create(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        node = model.File()
        made = await both(real.create(name), lambda: model.make(ideal, name, node))
        if made is not None:
            self.files.append((made, node))

    async def symlink(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        node = model.Symlink("target")
        await both(real.symlink(name, "target"), lambda: model.make(ideal, name, node))

    async def sub(self, index: int, name: str) -> None:
        real, ideal = self.directory(index)
        found = await both(real.sub(name), lambda: model.sub(ideal, name))
        if found is not None:
            self.directories.append((found, model.sub(ideal, name)))

    async def open(self, index: int, name: str, flags: OpenFlags) -> None:
        real, ideal = self.directory(index)
        file = await both(real.open(name, flags), lambda: model.open_file(ideal, name, flags))
        if file is not None and flags & OpenFlags.WRITE:
            self.files.append((file, model.open_file(ideal, name, OpenFlags.READ)))

    async def remove(self, index: int, name: str, expect: Expect) -> None:
        real, ideal = self.directory(index)
        await both(real.remove(name, expect), lambda: model.remove(ideal, name, expect))

    async def rename(self, index: int, name: str, to: int, new_name: str, mode: RenameMode) -> None:
        (real, ideal), (target, ideal_target) = self.directory(index), self.directory(to)
        other = ideal_target.entries.get(new_name)
        # Linux looks whether the source is in what it would replace before it looks at kinds.
        around = isinstance(other, model.Directory) and model.within(ideal, other)
        await both(
            real.rename(name, target, new_name, mode),
            lambda: model.rename(ideal, name, ideal_target, new_name, mode),
            also=Code.NOT_EMPTY if around else None,
        )

    async def link(self, index: int, name: str, to: int, new_name: str) -> None:
        if not self.hard_links:
            return
        (real, ideal), (target, ideal_target) = self.directory(index), self.directory(to)
        await both(
            real.link(name, target, new_name),
            lambda: model.link(ideal, name, ideal_target, new_name),
            also=Code.ALREADY_EXISTS if new_name in ideal_target.entries else None,
        )

    async def write(self, index: int, offset: int, data: bytes) -> None:
        if self.files:
            real, ideal = self.file(index)
            await real.write(offset, data)
            model.write(ideal, offset, data)

    async def append(self, index: int, data: bytes) -> None:
        if self.files:
            real, ideal = self.file(index)
            assert await real.append(data) == len(ideal.data)
            model.write(ideal, len(ideal.data), data)

    async def truncate(self, index: int, size: int) -> None:
        if self.files:
            real, ideal = self.file(index)
            await real.truncate(size)
            model.truncate(ideal, size)

    async def check(self) -> None:
        root, ideal_root = self.directories[0]
        assert await tree_of(root) == model.dump(ideal_root)
        # Handles of directories that are gone would need a second model; they have tests of
        # their own.
        self.directories = [pair for pair in self.directories if model.within(pair[1], ideal_root)]

    async def close(self) -> None:
        for real, ideal in self.files:
            assert bytes(await real.read(0, len(ideal.data) + 1)) == bytes(ideal.data)
            await real.close()


async def both(
    real: Awaitable[T], ideal: Callable[[], object], also: Code | None = None
) -> T | None:
    """Does the same to both; returns the real result, None when both failed in the same way.

    Where two things are wrong at once, `also` is the other that may be told.
    """
    expected: StorageError | None = None
    try:
        ideal()
    except StorageError as error:
        expected = error
    refusal: StorageError | None = None
    try:
        result = await real
    except StorageError as error:
        refusal = error
    if expected is None:
        assert refusal is None, f"the model allows what the backer refuses: {refusal!r}"
        return result
    assert refusal is not None, f"the backer allows what the model refuses: {expected!r}"
    assert refusal.code in (expected.code, also), f"{refusal!r} instead of {expected!r}"
    return None


_case = itertools.count()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(OPERATIONS, max_size=30))
async def test_a_sequence_of_operations(
    harness: Harness, operations: list[tuple[object, ...]]
) -> None:
    name = f"case {next(_case)}"
    pair = Pair([(await harness.root.mkdir(name), model.Directory())], harness.hard_links)
    for operation, *arguments in operations:
        await getattr(pair, str(operation))(*arguments)
        await pair.check()
    await pair.close()
    await clear(await harness.root.sub(name))
    await harness.root.remove(name)
