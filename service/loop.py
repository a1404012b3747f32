"""The KJ event loop inside asyncio's: one per running loop, shared by all who need it.

Invariants: it runs as long as anybody is inside `kj_loop_running`; the last one out ends it.
pycapnp allows one per asyncio loop, while a process may have a service and several clients on one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import capnp


@dataclass
class _Shared:
    users: int = 0
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = WeakKeyDictionary()


@asynccontextmanager
async def kj_loop_running() -> AsyncIterator[None]:
    """While inside, pycapnp works on this asyncio loop.

    A KJ loop that somebody else runs (``capnp.run``) is used as it is.
    """
    loop = asyncio.get_running_loop()
    shared = _by_loop.setdefault(loop, _Shared())
    async with shared.changing:
        if shared.users == 0 and not hasattr(loop, "_kj_loop"):
            await shared.stack.enter_async_context(capnp.kj_loop())
        shared.users += 1
    try:
        yield
    finally:
        async with shared.changing:
            shared.users -= 1
            if shared.users == 0:
                await shared.stack.aclose()
