"""Blocking calls in worker threads: cancelled or not, nothing is left under way."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from capstore.backers.workers import Lane, in_worker

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("runner", [in_worker, Lane().run])
async def test_a_cancelled_call_raises_when_it_has_ended(runner: object) -> None:
    ended = False

    def slow() -> None:
        nonlocal ended
        time.sleep(0.05)
        ended = True

    task = asyncio.ensure_future(runner(slow))  # type: ignore[operator]
    await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_lane_keeps_the_order_and_gathers_what_waits() -> None:
    lane = Lane()
    seen: list[int] = []
    threads: set[int] = set()

    def note(number: int) -> int:
        threads.add(threading.get_ident())
        seen.append(number)
        if number == 0:
            time.sleep(0.02)
        if number == 7:
            raise ValueError("seven")
        return number

    calls = [asyncio.ensure_future(lane.run(lambda n=n: note(n))) for n in range(50)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert seen == list(range(50))
    assert [n if n != 7 else None for n in range(50)] == [
        None if isinstance(each, ValueError) else each for each in results
    ]
    assert len(threads) <= 2, "the first went alone, the others together"
    assert await lane.run(lambda: note(51)) == 51


async def test_one_that_is_cancelled_in_a_lane_does_not_disturb_the_others() -> None:
    lane = Lane()
    seen: list[int] = []
    calls = [
        asyncio.ensure_future(lane.run(lambda n=n: (time.sleep(0.002), seen.append(n))))
        for n in range(10)
    ]
    await asyncio.sleep(0.003)
    calls[4].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[4], asyncio.CancelledError)
    assert seen == list(range(10))
