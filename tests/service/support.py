"""A real service in a thread of its own, for tests of what is not asynchronous.

with running_service({"m": "memory:"}, tls=True) as service:
    service.uri("m"), service.tls_uri("m")   # what a client gets
    service.calls_while(lambda: ...)         # which methods that calls, in order
    service.call(coroutine)                  # runs it where the service lives
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from capstore.backers.spec import open_volume
from capstore.service import session
from capstore.service.pyfs import CapstoreFS
from capstore.service.server import Service, start
from capstore.service.state import StateDirectory
from capstore.service.uri import CapabilityURI

T = TypeVar("T")


class ServiceUnderTest:
    """A running service; made by `running_service`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uris: list[tuple[str, CapabilityURI]] = []
        self.service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="service under test")

    def uri(self, name: str) -> CapabilityURI:
        """What gives all of the volume `name`, over the unix socket."""
        return next(uri for volume, uri in self.uris if volume == name and uri.socket)

    def tls_uri(self, name: str) -> CapabilityURI:
        """The same over TLS."""
        return next(uri for volume, uri in self.uris if volume == name and uri.host)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` on the service's loop.

        What it returns, or leaves in the traceback of what it raises, must hold no capability.
        """
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def calls_while(self, action: Callable[[], object]) -> list[float]:
        """When each call that `action` causes began to be served, in seconds."""
        begun: list[float] = []
        begin = session.Session.call_begins

        def counted(self: session.Session, *args: Any) -> None:
            begun.append(asyncio.get_running_loop().time())
            begin(self, *args)

        session.Session.call_begins = counted  # type: ignore[method-assign]
        try:
            action()
        finally:
            session.Session.call_begins = begin  # type: ignore[method-assign]
        return begun

    def stop(self) -> None:
        """Stops the service, in order; again does nothing."""
        if self._thread.is_alive() and self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the service does not stop"

    # Where the service lives ---------------------------------------------------------------------

    def start(self, specs: Mapping[str, str], *, tls: bool) -> None:
        """Starts it; raises what starting raises."""
        self._specs, self._tls = specs, tls
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        volumes = {name: await open_volume(spec) for name, spec in self._specs.items()}
        async with start(volumes, StateDirectory.open(self.folder / "state")) as self.service:
            await self.service.listen_unix(self.folder / "socket")
            if self._tls:
                await self.service.listen_tls("127.0.0.1", 0)
            self.uris = self.service.owner_uris()
            self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
            self._started.set()
            await self._stopping.wait()
        self.service = None
        # What pycapnp made here has to be freed here, cycles included.
        gc.collect()


@contextmanager
def running_service(specs: Mapping[str, str], *, tls: bool = False) -> Iterator[ServiceUnderTest]:
    """A service over the volumes `specs` (by name, as ``capstore serve`` takes them)."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        service = ServiceUnderTest(Path(folder))
        service.start(specs, tls=tls)
        try:
            yield service
        finally:
            service.stop()


def contents(tree: CapstoreFS) -> dict[str, object]:
    """Everything below the root: bytes of files, targets of links, None for directories."""
    found: dict[str, object] = {}
    for path, info in tree.walk.info(namespaces=["link"]):
        if info.is_link:
            found[path] = info.target
        else:
            found[path] = None if info.is_dir else tree.readbytes(path)
    return found
