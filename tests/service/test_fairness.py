"""One that floods does not starve another."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import StorageError, TransportError
from capstore.service import commons
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.service.session import Session
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio

FLOODING = 400
CALLS = 40


@asynccontextmanager
async def flood(served: Served, call: Callable[[Directory], Awaitable[object]]) -> Any:
    """While inside, a client has `FLOODING` calls under way all the time."""
    async with connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)

        async def one() -> None:
            with suppress(StorageError, TransportError):
                while True:
                    await call(root)

        async with asyncio.TaskGroup() as tasks:
            flooding = [tasks.create_task(one()) for _ in range(FLOODING)]
            try:
                yield
            finally:
                for task in flooding:
                    task.cancel()


async def calls_ahead(served: Served, monkeypatch: pytest.MonkeyPatch, floods: int) -> list[int]:
    """How many calls of others the service began while each call of a quiet client took."""
    begun = itertools.count()
    begins = Session.call_begins

    def counted(session: Session) -> None:
        next(begun)
        begins(session)

    monkeypatch.setattr(Session, "call_begins", counted)
    taken = []
    async with AsyncExitStack() as stack:
        quiet = await stack.enter_async_context(connect(served.unix["m"]))
        assert isinstance(quiet, Directory)
        for _ in range(floods):
            await stack.enter_async_context(flood(served, lambda root: root.stat()))
        await asyncio.sleep(0.1)
        for _ in range(CALLS):
            before = next(begun)
            await quiet.stat()
            taken.append(next(begun) - before - 2)
            await asyncio.sleep(0.002)
    return sorted(taken)


@pytest.mark.parametrize("floods", [1, 3])
async def test_few_calls_of_who_floods_come_before_one_of_who_does_not(
    monkeypatch: pytest.MonkeyPatch, floods: int
) -> None:
    async with serving({"m": await MemoryVolume.open()}) as served:
        taken = await calls_ahead(served, monkeypatch, floods)
        assert taken[-1] > 0, "nobody floods"
        assert taken[len(taken) * 9 // 10] <= 40


async def test_without_turns_it_would_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above would notice."""
    monkeypatch.setattr(commons, "TURN_CALLS_MAX", 1000)
    monkeypatch.setattr(commons, "TURN_CALLS_HURRIED_MAX", 1000)
    monkeypatch.setattr(commons, "CALLS_SHARED_MAX", 4000)
    async with serving({"m": await MemoryVolume.open()}) as served:
        taken = await calls_ahead(served, monkeypatch, 1)
        assert taken[len(taken) * 9 // 10] > 80


async def test_a_client_works_beside_strangers_at_any_rate() -> None:
    """They come and go, say nothing, half of something, or garbage, as fast as they can."""
    async with serving({"m": await MemoryVolume.open()}) as served:
        path = served.unix["m"].socket
        came = 0

        async def strangers(said: bytes) -> None:
            nonlocal came
            while True:
                # A refused connection may raise without having waited.
                await asyncio.sleep(0)
                with suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(path)
                    came += 1
                    writer.write(said)
                    await asyncio.sleep(0)
                    writer.transport.abort()

        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            garbage = (b"", b"\0" * 7, b"\xff" * 100, b"\0" * 8 + b"\1" * 1000)
            coming = [asyncio.create_task(strangers(said)) for said in garbage * 3]
            try:
                async with asyncio.timeout(60):
                    for _ in range(100):
                        await root.write_file("f", b"works")
                        assert (await root.read_file("f"))[0] == b"works"
            finally:
                for task in coming:
                    task.cancel()
                await asyncio.wait(coming)
        assert came > 50


LATENCY = """
import asyncio, sys, time
from capstore.service.client import connect

async def main():
    async with connect(sys.argv[1]) as root:
        for line in sys.stdin:
            taken = []
            for _ in range(int(line)):
                begun = time.perf_counter()
                await root.stat()
                taken.append(time.perf_counter() - begun)
                await asyncio.sleep(0.002)
            print(sorted(taken)[len(taken) * 99 // 100], flush=True)

asyncio.run(main())
"""
FLOOD = """
import asyncio, sys
from capstore.service.client import connect

async def main():
    async with connect(sys.argv[1]) as root:
        async def one():
            while True:
                await root.stat()
        flooding = [asyncio.create_task(one()) for _ in range(1000)]
        await asyncio.sleep(0.5)
        print("floods", flush=True)
        await asyncio.wait(flooding)

asyncio.run(main())
"""
SERVER = """
import asyncio
from capstore.backers.memory import MemoryVolume
from tests.service.inprocess import serving

async def main():
    async with serving({"m": await MemoryVolume.open()}) as served:
        print(served.unix["m"], flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def stop(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@pytest.mark.long
def test_p99_of_a_quiet_client_stays_within_5_times_its_own() -> None:
    """Each in a process of its own, in turns, so that whatever else the machine does hits both."""
    server = started(SERVER)
    uri = line_of(server)
    quiet = started(LATENCY, uri)

    def p99() -> float:
        assert quiet.stdin is not None
        quiet.stdin.write("500\n")
        quiet.stdin.flush()
        return float(line_of(quiet))

    ratios = []
    try:
        for _ in range(5):
            alone = p99()
            flooding = started(FLOOD, uri)
            line_of(flooding)
            ratios.append(p99() / alone)
            stop(flooding)
    finally:
        stop(quiet, server)
    assert sorted(ratios)[len(ratios) // 2] <= 5, ratios
