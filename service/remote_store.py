"""Stores of a service as Python objects: `RemoteStore`, `RemoteSink`, `RemoteNamespace`.

Invariants: those of `capstore.service.remote`, and

* A put is one object whatever its size: up to `TRANSFER_BYTES_MAX` it is one message, above that a
  sink with at most `WINDOW_REQUESTS` pieces in flight.
* What a get or read gives is of one version: pieces of two are never put together.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

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
from capstore.schema import wire
from capstore.schema.errors import (
    Closed,
    Conflict,
    Corrupt,
    InvalidArgument,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import (
    BATCH_CHANGES_MAX,
    OBJECT_BYTES_MAX,
    PAGE_ENTRIES_MAX,
    TRANSFER_BYTES_MAX,
    WINDOW_BYTES,
    WINDOW_REQUESTS,
)
from capstore.schema.names import check_name
from capstore.schema.nodes import Buffer, Usage
from capstore.service.grants import Policy
from capstore.service.messages import read_usage
from capstore.service.remote import (
    Attenuable,
    Call,
    Directory,
    File,
    Narrowed,
    Revoker,
    answer_of,
    checked_offset,
)
from capstore.service.store_messages import (
    binding_fields,
    condition_fields,
    read_binding,
    read_bindings,
    read_known,
    read_object,
    read_objects,
    write_change,
)

# How often a get begins anew because the object was replaced meanwhile.
_READ_AGAIN_MAX = 8


class RemoteStore(Attenuable, ObjectStore):
    """A store of a service."""

    __slots__ = ()

    @property
    def _live(self) -> Any:
        if self.raw is None:
            raise Closed("the store was closed")
        return self.raw

    def _start(self, method: str, condition: Condition = ANY, **fields: Any) -> Any:
        return _send(self._live, method, condition, fields)

    # Objects -----------------------------------------------------------------------------------

    async def put(self, data: Buffer, key: bytes = b"", condition: Condition = ANY) -> ObjectStat:
        size = len(data)
        _check_size(size)
        check_key(key, empty=True)
        if size > TRANSFER_BYTES_MAX:
            return await self._put_in_pieces(data, key, condition)
        call = Call(self._start("put", condition, data=_sendable(data), key=key))
        response = await call.answer()
        return read_known(response, response.key, size)

    async def _put_in_pieces(self, data: Buffer, key: bytes, condition: Condition) -> ObjectStat:
        sink = RemoteSink(self._start("begin", condition, key=key, size=len(data)).sink)
        try:
            await sink.write(data)
            return await sink.commit()
        finally:
            sink.drop()

    async def get(self, key: bytes) -> bytes:
        check_key(key)
        try:
            response = await Call(self._start("get", key=key)).answer()
        except TooLarge:
            response = None
        if response is not None:
            data: bytes = response.data
            return data
        return b"".join((await self._read_all(key, 0, OBJECT_BYTES_MAX))[0])

    async def read(self, key: bytes, offset: int, length: int) -> ObjectRange:
        check_key(key)
        checked_offset(offset)
        if length < 0:
            raise InvalidArgument("offsets and lengths are not negative")
        if length <= WINDOW_BYTES:
            data, stat, eof = await self._start_read(key, offset, length).answered()
            if eof or len(data) == length:
                return ObjectRange(data, stat)
        pieces, stat = await self._read_all(key, offset, length)
        return ObjectRange(b"".join(pieces), stat)

    def _start_read(self, key: bytes, offset: int, length: int) -> _Range:
        return _Range(self._start("read", key=key, offset=offset, length=length), key, length)

    async def _read_all(
        self, key: bytes, offset: int, length: int
    ) -> tuple[Sequence[bytes], ObjectStat]:
        """The range, in pieces of one version, and that version."""
        for _ in range(_READ_AGAIN_MAX):
            stat = await self.stat(key)
            with suppress(Conflict):
                async with aclosing(self._pieces(stat, offset, offset + length)) as pieces:
                    return [piece async for piece in pieces], stat
        raise Conflict("the object changes too often to be read")

    async def chunks(self, stat: ObjectStat, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The object that `stat` is of, from `offset` on, in order and with several requests in
        flight; memory is bounded whatever its size.

        Raises `Conflict` when it was replaced meanwhile, and as `read`.
        """
        async with aclosing(self._pieces(stat, offset, stat.size)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(self, stat: ObjectStat, offset: int, end: int) -> AsyncGenerator[bytes, None]:
        in_flight: deque[tuple[int, _Range]] = deque()
        ask, end = offset, min(end, stat.size)
        try:
            while ask < end or in_flight:
                while ask < end and len(in_flight) < WINDOW_REQUESTS:
                    length = min(WINDOW_BYTES, end - ask)
                    in_flight.append((ask, self._start_read(stat.key, ask, length)))
                    ask += length
                at, call = in_flight.popleft()
                data, now, _ = await call.answered()
                if now.version != stat.version:
                    raise Conflict("the object was replaced while it was read")
                if not data:
                    raise Corrupt("the service answers a read with nothing")
                if len(data) < call.length:
                    # A short read: what was asked for behind it is asked for again, from its end.
                    in_flight.clear()
                    ask = at + len(data)
                yield data
        finally:
            in_flight.clear()

    async def stat(self, key: bytes) -> ObjectStat:
        check_key(key)
        stat = read_object((await answer_of(self._start("stat", key=key))).stat)
        if stat.key != key:
            raise Corrupt("the service answers with another object than was asked for")
        return stat

    async def has(self, key: bytes) -> bool:
        check_key(key)
        return bool((await answer_of(self._start("has", key=key))).present)

    async def delete(self, key: bytes, condition: Condition = ANY) -> None:
        check_key(key)
        await answer_of(self._start("delete", condition, key=key))

    async def batch(self, changes: Sequence[Change]) -> Sequence[int]:
        """As `ObjectStore.batch`; all of it is one message, so `TooLarge` also for more than
        `TRANSFER_BYTES_MAX` of data and keys."""
        if len(changes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"a batch has at most {BATCH_CHANGES_MAX} changes")
        size = 0
        for change in changes:
            check_key(change.key, empty=isinstance(change, Put))
            size += len(change.key) + (len(change.data) if isinstance(change, Put) else 0)
        if size > TRANSFER_BYTES_MAX:
            raise TooLarge(f"a batch is at most {TRANSFER_BYTES_MAX} bytes of data and keys")
        versions = list((await answer_of(self._start_batch(changes))).versions)
        if len(versions) != len(changes):
            raise Corrupt("the service answers a batch with another number of versions")
        return versions

    def _start_batch(self, changes: Sequence[Change]) -> Any:
        request = self._live.batch_request()
        items = request.init("items", len(changes))
        for index, change in enumerate(changes):
            write_change(items[index], change)
        return request.send()

    async def begin(
        self, key: bytes = b"", condition: Condition = ANY, size: int | None = None
    ) -> RemoteSink:
        check_key(key, empty=True)
        _check_size(size or 0)
        response = await answer_of(self._start("begin", condition, key=key, size=size or 0))
        return RemoteSink(response.sink)

    async def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> ObjectPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        call = answer_of(self._start("list", prefix=prefix, after=after, limit=limit))
        return read_objects(await call, prefix, after)

    # The store as a whole ----------------------------------------------------------------------

    async def usage(self) -> Usage:
        return read_usage((await answer_of(self._start("usage"))).usage)

    async def sync(self) -> None:
        await answer_of(self._start("sync"))

    async def close(self) -> None:
        """Releases the capability; what was put stays."""
        self.raw = None

    async def compact(self) -> None:
        await answer_of(self._start("compact"))

    async def collect(self, older_than: float = 0.0) -> Collected:
        seconds = math.ceil(min(max(0.0, older_than), 2.0**62))
        response = await answer_of(self._start("collect", olderThan=seconds))
        return Collected(response.objects, response.bytes)

    @property
    def names(self) -> RemoteNamespace:
        """The names over this store; its first call tells whether there are any."""
        return RemoteNamespace(self._start("namespace").namespace)

    # Narrowing ---------------------------------------------------------------------------------

    async def get_only(self) -> RemoteStore:
        """A store that gets by key and does nothing else.  Raises `Denied`."""
        return RemoteStore((await answer_of(self._start("getOnly"))).store)

    async def put_only(self) -> RemoteStore:
        """A drop box: what is put gets a key that begins with the one that was given, and is never
        the key of anything else.  Raises `Denied`."""
        return RemoteStore((await answer_of(self._start("putOnly"))).store)

    async def sub_store(self, prefix: bytes) -> RemoteStore:
        """The part of the key space below `prefix`, as a store of its own.

        Raises `InvalidArgument`."""
        return RemoteStore((await answer_of(self._start("subStore", prefix=prefix))).store)

    async def read_only(self) -> RemoteStore:
        """The same store without the authority to change it."""
        narrowed: RemoteStore = (await self.attenuate(Policy(read_only=True))).capability
        return narrowed

    async def attenuate(self, policy: Policy, *, revocable: bool = False) -> Narrowed:
        """The same store with less authority.  Raises `InvalidArgument`."""
        response = await answer_of(self._start_attenuate(policy, revocable=revocable))
        return Narrowed(
            RemoteStore(response.store), Revoker(response.revoker) if revocable else None
        )


class _Range(Call):
    """A read of `length` bytes that was sent; await `answered` once."""

    __slots__ = ("_key", "length")

    def __init__(self, promise: Any, key: bytes, length: int) -> None:
        super().__init__(promise)
        self._key = key
        self.length = length

    async def answered(self) -> tuple[bytes, ObjectStat, bool]:
        """The bytes, what they are of, and whether it ends behind them.

        Raises as `answer`, and `Corrupt` for more than was asked for."""
        response = await self.answer()
        data: bytes = response.data
        if len(data) > self.length:
            raise Corrupt("the service answers a read with more than was asked for")
        return data, read_known(response, self._key, response.size), response.eof


class RemoteSink(Attenuable, ObjectSink):
    """A put in pieces at a service.

    A piece is sent before the one before it was answered, so what is wrong with it may be raised by
    a later `write`, or by `commit`; then nothing was put.
    """

    __slots__ = ("_failure", "_in_flight", "_turn")

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self._in_flight: deque[Call] = deque()
        self._failure: StorageError | None = None
        self._turn = asyncio.Lock()

    def drop(self) -> None:
        """Lets go of it: what was not committed leaves no trace."""
        self._in_flight.clear()
        self.raw = None

    def _check(self) -> Any:
        if self._failure is not None:
            raise StorageError.of(self._failure.code, self._failure.message)
        if self.raw is None:
            raise Closed("it was committed or aborted")
        return self.raw

    async def _first_answered(self) -> None:
        try:
            await self._in_flight.popleft().answer()
        except StorageError as error:
            self._failure = StorageError.of(error.code, error.message)
            raise
        except BaseException:
            # The service may have been told to forget this piece.
            self._failure = Closed("a piece of the object is missing")
            raise

    async def write(self, data: Buffer) -> None:
        view = memoryview(data)
        async with self._turn:
            for start in range(0, len(view), WINDOW_BYTES):
                raw = self._check()
                while len(self._in_flight) >= WINDOW_REQUESTS:
                    await self._first_answered()
                self._in_flight.append(
                    Call(raw._send("write", data=view[start : start + WINDOW_BYTES]))
                )
            self._check()

    async def commit(self) -> ObjectStat:
        async with self._turn:
            # Behind the pieces: the service takes them in order, and commits none of a part.
            commit = Call(self._check()._send("commit"))
            try:
                while self._in_flight:
                    await self._first_answered()
                response = await commit.answer()
            finally:
                self.drop()
        return read_known(response, response.key, response.size)

    async def abort(self) -> None:
        if self.raw is not None:
            abort = answer_of(self.raw._send("abort"))
            self.drop()
            await abort


class RemoteNamespace(Attenuable, Namespace):
    """Names of a service's store."""

    __slots__ = ()

    def _start(self, method: str, condition: Condition = ANY, **fields: Any) -> Any:
        return _send(self.raw, method, condition, fields)

    async def resolve(self, name: str) -> Binding:
        binding, _ = await self.resolve_capability(name)
        return binding

    async def resolve_capability(self, name: str) -> tuple[Binding, Restored | None]:
        """What `name` stands for, and for a saved reference the capability.  Raises `NotFound`."""
        response = await answer_of(self._start("resolve", name=check_name(name)))
        binding = read_binding(response.binding)
        if binding.name != name:
            raise Corrupt("the service answers with another name than was asked for")
        return binding, restored(response) if binding.reference is not None else None

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        """As `Namespace.bind`.  A reference is bound by who restored this namespace, or its store,
        from what the reference was saved below (see `bind_token`), else it is `Denied`."""
        return await self._bind(binding, condition, "")

    async def bind_token(self, name: str, token: str, condition: Condition = ANY) -> int:
        """Has `name` stand for what was saved under `token`.  Raises `Denied`, `Conflict`."""
        if not token:
            raise InvalidArgument("a name needs a token to stand for")
        return await self._bind(Binding(name, reference=0), condition, token)

    async def _bind(self, binding: Binding, condition: Condition, token: str) -> int:
        name, what = check_name(binding.name), binding_fields(binding)
        call = self._start("bind", condition, name=name, binding=what, token=token)
        return int((await answer_of(call)).version)

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        await answer_of(self._start("unbind", condition, name=check_name(name)))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return read_bindings(await answer_of(self._start("list", after=after, limit=limit)), after)

    async def sub(self, name: str) -> RemoteNamespace:
        response = await answer_of(self._start("sub", name=check_name(name)))
        return RemoteNamespace(response.namespace)


Restored = Directory | File | RemoteStore | RemoteNamespace


def restored(response: Any) -> Restored:
    """The capability of an answer that tells its kind.  Raises `Unsupported`."""
    kind = str(response.kind)
    if kind == "directory":
        return Directory(response.capability.as_interface(wire.Directory))
    if kind == "file":
        return File(response.capability.as_interface(wire.File))
    if kind == "store":
        return RemoteStore(response.capability.as_interface(wire.Store))
    if kind == "namespace":
        return RemoteNamespace(response.capability.as_interface(wire.Namespace))
    raise Unsupported(f"this client has no use for a {kind}")


def node_of(capability: Restored) -> Directory | File:
    """`capability` if it is a node of a tree.  Raises `Unsupported`."""
    if isinstance(capability, Directory | File):
        return capability
    raise Unsupported("the URI stands for a store of objects, which has no files")


def _send(raw: Any, method: str, condition: Condition, fields: dict[str, Any]) -> Any:
    """Sends a call.  By name: what pycapnp is given by position it looks up anew each time."""
    if condition is not ANY:
        fields["condition"] = condition_fields(condition)
    return raw._send_helper(method, None, None, fields)


def _check_size(size: int) -> None:
    if size > OBJECT_BYTES_MAX:
        raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes")


def _sendable(data: Buffer) -> bytes | memoryview:
    return memoryview(data) if isinstance(data, bytearray) else data
