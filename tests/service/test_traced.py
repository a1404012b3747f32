"""What is traced is recorded, or not to be had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import Denied, Unsupported
from capstore.service.audit import Audit, Only, Selection
from capstore.service.authority import Authority
from capstore.service.client import connect, open_connection
from capstore.service.guard import GuardedDirectory
from capstore.service.metrics import Metrics
from capstore.service.observing import Observers
from capstore.service.policy import Policy
from capstore.service.remote import Directory
from capstore.service.server import Served
from capstore.service.shares import StandingShare
from tests.contract.store_model import ModelStore
from tests.service.authorities import authority_over, owner_of
from tests.service.inprocess import serving
from tests.service.observed import ListSink

pytestmark = pytest.mark.anyio

TRACED = Policy(traced=True)


async def test_traced_is_refused_where_nothing_is_recorded(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    token = await authority.save(root.narrowed(Policy(traced=True)).narrowed(Policy()), "")
    below = await authority.save(await _restored(authority, token), "")
    again, _ = await authority_over(tmp_path, volume=volume, audited=False)
    owner = await owner_of(again)
    with pytest.raises(Unsupported, match="--audit"):
        owner.narrowed(Policy(traced=True))
    with pytest.raises(Unsupported, match="--audit"):
        owner.narrowed(Policy(read_only=True, traced=True))
    for each in (token, below):
        with pytest.raises(Unsupported, match="--audit"):
            await again.restore(each)
        assert again.status(again.controlled_by(each).id).kind == "directory"
    # It is still ended, with what was saved from it.
    await again.revoke_reference(again.controlled_by(token).id)
    for each in (token, below):
        with pytest.raises(Denied):
            await again.restore(each)


async def _restored(authority: Authority, token: str) -> GuardedDirectory:
    guarded = await authority.restore(token)
    assert isinstance(guarded, GuardedDirectory)
    return guarded


# Over RPC ----------------------------------------------------------------------------------------


class Undying(MemoryVolume):
    """What a service leaves as it was when it stops."""

    async def close(self) -> None:
        """Another service goes on with it."""


async def volumes() -> Mapping[str, Served]:
    return {"m": await Undying.open(), "s": ModelStore()}


@pytest.mark.parametrize("metrics", [False, True])
async def test_attenuating_says_so_over_rpc(metrics: bool) -> None:
    observers = Observers(None, Metrics()) if metrics else None
    async with serving(await volumes(), observers=observers) as served:
        for uri in served.unix.values():
            async with connect(uri) as whole:
                with pytest.raises(Unsupported, match="--audit"):
                    await whole.attenuate(TRACED)
                # What was refused left nothing behind.
                assert (await whole.attenuate(Policy(read_only=True))).capability is not None
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            with pytest.raises(Unsupported, match="--audit"):
                await (await root.create("f")).attenuate(TRACED)


async def test_what_was_saved_is_not_had_until_there_is_an_audit_again(tmp_path: Path) -> None:
    tree = await volumes()

    def audited() -> tuple[ListSink, Observers]:
        sink = ListSink()
        only = Selection(only=frozenset({Only.TRACED}))
        return sink, Observers(Audit(sink, only), None)

    sink, observers = audited()
    async with serving(tree, folder=tmp_path, observers=observers) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            traced = (await root.attenuate(TRACED)).capability
            token = await traced.save("traced")
    assert [line["method"] for line in sink.lines] == ["save"]
    async with serving(tree, folder=tmp_path) as served:
        async with open_connection(served.unix["m"]) as connection:
            with pytest.raises(Unsupported, match="--audit"):
                await connection.restore(token)
            # Nor is it silently something else.
            assert isinstance(await connection.root(), Directory)
    sink, observers = audited()
    async with serving(tree, folder=tmp_path, observers=observers) as served:
        async with open_connection(served.unix["m"]) as connection:
            again = await connection.restore(token)
            assert isinstance(again, Directory)
            await again.stat()
    assert [line["method"] for line in sink.lines] == ["restore", "stat"]


async def test_a_standing_share_stays_and_gives_nothing(tmp_path: Path) -> None:
    tree = await volumes()
    share = StandingShare("s", "m", more=TRACED)
    observers = Observers(Audit(ListSink()), None)
    async with serving(tree, folder=tmp_path, observers=observers) as served:
        ((_, token, _),) = await served.service.keep_shares([share])
        assert token is not None
    async with serving(tree, folder=tmp_path) as served:
        ((_, none, error),) = await served.service.keep_shares([share])
        assert none is None
        assert isinstance(error, Unsupported)
        async with open_connection(served.unix["m"]) as connection:
            with pytest.raises(Unsupported):
                await connection.restore(token)
    observers = Observers(Audit(ListSink()), None)
    async with serving(tree, folder=tmp_path, observers=observers) as served:
        assert await served.service.keep_shares([share]) == [(share, token, None)]
