"""Faults that show on trees, and in what is saved of anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capstore.backers.node import RenameMode
from capstore.schema.errors import StorageError
from capstore.schema.nodes import Change
from capstore.service import ledger
from capstore.service.authority import Authority
from capstore.service.decisions import Effect
from capstore.service.gate import ReferenceServer
from capstore.service.grants import Grant
from capstore.service.guard import GuardedDirectory
from capstore.service.policy import Policy
from capstore.service.references import Reference, ReferenceTable, digest_of
from capstore.service.watcher import Watch
from tests.contract.model import Directory, File
from tests.service.confinement.faults import FIRST, Fault, Patch, fault, index, newest
from tests.service.confinement.play import Trees

FAULTS: dict[str, Fault] = {}


def _saved_and_restored(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(read_only=True), False, 0)
    machine.save(newest(machine), 1)
    machine.start_again()
    machine.restore(FIRST, 2)
    machine.create(newest(machine, Directory), "f")


@fault(FAULTS, _saved_and_restored, Trees)
def _a_saved_policy_is_forgotten(patch: Patch) -> None:
    patch.setattr(Authority, "_policy_of", lambda *args: Policy())


def _opened_to_read(machine: Trees) -> None:
    machine.open(FIRST, "a", 0)
    machine.save(newest(machine), 1)
    machine.restore(FIRST, 2)
    machine.write(newest(machine, File), 0, 4)


@fault(FAULTS, _opened_to_read, Trees)
def _what_was_opened_to_read_is_written(patch: Patch) -> None:
    patch.setattr(Grant, "reading", lambda self: self)


def _below_what_is_hidden(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(hidden_names=("h-*",)), False, 0)
    machine.sub(newest(machine, Directory), "h-d")


@fault(FAULTS, _below_what_is_hidden, Trees)
def _hidden_names_are_there(patch: Patch) -> None:
    async def existing(self: GuardedDirectory, name: str) -> None:
        """Nothing is looked at."""

    patch.setattr(GuardedDirectory, "_name", lambda self, name: name)
    patch.setattr(GuardedDirectory, "_existing", existing)


def _moved_out(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(max_file_bytes=8), False, 0)
    machine.rename(newest(machine, Directory), "a", FIRST, "x", RenameMode.REPLACE, False)


@fault(FAULTS, _moved_out, Trees)
def _nodes_move_out_from_under_a_policy(patch: Patch) -> None:
    patch.setattr(Grant, "stands_under", lambda *args: True)


def _grown(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(max_bytes=10), False, 0)
    machine.open(newest(machine, Directory), "a", 1)
    machine.write(newest(machine, File), 9, 12)


@fault(FAULTS, _grown, Trees)
def _a_quota_is_not_counted(patch: Patch) -> None:
    patch.setattr(ledger, "reserve", lambda *args: None)


# Ends --------------------------------------------------------------------------------------------


def _revoked_above(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(), True, 0)
    machine.attenuate(newest(machine), Policy(), True, 0)
    machine.revoke(index(len(machine.revokers) - 2))


@fault(FAULTS, _revoked_above, Trees)
def _what_is_below_outlives_a_revocation(patch: Patch) -> None:
    def end(self: Grant, reason: StorageError) -> list[Grant]:
        self._ended = self._ended or reason
        return [self]

    patch.setattr(Grant, "end", end)


@fault(FAULTS, _revoked_above, Trees)
def _a_revocation_ends_what_is_beside(patch: Patch) -> None:
    end = Grant.end
    patch.setattr(Grant, "end", lambda self, reason: end(self.parent or self, reason))


def _saved_and_revoked(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(), True, 0)
    machine.save(newest(machine), 1)
    machine.revoke(index(len(machine.revokers) - 1))


@fault(FAULTS, _saved_and_revoked, Trees)
def _what_was_saved_outlives_a_revocation(patch: Patch) -> None:
    async def remove(self: ReferenceTable, ids: Iterable[int]) -> None:
        await self.commit()

    patch.setattr(ReferenceTable, "remove", remove)


def _over(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(), False, 20)
    machine.time_passes(20)
    machine.list_names(newest(machine, Directory))


@fault(FAULTS, _over, Trees)
def _time_is_not_looked_at(patch: Patch) -> None:
    check = Grant.check

    def timeless(self: Grant, effect: Effect) -> None:
        ends, self.expires_at = self.expires_at, 0
        try:
            check(self, effect)
        finally:
            self.expires_at = ends

    patch.setattr(Grant, "check", timeless)


# Control -----------------------------------------------------------------------------------------

# Of the moves of `control`: oneself.
ITSELF = 0


def _of(position: int) -> int:
    """Another one, by its place among those that were saved."""
    return 4 * index(position) + 1


def _owner() -> int:
    """The owner of the tree has the token."""
    return 0


def _one_below_another(machine: Trees) -> None:
    """Two saved references: one with a time, and one below it."""
    machine.attenuate(FIRST, Policy(), False, 50)
    machine.save(newest(machine), 1)
    machine.restore(FIRST, 2)
    machine.save(newest(machine), 2)


def _renewed(machine: Trees) -> None:
    _one_below_another(machine)
    machine.control(_owner(), 0, "renew", _of(1), 10**6)


@fault(FAULTS, _renewed, Trees)
def _renewing_outlives_what_it_was_saved_from(patch: Patch) -> None:
    def owners(self: ReferenceTable, reference: Reference) -> Reference | None:
        above = list(self._above(reference))
        return above[-1] if above else None

    patch.setattr(ReferenceTable, "parent_with_token", owners)


def _controlled_from_below(machine: Trees) -> None:
    _one_below_another(machine)
    machine.control(index(1), 0, "rotate", _of(0), 0)


@fault(FAULTS, _controlled_from_below, Trees)
def _who_has_a_token_controls_all(patch: Patch) -> None:
    patch.setattr(ReferenceServer, "_check_below", lambda *args: None)


def _revoked_then_renewed(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(), True, 0)
    machine.save(newest(machine), 1)
    machine.control(_owner(), 0, "revoke", _of(0), 0)
    machine.control(_owner(), 0, "renew", _of(0), 35)


@fault(FAULTS, _revoked_then_renewed, Trees)
def _what_was_revoked_is_renewed(patch: Patch) -> None:
    """It has ended, and its number is still good for something."""
    gone: dict[int, Reference] = {}
    drop, below, get = ReferenceTable.drop, Authority.ids_below, ReferenceTable.get

    def dropped(self: ReferenceTable, reference_id: int) -> list[Reference]:
        found = drop(self, reference_id)
        gone.update((each.id, each) for each in found)
        return found

    patch.setattr(ReferenceTable, "drop", dropped)
    patch.setattr(Authority, "ids_below", lambda self, id_: below(self, id_) | gone.keys())
    patch.setattr(ReferenceTable, "get", lambda self, id_: get(self, id_) or gone.get(id_))


def _rotated(machine: Trees) -> None:
    _one_below_another(machine)
    machine.control(index(1), 0, "rotate", ITSELF, 0)


@fault(FAULTS, _rotated, Trees)
def _an_old_token_stays_good(patch: Patch) -> None:
    old: dict[str, int] = {}
    put = ReferenceTable._put

    def noted(self: ReferenceTable, reference: Reference) -> None:
        old[reference.digest] = reference.id
        put(self, reference)

    def find(self: ReferenceTable, token: str) -> Reference | None:
        return self.get(old.get(digest_of(token), 0))

    patch.setattr(ReferenceTable, "_put", noted)
    patch.setattr(ReferenceTable, "find", find)


@fault(FAULTS, _rotated, Trees)
def _control_outlives_its_token(patch: Patch) -> None:
    patch.setattr(ReferenceServer, "_check_token", lambda *args: None)


def _listed(machine: Trees) -> None:
    _one_below_another(machine)
    machine.control(index(1), 0, "list", ITSELF, 0)


@fault(FAULTS, _listed, Trees)
def _a_reference_lists_what_is_above(patch: Patch) -> None:
    def below(self: Authority, reference_id: int) -> list[Any]:
        return [each for each in self._table if each.id != reference_id]

    patch.setattr(Authority, "below", below)


# Watches -----------------------------------------------------------------------------------------


def _watched(machine: Trees) -> None:
    machine.attenuate(FIRST, Policy(hidden_names=("h-*",)), True, 0)
    machine.watch(newest(machine, Directory))
    machine.create(FIRST, "h-x")
    machine.list_names(FIRST)
    machine.revoke(index(len(machine.revokers) - 1))
    machine.create(FIRST, "f")
    machine.list_names(FIRST)


@fault(FAULTS, _watched, Trees)
def _who_watches_is_told_hidden_names(patch: Patch) -> None:
    note = Watch.note

    def shown(self: Watch, change: Change) -> None:
        hidden, self.grant.hidden = self.grant.hidden, None
        try:
            note(self, change)
        finally:
            self.grant.hidden = hidden

    patch.setattr(Watch, "note", shown)


@fault(FAULTS, _watched, Trees)
def _a_watch_outlives_a_revocation(patch: Patch) -> None:
    patch.setattr(Watch, "look", lambda self: None)
    patch.setattr(Watch, "_check", lambda self: None)
