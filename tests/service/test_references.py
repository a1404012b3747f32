"""Saved references: another time, and another token."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capstore.schema.errors import (
    Denied,
    Expired,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    Revoked,
    StorageIOError,
    Unsupported,
)
from capstore.service import references
from capstore.service.grants import Policy
from capstore.service.shares import StandingShare, keep_shares
from tests.service.starts import HOUR, Starts, failing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def starts(tmp_path: Path) -> Starts:
    starts = Starts(tmp_path)
    await starts.start()
    return starts


# Another time -------------------------------------------------------------------------------------


async def test_a_reference_gets_a_longer_time_and_what_lives_by_it_too(starts: Starts) -> None:
    narrowed = (await starts.owner()).narrowed(Policy(expires_at=HOUR))
    token = await starts.save(narrowed)
    live = await starts.restored(token)
    opened = await live.create("f")
    below = await starts.save(live)
    lives_below = await starts.restored(below)
    info = await starts.renew(token, 3 * HOUR)
    assert info.policy.expires_at == 3 * HOUR
    starts.clock.now = 2 * HOUR
    for node in (live, opened, lives_below, await starts.restored(token)):
        await node.stat()
    # What it was saved from live had its own time.
    with pytest.raises(Expired):
        await narrowed.stat()
    await starts.start()
    await (await starts.restored(below)).stat()
    starts.clock.now = 3 * HOUR
    with pytest.raises(Expired):
        await live.stat()
    await starts.denied(token, below)


async def test_a_reference_gets_a_shorter_time(starts: Starts) -> None:
    token = await starts.save(await starts.owner())
    live = await starts.restored(token)
    below = await starts.save(live)
    await starts.renew(token, HOUR)
    starts.clock.now = HOUR
    with pytest.raises(Expired):
        await live.stat()
    await starts.denied(token, below)
    await starts.start()
    await starts.denied(token, below)


async def test_nothing_lasts_longer_than_what_it_was_saved_from(starts: Starts) -> None:
    above = await starts.save((await starts.owner()).narrowed(Policy(expires_at=2 * HOUR)))
    node = await starts.restored(above)
    below = await starts.save(node.narrowed(Policy(expires_at=HOUR)))
    lowest = await starts.save(await starts.restored(below))
    for token in (below, lowest):
        with pytest.raises(Denied, match="ends before"):
            await starts.renew(token, 2 * HOUR + 1)
    with pytest.raises(Denied, match="ends before"):
        await starts.renew(lowest, 2 * HOUR)
    await starts.renew(below, 2 * HOUR)
    await starts.renew(lowest, 2 * HOUR)
    # For ever is for as long as that.
    await starts.renew(below, 0)
    starts.clock.now = 2 * HOUR - 1
    await starts.restored(lowest)
    starts.clock.now = 2 * HOUR
    await starts.denied(below, lowest)


async def test_a_time_that_is_over_is_none(starts: Starts) -> None:
    token = await starts.save(await starts.owner())
    for ends in (-1, 1, starts.clock.now):
        with pytest.raises(InvalidArgument):
            await starts.renew(token, ends)
    await starts.restored(token)


async def test_what_has_expired_does_not_come_back(starts: Starts) -> None:
    token = await starts.save((await starts.owner()).narrowed(Policy(expires_at=HOUR)))
    reference = starts.reference(token)
    starts.clock.now = HOUR
    with pytest.raises(NotFound):
        await starts.authority.exchanges.renew(reference.id, 2 * HOUR)
    with pytest.raises(NotFound):
        await starts.authority.exchanges.rotate(reference.id)
    await starts.denied(token)


async def test_a_whole_volume_does_not_expire(starts: Starts) -> None:
    with pytest.raises(Denied):
        await starts.renew(starts.authority.owner_token("m"), HOUR)


async def test_what_a_configuration_shares_has_its_time_from_there(starts: Starts) -> None:
    share = StandingShare("ci", "m", lifetime=HOUR)
    (kept,) = await keep_shares(starts.authority, [share])
    assert kept.token is not None
    with pytest.raises(Unsupported):
        await starts.renew(kept.token, 2 * HOUR)


async def test_a_time_that_could_not_be_written_is_as_before(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = (await starts.owner()).narrowed(Policy(expires_at=HOUR))
    token = await starts.save(live)
    restored = await starts.restored(token)
    with monkeypatch.context() as patch:
        failing(patch)
        for ends in (3 * HOUR, HOUR // 2, 0):
            with pytest.raises(StorageIOError):
                await starts.renew(token, ends)
    assert starts.reference(token).policy.expires_at == HOUR
    starts.clock.now = HOUR - 1
    await restored.stat()
    starts.clock.now = HOUR
    with pytest.raises(Expired):
        await restored.stat()
    await starts.denied(token)


async def test_a_revoker_still_ends_what_was_renewed(starts: Starts) -> None:
    narrowed = (await starts.owner()).narrowed(Policy(expires_at=HOUR))
    token = await starts.save(narrowed)
    live = await starts.restored(token)
    await starts.renew(token, 3 * HOUR)
    starts.clock.now = 2 * HOUR
    await starts.authority.revoke(narrowed.grant)
    with pytest.raises(Revoked):
        await live.stat()
    await starts.denied(token)


async def test_what_shares_a_quota_is_renewed_one_by_one(starts: Starts) -> None:
    narrowed = (await starts.owner("o")).narrowed(Policy(expires_at=HOUR, max_bytes=10))
    first, second = await starts.save(narrowed), await starts.save(narrowed)
    anchor = next(each for each in starts.authority.below(2) if each.anchor)
    assert (anchor.policy.expires_at, anchor.policy.max_bytes) == (0, 10)
    await starts.renew(first, 0)
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            await starts.authority.exchanges.renew(anchor.id, 2 * HOUR)
        with pytest.raises(InvalidArgument):
            await starts.authority.exchanges.rotate(anchor.id)
        await starts.restored(second)
        starts.clock.now += 1
        await starts.start()
    starts.clock.now = HOUR
    await starts.denied(second)
    store = await starts.restored(first)
    with pytest.raises(QuotaExceeded):
        await store.put(b"more than ten bytes", b"k")


async def test_what_a_name_lends_follows_a_shorter_time(starts: Starts) -> None:
    token = await starts.save(await starts.owner())
    names = (await starts.owner("o")).namespace()
    reference_id = await starts.authority.may_bind(names, 0, token)
    lent = await starts.authority.lent(reference_id, names)
    await lent.stat()  # type: ignore[union-attr]
    await starts.renew(token, HOUR)
    starts.clock.now = HOUR
    with pytest.raises(Expired):
        await lent.stat()  # type: ignore[union-attr]


# Another token ------------------------------------------------------------------------------------


async def test_the_old_token_is_denied_and_what_is_below_stays(starts: Starts) -> None:
    token = await starts.save((await starts.owner()).narrowed(Policy(read_only=True)), "x")
    live = await starts.restored(token)
    below = await starts.save(live, "below")
    before = starts.reference(token)
    new = await starts.rotate(token)
    assert new != token
    for _ in range(2):
        await starts.denied(token)
        await starts.restored(below)
        after = starts.reference(new)
        assert replace(after, digest=before.digest, rotations=0, last_used=0) == replace(
            before, last_used=0
        )
        assert after.rotations == 1
        await (await starts.restored(new)).stat()
        await starts.start()
    await live.stat()
    newer = await starts.rotate(new)
    await starts.denied(token, new)
    await starts.restored(newer)


async def test_an_owner_gets_the_token_of_its_next_epoch(starts: Starts) -> None:
    old = starts.authority.owner_token("m")
    saved = await starts.save(await starts.owner())
    new = await starts.rotate(old)
    assert new == starts.authority.owner_token("m") != old
    for _ in range(2):
        await starts.denied(old)
        await starts.restored(new)
        await starts.restored(saved)
        # The next start prints what was handed out.
        await starts.start()
        assert starts.authority.owner_token("m") == new
    await starts.authority.revoke_reference(starts.reference(new).id)
    await starts.start()
    assert starts.authority.owner_token("m") not in (old, new)
    await starts.denied(old, new, saved)


async def test_what_a_configuration_shares_keeps_its_new_token(starts: Starts) -> None:
    share = StandingShare("ci", "m")
    (first,) = await keep_shares(starts.authority, [share])
    assert first.token is not None
    new = await starts.rotate(first.token)
    for _ in range(2):
        await starts.denied(first.token)
        await starts.start()
        (kept,) = await keep_shares(starts.authority, [share])
        assert kept.token == new
    assert await keep_shares(starts.authority, []) == []
    await starts.denied(first.token, new)


@pytest.mark.parametrize("kind", ["owner", "saved"])
async def test_a_token_that_could_not_be_written_is_none(
    kind: str, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, owner = await starts.save(await starts.owner()), starts.authority.owner_token("m")
    token = saved if kind == "saved" else owner
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(StorageIOError):
            await starts.rotate(token)
    for _ in range(2):
        await starts.restored(token)
        assert starts.authority.owner_token("m") == owner
        assert starts.reference(token).rotations == 0
        await starts.start()
    new = await starts.rotate(token)
    await starts.denied(token)
    await starts.restored(new)


@pytest.mark.parametrize("what", ["token", "time"])
async def test_who_hangs_up_meanwhile_has_what_he_had(
    what: str, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was told of the change, so it is taken back."""
    token = await starts.save(await starts.owner())
    live = await starts.restored(token)
    writing, go_on = asyncio.Event(), threading.Event()
    loop, replace_file = asyncio.get_running_loop(), references.replace_file

    def slow(*args: Any) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(10)
        replace_file(*args)

    with monkeypatch.context() as patch:
        patch.setattr(references, "replace_file", slow)
        change = starts.rotate(token) if what == "token" else starts.renew(token, HOUR)
        task = asyncio.create_task(change)
        await writing.wait()
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    await starts.authority.commit()
    starts.clock.now = HOUR
    await live.stat()
    for _ in range(2):
        await starts.restored(token)
        await starts.start()
