"""The harnesses as fixtures: every test runs once for each that is registered."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator

import pytest

from capstore.backers.node import DirectoryNode
from tests.contract.harness import HARNESSES, READERS, Harness, Link, Tree

# Registers what is served over a connection; absent where only the backers are installed.
if importlib.util.find_spec("tests.contract.rpc"):
    importlib.import_module("tests.contract.rpc")

READ_TREE: Tree = {
    "empty": {},
    "file": b"0123456789",
    "full": {"inner": b"inside", "deep": {"deeper": {}}},
    "link": Link("file"),
    "nothing": b"",
    "out": Link("../../etc/passwd"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Not as `params=` of the fixtures: registration may come after they are defined.
    if "harness" in metafunc.fixturenames:
        metafunc.parametrize("harness", list(HARNESSES), indirect=True)
    if "reader" in metafunc.fixturenames:
        metafunc.parametrize("reader", list(READERS), indirect=True)


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    async with HARNESSES[request.param]() as made:
        yield made


@pytest.fixture
def root(harness: Harness) -> DirectoryNode:
    return harness.root


@pytest.fixture
async def reader(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    """A harness that shows `READ_TREE` and refuses to be changed."""
    async with READERS[request.param](READ_TREE) as made:
        yield made
