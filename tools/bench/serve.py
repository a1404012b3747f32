"""The process of one server, or of whoever is beside a client of one:
``python -m capstore.tools.bench.serve KIND CONFIG``.

Invariants: one line of JSON on standard output says that it is ready, and how it is reached; it
serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from capstore.schema.errors import StorageError
from capstore.tools.allocator import keep_freed_memory

Serve = Callable[[dict[str, str]], AbstractAsyncContextManager[dict[str, Any]]]


def _serve_of(kind: str) -> Serve:
    """How `kind` is served; what another kind needs is not even imported."""
    if kind == "floor":
        from capstore.tools.bench import floor

        return floor.serve
    if kind == "capstore":
        from capstore.tools.bench import subject

        return subject.serve
    if kind == "store":
        from capstore.tools.bench import st1_remote

        return st1_remote.serve
    if kind in ("authority", "idle", "flood"):
        from capstore.tools.bench import authority_site

        return {
            "authority": authority_site.serve,
            "idle": authority_site.idle,
            "flood": authority_site.flood,
        }[kind]
    from capstore.tools.bench import sftp

    return sftp.serve


async def _main(kind: str, config: dict[str, str]) -> None:
    # For every contestant alike.
    keep_freed_memory()
    try:
        async with _serve_of(kind)(config) as address:
            print(json.dumps(address), flush=True)
            await asyncio.to_thread(sys.stdin.buffer.read)
    except StorageError as error:
        raise SystemExit(f"{kind}: {error}") from None


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
