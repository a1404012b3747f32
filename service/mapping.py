"""A store as a mapping of keys to values, for programs that are not asynchronous.

Invariants:

* Usable from any thread.  The store lives on the background loop of the process, and nothing of it
  leaves that loop but bytes and what is known of objects.
* Keys are `bytes`, anything else is a TypeError; a key that no store holds is `InvalidArgument`.
  The methods of a mapping raise KeyError where there is no object, the others `NotFound`.
* Iterating is lazy, page by page, and shows each object that nobody touches meanwhile once.
* What reads and then changes (`pop`, `popitem`, `setdefault`) is atomic.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import (
    Callable,
    Coroutine,
    ItemsView,
    Iterable,
    Iterator,
    MutableMapping,
    Sequence,
    ValuesView,
)
from contextlib import contextmanager, suppress
from itertools import chain
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from capstore.backers.store import (
    ANY,
    Binding,
    Change,
    Collected,
    Condition,
    Namespace,
    ObjectRange,
    ObjectStat,
    ObjectStore,
    check_key,
)
from capstore.schema.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    StorageError,
    TransportError,
)
from capstore.schema.limits import TRANSFER_BYTES_MAX, WINDOW_BYTES, WINDOW_REQUESTS
from capstore.schema.nodes import Buffer, Usage
from capstore.service.object_streams import (
    ATTEMPTS_MAX,
    Blocks,
    last_of,
    namespace_at,
    range_of,
    read_object,
    remove_objects,
)
from capstore.service.store_session import Opening, StoreSession

T = TypeVar("T")

ABSENT = Condition(absent=True)
_NO_DEFAULT = object()
# Of values that are fetched ahead of who iterates over them.
_AHEAD_BYTES_MAX = WINDOW_REQUESTS * WINDOW_BYTES


class Readable(Protocol):
    """What `put_stream` reads: a file in binary mode, say."""

    def read(self, size: int, /) -> bytes: ...


@contextmanager
def _key_errors(key: bytes) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise KeyError(key) from error


def _checked(key: object) -> bytes:
    """`key` if it can be one.  Raises TypeError and `InvalidArgument`."""
    if not isinstance(key, bytes):
        raise TypeError(f"the keys of a store are bytes, not {type(key).__name__}")
    return check_key(key)


def _value(data: Buffer) -> Buffer:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the values of a store are bytes, not {type(data).__name__}")
    return data


class ObjectMapping(MutableMapping[bytes, bytes]):
    """The store that `opening` opens.

    Beside the methods of a mapping it has those of an `ObjectStore`, synchronous, and streams.
    Comparing mappings compares identity: nobody means to transfer two stores.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._session = StoreSession(opening)

    def __repr__(self) -> str:
        return f"<ObjectMapping of {self._opening!r}>"

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the store go; calls after it raise `Closed`, closing again nothing."""
        self._session.close()

    # A mapping -----------------------------------------------------------------------------------

    def __getitem__(self, key: bytes) -> bytes:
        checked = _checked(key)
        with _key_errors(key):
            return self._session.run(lambda store: store.get(checked))

    def __setitem__(self, key: bytes, value: Buffer) -> None:
        self.put(value, _checked(key))

    def __delitem__(self, key: bytes) -> None:
        with _key_errors(key):
            self.delete(key)

    def __contains__(self, key: object) -> bool:
        checked = _checked(key)
        return self._session.run(lambda store: store.has(checked))

    def __iter__(self) -> Iterator[bytes]:
        for objects in self._pages():
            for stat in objects:
                yield stat.key

    def __len__(self) -> int:
        return sum(map(len, self._pages()))

    def __bool__(self) -> bool:
        page = self._session.run(lambda store: store.list(limit=1))
        return bool(page.objects)

    def items(self) -> ItemsView[bytes, bytes]:
        """Keys and values; an object that is removed before its turn is passed over."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """The values, as `items` has them."""
        return _Values(self)

    def pop(self, key: bytes, /, default: Any = _NO_DEFAULT) -> Any:
        """Removes the object and returns its value: exactly what was removed."""
        checked = _checked(key)
        try:
            return self._session.run(lambda store: _taken(store, checked))
        except NotFound as error:
            if default is _NO_DEFAULT:
                raise KeyError(key) from error
            return default

    def popitem(self) -> tuple[bytes, bytes]:
        """Removes the first object in the order of keys.  Raises KeyError for an empty store."""
        for key in self:
            with suppress(KeyError):
                return key, self.pop(key)
        raise KeyError("the store is empty")

    def setdefault(self, key: bytes, default: Buffer, /) -> bytes:
        """The value of `key`, which becomes `default` if there is none."""
        checked, value = _checked(key), bytes(_value(default))
        return self._session.run(lambda store: _got_or_put(store, checked, value))

    def clear(self) -> None:
        """Removes all objects, page by page."""
        self._session.run(remove_objects)

    def _pages(self, prefix: bytes = b"") -> Iterator[Sequence[ObjectStat]]:
        last, more = b"", True
        while more:
            page = self._session.run(lambda store: store.list(prefix, last))  # noqa: B023 - at once
            more = page.more
            if more:
                last = last_of([stat.key for stat in page.objects], last)
            yield page.objects

    def _pairs(self) -> Iterator[tuple[bytes, bytes]]:
        for objects in self._pages():
            for group in _grouped(objects):
                keys = [stat.key for stat in group]
                values = self._session.run(lambda store: _values_of(store, keys))  # noqa: B023
                for key, value in zip(keys, values, strict=True):
                    if value is not None:
                        yield key, value

    # A store -------------------------------------------------------------------------------------

    def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        """See `ObjectStore.put`; with no key the object is under the SHA-256 of `data`."""
        value = _value(data)
        if key != b"":
            _checked(key)
        return self._session.run(lambda store: store.put(value, key, condition))

    def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        """See `ObjectStore.read`."""
        checked = _checked(key)

        async def read(store: ObjectStore) -> ObjectRange:
            part = await store.read(checked, offset, length)
            return ObjectRange(bytes(part.data), part.stat)

        return self._session.run(read)

    def stat(self, key: bytes) -> ObjectStat:
        """See `ObjectStore.stat`."""
        checked = _checked(key)
        return self._session.run(lambda store: store.stat(checked))

    def delete(self, key: bytes, condition: Condition = ANY) -> None:
        """See `ObjectStore.delete`."""
        checked = _checked(key)
        self._session.run(lambda store: store.delete(checked, condition))

    def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        """See `ObjectStore.batch`."""
        return self._session.run(lambda store: store.batch(changes))

    def list(self, prefix: bytes = b"") -> Iterator[ObjectStat]:
        """What is known of the objects whose keys begin with `prefix`, lazily, in their order."""
        for objects in self._pages(prefix):
            yield from objects

    def sync(self) -> None:
        """See `ObjectStore.sync`."""
        self._session.run(lambda store: store.sync())

    def usage(self) -> Usage:
        """See `ObjectStore.usage`."""
        return self._session.run(lambda store: store.usage())

    def compact(self) -> None:
        """See `ObjectStore.compact`."""
        self._session.run(lambda store: store.compact())

    def collect(self, older_than: float = 0.0) -> Collected:
        """See `ObjectStore.collect`."""
        return self._session.run(lambda store: store.collect(older_than))

    @property
    def names(self) -> ObjectNames:
        """The names over this store."""
        return ObjectNames(self._session)

    # Streams -------------------------------------------------------------------------------------

    def put_stream(
        self,
        source: Readable | Iterable[Buffer],
        key: bytes = b"",
        condition: Condition = ANY,
        size: int | None = None,
    ) -> ObjectStat:
        """Puts what a binary file has to read, or pieces, without holding it in memory.

        `size` is that of the whole, if it is known: what is too large is then refused at once.
        The object appears at the end, whole.  Raises as `ObjectStore.put` and what `source` raises.
        """
        if key != b"":
            _checked(key)
        blocks = _blocks(source)
        first, second = next(blocks, b""), next(blocks, None)
        if second is None:
            return self.put(first, key, condition)
        sink = self._session.run_keeping(lambda store: store.begin(key, condition, size))
        try:
            for block in chain((first, second), blocks):
                self._session.run(lambda _: sink.value.write(block))  # noqa: B023 - at once
            return self._session.run(lambda _: sink.value.commit())
        except BaseException:
            with suppress(StorageError, TransportError):
                self._session.run(lambda _: sink.value.abort())
            raise
        finally:
            sink.release()

    def get_stream(self, key: bytes) -> io.BufferedReader:
        """The object as a binary file, seekable; an object of any size takes one block of memory.

        What it reads is all of the version that was there when it was opened: where that is
        replaced or removed meanwhile, reading raises `Conflict`.  Raises `NotFound`.
        """
        checked = _checked(key)
        return io.BufferedReader(_ObjectReader(self._session, checked), TRANSFER_BYTES_MAX)


class _Items(ItemsView[bytes, bytes]):
    _mapping: ObjectMapping

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping._pairs()


class _Values(ValuesView[bytes]):
    _mapping: ObjectMapping

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping._pairs())

    def __contains__(self, value: object) -> bool:
        return any(value == each for each in self)


def _grouped(objects: Sequence[ObjectStat]) -> Iterator[Sequence[ObjectStat]]:
    """Parts that are worth a fetch at once: bounded in bytes, unless it is a single object."""
    group: list[ObjectStat] = []
    size = 0
    for stat in objects:
        if group and size + stat.size > _AHEAD_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(stat)
        size += stat.size
    if group:
        yield group


async def _values_of(store: ObjectStore, keys: Sequence[bytes]) -> Sequence[bytes | None]:
    """The values of `keys`, `WINDOW_REQUESTS` at a time; None for what is gone."""
    free = asyncio.Semaphore(WINDOW_REQUESTS)

    async def value(key: bytes) -> bytes | None:
        async with free:
            try:
                return await store.get(key)
            except NotFound:
                return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(value(key)) for key in keys]
    return [task.result() for task in tasks]


async def _taken(store: ObjectStore, key: bytes) -> bytes:
    """Removes the object and returns what was removed."""
    for _ in range(ATTEMPTS_MAX):
        data, stat = await read_object(store, key)
        with suppress(Conflict):
            await store.delete(key, Condition(version=stat.version))
            return data
    raise Conflict("the object is replaced faster than it can be taken")


async def _got_or_put(store: ObjectStore, key: bytes, value: bytes) -> bytes:
    for _ in range(ATTEMPTS_MAX):
        with suppress(NotFound):
            return await store.get(key)
        with suppress(Conflict):
            await store.put(value, key, ABSENT)
            return value
    raise Conflict("the object comes and goes faster than it can be read")


def _blocks(source: Readable | Iterable[Buffer]) -> Iterator[bytes]:
    pieces = source if isinstance(source, Iterable) else ()
    if (read := getattr(source, "read", None)) is not None:
        pieces = iter(lambda: read(TRANSFER_BYTES_MAX), b"")
    blocks = Blocks()
    for piece in pieces:
        yield from blocks.add(_value(piece))
    if last := blocks.rest():
        yield last


class _ObjectReader(io.RawIOBase):
    """One version of an object, range by range."""

    def __init__(self, session: StoreSession, key: bytes) -> None:
        super().__init__()
        self._session = session
        self._stat = session.run(lambda store: store.stat(key))
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._stat.size}[whence]
        if base + offset < 0:
            raise InvalidArgument("there is nothing in front of an object's start")
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), TRANSFER_BYTES_MAX, self._stat.size - self._offset))
        data = self._session.run(lambda store: self._range(store, length)) if length else b""
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)

    async def _range(self, store: ObjectStore, length: int) -> bytes:
        part = await range_of(store, self._stat.key, self._stat, self._offset, length)
        return bytes(part.data)


class ObjectNames:
    """The names over a store, at `path` below its top; see `Namespace`."""

    def __init__(self, session: StoreSession, path: tuple[str, ...] = ()) -> None:
        self._session = session
        self._path = path

    def _run(self, operation: Callable[[Namespace], Coroutine[Any, Any, T]]) -> T:
        async def run(store: ObjectStore) -> T:
            return await operation(await namespace_at(store.names, self._path))

        return self._session.run(run)

    def resolve(self, name: str) -> Binding:
        """See `Namespace.resolve`."""
        return self._run(lambda names: names.resolve(name))

    def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        """See `Namespace.bind`."""
        return self._run(lambda names: names.bind(binding, condition))

    def unbind(self, name: str, condition: Condition = ANY) -> None:
        """See `Namespace.unbind`."""
        self._run(lambda names: names.unbind(name, condition))

    def list(self) -> Iterator[Binding]:
        """The bindings, lazily, in the order of the names' bytes."""
        last, more = "", True
        while more:
            page = self._run(lambda names: names.list(last))  # noqa: B023 - at once
            more = page.more
            if more:
                names = [binding.name.encode() for binding in page.bindings]
                last = last_of(names, last.encode()).decode()
            yield from page.bindings

    def sub(self, name: str) -> ObjectNames:
        """The names below `name`."""
        return ObjectNames(self._session, (*self._path, name))
