"""Files under a grant, and what all nodes under one have.

Invariants:

* Every call is checked before it, and again after every await.
* A guarded node is a backer's node and a grant.  Attenuating gives the same node under a narrower
  grant, so a call passes one guard however many attenuations there were.
* Whatever a guarded node hands out is guarded by the same grant.
* What each method does is in `capstore.service.decisions`; a method without a row there cannot be
  called.  Authority is decided before names and arguments are looked at, those before a rate, and
  all of it before the backer is asked; what a quota has is part of the change.
* A released node holds nothing; its grant has ended, so no call gets as far as to miss it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from capstore.backers.node import (
    Attributes,
    Buffer,
    FileNode,
    Node,
    Stat,
)
from capstore.schema.errors import (
    Closed,
    Revoked,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import (
    TRANSFER_BYTES_MAX,
)
from capstore.service import ledger
from capstore.service.decisions import ROWS, Effect
from capstore.service.dry import dry_file
from capstore.service.grants import Grant, Policy
from capstore.service.ledger import Hold
from capstore.service.watching import Place

_OBSERVE, _ADD, _CHANGE = Effect.OBSERVE, Effect.ADD, Effect.CHANGE

# What is of capabilities alone.
_CAPABILITY_METHODS = frozenset({"readOnly", "attenuate", "watch", "save", "ticket"})

# What each method of the node protocol does.  `open` does more if its flags say so.
EFFECTS: dict[str, Effect] = {
    "".join(f"_{each.lower()}" if each.isupper() else each for each in method): row.act.effect
    for (interface, method), row in ROWS.items()
    if interface in ("File", "Directory") and method not in _CAPABILITY_METHODS
} | {"size": _OBSERVE, "read_into": _OBSERVE}

N = TypeVar("N", bound=Node)


class GuardedNode(Generic[N]):
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
        """A grant below this node's; raises as any call would when authority has ended."""
        self.grant.check(_OBSERVE)
        return self.grant.derive(policy)

    async def _begin(self, effect: Effect, size: int = 0) -> None:
        """Returns when a call that brings `size` bytes may ask the backer."""
        grant = self.grant
        grant.check(effect)
        if grant.paces:
            await grant.paced(effect, size)

    async def _call(self, method: str, *args: Any, size: int = 0) -> Any:
        effect = EFFECTS[method]
        await self._begin(effect, size)
        return await self._do(effect, getattr(self.node, method), *args)

    async def _do(self, effect: Effect, call: Callable[..., Any], *args: Any) -> Any:
        """What is left of a call that has begun."""
        grant = self.grant
        if effect is _OBSERVE:
            result = await call(*args)
        else:
            with grant.changing():
                result = await call(*args)
        grant.check(effect)
        return result

    async def stat(self) -> Stat:
        return await self._call("stat")  # type: ignore[no-any-return]

    async def sync(self) -> None:
        await self._call("sync")


class _Holders:
    """How many guarded files share one open file: what one of them closes, the others still use."""

    __slots__ = ("count", "hold", "place")

    def __init__(self, hold: Hold | None, place: Place | None) -> None:
        self.count = 0
        # The name that those who watch know it by.
        self.place = place
        # That quotas know it is open; made late for what was opened under none.
        self.hold = hold


