"""Handing on and taking back: `share`, `shares`, `renew`, `rotate`, `revoke`.

Invariants: the only whole URI that is ever written is the new one, to stdout or to a file of mode
0600; what was saved is revoked if that fails; a duration counts from the clock of this machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from capstore.backers.workers import in_worker
from capstore.images.durable import replace_file
from capstore.schema.errors import InvalidArgument, StorageError, TransportError
from capstore.service.grants import Policy
from capstore.service.remote import Directory, File, ReferenceInfo
from capstore.service.uri import CapabilityURI
from capstore.tools.console import (
    about,
    complain,
    explained,
    local_text,
    out,
    out_json,
    out_json_list,
    out_table,
    utc_text,
)
from capstore.tools.location import connected, opened
from capstore.tools.resolve import find
from capstore.tools.terms import json_of, words_of

_HEADINGS = (
    *("ID", "FROM", "SAVED BY", "KIND", "VOLUME", "AUTHORITY", "CREATED", "LAST USED", "LABEL"),
)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms something is shared; `seconds` is None for ever."""

    read_only: bool
    seconds: float | None
    label: str
    more: Policy = field(default_factory=Policy)

    def policy(self) -> Policy:
        """What is taken away, counted from now."""
        expires_at = 0 if self.seconds is None else time.time_ns() + int(self.seconds * 1e9)
        if expires_at >= 2**63:
            raise InvalidArgument("that is too far in the future")
        return replace(self.more, read_only=self.read_only, expires_at=expires_at)


async def share(
    uri: CapabilityURI, terms: Terms, *, json: bool, uri_file: Path | None = None
) -> None:
    """Saves a reference to a node; prints its URI, or writes it to `uri_file`."""
    policy = terms.policy()
    async with opened(uri) as service:
        found = await find(service.top, service.path)
        node = await found.node()
        try:
            token = await (await _narrowed(node, policy)).save(terms.label)
        except StorageError as error:
            raise about(found.path, error) from error
    new = uri.with_token(token)
    shape = {"uri": str(new), "label": terms.label} | _policy_json(policy) if json else None
    try:
        await _hand_out(new, shape, uri_file)
    except OSError:
        # Nobody has the token: what nobody can use should not stay.
        try:
            await _end(new)
        except (StorageError, TransportError) as error:
            complain(f"what was saved could not be revoked (see shares): {explained(error)}")
        raise


async def _hand_out(
    uri: CapabilityURI, shape: dict[str, Any] | None, uri_file: Path | None
) -> None:
    """Prints a new URI, or the JSON object `shape` that holds it, or writes it to `uri_file`.

    Raises OSError.
    """
    if uri_file is not None:
        await in_worker(lambda: replace_file(uri_file, f"{uri}\n".encode()))
    elif shape is not None:
        out_json(shape)
    else:
        out(str(uri))
    sys.stdout.flush()


async def renew(uri: CapabilityURI, reference_id: int, expires_at: int) -> None:
    """Gives a reference below that of the URI another time."""
    _refuse_path(uri)
    async with connected(uri) as connection:
        control = await connection.reference(uri.token)
        await control.renew(reference_id, expires_at)


async def rotate(
    uri: CapabilityURI, reference_id: int | None, *, json: bool, uri_file: Path | None = None
) -> None:
    """Gives the reference of the URI, or one below it, another token; prints its URI."""
    _refuse_path(uri)
    async with connected(uri) as connection:
        control = await connection.reference(uri.token)
        if reference_id is None:
            reference_id = (await control.status()).id
        new = uri.with_token(await control.rotate(reference_id))
    try:
        await _hand_out(new, {"uri": str(new), "id": reference_id} if json else None, uri_file)
    except OSError:
        complain(
            f"the new URI of {reference_id} is lost, and the old one is denied: rotate --id "
            f"{reference_id} with a URI above it"
        )
        raise


async def _end(uri: CapabilityURI) -> None:
    async with connected(uri) as connection:
        control = await connection.reference(uri.token)
        await control.revoke((await control.status()).id)


async def _narrowed(node: Directory | File, policy: Policy) -> Directory | File:
    if policy == Policy():
        return node
    narrowed: Directory | File = (await node.attenuate(policy)).capability
    return narrowed


async def shares(uri: CapabilityURI, *, json: bool) -> None:
    """Lists the references below that of the URI."""
    _refuse_path(uri)
    async with connected(uri) as connection:
        references = _with_anchors(await (await connection.reference(uri.token)).list())
    if json:
        out_json_list(map(_reference_json, references))
    else:
        out_table(_HEADINGS, map(_reference_row, references))


def _with_anchors(references: Sequence[ReferenceInfo]) -> list[ReferenceInfo]:
    """`references`, each with what the anchors count that stand between it and what it was saved
    from: that was taken away from it, too."""
    known = {each.id: each for each in references}
    found = []
    for each in references:
        policy, above = each.policy, known.get(each.parent)
        while above is not None and above.anchor:
            policy, above = policy.under(above.policy), known.get(above.parent)
        found.append(replace(each, policy=policy))
    return found


async def revoke(uri: CapabilityURI, reference_id: int | None) -> None:
    """Ends the reference of the URI, or one below it."""
    _refuse_path(uri)
    async with connected(uri) as connection:
        control = await connection.reference(uri.token)
        if reference_id is None:
            reference_id = (await control.status()).id
        await control.revoke(reference_id)


def _refuse_path(uri: CapabilityURI) -> None:
    if uri.path:
        raise InvalidArgument("this is about the URI itself, not about a path below it")


def _policy_json(policy: Policy) -> dict[str, Any]:
    expires = utc_text(policy.expires_at) if policy.expires_at else None
    return {"readOnly": policy.read_only, "expires": expires, "policy": json_of(policy)}


def _reference_json(info: ReferenceInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "label": info.label,
        "kind": info.kind,
        "volume": info.volume,
        **_policy_json(info.policy),
        "created": utc_text(info.created),
        "lastUsed": utc_text(info.last_used) if info.last_used else None,
        "parent": info.parent,
        "savedBy": info.saved_by,
        "rotations": info.rotations,
        "anchor": info.anchor,
    }


def _reference_row(info: ReferenceInfo) -> tuple[str, ...]:
    authority = ["read-only"] if info.policy.read_only else []
    if info.policy.expires_at:
        authority.append(f"until {local_text(info.policy.expires_at)}")
    authority += words_of(info.policy)
    return (
        str(info.id),
        str(info.parent),
        info.saved_by or "-",
        info.kind,
        info.volume,
        ", ".join(authority) or f"as {info.parent}",
        local_text(info.created),
        local_text(info.last_used) if info.last_used else "never",
        info.label,
    )
