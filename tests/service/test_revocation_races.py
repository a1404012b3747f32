"""Revocation while calls are under way: once it returned nothing more takes effect.

Clients keep calls of every sort in flight on what is to be revoked, over storage that takes its
time at random moments.  When the revocation has returned, the storage is looked at; it is looked at
again when all calls were answered, and must be the same to the version.  What was answered with
content behind the revocation is a fault, and so is a call without an answer, and a capability or a
grant that stays.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Node,
    NodeKind,
    OpenFlags,
    RenameMode,
    Usage,
    Volume,
)
from capstore.backers.overlay import OverlayVolume
from capstore.backers.store import Delete, ObjectSink, ObjectStat, Put
from capstore.backers.wf1 import Wf1Volume
from capstore.schema.errors import Code, StorageError
from capstore.service.client import open_connection
from capstore.service.decisions import Effect
from capstore.service.file_guard import GuardedFile, GuardedNode
from capstore.service.grants import Grant
from capstore.service.policy import Policy
from capstore.service.remote import Directory, File
from capstore.service.remote_store import RemoteStore
from tests.backers.slowlayers import slow_lower, slow_upper
from tests.contract.faults import DelayedDirectory, DelayedFile, Delays
from tests.contract.store_model import ModelStore
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio

T = TypeVar("T")

BIG = 2**20 + 2**19
NAMES = ["a", "b", "d", "big", "big2", "big3", "x", "y"]
CALLERS = 12
# Of what an ended capability may be refused with.
REFUSALS = {Code.REVOKED}


class Sleeps(Delays):
    """Pauses of up to some milliseconds; most are none."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0

    async def pause(self) -> None:
        self.pauses += 1
        seconds = self._random.choice([0, 0, 0, 0.001, 0.003, 0.015])
        await asyncio.sleep(seconds)

    def choose(self, among: list[T]) -> T:
        return self._random.choice(among)


# Storage that takes its time ---------------------------------------------------------------------


class SlowVolume(Volume):
    """A volume whose nodes pause around each call."""

    def __init__(self, inner: Volume, delays: Delays) -> None:
        self.inner = inner
        self._delays = delays

    def _slow(self, node: Node) -> Any:
        if isinstance(node, DirectoryNode):
            return DelayedDirectory(node, self._delays)
        return DelayedFile(node, self._delays)  # type: ignore[arg-type]

    @property
    def root(self) -> DirectoryNode:
        return self._slow(self.inner.root)  # type: ignore[no-any-return]

    @property
    def read_only(self) -> bool:
        return False

    async def usage(self) -> Usage:
        return await self.inner.usage()

    async def sync(self) -> None:
        await self._delays.around(self.inner.sync())

    async def close(self) -> None:
        await self.inner.close()

    async def handle_of(self, node: Node) -> bytes:
        return await self._delays.around(self.inner.handle_of(getattr(node, "_inner", node)))

    async def node_of(self, handle: bytes) -> Node:
        return self._slow(await self._delays.around(self.inner.node_of(handle)))  # type: ignore[no-any-return]


class SlowSink(ObjectSink):
    def __init__(self, inner: ObjectSink, delays: Delays) -> None:
        self._inner = inner
        self._delays = delays

    async def write(self, data: Any) -> None:
        await self._delays.around(self._inner.write(data))

    async def commit(self) -> ObjectStat:
        return await self._delays.around(self._inner.commit())

    async def abort(self) -> None:
        await self._inner.abort()


class SlowStore(ModelStore):
    """A store in memory whose calls pause."""

    def __init__(self, delays: Delays) -> None:
        super().__init__()
        self.delays = delays

    async def begin(self, *args: Any, **options: Any) -> Any:
        return SlowSink(await self.delays.around(super().begin(*args, **options)), self.delays)


def _slow(name: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: SlowStore, *args: Any, **options: Any) -> Any:
        return await self.delays.around(getattr(ModelStore, name)(self, *args, **options))

    return method


