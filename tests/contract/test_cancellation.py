"""A call that is cancelled has happened whole or not at all, and holds nothing.

Each change runs in a task of its own and is cancelled after some turns of the loop, or after some
microseconds where the backer works in threads.  It is cancelled as pycapnp does it: by
`asyncio.Task.cancel`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from capstore.backers.node import Attributes, DirectoryNode, FileNode, OpenFlags, RenameMode
from tests.contract.harness import Harness, Link, Tree, clear, populate, tree_of

pytestmark = pytest.mark.anyio

BIG = bytes(range(256)) * 1024
BEFORE: Tree = {
    "d": {"inner": b"inside"},
    "e": {},
    "f": BIG,
    "g": b"other",
    "l": Link("f"),
}
WRITE = OpenFlags.WRITE


def changed(**changes: bytes | Link | Tree | None) -> Tree:
    after = {**BEFORE, **{key: value for key, value in changes.items() if value is not None}}
    return {key: value for key, value in after.items() if changes.get(key, value) is not None}


async def _write(root: DirectoryNode, change: Callable[[FileNode], Awaitable[object]]) -> None:
    file = await root.open("f", WRITE)
    await change(file)


Change = Callable[[DirectoryNode], Awaitable[object]]

CHANGES: dict[str, tuple[Change, Tree]] = {
    "create": (lambda root: root.create("new"), changed(new=b"")),
    "mkdir": (lambda root: root.mkdir("new"), changed(new={})),
    "symlink": (lambda root: root.symlink("new", "t"), changed(new=Link("t"))),
    "open to create": (lambda root: root.open("new", WRITE | OpenFlags.CREATE), changed(new=b"")),
    "open to truncate": (lambda root: root.open("f", WRITE | OpenFlags.TRUNCATE), changed(f=b"")),
    "remove": (lambda root: root.remove("f"), changed(f=None)),
    "remove a directory": (lambda root: root.remove("e"), changed(e=None)),
    "move": (lambda root: root.rename("f", root, "new"), changed(f=None, new=BIG)),
    "replace": (lambda root: root.rename("f", root, "g"), changed(f=None, g=BIG)),
    "exchange": (
        lambda root: root.rename("f", root, "d", RenameMode.EXCHANGE),
        changed(f={"inner": b"inside"}, d=BIG),
    ),
    "write": (
        lambda root: _write(root, lambda file: file.write(0, b"x" * len(BIG))),
        changed(f=b"x" * len(BIG)),
    ),
    "append": (lambda root: _write(root, lambda file: file.append(BIG)), changed(f=BIG + BIG)),
    "truncate": (
        lambda root: _write(root, lambda file: file.truncate(70_000)),
        changed(f=BIG[:70_000]),
    ),
    "sync": (lambda root: root.sync(), BEFORE),
    "attributes": (lambda root: root.set_attributes(Attributes(modified=1), "f"), BEFORE),
    "read": (lambda root: tree_of(root), BEFORE),
}


# Each second moment is enough by default; all of them are left to the long tests.
STRIDES = [pytest.param(2, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancelled(change: Awaitable[object], patience: Awaitable[None]) -> None:
    """Begins `change`, waits as `patience` does, and cancels it."""

    async def run() -> None:
        await change

    task = asyncio.create_task(run())
    await patience
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", CHANGES)
async def test_whole_or_not_at_all(harness: Harness, name: str, stride: int) -> None:
    root = harness.root
    change, after = CHANGES[name]
    moments = [lambda count=count: _turns(count) for count in range(1, 12)]
    moments += [lambda step=step: asyncio.sleep(step * 0.0001) for step in range(1, 6)]
    for moment in moments[::stride]:
        await populate(root, BEFORE)
        await _cancelled(change(root), moment())
        await harness.settled()
        found = await tree_of(root)
        assert found in (BEFORE, after)
        # Nothing of it is still under way, and nothing stays locked.
        await _turns(3)
        assert await tree_of(root) == found
        await populate(root, {"still works": b"yes"})
        await clear(root)


async def test_a_cancelled_read_leaves_its_buffer_alone(root: DirectoryNode) -> None:
    await populate(root, BEFORE)
    file = await root.open("f")
    for count in range(1, 12):
        buffer = bytearray(len(BIG))
        await _cancelled(file.read_into(0, memoryview(buffer)), _turns(count))
        marker = b"mine again" * (len(BIG) // 10)
        buffer[: len(marker)] = marker
        await asyncio.sleep(0.001)
        assert buffer[: len(marker)] == marker
    assert bytes(await file.read(0, len(BIG))) == BIG


async def test_many_cancelled_at_random_leave_a_tree_that_works(root: DirectoryNode) -> None:
    async def busy(number: int) -> None:
        for step in range(20):
            name = f"{number} {step}"
            file = await root.create(name)
            await file.write(0, name.encode())
            await root.rename(name, root, name + " moved")

    tasks = [asyncio.create_task(busy(number)) for number in range(8)]
    for count, task in enumerate(tasks):
        await _turns(count)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for name, content in (await tree_of(root)).items():
        expected = name.removesuffix(" moved").encode()
        assert content == expected or (content == b"" and not name.endswith("moved"))
    await clear(root)
    assert await tree_of(root) == {}
