"""CAPOSST1 stores for the suite: growing and of a fixed size, in process and over a connection."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectStore
from tests.contract.harness import LONG
from tests.contract.stores import Opener, register
from tests.contract.wf1 import FOLDER

FIXED_BYTES = 64 << 20


def _opener(size: int | None) -> Opener:
    @asynccontextmanager
    async def opened() -> AsyncIterator[ObjectStore]:
        with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as folder:
            store = await St1Store.open(Path(folder) / "image", create=True, size=size)
            yield store
            await store.close()

    def opener() -> AbstractAsyncContextManager[ObjectStore]:
        return opened()

    return opener


register("st1", _opener(None))
register("st1-fixed", _opener(FIXED_BYTES))
LONG |= {"st1-fixed+delay", "rpc-st1-fixed"}
