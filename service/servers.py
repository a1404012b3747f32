"""The capability servers: Directory, File and Revoker over guarded nodes.

Invariants: a server holds a guarded node and nothing else of the storage, so dropping the server
releases what the capability held.  Every method of the interface is here; what the node cannot do
it answers itself.  Authority is the guard's business, the shape of messages that of `messages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capstore.backers.node import Expect, OpenFlags, RenameMode
from capstore.schema import wire
from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.service.buffers import lent
from capstore.service.decisions import effect_of
from capstore.service.dispatch import Server, answers
from capstore.service.grants import Grant, Policy
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.messages import (
    enum_of,
    read_attributes,
    read_cursor,
    read_name,
    read_policy,
    read_text,
    write_entry,
    write_page,
    write_stat,
    write_usage,
)
from capstore.service.watcher import Watch, WatchServer

if TYPE_CHECKING:
    from capstore.service.session import Session

READ_ONLY = Policy(read_only=True)


class FileServer(Server, wire.File.Server):  # type: ignore[misc]
    """Serves one open file."""

    session: Session

    def __init__(self, session: Session, file: GuardedFile) -> None:
        super().__init__(session, file.grant, file)
        self._file = file

    @answers
    async def read_context(self, params: Any, results: Any) -> int:
        offset, size = params.offset, await self._file.size()
        length = max(0, min(params.length, TRANSFER_BYTES_MAX, size - offset))
        await self.session.reserve(length)
        try:
            with lent(length) as buffer:
                got = await self._file.read_into(offset, buffer)
                results.data = buffer[:got]
        finally:
            self.session.unreserve(length)
        results.eof = got < length or offset + got >= size
        return got

    @answers
    async def write_context(self, params: Any, results: Any) -> int:
        data = params.data
        with self.session.holding(len(data)):
            await self._file.write(params.offset, data)
        return len(data)

    @answers
    async def stat_context(self, params: Any, results: Any) -> None:
        write_stat(results.init("stat"), await self._file.stat())

    @answers
    async def truncate_context(self, params: Any, results: Any) -> None:
        await self._file.truncate(params.size)

    @answers
    async def sync_context(self, params: Any, results: Any) -> None:
        await self._file.sync()

    @answers
    async def close_context(self, params: Any, results: Any) -> None:
        await self._file.close()

    @answers
    async def append_context(self, params: Any, results: Any) -> int:
        data = params.data
        with self.session.holding(len(data)):
            results.offset = await self._file.append(data)
        return len(data)

    @answers
    async def readOnly_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.file = FileServer(self.session, self._file.narrowed(READ_ONLY))

    @answers
    async def attenuate_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        policy, revocable = read_policy(params.policy)
        narrowed = await self._file.attenuated(policy)
        results.file = FileServer(self.session, narrowed)
        if revocable:
            results.revoker = RevokerServer(self.session, narrowed.grant)

    @answers
    async def setAttributes_context(self, params: Any, results: Any) -> None:
        await self._file.set_attributes(read_attributes(params.attributes))

    @answers
    async def save_context(self, params: Any, results: Any) -> None:
        results.token = await self.session.authority.save(self._file, read_text(params, "label"))


class DirectoryServer(Server, wire.Directory.Server):  # type: ignore[misc]
    """Serves one directory."""

    session: Session

    def __init__(self, session: Session, directory: GuardedDirectory) -> None:
        super().__init__(session, directory.grant, directory)
        self._directory = directory

    def _serve(self, directory: GuardedDirectory) -> DirectoryServer:
        return DirectoryServer(self.session, directory)

    @answers
    async def open_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        file = await self._directory.open(read_name(params), OpenFlags(params.flags))
        results.file = FileServer(self.session, file)

    @answers
    async def list_context(self, params: Any, results: Any) -> None:
        limit = min(params.limit or PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX)
        after = read_cursor(params)
        await self.session.reserve(limit * _ENTRY_BYTES)
        try:
            write_page(results, await self._directory.list(after, limit))
        finally:
            self.session.unreserve(limit * _ENTRY_BYTES)

    @answers
    async def mkdir_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.directory = self._serve(await self._directory.mkdir(read_name(params)))

    @answers
    async def remove_context(self, params: Any, results: Any) -> None:
        await self._directory.remove(read_name(params), enum_of(Expect, params.expect))

    @answers
    async def sub_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.directory = self._serve(await self._directory.sub(read_name(params)))

    @answers
    async def create_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        file = await self._directory.create(read_name(params), executable=params.executable)
        results.file = FileServer(self.session, file)

    @answers
    async def rename_context(self, params: Any, results: Any) -> None:
        name, new_name = read_name(params), read_name(params, "newName")
        mode = enum_of(RenameMode, params.mode)
        self._directory.check_may("rename")
        target = await self._behind(params.target)
        await self._directory.rename(name, target, new_name, mode)

    @answers
    async def lookup_context(self, params: Any, results: Any) -> None:
        write_entry(results.init("entry"), await self._directory.lookup(read_name(params)))

    @answers
    async def stat_context(self, params: Any, results: Any) -> None:
        write_stat(results.init("stat"), await self._directory.stat())

    @answers
    async def readOnly_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.directory = self._serve(self._directory.narrowed(READ_ONLY))

    @answers
    async def attenuate_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        policy, revocable = read_policy(params.policy)
        narrowed = await self._directory.attenuated(policy)
        results.directory = self._serve(narrowed)
        if revocable:
            results.revoker = RevokerServer(self.session, narrowed.grant)

    @answers
    async def sync_context(self, params: Any, results: Any) -> None:
        await self._directory.sync()

    @answers
    async def symlink_context(self, params: Any, results: Any) -> None:
        await self._directory.symlink(read_name(params), read_text(params, "target"))

    @answers
    async def link_context(self, params: Any, results: Any) -> None:
        name, new_name = read_name(params), read_name(params, "newName")
        self._directory.check_may("link")
        target = await self._behind(params.target)
        await self._directory.link(name, target, new_name)

    @answers
    async def setAttributes_context(self, params: Any, results: Any) -> None:
        change = read_attributes(params.attributes)
        await self._directory.set_attributes(change, read_name(params))

    @answers
    async def usage_context(self, params: Any, results: Any) -> None:
        write_usage(results.init("usage"), await self._directory.usage())

    @answers
    async def snapshot_context(self, params: Any, results: Any) -> None:
        self.session.check_capabilities()
        results.directory = self._serve(await self._directory.snapshot())

    @answers
    async def watch_context(self, params: Any, results: Any) -> None:
        self._directory.grant.check(effect_of("Directory", "watch"))
        if not params._has("watcher"):
            raise InvalidArgument("there is nobody to tell")
        self.session.check_capabilities()
        watch = await Watch.begun(self.session, self._directory, params.watcher)
        results.watch = WatchServer(self.session, watch)

    @answers
    async def ticket_context(self, params: Any, results: Any) -> None:
        results.ticket = self.session.issue_ticket(self._directory)

    @answers
    async def save_context(self, params: Any, results: Any) -> None:
        label = read_text(params, "label")
        results.token = await self.session.authority.save(self._directory, label)

    async def _behind(self, capability: Any) -> GuardedDirectory:
        """The directory of this service behind a capability that came as an argument.

        The capability is asked for its ticket, which only the real one has.  Whoever passed it may
        serve it himself, so the wait is bounded and the answer proves nothing but by the table.
        """
        return await self.session.redeem_ticket(capability)


class RevokerServer(Server, wire.Revoker.Server):  # type: ignore[misc]
    """Serves the power to end one grant."""

    session: Session

    def __init__(self, session: Session, grant: Grant) -> None:
        super().__init__(session, grant)
        self._grant = grant

    @answers
    async def revoke_context(self, params: Any, results: Any) -> None:
        await self.session.authority.revoke(self._grant)

    @answers
    async def status_context(self, params: Any, results: Any) -> None:
        results.revoked = self._grant.revoked
        results.derived = sum(1 for _ in self._grant.below())


# What an entry takes in a message, about; names and targets are bounded by the page's own limit.
_ENTRY_BYTES = 160
