"""A CAPOSST1 store over the wire: a service in a process of its own, on a unix socket.

Invariants: the client goes through `capstore.connect` and nothing else; both processes are on this
machine, and share its processors.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from capstore.service.client import connect
from capstore.service.remote_store import RemoteStore
from capstore.service.server import start
from capstore.service.state import StateDirectory
from capstore.tools.bench.contestants import BenchError, server_process
from capstore.tools.bench.st1_stores import IMAGE, RPC, OverStore


@asynccontextmanager
async def serve(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Serves the store in the image ``image`` on the unix socket ``socket``."""
    from capstore.backers.st1 import St1Store

    store = await St1Store.open(config["image"], create=True)
    state = StateDirectory.open(Path(config["state"]))
    async with start({"objects": store}, state) as service:
        await service.listen_unix(Path(config["socket"]))
        ((_, uri),) = service.owner_uris()
        yield {"uri": str(uri)}


@asynccontextmanager
async def served(image: Path) -> AsyncIterator[RemoteStore]:
    """What `capstore.connect` gives of the store in `image`, which a new process serves."""
    # The path of a socket is short, whatever the directory's that is measured.
    with tempfile.TemporaryDirectory(prefix="capstore-bench-") as name:
        config = {"image": str(image), "state": f"{name}/state", "socket": f"{name}/socket"}
        async with server_process("store", config) as ready, connect(ready["uri"]) as store:
            if not isinstance(store, RemoteStore):
                raise BenchError("the service gave no store")
            yield store


class Remote(OverStore):
    """The same store as a client of its service has it."""

    name = RPC

    def __init__(self, folder: Path) -> None:
        runner = asyncio.Runner()
        try:
            super().__init__(runner, runner.run(self._begin(folder / IMAGE)))
        except BaseException:
            runner.close()
            raise

    async def _begin(self, image: Path) -> RemoteStore:
        connected: asyncio.Queue[RemoteStore] = asyncio.Queue()
        self._ended = asyncio.Event()

        async def hold() -> None:
            async with served(image) as store:
                connected.put_nowait(store)
                await self._ended.wait()

        # What a task enters it has to leave itself.
        self._held = asyncio.create_task(hold())
        first = asyncio.create_task(connected.get())
        await asyncio.wait({first, self._held}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            first.cancel()
            await self._held
        return first.result()

    async def get_all(self, keys: Sequence[bytes]) -> int:
        # All are asked for before the first is answered.
        return sum(await asyncio.gather(*map(self.get, keys)))

    async def _end(self) -> None:
        self._ended.set()
        await self._held

    def close(self) -> None:
        try:
            self.runner.run(self._end())
        finally:
            self.runner.close()
