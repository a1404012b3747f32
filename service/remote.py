"""Capabilities of a service as Python objects: `Directory`, `File`, `Revoker`, `ReferenceControl`.

Invariants:

* `Directory` and `File` are nodes (`capstore.backers.node`): whatever works on a backer's node
  works on a remote one, and raises the same errors.
* Failures of storage raise `StorageError`, failures of the connection `TransportError`; nothing of
  pycapnp crosses this edge.
* A call that is cancelled is cancelled at the service too, without waiting for it: it may still
  take effect, as a whole, a moment later.  Everything else is as the node protocol has it.
* An object belongs to the event loop it was made on.  Dropping the last reference to it lets the
  service release what it held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

import capnp

from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
)
from capstore.schema.errors import (
    Corrupt,
    CrossVolume,
    Disconnected,
    InvalidArgument,
    TooLarge,
    TransportError,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.schema.names import check_name
from capstore.service.grants import Policy
from capstore.service.messages import (
    policy_of,
    read_entry,
    read_error,
    read_page,
    read_stat,
    read_text,
    read_usage,
    write_attributes,
    write_policy,
)

if TYPE_CHECKING:
    from capstore.service.remote_watch import Watching

_UINT64_MAX = 2**64 - 1

# How a file is opened whose content is to be replaced.
REPLACE = OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE


class Held:
    """Holds an object of pycapnp, and gives it back to its event loop.

    KJ aborts the process when what belongs to its loop is freed on another thread, and that is
    where Python's collector may find garbage that holds it: an exception that was kept, say, with
    the frames it passed through.  A finalizer runs before anything is freed, so it can hand the
    object over.  Hence the rule of this module: what pycapnp hands out stands in a `Held`, or in
    the frame of a function that does not wait.
    """

    __slots__ = ("_loop", "_thread", "raw")

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()

    def __del__(self) -> None:
        if get_ident() != self._thread and self.raw is not None:
            # Nothing here may refer to the object once the loop knows of it, or this could be the
            # last reference after all.
            parcel, self.raw = [self.raw], None
            # RuntimeError: the loop has ended, its connections with it; there is nothing to tell.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(parcel.clear)


class Call(Held):
    """A call that was sent; await `answer` once."""

    __slots__ = ()

    async def answer(self) -> Any:
        """The results; raises what their ``error`` says, or `TransportError`."""
        promise, self.raw = self.raw, None
        try:
            response = await promise
        except capnp.KjException as error:
            failure: Exception = transport_error(error)
        else:
            if not response._has("error"):
                return response
            failure = read_error(response.error)
            del response
        del promise
        try:
            raise failure
        finally:
            # The failure keeps this frame, so this frame must not keep the failure.
            del failure


class Read(Call):
    """A read of `length` bytes that was sent; await `data` once."""

    __slots__ = ("_length",)

    def __init__(self, promise: Any, length: int) -> None:
        super().__init__(promise)
        self._length = length

    async def data(self) -> tuple[bytes, bool]:
        """The bytes, and whether the file ends behind them.  Raises as `answer`, and `Corrupt` for
        more than was asked for."""
        response = await self.answer()
        data: bytes = response.data
        if len(data) > self._length:
            raise Corrupt("the service answers a read with more than was asked for")
        return data, response.eof


def answer_of(promise: Any) -> Awaitable[Any]:
    """Awaits the results of a call that was just sent; see `Call.answer`."""
    return Call(promise).answer()


def transport_error(error: capnp.KjException) -> TransportError:
    """What an RPC exception means to a caller."""
    if error.type == "DISCONNECTED":
        return Disconnected("the connection to the service is gone")
    return TransportError(f"the call failed in transport: {error.description}")


def checked_offset(value: int) -> int:
    """`value` if it is an offset or size, else raises `InvalidArgument`."""
    if not 0 <= value <= _UINT64_MAX:
        raise InvalidArgument("offsets and sizes are not negative and have 64 bits")
    return value


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("not valid UTF-8") from None
    return text


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What `attenuate` hands out: the weaker capability, and the power to end it if asked for."""

    capability: Any
    revoker: Revoker | None


