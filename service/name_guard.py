"""Namespaces under a grant.

Invariants: as in `capstore.service.guard`.  What a name for a saved reference gives is no matter of
this guard: `capstore.service.authority` decides who may bind one, and what resolving it lends.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from capstore.backers.store import ANY, Binding, BindingPage, Condition, Namespace
from capstore.schema.errors import Denied, InvalidArgument, NotFound, Revoked
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.service.decisions import Effect
from capstore.service.dry_store import DryNamespace
from capstore.service.grants import Grant

_OBSERVE, _ADD, _CHANGE = Effect.OBSERVE, Effect.ADD, Effect.CHANGE
_HASH_BYTES = 32


class GuardedNamespace(Namespace):
    """The names below `path`, under a grant.

    `restored_from` is the id of the reference that this whole namespace, or the store it is over,
    was restored from; 0 for any other.
    """

    wire_kind = "namespace"

    def __init__(
        self, names: Namespace, grant: Grant, path: tuple[str, ...], restored_from: int = 0
    ) -> None:
        self._names: Namespace | None = names
        self.grant = grant
        self.path = path
        self.restored_from = restored_from
        grant.adopt(self)

    def release(self) -> None:
        """Drops the names; the grant has ended."""
        self._names = None

    @property
    def handle(self) -> bytes:
        """By which a saved reference finds it."""
        return "/".join(self.path).encode()

    async def _begin(self, effect: Effect) -> Namespace:
        """The names below, when such a call may go on."""
        if self.grant.paces:
            await self.grant.paced(effect)
        if self._names is None:
            raise Revoked("the capability was revoked")
        return self._names

    def check_may_bind(self) -> None:
        """Raises what `bind` would raise for want of authority."""
        self.grant.check(_ADD)

    def note_bound(self, reference_id: int) -> None:
        """In a dry run: a name may stand for this reference, as long as that lasts."""
        if isinstance(self._names, DryNamespace):
            self._names.bound.add(reference_id)

    def has_bound(self, reference_id: int) -> bool:
        """Whether that was noted."""
        return isinstance(self._names, DryNamespace) and reference_id in self._names.bound

    def _name(self, name: str) -> str:
        """`name` if it is one and not hidden.  Raises `InvalidName`, `NotFound`."""
        check_name(name)
        hidden = self.grant.hidden
        if hidden is not None and hidden.name(name):
            raise NotFound("no such name")
        return name

    async def resolve(self, name: str) -> Binding:
        self.grant.check(_OBSERVE)
        self._name(name)
        names = await self._begin(_OBSERVE)
        binding = await names.resolve(name)
        self.grant.check(_OBSERVE)
        return binding

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        grant = self.grant
        grant.check(_ADD)
        self._name(binding.name)
        if (binding.hash is None) == (binding.reference is None):
            raise InvalidArgument("a name stands for a hash or for a reference")
        if binding.hash is not None and len(binding.hash) != _HASH_BYTES:
            raise InvalidArgument(f"a hash has {_HASH_BYTES} bytes")
        if grant.hidden is not None and binding.hash is not None and grant.hidden.key(binding.hash):
            raise NotFound("no such object")
        if grant.append_only:
            if condition.version is not None:
                raise Denied("the capability only adds")
            condition = Condition(absent=True)
        names = await self._begin(_ADD)
        with grant.changing():
            version = await names.bind(replace(binding, version=0), condition)
        grant.check(_ADD)
        return version

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        self.grant.check(_CHANGE)
        self._name(name)
        names = await self._begin(_CHANGE)
        with self.grant.changing():
            await names.unbind(name, condition)
        self.grant.check(_CHANGE)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        self.grant.check(_OBSERVE)
        names = await self._begin(_OBSERVE)
        if self.grant.hidden is None:
            page = await names.list(after, limit)
        else:
            page = await self._shown(names, after, limit)
        self.grant.check(_OBSERVE)
        return page

    async def _shown(self, names: Namespace, after: str, limit: int) -> BindingPage:
        """A page of what is not hidden, as full as any."""
        hidden = self.grant.hidden
        assert hidden is not None  # noqa: S101 - asked by `list`
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        found: list[Binding] = []
        seen = 0
        while True:
            page = await names.list(after, limit + 1)
            for each in page.bindings:
                seen += 1
                if seen % hidden.pause == 0:
                    await asyncio.sleep(0)
                if not hidden.name(each.name):
                    if len(found) == limit:
                        return BindingPage(found, more=True)
                    found.append(each)
            if not page.more:
                return BindingPage(found)
            after = page.bindings[-1].name
            self.grant.check(_OBSERVE)

    async def sub(self, name: str) -> GuardedNamespace:
        self.grant.check(_OBSERVE)
        self._name(name)
        names = await (await self._begin(_OBSERVE)).sub(name)
        self.grant.check(_OBSERVE)
        return GuardedNamespace(names, self.grant, (*self.path, name))
