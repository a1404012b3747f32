"""Who looks on: the audit and the metrics of a service, told of every call by `dispatch`.

Invariants:

* A service without audit and metrics has no observer, and a call costs one comparison more.
* Nothing here decides a call or changes its answer, but that calls wait, or are refused, where the
  audit says so (`capstore.service.audit`).
* A call whose line cannot be made, because of a bug, counts as a lost line.
* What is known of who calls (`Origin`) is the volume, the reference that the capability came from,
  and its label; never a token.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from capstore.schema.errors import StorageError
from capstore.service.audit import Audit, Origin
from capstore.service.dispatch import Answering, Method, Told
from capstore.service.grants import Grant
from capstore.service.metrics import Metrics

if TYPE_CHECKING:
    from capstore.service.server import Service
    from capstore.service.session import Session

__all__ = ["Observers", "peer_of"]

# struct ucred: process, user and group of whoever connected.
_CREDENTIALS: Final = struct.Struct("3i")
# So many labels are remembered of references that may be gone.
_LABELS_MAX: Final = 65_536


_UNKNOWN: Final = Origin()


class Observers:
    """The audit and the metrics of one service; what `capstore.service.dispatch.Observer` is."""

    def __init__(self, audit: Audit | None, metrics: Metrics | None) -> None:
        self.audit = audit
        self.metrics = metrics
        self._label_of: Callable[[int], str | None] = lambda _: None
        self._labels: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Observers {self.audit!r} {self.metrics!r}>"

    def begin(self, service: Service) -> None:
        """To be called once, before anybody can connect."""
        self._label_of = service.label_of
        if self.metrics is not None:
            self.metrics.begin(service, self.audit)

    async def close(self) -> None:
        """Writes what waits and lets go of everything; to be called when all calls have ended."""
        if self.metrics is not None:
            await self.metrics.close()
        if self.audit is not None:
            await self.audit.close()

    # Connections ---------------------------------------------------------------------------------

    def connected(self, session: Session) -> None:
        """A connection was made."""
        transport = session.transport
        session.peer = {} if transport is None else peer_of(transport.get_extra_info)
        if self.metrics is not None:
            self.metrics.connected(session.number)

    def disconnected(self, session: Session) -> None:
        """One has ended."""
        if self.metrics is not None:
            self.metrics.disconnected(session.number)

    def refused(self, reason: str) -> None:
        """One was not let in; `reason` is one of a few words."""
        if self.metrics is not None:
            self.metrics.refused(reason)

    def displaced(self) -> None:
        """One that had shown no token was closed to make room for another."""
        if self.metrics is not None:
            self.metrics.displaced()

    def made(self, server: Answering) -> None:
        if self.metrics is not None:
            self.metrics.handles[type(server)] += 1

    def dropped(self, server: Answering) -> None:
        if self.metrics is not None:
            self.metrics.handles[type(server)] -= 1

    # Calls ---------------------------------------------------------------------------------------

    @property
    def holds_back(self) -> bool:
        audit = self.audit
        return audit is not None and audit.holds_back

    async def admitted(self) -> None:
        if self.audit is not None:
            await self.audit.admitted()

    def wants_node(self, server: Answering, method: Method, code: str) -> bool:
        audit = self.audit
        if audit is None or server.guarded is None or server.node_id is not None:
            return False
        return audit.selection.wants_at_all(method, code) or self.origin_of(server).traced

    async def find_node(self, server: Answering) -> None:
        # Whatever its holder may do: this is not for him.
        node = server.guarded._node
        if node is None:
            return
        try:
            server.node_id = (await node.stat()).node_id
        except StorageError:
            return

    def called(
        self,
        server: Answering,
        method: Method,
        context: Any,
        code: str,
        told: Told,
        nanoseconds: int,
    ) -> None:
        moved = told if isinstance(told, int) else 0
        session, audit = server.session, self.audit
        try:
            origin = self._origin(told) if isinstance(told, Grant) else self.origin_of(server)
            if audit is not None and audit.selection.wants(method, code, context, origin.traced):
                audit.note(
                    session.number,
                    session.peer,
                    origin,
                    method,
                    server.node_id,
                    moved,
                    code,
                    nanoseconds,
                    context,
                )
        except Exception:
            if audit is not None:
                audit.lose()
            raise
        if self.metrics is not None:
            self.metrics.called(method, code, moved, nanoseconds, session.number, origin.reference)

    def origin_of(self, server: Answering) -> Origin:
        """Where the capability comes from that `server` serves."""
        origin: Origin | None = server.origin
        if origin is None:
            origin = server.origin = self._origin(server.grant)
        return origin

    def _origin(self, grant: Grant | None) -> Origin:
        if grant is None:
            return _UNKNOWN
        reference = grant.nearest_reference()
        traced = bool(getattr(grant, "traced", False))
        return Origin(grant.served.name, reference, self._label(reference), traced)

    def _label(self, reference: int) -> str:
        """The label of a reference, also when it has ended since it was last seen."""
        label = self._label_of(reference)
        if label is None:
            return self._labels.get(reference, "")
        # The one that was seen last is the last to be forgotten.
        self._labels.pop(reference, None)
        self._labels[reference] = label
        if len(self._labels) > _LABELS_MAX:
            del self._labels[next(iter(self._labels))]
        return label


def peer_of(get_extra_info: Callable[[str], Any]) -> Mapping[str, int | str]:
    """Who is at the other end, as asyncio's transport knows it: the ``uid`` of a unix socket's, the
    ``address`` of any other."""
    endpoint = get_extra_info("socket")
    if endpoint is not None and endpoint.family == socket.AF_UNIX:
        try:
            raw = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return {}
        return {"uid": _CREDENTIALS.unpack(raw)[1]}
    name = get_extra_info("peername")
    if not isinstance(name, tuple):
        return {}
    host, port = name[:2]
    return {"address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
