"""Many at once in one overlay, whose layers pause at random (`tests.backers.slowlayers`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from capstore.backers.layer import Upper
from capstore.backers.node import Attributes, DirectoryNode, FileNode, OpenFlags, RenameMode
from capstore.schema.errors import StorageError
from tests.backers.overlays import UPPERS, Hard, Stack, file, folder, stacked
from tests.backers.slowlayers import slow_lower, slow_upper
from tests.contract.faults import Delays
from tests.contract.harness import content_of, entries_of, names_of, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
BIG = bytes(range(256)) * 1000
TREE = folder(
    {
        "big": file(BIG),
        "d": folder({"e": folder({"f": file(b"deep")}), "g": file(b"g")}),
        "h": file(b"two names"),
        "h2": Hard(("h",)),
        **{f"{number}": file(b"%d" % number) for number in range(4)},
    }
)


class Counted:
    """How many unnamed files an upper layer has made."""

    def __init__(self) -> None:
        self.copies = 0

    def through(self, layer: Upper) -> Upper:
        """`layer`, counted and slow."""
        unnamed = layer.unnamed

        async def counted() -> FileNode:
            self.copies += 1
            return await unnamed()

        layer.unnamed = counted  # type: ignore[method-assign]
        return slow_upper(layer, Delays())


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture(params=UPPERS)
async def stack(request: pytest.FixtureRequest, counted: Counted) -> AsyncIterator[Stack]:
    async with stacked(f"{request.param} over ro1", TREE) as made:
        delays = Delays()
        made.through_upper = counted.through
        made.through_lower = lambda layer: slow_lower(layer, delays)
        yield made


async def test_many_copy_one_file_up_once(stack: Stack, counted: Counted) -> None:
    volume = await stack.open()
    root = volume.root

    async def append(number: int) -> None:
        opened = await root.open("big", WRITE)
        await opened.append(b"%03d" % number)
        await opened.close()

    reader = await root.open("big")
    await asyncio.gather(*map(append, range(20)))
    content = await content_of(root, "big")
    assert content[: len(BIG)] == BIG
    assert sorted(content[at : at + 3] for at in range(len(BIG), len(content), 3)) == [
        b"%03d" % number for number in range(20)
    ]
    assert bytes(await reader.read(0, len(content))) == content
    assert counted.copies == 1
    await volume.close()


async def test_a_file_is_read_whole_while_it_is_copied_up(stack: Stack) -> None:
    volume = await stack.open()
    reader = await volume.root.open("big")
    changed = False

    async def read() -> None:
        while not changed:
            found = bytes(await reader.read(0, len(BIG) + 1))
            assert found == BIG or (changed and found == b"X" + BIG[1:])
            other = await content_of(volume.root, "big")
            assert other[1:] == BIG[1:]

    async def write() -> None:
        nonlocal changed
        writer = await volume.root.open("big", WRITE)
        await writer.set_attributes(Attributes(executable=True))
        changed = True
        await writer.write(0, b"X")

    await asyncio.gather(read(), read(), write())
    assert await content_of(volume.root, "big") == b"X" + BIG[1:]
    await volume.close()


async def test_a_file_that_moves_while_it_is_copied_up(stack: Stack) -> None:
    """What is written is in the file, wherever it is then, and nowhere else."""
    volume = await stack.open()
    root = volume.root
    target = await root.sub("d")
    for number in range(4):
        name = f"{number}"
        writer = await root.open(name, WRITE)
        change = [
            lambda name=name: root.rename(name, target, "moved"),
            lambda name=name: root.rename(name, root, "big"),
            lambda name=name: root.remove(name),
            lambda name=name: root.rename(name, target, "g", RenameMode.EXCHANGE),
        ][number]
        await asyncio.gather(writer.append(b" written"), change())
        assert bytes(await writer.read(0, 100)) == b"%d written" % number
        await writer.close()
    assert await content_of(target, "moved") == b"0 written"
    assert await content_of(root, "big") == b"1 written"
    assert await content_of(target, "g") == b"3 written"
    assert await content_of(root, "3") == b"g"
    assert await names_of(root) == ["3", "big", "d", "h", "h2"]
    await volume.close()


async def test_both_names_of_a_file_are_copied_up_at_once(stack: Stack) -> None:
    volume = await stack.open()
    root = volume.root

    async def append(name: str, data: bytes) -> None:
        opened = await root.open(name, WRITE)
        await opened.append(data)
        await opened.close()

    await asyncio.gather(
        append("h", b"1"), append("h2", b"2"), root.rename("h2", root, "h3"), return_exceptions=True
    )
    one, other = await root.lookup("h"), await root.lookup("h3")
    assert one.stat == other.stat
    assert one.stat.link_count == 2
    assert await content_of(root, "h") == await content_of(root, "h3")
    assert (await content_of(root, "h")).startswith(b"two names")
    await volume.close()


async def test_many_who_do_anything(stack: Stack) -> None:
    """Nobody is told anything but of storage, and what is seen in the end is what is there."""
    volume = await stack.open()
    chance = random.Random(7)

    async def busy(number: int) -> None:
        for _ in range(12):
            try:
                await _something(volume.root, chance, number)
            except StorageError:
                continue

    await asyncio.gather(*map(busy, range(6)))
    tree, entries = await tree_of(volume.root), await entries_of(volume.root)
    ids = [entry.stat.node_id for entry in entries if entry.stat.link_count == 1]
    assert len(ids) == len(set(ids))
    await volume.close()
    volume = await stack.open()
    assert await tree_of(volume.root) == tree
    assert await entries_of(volume.root) == entries
    await volume.close()


async def _something(root: DirectoryNode, chance: random.Random, number: int) -> None:
    directory = root
    while chance.random() < 0.4:
        directory = await directory.sub(chance.choice("de"))
    names = ["big", "d", "e", "f", "g", "h", "h2", "0", "1"]
    name, other = chance.choice(names), chance.choice(names)
    choice = chance.randrange(7)
    if choice == 0:
        await directory.rename(name, root, other, chance.choice(list(RenameMode)))
    elif choice == 1:
        await directory.remove(name)
    elif choice == 2:
        await directory.mkdir(name)
    elif choice == 3:
        await directory.link(name, root, other)
    elif choice == 4:
        await root.rename(name, directory, other)
    else:
        opened = await directory.open(name, WRITE | OpenFlags.CREATE)
        await opened.append(b"%d" % number)
        await opened.close()
