"""Faults that show on stores, and on names."""

from __future__ import annotations

from typing import Any

from capstore.backers.store import ANY, Change, Condition, ObjectPage, ObjectStat, check_key
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import Buffer
from capstore.service import store_guard
from capstore.service.authority import Authority
from capstore.service.grants import Grant
from capstore.service.name_guard import GuardedNamespace
from capstore.service.policy import Policy
from capstore.service.scope import DROP, PUT, Scope
from capstore.service.store_guard import GuardedSink, GuardedStore
from capstore.service.tokens import Tokens
from tests.contract.model import Directory
from tests.service.confinement.faults import FIRST, STORE, Fault, Patch, fault, index, newest
from tests.service.confinement.play import Everything
from tests.service.confinement.stores import CONTENT
from tests.service.confinement.world import Names, Objects, hash_of

FAULTS: dict[str, Fault] = {}

HIDES = Policy(hidden_names=("h-*",))


def _newest_store(machine: Everything) -> int:
    return newest(machine, Objects)


# Parts -------------------------------------------------------------------------------------------


def _below_a_prefix(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.get(_newest_store(machine), b"out")


@fault(FAULTS, _below_a_prefix)
def _a_prefix_is_not_looked_at(patch: Patch) -> None:
    patch.setattr(Scope, "key", lambda self, key: check_key(key))


def _below_two(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.part(_newest_store(machine), "sub_store", b"o")
    machine.list_keys(_newest_store(machine), b"", b"")


@fault(FAULTS, _below_two)
def _a_part_of_a_part_leaves_it(patch: Patch) -> None:
    patch.setattr(Scope, "below", lambda self, prefix: Scope(self.verbs, prefix))


def _part_saved(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.save(newest(machine), 1)
    machine.restore(FIRST, 2)
    machine.list_keys(_newest_store(machine), b"", b"")


@fault(FAULTS, _part_saved)
def _a_saved_part_is_the_whole(patch: Patch) -> None:
    patch.setattr(Scope, "of", lambda handle: Scope())


def _counted(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.usage_of_store(_newest_store(machine))


@fault(FAULTS, _counted)
def _a_part_is_told_the_usage_of_the_whole(patch: Patch) -> None:
    async def usage(self: GuardedStore) -> Any:
        return await self._inner.usage()

    patch.setattr(GuardedStore, "usage", usage)


def _batch_below(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.batch(_newest_store(machine), [(b"out", ANY, None)])


@fault(FAULTS, _batch_below)
def _a_batch_leaves_its_part(patch: Patch) -> None:
    def change(self: GuardedStore, change: Change) -> Change:
        return change

    patch.setattr(GuardedStore, "_inner_change", change)


def _cursor_elsewhere(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.list_on(_newest_store(machine), FIRST, b"")


@fault(FAULTS, _cursor_elsewhere)
def _a_cursor_is_good_for_any_listing(patch: Patch) -> None:
    cursor, behind = Tokens.cursor, Tokens.behind
    patch.setattr(Tokens, "cursor", lambda self, listing, last: cursor(self, (), last))
    patch.setattr(Tokens, "behind", lambda self, listing, given: behind(self, (), given))


def _maintained(machine: Everything) -> None:
    machine.part(FIRST, "sub_store", b"in/")
    machine.maintain(_newest_store(machine), True)


@fault(FAULTS, _maintained)
def _a_part_maintains_the_whole(patch: Patch) -> None:
    patch.setattr(GuardedStore, "_whole", lambda self: self._inner)


# Drop boxes --------------------------------------------------------------------------------------


def _asked(machine: Everything) -> None:
    machine.part(FIRST, "put_only", b"")
    machine.has(_newest_store(machine), b"a")


@fault(FAULTS, _asked)
def _a_drop_box_tells_what_is_there(patch: Patch) -> None:
    async def has(self: GuardedStore, key: bytes) -> bool:
        return await self._inner.has(self.scope.key(key))

    patch.setattr(GuardedStore, "has", has)


def _dropped(machine: Everything) -> None:
    machine.part(FIRST, "put_only", b"")
    machine.put(_newest_store(machine), b"a", ANY, 4)


@fault(FAULTS, _dropped)
def _a_drop_box_replaces(patch: Patch) -> None:
    def target(self: Scope, key: bytes, condition: Condition) -> tuple[bytes, Condition]:
        return (self.key(key) if key else key), condition

    patch.setattr(Scope, "target", target)


@fault(FAULTS, _dropped)
def _a_drop_box_tells_versions(patch: Patch) -> None:
    shown = Scope.shown

    def told(self: Scope, stat: ObjectStat) -> ObjectStat:
        return shown(Scope(PUT | DROP, self.prefix), stat)

    patch.setattr(Scope, "shown", told)


# Policies ----------------------------------------------------------------------------------------


def _hidden_from(machine: Everything) -> None:
    machine.attenuate(STORE, HIDES, False, 0)
    machine.get(_newest_store(machine), b"h-a")


@fault(FAULTS, _hidden_from)
def _hidden_keys_are_there(patch: Patch) -> None:
    patch.setattr(GuardedStore, "_check_shown", lambda *args: None)


def _listed(machine: Everything) -> None:
    machine.attenuate(STORE, HIDES, False, 0)
    machine.list_keys(_newest_store(machine), b"", b"")


@fault(FAULTS, _listed)
def _hidden_keys_are_listed(patch: Patch) -> None:
    async def page(
        self: GuardedStore, store: Any, prefix: bytes, after: bytes, limit: int
    ) -> ObjectPage:
        found: ObjectPage = await store.list(prefix, after, min(limit, PAGE_ENTRIES_MAX))
        return found

    patch.setattr(GuardedStore, "_page", page)


def _added(machine: Everything) -> None:
    machine.attenuate(STORE, Policy(append_only=True), False, 0)
    machine.put(_newest_store(machine), b"a", ANY, 4)


@fault(FAULTS, _added)
def _who_only_adds_replaces(patch: Patch) -> None:
    def target(self: GuardedStore, key: bytes, condition: Condition) -> tuple[bytes, Condition]:
        return self.scope.target(key, condition)

    patch.setattr(GuardedStore, "_target", target)


def _over_its_quota(machine: Everything) -> None:
    machine.attenuate(STORE, Policy(max_bytes=10), False, 0)
    machine.put(_newest_store(machine), b"new", ANY, 12)


@fault(FAULTS, _over_its_quota)
def _a_quota_of_a_store_is_not_counted(patch: Patch) -> None:
    patch.setattr(store_guard, "reserve", lambda *args: None)


def _committed_late(machine: Everything) -> None:
    machine.attenuate(STORE, Policy(), True, 0)
    machine.begin(_newest_store(machine), b"new", ANY)
    machine.write_piece(FIRST, 4)
    machine.revoke(index(len(machine.revokers) - 1))
    machine.commit(FIRST)


@fault(FAULTS, _committed_late)
def _what_was_begun_outlives_a_revocation(patch: Patch) -> None:
    async def write(self: GuardedSink, data: Buffer) -> None:
        assert self._sink is not None
        await self._sink.write(data)

    async def commit(self: GuardedSink) -> ObjectStat:
        assert self._sink is not None
        return await self._sink.commit()

    patch.setattr(GuardedSink, "release", lambda self: None)
    patch.setattr(GuardedSink, "write", write)
    patch.setattr(GuardedSink, "commit", commit)


# Names -------------------------------------------------------------------------------------------


def _names_of_a_part(machine: Everything) -> None:
    machine.part(FIRST, "get_only", b"")
    machine.namespace(_newest_store(machine))


@fault(FAULTS, _names_of_a_part)
def _a_part_gives_the_names(patch: Patch) -> None:
    def namespace(self: GuardedStore) -> GuardedNamespace:
        return GuardedNamespace(self._inner.names, self.grant, ())

    patch.setattr(GuardedStore, "namespace", namespace)


def _bound_by_number(machine: Everything) -> None:
    """The tree is not below the store."""
    machine.save(FIRST, 1)
    machine.namespace(FIRST)
    machine.bind_number(newest(machine, Names), "a", index(0), ANY)


@fault(FAULTS, _bound_by_number)
def _a_number_is_authority(patch: Patch) -> None:
    async def may_bind(
        self: Authority, names: GuardedNamespace, reference_id: int, token: str
    ) -> int:
        found = self._table.find(token)
        reference_id = reference_id if found is None else found.id
        await self._table.bind(reference_id, names.grant.served.name)
        return reference_id

    patch.setattr(Authority, "may_bind", may_bind)


def _lent(machine: Everything) -> None:
    """The tree, by who holds the names read-only."""
    machine.lend(FIRST, FIRST, "a", 1)
    machine.attenuate(STORE, Policy(read_only=True), True, 0)
    machine.namespace(_newest_store(machine))
    machine.resolve(newest(machine, Names), "a")


def _written_as_lent(machine: Everything) -> None:
    _lent(machine)
    machine.mkdir(newest(machine, Directory), "f")


def _lent_and_revoked(machine: Everything) -> None:
    _lent(machine)
    machine.revoke(index(len(machine.revokers) - 1))


def _lent_and_saved(machine: Everything) -> None:
    _lent(machine)
    machine.save(newest(machine), 1)


def _to_no_holder(self: Grant, holder: Grant) -> Grant:
    lent = self.derive(Policy())
    lent.borrowed = True
    return lent


@fault(FAULTS, _written_as_lent)
def _a_name_lends_more_than_its_namespace_has(patch: Patch) -> None:
    patch.setattr(Grant, "lent_to", _to_no_holder)


@fault(FAULTS, _lent_and_revoked)
def _what_was_lent_outlives_the_namespace(patch: Patch) -> None:
    def lent_to(self: Grant, holder: Grant) -> Grant:
        lent = self.derive(holder.whole_policy)
        lent.borrowed = True
        return lent

    patch.setattr(Grant, "lent_to", lent_to)


@fault(FAULTS, _lent_and_saved)
def _what_was_lent_is_saved(patch: Patch) -> None:
    lent_to = Grant.lent_to

    def kept(self: Grant, holder: Grant) -> Grant:
        lent = lent_to(self, holder)
        lent.borrowed = False
        return lent

    patch.setattr(Grant, "lent_to", kept)


def _hidden_name(machine: Everything) -> None:
    machine.attenuate(STORE, HIDES, False, 0)
    machine.namespace(_newest_store(machine))
    machine.bind_content(newest(machine, Names), "h-a", hash_of(CONTENT), ANY)


@fault(FAULTS, _hidden_name)
def _hidden_names_are_bound(patch: Patch) -> None:
    patch.setattr(GuardedNamespace, "_name", lambda self, name: name)
