"""Dry runs of stores: changes are remembered over a store that stays as it is.

Invariants:

* Nothing here writes to the store below.
* A dry run remembers at most `DRY_BYTES_MAX` (keys, data and names) and `DRY_NODES_MAX` changes;
  beyond that is `NoSpace`.
* Changes are looked up, decided and remembered one at a time.
* Versions of what was put in the dry run are above all that a store gives.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from capstore.backers.store import (
    ANY,
    Binding,
    BindingPage,
    Change,
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
from capstore.schema.errors import (
    Closed,
    Conflict,
    Denied,
    InvalidArgument,
    NoSpace,
    NotFound,
)
from capstore.schema.limits import (
    DRY_BYTES_MAX,
    DRY_NODES_MAX,
    PAGE_ENTRIES_MAX,
    TRANSFER_BYTES_MAX,
)
from capstore.schema.names import check_name
from capstore.schema.nodes import Buffer, Provenance, Usage
from capstore.service.dry import begin_run
from capstore.service.grants import Grant

__all__ = ["DryNamespace", "DryStore"]

K = TypeVar("K", bytes, str)
V = TypeVar("V")

_VERSION_FIRST: Final = 2**62
# What a change takes beside its key and data, about.
_CHANGE_BYTES: Final = 256
_HASH_BYTES: Final = 32


class _Room:
    """What is left to remember changes in."""

    __slots__ = ("bytes_used", "changes")

    def __init__(self) -> None:
        self.bytes_used = self.changes = 0

    def take(self, size: int, changes: int = 0) -> None:
        """Raises `NoSpace` where it does not fit."""
        if self.bytes_used + size > DRY_BYTES_MAX or self.changes + changes > DRY_NODES_MAX:
            raise NoSpace(f"a dry run remembers at most {DRY_BYTES_MAX} bytes")
        self.bytes_used += size
        self.changes += changes


class _Object:
    """An object that was put in the dry run."""

    __slots__ = ("data", "hashed", "stat")

    def __init__(self, data: bytes, stat: ObjectStat, *, hashed: bool) -> None:
        self.data = data
        self.stat = stat
        self.hashed = hashed

    @property
    def room(self) -> int:
        """What it takes."""
        return len(self.data) + len(self.stat.key) + _CHANGE_BYTES


class DryStore(ObjectStore):
    """A store, and what was changed over it; None is what was deleted."""

    def __init__(self, base: ObjectStore, grant: Grant) -> None:
        """Raises `Busy` for one dry run too many."""
        self.base = base
        self.room = _Room()
        self._changes: dict[bytes, _Object | None] = {}
        self._version = _VERSION_FIRST
        self.changing = asyncio.Lock()
        self._names: DryNamespace | None = None
        # References that names in the dry run may stand for.
        self.bound: set[int] = set()
        begin_run(grant, self)

    def __repr__(self) -> str:
        return f"<DryStore of {len(self._changes)} changes over {self.base!r}>"

    def next_version(self) -> int:
        """A version that nothing had before."""
        self._version += 1
        return self._version

    # Reading -------------------------------------------------------------------------------------

    def _changed(self, key: bytes) -> _Object | None:
        """What was put; None for what is as below.  Raises `NotFound` for what was deleted."""
        if key not in self._changes:
            return None
        found = self._changes[key]
        if found is None:
            raise NotFound("no such object")
        return found

    async def get(self, key: bytes) -> bytes:
        found = self._changed(check_key(key))
        return await self.base.get(key) if found is None else found.data

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        found = self._changed(check_key(key))
        if found is None:
            return await self.base.read(key, offset, length)
        if offset < 0 or length < 0:
            raise InvalidArgument("a range begins and ends in the object")
        return ObjectRange(found.data[offset : offset + length], found.stat)

    async def stat(self, key: bytes) -> ObjectStat:
        found = self._changed(check_key(key))
        return await self.base.stat(key) if found is None else found.stat

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        while True:
            page = await self.base.list(prefix, after, limit)
            last = page.objects[-1].key if page.more else None
            known = {stat.key: stat for stat in page.objects}
            put = {
                key: None if each is None else each.stat
                for key, each in self._changes.items()
                if key.startswith(prefix)
            }
            merged, more = _merged(known, put, after, last, limit)
            if merged or last is None:
                return ObjectPage(merged, more)
            after = last

    async def usage(self) -> Usage:
        usage = await self.base.usage()
        more = sum(each.stat.size for each in self._changes.values() if each is not None)
        return Usage(
            total_bytes=usage.total_bytes,
            used_bytes=usage.used_bytes + more,
            free_bytes=max(0, usage.free_bytes - more),
            total_nodes=usage.total_nodes,
            used_nodes=usage.used_nodes,
            label=usage.label,
        )

    async def sync(self) -> None:
        """Nothing was changed."""

    # Changing ------------------------------------------------------------------------------------

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        async with self.changing:
            made = await self._decided(Put(key, data, condition), {})
            assert made is not None  # noqa: S101 - a put makes something
            self._remember({made.stat.key: made})
            return made.stat

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        check_key(key)
        async with self.changing:
            now = await self._now(key, {})
            _demand(condition, now)
            if now is None:
                raise NotFound("no such object")
            self._remember({key: None})

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        async with self.changing:
            made: dict[bytes, _Object | None] = {}
            versions = []
            for change in changes:
                one = await self._decided(change, made)
                made[change.key if one is None else one.stat.key] = one
                versions.append(0 if one is None else one.stat.version)
            self._remember(made)
            return versions

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> DrySink:
        if key:
            check_key(key)
            _demand(condition, await self._now(key, {}))
        return DrySink(self, key, condition)

    async def _decided(
        self, change: Change, made: Mapping[bytes, _Object | None]
    ) -> _Object | None:
        """What a change would leave, behind those that `made` something; raises what it would."""
        if not isinstance(change, Put):
            now = await self._now(check_key(change.key), made)
            _demand(change.condition, now)
            if now is None:
                raise NotFound("no such object")
            return None
        data = bytes(change.data)
        key = check_key(change.key) if change.key else hashlib.sha256(data).digest()
        now = await self._now(key, made)
        _demand(change.condition, now)
        hashed = len(key) == _HASH_BYTES and hashlib.sha256(data).digest() == key
        if now is not None and not hashed and await self._is_hashed(key, now, made):
            raise Conflict("a content is under its hash")
        stat = ObjectStat(
            key, len(data), self.next_version(), time.time_ns(), Provenance.WALL_CLOCK
        )
        return _Object(data, stat, hashed=hashed)

    async def _now(self, key: bytes, made: Mapping[bytes, _Object | None]) -> ObjectStat | None:
        for changes in (made, self._changes):
            if key in changes:
                found = changes[key]
                return None if found is None else found.stat
        try:
            return await self.base.stat(key)
        except NotFound:
            return None

    async def _is_hashed(
        self, key: bytes, now: ObjectStat, made: Mapping[bytes, _Object | None]
    ) -> bool:
        """Whether the object, which is there, is a content under its hash, as far as that is told
        without reading a long one."""
        found = made.get(key) or self._changes.get(key)
        if found is not None:
            return found.hashed
        if len(key) != _HASH_BYTES or now.size > TRANSFER_BYTES_MAX:
            return len(key) == _HASH_BYTES
        return hashlib.sha256(await self.base.get(key)).digest() == key

    def _remember(self, made: Mapping[bytes, _Object | None]) -> None:
        size = changes = 0
        for key, each in made.items():
            before = self._changes.get(key)
            size += _room(key, each) - (_room(key, before) if key in self._changes else 0)
            changes += key not in self._changes
        self.room.take(size, changes)
        self._changes |= made

    async def close(self) -> None:
        raise Denied("a store is closed by who serves it")

    @property
    def names(self) -> DryNamespace:
        """The names over this store.  Raises `Unsupported`."""
        if self._names is None:
            self._names = DryNamespace(self, self.base.names, _Names())
        return self._names


def _room(key: bytes, each: _Object | None) -> int:
    return len(key) + _CHANGE_BYTES if each is None else each.room


def _demand(condition: Condition, now: ObjectStat | Binding | None) -> None:
    """Raises `Conflict` where a condition does not hold."""
    if condition.absent and now is not None:
        raise Conflict("the key is taken")
    if condition.version is not None and (now is None or now.version != condition.version):
        raise Conflict("the version is not the expected one")


def _merged(
    known: Mapping[K, V], changed: Mapping[K, V | None], after: K, last: K | None, limit: int
) -> tuple[list[V], bool]:
    """A page of what is known up to `last` (None: to the end), with what was changed over it; and
    whether more follows."""
    merged: dict[K, V | None] = {**known} | {
        key: value
        for key, value in changed.items()
        if key > after and (last is None or key <= last)
    }
    there = [(key, merged[key]) for key in sorted(merged) if merged[key] is not None]
    found = [value for _, value in there[:limit] if value is not None]
    return found, last is not None or len(there) > limit


class DrySink(ObjectSink):
    """A put in pieces over a dry run."""

    def __init__(self, store: DryStore, key: bytes, condition: Condition) -> None:
        self._store = store
        self._key = key
        self._condition = condition
        self._data: bytearray | None = bytearray()

    def _piece(self) -> bytearray:
        if self._data is None:
            raise Closed("the put has ended")
        return self._data

    def _end(self) -> bytes:
        data = bytes(self._piece())
        self._data = None
        self._store.room.take(-len(data))
        return data

    def __del__(self) -> None:
        if self._data is not None:
            self._end()

    async def write(self, data: Buffer) -> None:
        piece = self._piece()
        self._store.room.take(len(data))
        piece += data

    async def commit(self) -> ObjectStat:
        return await self._store.put(self._end(), self._key, self._condition)

    async def abort(self) -> None:
        if self._data is not None:
            self._end()


# Names -------------------------------------------------------------------------------------------


class _Names:
    """What was changed in one namespace, and in those below it."""

    __slots__ = ("below", "bindings")

    def __init__(self) -> None:
        self.bindings: dict[str, Binding | None] = {}
        self.below: dict[str, _Names] = {}


class DryNamespace(Namespace):
    """The names over a store, and what was changed in the dry run."""

    def __init__(self, store: DryStore, base: Namespace, names: _Names) -> None:
        self._store = store
        self._base = base
        self._changes = names

    @property
    def bound(self) -> set[int]:
        """References that names in the dry run may stand for."""
        return self._store.bound

    async def _now(self, name: str) -> Binding | None:
        if name in self._changes.bindings:
            return self._changes.bindings[name]
        try:
            return await self._base.resolve(name)
        except NotFound:
            return None

    async def resolve(self, name: str) -> Binding:
        found = await self._now(check_name(name))
        if found is None:
            raise NotFound("no such name")
        return found

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        check_name(binding.name)
        if (binding.hash is None) == (binding.reference is None):
            raise InvalidArgument("a name stands for a hash or for a reference")
        store = self._store
        async with store.changing:
            _demand(condition, await self._now(binding.name))
            if binding.hash is not None:
                await store.stat(binding.hash)
            version = store.next_version()
            made = Binding(binding.name, version, binding.hash, binding.reference)
            self._remember(binding.name, made)
            return version

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        check_name(name)
        async with self._store.changing:
            now = await self._now(name)
            _demand(condition, now)
            if now is None:
                raise NotFound("no such name")
            self._remember(name, None)

    def _remember(self, name: str, binding: Binding | None) -> None:
        if name not in self._changes.bindings:
            self._store.room.take(len(name.encode()) + _CHANGE_BYTES, 1)
        self._changes.bindings[name] = binding

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        while True:
            page = await self._base.list(after, limit)
            last = page.bindings[-1].name if page.more else None
            known = {each.name: each for each in page.bindings}
            merged, more = _merged(known, self._changes.bindings, after, last, limit)
            if merged or last is None:
                return BindingPage(merged, more)
            after = last

    async def sub(self, name: str) -> DryNamespace:
        base = await self._base.sub(check_name(name))
        below = self._changes.below.get(name)
        if below is None:
            self._store.room.take(len(name.encode()) + _CHANGE_BYTES, 1)
            below = self._changes.below[name] = _Names()
        return DryNamespace(self._store, base, below)
