"""What tests do with layers, and what they see of them."""

from __future__ import annotations

from capstore.backers.layer import NO_MARK, Found, Layer, Mark, Upper
from capstore.backers.node import (
    DirectoryNode,
    FileNode,
    NodeKind,
    Provenance,
    Stat,
)

OPAQUE = Mark(opaque=True)
LONG_AGO = 1_600_000_000_000_000_123
LIKE = Stat(NodeKind.FILE, 5, 1, 1, LONG_AGO - 77, LONG_AGO, Provenance.TAR_HEADER, True)
ORIGIN = 0x1_0000_0000_0301


async def put(upper: Upper, directory: DirectoryNode, name: str, data: bytes = b"data") -> None:
    file = await upper.create(directory, name)
    await file.write(0, data)
    await file.close()


async def copy(
    upper: Upper,
    directory: DirectoryNode,
    name: str,
    data: bytes = b"below",
    mark: Mark = NO_MARK,
    like: Stat = LIKE,
) -> FileNode:
    file = await upper.unnamed()
    await file.write(0, data)
    await upper.name_file(file, directory, name, like, mark)
    return file


async def content(directory: DirectoryNode, name: str) -> bytes:
    file = await directory.open(name)
    data = bytes(await file.read(0, 1000))
    await file.close()
    return data


async def listed(upper: Layer, directory: DirectoryNode, limit: int = 1000) -> dict[str, Found]:
    found: dict[str, Found] = {}
    after, more = "", True
    while more:
        page = await upper.page(directory, after, limit)
        assert len(page.found) <= limit
        assert page.found or not page.more
        names = [name for name, _ in page.found]
        assert names == sorted(names)
        assert not names or names[0] > after
        found.update(page.found)
        after, more = (names or [after])[-1], page.more
    return found


async def mark_of(upper: Upper, directory: DirectoryNode, name: str) -> Mark:
    found = await upper.find(directory, name)
    assert found is not None
    assert found.entry is not None
    return found.mark


async def stat_of(upper: Upper, directory: DirectoryNode, name: str) -> Stat:
    found = await upper.find(directory, name)
    assert found is not None
    assert found.entry is not None
    return found.entry.stat


async def dump(upper: Layer, directory: DirectoryNode) -> dict[str, object]:
    """All that the layer tells of a directory, but versions, and times of what it made itself."""
    tree: dict[str, object] = {}
    for name, found in (await listed(upper, directory)).items():
        assert await upper.find(directory, name) == found
        if found.entry is None:
            tree[name] = "whiteout"
            continue
        stat = found.entry.stat
        facts: tuple[object, ...] = (stat.kind, stat.link_count, found.mark, found.entry.target)
        if stat.kind is NodeKind.DIRECTORY:
            inner = await directory.sub(name)
            assert (await upper.about(inner))[1] == found.mark
            tree[name] = (*facts, await dump(upper, inner))
        elif stat.kind is NodeKind.FILE:
            tree[name] = (*facts, await content(directory, name), stat.executable)
        else:
            tree[name] = facts
    return tree
