"""A service that is observed, and an audit that is a list."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import capnp

from capstore.schema import wire
from capstore.service.audit import Audit, Only, Selection
from capstore.service.client import open_connection
from capstore.service.metrics import Metrics
from capstore.service.observing import Observers
from capstore.service.server import Served as Volume
from tests.service.inprocess import Served, serving


class ListSink:
    """Keeps what is written; fails while `full`, and behind `room` lines where that is set."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.full = False
        self.room: int | None = None
        self.reopened = 0
        self.closed = False

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        count = 0 if self.full else len(lines) if self.room is None else min(self.room, len(lines))
        self.raw += lines[:count]
        full = OSError(errno.ENOSPC, "no room")
        return count, None if count == len(lines) else full

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]


def traced_only() -> Observers:
    """With an audit of what is traced, for a service that is to serve such."""
    return Observers(Audit(ListSink(), Selection(only=frozenset({Only.TRACED}))), None)


@asynccontextmanager
async def observed(
    volumes: Mapping[str, Volume],
    audit: Audit | None,
    metrics: Metrics | None = None,
    *,
    tls: bool = False,
) -> AsyncIterator[Served]:
    async with serving(volumes, tls=tls, observers=Observers(audit, metrics)) as served:
        yield served


@asynccontextmanager
async def raw_gate(uri: Any) -> AsyncIterator[Any]:
    """The bootstrap capability of a connection, as pycapnp has it."""
    async with open_connection(uri) as connection:
        yield connection._gate.raw


async def code_of(promise: Any) -> str:
    """What a call answered: "ok" or the code of its error."""
    response = await promise
    return str(response.error.code) if response._has("error") else "ok"


def interfaces() -> dict[str, Any]:
    """The interfaces of the schema that a service serves, by name."""
    found = {}
    for name in dir(wire):
        module = getattr(wire, name)
        if isinstance(getattr(module, "schema", None), capnp.lib.capnp._InterfaceSchema):
            found[name] = module
    assert {"File", "Directory", "Store", "Gate", "Broken", "Watcher"} <= found.keys()
    # The client's own.
    del found["Watcher"]
    return found
