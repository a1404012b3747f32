"""Saved references against a model of all that is done with them, and how many there may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.schema.errors import Denied, Expired, QuotaExceeded, Revoked, StorageIOError
from capstore.service import references
from capstore.service.grants import Policy
from capstore.service.references import ReferenceTable
from tests.service.authorities import KEY
from tests.service.starts import HOUR, Starts, failing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def starts(tmp_path: Path) -> Starts:
    starts = Starts(tmp_path)
    await starts.start()
    return starts


# All of it, against a model -----------------------------------------------------------------------


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
