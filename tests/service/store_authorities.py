"""Authorities over a store."""

from __future__ import annotations

from pathlib import Path

from capstore.backers.store import ObjectStore
from capstore.service.authority import Authority
from capstore.service.references import ReferenceTable
from capstore.service.store_guard import GuardedStore
from tests.service.authorities import KEY, Clock


async def store_authority(path: Path, store: ObjectStore, clock: Clock | None = None) -> Authority:
    table = ReferenceTable.load(path / "references.json", KEY)
    authority = Authority({"m": store}, table, KEY, clock=clock or Clock())
    await authority.ensure_owners()
    return authority


async def store_owner(authority: Authority) -> GuardedStore:
    store = await authority.restore(authority.owner_token("m"))
    assert isinstance(store, GuardedStore)
    return store
