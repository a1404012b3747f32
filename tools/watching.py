"""Telling what becomes of a directory: `watch`.

Invariants: a change is written when it is told, also into a pipe; nothing is kept.
"""

from __future__ import annotations

import sys

from capstore.schema.errors import StorageError
from capstore.schema.nodes import Change
from capstore.service.uri import CapabilityURI
from capstore.tools.console import about, out, out_json, printable
from capstore.tools.location import opened
from capstore.tools.resolve import find_directory


async def watch(uri: CapabilityURI, *, json: bool) -> None:
    """Writes each change of a directory's entries, until it is cancelled or the watch ends."""
    async with opened(uri) as service:
        directory = await find_directory(service.top, service.path)
        try:
            async with directory.watch() as changes:
                async for change in changes:
                    _show(change, json=json)
        except StorageError as error:
            raise about(service.path, error) from error


def _show(change: Change, *, json: bool) -> None:
    if json:
        out_json({"kind": change.kind.value, "name": change.name, "nodeId": change.node_id})
    else:
        out(f"{change.kind.value:<8} {printable(change.name)}".rstrip(" "))
    sys.stdout.flush()
