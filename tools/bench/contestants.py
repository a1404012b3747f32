"""What takes part: a server process of its own, and a client that does what a case asks.

Invariants:

* A contestant's server runs in another process and ends with the bench, also when that is killed:
  it lives as long as its standard input.
* An operation answers how much it moved, so that a case can tell a fast answer from a wrong one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

_START_SECONDS_MAX = 60
_STOP_SECONDS_MAX = 10


class BenchError(Exception):
    """The bench cannot go on; the text says why, to a person."""


def checked(name: str, got: int, wanted: int) -> int:
    """`got` if it is what `name` was asked for, else raises `BenchError`."""
    if got != wanted:
        raise BenchError(f"{name} answered {got} where {wanted} was asked for")
    return got


class Contestant(ABC):
    """A client of one server over the corpus; see `capstore.tools.bench.cases` for the uses."""

    name: ClassVar[str]

    @abstractmethod
    async def open_and_read(self, name: str, length: int) -> int:
        """Opens the file `name` of ``small``, reads `length` bytes, and counts them."""

    @abstractmethod
    async def read_open(self, offset: int, length: int) -> int:
        """Reads from ``large``, which is open, and counts the bytes."""

    @abstractmethod
    async def read_large(self, block: int, in_flight: int) -> int:
        """Reads all of ``large``, `in_flight` reads of `block` bytes at a time."""

    @abstractmethod
    async def write_large(self, data: bytes, block: int, in_flight: int) -> int:
        """Writes `data` to the start of ``large``, `in_flight` blocks at a time."""

    @abstractmethod
    async def list_names(self) -> int:
        """Lists the names in ``many`` and counts them."""

    @abstractmethod
    async def list_stats(self) -> int:
        """Lists ``many`` with what is known of each entry, and counts them."""

    @abstractmethod
    async def get_tree(self, target: Path) -> None:
        """Copies ``tree`` with all below to the host directory `target`, which is not there."""


async def each(
    items: Iterable[T], operation: Callable[[T], Awaitable[object]], in_flight: int
) -> None:
    """Awaits `operation` for every item, `in_flight` at a time; raises the first failure."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await operation(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        # The others failed for the same reason, or were cancelled for it.
        raise failures.exceptions[0] from None


def new_directory(path: Path) -> None:
    """Makes `path`.  It blocks, as `save` does: a measured client has nothing else to do."""
    path.mkdir()


def save(path: Path, content: bytes) -> None:
    """Writes the host file `path`."""
    path.write_bytes(content)


@asynccontextmanager
async def server_process(kind: str, config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """A server of this kind (`capstore.tools.bench.serve`); gives what it says when it is ready.

    Raises `BenchError` when it does not get ready.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "capstore.tools.bench.serve", kind, json.dumps(config)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # An interrupt at the terminal is the bench's to handle; the server ends with its input.
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None:
        raise BenchError("a server without pipes")
    try:
        async with asyncio.timeout(_START_SECONDS_MAX):
            line = await process.stdout.readline()
        if not line:
            raise BenchError(f"the {kind} server did not start")
        yield json.loads(line)
    except TimeoutError:
        raise BenchError(f"the {kind} server did not start in {_START_SECONDS_MAX} s") from None
    finally:
        process.stdin.close()
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS_MAX):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
