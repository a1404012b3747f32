"""The capability servers of stores: Store, Sink and Namespace.

Invariants: as in `capstore.service.servers`.  The pieces of a sink reach the store in the order in
which they were sent; when one has failed, or was cancelled, none behind it does, and no commit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from capstore.backers.store import Binding, ObjectStat
from capstore.schema import wire
from capstore.schema.errors import Closed, InvalidArgument, StorageError, TooLarge
from capstore.schema.limits import (
    BATCH_CHANGES_MAX,
    KEY_BYTES_MAX,
    KIB,
    NAME_BYTES_MAX,
    PAGE_BYTES_MAX,
    PAGE_ENTRIES_MAX,
    TRANSFER_BYTES_MAX,
)
from capstore.service.authority import Guarded
from capstore.service.dispatch import Server, answers
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.messages import read_name, read_policy, read_text, write_usage
from capstore.service.name_guard import GuardedNamespace
from capstore.service.servers import DirectoryServer, FileServer, RevokerServer
from capstore.service.store_guard import GuardedSink, GuardedStore
from capstore.service.store_messages import (
    bound,
    condition_of,
    read_change,
    write_binding,
    write_bindings,
    write_object,
    write_objects,
    write_origin,
)

if TYPE_CHECKING:
    from capstore.service.session import Session

# What an object or a name takes in a message, about, beside its key.
_ROW_BYTES = 64
# Objects up to this size are got in one step.
_SMALL_BYTES = 16 * KIB


class StoreServer(Server, wire.Store.Server):  # type: ignore[misc]
    """Serves one store."""

    session: Session

    def __init__(self, session: Session, store: GuardedStore) -> None:
        super().__init__(session, store.grant)
        self._store = store

    @answers
    async def put_context(self, params: Any, results: Any) -> int:
        data = params.data
        with self.session.holding(len(data)):
            _check_transfer(len(data))
            stat = await self._store.put(data, params.key, condition_of(params))
        _write_put(results, stat)
        return len(data)

    @answers
    async def get_context(self, params: Any, results: Any) -> int:
        key, room = params.key, _SMALL_BYTES
        while (size := await self._fill(key, room, results)) > room:
            if size > TRANSFER_BYTES_MAX:
                raise TooLarge(f"an object of {size} bytes is read in pieces")
            room = size
        return size

    async def _fill(self, key: bytes, room: int, results: Any) -> int:
        """Answers with the object if it has at most `room` bytes; returns how many it has.

        What it takes in memory is reserved before it is taken, and most objects are small.
        """
        await self.session.reserve(room)
        try:
            found = await self._store.get_with(key, room, again=room > _SMALL_BYTES)
            if found.stat.size <= room:
                results.data = found.data
                results.version = found.stat.version
        finally:
            self.session.unreserve(room)
        return found.stat.size

    @answers
    async def has_context(self, params: Any, results: Any) -> None:
        results.present = await self._store.has(params.key)

    @answers
    async def delete_context(self, params: Any, results: Any) -> None:
        await self._store.delete(params.key, condition_of(params))

    @answers
    async def list_context(self, params: Any, results: Any) -> None:
        store, prefix = self._store, params.prefix
        listing = (b"objects", store.grant.served.name.encode(), store.scope.prefix, prefix)
        after = params.after
        if params.cursor:
            after = self.session.authority.behind(listing, params.cursor)
        if len(prefix) > KEY_BYTES_MAX or len(after) > KEY_BYTES_MAX:
            raise InvalidArgument(f"a key has at most {KEY_BYTES_MAX} bytes")
        limit = min(params.limit or PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX)
        size = min(limit * (KEY_BYTES_MAX + _ROW_BYTES), PAGE_BYTES_MAX)
        await self.session.reserve(size)
        try:
            page = await store.list(prefix, after, limit)
            count = _fitting(page.objects)
            write_objects(results, page.objects[:count])
        finally:
            self.session.unreserve(size)
        if page.more or count < len(page.objects):
            last = page.objects[count - 1].key
            results.cursor = self.session.authority.cursor(listing, last)

    @answers
    async def stat_context(self, params: Any, results: Any) -> None:
        write_object(results.init("stat"), await self._store.stat(params.key))

    @answers
    async def read_context(self, params: Any, results: Any) -> int:
        length = min(params.length, TRANSFER_BYTES_MAX)
        await self.session.reserve(length)
        try:
            found = await self._store.read(params.key, params.offset, length)
            results.data = found.data
            results.eof = params.offset + len(found.data) >= found.stat.size
        finally:
            self.session.unreserve(length)
        results.size, results.version = found.stat.size, found.stat.version
        write_origin(results, found.stat)
        return len(found.data)

    @answers
    async def begin_context(self, params: Any, results: Any) -> None:
        session = self.session
        session.check_capabilities()
        session.sink_opened()
        try:
            condition = condition_of(params)
            sink = await self._store.begin(params.key, condition, params.size or None)
        except BaseException:
            session.sink_ended()
            raise
        results.sink = SinkServer(session, sink)

    @answers
    async def batch_context(self, params: Any, results: Any) -> int:
        items = params.items
        if len(items) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        changes = [read_change(item) for item in items]
        size = sum(len(getattr(each, "data", b"")) + len(each.key) for each in changes)
        with self.session.holding(size):
            _check_transfer(size)
            results.versions = list(await self._store.batch(changes))
        return sum(len(getattr(each, "data", b"")) for each in changes)

    @answers
    async def sync_context(self, params: Any, results: Any) -> None:
        await self._store.sync()

    @answers
    async def usage_context(self, params: Any, results: Any) -> None:
        write_usage(results.init("usage"), await self._store.usage())

    @answers
    async def getOnly_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.store = StoreServer(self.session, self._store.get_only())

    @answers
    async def putOnly_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.store = StoreServer(self.session, self._store.put_only())

    @answers
    async def subStore_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.store = StoreServer(self.session, self._store.sub_store(params.prefix))

    @answers
    async def attenuate_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        policy, revocable = read_policy(params.policy)
        narrowed = self._store.narrowed(policy)
        results.store = StoreServer(self.session, narrowed)
        if revocable:
            results.revoker = RevokerServer(self.session, narrowed.grant)

    @answers
    async def ticket_context(self, params: Any, results: Any) -> None:
        results.ticket = self.session.issue_ticket(self._store)

    @answers
    async def save_context(self, params: Any, results: Any) -> None:
        results.token = await self.session.authority.save(self._store, read_text(params, "label"))

    @answers
    async def compact_context(self, params: Any, results: Any) -> None:
        await self._store.compact()

    @answers
    async def collect_context(self, params: Any, results: Any) -> None:
        collected = await self._store.collect(float(params.olderThan))
        results.objects, results.bytes = collected.objects, collected.bytes

    @answers
    async def namespace_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.namespace = NamespaceServer(self.session, self._store.namespace())


def _write_put(results: Any, stat: ObjectStat) -> None:
    results.key, results.version = stat.key, stat.version
    write_origin(results, stat)


def _check_transfer(size: int) -> None:
    if size > TRANSFER_BYTES_MAX:
        raise TooLarge(f"one call moves at most {TRANSFER_BYTES_MAX} bytes: put it in pieces")


def _fitting(objects: Any) -> int:
    """How many of them fit a message; one at least, where there is one."""
    size = 0
    for count, stat in enumerate(objects):
        size += len(stat.key) + _ROW_BYTES
        if count and size > PAGE_BYTES_MAX:
            return count
    return len(objects)


class SinkServer(Server, wire.Sink.Server):  # type: ignore[misc]
    """Serves one put in pieces."""

    session: Session

    def __init__(self, session: Session, sink: GuardedSink) -> None:
        super().__init__(session, sink.grant)
        self._sink = sink
        self._failure: StorageError | None = None
        # Calls begin in the order in which they were sent; a lock is given in the order of asking.
        self._turn = asyncio.Lock()
        self._ended = False

    def __del__(self) -> None:
        self._end()
        super().__del__()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.session.sink_ended()

    def _check(self) -> None:
        if self._failure is not None:
            raise StorageError.of(self._failure.code, self._failure.message)

    @answers
    async def write_context(self, params: Any, results: Any) -> int:
        data = params.data
        with self.session.holding(len(data)):
            try:
                async with self._turn:
                    self._check()
                    _check_transfer(len(data))
                    await self._sink.write(data)
            except StorageError as error:
                self._failure = self._failure or StorageError.of(error.code, error.message)
                raise
            except BaseException:
                self._failure = self._failure or Closed("a piece of the object is missing")
                raise
        return len(data)

    @answers
    async def commit_context(self, params: Any, results: Any) -> None:
        async with self._turn:
            self._check()
            stat = await self._sink.commit()
            self._end()
        _write_put(results, stat)
        results.size = stat.size

    @answers
    async def abort_context(self, params: Any, results: Any) -> None:
        async with self._turn:
            await self._sink.abort()
            self._end()


class NamespaceServer(Server, wire.Namespace.Server):  # type: ignore[misc]
    """Serves one namespace."""

    session: Session

    def __init__(self, session: Session, names: GuardedNamespace) -> None:
        super().__init__(session, names.grant)
        self._names = names

    @answers
    async def resolve_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        binding = await self._names.resolve(read_name(params))
        if binding.reference is not None:
            lent = await self.session.authority.lent(binding.reference, self._names)
            results.capability = server_for(self.session, lent)
            results.kind = lent.wire_kind
        write_binding(results.init("binding"), binding)

    @answers
    async def bind_context(self, params: Any, results: Any) -> None:
        names, name, token = self._names, read_name(params), _token(params)
        names.check_may_bind()
        condition = condition_of(params)
        binding = bound(params.binding, name, 0, what=InvalidArgument)
        if binding.reference is not None:
            reference = await self.session.authority.may_bind(names, binding.reference, token)
            binding = Binding(name, reference=reference)
        elif token:
            raise InvalidArgument("a token is for what a reference stands for")
        results.version = await names.bind(binding, condition)

    @answers
    async def unbind_context(self, params: Any, results: Any) -> None:
        await self._names.unbind(read_name(params), condition_of(params))

    @answers
    async def list_context(self, params: Any, results: Any) -> None:
        names = self._names
        listing = (b"names", names.grant.served.name.encode(), names.handle)
        after = read_text(params, "after")
        if params.cursor:
            after = self.session.authority.behind(listing, params.cursor).decode()
        if len(after.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(f"a name has at most {NAME_BYTES_MAX} bytes")
        limit = min(params.limit or PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX)
        size = limit * (NAME_BYTES_MAX + 2 * _ROW_BYTES)
        await self.session.reserve(size)
        try:
            page = await names.list(after, limit)
            write_bindings(results, page.bindings)
        finally:
            self.session.unreserve(size)
        if page.more:
            last = page.bindings[-1].name.encode()
            results.cursor = self.session.authority.cursor(listing, last)

    @answers
    async def sub_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        names = await self._names.sub(read_name(params))
        results.namespace = NamespaceServer(self.session, names)

    @answers
    async def save_context(self, params: Any, results: Any) -> None:
        results.token = await self.session.authority.save(self._names, read_text(params, "label"))


def _token(params: Any) -> str:
    """The token; what is none is like any wrong one."""
    try:
        return read_text(params, "token")
    except InvalidArgument:
        return "?"


def server_for(session: Session, guarded: Guarded) -> Any:
    """The server of what is guarded."""
    if isinstance(guarded, GuardedDirectory):
        return DirectoryServer(session, guarded)
    if isinstance(guarded, GuardedFile):
        return FileServer(session, guarded)
    if isinstance(guarded, GuardedStore):
        return StoreServer(session, guarded)
    return NamespaceServer(session, guarded)
