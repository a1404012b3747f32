"""Saved references: another time, another token, how many there may be, and what they tell."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
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
from capstore.service.authority import Authority
from capstore.service.client import connect, open_connection
from capstore.service.grants import Policy
from capstore.service.references import Reference, ReferenceTable, digest_of
from capstore.service.remote import Directory
from capstore.service.shares import StandingShare, keep_shares
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, Clock
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio

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


@pytest.fixture
async def starts(tmp_path: Path) -> Starts:
    starts = Starts(tmp_path)
    await starts.start()
    return starts


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(references, "replace_file", full)


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


# All of it, against a model ---------------------------------------------------------------------


@dataclass
class Saved:
    """What a model knows of a reference: its tokens, the valid one last, and how long it lasts."""

    parent: Saved | None
    tokens: list[str]
    expires_at: int = 0
    ended: bool = False
    held: list[Any] = field(default_factory=list)

    def ends(self) -> int:
        """When it ends by itself, 0 for never."""
        times = (self.expires_at, self.parent.ends() if self.parent else 0)
        return min(filter(None, times), default=0)

    def stands_below(self, other: Saved) -> bool:
        return self is other or (self.parent is not None and self.parent.stands_below(other))


class Model:
    """Random steps on an authority, and what has to come of them."""

    def __init__(self, starts: Starts, draw: Callable[[int], int]) -> None:
        self.starts = starts
        self.draw = draw
        self.all = [Saved(None, [starts.authority.owner_token("m")])]

    def one(self) -> Saved:
        return self.all[self.draw(len(self.all))]

    def time(self) -> int:
        return self.starts.clock.now + 1 + self.draw(8) if self.draw(3) else 0

    async def save(self) -> None:
        above = self.one()
        if above.ended:
            return
        node, expires_at = await self.starts.restored(above.tokens[-1]), self.time()
        if self.draw(2):
            above.held.append(node)
        # In one policy or two, with something that counts between them or not.
        for policy in (
            Policy(expires_at=expires_at, calls_per_second=self.draw(2) * 10**6),
            Policy(read_only=not self.draw(3)),
        ):
            node = node.narrowed(policy) if self.draw(4) or policy.expires_at else node
        token = await self.starts.save(node)
        self.all.append(Saved(above, [token], expires_at))

    async def renew(self) -> None:
        saved, expires_at = self.one(), self.time()
        if saved.ended:
            return
        limit = saved.parent.ends() if saved.parent else 0
        allowed = saved.parent is not None and not (limit and expires_at > limit)
        with nullcontext() if allowed else pytest.raises(Denied):
            await self.starts.renew(saved.tokens[-1], expires_at)
            saved.expires_at = expires_at

    async def rotate(self) -> None:
        saved = self.one()
        if not saved.ended:
            saved.tokens.append(await self.starts.rotate(saved.tokens[-1]))

    async def revoke(self) -> None:
        saved = self.one()
        if saved.parent is not None and not saved.ended:
            reference = self.starts.reference(saved.tokens[-1])
            await self.starts.authority.revoke_reference(reference.id)
            self.end(saved)

    async def wait(self) -> None:
        self.starts.clock.now += self.draw(4)
        for saved in self.all:
            if saved.ends() and saved.ends() <= self.starts.clock.now:
                self.end(saved)

    async def restart(self) -> None:
        await self.starts.start()
        for saved in self.all:
            saved.held.clear()

    def end(self, ended: Saved) -> None:
        for saved in self.all:
            saved.ended = saved.ended or saved.stands_below(ended)

    async def check(self) -> None:
        for saved in self.all:
            await self.starts.denied(*saved.tokens[:-1])
            for node in saved.held:
                with pytest.raises((Revoked, Expired)) if saved.ended else nullcontext():
                    await node.stat()
            if saved.ended:
                await self.starts.denied(saved.tokens[-1])
            else:
                await self.starts.restored(saved.tokens[-1])
        table = ReferenceTable.load(self.starts.path, KEY)
        assert {each.id for each in table if not each.anchor} >= {
            self.starts.reference(saved.tokens[-1]).id for saved in self.all if not saved.ended
        }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_references_are_what_a_model_says(data: st.DataObject, tmp_path: Path) -> None:
    steps = (Model.save, Model.renew, Model.rotate, Model.revoke, Model.wait, Model.restart)
    # More is saved than ended, else there is little to look at.
    chosen = data.draw(st.lists(st.sampled_from((Model.save, *steps)), min_size=5, max_size=25))

    async def main() -> None:
        (tmp_path / "references.json").unlink(missing_ok=True)
        starts = Starts(tmp_path)
        await starts.start()
        model = Model(starts, lambda count: data.draw(st.integers(0, count - 1)))
        for step in chosen:
            await step(model)
            await model.check()

    asyncio.run(main())


# How many -----------------------------------------------------------------------------------------


async def test_below_one_reference_are_so_many_however_deep(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "REFERENCES_BELOW_MAX", 3)
    held = await starts.save(await starts.owner(), "held")
    node = await starts.restored(held)
    tokens = []
    for _ in range(3):
        tokens.append(await starts.save(node))
        node = await starts.restored(tokens[-1])
    for each in (held, *tokens):
        with pytest.raises(QuotaExceeded):
            await starts.save(await starts.restored(each))
    # Others have room, and the owner is bounded by the table alone.
    for _ in range(5):
        await starts.save(await starts.owner())
    await starts.authority.revoke_reference(starts.reference(tokens[1]).id)
    await starts.start()
    again = await starts.restored(held)
    for _ in range(2):
        await starts.save(again)
    with pytest.raises(QuotaExceeded):
        await starts.save(again)


async def test_what_has_expired_takes_no_room(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "REFERENCES_BELOW_MAX", 4)
    held = await starts.restored(await starts.save(await starts.owner("o")))
    for number in range(1, 5):
        ends = starts.clock.now + HOUR
        narrowed = held.narrowed(Policy(expires_at=ends, max_bytes=number))
        # An attenuation that counts has one of its own.
        await starts.save(narrowed)
        await starts.save(narrowed)
        with pytest.raises(QuotaExceeded):
            await starts.save(held.narrowed(Policy(max_bytes=1)))
        starts.clock.now = ends
    await starts.authority.commit()
    assert [each.label for each in starts.authority.below(2)] == [""]
    assert [each["label"] for each in _stored(starts.path)] == ["owner", "owner", ""]


def _stored(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["body"]["references"]
    return rows


async def test_a_quota_that_held_nothing_is_saved_again(starts: Starts) -> None:
    narrowed = (await starts.owner("o")).narrowed(Policy(max_bytes=10))
    await narrowed.put(b"12345", b"k")
    first = await starts.save(narrowed)
    await starts.authority.revoke_reference(starts.reference(first).id)
    await starts.authority.commit()
    assert not starts.authority.below(2)
    second = await starts.save(narrowed)
    await starts.start()
    store = await starts.restored(second)
    with pytest.raises(QuotaExceeded):
        await store.put(b"123456", b"l")
    await store.put(b"12345", b"l")


async def test_a_save_that_fails_leaves_no_quota_behind(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrowed = (await starts.owner("o")).narrowed(Policy(max_bytes=10))
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(StorageIOError):
            await starts.save(narrowed)
    assert not starts.authority.below(2)
    token = await starts.save(narrowed)
    await starts.start()
    await starts.restored(token)


# On the wire --------------------------------------------------------------------------------------


async def test_who_may_renew_and_rotate_over_the_wire() -> None:
    async with (
        serving({"m": await MemoryVolume.open()}) as served,
        open_connection(served.unix["m"]) as connection,
    ):
        root = await connection.root()
        assert isinstance(root, Directory)
        soon = time.time_ns() + HOUR
        lent = (await root.attenuate(Policy(expires_at=soon))).capability
        token = await lent.save("lent")
        guest = await connection.restore(token)
        assert isinstance(guest, Directory)
        below = await guest.save("below")

        owner = await connection.reference(connection.uri.token)
        control = await connection.reference(token)
        mine = await control.status()
        (under,) = await control.list()
        # Nobody gives himself more time.
        with pytest.raises(Denied):
            await control.renew(mine.id, soon + HOUR)
        with pytest.raises(NotFound):
            await control.renew(1, soon + HOUR)
        with pytest.raises(NotFound):
            await control.rotate(1)
        with pytest.raises(Denied):
            await control.renew(under.id, soon + HOUR)
        with pytest.raises(InvalidArgument):
            await owner.renew(mine.id, 2**63)
        renewed = await owner.renew(mine.id, soon + HOUR)
        assert renewed.policy.expires_at == soon + HOUR
        assert (await control.renew(under.id, soon + 1)).policy.expires_at == soon + 1

        new = await owner.rotate(mine.id)
        for refused in (control.status, control.list):
            with pytest.raises(Denied):
                await refused()
        for changing in (control.rotate, control.revoke):
            with pytest.raises(Denied):
                await changing(mine.id)
        with pytest.raises(Denied):
            await control.renew(under.id, soon)
        for gone in (connection.restore(token), connection.reference(token)):
            with pytest.raises(Denied):
                await gone
        # Who rotates his own goes on.
        control = await connection.reference(new)
        newer = await control.rotate(mine.id)
        assert (await control.status()).rotations == 2
        with pytest.raises(Denied):
            await connection.restore(new)
        await connection.restore(newer)
        await connection.restore(below)


async def test_a_listing_says_who_saved_and_never_a_token() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served:
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            first = await root.save("first")
            node = await connection.restore(first)
            assert isinstance(node, Directory)
            second = await node.save("second")
            listed = await (await connection.reference(connection.uri.token)).list()
            assert [(each.label, each.saved_by) for each in listed] == [
                ("first", "owner"),
                ("second", "first"),
            ]
            assert [each.last_used > 0 for each in listed] == [True, False]
            # What is above is not told.
            assert (await (await connection.reference(first)).status()).saved_by == ""
            for secret in (first, second, connection.uri.token):
                assert secret not in repr(listed)
                assert digest_of(secret) not in repr(listed)


async def test_an_owner_who_rotates_holds_the_uri_of_the_next_start(tmp_path: Path) -> None:
    volume = await MemoryVolume.open()
    async with serving({"m": volume}, folder=tmp_path) as served:
        async with open_connection(served.unix["m"]) as connection:
            control = await connection.reference(connection.uri.token)
            new = connection.uri.with_token(await control.rotate((await control.status()).id))
        with pytest.raises(Denied):
            async with connect(served.unix["m"]):
                pass
    async with serving({"m": await MemoryVolume.open()}, folder=tmp_path) as served:
        assert served.unix["m"] == new


# Wrong tokens -------------------------------------------------------------------------------------

_PREFIXES = range(32)
_ROUNDS = 120
# One run in two million fails by chance.
_DEVIATIONS = 5


def trend(attempt: Callable[[str], object], tokens: Sequence[str]) -> float:
    """Whether wrong tokens that share more of a real one take longer, or shorter.

    In standard deviations of Page's trend test (E. B. Page, "Ordered Hypotheses for Multiple
    Treatments", 1963) over rounds of one attempt for each length of the prefix, 0 to 31 bytes of
    its 32, in random order.  What else the machine does is as likely at any length.
    """
    order, total = list(_PREFIXES), 0
    count = len(order)
    for _, token in zip(range(_ROUNDS), itertools.cycle(tokens), strict=False):
        random.shuffle(order)
        wrong = [_sharing(token, length) for length in _PREFIXES]
        taken = {}
        for length in order:
            begun = time.perf_counter_ns()
            attempt(wrong[length])
            taken[length] = (time.perf_counter_ns() - begun, random.random())
        for rank, length in enumerate(sorted(order, key=taken.__getitem__)):
            total += (length + 1) * (rank + 1)
    mean = _ROUNDS * count * (count + 1) ** 2 / 4
    variance = _ROUNDS * count**2 * (count + 1) ** 2 * (count - 1) / 144
    return float((total - mean) / variance**0.5)


def _sharing(token: str, length: int) -> str:
    """A wrong token that has the first `length` bytes of `token`, and not the next one."""
    real = base64.urlsafe_b64decode(token + "=")
    other = bytes([real[length] ^ secrets.choice(range(1, 256))])
    wrong = real[:length] + other + secrets.token_bytes(31 - length)
    return base64.urlsafe_b64encode(wrong).rstrip(b"=").decode()


async def test_a_wrong_token_takes_as_long_whatever_it_shares_with_a_real_one(
    starts: Starts,
) -> None:
    root = await starts.owner()
    tokens = [starts.authority.owner_token("m"), *[await starts.save(root) for _ in range(7)]]

    def attempt(wrong: str) -> None:
        # `restore` looks the token up before it awaits anything.
        with pytest.raises(Denied):
            starts.authority.restore(wrong).send(None)

    deviations = trend(attempt, tokens)
    assert abs(deviations) < _DEVIATIONS


def test_a_comparison_that_stops_at_the_first_difference_is_noticed() -> None:
    tokens = [secrets.token_urlsafe(32) for _ in range(8)]

    def attempt(wrong: str) -> bool:
        return any(all(map(str.__eq__, wrong, token)) for token in tokens)

    assert trend(attempt, tokens) > _DEVIATIONS
