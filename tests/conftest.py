"""What every test has."""

import gc

import pytest

from capstore.schema.limits import MIB
from capstore.tools import allocator


def pytest_configure(config: pytest.Config) -> None:
    # Tests make threads by the thousand, and glibc arenas for them that keep what was given back:
    # at the end of tests/contract half a gigabyte, of which forty megabytes are in use.  The
    # command, which tests run in this process, would have it keep more.
    allocator._ARENAS_MAX = 1
    allocator._MMAP_BYTES = 4 * MIB
    allocator._TRIM_BYTES = 8 * MIB
    allocator.keep_freed_memory()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes long takes longer on a slow day; what hangs is ended all the same.
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="module", autouse=True)
def old_objects() -> None:
    """Leaves what is there already, imports and what other tests cached, out of collections.

    Tests that collect garbage would go through all of it each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    """The service stands on asyncio, as pycapnp does."""
    return "asyncio"
