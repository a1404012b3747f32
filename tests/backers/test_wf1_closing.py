"""Closing a volume of CAPOSWF1, and dropping it: under load, cancelled, and what comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from capstore.backers.wf1 import Wf1Volume
from capstore.images.devices import FileDevice
from capstore.schema.errors import Closed
from tests.backers.wf1devices import until
from tests.contract.harness import content_of, populate, replace_content, tree_of

pytestmark = pytest.mark.anyio


async def test_closing_under_load(tmp_path: Path) -> None:
    volume = await Wf1Volume.open(tmp_path / "image", create=True)
    done: list[str] = []

    async def busy(number: int) -> None:
        for step in range(10_000):
            name = f"{number} {step}"
            await replace_content(volume.root, name, name.encode())
            done.append(name)
            assert await content_of(volume.root, name) == name.encode()
            if step % 7 == 0:
                await volume.root.remove(name)
                done.remove(name)

    tasks = [asyncio.ensure_future(busy(number)) for number in range(8)]
    await until(lambda: len(done) > 50)
    await asyncio.gather(volume.close(), volume.close())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Closed] * 8
    for call in (volume.sync(), volume.usage(), volume.node_of(b"")):
        with pytest.raises(Closed):
            await call
    with pytest.raises(Closed):
        _ = volume.root
    await volume.close()
    volume = await Wf1Volume.open(tmp_path / "image")
    tree = await tree_of(volume.root)
    assert set(done) <= set(tree)
    assert all(tree[name] == name.encode() for name in done)
    await volume.close()


async def test_a_cancelled_close_has_closed(tmp_path: Path) -> None:
    for turns in range(8):
        image = tmp_path / f"{turns}"
        volume = await Wf1Volume.open(image, create=True)
        await populate(volume.root, {"f": b"content"})
        task = asyncio.ensure_future(volume.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await volume.close()
        volume = await Wf1Volume.open(image)
        assert await content_of(volume.root, "f") == b"content"
        await volume.close()


async def test_descriptors_and_memory_come_back(tmp_path: Path) -> None:
    async def once() -> None:
        volume = await Wf1Volume.open(tmp_path / "image", create=True)
        name = f"{random.random()}"
        await replace_content(volume.root, name, bytes(100_000))
        kept = [await volume.root.open(name), await volume.root.snapshot()]
        await volume.sync()
        await volume.close()
        del kept

    def kept() -> tuple[int, int]:
        gc.collect()
        engines = sum(isinstance(thing, Wf1Volume | FileDevice) for thing in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), engines

    await once()
    # A worker may still have the last call in its hands.
    await asyncio.sleep(0.05)
    before = kept()
    for _ in range(5):
        await once()
    await until(lambda: kept() == before)


async def test_a_volume_that_is_dropped_lets_go_of_its_file(tmp_path: Path) -> None:
    volume = await Wf1Volume.open(tmp_path / "image", create=True)
    await volume.root.create("f")
    del volume
    gc.collect()
    await asyncio.sleep(0.01)
    gc.collect()
    await (await Wf1Volume.open(tmp_path / "image")).close()
