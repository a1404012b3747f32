"""What many connections cost: some that ask, beside many that do not; and one that floods.

Invariants: who is idle, and who floods, has a process of its own.  What takes turns is served by
two services, of which one has the idle connections; what is flooded is one, alone before and after.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from capstore.service.remote import Directory
from capstore.tools.bench.authority_policies import metered
from capstore.tools.bench.authority_site import UNIX, beside, serving
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.slices import Meter, Slices, quiet_collector
from capstore.tools.bench.wf1_taken import Taken

ALONE: Final = "alone"

_SMALL: Final = "small"
# So many calls of each connection are a slice.
_CALLS: Final = 6
_PAUSE_SECONDS: Final = 0.002

Enter = Callable[[Parameters], AbstractAsyncContextManager[Slices[int]]]


def crowded(transport: str) -> Enter:
    """Opens and reads a small file over each connection that is active, all at once."""

    @asynccontextmanager
    async def enter(parameters: Parameters) -> AsyncIterator[Slices[int]]:
        active = parameters.authority_active
        idle = parameters.authority_connections - active
        async with AsyncExitStack() as stack:
            services = {
                name: await stack.enter_async_context(serving()) for name in (SUBJECT, ALONE)
            }
            works = {}
            meters: dict[str, Mapping[str, Meter]] = {}
            for name, service in services.items():
                roots = await stack.enter_async_context(service.roots(active, transport))
                await roots[0].write_file(_SMALL, bytes(parameters.small_bytes))
                works[name] = _over_all(name, roots, parameters)
                meters.update(metered([name], service))
            crowd = services[SUBJECT]
            # What it takes for the first calls is not of those that are idle.
            await works[SUBJECT](range(_CALLS))
            await asyncio.sleep(parameters.authority_settle_seconds)
            before = crowd.process.memory_kib()
            await stack.enter_async_context(beside("idle", crowd.uris[transport], idle))
            await asyncio.sleep(parameters.authority_settle_seconds)
            kib = (crowd.process.memory_kib() - before) / idle
            yield Slices(
                lambda rng: range(_CALLS),
                works,
                meters=meters,
                facts={SUBJECT: {"idle_kib": kib}},
            )

    return enter


def _over_all(
    name: str, roots: Sequence[Directory], parameters: Parameters
) -> Callable[[Sequence[int]], Awaitable[int]]:
    async def over(root: Directory, numbers: Sequence[int]) -> int:
        for _ in numbers:
            data, _, _ = await root.read_file(_SMALL)
            checked(name, len(data), parameters.small_bytes)
        return len(numbers)

    async def work(numbers: Sequence[int]) -> int:
        return sum(await asyncio.gather(*(over(root, numbers) for root in roots)))

    return work


# A client that is quiet -------------------------------------------------------------------------

Round = Callable[[], Awaitable[Mapping[str, Taken]]]


@asynccontextmanager
async def flooded(parameters: Parameters) -> AsyncIterator[Round]:
    """Asks now and then, alone and beside a client that floods; counts calls."""
    async with serving() as service, service.root() as root:
        await _asked(root, parameters.authority_latencies)  # the first calls are of nobody

        async def one_round() -> Mapping[str, Taken]:
            alone = await _asked(root, parameters.authority_latencies)
            async with beside("flood", service.uris[UNIX], parameters.authority_flood):
                flooded = await _asked(root, parameters.authority_latencies)
            return {
                SUBJECT: _taken(flooded, alone),
                ALONE: _taken(alone, alone),
            }

        with quiet_collector():
            yield one_round


async def _asked(root: Directory, count: int) -> list[float]:
    """How many seconds calls took, in order of length."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await root.stat()
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE_SECONDS)
    return sorted(taken)


def _taken(ordered: Sequence[float], alone: Sequence[float]) -> Taken:
    details = {
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * p99(ordered),
        "p99_ratio": p99(ordered) / p99(alone),
    }
    return Taken(len(ordered), sum(ordered), details)


def p99(ordered: Sequence[float]) -> float:
    """What 99 of 100 do not exceed."""
    return ordered[len(ordered) * 99 // 100]
