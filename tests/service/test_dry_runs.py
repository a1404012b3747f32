"""Dry runs are shared: what one holder has of them leaves room for the next."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.schema.errors import Busy
from capstore.schema.limits import DRY_RUNS_MAX
from capstore.service.authority import Authority, Guarded
from capstore.service.client import open_connection
from capstore.service.guard import GuardedDirectory
from capstore.service.name_guard import GuardedNamespace
from capstore.service.policy import Policy
from capstore.service.references import ReferenceTable
from capstore.service.remote import Directory
from capstore.service.store_guard import GuardedStore
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, authority_over, owner_of
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio

DRY = Policy(dry_run=True)
HALF = DRY_RUNS_MAX // 2


async def taken(authority: Authority, token: str, runs: list[Guarded]) -> int:
    """How many dry runs who holds `token` gets, one after the other; they go on."""
    before = len(runs)
    try:
        while True:
            runs.append(await authority.restore(token))
    except Busy:
        return len(runs) - before


async def saved(authority: Authority, guarded: Guarded) -> str:
    return await authority.save(guarded, "")


async def dry_of(authority: Authority, root: GuardedDirectory) -> str:
    """The token of a dry run; the one that it was saved from is over."""
    token = await saved(authority, await root.attenuated(DRY))
    gc.collect()
    return token


async def test_whoever_takes_all_he_can_leaves_room_for_the_next(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    tokens = [await dry_of(authority, root) for _ in range(7)]
    runs: list[Guarded] = []
    found = [await taken(authority, token, runs) for token in tokens]
    assert found == [32, 16, 8, 4, 2, 1, 1]
    assert sum(found) == DRY_RUNS_MAX
    # What was let go of is for all again.
    del runs[1:]
    gc.collect()
    runs.append(await authority.restore(tokens[6]))
    assert await taken(authority, tokens[0], runs) == HALF - 1


async def test_saving_more_references_gives_no_more_runs(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    mine = await dry_of(authority, root)
    others = await dry_of(authority, root)
    runs: list[Guarded] = [await authority.restore(mine)]
    below = [await saved(authority, runs[0]) for _ in range(20)]
    below.append(await saved(authority, await authority.restore(below[0])))
    mine_in_all = 1 + sum([await taken(authority, token, runs) for token in [*below, mine]])
    assert mine_in_all <= HALF
    assert await taken(authority, others, runs) >= HALF // 2


async def test_those_below_one_leave_room_for_one_another(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    above = await authority.restore(await saved(authority, root))
    assert isinstance(above, GuardedDirectory)
    first, second = [await dry_of(authority, above) for _ in range(2)]
    runs: list[Guarded] = []
    assert await taken(authority, first, runs) == HALF // 2
    assert await taken(authority, second, runs) > 0


async def test_the_owner_may_have_all_that_are_left(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    runs: list[Guarded] = []
    await taken(authority, await dry_of(authority, root), runs)
    runs += [await root.attenuated(DRY) for _ in range(DRY_RUNS_MAX - HALF)]
    with pytest.raises(Busy):
        await root.attenuated(DRY)


async def test_who_uses_a_name_is_the_holder_of_what_it_lends(tmp_path: Path) -> None:
    served: dict[str, Volume | ObjectStore] = {"m": await MemoryVolume.open(), "s": ModelStore()}
    table = ReferenceTable.load(tmp_path / "references.json", KEY)
    authority = Authority(served, table, KEY)
    await authority.ensure_owners()
    root = await owner_of(authority)
    store = await authority.restore(authority.owner_token("s"))
    assert isinstance(store, GuardedStore)
    names = store.namespace()
    assert isinstance(names, GuardedNamespace)
    token = await dry_of(authority, root)
    number = await authority.may_bind(names, 0, token)
    runs: list[Guarded] = []
    with pytest.raises(Busy):
        while True:
            runs.append(await authority.lent(number, names))
    assert len(runs) == HALF
    # The one that is named has its share.
    assert await taken(authority, token, runs) == HALF // 2


async def test_a_client_that_takes_all_it_can_leaves_room_for_others() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served:
        uri = served.unix["m"]
        async with open_connection(uri) as owner:
            root = await owner.root()
            assert isinstance(root, Directory)
            greedy, modest = [
                await (await root.attenuate(DRY)).capability.save(name) for name in "gm"
            ]
            del root
        held = []
        async with (
            open_connection(uri) as one,
            open_connection(uri) as two,
            open_connection(uri) as other,
        ):
            for connection in (one, two):
                with pytest.raises(Busy):
                    while True:
                        held.append(await connection.restore(greedy))
            assert len(held) == HALF
            dry = await other.restore(modest)
            assert isinstance(dry, Directory)
            await dry.mkdir("as if")
            held.clear()
            del dry
