"""Who may do what: saved references, live grants, and the end of both.

Invariants:

* A token gives exactly the node and the policies it was saved with, under the grant of the
  reference it was saved from; revoking anything above ends it, live and saved.
* One reference has one live grant, however often it is restored.
* A wrong, truncated, revoked and expired token are told apart by nothing.
* What is traced is not had from a service that records nothing; it can still be ended.
* What a policy counts (a quota, a rate) is used up once, however often what is under it is saved:
  see `_anchor`.
* No reference lives longer than the one it was saved from; only who holds that one, or one above,
  gives it another time.
* A reference has one token; the one it had before is as good as any wrong one.
* A name gives what was saved only where somebody with authority over the reference bound it, in
  this store (`may_bind`), and never more than the namespace it is read in allows (`lent`).
* The owner's token of a volume is derived from the owner key, so a restart gives the same URI
  without a token being stored.  Revoking it moves the volume to its next epoch, hence token.
* So is that of a standing share, with the reference's id, which is never used again: whether a
  reference is one shows in its digest (`capstore.service.shares`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from capstore.backers.node import DirectoryNode, FileNode, Node, Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import (
    Denied,
    Expired,
    InvalidArgument,
    NotFound,
    Revoked,
)
from capstore.schema.limits import LABEL_BYTES_MAX
from capstore.service.dry import dry_node, real_node
from capstore.service.dry_store import DryStore
from capstore.service.exchanges import Exchanges
from capstore.service.grants import Effect, Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.name_guard import GuardedNamespace
from capstore.service.references import Reference, ReferenceTable, digest_of
from capstore.service.scope import Scope
from capstore.service.shares import StandingShare
from capstore.service.store_guard import GuardedStore
from capstore.service.tokens import Tokens

Guarded = GuardedDirectory | GuardedFile | GuardedStore | GuardedNamespace


class Authority:
    """The authority of one service over its volumes."""

    def __init__(
        self,
        volumes: Mapping[str, Volume | ObjectStore],
        table: ReferenceTable,
        owner_key: bytes,
        *,
        audited: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._volumes = {
            name: ServedVolume(name, volume, audited) for name, volume in volumes.items()
        }
        self._table = table
        self._clock = clock
        self._grants: dict[int, Grant] = {}
        self._tokens = Tokens(owner_key)
        # What gives references another time, or another token.
        self.exchanges = Exchanges(self, table, self._tokens, clock)

    # Owners ------------------------------------------------------------------------------------

    def owner_token(self, volume: str) -> str:
        """The token of the whole of `volume`, as long as its owner reference is not revoked."""
        return self._tokens.owner(volume, self._table.epochs.get(volume, 0))

    async def ensure_owners(self) -> None:
        """Makes the owner reference of each volume that has none."""
        self.collect()
        for name, served in self._volumes.items():
            token = self.owner_token(name)
            if self._table.find(token) is None:
                kind = "store" if isinstance(served.volume, ObjectStore) else "directory"
                owner = self._reference(token, "owner", kind, name, b"", Policy(), 0)
                await self._table.add(owner)

    def _reference(
        self,
        token: str,
        label: str,
        kind: str,
        volume: str,
        handle: bytes,
        policy: Policy,
        parent: int,
    ) -> Reference:
        return Reference(
            id=0,
            digest=digest_of(token),
            label=label,
            kind=kind,
            volume=volume,
            handle=handle,
            policy=policy,
            parent=parent,
            created=self._clock(),
        )

    # Standing shares ---------------------------------------------------------------------------

    def served(self, volume: str) -> Volume | ObjectStore:
        """What is served under a name.  Raises KeyError."""
        return self._volumes[volume].volume

    def standing_token(self, reference: Reference) -> str:
        """The token of a standing share."""
        return self._tokens.standing(reference)

    def standing(self) -> list[Reference]:
        """The standing shares of all volumes, also of those that are not served now."""
        return [each for each in self._table if self._tokens.stands(each)]

    def check_traced(self, share: StandingShare) -> None:
        """Raises `Unsupported` for a share that would be traced, where nothing is."""
        if share.more.traced:
            self._volumes[share.volume].check_audited()

    async def add_standing(self, share: StandingShare, kind: str, handle: bytes) -> Reference:
        """Makes a standing share of the node that `handle` names.  Raises as
        `ReferenceTable.add`."""
        owner = self._valid(self.owner_token(share.volume))
        made = self._reference("", share.label, kind, share.volume, handle, Policy(), owner.id)
        made = replace(made, id=self._table.next_id, policy=share.policy(made.created))
        return await self._table.add(replace(made, digest=digest_of(self.standing_token(made))))

    async def end_standing(self, ids: Iterable[int]) -> None:
        """Ends standing shares with all below them, before anybody holds one live.  Raises as
        `ReferenceTable.remove`."""
        ended = set(ids)
        await self._table.remove(ended.union(*map(self.ids_below, ended)))

    # Saving and restoring ----------------------------------------------------------------------

    async def save(self, guarded: Guarded, label: str) -> str:
        """Saves a reference to the node with its authority; returns the token.

        Raises `InvalidArgument` for a label over 200 bytes or with control characters, and what
        the volume raises for a node it cannot name.
        """
        grant = guarded.grant
        grant.check(Effect.OBSERVE)
        if len(label.encode("utf-8", "surrogatepass")) > LABEL_BYTES_MAX or not label.isprintable():
            raise InvalidArgument(f"a label is at most {LABEL_BYTES_MAX} bytes of printable text")
        if grant.borrowed:
            raise Denied("what a name gave is not saved: keep the name")
        handle = await _handle_of(guarded)
        grant.check(Effect.OBSERVE)
        child = grant.derive(Policy())
        token = Tokens.fresh()
        self.collect()
        # Anchors and reference are inserted before the next await: what one save puts into the
        # table is not collected by another one before it holds something.
        made: list[int] = []
        try:
            self._anchor(grant, made)
            reference = await self._table.add(
                self._reference(
                    token,
                    label,
                    guarded.wire_kind,
                    grant.served.name,
                    handle,
                    self._policy_of(grant),
                    grant.nearest_reference(),
                )
            )
        except BaseException:
            self._forget(made)
            raise
        if grant.revoked or reference.id not in self._table:
            # A revocation came in between; it may not have seen the reference.
            await self._table.remove([reference.id])
            raise Revoked("the capability was revoked")
        child.reference_id = reference.id
        self._grants[reference.id] = child
        return token

    def _anchor(self, grant: Grant, made: list[int]) -> None:
        """Gives every attenuation above `grant` that counts a reference of its own.

        Nobody has a token of it.  What is saved below it finds what is used of a quota there,
        instead of each having all of it.  It has no time of its own: that is of what was saved,
        which so can be given another one.  Adds the ids to `made`; raises as
        `ReferenceTable.insert`.
        """
        links: list[Grant] = []
        link: Grant | None = grant
        while link is not None and not link.reference_id:
            links.append(link)
            link = link.parent
        for link in reversed(links):
            if link.policy.counts:
                anchor = Reference(
                    id=0,
                    digest="",
                    label="a quota or a rate, for what is saved below",
                    kind="store" if isinstance(link.served.volume, ObjectStore) else "directory",
                    volume=link.served.name,
                    handle=b"",
                    policy=replace(link.policy_since_reference(), expires_at=0),
                    parent=link.nearest_reference(),
                    created=self._clock(),
                    used=_used(link),
                )
                anchor = self._table.insert(anchor)
                made.append(anchor.id)
                link.reference_id = anchor.id
                self._grants[anchor.id] = link

    def _policy_of(self, grant: Grant) -> Policy:
        """All that was taken away since the reference it came from, in so far as that is an anchor
        with the time that is over first since the one before."""
        policy, link = grant.policy_since_reference(), grant
        expiry = Policy(expires_at=policy.expires_at)
        while link.parent is not None and self._has_no_token(link):
            expiry = expiry.under(Policy(expires_at=link.policy.expires_at))
            link = link.parent
        return replace(policy, expires_at=expiry.expires_at)

    def _has_no_token(self, link: Grant) -> bool:
        reference = self._table.get(link.reference_id)
        return reference is None or reference.anchor

    def _forget(self, made: Sequence[int]) -> None:
        """Takes anchors out again, but those below which others were saved meanwhile."""
        for reference_id in reversed(made):
            if not self._table.below(reference_id):
                self._released(self._table.drop(reference_id))

    def collect(self) -> None:
        """Removes what has expired, and anchors that hold nothing; durable with the next change."""
        self._released(self._table.drop_expired(self._clock()))

    def _released(self, dropped: Iterable[Reference]) -> None:
        for reference in dropped:
            grant = self._grants.pop(reference.id, None)
            if grant is not None and reference.anchor:
                # It may be saved from again.
                grant.reference_id = 0

    async def restore(self, token: str) -> Guarded:
        """The node saved under `token`, with its authority.

        Raises `Denied`, always the same, for a token that gives nothing, `NotFound` when the node
        is gone, and `Unsupported` for what is traced, where nothing is.
        """
        reference = self._valid(token)
        return await self._restored(reference, self.grant_of(reference))

    async def _restored(self, reference: Reference, grant: Grant) -> Guarded:
        """What `reference` stands for, under `grant`."""
        volume = grant.served.volume
        grant.check_traced()
        # A dry run that was saved begins anew.
        grant = grant.restarted()
        if isinstance(volume, ObjectStore):
            store = DryStore(volume, grant) if grant.dry_run else volume
            guarded = await _part_of(store, reference, grant)
        else:
            node = await _node_of(reference, volume)
            if grant.dry_run:
                node = await dry_node(node, grant)
            guarded = _guarded(node, reference, grant)
        grant.check(Effect.OBSERVE)
        self._table.touch(reference.id, self._clock())
        return guarded

    def _valid(self, token: str) -> Reference:
        reference = self._table.find(token)
        if reference is None or reference.volume not in self._volumes:
            raise _denied()
        grant = self.grant_of(reference)
        if grant.revoked or (grant.expires_at and self._clock() >= grant.expires_at):
            raise _denied()
        return reference

    @property
    def reference_count(self) -> int:
        """How many references are saved, those of owners among them."""
        return len(self._table)

    def label_of(self, reference_id: int) -> str | None:
        """The label of a reference; None where there is none."""
        reference = self._table.get(reference_id)
        return None if reference is None else reference.label

    def grant_of(self, reference: Reference) -> Grant:
        """The one live grant of a reference.  Raises `Denied` for one whose parents are gone."""
        missing: list[Reference] = []
        above: Reference | None = reference
        while above is not None and above.id not in self._grants:
            missing.append(above)
            above = self._table.get(above.parent)
        if above is None and missing[-1].parent:
            raise _denied()
        for each in reversed(missing):
            parent = self._grants.get(each.parent)
            self._grants[each.id] = (
                self._owner_grant(each)
                if parent is None
                else parent.derive(each.policy, reference_id=each.id, used=each.used)
            )
        return self._grants[reference.id]

    def _owner_grant(self, reference: Reference) -> Grant:
        served = self._volumes[reference.volume]
        return Grant(served, reference.policy, reference_id=reference.id, clock=self._clock)

    def serves(self, volume: str) -> bool:
        """Whether something is served under this name."""
        return volume in self._volumes

    # Names -------------------------------------------------------------------------------------

    async def may_bind(self, names: GuardedNamespace, reference_id: int, token: str) -> int:
        """The id of the reference that a name in `names` may stand for from now on.

        That takes its `token`, or to have restored `names`, whole, from what it was saved below.
        Raises `Denied`, always the same, and `StorageIOError`.
        """
        names.check_may_bind()
        if token:
            reference = self._valid(token)
            if reference_id not in (0, reference.id):
                raise _denied()
            reference_id = reference.id
        elif not names.restored_from or reference_id not in self.ids_below(names.restored_from):
            raise _denied()
        # Ids are small numbers, and an image may come from elsewhere: the reference has to know.
        if names.grant.dry_run:
            names.note_bound(reference_id)
        else:
            await self._table.bind(reference_id, names.grant.served.name)
        return reference_id

    async def lent(self, reference_id: int, names: GuardedNamespace) -> Guarded:
        """What a name in `names` stands for, with the authority of both.

        Raises `NotFound` for a reference that has ended, or was never bound in this store, and
        `Unsupported` as `restore`.
        """
        reference = self._table.get(reference_id)
        ended = NotFound("what the name stood for has ended")
        if reference is None or reference.volume not in self._volumes:
            raise ended
        if names.grant.served.name not in reference.bound and not names.has_bound(reference_id):
            raise ended
        try:
            grant = self.grant_of(reference)
            grant.check(Effect.OBSERVE)
        except (Denied, Revoked, Expired):
            raise ended from None
        return await self._restored(reference, grant.lent_to(names.grant))

    # Cursors -----------------------------------------------------------------------------------

    def cursor(self, listing: Sequence[bytes], last: bytes) -> bytes:
        """A cursor behind `last` of the listing that `listing` tells from all others."""
        return self._tokens.cursor(listing, last)

    def behind(self, listing: Sequence[bytes], cursor: bytes) -> bytes:
        """Where `cursor` stands.  Raises `InvalidArgument` for one of another listing."""
        return self._tokens.behind(listing, cursor)

    # Control -----------------------------------------------------------------------------------

    def controlled_by(self, token: str) -> Reference:
        """The reference of a token, for control over it; raises `Denied` as `restore` does."""
        return self._valid(token)

    def status(self, reference_id: int) -> Reference:
        """Raises `Denied` for a revoked reference, `Expired` for one whose time is over."""
        reference = self._table.get(reference_id)
        if reference is None:
            raise _denied()
        self.grant_of(reference).check(Effect.OBSERVE)
        return reference

    def rotated_since(self, reference_id: int, digest: str) -> bool:
        """Whether a reference that had this token has another one now."""
        reference = self._table.get(reference_id)
        return reference is not None and reference.digest != digest

    def saver_of(self, reference: Reference) -> str:
        """The label of the reference that whoever saved this one had; an owner's has none."""
        above = self._table.parent_with_token(reference)
        return "" if above is None else above.label

    def below(self, reference_id: int) -> list[Reference]:
        """Everything saved below a reference, in the order of ids.  Raises as `status`."""
        self.status(reference_id)
        return self._table.below(reference_id)

    def ids_below(self, reference_id: int) -> set[int]:
        """The ids of everything saved below a reference, expired or not."""
        return {reference.id for reference in self._table.below(reference_id)}

    async def revoke_reference(self, reference_id: int) -> None:
        """Ends a reference with all below it, durably; ending it again is no error.

        Raises `StorageIOError` when the end could not be made durable; it holds until a restart,
        is tried again by the service itself, and may be asked for again.
        """
        reference = self._table.get(reference_id)
        if reference is None:
            await self._table.commit()
        else:
            await self.revoke(self.grant_of(reference))

    async def revoke(self, grant: Grant) -> None:
        """Ends `grant` with everything derived and saved from it.

        Authority ends before the first await.  When this returns, no change begun under it is
        under way, and the end of saved references is durable.  Raises as `revoke_reference`.
        """
        grants = grant.end(Revoked("the capability was revoked"))
        ids = {each.reference_id for each in grants if each.reference_id}
        ids |= {below for each in list(ids) for below in self.ids_below(each)}
        for reference_id in ids:
            self._grants.pop(reference_id, None)
            self.move_to_next_epoch(self._table.get(reference_id))
        try:
            # Also with nothing to remove: an earlier attempt may not have reached the disk.
            await self._table.remove(ids)
        finally:
            for each in grants:
                await each.settled()

    def move_to_next_epoch(self, reference: Reference | None) -> None:
        """Has a volume another owner token, if this is its owner's reference."""
        if reference is not None and reference.parent == 0:
            self._table.epochs[reference.volume] = self._table.epochs.get(reference.volume, 0) + 1

    async def commit(self) -> None:
        """Makes durable what is not yet: times of last use, what is used of quotas, and ends that
        could not be written.  What has expired leaves the table."""
        self.collect()
        for reference_id, grant in self._grants.items():
            if grant.book is not None:
                self._table.note_used(reference_id, _used(grant))
        await self._table.commit()