for _name in ("put", "get", "read", "stat", "has", "delete", "list", "batch", "sync"):
    setattr(SlowStore, _name, _slow(_name))


@dataclass
class Storage:
    """What is served, and how it is looked at."""

    served: Any
    look: Callable[[], Awaitable[object]]
    delays: Sleeps


async def _fill(root: DirectoryNode) -> None:
    for number, name in enumerate(("a", "b", "big", "big2", "big3")):
        file = await root.create(name)
        size = BIG if name.startswith("big") else 100
        for offset in range(0, size, 2**19):
            await file.write(offset, bytes([number + 1]) * min(2**19, size - offset))
        await file.close()
    inner = await root.mkdir("d")
    await (await inner.create("a")).write(0, b"below")


async def _picture(directory: DirectoryNode) -> object:
    """Everything, to the version."""
    found: list[object] = [await directory.stat()]
    for entry in (await directory.list()).entries:
        content: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            content = await _picture(await directory.sub(entry.name))
        elif entry.stat.kind is NodeKind.FILE:
            file = await directory.open(entry.name)
            content = hash(bytes(await file.read(0, 2**22)))
            await file.close()
        found.append((entry, content))
    return found


async def _memory(place: Path, delays: Sleeps) -> Storage:
    volume = await MemoryVolume.open()
    await _fill(volume.root)
    return Storage(SlowVolume(volume, delays), lambda: _picture(volume.root), delays)


async def _wf1(place: Path, delays: Sleeps) -> Storage:
    volume = await Wf1Volume.open(place / "v.wf1", create=True)
    await _fill(volume.root)
    return Storage(SlowVolume(volume, delays), lambda: _picture(volume.root), delays)


async def _overlay(upper: Volume, delays: Sleeps) -> Storage:
    lower = await MemoryVolume.open()
    await _fill(lower.root)
    volume = await OverlayVolume.over(
        slow_upper(await open_upper(upper), delays), [slow_lower(open_layer(lower), delays)]
    )
    return Storage(volume, lambda: _picture(upper.root), delays)


async def _over_memory(place: Path, delays: Sleeps) -> Storage:
    return await _overlay(await MemoryVolume.open(), delays)


async def _over_wf1(place: Path, delays: Sleeps) -> Storage:
    return await _overlay(await Wf1Volume.open(place / "u.wf1", create=True), delays)


async def _store(place: Path, delays: Sleeps) -> Storage:
    store = SlowStore(delays)
    for number in range(5):
        await store.put(bytes([number]) * 1000, b"k%d" % number)

    async def look() -> object:
        return dict(store.state.objects), dict(store.state.names), store.state.version

    return Storage(store, look, delays)


STORAGES = {
    "memory": _memory,
    "wf1": _wf1,
    "overlay memory": _over_memory,
    "overlay wf1": _over_wf1,
    "store": _store,
}

# Callers -----------------------------------------------------------------------------------------


