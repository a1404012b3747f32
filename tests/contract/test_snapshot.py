"""Snapshots, where there are any."""

from __future__ import annotations

import pytest

from capstore.backers.node import Attributes, DirectoryNode, OpenFlags, RenameMode
from capstore.schema.errors import NotFound, ReadOnly, Unsupported
from tests.contract.harness import (
    Harness,
    Link,
    content_of,
    entries_of,
    names_of,
    populate,
    replace_content,
    tree_of,
)

pytestmark = pytest.mark.anyio

TREE = {
    "a": {"b": {"c": b"deep"}, "f": b"file"},
    "big": bytes(range(256)) * 1024,
    "empty": {},
    "l": Link("a"),
}


@pytest.fixture
async def live(harness: Harness) -> DirectoryNode:
    await populate(harness.root, TREE)
    if not harness.snapshots:
        with pytest.raises(Unsupported):
            await harness.root.snapshot()
        pytest.skip("no snapshots")
    return harness.root


async def test_a_snapshot_shows_what_was(live: DirectoryNode) -> None:
    before = await entries_of(live)
    snapshot = await live.snapshot()
    assert await tree_of(snapshot) == TREE
    assert await entries_of(snapshot) == before
    assert await snapshot.stat() == await live.stat()


async def test_later_changes_do_not_show(live: DirectoryNode) -> None:
    before = await entries_of(live)
    snapshot = await live.snapshot()
    a = await live.sub("a")
    await replace_content(a, "f", b"changed")
    file = await live.open("big", OpenFlags.WRITE)
    await file.write(70_000, b"one byte here, one there")
    await file.truncate(100_000)
    await file.append(b"more")
    await live.set_attributes(Attributes(modified=1), "l")
    await live.set_attributes(Attributes(modified=1))
    await (await a.sub("b")).remove("c")
    await a.remove("b")
    await live.rename("a", live, "z")
    await live.rename("z", await live.sub("empty"), "a")
    await live.remove("l")
    await populate(live, {"new": b"", "l": {}})
    assert await tree_of(snapshot) == TREE
    assert await entries_of(snapshot) == before


async def test_each_snapshot_shows_its_own_time(live: DirectoryNode) -> None:
    taken: list[DirectoryNode] = []
    file = await live.open("big", OpenFlags.WRITE)
    for step in range(6):
        await file.write(step * 50_000, bytes([step]) * 10)
        await live.mkdir(f"step {step}")
        taken.append(await live.snapshot())
    await file.truncate(0)

    async def check(step: int) -> None:
        names = await names_of(taken[step])
        assert [name for name in names if name.startswith("step")] == [
            f"step {number}" for number in range(step + 1)
        ]
        content = await content_of(taken[step], "big")
        for number in range(6):
            written = content[number * 50_000 : number * 50_000 + 10] == bytes([number]) * 10
            assert written == (number <= step)

    for step in (3, 0, 5, 1):
        await check(step)
    # Dropping some does not disturb the others.
    kept = {0: taken[0], 4: taken[4]}
    taken.clear()
    await live.mkdir("after")
    taken = [kept[0]] * 4 + [kept[4]]
    await check(4)
    taken = [kept[0]]
    await check(0)


async def test_a_snapshot_is_read_only(live: DirectoryNode) -> None:
    snapshot = await live.snapshot()
    a = await snapshot.sub("a")
    for refused in (
        snapshot.create("x"),
        snapshot.mkdir("x"),
        snapshot.remove("l"),
        snapshot.symlink("x", "y"),
        snapshot.link("big", snapshot, "x"),
        snapshot.rename("big", snapshot, "x"),
        snapshot.rename("big", a, "x", RenameMode.NO_REPLACE),
        snapshot.set_attributes(Attributes(modified=1), "big"),
        snapshot.set_attributes(Attributes(modified=1)),
        snapshot.open("big", OpenFlags.WRITE),
        a.open("new", OpenFlags.WRITE | OpenFlags.CREATE),
        a.mkdir("x"),
    ):
        with pytest.raises(ReadOnly):
            await refused
    file = await a.open("f")
    with pytest.raises(ReadOnly):
        await file.write(0, b"x")
    assert await tree_of(snapshot) == TREE
    assert await tree_of(live) == TREE


async def test_nothing_moves_between_a_snapshot_and_the_live_tree(live: DirectoryNode) -> None:
    snapshot = await live.snapshot()
    with pytest.raises(ReadOnly):
        await live.rename("big", snapshot, "x")
    with pytest.raises(ReadOnly):
        await live.link("big", snapshot, "x")
    with pytest.raises(ReadOnly):
        await snapshot.rename("big", live, "x")
    assert await tree_of(live) == TREE


async def test_a_snapshot_of_a_part(live: DirectoryNode) -> None:
    part = await (await live.sub("a")).snapshot()
    await (await (await live.sub("a")).sub("b")).remove("c")
    assert await tree_of(part) == TREE["a"]
    again = await part.snapshot()
    assert await tree_of(again) == TREE["a"]


async def test_handles_taken_from_a_snapshot_outlive_it(live: DirectoryNode) -> None:
    snapshot = await live.snapshot()
    file = await (await snapshot.sub("a")).open("f")
    deep = await (await snapshot.sub("a")).sub("b")
    del snapshot
    await replace_content(await live.sub("a"), "f", b"changed")
    await (await (await live.sub("a")).sub("b")).remove("c")
    assert bytes(await file.read(0, 10)) == b"file"
    assert await names_of(deep) == ["c"]


async def test_a_live_handle_is_not_in_the_snapshot(live: DirectoryNode) -> None:
    file = await live.open("big", OpenFlags.WRITE)
    await live.remove("big")
    snapshot = await live.snapshot()
    with pytest.raises(NotFound):
        await snapshot.lookup("big")
    await file.write(0, b"still here")
    assert bytes(await file.read(0, 10)) == b"still here"