def _used(grant: Grant) -> tuple[int, int]:
    book = grant.book
    return (0, 0) if book is None else (book.bytes_used, book.nodes_used)


async def _handle_of(guarded: Guarded) -> bytes:
    """Raises what the volume raises for a node it cannot name."""
    if isinstance(guarded, GuardedStore | GuardedNamespace):
        return guarded.handle
    volume = guarded.grant.served.volume
    if isinstance(volume, ObjectStore):
        raise NotFound("a store has no nodes")
    return await volume.handle_of(await real_node(guarded.node))


def _guarded(node: Node, reference: Reference, grant: Grant) -> Guarded:
    # An owner's reference stands for the root, of whatever is served under the name now.
    if isinstance(node, DirectoryNode) and (reference.kind == "directory" or not reference.parent):
        return GuardedDirectory(node, grant)
    if reference.kind == "file" and isinstance(node, FileNode):
        return GuardedFile(node, grant)
    raise NotFound("what was saved is gone")


async def _part_of(store: ObjectStore, reference: Reference, grant: Grant) -> Guarded:
    """The store, or the names over it, that was saved.

    Raises `NotFound` where a tree was served under this name then.
    """
    if reference.kind == "store" or not reference.parent:
        return GuardedStore(store, grant, Scope.of(reference.handle), reference.id)
    if reference.kind != "namespace":
        raise NotFound("what was saved is gone")
    names, path = store.names, _names_in(reference.handle)
    for name in path:
        names = await names.sub(name)
    return GuardedNamespace(names, grant, path, reference.id)


def _names_in(handle: bytes) -> tuple[str, ...]:
    return tuple(handle.decode().split("/")) if handle else ()


async def _node_of(reference: Reference, volume: Volume) -> Node:
    if not reference.handle:
        return volume.root
    try:
        return await volume.node_of(reference.handle)
    except InvalidArgument:
        # The handle is of another volume, which was served under this name.
        raise NotFound("what was saved is gone") from None


def _denied() -> Denied:
    return Denied("no such reference")
