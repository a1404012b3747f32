"""A store that is open on the background loop, for other threads and event loops.

Invariants:

* Nothing of the store leaves that loop but bytes and what is known of objects, or in a `Kept`.
* The store is let go when the session is closed or dropped, and at exit; neither waits.
* In a child made by fork the parent's connection is left alone, and the first use makes one of the
  child's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from capstore.backers.store import ObjectStore
from capstore.schema.errors import Closed, InvalidArgument
from capstore.service.background import Kept, background_loop
from capstore.service.client import connect
from capstore.service.uri import CapabilityURI

T = TypeVar("T")
Opening = Callable[[], AbstractAsyncContextManager[ObjectStore]]


@dataclass(frozen=True, slots=True)
class StoreAt:
    """Opens the store that `uri` stands for."""

    uri: CapabilityURI

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[ObjectStore]:
        """Raises as `connect`, and `InvalidArgument` for what is no store."""
        async with connect(self.uri) as root:
            thing: object = root
            if not isinstance(thing, ObjectStore):
                raise InvalidArgument("the URI stands for a directory or file, not for a store")
            yield thing


class StoreSession:
    """A store that is open on the background loop, for other threads and loops.

    Raises what `opening` raises.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._closed = False
        self._connect()

    def _connect(self) -> None:
        self._loop = background_loop()
        self._pid = os.getpid()
        self._store = self._loop.call(self._opened())

    async def _opened(self) -> Kept[ObjectStore]:
        entered = self._opening()
        store = await entered.__aenter__()

        async def close() -> None:
            await entered.__aexit__(None, None, None)

        return self._loop.keep(store, close)

    def _current(self) -> Kept[ObjectStore]:
        if self._closed:
            raise Closed("the store was closed")
        if self._pid != os.getpid():
            self._connect()
        return self._store

    def run(self, operation: Callable[[ObjectStore], Coroutine[Any, Any, T]]) -> T:
        """Runs `operation` on the loop.  Its result must lead to nothing that lives there, but by
        a `Kept`.  Raises `Closed` behind `close`."""
        store = self._current()
        return self._loop.call(_with(store, operation))

    async def wait_for(self, operation: Callable[[ObjectStore], Coroutine[Any, Any, T]]) -> T:
        """As `run`, for a caller on any other event loop."""
        store = self._current()
        return await asyncio.wrap_future(self._loop.submit(_with(store, operation)))

    def run_keeping(self, operation: Callable[[ObjectStore], Coroutine[Any, Any, T]]) -> Kept[T]:
        """As `run`; the result stays on the loop."""

        async def keeping(store: ObjectStore) -> Kept[T]:
            return self._loop.keep(await operation(store))

        return self.run(keeping)

    def close(self) -> None:
        """Lets the store go; again does nothing."""
        self._closed = True
        self._store.release()


async def _with(
    store: Kept[ObjectStore], operation: Callable[[ObjectStore], Coroutine[Any, Any, T]]
) -> T:
    return await operation(store.value)
