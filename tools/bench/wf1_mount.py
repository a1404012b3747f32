"""Opening a CAPOSWF1 volume in a process of its own: how long it takes, and how much memory.

``python -m capstore.tools.bench.wf1_mount FILE NAME close|exit`` opens the volume, looks NAME up,
and prints a JSON object: ``seconds``, and the peak of resident memory in bytes when everything was
imported (``base``) and in the end (``peak``).  Then it closes the volume, or is gone without.

Invariants: the peak is the high-water mark of this program's own memory (VmHWM in proc(5)):
getrusage's counts that of whoever started it, too, if that was larger.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from capstore.backers.wf1 import Wf1Volume
from capstore.schema.limits import KIB

CLOSE, EXIT = "close", "exit"


def peak_bytes() -> int:
    """The most memory that was resident in this process at once."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    return 0


async def _main(path: str, name: str, end: str) -> None:
    base = peak_bytes()
    began = time.perf_counter()
    volume = await Wf1Volume.open(path)
    await volume.root.lookup(name)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "base": base, "peak": peak_bytes()}), flush=True)
    if end == EXIT:
        os._exit(0)
    await volume.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
