"""What tests of watches share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from capstore.schema.nodes import Change, ChangeKind
from capstore.service.remote import Directory
from capstore.service.remote_watch import Watching
from capstore.service.watching import Hub
from tests.service.inprocess import Served

CREATED, REMOVED, MODIFIED, OVERFLOW = ChangeKind
SECONDS = 10
_MARKER = "marker-"
_numbers = itertools.count()


def hub_of(served: Served, volume: str = "m") -> Hub:
    return served.service._authority._volumes[volume].hub


async def told(changes: Watching, directory: Directory) -> list[Change]:
    """What is told up to now: a marker is made and removed to see the end of it."""
    marker = await _marked(directory)
    found: list[Change] = []
    async with asyncio.timeout(SECONDS):
        async for change in changes:
            if change.name == marker and change.kind is REMOVED:
                return found
            if not change.name.startswith(_MARKER):
                found.append(change)
            if change.kind is OVERFLOW:
                # The marker may be among what was dropped.
                marker = await _marked(directory)
    raise AssertionError("the watch has ended")


async def _marked(directory: Directory) -> str:
    marker = f"{_MARKER}{next(_numbers)}"
    await (await directory.create(marker)).close()
    await directory.remove(marker)
    return marker


def words(changes: Sequence[Change]) -> list[str]:
    """The changes as `created a`, say."""
    return [f"{change.kind.value} {change.name}".rstrip() for change in changes]


async def ended(changes: Watching) -> BaseException | None:
    """What the iteration of a watch that has ended raises, behind what was told; None where that is
    nothing."""
    async with asyncio.timeout(SECONDS):
        try:
            async for _ in changes:
                pass
        except Exception as error:
            return error
    return None


async def until(condition: Callable[[], object]) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)
