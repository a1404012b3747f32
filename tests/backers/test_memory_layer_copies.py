"""Copies in a memory layer: how they come to be, and nodes that layers below show, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.memory_data import entry_cost
from capstore.backers.memory_layer import MemoryLayer
from capstore.backers.node import (
    Attributes,
    FileNode,
    NodeKind,
    OpenFlags,
    Provenance,
)
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    NotFound,
    ReadOnly,
    Unsupported,
)
from tests.backers.memory_layers import (
    COPY,
    LIKE,
    MOVED,
    OPAQUE,
    SHARED,
    WRITE,
    copied,
    dump,
    stat_of,
    there,
    upper_with,
    used,
)
from tests.contract.harness import Link, content_of, tree_of

pytestmark = pytest.mark.anyio

# Copying up ---------------------------------------------------------------------------------------


async def test_copies_are_silent_and_take_what_is_recorded() -> None:
    upper = await upper_with({"old": {}})
    root = upper.root
    before = await upper.about(root)
    await copied(upper, "f", b"content", COPY)
    made = await upper.copy_directory(root, "d", LIKE, MOVED)
    await upper.copy_symlink(root, "l", "target", LIKE, SHARED)
    await upper.set_mark(await root.sub("old"), OPAQUE)
    assert await upper.about(root) == before
    assert await upper.about(made) == (await made.stat(), MOVED)
    for name, mark in (("f", COPY), ("d", MOVED), ("l", SHARED)):
        found = await there(upper, name)
        stat = await stat_of(upper, name)
        assert found.mark == mark
        assert (stat.created, stat.modified) == (LIKE.created, LIKE.modified)
        assert stat.provenance is Provenance.TAR_HEADER
        assert stat.executable == (name == "f")
        assert stat.link_count == 1 + mark.below
    assert await tree_of(root) == {"f": b"content", "d": {}, "l": Link("target"), "old": {}}


async def test_times_that_cannot_be_recorded_are_as_near_as_can_be() -> None:
    upper = await upper_with()
    await copied(upper, "f", like=LIKE._replace(created=-(2**70), modified=2**70))
    stat = await stat_of(upper, "f")
    assert (stat.created, stat.modified) == (-(2**63), 2**63 - 1)


async def test_changes_make_the_times_those_of_the_clock() -> None:
    upper = await upper_with()
    changes: dict[str, Callable[[FileNode], Awaitable[object]]] = {
        "write": lambda file: file.write(0, b"x"),
        "append": lambda file: file.append(b"x"),
        "truncate": lambda file: file.truncate(5),
        "attributes": lambda file: file.set_attributes(Attributes(executable=False)),
    }
    for name, change in changes.items():
        file = await copied(upper, name, b"abc", Mark(origin=5))
        before = await file.stat()
        await change(file)
        stat = await file.stat()
        assert stat.provenance is Provenance.WALL_CLOCK
        assert stat.version > before.version
        assert (await upper.about(file))[1] == Mark(origin=5)
    made = await upper.copy_directory(upper.root, "d", LIKE, NO_MARK)
    await upper.cover(made, "x")
    assert (await made.stat()).provenance is Provenance.WALL_CLOCK
    await upper.copy_symlink(upper.root, "l", "t", LIKE, NO_MARK)
    await upper.root.set_attributes(Attributes(modified=7), "l")
    assert (await stat_of(upper, "l")).provenance is Provenance.WALL_CLOCK


async def test_an_unnamed_file_goes_when_it_is_let_go() -> None:
    upper = await upper_with()
    for way in ("close", "drop", "name"):
        file: FileNode | None = await upper.unnamed()
        assert file is not None
        await file.write(0, b"x" * 1000)
        assert await used(upper) == (1000, 2)
        assert (await file.stat()).link_count == 0
        if way == "name":
            await upper.name_file(file, upper.root, "f", LIKE, NO_MARK)
            with pytest.raises(InvalidArgument):
                await upper.name_file(file, upper.root, "g", LIKE, NO_MARK)
        if way != "drop":
            await file.close()
        file = None
        assert await used(upper) == ((1000 + entry_cost("f"), 2) if way == "name" else (0, 1))


async def test_copies_go_where_nothing_is() -> None:
    upper = await upper_with({"taken": b"", "gone": {}}, "white")
    root = upper.root
    gone = await root.sub("gone")
    await root.remove("gone")
    await copied(upper, "shared", b"", SHARED)
    file = await upper.unnamed()
    before = await dump(upper), await used(upper)
    for directory, name, error in (
        (root, "taken", AlreadyExists),
        (root, "white", AlreadyExists),
        (gone, "x", NotFound),
        (root, "..", InvalidName),
    ):
        for refused in (
            upper.name_file(file, directory, name, LIKE, COPY),
            upper.copy_directory(directory, name, LIKE, MOVED),
            upper.copy_symlink(directory, name, "t", LIKE, COPY),
            upper.adopt(SHARED.origin, directory, name),
        ):
            with pytest.raises(error):
                await refused
    for mark, wrong in (
        (Mark(opaque=True), InvalidArgument),
        (Mark(redirect="x"), InvalidArgument),
        (Mark(below=1), InvalidArgument),
        (Mark(origin=-1), InvalidArgument),
        (Mark(origin=1, below=-1), InvalidArgument),
        (SHARED, AlreadyExists),
    ):
        with pytest.raises(wrong):
            await upper.name_file(file, root, "x", LIKE, mark)
    for target in ("", "a\0", "x" * 4096, "\ud800"):
        with pytest.raises(InvalidArgument):
            await upper.copy_symlink(root, "x", target, LIKE, COPY)
    with pytest.raises(InvalidArgument):
        await upper.set_mark(root, SHARED)
    assert (await dump(upper), await used(upper)) == before
    await upper.name_file(file, root, "x", LIKE, COPY)


# Nodes that layers below show, too ----------------------------------------------------------------


async def test_a_node_lives_for_its_names_below() -> None:
    upper = await upper_with({"d": {}})
    root = upper.root
    await copied(upper, "a", b"shared", SHARED)
    node_id = (await stat_of(upper, "a")).node_id
    handle = await upper.volume.handle_of(await root.open("a"))
    await upper.remove(root, "a", cover=True)
    stat = await upper.linked(SHARED.origin)
    assert stat is not None
    assert (stat.node_id, stat.link_count, stat.size) == (node_id, 2, 6)
    file = await upper.open_linked(SHARED.origin, WRITE)
    await file.write(0, b"S")
    assert (await upper.about(file))[0].link_count == 2
    assert (await (await upper.volume.node_of(handle)).stat()).node_id == node_id
    del file
    d = await root.sub("d")
    before = await d.stat()
    await upper.adopt(SHARED.origin, d, "b")
    assert await d.stat() == before
    found = await there(upper, "b", d)
    assert found.mark == SHARED._replace(below=1)
    assert found.entry is not None
    assert (found.entry.stat.node_id, found.entry.stat.link_count) == (node_id, 2)
    await upper.adopt(SHARED.origin, root, "c")
    assert (await there(upper, "c")).mark == SHARED._replace(below=0)
    assert await content_of(root, "c") == b"Shared"
    assert await upper.linked(SHARED.origin) is None
    with pytest.raises(NotFound):
        await upper.adopt(SHARED.origin, root, "e")
    for directory, name in ((d, "b"), (root, "c")):
        await upper.remove(directory, name, cover=False)
    with pytest.raises(NotFound):
        await upper.volume.node_of(handle)
    assert (await used(upper))[1] == 2


async def test_a_shared_node_that_is_replaced_lives() -> None:
    upper = await upper_with({"f": b"", "g": b""})
    await copied(upper, "a", b"one", SHARED)
    await upper.rename(upper.root, "f", upper.root, "a", cover=False)
    assert (await upper.linked(SHARED.origin)) is not None
    await upper.adopt(SHARED.origin, upper.root, "b")
    await upper.root.rename("g", upper.root, "b")
    assert (
        bytes(await (await upper.open_linked(SHARED.origin, OpenFlags.READ)).read(0, 9)) == b"one"
    )


async def test_all_origins_of_linked_nodes() -> None:
    upper = await upper_with()
    await copied(upper, "f", b"", SHARED)
    await copied(upper, "own", b"", COPY)
    await upper.copy_symlink(upper.root, "l", "target", LIKE, Mark(origin=2**64 - 1, below=1))
    before = MemoryLayer(upper.volume, await upper.root.snapshot())
    await upper.adopt(2**64 - 1, upper.root, "m")
    assert await upper.origins() == [SHARED.origin]
    assert sorted(await before.origins()) == [SHARED.origin, 2**64 - 1]
    await upper.volume.reset()
    assert await upper.origins() == []


async def test_opening_a_linked_node() -> None:
    upper = await upper_with()
    await copied(upper, "f", b"content", SHARED)
    await upper.copy_symlink(upper.root, "l", "target", LIKE, Mark(origin=9, below=1))
    await copied(upper, "own", b"", COPY)
    assert await upper.linked(COPY.origin) is None
    reader = await upper.open_linked(SHARED.origin, OpenFlags.READ)
    with pytest.raises(ReadOnly):
        await reader.write(0, b"x")
    for origin, flags, error in (
        (COPY.origin, OpenFlags.READ, NotFound),
        (9, OpenFlags.READ, Unsupported),
        (SHARED.origin, OpenFlags.TRUNCATE, InvalidArgument),
    ):
        with pytest.raises(error):
            await upper.open_linked(origin, flags)
    await upper.open_linked(SHARED.origin, WRITE | OpenFlags.TRUNCATE)
    assert await content_of(upper.root, "f") == b""
    stat = await upper.linked(9)
    assert stat is not None
    assert (stat.kind, stat.link_count) == (NodeKind.SYMLINK, 2)
