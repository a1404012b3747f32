"""The Gate: what a connection begins with, and control over saved references.

Invariants: without a token nothing is to be had here but the protocol version and the limits.  A
refusal says the same and takes as long whatever was wrong with the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capstore.schema import wire
from capstore.schema.errors import Denied, InvalidArgument, NotFound
from capstore.schema.limits import LIMITS, PAGE_ENTRIES_MAX
from capstore.service.dispatch import Answering, Server, answers
from capstore.service.grants import Grant
from capstore.service.messages import read_text, write_policy
from capstore.service.references import Reference
from capstore.service.store_servers import server_for

if TYPE_CHECKING:
    from capstore.service.session import Session


class GateServer(Answering, wire.Gate.Server):  # type: ignore[misc]
    """The bootstrap capability of one connection."""

    def __init__(self, session: Session, software: str) -> None:
        self.session = session
        self._software = software

    @answers
    async def restore_context(self, params: Any, results: Any) -> Grant:
        self.session.check_capabilities()
        node = await self.session.authority.restore(_token(params))
        self.session.proved()
        results.capability = server_for(self.session, node)
        results.kind = node.wire_kind
        grant: Grant = node.grant
        return grant

    @answers
    async def info_context(self, params: Any, results: Any) -> None:
        info = results.init("info")
        info.protocolVersion = wire.protocolVersion
        info.software = self._software
        limits = info.init("limits", len(LIMITS))
        for index, limit in enumerate(LIMITS):
            limits[index].name = limit.name
            limits[index].value = limit.value
            limits[index].unit = limit.unit

    @answers
    async def reference_context(self, params: Any, results: Any) -> Grant:
        self.session.check_capabilities()
        reference = self.session.authority.controlled_by(_token(params))
        self.session.proved()
        grant: Grant = self.session.authority.grant_of(reference)
        results.reference = ReferenceServer(self.session, reference, grant)
        return grant


class ReferenceServer(Server, wire.Reference.Server):  # type: ignore[misc]
    """Control over one saved reference and those below it, for as long as its token is the one that
    this was had with."""

    session: Session

    def __init__(self, session: Session, reference: Reference, grant: Grant) -> None:
        super().__init__(session, grant)
        self._id = reference.id
        self._digest = reference.digest

    @answers
    async def status_context(self, params: Any, results: Any) -> None:
        self._check_token()
        _write_info(results.init("info"), self.session.authority.status(self._id))

    @answers
    async def list_context(self, params: Any, results: Any) -> None:
        self._check_token()
        references = _page_after(self.session.authority.below(self._id), params.cursor)
        limit = min(params.limit or PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX)
        page = references[:limit]
        size = len(page) * _INFO_BYTES
        await self.session.reserve(size)
        try:
            builders = results.init("references", len(page))
            for index, reference in enumerate(page):
                saved_by = self.session.authority.saver_of(reference)
                _write_info(builders[index], reference, saved_by)
        finally:
            self.session.unreserve(size)
        if len(references) > limit:
            results.cursor = page[-1].id.to_bytes(8, "little")

    @answers
    async def revoke_context(self, params: Any, results: Any) -> None:
        self._check_token()
        if params.id != self._id:
            self._check_below(params.id)
        await self.session.authority.revoke_reference(params.id)

    @answers
    async def renew_context(self, params: Any, results: Any) -> None:
        self._check_token()
        authority = self.session.authority
        authority.status(self._id)
        if params.id == self._id:
            raise Denied("its time is given by who holds what it was saved from")
        self._check_below(params.id)
        reference = await authority.exchanges.renew(params.id, params.expiresAt)
        _write_info(results.init("info"), reference, authority.saver_of(reference))

    @answers
    async def rotate_context(self, params: Any, results: Any) -> None:
        self._check_token()
        authority = self.session.authority
        authority.status(self._id)
        if params.id != self._id:
            self._check_below(params.id)
        reference, token = await authority.exchanges.rotate(params.id)
        if reference.id == self._id:
            self._digest = reference.digest
        results.token = token

    def _check_below(self, reference_id: int) -> None:
        if reference_id not in self.session.authority.ids_below(self._id):
            raise NotFound("no such reference below this one")

    def _check_token(self) -> None:
        """Raises `Denied` when the reference has got another token since."""
        if self.session.authority.rotated_since(self._id, self._digest):
            raise Denied("no such reference")


# What a reference takes in a message, about.
_INFO_BYTES = 640


def _token(params: Any) -> str:
    """The token, or what is none: bad UTF-8 must be refused like any other wrong token."""
    try:
        return read_text(params, "token")
    except InvalidArgument:
        return ""


def _page_after(references: Sequence[Reference], cursor: bytes) -> Sequence[Reference]:
    if not cursor:
        return references
    if len(cursor) != 8:
        raise InvalidArgument("not a cursor of this listing")
    last = int.from_bytes(cursor, "little")
    return [reference for reference in references if reference.id > last]


def _write_info(builder: Any, reference: Reference, saved_by: str = "") -> None:
    builder.id = reference.id
    builder.label = reference.label
    builder.kind = reference.kind
    builder.volume = reference.volume
    write_policy(builder.init("policy"), reference.policy)
    builder.created = reference.created
    builder.lastUsed = reference.last_used
    builder.parent = reference.parent
    builder.savedBy = saved_by
    builder.rotations = reference.rotations
    builder.anchor = reference.anchor
