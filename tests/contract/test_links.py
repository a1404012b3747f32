"""Symbolic links, which are data, and hard links, which are names."""

from __future__ import annotations

import pytest

from capstore.backers.node import Attributes, DirectoryNode, NodeKind, OpenFlags
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotFound,
    Unsupported,
)
from capstore.schema.limits import SYMLINK_TARGET_BYTES_MAX
from tests.contract.harness import (
    Harness,
    Link,
    content_of,
    names_of,
    populate,
    replace_content,
    tree_of,
)

pytestmark = pytest.mark.anyio

TARGETS = {
    "name": "name",
    "absolute": "/etc/passwd",
    "upwards": "../../..",
    "empty parts": "a//b/./",
    "unicode": "é\U0001f5c4\n",
    "longest": "x/" * (SYMLINK_TARGET_BYTES_MAX // 2) + "x",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
async def test_a_target_is_kept_as_it_is(root: DirectoryNode, target: str) -> None:
    await root.symlink("l", target)
    entry = await root.lookup("l")
    assert entry.target == target
    assert entry.stat.kind is NodeKind.SYMLINK
    assert entry.stat.size == len(target.encode())


BAD_TARGETS = {
    "empty": "",
    "nul": "a\0b",
    "too long": "x" * (SYMLINK_TARGET_BYTES_MAX + 1),
    "too long in bytes": "é" * (SYMLINK_TARGET_BYTES_MAX // 2 + 1),
    "lone surrogate": "\udc80",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS)
async def test_what_is_no_target(root: DirectoryNode, target: str) -> None:
    with pytest.raises(InvalidArgument):
        await root.symlink("l", target)
    assert await names_of(root) == []


async def test_a_symbolic_link_does_not_replace(root: DirectoryNode) -> None:
    tree = {"f": b"x", "d": {}, "l": Link("f")}
    await populate(root, tree)
    for name in tree:
        with pytest.raises(AlreadyExists):
            await root.symlink(name, "new")
    assert await tree_of(root) == tree


async def test_no_method_follows_a_link(harness: Harness) -> None:
    root = harness.root
    tree = {"d": {"inner": b"x"}, "f": b"content", "to d": Link("d"), "to f": Link("f")}
    await populate(root, tree)
    for flags in (OpenFlags.READ, OpenFlags.WRITE, OpenFlags.WRITE | OpenFlags.TRUNCATE):
        with pytest.raises(Unsupported):
            await root.open("to f", flags)
        with pytest.raises(Unsupported):
            await root.open("to d", flags)
    for name in ("to f", "to d"):
        with pytest.raises(NotDirectory):
            await root.sub(name)
        with pytest.raises(AlreadyExists):
            await root.create(name)
        assert (await root.lookup(name)).stat.kind is NodeKind.SYMLINK
    await root.rename("to d", root, "moved")
    await root.remove("moved")
    await root.remove("to f")
    assert await tree_of(root) == {"d": {"inner": b"x"}, "f": b"content"}


async def test_attributes_are_of_the_link_itself(root: DirectoryNode) -> None:
    await populate(root, {"f": b"x", "l": Link("f"), "dangling": Link("nowhere")})
    before = (await root.lookup("f")).stat
    for name in ("l", "dangling"):
        await root.set_attributes(Attributes(modified=1_000_000_000_000_000_000), name)
        assert (await root.lookup(name)).stat.modified == 1_000_000_000_000_000_000
    assert (await root.lookup("f")).stat == before


# Hard links -------------------------------------------------------------------------------------


@pytest.fixture
def linking(harness: Harness) -> DirectoryNode:
    if not harness.hard_links:
        pytest.skip("no hard links")
    return harness.root


async def test_two_names_are_one_file(linking: DirectoryNode) -> None:
    root = linking
    await populate(root, {"one": b"content", "d": {}})
    d = await root.sub("d")
    await root.link("one", d, "two")
    first, second = (await root.lookup("one")).stat, (await d.lookup("two")).stat
    assert first.node_id == second.node_id
    assert first.link_count == second.link_count == 2
    await replace_content(d, "two", b"changed")
    assert await content_of(root, "one") == b"changed"
    await root.remove("one")
    assert (await d.lookup("two")).stat.link_count == 1
    assert await content_of(d, "two") == b"changed"


async def test_a_link_to_a_symbolic_link_is_one(linking: DirectoryNode) -> None:
    root = linking
    await populate(root, {"f": b"x", "l": Link("f")})
    await root.link("l", root, "l2")
    assert (await root.lookup("l2")).target == "f"
    assert (await root.lookup("f")).stat.link_count == 1


async def test_what_cannot_be_linked(linking: DirectoryNode) -> None:
    root = linking
    tree = {"d": {}, "f": b"x", "g": b"y", "l": Link("f")}
    await populate(root, tree)
    with pytest.raises(IsDirectory):
        await root.link("d", root, "new")
    with pytest.raises(NotFound):
        await root.link("missing", root, "new")
    for name in ("f", "g", "d", "l"):
        with pytest.raises(AlreadyExists):
            await root.link("f", root, name)
    assert await tree_of(root) == tree


async def test_an_open_file_sees_its_names(linking: DirectoryNode) -> None:
    root = linking
    file = await root.create("f")
    await root.link("f", root, "g")
    assert (await file.stat()).link_count == 2
    await root.remove("f")
    await root.remove("g")
    assert (await file.stat()).link_count == 0
