"""Stores under a grant and a scope: which keys, and what may be done with them.

Invariants:

* A guarded store is the backer's store, a `Grant` and a `Scope`.  Whatever narrows it gives the
  same store under a narrower grant or scope, so a call passes one guard however deep.
* Authority is decided before keys and arguments are looked at, and before the backer is: first the
  grant (`Revoked`, `Expired`, `ReadOnly`), then the scope (`Denied`), then quota and rate.
* No key outside the scope's prefix reaches the backer, none comes back.
* A drop box never meets what is there: see `Scope.target`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from capstore.backers.store import (
    ANY,
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
from capstore.schema.errors import (
    Busy,
    Denied,
    InvalidArgument,
    NotFound,
    Revoked,
    TooLarge,
)
from capstore.schema.limits import (
    BATCH_CHANGES_MAX,
    KEY_BYTES_MAX,
    OBJECT_BYTES_MAX,
    PAGE_ENTRIES_MAX,
)
from capstore.schema.nodes import Buffer, Usage
from capstore.service.grants import Effect, Grant, Policy
from capstore.service.name_guard import GuardedNamespace
from capstore.service.quota import give_back, reserve, uninterrupted

T = TypeVar("T")

_OBSERVE, _CHANGE = Effect.OBSERVE, Effect.CHANGE

# What a scope allows; the bits are in saved references.
GET, LIST, PUT, DELETE, DROP = 1, 2, 4, 8, 16
ALL = GET | LIST | PUT | DELETE

_HASH_BYTES = 32
# What a drop box adds to a key, as hexadecimal digits: no two are ever the same.
_DROP_BYTES = 16
_READ_AGAIN_MAX = 8


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be done (`verbs`), and with the keys below which `prefix`."""

    verbs: int = ALL
    prefix: bytes = b""

    @property
    def whole(self) -> bool:
        """Whether it is the whole key space with all that can be done with it."""
        return self.verbs == ALL and not self.prefix

    @property
    def handle(self) -> bytes:
        """As a saved reference holds it; nothing for the whole."""
        return b"" if self.whole else bytes([self.verbs]) + self.prefix

    @staticmethod
    def of(handle: bytes) -> Scope:
        """The scope of a handle.  Raises `NotFound` for what is none."""
        if not handle:
            return Scope()
        if not 0 < handle[0] <= ALL | DROP or len(handle) > 1 + KEY_BYTES_MAX:
            raise NotFound("what was saved is gone")
        return Scope(handle[0], handle[1:])

    def demand(self, verb: int) -> None:
        """Raises `Denied` where `verb` is withheld."""
        if not self.verbs & verb:
            raise Denied("this capability of a store does not allow that")

    def only(self, needed: int, verbs: int) -> Scope:
        """The scope with nothing but `verbs`.  Raises `Denied` where none of `needed` is there."""
        self.demand(needed)
        return replace(self, verbs=verbs)

    def below(self, prefix: bytes) -> Scope:
        """The part of it below `prefix`.  Raises `InvalidArgument` for one that leaves no key."""
        whole = self.prefix + prefix
        if len(whole) >= KEY_BYTES_MAX:
            raise InvalidArgument(f"a prefix has fewer than {KEY_BYTES_MAX} bytes in all")
        return replace(self, prefix=whole)

    def key(self, key: bytes) -> bytes:
        """The store's own key.  Raises `InvalidArgument`."""
        check_key(key)
        return check_key(self.prefix + key) if self.prefix else key

    def target(self, key: bytes, condition: Condition) -> tuple[bytes, Condition]:
        """Where a put goes, and what it demands.

        In a drop box that is a new key, whatever is there: neither the answer nor the time it
        takes tells of a key or a content that exists, and nothing is ever lost.  Raises `Denied`
        for a condition there, `InvalidArgument` for a key that is none.
        """
        if self.verbs & DROP and not self.verbs & PUT:
            if condition != ANY:
                raise Denied("a drop box does not tell what is there")
            unique = secrets.token_hex(_DROP_BYTES).encode()
            return check_key(self.prefix + key + unique), Condition(absent=True)
        if not key and self.prefix:
            raise InvalidArgument("below a prefix a put needs a key: the hash of a content is none")
        return (self.key(key) if key else key), condition

    def shown(self, stat: ObjectStat) -> ObjectStat:
        """`stat` as the holder may see it."""
        if self.prefix:
            stat = replace(stat, key=stat.key[len(self.prefix) :])
        # A version tells how much was put by all.
        return stat if self.verbs & (GET | PUT) else replace(stat, version=0)


