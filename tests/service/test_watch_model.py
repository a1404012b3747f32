"""A watch as a property: a listing, followed by what is told, is the directory as it is.

Two clients change two directories at once, over a tree whose calls take a while at either end; a
third begins to watch before or in the middle of it, with room for few changes or for many.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, Volume
from capstore.backers.spec import open_volume
from capstore.service import watcher
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.contract.faults import DelayedDirectory, Delays
from tests.service.inprocess import serving
from tests.service.watch_model import LINKS, MOVES, Mirror, Player
from tests.service.watches import SECONDS, hub_of

pytestmark = pytest.mark.anyio


class DelayedVolume(MemoryVolume):
    """A memory whose calls take some turns of the loop before and behind."""

    delays: Delays

    @property
    def root(self) -> DirectoryNode:
        return DelayedDirectory(super().root, self.delays)


async def delayed(seed: int) -> Volume:
    volume = await DelayedVolume.open()
    volume.delays = Delays()
    volume.delays._random = random.Random(seed)
    return volume


async def run(
    volume: Volume,
    plays: Sequence[Sequence[tuple[Any, ...]]],
    *,
    late: bool,
    sizes: bool,
    pause: int = 0,
) -> int:
    """Plays all moves at once, watched; returns how often there was an overflow."""
    async with (
        serving({"m": volume}) as served,
        connect(served.unix["m"]) as root,
        connect(served.unix["m"]) as one,
        connect(served.unix["m"]) as other,
    ):
        assert isinstance(root, Directory)
        await root.mkdir("d")
        directories = [root, await root.sub("d")]
        players = []
        for client in (one, other):
            assert isinstance(client, Directory)
            players.append(Player([client, await client.sub("d")]))

        async def play() -> None:
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(
                    *(player.play(moves) for player, moves in zip(players, plays, strict=True))
                )

        playing = asyncio.ensure_future(play()) if late else None
        mirrors = [Mirror(each, pause) for each in directories]
        async with directories[0].watch() as first, directories[1].watch() as second:
            following: list[Awaitable[None]] = []
            for mirror, changes in zip(mirrors, (first, second), strict=True):
                await mirror.look()
                following.append(asyncio.ensure_future(mirror.follow(changes, "end")))
            await (playing or play())
            for directory in directories:
                await directory.create("end")
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*following)
            for mirror in mirrors:
                await mirror.check(sizes=sizes and not late)
        hub = hub_of(served)
        assert not hub.watches
        assert not hub._locks
        return sum(mirror.overflows for mirror in mirrors)


PLAYS = st.lists(st.lists(MOVES, max_size=14), min_size=2, max_size=2)
LINKED_PLAYS = st.lists(st.lists(MOVES | LINKS, max_size=14), min_size=2, max_size=2)
SEEDS = st.integers(0, 2**32 - 1)
PAUSES = st.sampled_from((0, 0, 20))
IN_SHORT = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@IN_SHORT
@given(plays=PLAYS, seed=SEEDS, late=st.booleans(), pause=PAUSES)
async def test_what_is_told_is_what_is_there(
    plays: list[list[tuple[Any, ...]]], seed: int, late: bool, pause: int
) -> None:
    await run(await delayed(seed), plays, late=late, sizes=True, pause=pause)


@IN_SHORT
@given(plays=LINKED_PLAYS, seed=SEEDS, late=st.booleans(), pause=PAUSES)
async def test_with_links_and_room_for_few(
    plays: list[list[tuple[Any, ...]]],
    seed: int,
    late: bool,
    pause: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher, "WATCH_CHANGES_MAX", 2)
    await run(await delayed(seed), plays, late=late, sizes=False, pause=pause)


async def test_room_for_few_is_not_enough_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "WATCH_CHANGES_MAX", 2)
    plays = [[("create", 0, "a"), ("mkdir", 0, "b"), ("remove", 0, "a")] * 10] * 2
    assert await run(await delayed(1), plays, late=False, sizes=False, pause=200)


_numbers = itertools.count()


@settings(IN_SHORT, max_examples=4)
@given(plays=LINKED_PLAYS, late=st.booleans())
async def test_of_a_log(plays: list[list[tuple[Any, ...]]], late: bool, tmp_path: Path) -> None:
    volume = await open_volume(f"wf1:{tmp_path}/{next(_numbers)}.wf1,create")
    await run(volume, plays, late=late, sizes=False)
