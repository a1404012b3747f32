"""Policies of so many calls and bytes a second: who waits, who is refused, in which order."""

from __future__ import annotations

import asyncio
import time

import pytest

from capstore.schema.errors import Busy, Code, Revoked
from capstore.schema.limits import PACE_SECONDS_MAX
from capstore.service.client import connect
from capstore.service.grants import Policy
from capstore.service.quota import Pace
from capstore.service.remote import Directory
from tests.service.inprocess import serving
from tests.service.policed import WRITE, a_tree, code_of

pytestmark = pytest.mark.anyio


async def test_calls_over_a_rate_wait_in_the_order_of_coming() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=100))
    done: list[int] = []

    async def call(number: int) -> None:
        await here.stat()
        done.append(number)

    await asyncio.gather(*(call(number) for number in range(100)))
    begun = time.monotonic()
    await asyncio.gather(*(call(number) for number in range(100, 115)))
    assert time.monotonic() - begun > 0.1
    assert done == list(range(115))


async def test_far_over_a_rate_is_busy_at_once() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=3))
    codes = await asyncio.gather(*(code_of(here.mkdir(f"{number}")) for number in range(50)))
    # Three at once, and as many as have their turn within a second.
    done = codes.count(None)
    assert 3 <= done <= 3 + 3 * PACE_SECONDS_MAX + 1
    assert codes.count(Code.BUSY) == 50 - done
    made = [entry.name for entry in (await top.list()).entries if entry.name.isdigit()]
    assert len(made) == done


async def test_who_is_cancelled_or_revoked_while_waiting_has_done_nothing() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=5))
    for _ in range(5):
        await here.stat()
    tasks = [asyncio.ensure_future(here.mkdir(f"{number}")) for number in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, False, True, False]
    assert not here.grant.paces[0]._waiting
    waiting = asyncio.ensure_future(here.mkdir("revoked"))
    await asyncio.sleep(0)
    here.grant.end(Revoked("over"))
    with pytest.raises(Revoked):
        await waiting
    names = {entry.name for entry in (await top.list()).entries}
    assert names & {"0", "1", "2", "3", "revoked"} == {"1", "3"}


async def test_bytes_count_both_ways() -> None:
    _, top = await a_tree()
    slow = top.narrowed(Policy(bytes_per_second=1000))
    file = await slow.open("a", WRITE)
    await file.write(0, b"x" * 5000)
    for call in (file.read(0, 1), slow.lookup("a"), file.write(0, b"")):
        with pytest.raises(Busy):
            await call
    reader = await top.narrowed(Policy(bytes_per_second=1000)).open("a")
    await reader.read(0, 5000)
    with pytest.raises(Busy):
        await reader.read(0, 1)


async def test_a_rate_over_rpc_counts_calls() -> None:
    served_calls = 20
    volume, _ = await a_tree()
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        here = (await root.attenuate(Policy(calls_per_second=served_calls))).capability
        begun = time.monotonic()
        file = await here.open("a")
        # A read is one call, though the service asks for the size first.
        for _ in range(served_calls - 1):
            await file.read(0, 7)
        assert time.monotonic() - begun < 0.9
        await file.read(0, 7)
        assert time.monotonic() - begun > 1 / served_calls / 2


async def test_nobody_overtakes_who_waits() -> None:
    now = [0]
    pace = Pace(10, 0, lambda: now[0])
    for _ in range(10):
        await pace.begin()
    order: list[str] = []

    async def call(name: str) -> None:
        await pace.begin()
        order.append(name)

    first = asyncio.ensure_future(call("first"))
    await asyncio.sleep(0)
    now[0] += 10**9
    await asyncio.gather(first, call("second"))
    assert order == ["first", "second"]


async def test_what_would_wait_too_long_is_busy_at_once() -> None:
    pace = Pace(2, 0)
    tasks = [asyncio.ensure_future(code_of(pace.begin())) for _ in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)
    done = [task.result() for task in tasks if task.done()]
    assert done.count(None) == 2
    assert done.count(Code.BUSY) >= 15
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert not pace._waiting


def test_a_pace_refills() -> None:
    now = [0]
    pace = Pace(10, 100, lambda: now[0])

    async def play() -> None:
        for _ in range(10):
            await pace.begin()
        now[0] += 10**9
        await pace.begin(500)
        with pytest.raises(Busy):
            await pace.begin()
        pace.give_back(500)
        await pace.begin()

    asyncio.run(play())