@dataclass
class Race:
    """Callers on what is to be revoked, until they are told that it was."""

    delays: Sleeps
    connection: Any
    ended: bool = False
    answered: Counter[str] = field(default_factory=Counter)
    late: list[str] = field(default_factory=list)

    async def caller(self, held: list[Any]) -> None:
        """Calls something after the other until all is refused."""
        own = list(held)
        after_the_end = 0
        while after_the_end < 5:
            here = self.delays.choose(own)
            began_behind = self.ended
            name, call = self._some_call(here)
            try:
                result = await call
            except StorageError as error:
                self.answered[error.code.value] += 1
                if self.ended and began_behind and error.code not in REFUSALS:
                    self.late.append(f"{name}: {error.code.value}")
            else:
                self.answered["done"] += 1
                if self.ended:
                    # Told behind the end, by a service that knew of it.
                    self.late.append(f"{name}: an answer")
                if isinstance(result, Directory | File) and len(own) < 12:
                    own.append(result)
            after_the_end += self.ended

    def _some_call(self, here: Any) -> tuple[str, Awaitable[Any]]:
        calls = self._calls(here)
        name = self.delays.choose(sorted(calls))
        return name, calls[name]()

    def _calls(self, here: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
        if isinstance(here, RemoteStore):
            return self._store_calls(here)
        return self._directory_calls(here) if isinstance(here, Directory) else _file_calls(here)

    def _directory_calls(self, here: Directory) -> dict[str, Callable[[], Awaitable[Any]]]:
        name, other = self.delays.choose(NAMES), self.delays.choose(NAMES)
        exchange = RenameMode.EXCHANGE
        return {
            "list": here.list,
            "lookup": lambda: here.lookup(name),
            "stat": here.stat,
            "create": lambda: here.create(other),
            "mkdir": lambda: here.mkdir(other),
            "symlink": lambda: here.symlink(other, "a"),
            "open": lambda: here.open(name, OpenFlags.WRITE),
            "open to read": lambda: here.open(name),
            "cut": lambda: here.open(name, OpenFlags.WRITE | OpenFlags.TRUNCATE),
            "rewrite": lambda: here.write_file(name, b"new"),
            "read it": lambda: here.read_file(name),
            "sub": lambda: here.sub("d"),
            "rename": lambda: here.rename(name, here, other),
            "exchange": lambda: here.rename(name, here, other, exchange),
            "link": lambda: here.link(name, here, other),
            "remove": lambda: here.remove(name),
            "attributes": lambda: here.set_attributes(Attributes(executable=True), name),
            "narrowed": lambda: here.attenuate(Policy(hidden_names=("h",))),
            "saved": lambda: self._saved(here),
            "snapshot": here.snapshot,
            "sync": here.sync,
        }

    async def _saved(self, here: Any) -> Any:
        token = await here.save("race")
        try:
            return await self.connection.restore(token)
        except StorageError as error:
            # A token that came just before the end is worth nothing behind it.
            if error.code is Code.DENIED:
                raise StorageError.of(Code.REVOKED, "") from None
            raise

    def _store_calls(self, here: RemoteStore) -> dict[str, Callable[[], Awaitable[Any]]]:
        key, other = (b"k%d" % self.delays.choose([*range(8)]) for _ in range(2))

        async def in_pieces() -> ObjectStat:
            sink = await here.begin(key)
            for _ in range(3):
                await sink.write(b"piece")
            return await sink.commit()

        return {
            "get": lambda: here.get(key),
            "read": lambda: here.read(key, 1, 10),
            "stat": lambda: here.stat(key),
            "has": lambda: here.has(key),
            "list": here.list,
            "put": lambda: here.put(b"new", key),
            "put by content": lambda: here.put(bytes(self.delays.choose([*range(9)]))),
            "delete": lambda: here.delete(key),
            "batch": lambda: here.batch([Put(key, b"1"), Put(b"new" + other, b"2")]),
            "batch of both": lambda: here.batch([Put(b"z", b"1"), Delete(key)]),
            "in pieces": in_pieces,
            "narrowed": lambda: here.sub_store(b"k"),
            "saved": lambda: self._saved(here),
        }


def _file_calls(here: File) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "read": lambda: here.read(0, 2**20),
        "write": lambda: here.write(50, b"changed"),
        "append": lambda: here.append(b"more"),
        "truncate": lambda: here.truncate(30),
        "stat": here.stat,
        "attributes": lambda: here.set_attributes(Attributes(executable=True)),
        "read only": here.read_only,
        "sync": here.sync,
    }


async def _race(storage: Storage, by: str, place: Path) -> Counter[str]:
    """One revocation, and all that is to hold behind it."""
    async with (
        serving({"v": storage.served}, folder=place) as served,
        open_connection(served.unix["v"]) as connection,
        open_connection(served.unix["v"]) as owner,
    ):
        top: Any = await owner.root()
        baseline = [session.capabilities for session in served.service.sessions]
        answered = await _revoked(storage, by, connection, owner, top, served)
        await _all_dropped(served, owner, top, baseline)
        del top
    return answered


