"""Namespaces under a grant.

Invariants: as in `capstore.service.guard`.  What a name for a saved reference gives is no matter of
this guard: `capstore.service.authority` decides who may bind one, and what resolving it lends.
"""

from __future__ import annotations

from dataclasses import replace

from capstore.backers.store import ANY, Binding, BindingPage, Condition, Namespace
from capstore.schema.errors import InvalidArgument, Revoked
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.service.grants import Effect, Grant

_OBSERVE, _CHANGE = Effect.OBSERVE, Effect.CHANGE
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

    def _begin(self, effect: Effect) -> Namespace:
        self.grant.check(effect)
        for pace in self.grant.paces:
            pace.begin()
        if self._names is None:
            raise Revoked("the capability was revoked")
        return self._names

    def check_may_change(self) -> None:
        """Raises what a change would raise for want of authority."""
        self.grant.check(_CHANGE)

    async def resolve(self, name: str) -> Binding:
        names = self._begin(_OBSERVE)
        binding = await names.resolve(check_name(name))
        self.grant.check(_OBSERVE)
        return binding

    async def bind(self, binding: Binding, condition: Condition = ANY) -> int:
        names = self._begin(_CHANGE)
        check_name(binding.name)
        if (binding.hash is None) == (binding.reference is None):
            raise InvalidArgument("a name stands for a hash or for a reference")
        if binding.hash is not None and len(binding.hash) != _HASH_BYTES:
            raise InvalidArgument(f"a hash has {_HASH_BYTES} bytes")
        with self.grant.changing():
            version = await names.bind(replace(binding, version=0), condition)
        self.grant.check(_CHANGE)
        return version

    async def unbind(self, name: str, condition: Condition = ANY) -> None:
        names = self._begin(_CHANGE)
        with self.grant.changing():
            await names.unbind(check_name(name), condition)
        self.grant.check(_CHANGE)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> BindingPage:
        page = await self._begin(_OBSERVE).list(after, limit)
        self.grant.check(_OBSERVE)
        return page

    async def sub(self, name: str) -> GuardedNamespace:
        names = await self._begin(_OBSERVE).sub(check_name(name))
        self.grant.check(_OBSERVE)
        return GuardedNamespace(names, self.grant, (*self.path, name))