def check_size(size: int) -> None:
    """Raises `TooLarge` for what no object has."""
    if size > OBJECT_BYTES_MAX:
        raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes")


class GuardedStore(ObjectStore):
    """A store under a grant and a scope."""

    wire_kind = "store"

    def __init__(self, store: ObjectStore, grant: Grant, scope: Scope) -> None:
        self._store: ObjectStore | None = store
        self.grant = grant
        self.scope = scope
        grant.adopt(self)

    def release(self) -> None:
        """Drops the store; the grant has ended."""
        self._store = None

    @property
    def handle(self) -> bytes:
        """By which a saved reference finds it."""
        return self.scope.handle

    @property
    def _inner(self) -> ObjectStore:
        if self._store is None:
            raise Revoked("the capability was revoked")
        return self._store

    def _begin(self, effect: Effect, verb: int, size: int = 0) -> ObjectStore:
        """The backer's store, if such a call may run now."""
        grant = self.grant
        grant.check(effect)
        if not self.scope.verbs & verb:
            self.scope.demand(verb)
        for pace in grant.paces:
            pace.begin()
        if size:
            self._moved(size)
        return self._inner

    def _moved(self, size: int) -> None:
        for pace in self.grant.paces:
            pace.moved(size)

    # Reading ---------------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes:
        store = self._begin(_OBSERVE, GET)
        data = await store.get(self.scope.key(key))
        self.grant.check(_OBSERVE)
        self._moved(len(data))
        return data

    async def get_with(self, key: bytes, size: int, *, again: bool = False) -> ObjectRange:
        """The whole object if it has at most `size` bytes, else its beginning, and what is known of
        it; `again` is no further call to any rate.  Raises as `get`, and `Busy`."""
        self.grant.check(_OBSERVE)
        self.scope.demand(GET)
        for pace in () if again else self.grant.paces:
            pace.begin()
        store, full = self._inner, self.scope.key(key)
        for _ in range(_READ_AGAIN_MAX):
            found = await store.read(full, 0, size)
            if found.stat.size > size or await _is_as_hashed(store, full, found.data):
                self.grant.check(_OBSERVE)
                self._moved(len(found.data))
                return found
        raise Busy("the object changes too often to be read")

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        store = self._begin(_OBSERVE, GET)
        found = await store.read(self.scope.key(key), offset, length)
        self.grant.check(_OBSERVE)
        self._moved(len(found.data))
        return replace(found, stat=self.scope.shown(found.stat)) if self.scope.prefix else found

    async def stat(self, key: bytes) -> ObjectStat:
        store = self._begin(_OBSERVE, GET)
        stat = await store.stat(self.scope.key(key))
        self.grant.check(_OBSERVE)
        return self.scope.shown(stat)

    async def has(self, key: bytes) -> bool:
        store = self._begin(_OBSERVE, GET)
        present = await store.has(self.scope.key(key))
        self.grant.check(_OBSERVE)
        return present

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        store = self._begin(_OBSERVE, LIST)
        own = self.scope.prefix
        page = await store.list(own + prefix, own + after, limit)
        self.grant.check(_OBSERVE)
        if not own:
            return page
        return replace(page, objects=[self.scope.shown(stat) for stat in page.objects])

    async def usage(self) -> Usage:
        store = self._begin(_OBSERVE, LIST)
        if self.grant.books:
            return self._quota()
        if self.scope.prefix:
            raise Denied("the usage of the whole store is not told below a prefix")
        usage = await store.usage()
        self.grant.check(_OBSERVE)
        return usage

    def _quota(self) -> Usage:
        """Of the innermost quota."""
        book = self.grant.books[-1]
        return Usage(
            total_bytes=book.bytes_max,
            used_bytes=book.bytes_used,
            free_bytes=max(0, book.bytes_max - book.bytes_used),
            total_nodes=book.nodes_max,
            used_nodes=book.nodes_used,
        )

    async def sync(self) -> None:
        await self._begin(_OBSERVE, -1).sync()
        self.grant.check(_OBSERVE)

    # Changing --------------------------------------------------------------------------------

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        grant, size = self.grant, len(data)
        store = self._begin(_CHANGE, PUT | DROP, size)
        full, condition = self.scope.target(key, condition)
        check_size(size)
        with grant.changing():
            if grant.books:
                place = full or hashlib.sha256(data).digest()
                stat = await self._accounted(
                    {place: size}, lambda: store.put(data, full, condition)
                )
            else:
                stat = await store.put(data, full, condition)
        grant.check(_CHANGE)
        return self.scope.shown(stat)

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        grant = self.grant
        store = self._begin(_CHANGE, DELETE)
        full = self.scope.key(key)
        with grant.changing():
            if grant.books:
                await self._accounted({full: None}, lambda: store.delete(full, condition))
            else:
                await store.delete(full, condition)
        grant.check(_CHANGE)

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        grant = self.grant
        store = self._begin(_CHANGE, PUT | DELETE)
        if len(changes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        inner = [self._inner_change(change) for change in changes]
        with grant.changing():
            if grant.books:
                versions = await self._accounted(_sizes_after(inner), lambda: store.batch(inner))
            else:
                versions = await store.batch(inner)
        grant.check(_CHANGE)
        return versions

    def _inner_change(self, change: Change) -> Change:
        if isinstance(change, Put):
            self.scope.demand(PUT)
            check_size(len(change.data))
            self._moved(len(change.data))
            return replace(change, key=self.scope.target(change.key, change.condition)[0])
        self.scope.demand(DELETE)
        return replace(change, key=self.scope.key(change.key))

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> GuardedSink:
        grant = self.grant
        store = self._begin(_CHANGE, PUT | DROP)
        full, condition = self.scope.target(key, condition)
        check_size(size or 0)
        if grant.books:
            # Not reserved, for nothing may come: but what cannot fit is refused at once.
            for book in grant.books:
                book.check(size or 0, 0)
        with grant.changing():
            sink = await store.begin(full, condition, size)
        grant.check(_CHANGE)
        return GuardedSink(self, sink, full)

    async def _accounted(
        self, after: dict[bytes, int | None], change: Callable[[], Awaitable[T]], held: int = 0
    ) -> T:
        """Does `change`, behind which keys have the sizes `after` (None: they are gone).

        Of the room it takes, `held` bytes are reserved already.  Raises `QuotaExceeded`.
        """
        return await uninterrupted(self._accounted_to_its_end(after, change, held))

    async def _accounted_to_its_end(
        self, after: dict[bytes, int | None], change: Callable[[], Awaitable[T]], held: int
    ) -> T:
        books, store = self.grant.books, self._inner
        held_nodes = 0
        try:
            async with self.grant.served.locks.held(after):
                size = nodes = 0
                for key, size_after in after.items():
                    size_before = await _size_of(store, key)
                    size += (size_after or 0) - (size_before or 0)
                    nodes += (size_after is not None) - (size_before is not None)
                more_bytes, more_nodes = max(0, size - held), max(0, nodes)
                reserve(books, more_bytes, more_nodes)
                held, held_nodes = held + more_bytes, more_nodes
                result = await change()
        except BaseException:
            give_back(books, held, held_nodes)
            raise
        give_back(books, held - size, held_nodes - nodes)
        return result

    # Narrowing -------------------------------------------------------------------------------

    def _scoped(self, scope: Scope) -> GuardedStore:
        return GuardedStore(self._inner, self.grant, scope)

    def get_only(self) -> GuardedStore:
        """The same store to get by key from, and nothing else.  Raises `Denied`."""
        self.grant.check(_OBSERVE)
        return self._scoped(self.scope.only(GET, GET))

    def put_only(self) -> GuardedStore:
        """The same store as a drop box.  Raises `Denied`."""
        self.grant.check(_OBSERVE)
        return self._scoped(self.scope.only(PUT | DROP, DROP))

    def sub_store(self, prefix: bytes) -> GuardedStore:
        """The part of it below `prefix`.  Raises `InvalidArgument`."""
        self.grant.check(_OBSERVE)
        return self._scoped(self.scope.below(prefix))

    def narrowed(self, policy: Policy) -> GuardedStore:
        """The same store with less authority."""
        self.grant.check(_OBSERVE)
        return GuardedStore(self._inner, self.grant.derive(policy), self.scope)

    # The store as a whole --------------------------------------------------------------------

    def _whole(self) -> ObjectStore:
        self.grant.check(_CHANGE)
        if self.grant.attenuated or not self.scope.whole:
            raise Denied("that is for who holds the whole store")
        return self._inner

    async def compact(self) -> None:
        store = self._whole()
        with self.grant.changing():
            await store.compact()
        self.grant.check(_CHANGE)

    async def collect(self, older_than: float = 0.0) -> Collected:
        store = self._whole()
        with self.grant.changing():
            collected = await store.collect(older_than)
        self.grant.check(_CHANGE)
        return collected

    @property
    def names(self) -> Namespace:
        return self.namespace()

    def namespace(self) -> GuardedNamespace:
        """The names over the store.  Raises `Denied`, `Unsupported`."""
        self.grant.check(_OBSERVE)
        if not self.scope.whole:
            raise Denied("the names are for who holds the whole store")
        # Names take room that no quota counts.
        grant = self.grant.reading() if self.grant.books else self.grant
        return GuardedNamespace(self._inner.names, grant, (), grant.reference_id)

    async def close(self) -> None:
        raise Denied("a store is closed by who serves it")


async def _size_of(store: ObjectStore, key: bytes) -> int | None:
    try:
        return (await store.stat(key)).size
    except NotFound:
        return None


def _sizes_after(changes: Sequence[Change]) -> dict[bytes, int | None]:
    after: dict[bytes, int | None] = {}
    for change in changes:
        if isinstance(change, Put):
            after[change.key or hashlib.sha256(change.data).digest()] = len(change.data)
        else:
            after[change.key] = None
    return after


async def _is_as_hashed(store: ObjectStore, key: bytes, data: Buffer) -> bool:
    """Whether `data` is what the object `key` had at one moment, as far as its hash tells.

    A range is checked by the checksums of what it is of; the hash of a whole is looked at here,
    and where it differs the store is asked what that means.  Raises `Corrupt`, `NotFound`.
    """
    if len(key) != _HASH_BYTES or hashlib.sha256(data).digest() == key:
        return True
    return await store.get(key) == data


class GuardedSink(ObjectSink):
    """One put in pieces; its room is given back when it ends in any way but `commit`."""

    def __init__(self, store: GuardedStore, sink: ObjectSink, key: bytes) -> None:
        self._store = store
        self._sink: ObjectSink | None = sink
        self._key = key
        self.grant = store.grant
        self._size = self._held = 0
        self._hash = hashlib.sha256() if self.grant.books and not key else None
        self.grant.adopt(self)

    def release(self) -> None:
        """Drops the sink; the grant has ended."""
        self._sink = None
        self._give_back()

    def __del__(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        held, self._held = self._held, 0
        give_back(self.grant.books, held, 0)

    @property
    def _inner(self) -> ObjectSink:
        if self._sink is None:
            raise Revoked("the capability was revoked")
        return self._sink

    async def write(self, data: Buffer) -> None:
        grant, size = self.grant, len(data)
        grant.check(_CHANGE)
        for pace in grant.paces:
            pace.begin()
            pace.moved(size)
        check_size(self._size + size)
        sink = self._inner
        if grant.books:
            reserve(grant.books, size, 0)
            self._held += size
        if self._hash is not None:
            self._hash.update(data)
        with grant.changing():
            await sink.write(data)
        self._size += size
        grant.check(_CHANGE)

    async def commit(self) -> ObjectStat:
        grant = self.grant
        grant.check(_CHANGE)
        sink = self._inner
        with grant.changing():
            if grant.books:
                stat = await self._accounted(sink)
            else:
                stat = await sink.commit()
        grant.check(_CHANGE)
        return self._store.scope.shown(stat)

    async def _accounted(self, sink: ObjectSink) -> ObjectStat:
        key = self._key or (self._hash.digest() if self._hash else b"")
        # From here on the store's accounting holds the room, and gives it back when this fails.
        held, self._held = self._held, 0
        return await self._store._accounted({key: self._size}, sink.commit, held)

    async def abort(self) -> None:
        self.grant.check(_OBSERVE)
        await self._inner.abort()
        self._give_back()
