"""An authority that may be started again on what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import Denied
from capstore.service import references
from capstore.service.authority import Authority
from capstore.service.references import Reference, ReferenceTable
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, Clock

HOUR = 3600 * 10**9


class Starts:
    """An authority over a tree "m" and a store "o", which may be started again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "references.json"
        self.clock = Clock()
        self.volumes: dict[str, Volume | ObjectStore] = {}
        self.authority: Authority

    async def start(self) -> Authority:
        if not self.volumes:
            self.volumes = {"m": await MemoryVolume.open(), "o": ModelStore()}
        table = ReferenceTable.load(self.path, KEY)
        self.authority = Authority(self.volumes, table, KEY, clock=self.clock)
        await self.authority.ensure_owners()
        return self.authority

    async def owner(self, volume: str = "m") -> Any:
        return await self.restored(self.authority.owner_token(volume))

    async def restored(self, token: str) -> Any:
        return await self.authority.restore(token)

    async def save(self, node: Any, label: str = "") -> str:
        return await self.authority.save(node, label)

    def reference(self, token: str) -> Reference:
        return self.authority.controlled_by(token)

    async def renew(self, token: str, expires_at: int) -> Reference:
        return await self.authority.exchanges.renew(self.reference(token).id, expires_at)

    async def rotate(self, token: str) -> str:
        return (await self.authority.exchanges.rotate(self.reference(token).id))[1]

    async def denied(self, *tokens: str) -> None:
        for token in tokens:
            with pytest.raises(Denied, match="no such reference"):
                await self.restored(token)


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(references, "replace_file", full)
