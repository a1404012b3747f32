"""The order in which changes are told, with as much at once as there can be: no connection between
those who change and what they change, whose calls take long at either end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.schema.nodes import Change
from capstore.service.guard import GuardedDirectory
from capstore.service.watching import Hub
from tests.contract.faults import DelayedDirectory, Delays
from tests.service.authorities import authority_over, owner_of
from tests.service.watch_model import LINKS, MOVES, Mirror, Player
from tests.service.watches import SECONDS

pytestmark = pytest.mark.anyio


class LongDelays(Delays):
    """Mostly none, and sometimes as long as it takes others to do something."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    async def pause(self) -> None:
        for _ in range(self._random.choice((0, 0, 1, 3, 40))):
            await asyncio.sleep(0)


class Noting:
    """One who watches and forgets nothing."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def note(self, change: Change) -> None:
        self.changes.append(change)

    def removed(self) -> None:
        raise AssertionError("the directory stays")


async def run(
    folder: Path, plays: Sequence[Sequence[tuple[Any, ...]]], *, seed: int, start: int, links: bool
) -> None:
    """Plays all at once; one begins to watch after `start` turns of the loop."""
    authority, volume = await authority_over(folder, volume=await MemoryVolume.open())
    owner = await owner_of(authority)
    await volume.root.mkdir("d")
    delays = LongDelays(seed)
    root = DelayedDirectory(volume.root, delays)
    below = await root.sub("d")
    grant, hub = owner.grant, owner.grant.hub
    players = [
        Player([GuardedDirectory(root, grant), GuardedDirectory(below, grant)]) for _ in plays
    ]
    playing = [
        asyncio.ensure_future(player.play(moves))
        for player, moves in zip(players, plays, strict=True)
    ]
    for _ in range(start):
        await asyncio.sleep(0)
    mirrors = [Mirror(owner, 0), Mirror(await owner.sub("d"), 0)]
    watching: list[Noting] = []
    async with asyncio.timeout(SECONDS):
        for mirror in mirrors:
            noting = Noting()
            watching.append(noting)
            assert isinstance(mirror.directory, GuardedDirectory)
            await hub.begin(await mirror.directory.node_id(), noting)
            noting.changes.clear()
            await mirror.look()
        await asyncio.gather(*playing)
    for mirror, noting in zip(mirrors, watching, strict=True):
        for change in noting.changes:
            mirror.apply(change)
        await mirror.check(sizes=not links and not start)
    _check_empty(hub)


def _check_empty(hub: Hub) -> None:
    assert not hub._locks
    assert not hub._moving
    assert not hub.openings


FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SEEDS = st.integers(0, 2**32 - 1)


def plays(moves: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[Any]:
    return st.lists(st.lists(moves, min_size=3, max_size=12), min_size=3, max_size=4)


@FEW
@given(plays=plays(MOVES), seed=SEEDS)
async def test_from_the_beginning(plays: Any, seed: int, tmp_path: Path) -> None:
    await run(tmp_path, plays, seed=seed, start=0, links=False)


@FEW
@given(plays=plays(MOVES | LINKS), seed=SEEDS, start=st.integers(1, 300))
async def test_from_the_middle(plays: Any, seed: int, start: int, tmp_path: Path) -> None:
    await run(tmp_path, plays, seed=seed, start=start, links=True)
