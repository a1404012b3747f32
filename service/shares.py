"""Standing shares: references that a service makes, or finds again, at each of its starts.

Invariants:

* What is asked for is there afterwards, and no other standing share: one that is not asked for any
  more, or on other terms, has ended, with all that was saved from it.
* A share that stays keeps its token, and its time: it expires that long after it was made, not
  after each start.  Any other, also one that was revoked or has expired, gets a new token.
* A share is of the node that its path leads to now; links are not followed.
* What may go wrong with one share (no such path) keeps nothing else from being served: who may
  change a volume must not be able to keep the service from starting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from capstore.backers.node import DirectoryNode, FileNode, Node, NodeKind, Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import InvalidArgument, StorageError, Unsupported
from capstore.service.grants import Policy
from capstore.service.references import Reference

if TYPE_CHECKING:
    from capstore.service.authority import Authority

__all__ = ["Kept", "StandingShare", "keep_shares"]


@dataclass(frozen=True, slots=True)
class StandingShare:
    """What is shared under a label, and on what terms; `lifetime` is in ns, 0 for ever.

    `more` is what else is taken away; `path` leads from the root of the volume, that of a store is
    empty.
    """

    label: str
    volume: str
    path: tuple[str, ...] = ()
    read_only: bool = False
    lifetime: int = 0
    more: Policy = field(default_factory=Policy)

    def policy(self, created: int) -> Policy:
        """What is taken away from a share that was made at `created`, in ns since 1970."""
        expires_at = created + self.lifetime if self.lifetime else 0
        return replace(self.more, read_only=self.read_only, expires_at=expires_at)


class Kept(NamedTuple):
    """What became of a share: its token, or why there is none."""

    share: StandingShare
    token: str | None
    error: StorageError | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path leads to, as a reference holds it."""

    kind: str
    handle: bytes


async def keep_shares(authority: Authority, shares: Sequence[StandingShare]) -> list[Kept]:
    """Brings the standing shares to what `shares` say; to be called before anyone is connected.

    Raises `StorageIOError` when the end of a share could not be made durable, and KeyError for a
    volume that is not served.
    """
    standing = authority.standing()
    found: dict[StandingShare, _Target | StorageError] = {}
    kept: dict[StandingShare, Reference] = {}
    for share in shares:
        volume = authority.served(share.volume)
        try:
            found[share] = target = await _target_of(volume, share.path)
        except StorageError as error:
            found[share] = error
            continue
        for reference in standing:
            if await _stands_for(reference, share, target, volume):
                kept[share] = reference
    stay = {reference.id for reference in kept.values()}
    await authority.end_standing(each.id for each in standing if each.id not in stay)
    return [await _made(authority, share, found[share], kept.get(share)) for share in shares]


async def _made(
    authority: Authority,
    share: StandingShare,
    target: _Target | StorageError,
    reference: Reference | None,
) -> Kept:
    if isinstance(target, StorageError):
        return Kept(share, None, target)
    try:
        authority.check_traced(share)
    except Unsupported as error:
        # What was shared so before stays, and gives nothing until there is an audit again.
        return Kept(share, None, error)
    if reference is not None:
        return Kept(share, authority.standing_token(reference))
    try:
        made = await authority.add_standing(share, target.kind, target.handle)
    except StorageError as error:
        return Kept(share, None, error)
    return Kept(share, authority.standing_token(made))


async def _stands_for(
    reference: Reference, share: StandingShare, target: _Target, volume: Volume | ObjectStore
) -> bool:
    """Whether a standing reference is of this share, on its terms, and of its node."""
    return (
        (reference.label, reference.volume) == (share.label, share.volume)
        and reference.policy == share.policy(reference.created)
        and reference.kind == target.kind
        and await _same_node(volume, reference.handle, target.handle)
    )


async def _same_node(volume: Volume | ObjectStore, old: bytes, new: bytes) -> bool:
    if old == new:
        return True
    if isinstance(volume, ObjectStore) or not (old and new):
        return False
    # A volume may have several words for a node: one for each time that it was opened.
    try:
        node = await volume.node_of(old)
        return await _handle_of(volume, node) == new
    except StorageError:
        return False


async def _target_of(volume: Volume | ObjectStore, path: Sequence[str]) -> _Target:
    """What `path` leads to.  Raises what the volume raises on the way, and for a link."""
    if isinstance(volume, ObjectStore):
        return _Target("store", b"")
    # The root is what is the root after the next start, too.
    if not path:
        return _Target("directory", b"")
    place = "/" + "/".join(path)
    try:
        directory = volume.root
        for name in path[:-1]:
            directory = await directory.sub(name)
        node, kind = await _node_in(directory, path[-1])
        return _Target(kind, await _handle_of(volume, node))
    except StorageError as error:
        raise StorageError.of(error.code, f'"{place}": {error.message}') from error


async def _node_in(directory: DirectoryNode, name: str) -> tuple[Node, str]:
    kind = (await directory.lookup(name)).stat.kind
    if kind is NodeKind.DIRECTORY:
        return await directory.sub(name), "directory"
    if kind is NodeKind.SYMLINK:
        raise InvalidArgument("a link is not followed, and not shared")
    return await directory.open(name), "file"


async def _handle_of(volume: Volume, node: Node) -> bytes:
    """The word for `node`, which is closed."""
    try:
        return await volume.handle_of(node)
    finally:
        if isinstance(node, FileNode):
            await node.close()
