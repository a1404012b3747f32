"""Saved references on the wire: who may do what, what a listing tells, and wrong tokens."""

from __future__ import annotations

import base64
import itertools
import random
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import Denied, InvalidArgument, NotFound
from capstore.service.client import connect, open_connection
from capstore.service.grants import Policy
from capstore.service.references import digest_of
from capstore.service.remote import Directory
from tests.service.inprocess import serving
from tests.service.starts import HOUR, Starts

pytestmark = pytest.mark.anyio


@pytest.fixture
async def starts(tmp_path: Path) -> Starts:
    starts = Starts(tmp_path)
    await starts.start()
    return starts


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
