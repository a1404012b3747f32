"""Revocation of any link of a long chain ends all that is below, and nothing beside or above.

The chain leads over clients and saved references, through attenuations, names and parts; beside
each of its links another capability is made of the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import OpenFlags
from capstore.schema.errors import Code, StorageError
from capstore.service.client import Connection, open_connection
from capstore.service.policy import Policy
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteNamespace, RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio

CLIENTS = 3
LINKS = 7

End = Callable[[], Awaitable[object]]


@dataclass
class Link:
    """One derivation: what it gave, what ends it, and what was made beside it."""

    held: list[Any] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    ends: dict[str, End] = field(default_factory=dict)
    beside: list[Any] = field(default_factory=list)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    volume = await MemoryVolume.open()
    await (await volume.root.create("a")).write(0, b"content")
    store = ModelStore()
    await store.put(b"content", b"in/a")
    async with serving({"m": volume, "s": store}, folder=tmp_path) as served:
        yield served


async def _link(above: Any, here: Connection, there: Connection) -> Link:
    """Attenuated, saved, restored by another client; and the same again beside."""
    link = Link()
    narrowed = await above.attenuate(Policy(), revocable=True)
    token = await narrowed.capability.save("a link")
    link.held += [narrowed.capability, await there.restore(token)]
    link.tokens.append(token)
    control = await here.reference(token)
    number = (await control.status()).id
    link.ends = {"revoker": narrowed.revoker.revoke, "reference": lambda: control.revoke(number)}
    beside = await above.attenuate(Policy(), revocable=True)
    link.beside += [beside.capability, await there.restore(await beside.capability.save("beside"))]
    return link


async def _chain(top: Any, connections: Sequence[Connection]) -> list[Link]:
    links: list[Link] = []
    above = top
    for number in range(LINKS):
        here, there = (connections[(number + each) % CLIENTS] for each in range(2))
        link = await _link(above, here, there)
        links.append(link)
        above = link.held[-1]
        if isinstance(above, Directory):
            link.held.append(await above.open("a", OpenFlags.WRITE))
        elif isinstance(above, RemoteStore):
            link.held += [await above.sub_store(b"in/"), await above.get_only()]
            link.held.append(RemoteNamespace((await answer_of(above.raw.namespace())).namespace))
    return links


async def _code(held: Any) -> Code | None:
    ask = held.list if isinstance(held, RemoteNamespace) else held.sync
    try:
        await ask()
    except StorageError as error:
        return error.code
    return None


async def _restored(connection: Connection, token: str) -> Code | None:
    try:
        await connection.restore(token)
    except StorageError as error:
        return error.code
    return None


@pytest.mark.parametrize("by", ["revoker", "reference"])
@pytest.mark.parametrize("volume", ["m", "s"])
async def test_any_link_ends_all_below_and_nothing_beside(
    served: Served, volume: str, by: str
) -> None:
    async with AsyncExitStack() as to:
        connections = [
            await to.enter_async_context(open_connection(served.unix[volume]))
            for _ in range(CLIENTS)
        ]
        top = await connections[0].root()
        for ended in range(LINKS):
            links = await _chain(top, connections)
            await links[ended].ends[by]()
            # What ended by its saved reference is what was restored from that.
            first = 1 if by == "reference" else 0
            for number, link in enumerate(links):
                below = number > ended
                over = link.held[first:] if number == ended else link.held if below else []
                alive = [held for held in link.held if held not in over]
                alive, over = (alive, over + link.beside) if below else (alive + link.beside, over)
                assert [await _code(held) for held in over] == [Code.REVOKED] * len(over)
                assert [await _code(held) for held in alive] == [None] * len(alive)
                expected = Code.DENIED if number >= ended else None
                found = [await _restored(each, link.tokens[0]) for each in connections]
                assert found == [expected] * CLIENTS
            await links[0].ends["revoker"]()


@pytest.mark.parametrize("what", ["reference", "namespace", "namespace's reference"])
async def test_what_a_name_lent_ends_with_either(served: Served, what: str) -> None:
    """A chain that ends in a name: of five links of a tree, under a name in a part of a store."""
    async with AsyncExitStack() as to:
        owner = await to.enter_async_context(open_connection(served.unix["m"]))
        other = await to.enter_async_context(open_connection(served.unix["s"]))
        tree: Any = await owner.root()
        links = await _chain(tree, [owner, other, owner])
        store: Any = await other.root()
        holders = await _chain(store, [other, owner, other])
        await store.names.bind_token("lent", links[-1].tokens[0])
        # Of the third link, through its own names; and the owner's beside.
        names = holders[2].held[-1]
        _, lent = await names.resolve_capability("lent")
        _, beside = await store.names.resolve_capability("lent")
        assert isinstance(lent, Directory)
        assert isinstance(beside, Directory)
        below: list[Any] = [lent, await lent.open("a")]
        if what == "reference":
            await links[1].ends["reference"]()
        else:
            await holders[1].ends["revoker" if what == "namespace" else "reference"]()
        assert [await _code(held) for held in below] == [Code.REVOKED] * 2
        over = what == "reference"
        assert await _code(beside) is (Code.REVOKED if over else None)
        assert await _code(links[-1].held[0]) is (Code.REVOKED if over else None)
