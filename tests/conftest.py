"""What every test has."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The service stands on asyncio, as pycapnp does."""
    return "asyncio"
