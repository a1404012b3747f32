"""Where metrics are read: a very small HTTP server on a port or a unix socket of its own.

Invariants:

* It answers ``GET /metrics`` (what Prometheus scrapes) and ``GET /busiest`` (JSON), closes the
  connection behind each answer, and knows nothing else; what is sent to it changes nothing.
* What a stranger can make it hold is bounded: `SCRAPES_MAX` connections, `_REQUEST_BYTES_MAX` of a
  request, `SCRAPE_SECONDS_MAX` of time each.
* Everybody on the machine can connect to a port, so there labels and peers are not told, and a
  request that a web page made under another name (DNS rebinding) is refused.  A unix socket has
  mode 0600 before anybody can connect, and tells them.

`prometheus_client` brings a server of its own, with a thread for each connection and no bound on
either their number or their time, and without unix sockets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from capstore.backers.workers import in_worker
from capstore.schema.errors import from_os_error
from capstore.schema.limits import SCRAPE_SECONDS_MAX, SCRAPES_MAX
from capstore.service.listening import SocketFile, bind_unix
from capstore.service.metrics import Metrics

__all__ = ["Endpoint", "is_loopback"]

log = logging.getLogger("capstore.service")

_REQUEST_BYTES_MAX: Final = 8 * 1024
_TEXT: Final = "text/plain; charset=utf-8"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect to what listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Endpoint:
    """Serves `metrics`; made by `listen_tcp` or `listen_unix`."""

    def __init__(self, metrics: Metrics, *, tells_names: bool, checks_hosts: bool) -> None:
        self._metrics = metrics
        self._tells_names = tells_names
        self._checks_hosts = checks_hosts
        self._file: SocketFile | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def __repr__(self) -> str:
        return f"<Endpoint {self.url}: {len(self._tasks)} connections>"

    @classmethod
    async def listen_tcp(cls, metrics: Metrics, host: str, port: int) -> Endpoint:
        """Listens at ``host:port``; 0 takes a free port.

        Raises `Busy` for a port in use and what stands for any other OSError."""
        endpoint = cls(metrics, tells_names=False, checks_hosts=is_loopback(host))
        try:
            server = await asyncio.start_server(
                endpoint._accept, host, port, limit=_REQUEST_BYTES_MAX
            )
        except OSError as error:
            raise from_os_error(error, f"the metrics at {host}:{port}") from error
        bound, number = server.sockets[0].getsockname()[:2]
        endpoint._server = server
        endpoint.url = f"http://{f'[{bound}]' if ':' in bound else bound}:{number}/metrics"
        return endpoint

    @classmethod
    async def listen_unix(cls, metrics: Metrics, path: Path) -> Endpoint:
        """Listens on the unix socket `path`, as `Service.listen_unix` does; raises as it does."""
        endpoint = cls(metrics, tells_names=True, checks_hosts=False)
        try:
            bound, file = await in_worker(lambda: bind_unix(path))
        except OSError as error:
            raise from_os_error(error, f'the socket "{path.name}"') from error
        endpoint._file = file
        endpoint._server = await asyncio.start_unix_server(
            endpoint._accept, sock=bound, limit=_REQUEST_BYTES_MAX
        )
        endpoint.url = f"unix:{file.path}"
        return endpoint

    async def close(self) -> None:
        """Hangs up and listens no more."""
        if self._server is not None:
            self._server.close()
        if self._file is not None:
            self._file.remove()
            self._file = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # A connection ----------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= SCRAPES_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, within the time there is."""
        try:
            async with asyncio.timeout(SCRAPE_SECONDS_MAX):
                writer.write(await self._answer(await _request(reader)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            log.info("a connection to the metrics was given up")
        finally:
            writer.transport.abort()

    async def _answer(self, request: _Request | None) -> bytes:
        if request is None:
            return _response(HTTPStatus.BAD_REQUEST)
        if self._checks_hosts and not _is_own_name(request.headers.get("host", "")):
            return _response(HTTPStatus.FORBIDDEN)
        if request.method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/metrics":
            accepted = request.headers.get("accept", "")
            snapshot = self._metrics.snapshot()
            body, kind = await in_worker(lambda: snapshot.text(accepted))
        elif request.path == "/busiest":
            busiest = self._metrics.busiest(names=self._tells_names)
            body, kind = json.dumps(busiest).encode(), "application/json"
        else:
            return _response(HTTPStatus.NOT_FOUND)
        return _response(HTTPStatus.OK, body, kind, with_body=request.method == "GET")


class _Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]


async def _request(reader: asyncio.StreamReader) -> _Request | None:
    """What is asked for; None for what is no request, or too long."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = raw.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    split = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in split}
    return _Request(words[0], words[1].partition("?")[0], headers)


def _is_own_name(host: str) -> bool:
    """Whether the header ``Host`` names this machine by its address, or not at all."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return not name or is_loopback(name.strip("[]"))


def _response(
    status: HTTPStatus, body: bytes | None = None, kind: str = _TEXT, *, with_body: bool = True
) -> bytes:
    if body is None:
        body = f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
