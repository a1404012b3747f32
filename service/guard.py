"""Nodes under a grant: every call is checked before it, and again after every await.

Invariants:

* A guarded node is a backer's node and a grant.  Attenuating gives the same node under a narrower
  grant, so a call passes one guard however many attenuations there were.
* Whatever a guarded node hands out is guarded by the same grant.
* `EFFECTS` is the one place that says what each method does; a method without a row cannot be
  called.  Authority is decided before names and arguments are looked at, and before the backer is.
* A released node holds nothing; its grant has ended, so no call gets as far as to miss it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    Node,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
)
from capstore.schema.errors import (
    Closed,
    CrossVolume,
    Denied,
    InvalidArgument,
    Revoked,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import (
    PAGE_ENTRIES_MAX,
    SYMLINK_TARGET_BYTES_MAX,
    TRANSFER_BYTES_MAX,
)
from capstore.schema.names import check_name
from capstore.service.grants import Effect, Grant, Policy

_OBSERVE, _CHANGE = Effect.OBSERVE, Effect.CHANGE

# What each method of the node protocol does.  `open` changes if its flags say so.
EFFECTS: dict[str, Effect] = {
    "stat": _OBSERVE,
    "sync": _OBSERVE,
    "size": _OBSERVE,
    "read_into": _OBSERVE,
    "read": _OBSERVE,
    "write": _CHANGE,
    "append": _CHANGE,
    "truncate": _CHANGE,
    "set_attributes": _CHANGE,
    "close": _OBSERVE,
    "lookup": _OBSERVE,
    "list": _OBSERVE,
    "open": _OBSERVE,
    "create": _CHANGE,
    "mkdir": _CHANGE,
    "sub": _OBSERVE,
    "remove": _CHANGE,
    "rename": _CHANGE,
    "symlink": _CHANGE,
    "link": _CHANGE,
    "usage": _OBSERVE,
    "snapshot": _OBSERVE,
    "watch": _OBSERVE,
}

N = TypeVar("N", bound=Node)


class _GuardedNode(Generic[N]):
    """The mechanism: one check before, one after, and the book of changes under way."""

    __slots__ = ("__weakref__", "_node", "grant")

    def __init__(self, node: N, grant: Grant) -> None:
        self._node: N | None = node
        self.grant = grant
        grant.adopt(self)

    def release(self) -> None:
        """Drops the node; the grant has ended."""
        self._node = None

    @property
    def node(self) -> N:
        """The backer's own node; raises `Revoked` when it was released."""
        if self._node is None:
            raise Revoked("the capability was revoked")
        return self._node

    def narrowed_grant(self, policy: Policy) -> Grant:
        """A grant below this node's; raises as any call would when authority has ended, and
        `Unsupported` for a policy that counts: only stores do."""
        self.grant.check(_OBSERVE)
        if policy.counts:
            raise Unsupported("a tree has no quota and no rate")
        return self.grant.derive(policy)

    async def _call(self, method: str, *args: Any) -> Any:
        return await self._call_with(EFFECTS[method], method, *args)

    async def _call_with(self, effect: Effect, method: str, *args: Any) -> Any:
        grant = self.grant
        grant.check(effect)
        call = getattr(self.node, method)
        if effect is _CHANGE:
            with grant.changing():
                result = await call(*args)
        else:
            result = await call(*args)
        grant.check(effect)
        return result

    async def stat(self) -> Stat:
        return await self._call("stat")  # type: ignore[no-any-return]

    async def sync(self) -> None:
        await self._call("sync")


class _Holders:
    """How many guarded files share one open file: what one of them closes, the others still use."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class GuardedFile(_GuardedNode[FileNode], FileNode):
    """A file under a grant; closing it closes it for this holder."""

    __slots__ = ("_closed", "_holders")
    wire_kind = "file"

    def __init__(self, node: FileNode, grant: Grant, holders: _Holders | None = None) -> None:
        super().__init__(node, grant)
        self._closed = False
        self._holders = holders or _Holders()
        self._holders.count += 1

    @property
    def node(self) -> FileNode:
        """The backer's own node; raises `Revoked` or `Closed`."""
        if self._closed:
            raise Closed("the file was closed")
        return super().node

    async def stat(self) -> Stat:
        """As `Node.stat`: a closed file still tells."""
        self.grant.check(_OBSERVE)
        stat = await super().node.stat()
        self.grant.check(_OBSERVE)
        return stat

    # The two methods of the hottest path do what `_call` does, with less ado.

    async def size(self) -> int:
        self.grant.check(_OBSERVE)
        size = await self.node.size()
        self.grant.check(_OBSERVE)
        return size

    async def read_into(self, offset: int, view: memoryview) -> int:
        self.grant.check(_OBSERVE)
        got = await self.node.read_into(offset, view)
        self.grant.check(_OBSERVE)
        return got

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._call("read", offset, length)  # type: ignore[no-any-return]

    async def write(self, offset: int, data: Buffer) -> None:
        self.grant.check(_CHANGE)
        _check_transfer(data)
        await self._call("write", offset, data)

    async def append(self, data: Buffer) -> int:
        self.grant.check(_CHANGE)
        _check_transfer(data)
        return await self._call("append", data)  # type: ignore[no-any-return]

    async def truncate(self, size: int) -> None:
        await self._call("truncate", size)

    async def set_attributes(self, change: Attributes) -> None:
        await self._call("set_attributes", change)

    async def close(self) -> None:
        self.grant.check(_OBSERVE)
        if self._closed:
            return
        self._closed = True
        self._holders.count -= 1
        if not self._holders.count:
            await super().node.close()

    def narrowed(self, policy: Policy) -> GuardedFile:
        """The same file with less authority."""
        grant = self.narrowed_grant(policy)
        return GuardedFile(self.node, grant, self._holders)


