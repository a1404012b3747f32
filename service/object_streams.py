"""Objects of any size in pieces, and all of a store page by page, over any `ObjectStore`.

Invariants:

* What is read is of one version: an object that is replaced or removed on the way raises
  `Conflict`, and no piece of another version is ever handed on.
* What is written appears whole or not at all; whoever fails or is cancelled on the way gives up
  the put.
* At most `WINDOW_REQUESTS` reads of `WINDOW_BYTES` each are under way for one object, and one block
  of `TRANSFER_BYTES_MAX` is collected for a write, so memory is bounded whatever the size.
* A listing that does not go forward is refused: it would never end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress

from capstore.backers.store import (
    ANY,
    Binding,
    Condition,
    Delete,
    Namespace,
    ObjectRange,
    ObjectStat,
    ObjectStore,
)
from capstore.schema.errors import Conflict, Corrupt, NotFound, StorageError, TransportError
from capstore.schema.limits import (
    BATCH_CHANGES_MAX,
    OBJECT_BYTES_MAX,
    TRANSFER_BYTES_MAX,
    WINDOW_BYTES,
    WINDOW_REQUESTS,
)
from capstore.schema.nodes import Buffer

# How often a read is begun anew for an object that is replaced meanwhile.
ATTEMPTS_MAX = 10


# Reading -----------------------------------------------------------------------------------------


async def object_ranges(store: ObjectStore, key: bytes) -> AsyncGenerator[ObjectRange, None]:
    """The object's ranges in order, the first one with `WINDOW_BYTES` or all there is.

    Raises as `ObjectStore.read`, and `Conflict` where the object is replaced or removed behind the
    first range.
    """
    first = await store.read(key, 0, WINDOW_BYTES)
    checked_range(first, 0, WINDOW_BYTES)
    yield first
    ask, stat = len(first.data), first.stat
    in_flight: deque[asyncio.Task[ObjectRange]] = deque()
    try:
        while ask < stat.size or in_flight:
            while ask < stat.size and len(in_flight) < WINDOW_REQUESTS:
                read = range_of(store, key, stat, ask, WINDOW_BYTES)
                in_flight.append(asyncio.create_task(read))
                ask += WINDOW_BYTES
            yield await in_flight.popleft()
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


async def range_of(
    store: ObjectStore, key: bytes, stat: ObjectStat, offset: int, length: int
) -> ObjectRange:
    """A range of the version that `stat` is of.  Raises `Conflict` if there is another or none."""
    try:
        part = await store.read(key, offset, length)
    except NotFound:
        raise Conflict("the object was removed while it was read") from None
    if part.stat.version != stat.version:
        raise Conflict("the object was replaced while it was read")
    return checked_range(part, offset, length)


def checked_range(part: ObjectRange, offset: int, length: int) -> ObjectRange:
    """`part` if that is what was asked for.  Raises `Corrupt`."""
    if part.stat.size > OBJECT_BYTES_MAX:
        raise Corrupt("the store tells a size that no object has")
    if len(part.data) != max(0, min(length, part.stat.size - offset)):
        raise Corrupt("the store answers a read with another length than the object has")
    return part


async def read_object(store: ObjectStore, key: bytes) -> tuple[bytes, ObjectStat]:
    """The whole object, and which version that is.  Raises `NotFound`, `Corrupt`, and `Conflict`
    if it is replaced again and again."""
    for _ in range(ATTEMPTS_MAX):
        with suppress(Conflict):
            async with aclosing(object_ranges(store, key)) as ranges:
                parts = [part async for part in ranges]
            return b"".join(part.data for part in parts), parts[0].stat
    raise Conflict("the object is replaced faster than it can be read")


async def read_from(store: ObjectStore, key: bytes, offset: int) -> bytes:
    """The object from `offset` on; with a negative `offset` its last bytes, as many.

    Raises as `read_object`.
    """
    for _ in range(ATTEMPTS_MAX):
        stat = await store.stat(key)
        start = max(0, stat.size + offset) if offset < 0 else min(offset, stat.size)
        with suppress(Conflict):
            part = await range_of(store, key, stat, start, stat.size - start)
            return bytes(part.data)
    raise Conflict("the object is replaced faster than it can be read")


# Writing -----------------------------------------------------------------------------------------


class Blocks:
    """Cuts pieces of any length into blocks of `TRANSFER_BYTES_MAX`."""

    def __init__(self) -> None:
        self._held: list[memoryview] = []
        self._size = 0

    def add(self, piece: Buffer) -> Iterator[bytes]:
        """The blocks that are complete with `piece`; to be exhausted."""
        view = memoryview(piece).cast("B")
        while view:
            part = view[: TRANSFER_BYTES_MAX - self._size]
            self._held.append(part)
            self._size += len(part)
            view = view[len(part) :]
            if self._size == TRANSFER_BYTES_MAX:
                yield self.rest()

    def rest(self) -> bytes:
        """What no block was made of yet."""
        block = b"".join(self._held)
        self._held, self._size = [], 0
        return block


async def write_object(
    store: ObjectStore,
    pieces: AsyncIterable[Buffer],
    key: bytes = b"",
    condition: Condition = ANY,
    size: int | None = None,
) -> ObjectStat:
    """Puts what `pieces` give, `size` bytes in all if that is known.

    Raises as `ObjectStore.put`, and what `pieces` raise.
    """
    async with aclosing(_blocks(pieces)) as blocks:
        first = await anext(blocks, b"")
        second = await anext(blocks, None)
        if second is None:
            return await store.put(first, key, condition)
        sink = await store.begin(key, condition, size)
        try:
            await sink.write(first)
            await sink.write(second)
            async for block in blocks:
                await sink.write(block)
            return await sink.commit()
        except BaseException:
            # Where the connection is what failed, the service gives up by itself.
            with suppress(StorageError, TransportError):
                await sink.abort()
            raise


async def _blocks(pieces: AsyncIterable[Buffer]) -> AsyncGenerator[bytes, None]:
    blocks = Blocks()
    async for piece in pieces:
        for block in blocks.add(piece):
            yield block
    if last := blocks.rest():
        yield last


# All of a store ----------------------------------------------------------------------------------


async def object_pages(
    store: ObjectStore, prefix: bytes = b""
) -> AsyncGenerator[Sequence[ObjectStat], None]:
    """The pages of a listing.  Raises as `ObjectStore.list`, and `Corrupt` for one without end."""
    last = b""
    more = True
    while more:
        page = await store.list(prefix, last)
        more = page.more
        if more:
            last = last_of([stat.key for stat in page.objects], last)
        yield page.objects


async def binding_pages(names: Namespace) -> AsyncGenerator[Sequence[Binding], None]:
    """As `object_pages`, of names."""
    last = ""
    more = True
    while more:
        page = await names.list(last)
        more = page.more
        if more:
            last = last_of([each.name.encode() for each in page.bindings], last.encode()).decode()
        yield page.bindings


async def namespace_at(names: Namespace, path: Sequence[str]) -> Namespace:
    """The namespace at `path` below `names`.  Raises `InvalidName`, and as `Namespace.sub`."""
    for name in path:
        names = await names.sub(name)
    return names


def last_of(keys: Sequence[bytes], after: bytes) -> bytes:
    """The key behind which to go on, where `keys` came after `after`.  Raises `Corrupt`."""
    if not keys or keys[-1] <= after:
        raise Corrupt("the store gives a listing that does not go forward")
    return keys[-1]


async def remove_objects(
    store: ObjectStore, prefix: bytes = b"", only: Callable[[bytes], bool] = bool
) -> None:
    """Removes every object whose key begins with `prefix`, page by page; `only` may spare some.

    Raises as `ObjectStore.list` and `delete`.
    """
    async with aclosing(object_pages(store, prefix)) as pages:
        async for objects in pages:
            keys = [stat.key for stat in objects if only(stat.key)]
            for start in range(0, len(keys), BATCH_CHANGES_MAX):
                await _remove_some(store, keys[start : start + BATCH_CHANGES_MAX])


async def _remove_some(store: ObjectStore, keys: Sequence[bytes]) -> None:
    try:
        await store.batch([Delete(key) for key in keys])
    except NotFound:
        # Somebody else removes too: one by one, nothing is missed.
        for key in keys:
            with suppress(NotFound):
                await store.delete(key)
