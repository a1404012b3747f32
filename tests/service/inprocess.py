"""A service in the test's own event loop."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from capstore.service.observing import Observers
from capstore.service.server import Served as ServedVolume
from capstore.service.server import Service, start
from capstore.service.state import StateDirectory
from capstore.service.uri import CapabilityURI


@dataclass(frozen=True)
class Served:
    """A running service, its folder, and the owner's URIs by volume: unix socket and TLS."""

    service: Service
    folder: Path
    unix: Mapping[str, CapabilityURI]
    tls: Mapping[str, CapabilityURI]


@asynccontextmanager
async def serving(
    volumes: Mapping[str, ServedVolume],
    *,
    folder: Path | None = None,
    tls: bool = False,
    observers: Observers | None = None,
) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as temporary:
        home = folder or Path(temporary)
        state = StateDirectory.open(home / "state")
        async with start(volumes, state, observers=observers) as service:
            await service.listen_unix(home / "socket")
            if tls:
                await service.listen_tls("127.0.0.1", 0)
            uris = service.owner_uris()
            yield Served(
                service,
                home,
                {name: uri for name, uri in uris if uri.socket},
                {name: uri for name, uri in uris if uri.host},
            )
