"""A store of objects as a store of zarr arrays (zarr 3; the extra ``capstore[zarr]``).

Invariants:

* Works from any event loop and thread, zarr's own included: the store itself lives on the
  background loop of the process.
* Keys are the UTF-8 of zarr's keys.  Objects whose keys are no UTF-8 are not zarr's: they are
  neither seen nor removed.
* What zarr gets is of one version of an object.  What it set, or deleted, is durable.
* Pickling one pickles how the store is opened: the capability URI, which is a secret.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from capstore.backers.store import ObjectStat, ObjectStore
from capstore.schema.errors import Conflict, NotFound
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.service.mapping import ABSENT
from capstore.service.object_streams import last_of, read_from, remove_objects
from capstore.service.store_session import Opening, StoreSession

T = TypeVar("T")
Operation = Callable[[ObjectStore], Coroutine[Any, Any, T]]


class ZarrStore(Store):
    """The store that `opening` opens, when it is first used.

    Two are equal that open the same in the same way.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(self, opening: Opening, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._opening = opening
        self._session: StoreSession | None = None
        self._connecting = threading.Lock()

    def __repr__(self) -> str:
        return f"ZarrStore({self._opening!r}, read_only={self.read_only})"

    def __str__(self) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZarrStore)
            and self._opening == other._opening
            and self.read_only == other.read_only
        )

    def __hash__(self) -> int:
        return hash((self._opening, self.read_only))

    def __reduce__(self) -> tuple[Callable[..., ZarrStore], tuple[Opening, bool]]:
        return _made, (self._opening, self.read_only)

    def with_read_only(self, read_only: bool = False) -> ZarrStore:
        return ZarrStore(self._opening, read_only=read_only)

    # Its life ------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await super()._open()
        try:
            await self._connected()
        except BaseException:
            self._is_open = False
            raise

    def close(self) -> None:
        super().close()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    async def _connected(self) -> StoreSession:
        if self._session is not None:
            return self._session
        # Connecting waits for another loop.
        return await asyncio.to_thread(self._connect)

    def _connect(self) -> StoreSession:
        with self._connecting:
            session = self._session
            if session is None:
                self._session = session = StoreSession(self._opening)
                self._is_open = True
            return session

    async def _wait_for(self, operation: Operation[T]) -> T:
        return await (await self._connected()).wait_for(operation)

    def _run(self, operation: Operation[T]) -> T:
        return (self._session or self._connect()).run(operation)

    # Values --------------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        data = await self._wait_for(_reading(key, byte_range))
        return None if data is None else prototype.buffer.from_bytes(data)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, for a thread without a loop."""
        data = self._run(_reading(key, byte_range))
        prototype = prototype or default_buffer_prototype()
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        gets = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return list(await asyncio.gather(*gets))

    async def exists(self, key: str) -> bool:
        return await self._wait_for(lambda store: store.has(key.encode()))

    async def getsize(self, key: str) -> int:
        try:
            return (await self._wait_for(lambda store: store.stat(key.encode()))).size
        except NotFound:
            raise FileNotFoundError(key) from None

    async def getsize_prefix(self, prefix: str) -> int:
        async with aclosing(self._stats(prefix.encode())) as stats:
            return sum([stat.size async for stat in stats])

    async def set(self, key: str, value: Buffer) -> None:
        await self._wait_for(self._setting(key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, for a thread without a loop."""
        self._run(self._setting(key, value))

    def _setting(self, key: str, value: Buffer) -> Operation[ObjectStat]:
        self._check_writable()
        data = _bytes_of(value)
        return lambda store: store.put(data, key.encode())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._check_writable()
        data = _bytes_of(value)
        with suppress(Conflict):
            await self._wait_for(lambda store: store.put(data, key.encode(), ABSENT))

    async def delete(self, key: str) -> None:
        self._check_writable()
        with suppress(NotFound):
            await self._wait_for(lambda store: store.delete(key.encode()))

    def delete_sync(self, key: str) -> None:
        """As `delete`, for a thread without a loop."""
        self._check_writable()
        with suppress(NotFound):
            self._run(lambda store: store.delete(key.encode()))

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        await self._wait_for(lambda store: remove_objects(store, _inside(prefix), _is_text))

    # Listings ------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async with aclosing(self._stats(prefix.encode())) as stats:
            async for stat in stats:
                yield stat.key.decode()

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        # As in `_stats`, but what is known to be below a name that was given is jumped over.
        inside = _inside(prefix)
        seen: set[bytes] = set()
        after, more = b"", True
        while more:
            page = await self._wait_for(lambda store: store.list(inside, after))  # noqa: B023
            for stat in page.objects:
                child = stat.key.removeprefix(inside).partition(b"/")[0]
                if child not in seen and _is_text(child):
                    seen.add(child)
                    yield child.decode()
            more = page.more
            if more:
                after = _behind(last_of([stat.key for stat in page.objects], after), inside)

    async def _stats(self, prefix: bytes) -> AsyncGenerator[ObjectStat, None]:
        after, more = b"", True
        while more:
            page = await self._wait_for(lambda store: store.list(prefix, after))  # noqa: B023
            for stat in filter(lambda stat: _is_text(stat.key), page.objects):
                yield stat
            more = page.more
            if more:
                after = last_of([stat.key for stat in page.objects], after)


def _made(opening: Opening, read_only: bool) -> ZarrStore:
    return ZarrStore(opening, read_only=read_only)


def _bytes_of(value: Buffer) -> bytes:
    if not isinstance(value, Buffer):
        raise TypeError(f"zarr sets buffers, not {type(value).__name__}")
    return value.to_bytes()


def _inside(prefix: str) -> bytes:
    """What the keys in the directory `prefix` begin with."""
    return (prefix.rstrip("/") + "/").encode() if prefix.rstrip("/") else b""


def _behind(key: bytes, inside: bytes) -> bytes:
    """`key`, or the greatest key that can be in the directory below `inside` that it is in."""
    child, slash, _ = key.removeprefix(inside).partition(b"/")
    if not slash:
        return key
    return (inside + child + slash).ljust(KEY_BYTES_MAX, b"\xff")


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reading(key: str, byte_range: ByteRequest | None) -> Operation[bytes | None]:
    """Gets what `byte_range` asks for, or None.  Raises ValueError for what is no range."""
    raw = key.encode()

    async def read(store: ObjectStore) -> bytes | None:
        with suppress(NotFound):
            return await _read(store, raw, byte_range)
        return None

    if byte_range is not None and not isinstance(byte_range, ByteRequest):
        raise ValueError(f"Unexpected byte_range, got {byte_range}.")
    return read


async def _read(store: ObjectStore, key: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return bytes((await store.read(key, start, max(0, end - start))).data)
        case OffsetByteRequest(offset):
            return await read_from(store, key, offset)
        case SuffixByteRequest(0):
            return b""
        case SuffixByteRequest(suffix):
            return await read_from(store, key, -suffix)
        case None:
            return await store.get(key)
