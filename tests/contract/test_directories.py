"""Directories: making, listing, removing, and the life of a handle."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from capstore.backers.node import DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX, SYMLINK_TARGET_BYTES_MAX
from tests.contract.harness import Link, content_of, entries_of, names_of, populate, tree_of

pytestmark = pytest.mark.anyio


async def test_a_new_directory_is_empty(root: DirectoryNode) -> None:
    made = await root.mkdir("d")
    assert await names_of(made) == []
    entry = await root.lookup("d")
    assert entry.stat.kind is NodeKind.DIRECTORY
    assert entry.stat.size == 0
    assert entry.target is None


async def test_mkdir_and_sub_give_the_same_directory(root: DirectoryNode) -> None:
    made = await root.mkdir("d")
    await made.create("f")
    assert await names_of(await root.sub("d")) == ["f"]
    assert (await made.stat()).node_id == (await root.lookup("d")).stat.node_id


async def test_mkdir_does_not_replace(root: DirectoryNode) -> None:
    await populate(root, {"f": b"", "d": {"x": b""}, "l": Link("nowhere")})
    for name in ("f", "d", "l"):
        with pytest.raises(AlreadyExists):
            await root.mkdir(name)
    assert await names_of(await root.sub("d")) == ["x"]


async def test_sub_of_what_is_no_directory(root: DirectoryNode) -> None:
    await populate(root, {"f": b"", "d": {}, "l": Link("d"), "dangling": Link("nowhere")})
    for name in ("f", "l", "dangling"):
        with pytest.raises(NotDirectory):
            await root.sub(name)
    with pytest.raises(NotFound):
        await root.sub("missing")


REMOVING: list[tuple[str, Expect, type[StorageError] | None]] = [
    ("missing", Expect.ANY, NotFound),
    ("missing", Expect.DIRECTORY, NotFound),
    ("missing", Expect.NOT_DIRECTORY, NotFound),
    ("file", Expect.ANY, None),
    ("file", Expect.NOT_DIRECTORY, None),
    ("file", Expect.DIRECTORY, NotDirectory),
    ("link", Expect.ANY, None),
    ("link", Expect.NOT_DIRECTORY, None),
    ("link", Expect.DIRECTORY, NotDirectory),
    ("empty", Expect.ANY, None),
    ("empty", Expect.DIRECTORY, None),
    ("empty", Expect.NOT_DIRECTORY, IsDirectory),
    ("full", Expect.ANY, NotEmpty),
    ("full", Expect.DIRECTORY, NotEmpty),
    ("full", Expect.NOT_DIRECTORY, IsDirectory),
]


@pytest.mark.parametrize(("name", "expect", "error"), REMOVING)
async def test_remove(
    root: DirectoryNode, name: str, expect: Expect, error: type[StorageError] | None
) -> None:
    tree = {"empty": {}, "file": b"x", "full": {"inner": b"y"}, "link": Link("full")}
    await populate(root, tree)
    if error is not None:
        with pytest.raises(error):
            await root.remove(name, expect)
        assert await tree_of(root) == tree
        return
    await root.remove(name, expect)
    assert await tree_of(root) == {key: value for key, value in tree.items() if key != name}
    with pytest.raises(NotFound):
        await root.remove(name, expect)


async def test_a_removed_directory_is_empty_for_good(root: DirectoryNode) -> None:
    held = await root.mkdir("d")
    await populate(root, {"f": b"", "e": {}})
    await root.remove("d")
    await root.mkdir("d")
    assert await names_of(held) == []
    assert (await held.stat()).link_count == 0
    write = OpenFlags.WRITE | OpenFlags.CREATE
    with pytest.raises(NotFound):
        await held.create("x")
    with pytest.raises(NotFound):
        await held.open("x", write)
    with pytest.raises(NotFound):
        await held.mkdir("x")
    with pytest.raises(NotFound):
        await held.symlink("x", "y")
    with pytest.raises(NotFound):
        await root.link("f", held, "x")
    for name in ("f", "e"):
        with pytest.raises(NotFound):
            await root.rename(name, held, "x")
    with pytest.raises(NotFound):
        await held.lookup("x")
    with pytest.raises(NotFound):
        await held.remove("x")
    assert await names_of(root) == ["d", "e", "f"]
    assert await names_of(await root.sub("d")) == []


async def test_a_directory_that_was_replaced_is_removed(root: DirectoryNode) -> None:
    await populate(root, {"new": {"x": b""}, "old": {}})
    held = await root.sub("old")
    await root.rename("new", root, "old")
    with pytest.raises(NotFound):
        await held.create("y")
    assert await names_of(await root.sub("old")) == ["x"]


async def test_a_held_directory_follows_its_renaming(root: DirectoryNode) -> None:
    await populate(root, {"a": {"b": {"c": {}}}, "z": {}})
    held = await (await (await root.sub("a")).sub("b")).sub("c")
    await root.rename("a", await root.sub("z"), "moved")
    await held.create("here")
    found = root
    for name in ("z", "moved", "b", "c"):
        found = await found.sub(name)
    assert await names_of(found) == ["here"]


# Listing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 1000])
async def test_pages_are_together_the_listing(root: DirectoryNode, limit: int) -> None:
    names = [f"entry {number:02}" for number in range(20)]
    await populate(root, dict.fromkeys(names, b"x"))
    entries = await entries_of(root, limit)
    assert [entry.name for entry in entries] == names
    assert all(entry.stat.size == 1 for entry in entries)
    page = await root.list("", limit)
    assert len(page.entries) == min(limit, 20)
    assert page.more == (limit < 20)


async def test_a_listing_begins_behind_any_text(root: DirectoryNode) -> None:
    await populate(root, dict.fromkeys(["a", "b", "c"], b""))
    assert [entry.name for entry in (await root.list("aa")).entries] == ["b", "c"]
    assert [entry.name for entry in (await root.list("b")).entries] == ["c"]
    page = await root.list("c")
    assert (list(page.entries), page.more) == ([], False)


async def test_an_empty_directory_lists_nothing(root: DirectoryNode) -> None:
    page = await root.list()
    assert (list(page.entries), page.more) == ([], False)


async def test_a_listing_tells_what_lookup_tells(root: DirectoryNode) -> None:
    await populate(root, {"d": {"x": b""}, "f": b"abc", "l": Link("f")})
    for entry in await entries_of(root):
        assert entry == await root.lookup(entry.name)


async def test_a_walk_over_changing_entries(root: DirectoryNode) -> None:
    """What nobody touches appears exactly once, whatever else comes and goes."""
    kept = [f"{number:03} kept" for number in range(60)]
    await populate(root, dict.fromkeys(kept, b""))
    seen: list[str] = []
    after = ""
    for turn in range(1000):
        page = await root.list(after, 5)
        seen += [entry.name for entry in page.entries]
        after = seen[-1]
        await root.create(f"{turn * 7 % 60:03} new {turn}")
        if turn > 2:
            await root.remove(f"{(turn - 2) * 7 % 60:03} new {turn - 2}")
        if not page.more:
            break
    assert [name for name in seen if name.endswith("kept")] == kept
    assert len(seen) == len(set(seen))


async def test_a_walk_that_removes_what_it_lists(root: DirectoryNode) -> None:
    await populate(root, dict.fromkeys([f"{number:02}" for number in range(30)], b""))
    seen: list[str] = []
    while True:
        page = await root.list(seen[-1] if seen else "", 4)
        for entry in page.entries:
            seen.append(entry.name)
            await root.remove(entry.name)
        if not page.more:
            break
    assert seen == [f"{number:02}" for number in range(30)]
    assert await names_of(root) == []


async def test_a_page_is_bounded(root: DirectoryNode) -> None:
    """Also where names and targets are as long as they may be."""
    target = "t" * SYMLINK_TARGET_BYTES_MAX
    for number in range(300):
        await root.symlink(f"{number:03}" + "n" * 250, target)
    page = await root.list()
    assert page.entries
    assert page.more
    assert sum(len(entry.name) + len(entry.target or "") for entry in page.entries) <= 512 * 1024
    assert len(await names_of(root)) == 300


async def test_more_entries_than_a_page_holds(root: DirectoryNode) -> None:
    count = PAGE_ENTRIES_MAX + 5
    for number in range(count):
        await root.symlink(f"{number:05}", "x")
    page = await root.list(limit=10 * PAGE_ENTRIES_MAX)
    assert 0 < len(page.entries) <= PAGE_ENTRIES_MAX
    assert page.more
    assert await names_of(root) == [f"{number:05}" for number in range(count)]


# Many at once -----------------------------------------------------------------------------------


async def test_one_of_many_creates_a_name(root: DirectoryNode) -> None:
    outcomes: list[str] = []

    async def create() -> None:
        try:
            await root.create("f")
        except AlreadyExists:
            outcomes.append("exists")
        else:
            outcomes.append("made")

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(create)
    assert sorted(outcomes) == ["exists"] * 9 + ["made"]


async def test_one_of_many_moves_an_entry(root: DirectoryNode) -> None:
    await populate(root, {"f": b"moved"})
    moved: list[str] = []

    async def move(name: str) -> None:
        try:
            await root.rename("f", root, name, RenameMode.NO_REPLACE)
        except NotFound:
            return
        moved.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(move, f"to {number}")
    assert await names_of(root) == moved
    assert await content_of(root, moved[0]) == b"moved"


async def test_directories_that_move_into_each_other(root: DirectoryNode) -> None:
    """Two moves that would each be fine must not together cut a loop out of the tree."""
    for _ in range(5):
        await populate(root, {"a": {}, "b": {}})
        a, b = await root.sub("a"), await root.sub("b")

        async def move(name: str, to: DirectoryNode) -> None:
            # The loser finds its own name gone, or itself below what it moves to.
            with suppress(NotFound, InvalidArgument):
                await root.rename(name, to, name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move, "a", b)
            tasks.start_soon(move, "b", a)
        (outer,) = await names_of(root)
        inner = await root.sub(outer)
        (name,) = await names_of(inner)
        await inner.remove(name)
        await root.remove(outer)
