"""A service for the tests of the synchronous face, and its volume as a filesystem; a store that
remembers what is asked of it, served in process, and a client's view of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.service.client import connect
from capstore.service.pyfs import CapstoreFS
from capstore.service.remote_store import RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.inprocess import Served, serving
from tests.service.support import ServiceUnderTest, running_service


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with running_service({"m": "memory:"}) as service:
        yield service


@pytest.fixture
def tree(service: ServiceUnderTest) -> Iterator[CapstoreFS]:
    with CapstoreFS(service.uri("m"), timeout=30) as tree:
        tree.removetree("/")
        yield tree


@pytest.fixture
def model() -> ModelStore:
    return ModelStore()


@pytest.fixture
async def served(model: ModelStore, tmp_path: Path) -> AsyncIterator[Served]:
    volumes = {"s": model, "m": await MemoryVolume.open()}
    async with serving(volumes, folder=tmp_path) as served:
        yield served


@pytest.fixture
async def store(served: Served) -> AsyncIterator[RemoteStore]:
    async with connect(served.unix["s"]) as store:
        assert isinstance(store, RemoteStore)
        yield store
