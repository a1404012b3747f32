"""Overlays behind a service: sequences of operations over a connection, compared with the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.node import DirectoryNode, Expect, OpenFlags
from capstore.schema.errors import InvalidName, ReadOnly
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import FEW, NAMES_ONLY, Stack, ideal, stacked
from tests.backers.test_overlay_model import COMMON, QUICK, STEPS, hold_all
from tests.contract.harness import content_of, names_of
from tests.service.inprocess import serving

# A failing sequence may be long to print.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]

OVERLAYS = [name for name in FEW if "alone" not in name]


@asynccontextmanager
async def remote(stack: Stack) -> AsyncIterator[Directory]:
    """The stack's root, over a connection."""
    volume = await stack.open()
    async with serving({"v": volume}) as served, connect(served.unix["v"]) as root:
        assert isinstance(root, Directory)
        yield root


async def run(stack: Stack, steps: list[tuple[object, ...]]) -> None:
    """Does `steps`, and looks at all again over a new service."""
    async with remote(stack) as root:
        twin = Twin.of(root, ideal(stack.tree))
        await hold_all(twin)
        for name, *arguments in steps:
            if name != "reopen":
                await getattr(twin, str(name))(*arguments)
                await twin.check()
        await twin.close()
        # Nodes are the caller's: their capabilities go before the connection does.
        twin.directories = twin.directories[:1]
    async with remote(stack) as root:
        twin.reopened(root)
        await twin.close()


@pytest.mark.parametrize("name", OVERLAYS)
@settings(QUICK, max_examples=2)
@given(steps=st.lists(STEPS, min_size=15, max_size=40))
async def test_a_sequence_of_steps_over_a_connection(
    name: str, steps: list[tuple[object, ...]]
) -> None:
    async with stacked(name) as stack:
        await run(stack, steps)


@pytest.mark.long
@pytest.mark.parametrize("name", OVERLAYS)
@settings(COMMON, max_examples=50)
@given(steps=st.lists(STEPS, min_size=15, max_size=60))
async def test_long_sequences_of_steps_over_a_connection(
    name: str, steps: list[tuple[object, ...]]
) -> None:
    async with stacked(name) as stack:
        await run(stack, steps)


@pytest.fixture(params=OVERLAYS)
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    async with stacked(request.param) as made:
        yield made


async def test_what_one_client_opened_follows_what_another_changes(stack: Stack) -> None:
    volume = await stack.open()
    async with (
        serving({"v": volume}) as served,
        connect(served.unix["v"]) as mine,
        connect(served.unix["v"]) as theirs,
    ):
        assert isinstance(mine, Directory)
        assert isinstance(theirs, Directory)
        a, reader = await mine.sub("a"), await mine.open("é")
        before = await mine.lookup("é")
        writer = await theirs.open("é", OpenFlags.WRITE)
        await writer.write(5, b" from another")
        assert bytes(await reader.read(0, 100)) == b"hello from another"
        assert (await mine.lookup("é")).stat.node_id == before.stat.node_id
        await theirs.remove("é", Expect.NOT_DIRECTORY)
        await writer.append(b"!")
        assert bytes(await reader.read(0, 100)) == b"hello from another!"
        await theirs.rename("a", await theirs.sub("c"), "moved")
        await a.create("by the first")
        moved = await (await theirs.sub("c")).sub("moved")
        assert "by the first" in await names_of(moved)
        await reader.close()
        await writer.close()


async def test_a_read_only_capability_changes_nothing(stack: Stack) -> None:
    async with remote(stack) as root:
        weak = await root.read_only()
        for call in (
            lambda: weak.open("b", OpenFlags.WRITE),
            lambda: weak.remove("b"),
            lambda: weak.rename("a", weak, "z"),
            lambda: weak.mkdir("z"),
        ):
            with pytest.raises(ReadOnly):
                await call()
        await Twin.of(weak, ideal(stack.tree)).close()


async def test_names_of_marks_over_a_connection(stack: Stack) -> None:
    async with remote(stack) as root:
        if stack.upper in NAMES_ONLY:
            with pytest.raises(InvalidName):
                await root.create(".wh.b")
        else:
            await (await root.create(".wh.b")).close()
        assert await content_of(root, "é") == b"hello"


async def test_many_clients_copy_one_file_up(stack: Stack) -> None:
    """Each appends to one lower file by a name of its own: all is there, once, in one file."""
    async with remote(stack) as root:
        size = (await root.lookup("b")).stat.size
        names = ("b", "a/a", "a/b/é")

        async def append(number: int) -> None:
            *above, name = names[number % len(names)].split("/")
            directory: DirectoryNode = root
            for step in above:
                directory = await directory.sub(step)
            file = await directory.open(name, OpenFlags.WRITE)
            await file.append(b"%03d" % number)
            await file.close()

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(append, number)
        content = await content_of(root, "b")
        added = content[size:].decode()
        assert sorted(added[at : at + 3] for at in range(0, 90, 3)) == [
            f"{number:03}" for number in range(30)
        ]
        assert len(content) == size + 90
