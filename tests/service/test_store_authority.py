"""What the holder of a part of a store can do, and what it can learn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.store import Binding, Condition, Delete, Put
from capstore.schema.errors import (
    Code,
    Denied,
    Expired,
    InvalidArgument,
    NotFound,
    ReadOnly,
    Revoked,
)
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.service.authority import Authority
from capstore.service.client import open_connection
from capstore.service.grants import Policy
from capstore.service.references import ReferenceTable
from capstore.service.remote_store import RemoteStore
from capstore.service.scope import ALL, DROP, GET, Scope
from tests.contract.store_model import ModelStore
from tests.contract.stores import contents_of, keys_of, put_in_pieces
from tests.service.authorities import KEY, Clock
from tests.service.inprocess import Served
from tests.service.policed import code_of
from tests.service.store_authorities import store_authority, store_owner

pytestmark = pytest.mark.anyio


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
                    await code_of(model.delete(key))
                code = await code_of(call(holder))
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
        assert await code_of(METHODS[name](get_only)) == Denied.code
    for name in set(METHODS) - ALLOWED["putOnly"][1]:
        assert await code_of(METHODS[name](drop)) == Denied.code
    assert asked == []


# A drop box ---------------------------------------------------------------------------------------


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
                assert await code_of(call) == Denied.code


async def test_a_drop_box_below_a_prefix(store: RemoteStore, model: ModelStore) -> None:
    drop = await (await store.sub_store(b"inbox/")).put_only()
    first, second = await drop.put(b"1", b"mail."), await drop.put(b"2", b"mail.")
    assert first.key != second.key
    assert first.key.startswith(b"mail.")
    assert await contents_of(model) == {b"inbox/" + first.key: b"1", b"inbox/" + second.key: b"2"}
    with pytest.raises(InvalidArgument):
        await drop.put(b"x", b"k" * (KEY_BYTES_MAX - 32))


async def test_what_gets_does_not_drop(store: RemoteStore) -> None:
    assert await code_of((await store.get_only()).put_only()) == Denied.code
    assert await code_of((await store.put_only()).get_only()) == Denied.code


# Below a prefix -----------------------------------------------------------------------------------


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
        assert await code_of(part.get(key)) == InvalidArgument.code
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
        assert await code_of(part.get(key)) == NotFound.code
    page = await part.list(b"", b"\0", 10)
    assert not page.objects
    assert not (await part.list(b"", b"", 10)).objects


async def test_a_hash_is_verified_below_a_prefix_too(store: RemoteStore, model: ModelStore) -> None:
    key = (await store.put(b"content")).key
    part = await store.sub_store(key[:5])
    assert await part.get(key[5:]) == b"content"
    model.damage(key)
    for holder, name in ((store, key), (part, key[5:]), (await store.get_only(), key)):
        assert await code_of(holder.get(name)) is Code.CORRUPT
        assert await code_of(holder.read(name, 0, 3)) is Code.CORRUPT


async def test_a_key_may_look_like_a_hash(store: RemoteStore) -> None:
    await store.put(b"not the content of that hash", b"k" * 32)
    assert await store.get(b"k" * 32) == b"not the content of that hash"


def test_scopes_are_saved_as_they_are() -> None:
    for scope in (Scope(), Scope(GET), Scope(DROP, b"a/"), Scope(ALL, b"\0")):
        assert Scope.of(scope.handle) == scope
    for handle in (b"\0", b"\xff", b"\x01" + b"k" * (KEY_BYTES_MAX + 1)):
        with pytest.raises(NotFound):
            Scope.of(handle)


# The whole store ----------------------------------------------------------------------------------


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
        assert await code_of(call) in (Denied.code, ReadOnly.code)


async def test_read_only_names_are_read_only(store: RemoteStore) -> None:
    key = (await store.put(b"content")).key
    await store.names.bind(Binding("n", hash=key))
    for policy in (Policy(read_only=True), Policy(max_bytes=100)):
        names = (await store.attenuate(policy)).capability.names
        assert (await names.resolve("n")).hash == key
        below = await names.sub("below")
        for weaker in (names, below):
            for call in (weaker.bind(Binding("m", hash=key)), weaker.unbind("n")):
                assert await code_of(call) == ReadOnly.code


# Ends ---------------------------------------------------------------------------------------------


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
            assert await code_of(call(each)) == Revoked.code
    for call in (names.list(), below.list(), below.save(), sink.commit()):
        assert await code_of(call) == Revoked.code
    async with open_connection(served.unix["s"]) as connection:
        for token in tokens:
            assert await code_of(connection.restore(token)) == Denied.code
    assert await contents_of(store) == {b"k": b"content"}


async def test_expiry(tmp_path: Path, model: ModelStore) -> None:
    clock = Clock()
    authority = await store_authority(tmp_path, model, clock)
    store = await store_owner(authority)
    short = store.narrowed(Policy(expires_at=2_000))
    token = await authority.save(short.get_only(), "short")
    sink = await short.begin(b"k")
    clock.now = 2_000
    for call in (short.get(b"k"), short.put(b""), sink.write(b""), sink.commit()):
        with pytest.raises(Expired):
            await call
    with pytest.raises(Denied):
        await authority.restore(token)


async def test_a_token_is_for_what_is_served_under_the_name(
    tmp_path: Path, model: ModelStore
) -> None:
    authority = await store_authority(tmp_path, model)
    store = await store_owner(authority)
    part = await authority.save(store.sub_store(b"a/"), "")
    tree = await MemoryVolume.open()
    table = ReferenceTable.load(tmp_path / "references.json", KEY)
    again = Authority({"m": tree}, table, KEY)
    with pytest.raises(NotFound):
        await again.restore(part)
    root: Any = await again.restore(again.owner_token("m"))
    directory = await again.save(await root.mkdir("d"), "")
    back = await store_authority(tmp_path, model)
    with pytest.raises(NotFound):
        await back.restore(directory)
    assert (await back.restore(part)).scope == Scope(prefix=b"a/")  # type: ignore[union-attr]
    assert await store_owner(back)
