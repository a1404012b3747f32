"""Directories under a grant.

Invariants, beside those of `capstore.service.file_guard`:

* Whatever a guarded directory hands out is guarded by the same grant.
* A name that is hidden does not reach the backer, and none comes back.
* What changes a name does so by the tree's `Hub`, which tells those who watch.
* Both sides of a move stand under the same quotas, and in the same dry run or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    OpenFlags,
    Page,
    RenameMode,
    Usage,
)
from capstore.schema.errors import CrossVolume, Denied, InvalidArgument, NotFound
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name
from capstore.service import ledger
from capstore.service.decisions import Effect, opening
from capstore.service.dry import dry_directory
from capstore.service.file_guard import EFFECTS, GuardedFile, GuardedNode, in_earnest
from capstore.service.grants import Grant, Policy
from capstore.service.ledger import Hold
from capstore.service.quota import usage_of
from capstore.service.watching import Hub, Place, Spot

__all__ = ["EFFECTS", "GuardedDirectory", "GuardedFile"]

T = TypeVar("T")

_OBSERVE, _ADD, _CHANGE = Effect.OBSERVE, Effect.ADD, Effect.CHANGE


class GuardedDirectory(GuardedNode[DirectoryNode], DirectoryNode):
    """A directory under a grant."""

    __slots__ = ("_id",)
    wire_kind = "directory"

    def __init__(self, node: DirectoryNode, grant: Grant) -> None:
        super().__init__(node, grant)
        self._id: int | None = None

    def check_may(self, method: str) -> None:
        """Raises what `method` would raise for want of authority."""
        self.grant.check(EFFECTS[method])

    # Names ---------------------------------------------------------------------------------------

    def _name(self, name: str) -> str:
        """`name` if it is one and not hidden.  Raises `InvalidName`, `NotFound`."""
        check_name(name)
        hidden = self.grant.hidden
        if hidden is not None and hidden.name(name):
            raise _not_there()
        return name

    async def _existing(self, name: str) -> None:
        """Raises `NotFound` where the entry called `name` is hidden under the name that it really
        has: where case does not count, others stand for it too."""
        hidden = self.grant.hidden
        if hidden is not None and hidden.name((await self.node.lookup(name)).name):
            raise _not_there()

    async def node_id(self) -> int:
        """Its node's id."""
        if self._id is None:
            self._id = (await self.node.stat()).node_id
        return self._id

    async def _at(self, name: str) -> tuple[int, str]:
        """The name as quotas know it."""
        return await self.node_id(), name

    async def _spot(self, name: str) -> Spot:
        """The name as who watches knows it."""
        return Spot(self.node, await self.node_id(), name)

    async def _changed(
        self, name: str, change: Callable[[], Awaitable[T]], *, touches: bool = False
    ) -> T:
        """Does `change`, which may make the name, or with `touches` changes what it stands for; who
        watches is told."""
        hub = self.grant.hub
        if not hub.watches:
            with hub.epoch:
                return await change()
        return await hub.make(await self._spot(name), change, touches=touches)

    async def _opened(
        self, name: str, change: Callable[[], Awaitable[T]], flags: OpenFlags
    ) -> tuple[T, Place | None]:
        """Does `change`, which opens the file `name` for writing; who watches is told if it makes
        or empties it."""
        touches = OpenFlags.TRUNCATE in flags
        return await self.grant.hub.open(
            await self._spot(name),
            change,
            tells=touches or OpenFlags.CREATE in flags,
            touches=touches,
        )

    async def _moved(
        self,
        names: Sequence[tuple[GuardedDirectory, str]],
        change: Callable[[], Awaitable[None]],
        *,
        exchanges: bool = False,
    ) -> None:
        """Does `change`, which removes a name or moves it to a second one; who watches is told."""
        hub = self.grant.hub
        if hub.is_busy:
            spots = [await directory._spot(name) for directory, name in names]
            await hub.move(spots, change, exchanges=exchanges)
            return
        with hub.epoch, hub.moving([name for _, name in names]):
            await change()

    # Looking -------------------------------------------------------------------------------------

    async def lookup(self, name: str) -> Entry:
        self.grant.check(_OBSERVE)
        entry: Entry = await self._call("lookup", self._name(name))
        hidden = self.grant.hidden
        if hidden is not None and hidden.name(entry.name):
            raise _not_there()
        return entry

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        if self.grant.hidden is None:
            return await self._call("list", after, limit)  # type: ignore[no-any-return]
        await self._begin(_OBSERVE)
        return await self._do(_OBSERVE, self._shown, after, limit)  # type: ignore[no-any-return]

    async def _shown(self, after: str, limit: int) -> Page:
        """A page of what is not hidden, as full as any; `more` is of what is not hidden, too."""
        hidden = self.grant.hidden
        assert hidden is not None  # noqa: S101 - asked by `list`
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        entries: list[Entry] = []
        room, seen = PAGE_BYTES_MAX, 0
        while True:
            page = await self.node.list(after, limit + 1)
            for entry in page.entries:
                seen += 1
                if seen % hidden.pause == 0:
                    await asyncio.sleep(0)
                if hidden.name(entry.name):
                    continue
                room -= len(entry.name.encode()) + len((entry.target or "").encode())
                if entries and (len(entries) == limit or room < 0):
                    return Page(entries, more=True)
                entries.append(entry)
            if not page.more:
                return Page(entries, more=False)
            after = page.entries[-1].name
            self.grant.check(_OBSERVE)

    async def sub(self, name: str) -> GuardedDirectory:
        self.grant.check(_OBSERVE)
        self._name(name)
        await self._begin(_OBSERVE)
        await self._existing(name)
        return GuardedDirectory(await self._do(_OBSERVE, self.node.sub, name), self.grant)

    async def usage(self) -> Usage:
        if not self.grant.books:
            return await self._call("usage")  # type: ignore[no-any-return]
        await self._begin(_OBSERVE)
        return usage_of(self.grant.books)

    async def snapshot(self) -> GuardedDirectory:
        snapshot = await self._call("snapshot")
        grant = self.grant.derive(Policy(read_only=True))
        # It has the ids of what it shows, and nothing that becomes of that is seen in it.
        grant.hub = Hub()
        return GuardedDirectory(snapshot, grant)

    # Files ---------------------------------------------------------------------------------------

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> GuardedFile:
        effect, grant = opening(flags), self.grant
        grant.check(effect)
        flags.check()
        self._name(name)
        await self._begin(effect)
        if OpenFlags.CREATE not in flags:
            await self._existing(name)
        if not flags.writes:
            file, hold = await self._do(effect, self._open, name, flags)
            # What it was opened for is part of its authority: saved and restored it is no more.
            return GuardedFile(file, grant.reading(), hold=hold)
        (file, hold), place = await self._do(
            effect, self._opened, name, lambda: self._open(name, flags), flags
        )
        return GuardedFile(file, grant, hold=hold, place=place)

    async def _open(self, name: str, flags: OpenFlags) -> tuple[FileNode, Hold | None]:
        grant = self.grant
        grant.check(opening(flags))
        if not grant.books:
            return await self.node.open(name, flags), None
        at = await self._at(name)
        return await ledger.open_file(grant.ledger, grant.books, self.node, at, flags)

    async def create(self, name: str, *, executable: bool = False) -> GuardedFile:
        grant = self.grant
        grant.check(_ADD)
        self._name(name)
        await self._begin(_ADD)

        async def create() -> tuple[FileNode, Hold | None]:
            grant.check(_ADD)
            if not grant.books:
                return await self.node.create(name, executable=executable), None
            at = await self._at(name)
            return await ledger.create_file(
                grant.ledger, grant.books, self.node, at, executable=executable
            )

        (file, hold), place = await self._do(_ADD, self._opened, name, create, OpenFlags.CREATE)
        return GuardedFile(file, grant, hold=hold, place=place)

    # Changing names ------------------------------------------------------------------------------

    async def _make(self, name: str, method: str, *args: Any, size: int = 0) -> Any:
        """Makes a name of a node that takes `size` bytes."""
        grant, effect = self.grant, EFFECTS[method]
        await self._begin(effect, size)
        node = self.node

        async def make() -> Any:
            def change() -> Awaitable[Any]:
                grant.check(effect)
                return getattr(node, method)(name, *args)  # type: ignore[no-any-return]

            if not grant.books:
                return await change()
            at = await self._at(name)
            return await ledger.make(grant.ledger, grant.books, at, size, change)

        return await self._do(effect, self._changed, name, make)

    async def mkdir(self, name: str) -> GuardedDirectory:
        self.grant.check(_ADD)
        return GuardedDirectory(await self._make(self._name(name), "mkdir"), self.grant)

    async def symlink(self, name: str, target: str) -> None:
        self.grant.check(_ADD)
        self._name(name)
        size = len(_encoded(target))
        if not target or "\0" in target or size > SYMLINK_TARGET_BYTES_MAX:
            raise InvalidArgument("a link's target is 1 to 4095 bytes of UTF-8 without NUL")
        await self._make(name, "symlink", target, size=size)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        grant = self.grant
        grant.check(_CHANGE)
        self._name(name)
        await self._begin(_CHANGE)
        await self._existing(name)
        node = self.node

        def change() -> Awaitable[None]:
            grant.check(_CHANGE)
            return node.remove(name, expect)

        async def remove() -> None:
            if not grant.books:
                await change()
                return
            at = await self._at(name)
            await ledger.remove(grant.ledger, grant.books, node, at, change)

        await self._do(_CHANGE, self._moved, [(self, name)], remove)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        other = self._other_side(_CHANGE, target, both_ways=mode is RenameMode.EXCHANGE)
        self._name(name)
        other._name(new_name)
        await self._begin(_CHANGE)
        await self._existing(name)
        if mode is RenameMode.EXCHANGE:
            await other._existing(new_name)
        node, there, grant = self.node, other.node, self.grant

        def change() -> Awaitable[None]:
            grant.check(_CHANGE)
            other.grant.check(_CHANGE)
            return node.rename(name, there, new_name, mode)

        async def rename() -> None:
            if not grant.books:
                await change()
                return
            await ledger.move(
                grant.ledger,
                grant.books,
                (node, *await self._at(name)),
                (there, *await other._at(new_name)),
                change,
                replaces=mode is RenameMode.REPLACE,
            )

        names, exchanges = [(self, name), (other, new_name)], mode is RenameMode.EXCHANGE
        with other.grant.changing():
            await self._do(_CHANGE, lambda: self._moved(names, rename, exchanges=exchanges))
        other.grant.check(_CHANGE)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        other = self._other_side(_ADD, target, both_ways=False)
        self._name(name)
        other._name(new_name)
        await self._begin(_ADD)
        await self._existing(name)
        node, there, grant = self.node, other.node, self.grant

        def change() -> Awaitable[None]:
            grant.check(_ADD)
            other.grant.check(_ADD)
            return node.link(name, there, new_name)

        async def link() -> None:
            if not grant.books:
                await change()
                return
            await ledger.link(
                grant.ledger,
                grant.books,
                node,
                await self._at(name),
                await other._at(new_name),
                change,
            )

        with other.grant.changing():
            await self._do(_ADD, other._changed, new_name, link)
        other.grant.check(_ADD)

    def _other_side(
        self, effect: Effect, target: DirectoryNode, *, both_ways: bool
    ) -> GuardedDirectory:
        """`target`, if this directory's entries may move there.

        Raises what either grant raises, `CrossVolume`, or `Denied` for a target that some policy
        of this side does not bind.
        """
        self.grant.check(effect)
        if not isinstance(target, GuardedDirectory):
            raise InvalidArgument("the target is no directory of this service")
        target.grant.check(effect)
        if target.grant.served.volume is not self.grant.served.volume:
            raise CrossVolume("the target is on another volume")
        if not target.grant.stands_under(self.grant) or (
            both_ways and not self.grant.stands_under(target.grant)
        ):
            raise Denied("a node does not move out from under a policy")
        if target.grant.books != self.grant.books or target.grant.ledger is not self.grant.ledger:
            # What moves would have to be counted there with all below it; so do Linux's project
            # quotas, and who moves copies instead.
            raise CrossVolume("the target is under another quota, or a dry run")
        return target

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        self.grant.check(_CHANGE)
        if name:
            self._name(name)
        await self._begin(_CHANGE)
        node = self.node
        if not name:
            await self._do(_CHANGE, node.set_attributes, change, name)
            return
        await self._existing(name)

        def set_them() -> Awaitable[None]:
            self.grant.check(_CHANGE)
            return node.set_attributes(change, name)

        await self._do(_CHANGE, lambda: self._changed(name, set_them, touches=True))

    # Narrowing -----------------------------------------------------------------------------------

    def narrowed(self, policy: Policy) -> GuardedDirectory:
        """The same directory with less authority."""
        return GuardedDirectory(self.node, self.narrowed_grant(in_earnest(policy)))

    async def attenuated(self, policy: Policy) -> GuardedDirectory:
        """As `narrowed`, also where nothing is done in earnest.  Raises `Busy` for too many of
        those."""
        if not policy.dry_run:
            return self.narrowed(policy)
        grant = self.narrowed_grant(policy)
        node = await dry_directory(self.node, grant)
        grant.check(_OBSERVE)
        return GuardedDirectory(node, grant)


def _not_there() -> NotFound:
    return NotFound("no entry of this name")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("not valid UTF-8") from None
