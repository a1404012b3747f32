"""zarr's own suite for stores, and what it does not ask."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.store import StoreTests

import capstore
from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectPage, ObjectStore
from capstore.schema.errors import Conflict
from capstore.schema.limits import KEY_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.service.store_session import StoreAt
from capstore.service.uri import CapabilityURI
from capstore.service.zarr_store import ZarrStore
from tests.contract.store_model import ModelStore
from tests.service.store_service import RunningStore, WatchedStore, running_store, st1, watched

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("anyio_backend")]

MODELS: dict[int, Watched] = {}


class Watched(ModelStore):
    """Has short pages, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        self.pages += 1
        return await super().list(prefix, after, min(limit, 4))


@dataclass(frozen=True)
class InProcess:
    """Opens the store of that number; like a URI, it can be pickled and compared."""

    number: int

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[ObjectStore]:
        yield MODELS[self.number]


Running = RunningStore[WatchedStore] | RunningStore[St1Store]


@pytest.fixture(scope="module", params=["model", "st1"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("s")
    if request.param == "model":
        with running_store(folder, watched) as model:
            yield model
    else:
        with running_store(folder, st1) as store:
            yield store


@pytest.fixture
def opening() -> Iterator[InProcess]:
    number = len(MODELS)
    MODELS[number] = Watched()
    yield InProcess(number)
    MODELS[number] = Watched()


@pytest.fixture
def model(opening: InProcess) -> Watched:
    return MODELS[opening.number]


class TestInProcess(StoreTests[ZarrStore, cpu.Buffer]):
    store_cls = ZarrStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, opening: InProcess) -> dict[str, Any]:
        return {"opening": opening}

    async def set(self, store: ZarrStore, key: str, value: Buffer) -> None:
        model = MODELS[store._opening.number]  # type: ignore[attr-defined]
        await model.put(value.to_bytes(), key.encode())

    async def get(self, store: ZarrStore, key: str) -> Buffer:
        model = MODELS[store._opening.number]  # type: ignore[attr-defined]
        return self.buffer_cls.from_bytes(await model.get(key.encode()))

    def test_store_repr(self, store: ZarrStore) -> None:
        assert repr(store) == f"ZarrStore({store._opening!r}, read_only=False)"
        assert str(store) == repr(store)

    def test_store_supports_writes(self, store: ZarrStore) -> None:
        assert store.supports_writes
        assert store.supports_deletes

    def test_store_supports_listing(self, store: ZarrStore) -> None:
        assert store.supports_listing


class TestOverRpc(StoreTests[ZarrStore, cpu.Buffer]):
    store_cls = ZarrStore
    buffer_cls = cpu.Buffer

    @pytest.fixture(autouse=True)
    def _empty(self, service: Running) -> None:
        service.empty()
        type(self).service = service

    service: ClassVar[Running]

    @pytest.fixture
    def store_kwargs(self, service: Running) -> dict[str, Any]:
        return {"opening": StoreAt(CapabilityURI.parse(service.uri()))}

    async def set(self, store: ZarrStore, key: str, value: Buffer) -> None:
        self.service.put(key.encode(), value.to_bytes())

    async def get(self, store: ZarrStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(self.service.objects()[key.encode()])

    def test_store_repr(self, store: ZarrStore, service: Running) -> None:
        token = CapabilityURI.parse(service.uri()).token
        assert token not in repr(store)
        assert token[:6] in str(store)

    def test_store_supports_writes(self, store: ZarrStore) -> None:
        assert store.supports_writes
        assert store.supports_deletes

    def test_store_supports_listing(self, store: ZarrStore) -> None:
        assert store.supports_listing


# What it does not ask ----------------------------------------------------------------------------


@pytest.fixture
def store(opening: InProcess) -> Iterator[ZarrStore]:
    with ZarrStore(opening) as store:
        yield store


def _buffer(data: bytes) -> Buffer:
    return cpu.Buffer.from_bytes(data)


async def _listed(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


def test_arrays_and_groups_over_a_connection(service: Running) -> None:
    service.empty()
    with capstore.open_zarr(service.uri()) as store:
        array = zarr.create_array(
            store, name="a", shape=(1000, 1000), chunks=(100, 100), dtype="f8"
        )
        values = np.random.default_rng(1).random((1000, 1000))
        array[:] = values
    with capstore.open_zarr(service.uri(), read_only=True) as store:
        again = zarr.open_array(store, path="a", mode="r")
        assert np.array_equal(again[:], values)
    with capstore.open_zarr(service.uri("m")) as store:
        with pytest.raises(capstore.InvalidArgument):
            zarr.open_array(store, path="a", mode="r")
    with pytest.raises(capstore.InvalidArgument):
        capstore.open_zarr("nowhere")


def test_arrays_and_groups(opening: InProcess) -> None:
    with ZarrStore(opening) as store:
        root = zarr.create_group(store)
        values = np.arange(10_000, dtype="i4").reshape(100, 100)
        array = root.create_array("deep/values", shape=(100, 100), chunks=(30, 30), dtype="i4")
        array[:] = values
        array[17, 3] = -1
    with ZarrStore(opening, read_only=True) as store:
        again = zarr.open_group(store, mode="r")["deep/values"]
        assert isinstance(again, zarr.Array)
        values[17, 3] = -1
        assert np.array_equal(again[:], values)
        assert np.array_equal(again[95:, ::7], values[95:, ::7])
        assert again.nbytes_stored() > 0
        with pytest.raises(ValueError, match="read-only"):
            again[:] = 0


async def test_a_range_is_of_one_version(store: ZarrStore, model: Watched) -> None:
    await model.put(b"0123456789", b"k")
    stat, times = model.stat, 3

    async def outdated(key: bytes) -> Any:
        nonlocal times
        found = await stat(key)
        if times:
            times -= 1
            await model.put(b"x" * times, key)
        return found

    model.stat = outdated  # type: ignore[method-assign]
    suffix = zarr.abc.store.SuffixByteRequest(4)
    prototype = default_buffer_prototype()
    got = await store.get("k", prototype, suffix)
    assert got is not None
    assert got.to_bytes() == b""
    times = 1000
    with pytest.raises(Conflict):
        await store.get("k", prototype, suffix)


async def test_a_directory_is_listed_by_jumps(store: ZarrStore, model: Watched) -> None:
    for number in range(100):
        await model.put(b"", b"a/b/c/%03d" % number)
    for key in ("a/b", "a/b-", "a/b0", "a/z", "a/\U0010ffff/x", "ab", "zarr.json"):
        await model.put(b"", key.encode())
    await model.put(b"", b"a/\xff\xfe")
    await model.put(b"", b"a/\xff/x")
    await model.put(b"", (b"a/b/" + b"\xff" * KEY_BYTES_MAX)[:KEY_BYTES_MAX])
    model.pages = 0
    assert sorted(await _listed(store.list_dir("a"))) == ["b", "b-", "b0", "z", "\U0010ffff"]
    assert model.pages <= 4
    assert sorted(await _listed(store.list_dir(""))) == ["a", "ab", "zarr.json"]
    assert sorted(await _listed(store.list_dir("a/b/"))) == ["c"]
    assert "zarr.json" in await _listed(store.list())
    assert len(await _listed(store.list_prefix("a/b/"))) == 100
    await store.delete_dir("a/b/")
    assert await _listed(store.list_prefix("a/b/")) == []
    assert await store.exists("a/b")
    assert not await store.is_empty("a")
    # What is not zarr's stays.
    await store.clear()
    assert await store.is_empty("")
    assert sorted(model.state.objects) == [
        (b"a/b/" + b"\xff" * KEY_BYTES_MAX)[:KEY_BYTES_MAX],
        *(b"a/\xff/x", b"a/\xff\xfe"),
    ]
    assert await store.getsize_prefix("") == 0


async def test_many_at_once_open_it_once(opening: InProcess, model: Watched) -> None:
    opened = 0

    @asynccontextmanager
    async def counting() -> AsyncIterator[ObjectStore]:
        nonlocal opened
        opened += 1
        yield model

    with ZarrStore(counting) as store:
        await asyncio.gather(*(store.set(f"k{number}", _buffer(b"x")) for number in range(20)))
    assert opened == 1
    assert len(model.state.objects) == 20


async def test_opening_that_fails_can_be_tried_again(opening: InProcess, model: Watched) -> None:
    failures = [Conflict("not yet")]

    @asynccontextmanager
    async def late() -> AsyncIterator[ObjectStore]:
        if failures:
            raise failures.pop()
        yield model

    store = ZarrStore(late)
    with pytest.raises(Conflict):
        await store._open()
    assert not store._is_open
    await store.set("k", _buffer(b"x"))
    assert store._is_open
    store.close()


def test_it_is_pickled_as_it_is_opened(opening: InProcess) -> None:
    store = pickle.loads(pickle.dumps(ZarrStore(opening, read_only=True)))
    assert store == ZarrStore(opening, read_only=True)
    assert store != ZarrStore(opening)
    assert store != opening
    assert len({store, ZarrStore(opening, read_only=True)}) == 1


EXTRA = """
import sys
import capstore
assert "zarr" not in sys.modules
sys.modules["zarr"] = None
try:
    capstore.open_zarr("capnp://insecure@/socket/" + "x" * 43)
except ImportError as error:
    assert "capstore[zarr]" in str(error)
else:
    sys.exit("it did not fail")
"""


def test_zarr_is_an_extra_that_is_imported_when_it_is_used() -> None:
    subprocess.run([sys.executable, "-c", EXTRA], check=True, timeout=30)
