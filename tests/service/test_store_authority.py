"""What the holder of a part of a store can do, and what it can learn."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.store import Binding, Condition, Delete, ObjectStore, Put
from capstore.schema.errors import (
    Busy,
    Code,
    Conflict,
    Denied,
    Expired,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    ReadOnly,
    Revoked,
    StorageError,
)
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.service import quota as quota_module
from capstore.service.authority import Authority
from capstore.service.client import connect, open_connection
from capstore.service.grants import Policy
from capstore.service.references import ReferenceTable
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteNamespace, RemoteStore
from capstore.service.scope import ALL, DROP, GET, Scope
from capstore.service.store_guard import GuardedStore
from tests.contract.faults import Delays
from tests.contract.store_model import ModelStore
from tests.contract.stores import DelayedStore, contents_of, keys_of, put_in_pieces
from tests.service.authorities import KEY, Clock
from tests.service.inprocess import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def model() -> ModelStore:
    return ModelStore()


@pytest.fixture
async def served(model: ModelStore, tmp_path: Path) -> AsyncIterator[Served]:
    volumes = {"s": model, "m": await MemoryVolume.open()}
    async with serving(volumes, folder=tmp_path) as served:
        yield served


@pytest.fixture
async def store(served: Served) -> AsyncIterator[RemoteStore]:
    async with connect(served.unix["s"]) as store:
        assert isinstance(store, RemoteStore)
        yield store


Call = Callable[[Any], Awaitable[object]]

METHODS: dict[str, Call] = {
    "put": lambda store: store.put(b"x", b"new"),
    "put content": lambda store: store.put(b"x"),
    "begin": lambda store: store.begin(b"new"),
    "put absent": lambda store: store.put(b"x", b"new", Condition(absent=True)),
    "batch of puts": lambda store: store.batch([Put(b"new", b"x")]),
    "batch of deletes": lambda store: store.batch([Delete(b"k")]),
    "delete": lambda store: store.delete(b"k"),
    "delete missing": lambda store: store.delete(b"missing"),
    "get": lambda store: store.get(b"k"),
    "get missing": lambda store: store.get(b"missing"),
    "has": lambda store: store.has(b"k"),
    "stat": lambda store: store.stat(b"k"),
    "read": lambda store: store.read(b"k", 0, 1),
    "list": lambda store: store.list(),
    "usage": lambda store: store.usage(),
    "sync": lambda store: store.sync(),
    "compact": lambda store: store.compact(),
    "collect": lambda store: store.collect(),
    "names": lambda store: store.names.list(),
    "getOnly": lambda store: store.get_only(),
    "putOnly": lambda store: store.put_only(),
    "subStore": lambda store: store.sub_store(b"k"),
    "attenuate": lambda store: store.attenuate(Policy()),
    "save": lambda store: store.save(),
}

ALWAYS = {"sync", "subStore", "attenuate", "save"}
GETS = {"get", "get missing", "has", "stat", "read", "getOnly"}
DROPS = {"put", "put content", "begin", "putOnly"}

ALLOWED: dict[str, tuple[Call, set[str]]] = {
    "getOnly": (lambda store: store.get_only(), ALWAYS | GETS),
    "putOnly": (lambda store: store.put_only(), ALWAYS | DROPS),
    "getOnly twice": (lambda store: _chain(store, "get_only", "get_only"), ALWAYS | GETS),
    "below, then getOnly": (lambda store: _chain(store, "sub", "get_only"), ALWAYS | GETS),
    "getOnly, then below": (lambda store: _chain(store, "get_only", "sub"), ALWAYS | GETS),
    "below, then putOnly": (lambda store: _chain(store, "sub", "put_only"), ALWAYS | DROPS),
    "putOnly, then below": (lambda store: _chain(store, "put_only", "sub"), ALWAYS | DROPS),
    "below": (
        lambda store: _chain(store, "sub"),
        set(METHODS) - {"put content", "usage", "compact", "collect", "names"},
    ),
    "nothing taken": (lambda store: store.sub_store(b""), set(METHODS)),
    "readOnly": (
        lambda store: store.read_only(),
        ALWAYS | GETS | {"list", "usage", "names", "putOnly"},
    ),
}
# What answers with something else than a refusal though it is allowed.
ANSWERS = {"get missing": NotFound, "delete missing": NotFound}


async def _chain(store: RemoteStore, *steps: str) -> RemoteStore:
    for step in steps:
        store = await _step(store, step)
    return store


async def _step(store: RemoteStore, step: str) -> RemoteStore:
    found: RemoteStore = await (
        store.sub_store(b"in/") if step == "sub" else getattr(store, step)()
    )
    return found


async def refused(call: Awaitable[object]) -> Code | None:
    try:
        await call
    except StorageError as error:
        return error.code
    return None


@pytest.mark.parametrize("how", ALLOWED)
async def test_what_a_part_allows(
    served: Served, store: RemoteStore, model: ModelStore, how: str
) -> None:
    narrow, allowed = ALLOWED[how]
    narrowed: Any = await narrow(store)
    # And the same when it was saved and restored.
    async with open_connection(served.unix["s"]) as connection:
        again: Any = await connection.restore(await narrowed.save("part"))
        for holder in (narrowed, again):
            for name, call in METHODS.items():
                for key in (b"k", b"in/k"):
                    await model.put(b"content", key)
                for key in (b"new", b"in/new"):
                    await refused(model.delete(key))
                code = await refused(call(holder))
                if name not in allowed:
                    expected = {Denied.code, ReadOnly.code}
                    if (name, "below" in how) == ("put content", True):
                        expected = {InvalidArgument.code, Denied.code}
                    assert code in expected, (name, code)
                else:
                    answer = ANSWERS.get(name)
                    assert code == (answer.code if answer else None), (name, code)


async def test_nothing_is_asked_of_the_store_that_is_not_allowed(
    store: RemoteStore, model: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_only, drop = await store.get_only(), await store.put_only()
    asked: list[str] = []
    for name in ("put", "get", "read", "stat", "has", "delete", "batch", "begin", "list", "usage"):

        async def ask(*_: object, name: str = name, **__: object) -> None:
            asked.append(name)
            raise NotFound("asked")

        monkeypatch.setattr(model, name, ask)
    for name in set(METHODS) - ALLOWED["getOnly"][1]:
        assert await refused(METHODS[name](get_only)) == Denied.code
    for name in set(METHODS) - ALLOWED["putOnly"][1]:
        assert await refused(METHODS[name](drop)) == Denied.code
    assert asked == []


# A drop box --------------------------------------------------------------------------------------


async def test_a_drop_box_tells_nothing_of_what_is_there(
    store: RemoteStore, model: ModelStore
) -> None:
    secret = await store.put(b"the secret")
    await store.put(b"taken", b"taken")
    drop = await store.put_only()
    before = await contents_of(model)
    answers = [
        await drop.put(b"the secret"),
        await drop.put(b"never there"),
        await drop.put(b"x", b"taken"),
        await drop.put(b"x", b"free"),
        await put_in_pieces(drop, b"x", b"taken"),
        await put_in_pieces(drop, b"x", b"free"),
        await drop.put(b"x", secret.key),
    ]
    begun = [b"", b"", b"taken", b"free", b"taken", b"free", secret.key]
    for answer, begin in zip(answers, begun, strict=True):
        assert answer.version == 0
        assert answer.key.startswith(begin)
        assert len(answer.key) == len(begin) + 32
        int(answer.key[len(begin) :], 16)
    after = await contents_of(model)
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + len(answers)
    assert (await store.stat(secret.key)).version == secret.version


async def test_no_condition_probes_a_drop_box(store: RemoteStore) -> None:
    drop = await store.put_only()
    for condition in (Condition(absent=True), Condition(version=1)):
        for key in (b"", b"k"):
            for call in (drop.put(b"x", key, condition), drop.begin(key, condition)):
                assert await refused(call) == Denied.code


async def test_a_drop_box_below_a_prefix(store: RemoteStore, model: ModelStore) -> None:
    drop = await (await store.sub_store(b"inbox/")).put_only()
    first, second = await drop.put(b"1", b"mail."), await drop.put(b"2", b"mail.")
    assert first.key != second.key
    assert first.key.startswith(b"mail.")
    assert await contents_of(model) == {b"inbox/" + first.key: b"1", b"inbox/" + second.key: b"2"}
    with pytest.raises(InvalidArgument):
        await drop.put(b"x", b"k" * (KEY_BYTES_MAX - 32))


async def test_what_gets_does_not_drop(store: RemoteStore) -> None:
    assert await refused((await store.get_only()).put_only()) == Denied.code
    assert await refused((await store.put_only()).get_only()) == Denied.code


# Below a prefix ----------------------------------------------------------------------------------


async def test_the_part_below_a_prefix_is_a_store(store: RemoteStore, model: ModelStore) -> None:
    for key in (b"a", b"a/", b"a/1", b"a/2", b"a0", b"b"):
        await store.put(key, key)
    part = await store.sub_store(b"a/")
    assert await keys_of(part, limit=1) == [b"1", b"2"]
    assert await keys_of(part, b"1") == [b"1"]
    assert await part.get(b"1") == b"a/1"
    assert (await part.stat(b"2")).key == b"2"
    assert (await part.read(b"2", 0, 9)).stat.key == b"2"
    await part.put(b"new", b"3")
    assert (await put_in_pieces(part, b"pieces", b"4")).key == b"4"
    await part.batch([Put(b"5", b"batch"), Delete(b"1")])
    assert sorted(await contents_of(model)) == [
        b"a", b"a/", b"a/2", b"a/3", b"a/4", b"a/5", b"a0", b"b",
    ]  # fmt: skip
    for key in (b"", b"k" * (KEY_BYTES_MAX - 1)):
        assert await refused(part.get(key)) == InvalidArgument.code
    deeper = await part.sub_store(b"b/")
    await deeper.put(b"x", b"c")
    assert await model.get(b"a/b/c") == b"x"
    assert await keys_of(deeper) == [b"c"]
    with pytest.raises(InvalidArgument):
        await deeper.sub_store(b"x" * KEY_BYTES_MAX)


@pytest.mark.parametrize("call", ["put", "begin", "batch"])
async def test_a_content_has_no_hash_below_a_prefix(store: RemoteStore, call: str) -> None:
    part = await store.sub_store(b"a/")
    calls = {
        "put": lambda: part.put(b"content"),
        "begin": lambda: part.begin(),
        "batch": lambda: part.batch([Put(b"", b"content")]),
    }
    with pytest.raises(InvalidArgument):
        await calls[call]()


async def test_no_key_leads_out_of_a_prefix(store: RemoteStore) -> None:
    await store.put(b"outside", b"b/x")
    part = await store.sub_store(b"a/")
    for key in (b"../b/x", b"/b/x", b"\0b/x", b"b/x"):
        assert await refused(part.get(key)) == NotFound.code
    page = await part.list(b"", b"\0", 10)
    assert not page.objects
    assert not (await part.list(b"", b"", 10)).objects


async def test_a_hash_is_verified_below_a_prefix_too(store: RemoteStore, model: ModelStore) -> None:
    key = (await store.put(b"content")).key
    part = await store.sub_store(key[:5])
    assert await part.get(key[5:]) == b"content"
    model.damage(key)
    for holder, name in ((store, key), (part, key[5:]), (await store.get_only(), key)):
        assert await refused(holder.get(name)) is Code.CORRUPT
        assert await refused(holder.read(name, 0, 3)) is Code.CORRUPT


async def test_a_key_may_look_like_a_hash(store: RemoteStore) -> None:
    await store.put(b"not the content of that hash", b"k" * 32)
    assert await store.get(b"k" * 32) == b"not the content of that hash"


def test_scopes_are_saved_as_they_are() -> None:
    for scope in (Scope(), Scope(GET), Scope(DROP, b"a/"), Scope(ALL, b"\0")):
        assert Scope.of(scope.handle) == scope
    for handle in (b"\0", b"\xff", b"\x01" + b"k" * (KEY_BYTES_MAX + 1)):
        with pytest.raises(NotFound):
            Scope.of(handle)


# The whole store ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        Policy(read_only=True),
        Policy(expires_at=2**62),
        Policy(max_bytes=10**9),
        Policy(calls_per_second=10**6),
    ],
)
async def test_only_who_holds_all_of_it_collects_and_compacts(
    store: RemoteStore, policy: Policy
) -> None:
    await store.compact()
    assert (await store.collect()).objects == 0
    weaker = (await store.attenuate(policy)).capability
    for call in (weaker.compact(), weaker.collect()):
        assert await refused(call) in (Denied.code, ReadOnly.code)


async def test_read_only_names_are_read_only(store: RemoteStore) -> None:
    key = (await store.put(b"content")).key
    await store.names.bind(Binding("n", hash=key))
    for policy in (Policy(read_only=True), Policy(max_bytes=100)):
        names = (await store.attenuate(policy)).capability.names
        assert (await names.resolve("n")).hash == key
        below = await names.sub("below")
        for weaker in (names, below):
            for call in (weaker.bind(Binding("m", hash=key)), weaker.unbind("n")):
                assert await refused(call) == ReadOnly.code


# Ends --------------------------------------------------------------------------------------------


async def test_revoking_ends_everything_derived(store: RemoteStore, served: Served) -> None:
    await store.put(b"content", b"k")
    narrowed = await store.attenuate(Policy(), revocable=True)
    top = narrowed.capability
    held: list[Any] = [top, await top.get_only(), await top.put_only(), await top.sub_store(b"a/")]
    sink = await top.begin(b"sink")
    await sink.write(b"x")
    names, below = top.names, await top.names.sub("a")
    tokens = [await each.save("") for each in (*held, names, below)]
    assert narrowed.revoker is not None
    await narrowed.revoker.revoke()
    for each in held:
        for call in METHODS.values():
            assert await refused(call(each)) == Revoked.code
    for call in (names.list(), below.list(), below.save(), sink.commit()):
        assert await refused(call) == Revoked.code
    async with open_connection(served.unix["s"]) as connection:
        for token in tokens:
            assert await refused(connection.restore(token)) == Denied.code
    assert await contents_of(store) == {b"k": b"content"}


async def test_expiry(tmp_path: Path, model: ModelStore) -> None:
    clock = Clock()
    authority = await _authority(tmp_path, model, clock)
    store = await _owner(authority)
    short = store.narrowed(Policy(expires_at=2_000))
    token = await authority.save(short.get_only(), "short")
    sink = await short.begin(b"k")
    clock.now = 2_000
    for call in (short.get(b"k"), short.put(b""), sink.write(b""), sink.commit()):
        with pytest.raises(Expired):
            await call
    with pytest.raises(Denied):
        await authority.restore(token)


async def _authority(path: Path, store: ObjectStore, clock: Clock | None = None) -> Authority:
    table = ReferenceTable.load(path / "references.json", KEY)
    authority = Authority({"m": store}, table, KEY, clock=clock or Clock())
    await authority.ensure_owners()
    return authority


async def _owner(authority: Authority) -> GuardedStore:
    store = await authority.restore(authority.owner_token("m"))
    assert isinstance(store, GuardedStore)
    return store


async def test_a_token_is_for_what_is_served_under_the_name(
    tmp_path: Path, model: ModelStore
) -> None:
    authority = await _authority(tmp_path, model)
    store = await _owner(authority)
    part = await authority.save(store.sub_store(b"a/"), "")
    tree = await MemoryVolume.open()
    table = ReferenceTable.load(tmp_path / "references.json", KEY)
    again = Authority({"m": tree}, table, KEY)
    with pytest.raises(NotFound):
        await again.restore(part)
    root: Any = await again.restore(again.owner_token("m"))
    directory = await again.save(await root.mkdir("d"), "")
    back = await _authority(tmp_path, model)
    with pytest.raises(NotFound):
        await back.restore(directory)
    assert (await back.restore(part)).scope == Scope(prefix=b"a/")  # type: ignore[union-attr]
    assert await _owner(back)


# Quotas ------------------------------------------------------------------------------------------


async def quota(store: RemoteStore) -> tuple[int, int]:
    usage = await store.usage()
    return usage.used_bytes, usage.used_nodes


async def test_a_quota_bounds_by_how_much_a_store_grows(store: RemoteStore) -> None:
    await store.put(b"x" * 1000, b"others")
    mine = (await store.attenuate(Policy(max_bytes=100, max_nodes=3))).capability
    await mine.put(b"x" * 60, b"a")
    assert await quota(mine) == (60, 1)
    with pytest.raises(QuotaExceeded):
        await mine.put(b"x" * 41, b"b")
    assert not await mine.has(b"b")
    await mine.put(b"x" * 100, b"a")
    await mine.put(b"x" * 10, b"a")
    assert await quota(mine) == (10, 1)
    await mine.put(b"content")
    await mine.put(b"content")
    assert await quota(mine) == (17, 2)
    await mine.put(b"", b"c")
    with pytest.raises(QuotaExceeded):
        await mine.put(b"", b"d")
    await mine.delete(b"a")
    assert await quota(mine) == (7, 2)
    await mine.delete(b"others")
    assert await quota(mine) == (0, 1)


async def test_what_fails_takes_no_room(store: RemoteStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100, max_nodes=3))).capability
    await mine.put(b"12345", b"a")
    for call in (
        mine.put(b"x" * 20, b"a", Condition(absent=True)),
        mine.put(b"x" * 20, b"b", Condition(version=1)),
        mine.batch([Put(b"b", b"x" * 20), Delete(b"missing")]),
        mine.delete(b"missing"),
        mine.delete(b"a", Condition(absent=True)),
    ):
        assert await refused(call) in (Conflict.code, NotFound.code)
        assert await quota(mine) == (5, 1)
    await mine.batch([Put(b"b", b"x" * 20), Put(b"b", b"x" * 10), Delete(b"a")])
    assert await quota(mine) == (10, 1)
    with pytest.raises(QuotaExceeded):
        await mine.batch([Put(b"%d" % number, b"") for number in range(3)])


async def test_a_sink_takes_room_as_it_goes(store: RemoteStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100))).capability
    sink = await mine.begin(b"k")
    await sink.write(b"x" * 60)
    while (await quota(mine))[0] != 60:  # sent, not answered
        await asyncio.sleep(0)
    other = await mine.begin(b"l")
    await other.write(b"x" * 60)
    assert await refused(other.commit()) == QuotaExceeded.code
    await sink.commit()
    assert await quota(mine) == (60, 1)
    aborted = await mine.begin(b"m")
    await aborted.write(b"x" * 40)
    await aborted.abort()
    dropped = await mine.begin(b"m")
    await dropped.write(b"x" * 40)
    dropped.drop()
    del dropped
    async with asyncio.timeout(5):
        while await quota(mine) != (60, 1):
            await asyncio.sleep(0.01)
    with pytest.raises(QuotaExceeded):
        await mine.begin(b"n", size=101)
    pieces = await put_in_pieces(mine, b"x" * 30, piece=10)
    assert pieces.key == hashlib.sha256(b"x" * 30).digest()
    await put_in_pieces(mine, b"y" * 10, b"k", piece=5)
    assert await quota(mine) == (40, 2)


async def test_quotas_nest(store: RemoteStore) -> None:
    outer = (await store.attenuate(Policy(max_bytes=100))).capability
    inner = (await outer.attenuate(Policy(max_bytes=1000))).capability
    part = await (await inner.put_only()).sub_store(b"in/")
    await part.put(b"x" * 60)
    assert await quota(outer) == (60, 1)
    for holder in (part, inner, outer):
        with pytest.raises(QuotaExceeded):
            await holder.put(b"x" * 41, b"k")


async def test_a_race_for_the_last_bytes(store: RemoteStore, model: ModelStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=100))).capability

    async def put(number: int) -> bool:
        return await refused(mine.put(b"x" * 10, b"%d" % number)) is None

    won = await asyncio.gather(*(put(number) for number in range(30)))
    assert won.count(True) == 10
    await asyncio.gather(*(mine.put(b"y" * (number % 11), b"0") for number in range(30)))
    used = sum(len(data) for data in (await contents_of(model)).values())
    assert await quota(mine) == (used, 10)


async def test_cancelled_puts_are_counted_right(store: RemoteStore, model: ModelStore) -> None:
    mine = (await store.attenuate(Policy(max_bytes=10_000))).capability
    for turns in range(30):
        task = asyncio.ensure_future(mine.put(b"x" * 10, b"%d" % turns))
        for _ in range(turns % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.sync()
    found = await contents_of(model)
    assert await quota(mine) == (10 * len(found), len(found))


@pytest.mark.parametrize("cancelling", [False, True])
async def test_what_is_used_where_the_store_takes_its_time(
    tmp_path: Path, model: ModelStore, *, cancelling: bool
) -> None:
    slow = DelayedStore(model, Delays())
    mine = (await _owner(await _authority(tmp_path, slow))).narrowed(Policy(max_bytes=2000))

    async def burst() -> None:
        tasks: list[asyncio.Future[object]] = []
        for number in range(12):
            key = b"%d" % (number % 3)
            calls = [mine.put(b"x" * number, key), mine.delete(key), mine.put(b"y" * number)]
            calls.append(put_in_pieces(mine, b"z" * number, key))
            tasks += [asyncio.ensure_future(call) for call in calls]
        for turn, task in enumerate(tasks):
            if cancelling and turn % 3:
                await asyncio.sleep(0)
            if cancelling:
                task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            _ = task.cancelled() or task.exception()

    for _ in range(10):
        await burst()
        await asyncio.sleep(0)
        gc.collect()
        found = await contents_of(model)
        usage = await mine.usage()
        assert usage.used_bytes == sum(map(len, found.values()))
        assert usage.used_nodes == len(found)


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_used_is_what_is_there(store: RemoteStore, seed: int) -> None:
    mine = (await store.attenuate(Policy(max_bytes=2000, max_nodes=20))).capability
    choose = random.Random(seed)

    def key() -> bytes:
        return choose.choice([b"", b"a", b"b", b"c", b"d", b"e"])

    def data() -> bytes:
        return choose.choice([b"x", b"y"]) * choose.choice([0, 1, 10, 300, 900])

    def condition() -> Condition:
        return choose.choice([Condition()] * 4 + [Condition(absent=True), Condition(version=3)])

    def operation() -> Awaitable[object]:
        kind = choose.randrange(5)
        if kind == 0:
            return put_in_pieces(mine, data(), key(), condition(), piece=100)
        if kind == 1:
            return mine.delete(key() or b"a", condition())
        if kind == 2:
            changes = [Put(key(), data(), condition()) for _ in range(3)]
            return mine.batch([*changes, Delete(key() or b"b")])
        return mine.put(data(), key(), condition())

    for _ in range(40):
        await asyncio.gather(*(refused(operation()) for _ in range(choose.randrange(1, 6))))
        found = await contents_of(store)
        used = sum(map(len, found.values())), len(found)
        async with asyncio.timeout(5):
            while await quota(mine) != used:  # a sink that failed was dropped a moment ago
                await asyncio.sleep(0.001)
        assert used[0] <= 2000
        assert used[1] <= 20


async def test_saving_does_not_multiply_a_quota(tmp_path: Path, model: ModelStore) -> None:
    authority = await _authority(tmp_path, model)
    mine = (await _owner(authority)).narrowed(Policy(max_bytes=100))
    await mine.put(b"x" * 30, b"before")
    tokens = await asyncio.gather(*(authority.save(mine, str(number)) for number in range(3)))
    tokens.append(await authority.save(mine.sub_store(b"a/"), "part"))
    await mine.put(b"x" * 30, b"after")
    await authority.commit()
    for restart in (False, True):
        if restart:
            authority = await _authority(tmp_path, model)
        for token in tokens:
            holder: Any = await authority.restore(token)
            assert (await holder.usage()).used_bytes == 60
            with pytest.raises(QuotaExceeded):
                await holder.put(b"x" * 41, b"more")
        holder = await authority.restore(tokens[0])
        await holder.put(b"x" * 40, b"full")
        holder = await authority.restore(tokens[3])
        with pytest.raises(QuotaExceeded):
            await holder.put(b"x", b"more")
        await (await authority.restore(tokens[1])).delete(b"full")  # type: ignore[union-attr]
    assert len(authority.below(1)) == len(tokens) + 1


async def test_a_rate(tmp_path: Path, model: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "PACE_SECONDS_MAX", 0)
    clock = Clock()
    store = await _owner(await _authority(tmp_path, model, clock))
    await store.put(b"x" * 1000, b"k")
    slow = store.narrowed(Policy(calls_per_second=3))
    below = slow.sub_store(b"k")
    for holder in (slow, below, slow):
        assert await refused(holder.get(b"k")) in (None, NotFound.code)
    with pytest.raises(Busy):
        await below.put(b"x", b"no effect")
    assert not await store.has(b"kno effect")
    clock.now += 10**9 // 3 + 1
    await slow.get(b"k")
    with pytest.raises(Busy):
        await slow.get(b"k")
    narrow = store.narrowed(Policy(bytes_per_second=100))
    await narrow.get(b"k")
    for call in (narrow.get(b"k"), narrow.put(b"x"), narrow.list()):
        with pytest.raises(Busy):
            await call
    clock.now += 10 * 10**9
    await narrow.put(b"x" * 200, b"l")
    with pytest.raises(Busy):
        await narrow.put(b"x", b"l")


# Names for saved references ----------------------------------------------------------------------


async def test_a_name_for_a_saved_capability(store: RemoteStore, served: Served) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root = await connection.root()
        assert isinstance(root, Directory)
        await root.write_file("f", b"content")
        directory = await root.save("directory")
        part: Any = await store.sub_store(b"a/")
        names = store.names
        await names.bind_token("directory", directory)
        await names.bind_token("part", await part.save("part"))
        await names.bind_token("names", await (await names.sub("deep")).save("names"))
        binding, found = await names.resolve_capability("directory")
        assert binding.reference
        assert isinstance(found, Directory)
        assert (await found.read_file("f"))[0] == b"content"
        _, found = await names.resolve_capability("part")
        assert isinstance(found, RemoteStore)
        await found.put(b"x", b"1")
        assert await store.get(b"a/1") == b"x"
        _, found = await names.resolve_capability("names")
        assert isinstance(found, RemoteNamespace)
        with pytest.raises(NotFound):
            await names.resolve_capability("missing")
        # The end of the reference is the end of what the name gives.
        control = await connection.reference(directory)
        _, live = await names.resolve_capability("directory")
        assert isinstance(live, Directory)
        await control.revoke((await control.status()).id)
        assert await refused(live.list()) == Revoked.code
        assert await refused(names.resolve_capability("directory")) == NotFound.code
        assert (await names.list()).bindings[0].name == "directory"


async def test_what_a_name_gives_has_no_more_than_the_namespace(
    store: RemoteStore, served: Served
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        await root.write_file("f", b"content")
        names = store.names
        await names.bind_token("d", await root.save(""))
        reading = (await store.read_only()).names
        _, found = await reading.resolve_capability("d")
        assert isinstance(found, Directory)
        assert (await found.read_file("f"))[0] == b"content"
        assert await refused(found.mkdir("x")) == ReadOnly.code
        assert await refused((await found.open("f")).save()) == Denied.code
        for each in (found, (await names.resolve_capability("d"))[1]):
            assert isinstance(each, Directory)
            assert await refused(each.save()) == Denied.code
        narrowed = await store.attenuate(Policy(), revocable=True)
        _, lent = await narrowed.capability.names.resolve_capability("d")
        assert isinstance(lent, Directory)
        deeper = await lent.read_only()
        assert narrowed.revoker is not None
        await narrowed.revoker.revoke()
        for each in (lent, deeper):
            assert await refused(each.list()) == Revoked.code
        await root.list()


async def test_binding_a_reference_takes_authority_over_it(
    store: RemoteStore, served: Served
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        others = await root.save("others")
        control = await connection.reference(others)
        other = (await control.status()).id
        mine = await store.save("mine")
        below = (await (await connection.reference(mine)).status()).id
        names = store.names
        # Who restored the store may name what was saved below it; nobody else, by number.
        await names.bind(Binding("mine", reference=below))
        for call in (
            names.bind(Binding("n", reference=other)),
            names.bind(Binding("n", reference=0)),
            names.bind(Binding("n", reference=10**6)),
            names.bind_token("n", "A" * 43),
            names.bind_token("n", others[:-1]),
            (await names.sub("below")).bind(Binding("n", reference=below)),
            (await store.attenuate(Policy(calls_per_second=9000))).capability.names.bind(
                Binding("n", reference=below)
            ),
        ):
            assert await refused(call) == Denied.code
        # A token of another reference than the id says.
        request = names.raw.bind_request()
        request.name, request.token = "n", others
        request.binding.reference = below
        assert await refused(answer_of(request.send())) == Denied.code
        # A restored namespace may name what was saved from it.
        restored_names: Any = await connection.restore(await names.save("names"))
        assert await refused(restored_names.bind(Binding("n", reference=below))) == Denied.code
        child = await restored_names.save("child")
        child_id = (await (await connection.reference(child)).status()).id
        await restored_names.bind(Binding("child", reference=child_id))
        assert [each.name for each in (await names.list()).bindings] == ["child", "mine"]


async def test_a_number_in_the_store_is_no_authority(
    store: RemoteStore, served: Served, model: ModelStore
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        control = await connection.reference(await root.save("others"))
        other = (await control.status()).id
        # As if the image had come from elsewhere, with numbers of its own.
        for number in (other, 1, 2, 10**9):
            await model.names.bind(Binding("n", reference=number))
            assert await refused(store.names.resolve_capability("n")) == NotFound.code


async def test_names_that_lend_each_other_end_in_time(store: RemoteStore) -> None:
    names = store.names
    await names.bind_token("self", await store.save(""))
    holder: Any = store
    with pytest.raises(StorageError):
        for _ in range(100):
            _, holder = await holder.names.resolve_capability("self")
    narrowed = await store.attenuate(Policy(), revocable=True)
    _, lent = await narrowed.capability.names.resolve_capability("self")
    for _ in range(20):
        _, lent = await lent.names.resolve_capability("self")
    assert narrowed.revoker is not None
    async with asyncio.timeout(5):
        assert (await narrowed.revoker.status())[1] >= 1
        await narrowed.revoker.revoke()
    assert await refused(lent.list()) == Revoked.code
