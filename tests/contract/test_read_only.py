"""Trees that do not write: the read half works, and every change is refused as `ReadOnly`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.node import Attributes, DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.schema.errors import (
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    Unsupported,
)
from tests.contract.conftest import tree_of_reader
from tests.contract.harness import Harness, content_of, entries_of, names_of, tree_of

pytestmark = pytest.mark.anyio

Change = Callable[[DirectoryNode], Awaitable[object]]

WRITE = OpenFlags.WRITE

CHANGES: dict[str, Change] = {
    "create": lambda root: root.create("new"),
    "create what is there": lambda root: root.create("file"),
    "open to write": lambda root: root.open("file", WRITE),
    "open to truncate": lambda root: root.open("file", WRITE | OpenFlags.TRUNCATE),
    "open to create": lambda root: root.open("new", WRITE | OpenFlags.CREATE),
    "mkdir": lambda root: root.mkdir("new"),
    "remove a file": lambda root: root.remove("file"),
    "remove a directory": lambda root: root.remove("empty", Expect.DIRECTORY),
    "rename": lambda root: root.rename("file", root, "new"),
    "rename onto": lambda root: root.rename("file", root, "nothing"),
    "rename without replacing": lambda root: root.rename(
        "file", root, "new", RenameMode.NO_REPLACE
    ),
    "exchange": lambda root: root.rename("file", root, "empty", RenameMode.EXCHANGE),
    "symlink": lambda root: root.symlink("new", "target"),
    "link": lambda root: root.link("file", root, "new"),
    "attributes of an entry": lambda root: root.set_attributes(Attributes(modified=1), "file"),
    "attributes of itself": lambda root: root.set_attributes(Attributes(modified=1)),
}


async def test_changes_are_refused(reader: Harness) -> None:
    root = reader.root
    before = await entries_of(root)
    for what, change in CHANGES.items():
        with pytest.raises(ReadOnly):
            await change(root)
        assert await entries_of(root) == before, what
    assert await tree_of(root) == tree_of_reader(reader)


async def test_changes_below_are_refused(reader: Harness) -> None:
    full = await reader.root.sub("full")
    with pytest.raises(ReadOnly):
        await full.create("new")
    with pytest.raises(ReadOnly):
        await full.rename("inner", reader.root, "inner")
    with pytest.raises(ReadOnly):
        await (await full.sub("deep")).remove("deeper")
    assert await tree_of(reader.root) == tree_of_reader(reader)


async def test_an_open_file_does_not_write(reader: Harness) -> None:
    file = await reader.root.open("file")
    with pytest.raises(ReadOnly):
        await file.write(0, b"x")
    with pytest.raises(ReadOnly):
        await file.append(b"x")
    with pytest.raises(ReadOnly):
        await file.truncate(0)
    with pytest.raises(ReadOnly):
        await file.set_attributes(Attributes(modified=1))
    assert bytes(await file.read(0, 100)) == b"0123456789"


async def test_the_whole_tree_is_read(reader: Harness) -> None:
    assert await tree_of(reader.root) == tree_of_reader(reader)
    for limit in (1, 2, 3):
        entries = await entries_of(reader.root, limit)
        assert [entry.name for entry in entries] == sorted(tree_of_reader(reader))
        for entry in entries:
            assert entry == await reader.root.lookup(entry.name)


async def test_files_are_read_at_any_offset(reader: Harness) -> None:
    file = await reader.root.open("file")
    assert await file.size() == 10
    assert bytes(await file.read(3, 4)) == b"3456"
    assert bytes(await file.read(8, 10)) == b"89"
    assert bytes(await file.read(10, 1)) == b""
    assert bytes(await file.read(10**9, 1)) == b""
    with pytest.raises(InvalidArgument):
        await file.read_into(-1, memoryview(bytearray(1)))
    assert await content_of(reader.root, "nothing") == b""


async def test_kinds(reader: Harness) -> None:
    root = reader.root
    with pytest.raises(IsDirectory):
        await root.open("full")
    with pytest.raises(NotDirectory):
        await root.sub("file")
    if reader.symlinks:
        link = await root.lookup("out")
        assert (link.stat.kind, link.target) == (NodeKind.SYMLINK, "../../etc/passwd")
        with pytest.raises(Unsupported):
            await root.open("link")
        with pytest.raises(NotDirectory):
            await root.sub("link")
    with pytest.raises(NotFound):
        await root.open("missing")
    with pytest.raises(NotFound):
        await root.lookup("missing")
    with pytest.raises(InvalidName):
        await root.lookup("full/inner")


async def test_ids_are_unique_and_stable(reader: Harness) -> None:
    root = reader.root
    entries = [*await entries_of(root), *await entries_of(await root.sub("full"))]
    ids = [entry.stat.node_id for entry in entries]
    assert len(set(ids)) == len(ids)
    again = [*await entries_of(root), *await entries_of(await root.sub("full"))]
    assert again == entries


async def test_nothing_is_missing_after_sync(reader: Harness) -> None:
    await reader.root.sync()
    assert await names_of(reader.root) == sorted(tree_of_reader(reader))