class GuardedDirectory(_GuardedNode[DirectoryNode], DirectoryNode):
    """A directory under a grant."""

    __slots__ = ()
    wire_kind = "directory"

    def check_may_change(self) -> None:
        """Raises what a change would raise for want of authority."""
        self.grant.check(_CHANGE)

    async def lookup(self, name: str) -> Entry:
        self.grant.check(_OBSERVE)
        return await self._call("lookup", check_name(name))  # type: ignore[no-any-return]

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        return await self._call("list", after, limit)  # type: ignore[no-any-return]

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> GuardedFile:
        effect = _CHANGE if flags.writes else EFFECTS["open"]
        self.grant.check(effect)
        flags.check()
        file = await self._call_with(effect, "open", check_name(name), flags)
        # What it was opened for is part of its authority: saved and restored it is no more.
        return GuardedFile(file, self.grant if flags.writes else self.grant.reading())

    async def create(self, name: str, *, executable: bool = False) -> GuardedFile:
        self.grant.check(_CHANGE)
        check_name(name)
        with self.grant.changing():
            file = await self.node.create(name, executable=executable)
        self.grant.check(_CHANGE)
        return GuardedFile(file, self.grant)

    async def mkdir(self, name: str) -> GuardedDirectory:
        self.grant.check(_CHANGE)
        return GuardedDirectory(await self._call("mkdir", check_name(name)), self.grant)

    async def sub(self, name: str) -> GuardedDirectory:
        self.grant.check(_OBSERVE)
        return GuardedDirectory(await self._call("sub", check_name(name)), self.grant)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        self.grant.check(_CHANGE)
        await self._call("remove", check_name(name), expect)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        other = self._other_side(target, both_ways=mode is RenameMode.EXCHANGE)
        args = (check_name(name), other.node, check_name(new_name), mode)
        with other.grant.changing():
            await self._call("rename", *args)
        other.grant.check(_CHANGE)

    async def symlink(self, name: str, target: str) -> None:
        self.grant.check(_CHANGE)
        check_name(name)
        if not target or "\0" in target or len(_encoded(target)) > SYMLINK_TARGET_BYTES_MAX:
            raise InvalidArgument("a link's target is 1 to 4095 bytes of UTF-8 without NUL")
        await self._call("symlink", name, target)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        other = self._other_side(target, both_ways=False)
        args = (check_name(name), other.node, check_name(new_name))
        with other.grant.changing():
            await self._call("link", *args)
        other.grant.check(_CHANGE)

    def _other_side(self, target: DirectoryNode, *, both_ways: bool) -> GuardedDirectory:
        """`target`, if this directory's entries may move there.

        Raises what either grant raises, `CrossVolume`, or `Denied` for a target that some policy
        of this side does not bind.
        """
        self.grant.check(_CHANGE)
        if not isinstance(target, GuardedDirectory):
            raise InvalidArgument("the target is no directory of this service")
        target.grant.check(_CHANGE)
        if target.grant.served.volume is not self.grant.served.volume:
            raise CrossVolume("the target is on another volume")
        if not target.grant.stands_under(self.grant) or (
            both_ways and not self.grant.stands_under(target.grant)
        ):
            raise Denied("a node does not move out from under a policy")
        return target

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        self.grant.check(_CHANGE)
        await self._call("set_attributes", change, check_name(name) if name else "")

    async def usage(self) -> Usage:
        return await self._call("usage")  # type: ignore[no-any-return]

    async def snapshot(self) -> GuardedDirectory:
        snapshot = await self._call("snapshot")
        return GuardedDirectory(snapshot, self.grant.derive(Policy(read_only=True)))

    def watch(self) -> AsyncIterator[str]:
        self.grant.check(EFFECTS["watch"])
        raise Unsupported("watching is not served yet")

    def narrowed(self, policy: Policy) -> GuardedDirectory:
        """The same directory with less authority."""
        return GuardedDirectory(self.node, self.narrowed_grant(policy))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("not valid UTF-8") from None


def _check_transfer(data: Buffer) -> None:
    if len(data) > TRANSFER_BYTES_MAX:
        raise TooLarge(f"one write moves at most {TRANSFER_BYTES_MAX} bytes")
