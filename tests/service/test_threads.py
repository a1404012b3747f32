"""What pycapnp hands out is freed on its own loop, wherever the collector runs.

KJ aborts the process otherwise, so these tests fail by taking the whole run with them.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.workers import in_worker
from capstore.schema.errors import NotFound, StorageError
from capstore.service.client import connect, open_connection
from capstore.service.grants import Policy
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio


async def test_a_circle_around_a_capability_is_collected_on_another_thread() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        for _ in range(10):
            circle: list[Any] = [await r.create("x"), await r.attenuate(Policy(), revocable=True)]
            circle.append(circle)
            del circle
            await r.remove("x")
            await in_worker(gc.collect)
        await r.stat()


async def test_kept_exceptions_are_collected_on_another_thread() -> None:
    async with (
        serving({"m": await MemoryVolume.open()}) as served,
        open_connection(served.unix["m"]) as connection,
    ):
        root = await connection.root()
        for call in (
            lambda: root.open("nothing"),
            lambda: root.read_file("nothing"),
            lambda: root.write_file("a\ufffe/b", b""),
            lambda: root.at(["a", "b", "c"]),
            lambda: root.rename("a", root, "b"),
            lambda: root.link("a", root, "b"),
            lambda: root.set_attributes(None, "x"),
            lambda: root.attenuate(Policy(expires_at=-1)),
            lambda: connection.restore("wrong"),
            lambda: connection.reference("wrong"),
        ):
            await _fail_and_forget(call)
            await in_worker(gc.collect)
        await root.stat()


async def _fail_and_forget(call: Any) -> None:
    """Makes the circle that Python programs make: a frame that keeps what passed through it."""
    kept: list[BaseException] = []
    try:
        await call()
    except (StorageError, AttributeError) as error:
        kept.append(error)
    assert kept
    frame_and_error: list[Any] = [kept]
    frame_and_error.append(frame_and_error)


async def test_cancelled_calls_are_collected_on_another_thread() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        file = await r.create("x")
        for _ in range(20):
            calls = [asyncio.ensure_future(file.read(0, 10)) for _ in range(5)]
            calls += [asyncio.ensure_future(r.list()) for _ in range(5)]  # type: ignore[misc]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            results.append(results)
            del calls, results, call
            await in_worker(gc.collect)
        await r.stat()


async def test_failed_calls_leave_nothing_at_the_service() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        await _fail(r)
        gc.collect()
        before = _servers()
        for _ in range(50):
            await _fail(r)
        gc.collect()
        assert _servers() <= before + 2


async def _fail(root: Any) -> None:
    with pytest.raises(NotFound):
        await root.open("nothing")
    with pytest.raises(NotFound):
        await root.read_file("nothing")
    await root.stat()


def _servers() -> int:
    names = ("BrokenServer", "FileServer", "DirectoryServer", "_CallContext")
    return sum(type(each).__name__ in names for each in gc.get_objects())


COLLECTION = """
import asyncio, gc, os, weakref
from capstore.service.loop import kj_loop_running

class Marked: pass

async def main():
    async with kj_loop_running():
        assert not gc.isenabled(), "automatic collection may run on any thread"
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitpid(child, 0)[1] == 0, "a child has no loop that collects for it"
        marked = Marked()
        marked.itself = marked
        gone = weakref.ref(marked)
        del marked
        kept = []
        while gone() is not None:
            kept.extend([] for _ in range(gc.get_threshold()[0] + 1))
            await asyncio.sleep(0.05)
    assert gc.isenabled()

asyncio.run(asyncio.wait_for(main(), 10))
"""


def test_the_loop_collects_and_nobody_else() -> None:
    # In a process of its own: other tests leave the background loop running in this one.
    subprocess.run([sys.executable, "-W", "error", "-c", COLLECTION], check=True, timeout=30)
