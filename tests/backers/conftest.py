"""Each upper layer of an overlay that there is, for what all of them do; and somebody without
privileges."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from capstore.backers.layer import Upper
from capstore.backers.node import DirectoryNode
from tests.contract.uppers import UPPERS, UpperHarness

NOBODY = 65534


@pytest.fixture(params=UPPERS)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[UpperHarness]:
    async with UPPERS[request.param]() as made:
        yield made


@pytest.fixture
def upper(harness: UpperHarness) -> Upper:
    return harness.upper


@pytest.fixture
def root(upper: Upper) -> DirectoryNode:
    return upper.root


@pytest.fixture
def unprivileged() -> Iterator[Callable[[], None]]:
    """Calling it gives up root's privileges until the test ends."""
    if os.geteuid() != 0:
        yield lambda: None
        return
    yield lambda: os.seteuid(NOBODY)
    os.seteuid(0)
