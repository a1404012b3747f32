"""What TLS costs: the same calls over TLS on this machine, and over a unix socket.

Invariants: both are connections to one service, in whose memory is what they read, and take turns.
A unix socket is what there is without TLS: over TCP a service speaks nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from capstore.schema.limits import WINDOW_BYTES
from capstore.service.remote import REPLACE, Directory, File
from capstore.service.transfer import Writer, read_chunks
from capstore.tools.bench.authority_policies import metered
from capstore.tools.bench.authority_site import TLS, UNIX, serving
from capstore.tools.bench.contestants import checked, each
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.slices import Slices

_SMALL: Final = "small"
# What is done over a connection, so many times.
Work = Callable[[Sequence[int]], Awaitable[int]]
Begin = Callable[[str, Directory, Parameters], Awaitable[Work]]
Enter = Callable[[Parameters], AbstractAsyncContextManager[Slices[int]]]


def over_both(begin: Begin, calls: Callable[[Parameters], int] | None = None) -> Enter:
    """What `begin` gives of each connection: so many calls in a slice, or all that it moves."""

    @asynccontextmanager
    async def enter(parameters: Parameters) -> AsyncIterator[Slices[int]]:
        async with (
            serving() as service,
            service.root(TLS) as over_tls,
            service.root(UNIX) as over_unix,
        ):
            roots = {SUBJECT: over_tls, UNIX: over_unix}
            works = {name: await begin(name, root, parameters) for name, root in roots.items()}
            if calls is None:
                yield Slices(lambda rng: range(1), works)
            else:
                count = calls(parameters)
                yield Slices(lambda rng: range(count), works, meters=metered(works, service))

    return enter


def small_reads(in_flight: Callable[[Parameters], int]) -> Begin:
    """Opens and reads a small file; counts how often."""

    async def begin(name: str, root: Directory, parameters: Parameters) -> Work:
        size = parameters.small_bytes
        await root.write_file(_SMALL, bytes(size))

        async def one(number: int) -> None:
            data, _, _ = await root.read_file(_SMALL)
            if len(data) != size:
                checked(name, len(data), size)

        async def work(numbers: Sequence[int]) -> int:
            await each(numbers, one, in_flight(parameters))
            return len(numbers)

        return work

    return begin


async def reads(name: str, root: Directory, parameters: Parameters) -> Work:
    """Reads a large file, several requests in flight; counts bytes."""
    file = await _large(name, root, parameters)
    window, size = parameters.blocks_in_flight, parameters.authority_large_bytes

    async def work(numbers: Sequence[int]) -> int:
        got = 0
        for _ in numbers:
            chunks = read_chunks(file, window=window, block=WINDOW_BYTES)
            got += checked(name, sum([len(chunk) async for chunk in chunks]), size)
        return got

    return work


async def writes(name: str, root: Directory, parameters: Parameters) -> Work:
    """Writes a large file, several requests in flight; counts bytes."""
    file = await _large(name, root, parameters)
    data = bytes(parameters.authority_large_bytes)

    async def work(numbers: Sequence[int]) -> int:
        for _ in numbers:
            await _write(file, data, parameters)
        return len(data) * len(numbers)

    return work


async def _large(name: str, root: Directory, parameters: Parameters) -> File:
    """A file of its own for each, whose content is there."""
    file = await root.open(f"large-{name}", REPLACE)
    await _write(file, bytes(parameters.authority_large_bytes), parameters)
    return file


async def _write(file: File, data: bytes, parameters: Parameters) -> None:
    writer = Writer(file, window=parameters.blocks_in_flight, block=WINDOW_BYTES)
    await writer.write(data)
    await writer.finish()
