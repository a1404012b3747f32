"""Who may be connected: so many in all, of one peer, and without a token.

Invariants:

* Who has shown a token is never closed to make room for another.
* Strangers make room for those that come after them, the oldest first, of the peer that has most of
  them: so a flood of strangers displaces itself, and neither other peers nor who shows a token.
* A connection that was told to make room counts no more.
* An IPv6 peer is its network of 64 bits: whoever has one address there has them all.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from capstore.schema.limits import CONNECTIONS_MAX, CONNECTIONS_OF_PEER_MAX, STRANGERS_MAX

# The user of a unix socket's other end, or an address.
Peer = int | str

# struct ucred: process, user, group.
_CREDENTIALS = struct.Struct("3i")
# What is given to one host, or to one network that it may take every address of (RFC 4291, 2.5.1).
_IPV6_NETWORK_BITS = 64


class Guest(Protocol):
    """A connection."""

    on_proved: Callable[[], None] | None

    def make_room(self) -> None:
        """Ends it."""


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end.  Raises OSError."""
    if connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        return int(_CREDENTIALS.unpack(credentials)[1])
    return _network_of(connection.getpeername()[0])


def _network_of(host: str) -> str:
    """Which peer an address belongs to."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_NETWORK_BITS), strict=False))


class Admission:
    """The connections of a service, by peer; `on_displaced` is told of each that was closed to make
    room for another."""

    def __init__(self, on_displaced: Callable[[], None]) -> None:
        self._on_displaced = on_displaced
        self._guests: dict[Guest, Peer] = {}
        self._of_peer: dict[Peer, int] = {}
        # Strangers, oldest first.
        self._strangers: dict[Peer, dict[Guest, None]] = {}
        self._stranger_count = 0

    def __repr__(self) -> str:
        return f"<Admission: {len(self._guests)} connections, {self._stranger_count} strangers>"

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self._guests)

    def admits(self, guest: Guest, peer: Peer) -> bool:
        """Whether there is room for it, if need be that of a stranger; then it is in."""
        if self._of_peer.get(peer, 0) >= CONNECTIONS_OF_PEER_MAX and not self._has_left(peer):
            return False
        if len(self._guests) >= CONNECTIONS_MAX and not self.make_room():
            return False
        if self._stranger_count >= STRANGERS_MAX:
            self.make_room()
        self._guests[guest] = peer
        self._of_peer[peer] = self._of_peer.get(peer, 0) + 1
        self._strangers.setdefault(peer, {})[guest] = None
        self._stranger_count += 1
        guest.on_proved = lambda: self._forget_stranger(guest, peer)
        return True

    def make_room(self) -> bool:
        """Closes a stranger; False where there is none."""
        if not self._strangers:
            return False
        return self._has_left(max(self._strangers, key=lambda peer: len(self._strangers[peer])))

    def _has_left(self, peer: Peer) -> bool:
        guest = next(iter(self._strangers.get(peer, ())), None)
        if guest is None:
            return False
        self.leaves(guest)
        guest.make_room()
        self._on_displaced()
        return True

    def leaves(self, guest: Guest) -> None:
        """It is gone; again does nothing."""
        peer = self._guests.pop(guest, None)
        if peer is None:
            return
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]
        self._forget_stranger(guest, peer)

    def _forget_stranger(self, guest: Guest, peer: Peer) -> None:
        strangers = self._strangers.get(peer, {})
        if guest in strangers:
            del strangers[guest]
            self._stranger_count -= 1
            if not strangers:
                del self._strangers[peer]
