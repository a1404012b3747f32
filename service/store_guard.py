"""Stores under a grant and a scope: which keys, and what may be done with them.

Invariants:

* A guarded store is the backer's store, a `Grant` and a `Scope`.  Whatever narrows it gives the
  same store under a narrower grant or scope, so a call passes one guard however deep.
* Authority is decided before keys and arguments are looked at, and before the backer is: first the
  grant (`Revoked`, `Expired`, `ReadOnly`, `Denied`), then the scope (`Denied`), then the key, the
  rate and the quota.
* No key outside the scope's prefix reaches the backer, none comes back; and none that is hidden.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
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
)
from capstore.schema.errors import (
    Busy,
    Denied,
    NotFound,
    Revoked,
    TooLarge,
)
from capstore.schema.limits import (
    BATCH_CHANGES_MAX,
    PAGE_ENTRIES_MAX,
)
from capstore.schema.nodes import Buffer, Usage
from capstore.service.decisions import Effect
from capstore.service.dry_store import DryStore
from capstore.service.grants import Grant, Policy
from capstore.service.hidden import below
from capstore.service.name_guard import GuardedNamespace
from capstore.service.quota import give_back, reserve, uninterrupted, usage_of
from capstore.service.scope import DELETE, DROP, GET, LIST, PUT, Scope, check_size

T = TypeVar("T")

__all__ = ["GuardedSink", "GuardedStore"]

_OBSERVE, _ADD, _CHANGE = Effect.OBSERVE, Effect.ADD, Effect.CHANGE

_HASH_BYTES = 32
_READ_AGAIN_MAX = 8


class GuardedStore(ObjectStore):
    """A store under a grant and a scope.

    `restored_from` is the id of the reference that it was restored from; 0 for any other.
    """

    wire_kind = "store"

    def __init__(
        self, store: ObjectStore, grant: Grant, scope: Scope, restored_from: int = 0
    ) -> None:
        self._store: ObjectStore | None = store
        self.grant = grant
        self.scope = scope
        self.restored_from = restored_from
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

    def _check(self, effect: Effect, verb: int) -> None:
        """Raises what such a call raises for want of authority."""
        self.grant.check(effect)
        if not self.scope.verbs & verb:
            self.scope.demand(verb)

    async def _begin(self, effect: Effect, size: int = 0) -> ObjectStore:
        """The backer's store, when a call that brings `size` bytes may go on."""
        if self.grant.paces:
            await self.grant.paced(effect, size)
        return self._inner

    def _moved(self, size: int) -> None:
        if self.grant.paces:
            self.grant.moved(size)

    def _key(self, key: bytes) -> bytes:
        """The store's own key.  Raises `InvalidArgument`, and `NotFound` for one that is hidden."""
        full = self.scope.key(key)
        self._check_shown(full)
        return full

    def _check_shown(self, full: bytes) -> None:
        hidden = self.grant.hidden
        if hidden is not None and hidden.key(full):
            raise NotFound("no such object")

    def _target(self, key: bytes, condition: Condition) -> tuple[bytes, Condition]:
        """Where a put goes, and what it demands: see `Scope.target`.  Who only adds never meets
        what is there, but for a content, which is the same again."""
        full, condition = self.scope.target(key, condition)
        if full:
            self._check_shown(full)
        if self.grant.append_only:
            if condition.version is not None:
                raise Denied("the capability only adds")
            condition = Condition(absent=True) if full else condition
        return full, condition

    def _check_size(self, size: int) -> None:
        """Raises `TooLarge` for what no object has, or none here."""
        check_size(size)
        if self.grant.max_file_bytes and size > self.grant.max_file_bytes:
            raise TooLarge(f"an object has at most {self.grant.max_file_bytes} bytes here")

    # Reading ---------------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes:
        self._check(_OBSERVE, GET)
        full = self._key(key)
        store = await self._begin(_OBSERVE)
        data = await store.get(full)
        self.grant.check(_OBSERVE)
        self._moved(len(data))
        return data

    async def get_with(self, key: bytes, size: int, *, again: bool = False) -> ObjectRange:
        """The whole object if it has at most `size` bytes, else its beginning, and what is known of
        it; `again` is no further call to any rate.  Raises as `get`, and `Busy`."""
        self._check(_OBSERVE, GET)
        full = self._key(key)
        store = self._inner if again else await self._begin(_OBSERVE)
        for _ in range(_READ_AGAIN_MAX):
            found = await store.read(full, 0, size)
            if found.stat.size > size or await _is_as_hashed(store, full, found.data):
                self.grant.check(_OBSERVE)
                self._moved(len(found.data))
                return found
        raise Busy("the object changes too often to be read")

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        self._check(_OBSERVE, GET)
        full = self._key(key)
        store = await self._begin(_OBSERVE)
        found = await store.read(full, offset, length)
        self.grant.check(_OBSERVE)
        self._moved(len(found.data))
        return replace(found, stat=self.scope.shown(found.stat)) if self.scope.prefix else found

    async def stat(self, key: bytes) -> ObjectStat:
        self._check(_OBSERVE, GET)
        full = self._key(key)
        store = await self._begin(_OBSERVE)
        stat = await store.stat(full)
        self.grant.check(_OBSERVE)
        return self.scope.shown(stat)

    async def has(self, key: bytes) -> bool:
        self._check(_OBSERVE, GET)
        full = self.scope.key(key)
        store = await self._begin(_OBSERVE)
        hidden = self.grant.hidden
        present = (hidden is None or not hidden.key(full)) and await store.has(full)
        self.grant.check(_OBSERVE)
        return present

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        self._check(_OBSERVE, LIST)
        store, own = await self._begin(_OBSERVE), self.scope.prefix
        if self.grant.hidden is None:
            page = await store.list(own + prefix, own + after, limit)
        else:
            page = await self._page(store, own + prefix, own + after, limit)
        self.grant.check(_OBSERVE)
        if not own:
            return page
        return replace(page, objects=[self.scope.shown(stat) for stat in page.objects])

    async def _page(
        self, store: ObjectStore, prefix: bytes, after: bytes, limit: int
    ) -> ObjectPage:
        """A page of what is not hidden, as full as any."""
        hidden = self.grant.hidden
        assert hidden is not None  # noqa: S101 - asked by `list`
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        found: list[ObjectStat] = []
        seen = 0
        while True:
            page = await store.list(prefix, after, limit + 1)
            for stat in page.objects:
                seen += 1
                if seen % hidden.pause == 0:
                    await asyncio.sleep(0)
                if not hidden.key(stat.key):
                    if len(found) == limit:
                        return ObjectPage(found, more=True)
                    found.append(stat)
            if not page.more:
                return ObjectPage(found)
            after = page.objects[-1].key
            self.grant.check(_OBSERVE)

    async def usage(self) -> Usage:
        self._check(_OBSERVE, LIST)
        store = await self._begin(_OBSERVE)
        if self.grant.books:
            return usage_of(self.grant.books)
        if self.scope.prefix:
            raise Denied("the usage of the whole store is not told below a prefix")
        usage = await store.usage()
        self.grant.check(_OBSERVE)
        return usage

    async def sync(self) -> None:
        self.grant.check(_OBSERVE)
        await (await self._begin(_OBSERVE)).sync()
        self.grant.check(_OBSERVE)

    # Changing --------------------------------------------------------------------------------

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        grant, size = self.grant, len(data)
        self._check(_ADD, PUT | DROP)
        full, condition = self._target(key, condition)
        place = full
        if not full and (grant.books or grant.hidden is not None):
            place = hashlib.sha256(data).digest()
            self._check_shown(place)
        store = await self._begin(_ADD, size)
        self._check_size(size)
        with grant.changing():
            if grant.books:
                stat = await self._accounted(
                    {place: size}, lambda: store.put(data, full, condition)
                )
            else:
                stat = await store.put(data, full, condition)
        grant.check(_ADD)
        return self.scope.shown(stat)

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        grant = self.grant
        self._check(_CHANGE, DELETE)
        full = self._key(key)
        store = await self._begin(_CHANGE)
        with grant.changing():
            if grant.books:
                await self._accounted({full: None}, lambda: store.delete(full, condition))
            else:
                await store.delete(full, condition)
        grant.check(_CHANGE)

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        grant = self.grant
        only_puts = all(isinstance(change, Put) for change in changes)
        effect = _ADD if only_puts else _CHANGE
        self._check(effect, PUT | DELETE)
        if len(changes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        inner = [self._inner_change(change) for change in changes]
        size = sum(len(change.data) for change in inner if isinstance(change, Put))
        store = await self._begin(effect, size)
        for change in inner:
            if isinstance(change, Put):
                self._check_size(len(change.data))
        with grant.changing():
            if grant.books:
                versions = await self._accounted(_sizes_after(inner), lambda: store.batch(inner))
            else:
                versions = await store.batch(inner)
        grant.check(effect)
        return versions

    def _inner_change(self, change: Change) -> Change:
        if isinstance(change, Put):
            self.scope.demand(PUT)
            full, condition = self._target(change.key, change.condition)
            if not full and self.grant.hidden is not None:
                self._check_shown(hashlib.sha256(change.data).digest())
            return replace(change, key=full, condition=condition)
        self.scope.demand(DELETE)
        return replace(change, key=self._key(change.key))

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> GuardedSink:
        grant = self.grant
        self._check(_ADD, PUT | DROP)
        full, condition = self._target(key, condition)
        store = await self._begin(_ADD)
        self._check_size(size or 0)
        if grant.books:
            # Not reserved, for nothing may come: but what cannot fit is refused at once.
            for book in grant.books:
                book.check(size or 0, 0)
        with grant.changing():
            sink = await store.begin(full, condition, size)
        grant.check(_ADD)
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
            async with self.grant.ledger.locks.held(after):
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
        """The same store with less authority.  Raises `Busy` for a dry run too many."""
        self.grant.check(_OBSERVE)
        if policy.hidden_names:
            policy = replace(policy, hidden_names=below(self.scope.prefix, policy.hidden_names))
        grant, store = self.grant.derive(policy), self._inner
        if policy.dry_run:
            store = DryStore(store, grant)
        return GuardedStore(store, grant, self.scope)

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
        return GuardedNamespace(self._inner.names, grant, (), self.restored_from)

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
        wanted = not key and (self.grant.books or self.grant.hidden is not None)
        self._hash = hashlib.sha256() if wanted else None
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
        grant.check(_ADD)
        if grant.paces:
            await grant.paced(_ADD, size)
        self._store._check_size(self._size + size)
        sink = self._inner
        if grant.books:
            reserve(grant.books, size, 0)
            self._held += size
        if self._hash is not None:
            self._hash.update(data)
        with grant.changing():
            await sink.write(data)
        self._size += size
        grant.check(_ADD)

    async def commit(self) -> ObjectStat:
        grant = self.grant
        grant.check(_ADD)
        if grant.paces:
            await grant.paced(_ADD)
        sink = self._inner
        if self._hash is not None:
            self._store._check_shown(self._hash.digest())
        with grant.changing():
            if grant.books:
                stat = await self._accounted(sink)
            else:
                stat = await sink.commit()
        grant.check(_ADD)
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
