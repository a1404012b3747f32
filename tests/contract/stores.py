"""What the contract suite of stores runs against, and how another store joins it.

``register("name", opener)`` adds a store as it is, with delays, over a connection, and over a
connection with delays; an opener is a function that returns an asynchronous context manager giving
the `ObjectStore`.  The suite knows nothing of it but `capstore.backers.store`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

from capstore.backers.store import (
    ANY,
    Binding,
    BindingPage,
    Change,
    Collected,
    Condition,
    Namespace,
    ObjectPage,
    ObjectRange,
    ObjectSink,
    ObjectStat,
    ObjectStore,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import Buffer, Usage
from capstore.service.client import connect
from capstore.service.remote_store import RemoteStore
from capstore.service.server import Service
from tests.contract.faults import Delays
from tests.contract.harness import LONG
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving


async def _at_once() -> None:
    """Nothing to wait for."""


@dataclass(frozen=True)
class StoreHarness:
    """A store under test; `settled` returns when nothing that was cancelled is under way."""

    store: ObjectStore
    settled: Callable[[], Awaitable[None]] = _at_once


Opener = Callable[[], AbstractAsyncContextManager[ObjectStore]]
Factory = Callable[[], AbstractAsyncContextManager[StoreHarness]]

STORES: dict[str, Factory] = {}


def register(name: str, opener: Opener) -> None:
    """Has the suite run against the store that `opener` opens."""
    STORES[name] = _plain(opener)
    STORES[f"{name}+delay"] = _delayed(STORES[name])
    STORES[f"rpc-{name}"] = _remote(opener)
    STORES[f"rpc-{name}+delay"] = _delayed(STORES[f"rpc-{name}"])
    LONG.add(f"rpc-{name}+delay")


def _plain(opener: Opener) -> Factory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[StoreHarness]:
        async with opener() as store:
            yield StoreHarness(store)

    return factory


def _remote(opener: Opener) -> Factory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[StoreHarness]:
        async with (
            opener() as store,
            serving({"s": store}) as served,
            connect(served.unix["s"]) as remote,
        ):
            assert isinstance(remote, RemoteStore)
            yield StoreHarness(remote, _settled(remote, served.service))

    return factory


def _settled(store: RemoteStore, service: Service) -> Callable[[], Awaitable[None]]:
    async def settled() -> None:
        # The service has heard of a cancellation when it answers what was sent behind it.
        await store.sync()
        while any(session.calls_in_flight for session in service.sessions):
            await asyncio.sleep(0.001)

    return settled


def _delayed(factory: Factory) -> Factory:
    @asynccontextmanager
    async def slow() -> AsyncIterator[StoreHarness]:
        async with factory() as harness:
            yield replace(harness, store=DelayedStore(harness.store, Delays()))

    return slow


@asynccontextmanager
async def _model() -> AsyncIterator[ObjectStore]:
    store = ModelStore()
    yield store
    await store.close()


register("model", _model)


# What tests do with any store --------------------------------------------------------------------


async def stats_of(
    store: ObjectStore, prefix: bytes = b"", limit: int = PAGE_ENTRIES_MAX
) -> list[ObjectStat]:
    """The whole listing, page by page."""
    found: list[ObjectStat] = []
    after = b""
    while True:
        page = await store.list(prefix, after, limit)
        found += page.objects
        if not page.more:
            return found
        after = page.objects[-1].key


async def keys_of(
    store: ObjectStore, prefix: bytes = b"", limit: int = PAGE_ENTRIES_MAX
) -> list[bytes]:
    return [stat.key for stat in await stats_of(store, prefix, limit)]


async def contents_of(store: ObjectStore) -> dict[bytes, bytes]:
    """Everything, for comparison."""
    return {key: bytes(await store.get(key)) for key in await keys_of(store)}


async def put_in_pieces(
    store: ObjectStore, data: bytes, key: bytes = b"", condition: Condition = ANY, piece: int = 1000
) -> ObjectStat:
    sink = await store.begin(key, condition, len(data))
    for start in range(0, len(data), piece):
        await sink.write(data[start : start + piece])
    return await sink.commit()


# Delays around every call ------------------------------------------------------------------------


class DelayedStore(ObjectStore):
    """See `tests.contract.faults`."""

    def __init__(self, inner: ObjectStore, delays: Delays) -> None:
        self._inner = inner
        self._around = delays.around
        self._delays = delays

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        return await self._around(self._inner.put(data, key, condition))

    async def get(self, key: bytes) -> bytes:
        return await self._around(self._inner.get(key))

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        return await self._around(self._inner.read(key, offset, length))

    async def stat(self, key: bytes) -> ObjectStat:
        return await self._around(self._inner.stat(key))

    async def has(self, key: bytes) -> bool:
        return await self._around(self._inner.has(key))

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        await self._around(self._inner.delete(key, condition))

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        return await self._around(self._inner.batch(changes))

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> ObjectSink:
        sink = await self._around(self._inner.begin(key, condition, size))
        return DelayedSink(sink, self._delays)

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        return await self._around(self._inner.list(prefix, after, limit))

    async def usage(self) -> Usage:
        return await self._around(self._inner.usage())

    async def sync(self) -> None:
        await self._around(self._inner.sync())

    async def close(self) -> None:
        await self._around(self._inner.close())

    async def compact(self) -> None:
        await self._around(self._inner.compact())

    async def collect(self, older_than: float = 0.0) -> Collected:
        return await self._around(self._inner.collect(older_than))

    @property
    def names(self) -> Namespace:
        return DelayedNamespace(self._inner.names, self._delays)


class DelayedSink(ObjectSink):
    def __init__(self, inner: ObjectSink, delays: Delays) -> None:
        self._inner = inner
        self._around = delays.around

    async def write(self, data: Buffer) -> None:
        await self._around(self._inner.write(data))

    async def commit(self) -> ObjectStat:
        return await self._around(self._inner.commit())

    async def abort(self) -> None:
        await self._around(self._inner.abort())


class DelayedNamespace(Namespace):
    def __init__(self, inner: Namespace, delays: Delays) -> None:
        self._inner = inner
        self._around = delays.around
        self._delays = delays

    async def resolve(self, name: str) -> Binding:
        return await self._around(self._inner.resolve(name))

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        return await self._around(self._inner.bind(binding, condition))

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        await self._around(self._inner.unbind(name, condition))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        return await self._around(self._inner.list(after, limit))

    async def sub(self, name: str) -> Namespace:
        return DelayedNamespace(await self._around(self._inner.sub(name)), self._delays)
