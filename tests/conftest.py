"""What every test has."""

import gc

import pytest


def pytest_collection_finish() -> None:
    # Tests that collect garbage would go through everything that was ever imported each time.
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    """The service stands on asyncio, as pycapnp does."""
    return "asyncio"
