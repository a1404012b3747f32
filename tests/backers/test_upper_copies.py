"""What each upper layer does for copying up, what shows of it, and what cancelling leaves."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from capstore.backers.layer import NO_MARK, Mark, Upper
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    NodeKind,
    OpenFlags,
    Stat,
)
from capstore.schema.errors import AlreadyExists, NotFound, Unsupported
from tests.backers.upperwork import (
    LIKE,
    LONG_AGO,
    OPAQUE,
    ORIGIN,
    content,
    copy,
    dump,
    listed,
    mark_of,
    put,
    stat_of,
)
from tests.contract.uppers import UpperHarness

pytestmark = pytest.mark.anyio


# Times -------------------------------------------------------------------------------------------

Change = Callable[[Upper, DirectoryNode], Awaitable[object]]


async def _adopt(upper: Upper, directory: DirectoryNode) -> None:
    await upper.adopt(ORIGIN, directory, "adopted")


async def _mark(upper: Upper, directory: DirectoryNode) -> None:
    await upper.set_mark(directory, Mark(opaque=True, origin=77))


LOUD: dict[str, Change] = {
    "create": lambda upper, at: upper.create(at, "new"),
    "mkdir": lambda upper, at: upper.mkdir(at, "new", opaque=False),
    "mkdir opaque": lambda upper, at: upper.mkdir(at, "new", opaque=True),
    "remove": lambda upper, at: upper.remove(at, "f", cover=False),
    "remove and cover": lambda upper, at: upper.remove(at, "f", cover=True),
    "cover": lambda upper, at: upper.cover(at, "new"),
    "rename": lambda upper, at: upper.rename(at, "f", at, "new", cover=True),
    "create over a whiteout": lambda upper, at: upper.create(at, "w"),
}
SILENT: dict[str, Change] = {
    "name a file": lambda upper, at: copy(upper, at, "new"),
    "copy a directory": lambda upper, at: upper.copy_directory(at, "new", LIKE, Mark(origin=5)),
    "copy a link": lambda upper, at: upper.copy_symlink(at, "new", "t", LIKE, Mark(origin=5)),
    "adopt": _adopt,
    "mark": _mark,
    "uncover": lambda upper, at: upper.uncover(at, "w"),
}
OF_LINKS = ("copy a link", "adopt")


async def _busy_directory(upper: Upper) -> DirectoryNode:
    at = await upper.mkdir(upper.root, "at", opaque=False)
    await put(upper, at, "f")
    await upper.cover(at, "w")
    await (await copy(upper, at, "linked", mark=Mark(origin=ORIGIN, below=2))).close()
    return at


@pytest.mark.parametrize("name", LOUD)
async def test_a_users_change_shows_in_the_directory(harness: UpperHarness, name: str) -> None:
    upper = harness.upper
    at = await _busy_directory(upper)
    with suppress(Unsupported):
        await at.set_attributes(Attributes(modified=LONG_AGO))
    before = await at.stat()
    await LOUD[name](upper, at)
    after = await at.stat()
    if harness.attributes:
        assert after.modified > before.modified
    assert after.version != before.version


@pytest.mark.parametrize("name", SILENT)
async def test_copying_up_shows_nowhere(harness: UpperHarness, name: str) -> None:
    upper = harness.upper
    if name in OF_LINKS and not harness.links:
        return
    at = await _busy_directory(upper)
    with suppress(Unsupported):
        await at.set_attributes(Attributes(modified=LONG_AGO))
    before, root_before = await at.stat(), await upper.root.stat()
    await SILENT[name](upper, at)
    after = await at.stat()
    assert after.modified == before.modified
    assert after.created == before.created
    assert await upper.root.stat() == root_before
    if harness.keeps_versions:
        assert after.version == before.version


# Copying up --------------------------------------------------------------------------------------


async def test_an_unnamed_file_is_gone_when_it_is_closed_or_dropped(
    harness: UpperHarness,
) -> None:
    upper, root = harness.upper, harness.upper.root
    before = (await upper.volume.usage()).used_nodes
    closed, dropped = await upper.unnamed(), await upper.unnamed()
    await closed.write(0, b"data")
    await dropped.append(b"data")
    await closed.truncate(2)
    assert bytes(await closed.read(0, 10)) == b"da"
    assert await closed.size() == 2
    stat, mark = await upper.about(closed)
    assert (stat.link_count, mark) == (0, NO_MARK)
    assert (await closed.stat()).link_count == 0
    assert await listed(upper, root) == {}
    await closed.close()
    await closed.close()
    del dropped
    gc.collect()
    # The next one makes way.
    last = await upper.unnamed()
    await last.close()
    assert await listed(upper, root) == {}
    if harness.counts_nodes:
        assert (await upper.volume.usage()).used_nodes == before


async def test_a_named_file_is_like_its_original(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    file = await copy(upper, root, "f", mark=Mark(origin=ORIGIN))
    found = await upper.find(root, "f")
    assert found is not None
    assert found.entry is not None
    stat = found.entry.stat
    assert found.mark == Mark(origin=ORIGIN)
    assert (stat.link_count, stat.size) == (1, 5)
    if harness.attributes:
        assert (stat.modified, stat.executable) == (LONG_AGO, True)
    if harness.created_times:
        assert stat.created == LIKE.created
    assert await upper.about(file) == (stat, found.mark)
    # It is the same file as before, and open.
    await file.write(5, b" and above")
    assert await content(root, "f") == b"below and above"
    await file.close()
    assert await content(root, "f") == b"below and above"
    assert (await file.stat()).node_id == stat.node_id


async def test_a_file_that_finds_no_place_remains_unnamed(
    upper: Upper, root: DirectoryNode
) -> None:
    await put(upper, root, "f", b"first")
    file = await upper.unnamed()
    await file.write(0, b"second")
    with pytest.raises(AlreadyExists):
        await upper.name_file(file, root, "f", LIKE, Mark(origin=ORIGIN, below=3))
    assert await content(root, "f") == b"first"
    assert await upper.linked(ORIGIN) is None
    assert (await upper.about(file))[0].link_count == 0
    await upper.name_file(file, root, "g", LIKE, Mark(origin=ORIGIN))
    assert await content(root, "g") == b"second"
    await file.close()


async def test_a_file_without_known_times_is_copied(upper: Upper, root: DirectoryNode) -> None:
    like = Stat(NodeKind.FILE, 5, 1, 1)
    await (await copy(upper, root, "f", mark=Mark(origin=3), like=like)).close()
    await upper.copy_directory(root, "d", like, Mark(origin=4))
    assert await mark_of(upper, root, "f") == Mark(origin=3)
    assert await mark_of(upper, root, "d") == Mark(origin=4)


@pytest.mark.parametrize("mark", [NO_MARK, Mark(origin=ORIGIN), Mark(opaque=True, origin=ORIGIN)])
async def test_a_directory_is_copied_empty(harness: UpperHarness, mark: Mark) -> None:
    upper, root = harness.upper, harness.upper.root
    made = await upper.copy_directory(root, "d", LIKE, mark)
    stat = await stat_of(upper, root, "d")
    assert await mark_of(upper, root, "d") == mark
    assert await upper.about(made) == (stat, mark)
    if harness.attributes:
        assert stat.modified == LONG_AGO
    if harness.created_times:
        assert stat.created == LIKE.created
    await put(upper, made, "f")
    assert await content(await root.sub("d"), "f") == b"data"
    with pytest.raises(AlreadyExists):
        await upper.copy_directory(root, "d", LIKE, mark)
    assert list(await listed(upper, root)) == ["d"]


async def test_a_symbolic_link_is_copied(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    if not harness.links:
        with pytest.raises(Unsupported):
            await upper.copy_symlink(root, "l", "far/away", LIKE, NO_MARK)
        return
    await upper.copy_symlink(root, "l", "far/away", LIKE, Mark(origin=ORIGIN, below=1))
    found = await upper.find(root, "l")
    assert found is not None
    assert found.entry is not None
    assert found.mark == Mark(origin=ORIGIN, below=1)
    assert (found.entry.target, found.entry.stat.modified) == ("far/away", LONG_AGO)
    assert found.entry.stat.link_count == 2
    await upper.adopt(ORIGIN, root, "m")
    assert (await root.lookup("m")).target == "far/away"


async def test_names_below_stand_for_the_copy(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    await (await copy(upper, root, "a", mark=Mark(origin=ORIGIN, below=2))).close()
    if not harness.links:
        assert await upper.linked(ORIGIN) is None
        assert await mark_of(upper, root, "a") == Mark(origin=ORIGIN)
        return
    stat = await stat_of(upper, root, "a")
    assert stat.link_count == 3
    assert await upper.linked(ORIGIN) == stat
    assert list(await upper.origins()) == [ORIGIN]
    file = await upper.open_linked(ORIGIN, OpenFlags.WRITE)
    await file.write(0, b"BELOW")
    assert await upper.about(file) == (await file.stat(), Mark(origin=ORIGIN, below=2)) or (
        (await upper.about(file))[0].link_count == 3
    )
    await file.close()
    assert await content(root, "a") == b"BELOW"
    for left in (1, 0):
        name = f"adopted with {left} left"
        await upper.adopt(ORIGIN, root, name)
        for one in ("a", name):
            assert await mark_of(upper, root, one) == Mark(origin=ORIGIN, below=left)
            assert (await stat_of(upper, root, one)).link_count == 3
        assert (await stat_of(upper, root, name)).node_id == stat.node_id
    with pytest.raises(NotFound):
        await upper.adopt(ORIGIN, root, "no more")
    assert await upper.linked(ORIGIN) is None
    assert list(await upper.origins()) == []
    await upper.remove(root, "a", cover=True)
    assert (await stat_of(upper, root, name)).link_count == 2


async def test_a_node_lives_on_under_names_below(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    if not harness.links:
        return
    file = await copy(upper, root, "a", mark=Mark(origin=ORIGIN, below=2))
    await upper.remove(root, "a", cover=True)
    stat = await upper.linked(ORIGIN)
    assert stat is not None
    assert stat.link_count == 2
    assert (await upper.about(file))[0] == stat
    await file.close()
    reader = await upper.open_linked(ORIGIN, OpenFlags.READ)
    assert bytes(await reader.read(0, 10)) == b"below"
    await reader.close()
    await upper.adopt(ORIGIN, root, "b")
    assert await content(root, "b") == b"below"
    assert await mark_of(upper, root, "b") == Mark(origin=ORIGIN, below=1)
    with pytest.raises(AlreadyExists):
        await upper.adopt(ORIGIN, root, "b")
    assert await mark_of(upper, root, "b") == Mark(origin=ORIGIN, below=1)


async def test_marks_of_a_directory_are_set(upper: Upper, root: DirectoryNode) -> None:
    made = await upper.copy_directory(root, "d", LIKE, Mark(origin=ORIGIN))
    await put(upper, made, "f")
    for mark in (Mark(opaque=True, origin=ORIGIN), Mark(origin=7), NO_MARK, OPAQUE):
        await upper.set_mark(made, mark)
        assert await mark_of(upper, root, "d") == mark
        assert (await upper.about(made))[1] == mark
        assert list(await listed(upper, made)) == ["f"]


async def test_the_root_can_be_opaque(harness: UpperHarness) -> None:
    await harness.upper.set_mark(harness.upper.root, OPAQUE)
    upper = await harness.again()
    assert (await upper.about(upper.root))[1] == OPAQUE
    assert await listed(upper, upper.root) == {}


async def test_all_is_there_when_it_is_opened_again(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    at = await _busy_directory(upper)
    await upper.mkdir(root, "opaque", opaque=True)
    await upper.copy_directory(root, "copied", LIKE, Mark(origin=0xFFFF_FFFF_FFFF_FFFF))
    await (await copy(upper, at, "file", mark=Mark(origin=12))).close()
    await upper.cover(root, "gone")
    if harness.links:
        await upper.copy_symlink(at, "link", "t", LIKE, Mark(origin=13, below=1))
        await upper.adopt(ORIGIN, root, "adopted")
    unnamed = await upper.unnamed()
    await unnamed.write(0, b"never to be seen")
    before = await dump(upper, root)
    upper = await harness.again()
    assert await dump(upper, upper.root) == before
    if harness.links:
        stat = await upper.linked(ORIGIN)
        assert stat is not None
        assert stat.link_count == 3
        await upper.adopt(ORIGIN, upper.root, "the last")
        await upper.adopt(13, upper.root, "the last link")
        upper = await harness.again()
        assert await upper.linked(ORIGIN) is await upper.linked(13) is None
        assert await mark_of(upper, upper.root, "adopted") == Mark(origin=ORIGIN)
    with suppress(Exception):
        await unnamed.close()


# Cancellation ------------------------------------------------------------------------------------


async def _name(upper: Upper, at: DirectoryNode) -> None:
    file = await upper.unnamed()
    await file.write(0, b"content")
    await upper.name_file(file, at, "new", LIKE, Mark(origin=9, below=1))


CANCELLED: dict[str, Change] = {
    **{name: change for name, change in LOUD.items() if name != "cover"},
    **{name: change for name, change in SILENT.items() if name != "name a file"},
    "cover": LOUD["cover"],
    "name": _name,
    "remove a directory": lambda upper, at: upper.remove(at, "marks", cover=True),
    "rename a directory": lambda upper, at: upper.rename(
        at, "full", at, "marks", cover=True, mark=OPAQUE
    ),
    "exchange": lambda upper, at: upper.exchange(at, "full", OPAQUE, at, "f", None),
}


@pytest.mark.parametrize("name", CANCELLED)
async def test_a_cancelled_change_is_made_or_not(harness: UpperHarness, name: str) -> None:
    upper = harness.upper
    if (name in OF_LINKS and not harness.links) or (
        name in ("rename a directory", "exchange") and not harness.exchanges
    ):
        return

    async def prepared(parent: str) -> DirectoryNode:
        over = await upper.mkdir(upper.root, parent, opaque=False)
        at = await upper.mkdir(over, "at", opaque=False)
        await put(upper, at, "f")
        await upper.cover(at, "w")
        marks = await upper.mkdir(at, "marks", opaque=False)
        await upper.cover(marks, "x")
        full = await upper.mkdir(at, "full", opaque=False)
        await put(upper, full, "inner")
        return at

    async def linked(at: DirectoryNode) -> None:
        if harness.links:
            await (await copy(upper, at, "z", mark=Mark(origin=ORIGIN, below=1))).close()

    async def unlinked(at: DirectoryNode) -> None:
        with suppress(NotFound):
            await upper.adopt(ORIGIN, at, "freed")
        with suppress(NotFound):
            await upper.adopt(9, at, "freed, too")

    async def seen(at: DirectoryNode) -> object:
        return await dump(upper, at), (await upper.about(at))[1]

    at = await prepared("measured")
    await linked(at)
    before = await seen(at)
    await CANCELLED[name](upper, at)
    after = await seen(at)
    await unlinked(at)
    found: list[object] = []
    for turns in range(60):
        at = await prepared(f"{turns}")
        await linked(at)

        async def run(at: DirectoryNode = at) -> None:
            await CANCELLED[name](upper, at)

        task = asyncio.create_task(run())
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 2 else 0.0001)
        task.cancel()
        ended = not (await asyncio.gather(task, return_exceptions=True))[0]
        found.append(await seen(at))
        assert found[-1] in (before, after)
        await unlinked(at)
        if ended:
            break
    assert found[-1] == after
    assert found[0] == before