class Attenuable(Held):
    """A remote capability that can be narrowed and saved; `raw` is pycapnp's own object."""

    __slots__ = ()

    def _start_attenuate(self, policy: Policy, *, revocable: bool) -> Any:
        request = self.raw.attenuate_request()
        write_policy(request.init("policy"), policy, revocable=revocable)
        return request.send()

    async def save(self, label: str = "") -> str:
        """Saves a reference that outlives this connection; returns its token, which is a secret.

        Raises `InvalidArgument` (label), `TooLarge` (too many references), `Denied` (what a name
        gave), `Unsupported`.
        """
        return str((await answer_of(self.raw.save(_text(label)))).token)


class _Node(Attenuable):
    """What every remote node has."""

    __slots__ = ()

    async def stat(self) -> Stat:
        return read_stat((await answer_of(self.raw.stat())).stat)

    async def sync(self) -> None:
        await answer_of(self.raw.sync())


class File(_Node, FileNode):
    """A file of a service."""

    __slots__ = ()

    def start_read(self, offset: int, length: int) -> Read:
        """Sends a read; several may be in flight."""
        length = min(length, TRANSFER_BYTES_MAX)
        return Read(self.raw._send("read", offset=checked_offset(offset), length=length), length)

    def start_write(self, offset: int, data: Buffer) -> Call:
        """Sends a write of at most `TRANSFER_BYTES_MAX` bytes, to be answered."""
        return Call(self.raw._send("write", offset=checked_offset(offset), data=_sendable(data)))

    async def read(self, offset: int, length: int) -> Buffer:
        data, eof = await self.start_read(offset, length).data()
        if eof or len(data) >= length or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < length and not eof:
            data, eof = await self.start_read(offset + got, length - got).data()
            if not data and not eof:
                raise Corrupt("the service answers a read with nothing")
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    async def read_into(self, offset: int, view: memoryview) -> int:
        data = await self.read(offset, len(view))
        view[: len(data)] = data
        return len(data)

    async def write(self, offset: int, data: Buffer) -> None:
        await self.start_write(offset, data).answer()

    async def append(self, data: Buffer) -> int:
        return int((await answer_of(self.raw.append(_sendable(data)))).offset)

    async def truncate(self, size: int) -> None:
        await answer_of(self.raw.truncate(checked_offset(size)))

    async def set_attributes(self, change: Attributes) -> None:
        await answer_of(self._start_set(change))

    def _start_set(self, change: Attributes) -> Any:
        request = self.raw.setAttributes_request()
        write_attributes(request.init("attributes"), change)
        return request.send()

    async def close(self) -> None:
        await answer_of(self.raw.close())

    async def read_only(self) -> File:
        """The same file without the authority to change it."""
        return File((await answer_of(self.raw.readOnly())).file)

    async def attenuate(self, policy: Policy, *, revocable: bool = False) -> Narrowed:
        """The same file with less authority.  Raises `InvalidArgument`, `Unsupported`."""
        response = await answer_of(self._start_attenuate(policy, revocable=revocable))
        return Narrowed(File(response.file), Revoker(response.revoker) if revocable else None)


