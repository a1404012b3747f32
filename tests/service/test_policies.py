"""Policies: as values and on the wire, in any order, what only grows, and what is saved."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.node import Attributes, OpenFlags, RenameMode
from capstore.backers.store import Binding, Condition, Delete, Put
from capstore.schema.errors import Code, StorageError, TooLarge
from capstore.schema.limits import HIDDEN_BYTES_MAX, HIDDEN_PATTERN_BYTES_MAX, HIDDEN_PATTERNS_MAX
from capstore.service.client import connect
from capstore.service.grants import Policy
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.messages import policy_of, read_policy, write_policy
from capstore.service.remote_store import RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.authorities import authority_over, owner_of
from tests.service.inprocess import serving
from tests.service.policed import CREATE, FOREVER, WRITE, a_tree, code_of, picture

pytestmark = pytest.mark.anyio

T = TypeVar("T")


# Policies as values -------------------------------------------------------------------------------

patterns = st.lists(
    st.sampled_from(["hidden-*", "x", "[ad]", "?", "*-x", "new*", "g"]), max_size=3, unique=True
).map(tuple)
policies = st.builds(
    Policy,
    read_only=st.booleans(),
    expires_at=st.sampled_from([0, FOREVER, FOREVER + 1]),
    max_bytes=st.sampled_from([0, 5, 20, 1000]),
    max_nodes=st.sampled_from([0, 1, 3, 1000]),
    append_only=st.booleans(),
    max_file_bytes=st.sampled_from([0, 8, 20]),
    hidden_names=patterns,
    dry_run=st.booleans(),
    traced=st.booleans(),
)
single = st.sampled_from(
    [
        Policy(read_only=True),
        Policy(expires_at=FOREVER),
        Policy(max_bytes=5),
        Policy(max_bytes=1000, max_nodes=3),
        Policy(max_nodes=1),
        Policy(append_only=True),
        Policy(max_file_bytes=8),
        Policy(hidden_names=("hidden-*", "?")),
        Policy(hidden_names=("x",)),
        Policy(dry_run=True),
        Policy(traced=True),
        Policy(calls_per_second=10**6),
        Policy(bytes_per_second=10**9),
    ]
)


@given(policy=policies, revocable=st.booleans())
async def test_a_policy_survives_the_wire_and_the_file(policy: Policy, revocable: bool) -> None:
    from capstore.schema import wire

    message = wire.Policy.new_message()
    write_policy(message, policy, revocable=revocable)
    assert read_policy(message.as_reader()) == (policy, revocable)
    assert policy_of(message.as_reader()) == policy
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert Policy.from_json({}) == Policy()


@given(one=policies, other=policies, third=policies)
async def test_policies_combine_in_any_order(one: Policy, other: Policy, third: Policy) -> None:
    whole = one.under(other).under(third)
    for order in itertools.permutations((one, other, third)):
        combined = order[0].under(order[1]).under(order[2])
        assert replace(combined, hidden_names=()) == replace(whole, hidden_names=())
        assert set(combined.hidden_names) == set(whole.hidden_names)
    assert whole.under(Policy()) == whole
    assert Policy().under(whole) == whole


def test_every_field_of_a_policy_is_on_the_wire() -> None:
    from capstore.schema import wire

    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(part.title() for part in rest)

    own = {camel(field.name) for field in fields(Policy)}
    assert {*own, "revocable", "fieldsKnown"} == set(wire.Policy.schema.fieldnames)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Policy(expires_at=-1), Code.INVALID_ARGUMENT),
        (Policy(max_bytes=-1), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("a/b",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("**",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("a**b",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("a\0b",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("\ud800",)), Code.INVALID_ARGUMENT),
        (Policy(hidden_names=("x" * (HIDDEN_PATTERN_BYTES_MAX + 1),)), Code.INVALID_ARGUMENT),
        (
            Policy(hidden_names=tuple(f"{n}" for n in range(HIDDEN_PATTERNS_MAX + 1))),
            Code.TOO_LARGE,
        ),
        (
            Policy(hidden_names=tuple(f"{n:0200}" for n in range(HIDDEN_BYTES_MAX // 200 + 1))),
            Code.TOO_LARGE,
        ),
    ],
)
async def test_what_is_no_policy(policy: Policy, code: Code) -> None:
    _, top = await a_tree()
    assert await code_of(top.attenuated(policy)) is code


async def test_a_chain_hides_no_more_than_one_may() -> None:
    _, top = await a_tree()
    here = top
    for number in range(HIDDEN_PATTERNS_MAX):
        here = here.narrowed(Policy(hidden_names=(f"{number}", "again")) if number else Policy())
    with pytest.raises(TooLarge):
        here.narrowed(Policy(hidden_names=("more",)))
    here.narrowed(Policy(hidden_names=("1", "again")))


# In any order -------------------------------------------------------------------------------------


async def _probe(here: GuardedDirectory) -> list[object]:
    """What a fixed course of calls answers."""
    answers: list[object] = []
    files: list[GuardedFile] = []

    async def ask(call: Awaitable[Any]) -> None:
        try:
            result = await call
        except StorageError as error:
            answers.append(error.code)
            return
        if isinstance(result, GuardedFile):
            files.append(result)
        answers.append(len(result) if isinstance(result, bytes | memoryview) else "done")

    for name in ("a", "hidden-a", "new", "d"):
        await ask(here.lookup(name))
        await ask(here.open(name, CREATE))
        await ask(here.open(name, WRITE | OpenFlags.TRUNCATE))
    await ask(here.create("g"))
    await ask(here.mkdir("new-d"))
    await ask(here.mkdir("hidden-new"))
    await ask(here.symlink("new-l", "target"))
    await ask(here.link("a", here, "a2"))
    await ask(here.link("a", here, "hidden-2"))
    for file in list(files):
        await ask(file.write(3, b"12345678"))
        await ask(file.append(b"1234"))
        await ask(file.truncate(2))
        await ask(file.read(0, 100))
        await ask(file.set_attributes(Attributes(executable=True)))
    await ask(here.rename("l", here, "l2"))
    await ask(here.rename("a", here, "hidden-a"))
    await ask(here.rename("a", here, "d", RenameMode.EXCHANGE))
    await ask(here.set_attributes(Attributes(modified=5), "hidden-d"))
    await ask(here.remove("l2"))
    await ask(here.remove("d"))
    await ask(here.sync())
    answers.append([entry.name for entry in (await here.list()).entries])
    answers.append(await picture(here))
    usage = await here.usage()
    if here.grant.books:
        answers.append((usage.used_bytes, usage.used_nodes))
    return answers


async def _played(stack: list[Policy]) -> tuple[list[object], list[object]]:
    volume, top = await a_tree()
    for policy in stack:
        top = await top.attenuated(policy)
    answers = await _probe(top)
    return answers, await picture(volume.root)


@settings(max_examples=60, deadline=None)
@given(stack=st.lists(single, min_size=2, max_size=6), choose=st.randoms(use_true_random=False))
async def test_stacks_in_any_order_decide_the_same(stack: list[Policy], choose: Any) -> None:
    shuffled = list(stack)
    choose.shuffle(shuffled)
    expected = await _played(stack)
    assert await _played(shuffled) == expected
    merged = Policy()
    for policy in stack:
        merged = policy.under(merged)
    assert await _played([merged]) == expected


# Only adding --------------------------------------------------------------------------------------


async def test_a_tree_that_only_grows() -> None:
    volume, top = await a_tree()
    here = top.narrowed(Policy(append_only=True))
    before = await picture(volume.root)
    for call in (
        here.remove("a"),
        here.rename("a", here, "b"),
        here.rename("a", here, "l", RenameMode.EXCHANGE),
        here.open("a", WRITE | OpenFlags.TRUNCATE),
        here.open("new", CREATE | OpenFlags.TRUNCATE),
        here.set_attributes(Attributes(executable=True), "a"),
        here.set_attributes(Attributes(modified=1)),
    ):
        assert await code_of(call) is Code.DENIED
    file = await here.open("a", CREATE)
    for call in (file.write(0, b"x"), file.write(7, b"x"), file.truncate(100)):
        assert await code_of(call) is Code.DENIED
    assert await picture(volume.root) == before
    assert await file.append(b" and more") == 7
    log = await (await here.mkdir("logs")).create("log")
    await log.append(b"line")
    assert await code_of(log.write(0, b"LINE")) is Code.DENIED
    await here.symlink("link", "a")
    await here.link("a", here, "b")
    assert bytes(await (await here.open("b")).read(0, 100)) == b"content and more"


async def test_a_store_that_only_grows() -> None:
    async with serving({"s": ModelStore()}) as served, connect(served.unix["s"]) as store:
        assert isinstance(store, RemoteStore)
        await store.put(b"old", b"k")
        here: RemoteStore = (await store.attenuate(Policy(append_only=True))).capability
        await here.put(b"new", b"n", Condition(absent=True))
        key = (await here.put(b"by content")).key
        assert (await here.put(b"by content")).key == key
        sink = await here.begin(b"sink")
        await store.put(b"first", b"sink")
        await sink.write(b"second")
        for call, code in (
            (here.put(b"x", b"k"), Code.CONFLICT),
            (here.put(b"x", b"n"), Code.CONFLICT),
            (here.put(b"x", b"k", Condition(version=1)), Code.DENIED),
            (here.batch([Put(b"m", b"x"), Put(b"k", b"x")]), Code.CONFLICT),
            (here.batch([Put(b"m", b"x"), Put(b"m", b"y")]), Code.CONFLICT),
            (here.batch([Put(b"m", b"x"), Delete(b"k")]), Code.DENIED),
            (here.delete(b"k"), Code.DENIED),
            (sink.commit(), Code.CONFLICT),
            (here.compact(), Code.DENIED),
            (here.collect(), Code.DENIED),
        ):
            assert await code_of(call) is code
        assert await store.get(b"k") == b"old"
        assert not await store.has(b"m")
        names = here.names
        await names.bind(Binding("x", hash=key))
        assert await code_of(names.bind(Binding("x", hash=key))) is Code.CONFLICT
        assert (
            await code_of(names.bind(Binding("x", hash=key), Condition(version=1))) is Code.DENIED
        )
        assert await code_of(names.unbind("x")) is Code.DENIED


# Traced -------------------------------------------------------------------------------------------


async def test_traced_is_carried_and_saved(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    traced = root.narrowed(Policy(traced=True))
    assert (await traced.mkdir("d")).grant.traced
    assert not traced.grant.attenuated
    token = await authority.save(traced.narrowed(Policy()), "")
    again, _ = await authority_over(tmp_path, volume=volume)
    assert (await again.restore(token)).grant.traced
    assert not (await again.restore(again.owner_token("m"))).grant.traced


@given(policy=policies)
@settings(max_examples=25, deadline=None)
async def test_a_saved_policy_is_the_policy(tmp_path_factory: Any, policy: Policy) -> None:
    path = tmp_path_factory.mktemp("state")
    authority, volume = await authority_over(path)
    root = await owner_of(authority)
    token = await authority.save(await root.attenuated(policy), "")
    for _ in range(2):
        restored = await authority.restore(token)
        assert restored.grant.whole_policy == replace(policy, max_bytes=0, max_nodes=0)
        assert [(book.bytes_max, book.nodes_max) for book in restored.grant.books] == (
            [(policy.max_bytes, policy.max_nodes)] if policy.max_bytes or policy.max_nodes else []
        )
        authority, _ = await authority_over(path, volume=volume)
