"""Each upper layer of an overlay that there is, for what all of them do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from capstore.backers.layer import Upper
from capstore.backers.node import DirectoryNode
from tests.contract.uppers import UPPERS, UpperHarness


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