class Directory(_Node, DirectoryNode):
    """A directory of a service."""

    __slots__ = ()

    async def lookup(self, name: str) -> Entry:
        response = await answer_of(self.raw.lookup(check_name(name)))
        entry = read_entry(response.entry)
        if entry.name != name:
            raise Corrupt("the service answers with another entry than was asked for")
        return entry

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        return read_page(await answer_of(self._start_list(after, limit)), after)

    def _start_list(self, after: str, limit: int) -> Any:
        request = self.raw.list_request()
        request.cursor = after.encode()
        request.limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return request.send()

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> File:
        response = await answer_of(self._start_open(name, flags))
        return File(response.file)

    def _start_open(self, name: str, flags: OpenFlags) -> Any:
        # By name and not by position, which pycapnp looks up anew at each call.
        fields = {"name": check_name(name), "flags": int(flags) & 0xFFFFFFFF}
        return self.raw._send_helper("open", None, None, fields)

    async def create(self, name: str, *, executable: bool = False) -> File:
        response = await answer_of(self.raw.create(check_name(name), executable))
        return File(response.file)

    async def mkdir(self, name: str) -> Directory:
        return Directory((await answer_of(self.raw.mkdir(check_name(name)))).directory)

    async def sub(self, name: str) -> Directory:
        return Directory((await answer_of(self.raw.sub(check_name(name)))).directory)

    async def at(self, path: Sequence[str]) -> Directory:
        """The directory below this one at `path`, in one round trip whatever its length.

        Raises `NotFound`, `NotDirectory` (also for a symbolic link on the way).
        """
        if not path:
            return self
        above = self.pipelined(path[:-1])
        return await above.sub(path[-1])

    def pipelined(self, path: Sequence[str]) -> Directory:
        """The directory at `path` without waiting for it: its first call tells whether it is."""
        capability = self.raw
        for name in path:
            capability = capability.sub(check_name(name)).directory
        return Directory(capability)

    async def read_file(self, name: str) -> tuple[bytes, bool, File]:
        """The first `TRANSFER_BYTES_MAX` bytes of the file `name`, whether that was all of it, and
        the file: one round trip.  Raises as `open` and `FileNode.read`."""
        file = self._pipelined_open(name, OpenFlags.READ)
        data, eof = await file.start_read(0, TRANSFER_BYTES_MAX).data()
        return data, eof, file

    async def write_file(self, name: str, data: Buffer, flags: OpenFlags = REPLACE) -> File:
        """Opens the file `name` (by default made or emptied) and writes `data`, at most
        `TRANSFER_BYTES_MAX` bytes, at its start: one round trip.  Returns it open for writing."""
        file = self._pipelined_open(name, flags)
        await file.start_write(0, data).answer()
        return file

    def _pipelined_open(self, name: str, flags: OpenFlags) -> File:
        return File(self._start_open(name, flags).file)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        await answer_of(self.raw.remove(check_name(name), expect.value))

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        await answer_of(self._start_move("rename", name, target, new_name, mode=mode.value))

    def _start_move(
        self, method: str, name: str, target: DirectoryNode, new_name: str, **more: Any
    ) -> Any:
        request = getattr(self.raw, f"{method}_request")(**more)
        request.name, request.newName = check_name(name), check_name(new_name)
        request.target = _capability_of(target)
        return request.send()

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        await answer_of(self._start_move("link", name, target, new_name))

    async def symlink(self, name: str, target: str) -> None:
        await answer_of(self.raw.symlink(check_name(name), _text(target)))

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        await answer_of(self._start_set(change, name))

    def _start_set(self, change: Attributes, name: str) -> Any:
        request = self.raw.setAttributes_request()
        request.name = check_name(name) if name else ""
        write_attributes(request.init("attributes"), change)
        return request.send()

    async def usage(self) -> Usage:
        return read_usage((await answer_of(self.raw.usage())).usage)

    async def snapshot(self) -> Directory:
        return Directory((await answer_of(self.raw.snapshot())).directory)

    def watch(self) -> Watching:
        """What becomes of this directory's entries, from when that is entered or first asked on.

        async with directory.watch() as changes:
            entries = await directory.list()  # as it is now
            async for change in changes:
                ...

        See `Watching`.
        """
        # It is built on this module.
        from capstore.service.remote_watch import Watching

        return Watching(self.raw)

    async def read_only(self) -> Directory:
        """The same directory without the authority to change what is in or below it."""
        return Directory((await answer_of(self.raw.readOnly())).directory)

    async def attenuate(self, policy: Policy, *, revocable: bool = False) -> Narrowed:
        """The same directory with less authority.  Raises `InvalidArgument`, `Unsupported`."""
        response = await answer_of(self._start_attenuate(policy, revocable=revocable))
        return Narrowed(
            Directory(response.directory), Revoker(response.revoker) if revocable else None
        )