async def _revoked(
    storage: Storage, by: str, connection: Any, owner: Any, top: Any, served: Served
) -> Counter[str]:
    narrowed = await top.attenuate(Policy(), revocable=True)
    token = await narrowed.capability.save("to be revoked")
    here: Any = await connection.restore(token)
    race = Race(storage.delays, connection)
    held = [here]
    if isinstance(here, Directory):
        # What was open before is what a copy follows up.
        held += [await here.open(name, OpenFlags.WRITE) for name in ("big", "big2", "a")]
    callers = [asyncio.create_task(race.caller(held)) for _ in range(CALLERS)]
    await asyncio.sleep(storage.delays.choose([0.005, 0.02, 0.04, 0.08]))
    if by == "revoker":
        await narrowed.revoker.revoke()
    else:
        control = await owner.reference(token)
        await control.revoke((await control.status()).id)
    race.ended = True
    first = await storage.look()
    async with asyncio.timeout(20):
        await asyncio.gather(*callers)
    while any(session.calls_in_flight for session in served.service.sessions):
        await asyncio.sleep(0)
    assert await storage.look() == first, "something took effect behind the revocation"
    assert not race.late, race.late
    with pytest.raises(StorageError):
        await connection.restore(token)
    return race.answered


async def _all_dropped(served: Served, owner: Any, top: Any, baseline: list[int]) -> None:
    """Nothing is left of what was handed out, but what the owner has."""
    async with asyncio.timeout(10):
        while [session.capabilities for session in served.service.sessions] != baseline:
            gc.collect()
            await top.stat() if isinstance(top, Directory) else await top.sync()
    authority: Any = served.service._authority
    grants = [grant for grant in authority._grants.values() if grant.reference_id]
    assert len(grants) == 1
    gc.collect()
    assert not [*grants[0].below()]


async def _races(name: str, count: int, place: Path) -> None:
    answered: Counter[str] = Counter()
    for number in range(count):
        folder = place / str(number)
        folder.mkdir()
        storage = await STORAGES[name](folder, Sleeps())
        answered += await _race(storage, ["revoker", "reference"][number % 2], folder)
    print(f"{count} revocations over {name}: {dict(answered)}")
    assert answered["revoked"]
    assert answered["done"]


@pytest.mark.parametrize("name", STORAGES)
async def test_nothing_takes_effect_behind_a_revocation(name: str, tmp_path: Path) -> None:
    await _races(name, 4, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", STORAGES)
async def test_nothing_takes_effect_behind_many(name: str, tmp_path: Path) -> None:
    await _races(name, 150, tmp_path)


# Canaries ----------------------------------------------------------------------------------------


def _no_check_behind(patch: pytest.MonkeyPatch) -> None:
    """A guard that does not look again behind the await."""

    async def do(self: Any, effect: Effect, call: Any, *args: Any) -> Any:
        if effect is Effect.OBSERVE:
            return await call(*args)
        with self.grant.changing():
            return await call(*args)

    async def read_into(self: Any, offset: int, view: memoryview) -> int:
        self.grant.check(Effect.OBSERVE)
        return await self.node.read_into(offset, view)  # type: ignore[no-any-return]

    patch.setattr(GuardedNode, "_do", do)
    patch.setattr(GuardedFile, "read_into", read_into)


def _no_waiting(patch: pytest.MonkeyPatch) -> None:
    """A revocation that does not wait for what is under way."""

    async def settled(self: Grant) -> None:
        """At once."""

    patch.setattr(Grant, "settled", settled)


@pytest.mark.parametrize(
    ("forget", "fault"),
    [(_no_check_behind, "an answer"), (_no_waiting, "something took effect")],
)
async def test_a_guard_that_forgets_is_caught(
    forget: Callable[[pytest.MonkeyPatch], None],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    forget(monkeypatch)
    with pytest.raises(AssertionError, match=fault):
        await _races("memory", 30, tmp_path)
