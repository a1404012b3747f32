"""A service for the tests of the synchronous face, and its volume as a filesystem."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from capstore.service.pyfs import CapstoreFS
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
