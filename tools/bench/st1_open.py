"""Opening a CAPOSST1 store in a process of its own: how long it takes, and how much memory.

``python -m capstore.tools.bench.st1_open FILE KEY close|exit`` opens the store, gets KEY, and
prints a JSON object: ``seconds``, and the peak of resident memory in bytes when everything was
imported (``base``) and in the end (``peak``).  Then it closes the store, or is gone without.

Invariants: those of `capstore.tools.bench.wf1_mount`, which does the same for volumes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from capstore.backers.st1 import St1Store
from capstore.tools.bench.wf1_mount import EXIT, peak_bytes


async def _main(path: str, key: str, end: str) -> None:
    base = peak_bytes()
    began = time.perf_counter()
    store = await St1Store.open(path)
    await store.get(key.encode())
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "base": base, "peak": peak_bytes()}), flush=True)
    if end == EXIT:
        os._exit(0)
    await store.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