class Revoker(Held):
    """The power to end one attenuation."""

    __slots__ = ()

    async def revoke(self) -> None:
        """Ends it, with everything derived from it; ending it again is no error."""
        await answer_of(self.raw.revoke())

    async def status(self) -> tuple[bool, int]:
        """Whether it has ended, and how many attenuations and saved references hang below."""
        response = await answer_of(self.raw.status())
        return response.revoked, response.derived


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """A saved reference as its listing shows it; times in ns since 1970, 0 for never.

    `saved_by` is the label of the reference that whoever saved it had, of one that is listed;
    `rotations` how often it got another token.  Of an `anchor` nobody has a token: it stands for a
    quota or a rate that those saved below it share.
    """

    id: int
    label: str
    kind: str
    volume: str
    policy: Policy
    created: int
    last_used: int
    parent: int
    saved_by: str = ""
    rotations: int = 0
    anchor: bool = False


class ReferenceControl(Held):
    """Control over one saved reference and those saved below it, for as long as its token is the
    one that this was had with; then it is `Denied`."""

    __slots__ = ()

    async def status(self) -> ReferenceInfo:
        """The reference itself.  Raises `Denied` when it has ended."""
        return _read_info((await answer_of(self.raw.status())).info)

    async def list(self) -> Sequence[ReferenceInfo]:
        """Everything saved below it, in the order of ids."""
        result: list[ReferenceInfo] = []
        cursor = b""
        while True:
            page, cursor = _read_infos(await answer_of(self.raw.list(cursor, PAGE_ENTRIES_MAX)))
            result.extend(page)
            if not cursor:
                return result

    async def revoke(self, reference_id: int) -> None:
        """Ends the reference of this id, itself or below.  Raises `NotFound`."""
        await answer_of(self.raw.revoke(reference_id))

    async def renew(self, reference_id: int, expires_at: int) -> ReferenceInfo:
        """Gives one below another time, in ns since 1970; 0 is as long as what it was saved from.

        Raises `NotFound`, `Denied` (this one itself; longer than what it was saved from),
        `InvalidArgument` (a time that is over; an anchor), `Unsupported` (what the service's
        configuration shares).
        """
        if not 0 <= expires_at < 2**63:
            raise InvalidArgument("no time that a reference can have")
        return _read_info((await answer_of(self.raw.renew(reference_id, expires_at))).info)

    async def rotate(self, reference_id: int) -> str:
        """Gives the reference of this id, itself or below, another token, and returns it.

        The old one is wrong from now on; what was restored with it or saved below stays.  Raises
        `NotFound`, `InvalidArgument` (an anchor).
        """
        response = await answer_of(self.raw.rotate(reference_id))
        return read_text(response, "token", what=Corrupt)


def _read_infos(response: Any) -> tuple[Sequence[ReferenceInfo], bytes]:
    return [_read_info(reader) for reader in response.references], response.cursor


def _read_info(reader: Any) -> ReferenceInfo:
    return ReferenceInfo(
        id=reader.id,
        label=read_text(reader, "label", what=Corrupt),
        kind=str(reader.kind),
        volume=read_text(reader, "volume", what=Corrupt),
        policy=policy_of(reader.policy),
        created=reader.created,
        last_used=reader.lastUsed,
        parent=reader.parent,
        saved_by=read_text(reader, "savedBy", what=Corrupt),
        rotations=reader.rotations,
        anchor=reader.anchor,
    )


def _capability_of(target: DirectoryNode) -> Any:
    if not isinstance(target, Directory):
        raise CrossVolume("the target is no directory of a service")
    return target.raw


def _sendable(data: Buffer) -> bytes | memoryview:
    """What pycapnp takes; raises `TooLarge` before it is sent."""
    if len(data) > TRANSFER_BYTES_MAX:
        raise TooLarge(f"one write moves at most {TRANSFER_BYTES_MAX} bytes")
    return memoryview(data) if isinstance(data, bytearray) else data
