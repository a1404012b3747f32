"""The harnesses as fixtures: every test runs once for each that is registered."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterable

import pytest
from _pytest.mark import ParameterSet

from capstore.backers.node import DirectoryNode
from capstore.backers.store import ObjectStore
from tests.contract.harness import HARNESSES, LONG, READERS, Harness, Link, Tree
from tests.contract.stores import STORES, StoreHarness

# Registers what is served over a connection; absent where only the backers are installed.
for _module in ("images", "mounts", "overlay", "pyfs", "rpc", "st1", "wf1"):
    if importlib.util.find_spec(f"tests.contract.{_module}"):
        importlib.import_module(f"tests.contract.{_module}")

READ_TREE: Tree = {
    "empty": {},
    "file": b"0123456789",
    "full": {"inner": b"inside", "deep": {"deeper": {}}},
    "link": Link("file"),
    "nothing": b"",
    "out": Link("../../etc/passwd"),
}


def tree_of_reader(reader: Harness) -> Tree:
    """What `reader` shows: `READ_TREE`, as far as its format can hold it."""
    if reader.symlinks:
        return READ_TREE
    return {name: what for name, what in READ_TREE.items() if not isinstance(what, Link)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Not as `params=` of the fixtures: registration may come after they are defined.
    if "harness" in metafunc.fixturenames:
        metafunc.parametrize("harness", _some_long(HARNESSES), indirect=True)
    if "reader" in metafunc.fixturenames:
        metafunc.parametrize("reader", _some_long(READERS), indirect=True)
    if "store_harness" in metafunc.fixturenames:
        metafunc.parametrize("store_harness", _some_long(STORES), indirect=True)


def _some_long(names: Iterable[str]) -> list[ParameterSet]:
    marks = {name: [pytest.mark.long] for name in LONG}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


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


@pytest.fixture
async def store_harness(request: pytest.FixtureRequest) -> AsyncIterator[StoreHarness]:
    async with STORES[request.param]() as made:
        yield made


@pytest.fixture
def store(store_harness: StoreHarness) -> ObjectStore:
    return store_harness.store
