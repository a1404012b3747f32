"""What a store is, in dictionaries: the model, and the first store under test."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    Put,
    check_key,
)
from capstore.schema.errors import Closed, Conflict, Corrupt, InvalidArgument, NotFound, TooLarge
from capstore.schema.limits import BATCH_CHANGES_MAX, OBJECT_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Buffer, Provenance, Usage

Names = dict[tuple[str, ...], Binding]


@dataclass(frozen=True)
class Stored:
    """One object; `hashed` if it is under the hash of its data."""

    data: bytes
    stat: ObjectStat
    hashed: bool


@dataclass
class State:
    """All there is, as of one moment."""

    objects: dict[bytes, Stored] = field(default_factory=dict)
    names: Names = field(default_factory=dict)
    version: int = 0

    def next_version(self) -> int:
        self.version += 1
        return self.version

    def check(self, key: bytes, condition: Condition) -> None:
        stored = self.objects.get(key)
        check_condition(condition, stored.stat.version if stored else None)

    def put(self, data: Buffer, key: bytes, condition: Condition) -> ObjectStat:
        check_size(len(data))
        content = bytes(data)
        digest = hashlib.sha256(content).digest()
        key = check_key(key, empty=True) or digest
        self.check(key, condition)
        there = self.objects.get(key)
        if there is not None and there.hashed and key != digest:
            raise Conflict("the key is the hash of something else")
        stat = ObjectStat(
            key, len(content), self.next_version(), time.time_ns(), Provenance.WALL_CLOCK
        )
        self.objects[key] = Stored(content, stat, key == digest)
        return stat

    def delete(self, key: bytes, condition: Condition) -> None:
        if check_key(key) not in self.objects:
            raise NotFound("no such object")
        self.check(key, condition)
        del self.objects[key]


def check_condition(condition: Condition, version: int | None) -> None:
    if condition.absent and version is not None:
        raise Conflict("it is there")
    if condition.version is not None and condition.version != version:
        raise Conflict("it has another version")


def check_size(size: int) -> None:
    if size > OBJECT_BYTES_MAX:
        raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes")


class ModelStore(ObjectStore):
    def __init__(self) -> None:
        self._state = State()
        self.closed = False
        self.sinks_open = 0

    @property
    def state(self) -> State:
        if self.closed:
            raise Closed("the store was closed")
        return self._state

    def damage(self, key: bytes) -> None:
        """Turns a bit of an object over."""
        stored = self.state.objects[key]
        data = bytes([stored.data[0] ^ 1]) + stored.data[1:]
        self.state.objects[key] = replace(stored, data=data)

    def _stored(self, key: bytes) -> Stored:
        try:
            stored = self.state.objects[check_key(key)]
        except KeyError:
            raise NotFound("no such object") from None
        if stored.hashed and hashlib.sha256(stored.data).digest() != key:
            raise Corrupt("an object is not what its hash says")
        return stored

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        return self.state.put(data, key, condition)

    async def get(self, key: bytes) -> bytes:
        return self._stored(key).data

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        if offset < 0 or length < 0:
            raise InvalidArgument("offsets and lengths are not negative")
        stored = self._stored(key)
        return ObjectRange(stored.data[offset : offset + length], stored.stat)

    async def stat(self, key: bytes) -> ObjectStat:
        return self._stored(key).stat

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        self.state.delete(key, condition)

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        if len(changes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        after = replace(self.state, objects=dict(self.state.objects))
        versions = []
        for change in changes:
            if isinstance(change, Put):
                versions.append(after.put(change.data, change.key, change.condition).version)
            else:
                after.delete(change.key, change.condition)
                versions.append(0)
        self._state = after
        return versions

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> ObjectSink:
        check_size(size or 0)
        if check_key(key, empty=True):
            self.state.check(key, condition)
        return ModelSink(self, key, condition)

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        objects = self.state.objects
        keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return ObjectPage([objects[key].stat for key in keys[:limit]], len(keys) > limit)

    async def usage(self) -> Usage:
        objects = self.state.objects.values()
        return Usage(used_bytes=sum(each.stat.size for each in objects), used_nodes=len(objects))

    async def sync(self) -> None:
        self.state.next_version()

    async def close(self) -> None:
        self.closed = True

    async def compact(self) -> None:
        self.state.next_version()

    async def collect(self, older_than: float = 0.0) -> Collected:
        last, oldest = self.state.version, time.time_ns() - int(older_than * 1e9)
        objects = size = 0
        for key, stored in list(self.state.objects.items()):
            await asyncio.sleep(0)
            bound = any(binding.hash == key for binding in self.state.names.values())
            same = self.state.objects.get(key) is stored
            old = stored.stat.version <= last and stored.stat.created <= oldest
            if stored.hashed and same and old and not bound:
                del self.state.objects[key]
                objects, size = objects + 1, size + stored.stat.size
        return Collected(objects, size)

    @property
    def names(self) -> Namespace:
        return ModelNamespace(self, ())


class ModelSink(ObjectSink):
    def __init__(self, store: ModelStore, key: bytes, condition: Condition) -> None:
        self._store, self._key, self._condition = store, key, condition
        self._data: bytearray | None = bytearray()
        store.sinks_open += 1

    def _open(self) -> bytearray:
        if self._data is None or self._store.closed:
            raise Closed("it was committed or aborted")
        return self._data

    async def write(self, data: Buffer) -> None:
        written = self._open()
        check_size(len(written) + len(data))
        written += data

    async def commit(self) -> ObjectStat:
        data = bytes(self._open())
        await self.abort()
        return self._store.state.put(data, self._key, self._condition)

    async def abort(self) -> None:
        if self._data is not None:
            self._data = None
            self._store.sinks_open -= 1

    def __del__(self) -> None:
        if self._data is not None:
            self._store.sinks_open -= 1


class ModelNamespace(Namespace):
    def __init__(self, store: ModelStore, path: tuple[str, ...]) -> None:
        self._store, self._path = store, path

    def _at(self, name: str) -> tuple[str, ...]:
        return (*self._path, check_name(name))

    async def resolve(self, name: str) -> Binding:
        at, names = self._at(name), self._store.state.names
        if at not in names:
            raise NotFound("no such name")
        return names[at]

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        at, state = self._at(binding.name), self._store.state
        if (binding.hash is None) == (binding.reference is None):
            raise InvalidArgument("a name stands for a hash or for a reference")
        there = state.names.get(at)
        check_condition(condition, there.version if there else None)
        if binding.hash is not None:
            stored = state.objects.get(binding.hash)
            if stored is None or not stored.hashed:
                raise NotFound("no such content")
        state.names[at] = replace(binding, version=state.next_version())
        return state.version

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        there = await self.resolve(name)
        check_condition(condition, there.version)
        del self._store.state.names[self._at(name)]

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        names = self._store.state.names
        mine = [names[at] for at in sorted(names) if at[:-1] == self._path]
        found = [each for each in mine if each.name.encode() > after.encode()]
        found.sort(key=lambda binding: binding.name.encode())
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return BindingPage(found[:limit], len(found) > limit)

    async def sub(self, name: str) -> Namespace:
        return ModelNamespace(self._store, self._at(name))
