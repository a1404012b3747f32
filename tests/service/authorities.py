"""An `Authority` without a service around it."""

from __future__ import annotations

from pathlib import Path

from capstore.backers.memory import MemoryVolume
from capstore.service.authority import Authority
from capstore.service.guard import GuardedDirectory
from capstore.service.references import ReferenceTable

KEY = b"k" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


async def authority_over(
    path: Path,
    *,
    clock: Clock | None = None,
    volume: MemoryVolume | None = None,
    audited: bool = True,
) -> tuple[Authority, MemoryVolume]:
    volume = volume or await MemoryVolume.open()
    table = ReferenceTable.load(path / "references.json", KEY)
    authority = Authority({"m": volume}, table, KEY, audited=audited, clock=clock or Clock())
    await authority.ensure_owners()
    return authority, volume


async def owner_of(authority: Authority) -> GuardedDirectory:
    root = await authority.restore(authority.owner_token("m"))
    assert isinstance(root, GuardedDirectory)
    return root
