"""A served CAPOSST1 store of real files whose service is killed while it compacts."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sysconfig
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

import capstore
from capstore.schema.errors import StorageError, TransportError
from capstore.service.remote_store import RemoteStore
from tests.tools.command import capstore as command
from tests.tools.command import serving

pytestmark = pytest.mark.anyio

LIBRARY = Path(sysconfig.get_path("stdlib"))
_IN_FLIGHT = 64


def corpus(every: int) -> list[bytes]:
    """Files of Python's library, each `every`-th one."""
    paths = sorted(
        path
        for path in LIBRARY.rglob("*")
        if path.is_file() and not {"site-packages", "__pycache__"} & set(path.parts)
    )
    return [path.read_bytes() for path in paths[::every]]


@asynccontextmanager
async def store_at(uri: str) -> AsyncIterator[RemoteStore]:
    async with capstore.connect(uri) as store:
        assert isinstance(store, RemoteStore)
        yield store


async def put_all(store: RemoteStore, contents: Iterable[bytes]) -> None:
    gate = asyncio.Semaphore(_IN_FLIGHT)

    async def put(data: bytes) -> None:
        async with gate:
            assert (await store.put(data)).key == hashlib.sha256(data).digest()

    await asyncio.gather(*(put(data) for data in contents))


async def keys_of(store: RemoteStore) -> set[bytes]:
    keys: set[bytes] = set()
    after = b""
    while page := (await store.list(after=after)).objects:
        keys |= {each.key for each in page}
        after = page[-1].key
    return keys


async def survives(image: Path, contents: list[bytes], kills: int) -> None:
    chance = Random(1)
    spec = f"s=st1:{image},create"
    wanted = {hashlib.sha256(data).digest(): data for data in contents}
    with serving(spec) as served:
        async with store_at(served.uri("s")) as store:
            await put_all(store, contents)
    for kill in range(kills):
        with serving(spec) as served:
            with suppress(StorageError, TransportError):
                async with store_at(served.uri("s")) as store:
                    # What is removed and replaced has to be compacted away.
                    gone = [b"%d of %d" % (n, kill) * 3000 for n in range(40)]
                    await put_all(store, gone)
                    for data in gone:
                        await store.delete(hashlib.sha256(data).digest())
                    compacting = asyncio.ensure_future(store.compact())
                    await asyncio.sleep(chance.random() * 0.15)
                    served.process.send_signal(signal.SIGKILL)
                    await compacting
            served.process.wait(20)
        with serving(spec) as served:
            async with store_at(served.uri("s")) as store:
                keys = await keys_of(store)
                assert wanted.keys() <= keys
                for key, data in wanted.items():
                    # A get compares with the hash.
                    assert await store.get(key) == data
            assert served.stop() == 0
        assert command("image", "verify", image).ok() == ""


async def test_real_files_survive_kills_during_compaction(tmp_path: Path) -> None:
    await survives(tmp_path / "image", corpus(every=30), kills=2)


@pytest.mark.long
async def test_all_of_a_library_survives_many_kills(tmp_path: Path) -> None:
    await survives(tmp_path / "image", corpus(every=1), kills=30)
