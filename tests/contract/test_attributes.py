"""What `stat` tells, and what of it can be set."""

from __future__ import annotations

import time

import pytest

from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    FileNode,
    NodeKind,
    OpenFlags,
    Provenance,
)
from capstore.schema.errors import NotFound, Unsupported
from tests.contract.harness import Harness, Link, populate

pytestmark = pytest.mark.anyio

# Far enough apart for any filesystem's clock.
DAY = 86_400 * 10**9
THEN = 1_000_000_000 * 10**9 + 123_456_789


async def version(node: FileNode | DirectoryNode) -> int:
    return (await node.stat()).version


async def test_kinds_and_sizes(root: DirectoryNode) -> None:
    await populate(root, {"d": {"x": b"y"}, "f": b"abc", "l": Link("target")})
    told = {name: (await root.lookup(name)).stat for name in ("d", "f", "l")}
    assert {name: stat.kind for name, stat in told.items()} == {
        "d": NodeKind.DIRECTORY,
        "f": NodeKind.FILE,
        "l": NodeKind.SYMLINK,
    }
    assert {name: stat.size for name, stat in told.items()} == {"d": 0, "f": 3, "l": 6}
    assert len({stat.node_id for stat in told.values()}) == 3


async def test_a_handle_and_a_name_tell_the_same(root: DirectoryNode) -> None:
    await populate(root, {"d": {}, "f": b"abc"})
    assert await (await root.open("f")).stat() == (await root.lookup("f")).stat
    assert await (await root.sub("d")).stat() == (await root.lookup("d")).stat


async def test_a_file_s_version_changes_with_each_change(root: DirectoryNode) -> None:
    file = await root.create("f")
    versions = [await version(file)]
    for step in range(10):
        await file.write(0, bytes([step]))
        versions.append(await version(file))
    await file.append(b"more")
    versions.append(await version(file))
    await file.truncate(2)
    versions.append(await version(file))
    assert len(set(versions)) == len(versions)
    await file.read(0, 10)
    await file.sync()
    assert await version(file) == versions[-1]
    assert (await root.lookup("f")).stat.version == versions[-1]


async def test_opening_to_truncate_is_a_change(root: DirectoryNode) -> None:
    await populate(root, {"f": b"abc"})
    before = (await root.lookup("f")).stat.version
    await root.open("f", OpenFlags.WRITE | OpenFlags.TRUNCATE)
    assert (await root.lookup("f")).stat.version != before


async def test_a_directory_s_version_changes_with_its_entries(root: DirectoryNode) -> None:
    d = await root.mkdir("d")
    versions = [await version(d)]

    async def changed() -> None:
        versions.append(await version(d))

    await d.create("f")
    await changed()
    await d.mkdir("e")
    await changed()
    await d.symlink("l", "f")
    await changed()
    await d.rename("f", d, "g")
    await changed()
    await d.rename("g", root, "g")
    await changed()
    await root.rename("g", d, "h")
    await changed()
    await d.remove("h")
    await changed()
    assert len(set(versions)) == len(versions)
    await d.list()
    await d.lookup("e")
    assert await version(d) == versions[-1]


async def test_the_id_is_the_node_s(root: DirectoryNode) -> None:
    await populate(root, {"f": b"abc"})
    first = (await root.lookup("f")).stat.node_id
    file = await root.open("f", OpenFlags.WRITE)
    await file.write(0, b"changed")
    assert (await file.stat()).node_id == first
    await root.remove("f")
    await root.create("f")
    assert (await root.lookup("f")).stat.node_id != first
    assert (await file.stat()).node_id == first


async def test_times_are_of_now_and_say_whence(root: DirectoryNode) -> None:
    before = time.time_ns() - DAY
    file = await root.create("f")
    await file.write(0, b"x")
    for stat in (await file.stat(), await (await root.mkdir("d")).stat()):
        assert stat.provenance in (Provenance.WALL_CLOCK, Provenance.HOST_FILESYSTEM)
        assert before < stat.modified < before + 2 * DAY


async def test_modified_is_set_and_moves_on_with_a_change(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.set_attributes(Attributes(modified=THEN))
    assert (await root.lookup("f")).stat.modified == THEN
    await file.read(0, 1)
    assert (await file.stat()).modified == THEN
    await file.write(0, b"x")
    assert (await file.stat()).modified > THEN
    await root.set_attributes(Attributes(modified=THEN), "f")
    assert (await file.stat()).modified == THEN


async def test_modified_of_a_directory(root: DirectoryNode) -> None:
    d = await root.mkdir("d")
    await root.set_attributes(Attributes(modified=THEN), "d")
    assert (await d.stat()).modified == THEN
    await d.set_attributes(Attributes(modified=THEN + 1))
    assert (await root.lookup("d")).stat.modified == THEN + 1
    await d.create("f")
    assert (await d.stat()).modified > THEN + 1


async def test_times_before_1970(root: DirectoryNode) -> None:
    await populate(root, {"f": b""})
    await root.set_attributes(Attributes(modified=-1_500_000_000), "f")
    assert (await root.lookup("f")).stat.modified == -1_500_000_000


async def test_created(harness: Harness) -> None:
    root = harness.root
    await populate(root, {"f": b""})
    if not harness.created_times:
        before = (await root.lookup("f")).stat
        with pytest.raises(Unsupported):
            await root.set_attributes(Attributes(created=THEN, modified=THEN), "f")
        assert (await root.lookup("f")).stat == before
        return
    await root.set_attributes(Attributes(created=THEN), "f")
    stat = (await root.lookup("f")).stat
    assert stat.created == THEN
    assert stat.modified != THEN


async def test_executable(harness: Harness) -> None:
    if not harness.executable:
        pytest.skip("no executable bit")
    root = harness.root
    file = await root.create("f")
    for executable in (True, True, False):
        await root.set_attributes(Attributes(executable=executable), "f")
        assert (await file.stat()).executable is executable
    await file.set_attributes(Attributes(executable=True))
    assert (await root.lookup("f")).stat.executable


async def test_no_change_is_none(root: DirectoryNode) -> None:
    await populate(root, {"f": b"x"})
    before = (await root.lookup("f")).stat
    await root.set_attributes(Attributes(), "f")
    assert (await root.lookup("f")).stat == before


async def test_attributes_of_what_is_not_there(root: DirectoryNode) -> None:
    with pytest.raises(NotFound):
        await root.set_attributes(Attributes(modified=THEN), "missing")


async def test_usage_counts_what_is_written(root: DirectoryNode) -> None:
    before = await root.usage()
    file = await root.create("f")
    await file.write(0, b"x" * 100_000)
    await root.sync()
    after = await root.usage()
    assert after.used_bytes >= 0
    assert after.total_bytes == before.total_bytes
    if before.total_bytes:
        assert after.used_bytes + after.free_bytes <= after.total_bytes
