"""Memory volumes as layers, for tests: making them, and looking at all they show."""

from __future__ import annotations

from capstore.backers.layer import Found, Layer, Mark
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_layer import MemoryUpper
from capstore.backers.node import (
    DirectoryNode,
    FileNode,
    NodeKind,
    OpenFlags,
    Provenance,
    Stat,
)
from tests.contract.harness import content_of, populate

WRITE = OpenFlags.WRITE
OPAQUE = Mark(opaque=True)
COPY = Mark(origin=512)
SHARED = Mark(origin=768, below=2)
MOVED = Mark(redirect="usr/share/é", origin=1024)
LIKE = Stat(
    NodeKind.FILE,
    size=99,
    node_id=5,
    version=3,
    created=1_000,
    modified=-2_000,
    provenance=Provenance.TAR_HEADER,
    executable=True,
    link_count=7,
)


async def upper_with(tree: dict[str, object] | None = None, *covered: str) -> MemoryUpper:
    """An upper layer with a tree, and whiteouts in its root."""
    volume = await MemoryVolume.open()
    upper = MemoryUpper(volume)
    await populate(volume.root, tree or {})  # type: ignore[arg-type]
    for name in covered:
        await upper.cover(upper.root, name)
    return upper


async def copied(
    upper: MemoryUpper, name: str, data: bytes = b"", mark: Mark = COPY, like: Stat = LIKE
) -> FileNode:
    """A file as copying up makes it."""
    file = await upper.unnamed()
    await file.write(0, data)
    await upper.name_file(file, upper.root, name, like, mark)
    return file


async def there(layer: Layer, name: str, directory: DirectoryNode | None = None) -> Found:
    """What is found, which is an entry."""
    found = await layer.find(directory or layer.root, name)
    assert found is not None
    assert found.entry is not None
    return found


async def stat_of(layer: Layer, name: str) -> Stat:
    entry = (await there(layer, name)).entry
    assert entry is not None
    return entry.stat


async def used(upper: MemoryUpper) -> tuple[int, int]:
    usage = await upper.volume.usage()
    return usage.used_bytes, usage.used_nodes


async def dump(layer: Layer, directory: DirectoryNode | None = None) -> object:
    """Everything that a layer shows, for comparison."""
    directory = directory or layer.root
    shown: list[object] = [await layer.about(directory)]
    for name, found in (await layer.page(directory, "", 10_000)).found:
        inside: object = None
        if found.entry is not None and found.entry.stat.kind is NodeKind.DIRECTORY:
            inside = await dump(layer, await directory.sub(name))
        elif found.entry is not None and found.entry.stat.kind is NodeKind.FILE:
            inside = await content_of(directory, name)
        shown.append((name, found, inside))
    for origin in (COPY.origin, SHARED.origin, MOVED.origin):
        shown.append(await layer.linked(origin))
    return shown


async def mark_named(upper: MemoryUpper, name: str, mark: Mark) -> None:
    """Gives the directory `name` of the root a mark."""
    await upper.set_mark(await upper.root.sub(name), mark)


async def rich() -> MemoryUpper:
    """An upper layer with something of everything."""
    upper = await upper_with()
    await fill(upper)
    return upper


async def fill(upper: MemoryUpper) -> None:
    """Makes something of everything."""
    root = upper.root
    await populate(root, {"d": {}, "f": b"content", "full": {"x": b""}, "m": {}})
    await upper.cover(root, "white")
    await upper.cover(await root.sub("d"), "inner")
    await mark_named(upper, "m", MOVED)
    await copied(upper, "shared", b"shared", SHARED)
    await upper.copy_symlink(root, "s", "target", LIKE, Mark(origin=9, below=1))
    await upper.remove(root, "s", cover=False)
