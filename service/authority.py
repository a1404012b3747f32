"""Who may do what: saved references, live grants, and the end of both.

Invariants:

* A token gives exactly the node and the policies it was saved with, under the grant of the
  reference it was saved from; revoking anything above ends it, live and saved.
* One reference has one live grant, however often it is restored.
* A wrong, truncated, revoked and expired token are told apart by nothing.
* The owner's token of a volume is derived from the owner key, so a restart gives the same URI
  without a token being stored.  Revoking it moves the volume to its next epoch, hence token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping

from capstore.backers.node import DirectoryNode, FileNode, Node, Volume
from capstore.schema.errors import Denied, InvalidArgument, NotFound, Revoked
from capstore.schema.limits import LABEL_BYTES_MAX
from capstore.service.grants import Effect, Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.references import Reference, ReferenceTable, digest_of

Guarded = GuardedDirectory | GuardedFile


class Authority:
    """The authority of one service over its volumes."""

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        table: ReferenceTable,
        owner_key: bytes,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._volumes = {name: ServedVolume(name, volume) for name, volume in volumes.items()}
        self._table = table
        self._owner_key = owner_key
        self._clock = clock
        self._grants: dict[int, Grant] = {}

    # Owners ------------------------------------------------------------------------------------

    def owner_token(self, volume: str) -> str:
        """The token of the whole of `volume`, as long as its owner reference is not revoked."""
        epoch = self._table.epochs.get(volume, 0)
        message = f"capstore owner token 1\0{epoch}\0{volume}".encode()
        return _text(hmac.new(self._owner_key, message, hashlib.sha256).digest())

    async def ensure_owners(self) -> None:
        """Makes the owner reference of each volume that has none."""
        self._table.drop_expired(self._clock())
        for name in self._volumes:
            token = self.owner_token(name)
            if self._table.find(token) is None:
                owner = self._reference(token, "owner", "directory", name, b"", Policy(), 0)
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
        handle = await grant.served.volume.handle_of(guarded.node)
        grant.check(Effect.OBSERVE)
        child = grant.derive(Policy())
        token = _text(secrets.token_bytes(32))
        policy = grant.policy_since_reference()
        self._table.drop_expired(self._clock())
        reference = await self._table.add(
            self._reference(
                token,
                label,
                guarded.wire_kind,
                grant.served.name,
                handle,
                policy,
                grant.nearest_reference(),
            )
        )
        if grant.revoked or reference.id not in self._table:
            # A revocation came in between; it may not have seen the reference.
            await self._table.remove([reference.id])
            raise Revoked("the capability was revoked")
        child.reference_id = reference.id
        self._grants[reference.id] = child
        return token

    async def restore(self, token: str) -> Guarded:
        """The node saved under `token`, with its authority.

        Raises `Denied`, always the same, for a token that gives nothing, and `NotFound` when the
        node is gone.
        """
        reference = self._valid(token)
        grant = self.grant_of(reference)
        node = await _node_of(reference, grant.served.volume)
        grant.check(Effect.OBSERVE)
        self._table.touch(reference.id, self._clock())
        if reference.kind == "directory" and isinstance(node, DirectoryNode):
            return GuardedDirectory(node, grant)
        if reference.kind == "file" and isinstance(node, FileNode):
            return GuardedFile(node, grant)
        raise NotFound("what was saved is gone")

    def _valid(self, token: str) -> Reference:
        reference = self._table.find(token)
        if reference is None or reference.volume not in self._volumes:
            raise _denied()
        grant = self.grant_of(reference)
        if grant.revoked or (grant.expires_at and self._clock() >= grant.expires_at):
            raise _denied()
        return reference

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
                else parent.derive(each.policy, reference_id=each.id)
            )
        return self._grants[reference.id]

    def _owner_grant(self, reference: Reference) -> Grant:
        served = self._volumes[reference.volume]
        return Grant(served, reference.policy, reference_id=reference.id, clock=self._clock)

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
            self._move_to_next_epoch(self._table.get(reference_id))
        try:
            # Also with nothing to remove: an earlier attempt may not have reached the disk.
            await self._table.remove(ids)
        finally:
            for each in grants:
                await each.settled()

    def _move_to_next_epoch(self, reference: Reference | None) -> None:
        if reference is not None and reference.parent == 0:
            self._table.epochs[reference.volume] = self._table.epochs.get(reference.volume, 0) + 1

    async def commit(self) -> None:
        """Makes durable what is not yet: times of last use, and ends that could not be written."""
        await self._table.commit()


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


def _text(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()