class GuardedFile(GuardedNode[FileNode], FileNode):
    """A file under a grant; closing it closes it for this holder."""

    __slots__ = ("_closed", "_holders")
    wire_kind = "file"

    def __init__(
        self,
        node: FileNode,
        grant: Grant,
        holders: _Holders | None = None,
        *,
        hold: Hold | None = None,
        place: Place | None = None,
    ) -> None:
        super().__init__(node, grant)
        self._closed = False
        self._holders = holders or _Holders(hold, place)
        self._holders.count += 1

    @property
    def node(self) -> FileNode:
        """The backer's own node; raises `Revoked` or `Closed`."""
        if self._closed:
            raise Closed("the file was closed")
        return super().node

    async def stat(self) -> Stat:
        """As `Node.stat`: a closed file still tells."""
        await self._begin(_OBSERVE)
        stat = await super().node.stat()
        self.grant.check(_OBSERVE)
        return stat

    # The two methods of the hottest path do what `_call` does, with less ado.  Whoever reads asks
    # for the size first: that is the call that a rate counts, and `read_into` adds its bytes.

    async def size(self) -> int:
        grant = self.grant
        grant.check(_OBSERVE)
        if grant.paces:
            await grant.paced(_OBSERVE)
        size = await self.node.size()
        grant.check(_OBSERVE)
        return size

    async def read_into(self, offset: int, view: memoryview) -> int:
        grant = self.grant
        grant.check(_OBSERVE)
        got = await self.node.read_into(offset, view)
        grant.check(_OBSERVE)
        if grant.paces:
            grant.moved(got)
        return got

    async def read(self, offset: int, length: int) -> Buffer:
        data: Buffer = await self._call("read", offset, length)
        self.grant.moved(len(data))
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        self.grant.check(_CHANGE)
        # Nothing, written behind the end, makes no gap.
        end = offset + len(data) if _check_transfer(data) else 0
        if not self.grant.accounts:
            await self._changed("write", offset, data, size=len(data))
        else:
            await self._accounted(
                "write", lambda size: max(size, end), offset, data, size=len(data)
            )

    async def append(self, data: Buffer) -> int:
        self.grant.check(_ADD)
        more = _check_transfer(data)
        if not self.grant.accounts:
            return await self._changed("append", data, size=more)  # type: ignore[no-any-return]
        return await self._accounted(  # type: ignore[no-any-return]
            "append", lambda size: size + more, data, size=more
        )

    async def truncate(self, size: int) -> None:
        if not self.grant.accounts:
            await self._changed("truncate", size)
        else:
            await self._accounted("truncate", lambda _: size, size)

    async def _accounted(
        self, method: str, size_after: Callable[[int], int], *args: Any, size: int = 0
    ) -> Any:
        """A change of the file's size, as its quotas have it."""
        effect, grant = EFFECTS[method], self.grant
        await self._begin(effect, size)
        with grant.changing():
            node = self.node
            hold = await self._held()
            result = await ledger.change_file(
                grant.ledger,
                grant.books,
                hold.node_id,
                node,
                grant.max_file_bytes,
                size_after,
                lambda: self._told(method, *args),
            )
        grant.check(effect)
        return result

    async def _changed(self, method: str, *args: Any, size: int = 0) -> Any:
        """A change of the content, or of attributes."""
        effect = EFFECTS[method]
        await self._begin(effect, size)
        return await self._do(effect, self._told, method, *args)

    def _told(self, method: str, *args: Any) -> Awaitable[Any]:
        """The backer's own method, of which those who watch are told."""
        node = self.node
        change: Callable[..., Awaitable[Any]] = getattr(node, method)
        if method in ("write", "append") and not len(args[-1]):
            return change(*args)
        return self.grant.hub.writing(self._holders.place, node, lambda: change(*args))

    async def _held(self) -> Hold:
        holders = self._holders
        if holders.hold is not None:
            return holders.hold
        # Another call may come first: then there are two, which is as good as one.
        holders.hold = hold = await ledger.hold_of(self.grant.ledger, self.grant.books, self.node)
        return hold

    async def set_attributes(self, change: Attributes) -> None:
        await self._changed("set_attributes", change)

    async def close(self) -> None:
        self.grant.check(_OBSERVE)
        if self._closed:
            return
        self._closed = True
        holders = self._holders
        holders.count -= 1
        if not holders.count:
            holders.place = None
            await super().node.close()
            if holders.hold is not None:
                holders.hold.drop()

    def narrowed(self, policy: Policy) -> GuardedFile:
        """The same file with less authority."""
        return GuardedFile(self.node, self.narrowed_grant(in_earnest(policy)), self._holders)

    async def attenuated(self, policy: Policy) -> GuardedFile:
        """As `narrowed`, also where nothing is done in earnest.  Raises `Busy` for too many of
        those."""
        if not policy.dry_run:
            return self.narrowed(policy)
        grant = self.narrowed_grant(policy)
        # Quotas know another tree, and so the file by another hold.
        holders = _Shared(self._holders)
        return GuardedFile(dry_file(self.node, grant), grant, holders)


class _Shared(_Holders):
    """The holders of what stands over a file that others hold: the last one lets go of it."""

    __slots__ = ("_under",)

    def __init__(self, under: _Holders) -> None:
        self._under = under
        self.hold = None
        self.place = None

    @property
    def count(self) -> int:
        """Of all holders."""
        return self._under.count

    @count.setter
    def count(self, count: int) -> None:
        self._under.count = count


def in_earnest(policy: Policy) -> Policy:
    """`policy`, if it needs no other node.  Raises `Unsupported` for a dry run."""
    if policy.dry_run:
        raise Unsupported("a dry run is begun by `attenuated`")
    return policy


def _check_transfer(data: Buffer) -> int:
    """The bytes that it has."""
    size = len(data)
    if size > TRANSFER_BYTES_MAX:
        raise TooLarge(f"one write moves at most {TRANSFER_BYTES_MAX} bytes")
    return size
