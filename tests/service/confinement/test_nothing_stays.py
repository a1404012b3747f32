"""When every client left, a service holds what it held before: nothing grows with what was done.

Clients do something of everything, many times over, on one service; then what is alive is counted
by type, and compared with how many there were behind the first few times.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import OpenFlags
from capstore.backers.store import Condition
from capstore.schema.errors import StorageError
from capstore.service.client import Connection, open_connection
from capstore.service.policy import Policy
from capstore.service.remote import answer_of
from capstore.service.uri import CapabilityURI
from tests.contract.store_model import ModelStore
from tests.service.authorities import Clock
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio

POLICIES = [
    Policy(),
    Policy(read_only=True),
    Policy(append_only=True, hidden_names=("h-*",)),
    Policy(max_bytes=10**6, max_nodes=10**3),
    Policy(calls_per_second=10**6),
    Policy(dry_run=True),
    Policy(max_file_bytes=10**5),
]
# What is a matter of the interpreter, of pycapnp, or of the test itself.
_FOREIGN = (
    "builtins",
    "_contextvars",
    "collections",
    "asyncio",
    "_asyncio",
    "tests.",
    "_pytest",
    "pluggy",
    "anyio",
    "weakref",
)


async def _maybe(call: Awaitable[Any]) -> Any:
    with suppress(StorageError):
        return await call
    return None


async def _tree(held: Any) -> None:
    for name in ("a", "h-b"):
        file = await _maybe(held.create(name))
        if file is not None:
            await _maybe(file.write(0, b"data"))
    await _maybe(held.mkdir("d"))
    await _maybe(held.rename("a", held, "b"))
    await _maybe(held.open("b", OpenFlags.WRITE))
    await _maybe(held.sub("d"))
    await _maybe(held.snapshot())
    for name in ("a", "b", "d", "h-b"):
        await _maybe(held.remove(name))


async def _store(held: Any) -> None:
    await _maybe(held.put(b"data", b"a"))
    await _maybe(held.put(b"content"))
    sink = await _maybe(held.begin(b"b"))
    if sink is not None:
        # It is dropped with a piece in it.
        await _maybe(answer_of(sink.raw._send("write", data=b"piece")))
    for part in (held.sub_store(b"in/"), held.get_only(), held.put_only()):
        await _maybe(part)
    for key in (b"a", b"b"):
        await _maybe(held.delete(key))


async def _hand_on(top: Any, policy: Policy, here: Connection, there: Connection) -> None:
    """Attenuated twice, saved, restored elsewhere, saved below; some of it ends, some is left."""
    narrowed = await top.attenuate(policy, revocable=True)
    again = await narrowed.capability.attenuate(Policy(), revocable=True)
    token = await again.capability.save("handed on")
    restored: Any = await there.restore(token)
    does = _store if hasattr(restored, "sub_store") else _tree
    await does(restored)
    below = await restored.save("below")
    control = await here.reference(token)
    number = (await control.status()).id
    await control.list()
    await (await there.reference(below)).rotate((await (await there.reference(below)).status()).id)
    await does(narrowed.capability)
    await again.revoker.revoke()
    await _maybe(control.revoke(number))
    await narrowed.revoker.revoke()


async def _lend(store: Any, tree: Any, connection: Connection) -> None:
    token = await tree.save("lent")
    await store.names.bind_token("lent", token, Condition())
    narrowed = await store.attenuate(Policy(read_only=True), revocable=True)
    _, lent = await narrowed.capability.names.resolve_capability("lent")
    await lent.stat()
    await narrowed.revoker.revoke()
    control = await connection.reference(token)
    await control.revoke((await control.status()).id)
    await store.names.unbind("lent")


async def _late(top: Any, clock: Clock) -> None:
    """What ends by its time, and nobody ends."""
    narrowed = await top.attenuate(Policy(max_bytes=10, expires_at=clock() + 10))
    await narrowed.capability.save("late")
    clock.now += 20


async def _visit(uris: dict[str, CapabilityURI], policy: Policy, clock: Clock) -> None:
    async with AsyncExitStack() as to:
        here, there = [await to.enter_async_context(open_connection(uris["m"])) for _ in range(2)]
        tree: Any = await here.root()
        store: Any = await here.restore(uris["s"].token)
        for top in (tree, store):
            await _hand_on(top, policy, here, there)
            await _late(top, clock)
        await _lend(store, tree, here)


def _alive() -> Counter[str]:
    """Objects of the service, by type."""
    gc.collect()
    types = Counter(type(each) for each in gc.get_objects())
    return Counter(
        {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in types.items()
            if not str(kind.__module__).startswith(_FOREIGN)
        }
    )


async def _settled(served: Served) -> None:
    async with asyncio.timeout(10):
        while served.service.sessions:
            await asyncio.sleep(0.001)
    # What a connection had is dropped in turns of the loop that follow its end.
    for _ in range(20):
        await asyncio.sleep(0)


def _tables(served: Served) -> dict[str, int]:
    """What there is by number, and what is known of keys and files that are in use."""
    authority: Any = served.service._authority
    sizes = {"grants": len(authority._grants), "references": len(authority._table)}
    for name, volume in authority._volumes.items():
        sizes |= {
            f"{name}: locks": len(volume.ledger.locks),
            f"{name}: open files": len(volume.ledger._files),
            f"{name}: dry runs": len(volume.dry_runs),
        }
    sizes["tickets"] = len(served.service._tickets)
    table = authority._table
    for what in ("_by_digest", "_children", "_count_below"):
        sizes[what] = len(getattr(table, what))
    return sizes


async def _grows_by(rounds: int, folder: Path) -> tuple[Counter[str], dict[str, int]]:
    """How many more there are of each type behind `rounds` than behind the first, and what is
    longer."""
    clock = Clock()
    clock.now = 2**62
    volumes = {"m": await MemoryVolume.open(), "s": ModelStore()}
    async with serving(volumes, folder=folder) as served:
        authority: Any = served.service._authority
        authority._clock = authority.exchanges._clock = clock

        async def do(count: int) -> None:
            for number in range(count):
                policy = POLICIES[number % len(POLICIES)]
                await _visit(dict(served.unix), policy, clock)
            authority.collect()
            await _settled(served)

        await do(len(POLICIES))
        before, tables = _alive(), _tables(served)
        await do(rounds)
        after, longer = _alive(), _tables(served)
        more = after - before
        return more, {name: longer[name] - tables[name] for name in tables}


async def test_nothing_of_what_clients_did_stays(tmp_path: Path) -> None:
    more, longer = await _grows_by(len(POLICIES), tmp_path)
    assert not more, more
    assert not any(longer.values()), longer


@pytest.mark.long
async def test_nothing_stays_of_many(tmp_path: Path) -> None:
    more, longer = await _grows_by(60 * len(POLICIES), tmp_path)
    assert not more, more
    assert not any(longer.values()), longer


async def test_what_stays_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that keeps its grants is caught."""
    from capstore.service.grants import Grant

    kept: list[Grant] = []
    make = Grant.__init__

    def keep(self: Grant, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        kept.append(self)

    monkeypatch.setattr(Grant, "__init__", keep)
    more, _ = await _grows_by(2, tmp_path)
    assert more["capstore.service.grants.Grant"] > 2
