"""Policies: in whatever order they are put on, and each of them alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import Awaitable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    FileNode,
    NodeKind,
    OpenFlags,
    RenameMode,
)
from capstore.backers.store import Binding, Condition, Delete, Put
from capstore.schema.errors import (
    Busy,
    Code,
    CrossVolume,
    Denied,
    InvalidArgument,
    NoSpace,
    NotEmpty,
    NotFound,
    QuotaExceeded,
    Revoked,
    StorageError,
    TooLarge,
)
from capstore.schema.limits import (
    DRY_BYTES_MAX,
    DRY_RUNS_MAX,
    HIDDEN_BYTES_MAX,
    HIDDEN_PATTERN_BYTES_MAX,
    HIDDEN_PATTERNS_MAX,
    PACE_SECONDS_MAX,
)
from capstore.service.authority import Authority
from capstore.service.client import connect, open_connection
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.hidden import below, hidden_of, shown
from capstore.service.messages import policy_of, read_policy, write_policy
from capstore.service.quota import Pace
from capstore.service.references import ReferenceTable
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteStore
from capstore.service.scope import Scope
from capstore.service.store_guard import GuardedStore
from tests.contract.faults import DelayedDirectory, Delays
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, authority_over, owner_of
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio

T = TypeVar("T")
WRITE = OpenFlags.WRITE
CREATE = WRITE | OpenFlags.CREATE
FOREVER = 2**62


async def code_of(call: Awaitable[object]) -> Code | None:
    try:
        await call
    except StorageError as error:
        return error.code
    return None


async def a_tree() -> tuple[MemoryVolume, GuardedDirectory]:
    volume = await MemoryVolume.open()
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    for name in ("a", "hidden-a"):
        await (await top.create(name)).write(0, b"content")
    for name in ("d", "hidden-d"):
        inner = await top.mkdir(name)
        await (await inner.create("x")).write(0, b"below")
        await (await inner.create("hidden-x")).write(0, b"below")
    await top.symlink("l", "a")
    return volume, top


async def picture(directory: DirectoryNode) -> list[object]:
    found: list[object] = []
    for entry in (await directory.list()).entries:
        content: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            content = await picture(await directory.sub(entry.name))
        elif entry.stat.kind is NodeKind.FILE:
            file = await directory.open(entry.name)
            content = bytes(await file.read(0, 10_000)), entry.stat.executable
        found.append((entry.name, content))
    return found


# Policies as values ------------------------------------------------------------------------------

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


# In any order ------------------------------------------------------------------------------------


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


# Only adding -------------------------------------------------------------------------------------


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


# Hidden names ------------------------------------------------------------------------------------

globs = st.text("ab*?[]!-^|&~.\\(é", min_size=1, max_size=12).filter(lambda text: "**" not in text)


@settings(max_examples=300)
@given(glob=globs, name=st.text("ab-]é.", min_size=1, max_size=6))
async def test_a_glob_is_what_fnmatch_says(glob: str, name: str) -> None:
    import fnmatch

    hidden = hidden_of((glob,))
    assert hidden is not None
    assert hidden.name(name) == fnmatch.fnmatchcase(name, glob)
    data = name.encode(), glob.encode()
    # Keys are matched byte by byte.
    assert hidden.key(data[0]) == fnmatch.fnmatchcase(data[0], data[1])
    deeper = hidden_of(below(b"p/", (glob,)))
    assert deeper is not None
    assert deeper.key(b"p/" + data[0]) == hidden.key(data[0])
    assert not deeper.key(b"q/" + data[0])
    assert [shown(each) for each in below(b"p/", (glob,))] == [glob]


async def test_no_pattern_takes_for_ever() -> None:
    evil = tuple(
        f"*{'a' * repeat}*{'a*' * 40}b{number}"
        for number, repeat in enumerate([100, 30, 10, 1] * 4)
    )
    hidden = hidden_of(evil)
    assert hidden is not None
    begun = time.process_time()
    for _ in range(20):
        assert not hidden.name("a" * 255)
    assert time.process_time() - begun < 1


NAMES = st.sampled_from(["a", "d", "l", "x", "hidden-a", "hidden-d", "hidden-x", "new", "hidden-n"])
HIDDEN_MOVES = st.one_of(
    st.tuples(st.sampled_from(["lookup", "open", "create", "mkdir", "sub", "remove"]), NAMES),
    st.tuples(st.sampled_from(["write", "symlink", "stat"]), NAMES),
    st.tuples(st.sampled_from(["rename", "link", "exchange"]), NAMES, NAMES),
    st.tuples(st.sampled_from(["list", "snapshot", "attenuate", "dry", "save"])),
)


async def _ids_below_hidden(directory: DirectoryNode, *, hidden: bool = False) -> dict[int, object]:
    found: dict[int, object] = {}
    for entry in (await directory.list()).entries:
        here = hidden or entry.name.startswith("hidden-")
        content: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            child = await directory.sub(entry.name)
            found |= await _ids_below_hidden(child, hidden=here)
            content = [each.name for each in (await child.list()).entries]
        elif entry.stat.kind is NodeKind.FILE:
            content = bytes(await (await directory.open(entry.name)).read(0, 100))
        if here:
            found[entry.stat.node_id] = (entry.name, content)
    return found


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(HIDDEN_MOVES, min_size=5, max_size=30), choose=st.randoms())
async def test_nothing_below_a_hidden_name_is_reached(moves: list[Any], choose: Any) -> None:
    volume, _ = await a_tree()
    before = await _ids_below_hidden(volume.root)
    assert len(before) == 5
    async with serving({"m": volume}) as served, open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        narrowed = (await root.attenuate(Policy(hidden_names=("hidden-*",)))).capability
        held: list[Any] = [narrowed]
        for move in moves:
            here = choose.choice([each for each in held if isinstance(each, Directory)])
            there = choose.choice([each for each in held if isinstance(each, Directory)])
            try:
                held += await _moved(connection, here, there, *move)
            except StorageError:
                continue
        for each in held:
            if isinstance(each, Directory):
                listed = (await each.list()).entries
                assert not [entry for entry in listed if entry.name.startswith("hidden-")]
                assert not {entry.stat.node_id for entry in listed} & set(before)
            assert (await each.stat()).node_id not in before
        assert await _ids_below_hidden(volume.root) == before


async def _moved(
    connection: Any, here: Directory, there: Directory, verb: str, *names: str
) -> list[Any]:
    match verb:
        case "lookup" | "remove" | "list" | "stat":
            await getattr(here, verb)(*names if verb not in ("stat", "list") else ())
            return []
        case "open":
            return [await here.open(names[0], CREATE)]
        case "write":
            await here.write_file(names[0], b"changed")
            return []
        case "symlink":
            await here.symlink(names[0], "hidden-a")
            return []
        case "rename" | "link":
            await getattr(here, verb)(names[0], there, names[1])
            return []
        case "exchange":
            await here.rename(names[0], there, names[1], RenameMode.EXCHANGE)
            return []
        case "attenuate":
            return [(await here.attenuate(Policy(hidden_names=("y",)))).capability]
        case "dry":
            await (await here.attenuate(Policy(dry_run=True))).capability.list()
            return []
        case "save":
            return [await connection.restore(await here.save("x"))]
        case _:
            return [await getattr(here, verb)(*names)]


async def test_a_directory_with_hidden_entries_is_not_empty() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(hidden_names=("hidden-*",)))
    inner = await here.sub("d")
    await inner.remove("x")
    assert not (await inner.list()).entries
    with pytest.raises(NotEmpty):
        await here.remove("d")


class Caseless(DelayedDirectory):
    """Finds what is there under any spelling, as FAT does."""

    async def lookup(self, name: str) -> Entry:
        return await super().lookup(name.lower())

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        return await super().open(name.lower(), flags)

    async def sub(self, name: str) -> DirectoryNode:
        return await super().sub(name.lower())


async def test_no_other_spelling_finds_what_is_hidden() -> None:
    volume, top = await a_tree()
    here = GuardedDirectory(Caseless(volume.root, Delays()), top.grant).narrowed(
        Policy(hidden_names=("hidden-*",))
    )
    for call in (
        here.lookup("HIDDEN-a"),
        here.open("HIDDEN-a"),
        here.sub("Hidden-d"),
        here.set_attributes(Attributes(modified=1), "HIDDEN-A"),
        here.remove("HIDDEN-A"),
        here.rename("HIDDEN-A", here, "seen"),
        here.link("HIDDEN-A", here, "seen"),
    ):
        assert await code_of(call) is Code.NOT_FOUND
    await here.open("A")


async def test_pages_without_what_is_hidden_are_full() -> None:
    volume = await MemoryVolume.open()
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    for number in range(300):
        await top.create(f"{'hidden' if number % 7 else 'seen'}-{number:03}")
    here = top.narrowed(Policy(hidden_names=("hidden*",)))
    expected = [f"seen-{number:03}" for number in range(0, 300, 7)]
    found: list[str] = []
    sizes, more = [], True
    while more:
        page = await here.list(found[-1] if found else "", 10)
        found += [entry.name for entry in page.entries]
        sizes.append(len(page.entries))
        more = page.more
    assert found == expected
    assert sizes == [10, 10, 10, 10, 3]
    nothing = top.narrowed(Policy(hidden_names=("*",)))
    page = await nothing.list()
    assert (list(page.entries), page.more) == ([], False)


async def test_keys_are_hidden_as_whole_keys(tmp_path: Path) -> None:
    model = ModelStore()
    store = GuardedStore(model, Grant(ServedVolume("s", model), Policy()), Scope())
    for key in (b"a/secret", b"a/open", b"secret", b"b/secret"):
        await store.put(b"x", key)
    hidden = store.narrowed(Policy(hidden_names=("a?secret",)))
    assert [each.key for each in (await hidden.list()).objects] == [
        b"a/open",
        b"b/secret",
        b"secret",
    ]
    part = hidden.sub_store(b"a/")
    assert [each.key for each in (await part.list()).objects] == [b"open"]
    assert await code_of(part.put(b"x", b"secret")) is Code.NOT_FOUND
    # What was put on below a prefix is about what is seen there, and stays so.
    below_a = store.sub_store(b"a/").narrowed(Policy(hidden_names=("secret",)))
    deeper = below_a.sub_store(b"s")
    assert await code_of(deeper.get(b"ecret")) is Code.NOT_FOUND
    assert not await deeper.has(b"ecret")
    assert [each.key for each in (await below_a.list()).objects] == [b"open"]
    everything = store.narrowed(Policy(hidden_names=("*",)))
    assert await code_of(everything.put(b"by content")) is Code.NOT_FOUND
    sink = await everything.begin()
    await sink.write(b"by content")
    assert await code_of(sink.commit()) is Code.NOT_FOUND
    drop = everything.put_only()
    assert await code_of(drop.put(b"x")) is Code.NOT_FOUND


# Rates -------------------------------------------------------------------------------------------


async def test_calls_over_a_rate_wait_in_the_order_of_coming() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=100))
    done: list[int] = []

    async def call(number: int) -> None:
        await here.stat()
        done.append(number)

    await asyncio.gather(*(call(number) for number in range(100)))
    begun = time.monotonic()
    await asyncio.gather(*(call(number) for number in range(100, 115)))
    assert time.monotonic() - begun > 0.1
    assert done == list(range(115))


async def test_far_over_a_rate_is_busy_at_once() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=3))
    codes = await asyncio.gather(*(code_of(here.mkdir(f"{number}")) for number in range(50)))
    # Three at once, and as many as have their turn within a second.
    done = codes.count(None)
    assert 3 <= done <= 3 + 3 * PACE_SECONDS_MAX + 1
    assert codes.count(Code.BUSY) == 50 - done
    made = [entry.name for entry in (await top.list()).entries if entry.name.isdigit()]
    assert len(made) == done


async def test_who_is_cancelled_or_revoked_while_waiting_has_done_nothing() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(calls_per_second=5))
    for _ in range(5):
        await here.stat()
    tasks = [asyncio.ensure_future(here.mkdir(f"{number}")) for number in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, False, True, False]
    assert not here.grant.paces[0]._waiting
    waiting = asyncio.ensure_future(here.mkdir("revoked"))
    await asyncio.sleep(0)
    here.grant.end(Revoked("over"))
    with pytest.raises(Revoked):
        await waiting
    names = {entry.name for entry in (await top.list()).entries}
    assert names & {"0", "1", "2", "3", "revoked"} == {"1", "3"}


async def test_bytes_count_both_ways() -> None:
    _, top = await a_tree()
    slow = top.narrowed(Policy(bytes_per_second=1000))
    file = await slow.open("a", WRITE)
    await file.write(0, b"x" * 5000)
    for call in (file.read(0, 1), slow.lookup("a"), file.write(0, b"")):
        with pytest.raises(Busy):
            await call
    reader = await top.narrowed(Policy(bytes_per_second=1000)).open("a")
    await reader.read(0, 5000)
    with pytest.raises(Busy):
        await reader.read(0, 1)


async def test_a_rate_over_rpc_counts_calls() -> None:
    served_calls = 20
    volume, _ = await a_tree()
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        here = (await root.attenuate(Policy(calls_per_second=served_calls))).capability
        begun = time.monotonic()
        file = await here.open("a")
        # A read is one call, though the service asks for the size first.
        for _ in range(served_calls - 1):
            await file.read(0, 7)
        assert time.monotonic() - begun < 0.9
        await file.read(0, 7)
        assert time.monotonic() - begun > 1 / served_calls / 2


async def test_nobody_overtakes_who_waits() -> None:
    now = [0]
    pace = Pace(10, 0, lambda: now[0])
    for _ in range(10):
        await pace.begin()
    order: list[str] = []

    async def call(name: str) -> None:
        await pace.begin()
        order.append(name)

    first = asyncio.ensure_future(call("first"))
    await asyncio.sleep(0)
    now[0] += 10**9
    await asyncio.gather(first, call("second"))
    assert order == ["first", "second"]


async def test_what_would_wait_too_long_is_busy_at_once() -> None:
    pace = Pace(2, 0)
    tasks = [asyncio.ensure_future(code_of(pace.begin())) for _ in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)
    done = [task.result() for task in tasks if task.done()]
    assert done.count(None) == 2
    assert done.count(Code.BUSY) >= 15
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert not pace._waiting


def test_a_pace_refills() -> None:
    now = [0]
    pace = Pace(10, 100, lambda: now[0])

    async def play() -> None:
        for _ in range(10):
            await pace.begin()
        now[0] += 10**9
        await pace.begin(500)
        with pytest.raises(Busy):
            await pace.begin()
        pace.give_back(500)
        await pace.begin()

    asyncio.run(play())


# Dry runs ----------------------------------------------------------------------------------------


async def test_a_dry_run_remembers_and_changes_nothing() -> None:
    volume, _ = await a_tree()
    before = await picture(volume.root)
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        dry: Directory = (await root.attenuate(Policy(dry_run=True))).capability
        file = await dry.open("a", WRITE)
        await file.write(3, b"CHANGED")
        await (await dry.create("new")).append(b"made")
        await dry.remove("l")
        await dry.rename("d", dry, "e")
        await (await (await dry.sub("e")).create("y")).write(0, b"y")
        inside = await picture(dry)
        assert [name for name, _ in inside] == ["a", "e", "hidden-a", "hidden-d", "new"]  # type: ignore[misc]
        assert bytes(await (await dry.open("a")).read(0, 100)) == b"conCHANGED"
        for call in (
            dry.rename("a", root, "a"),
            root.rename("a", dry, "z"),
            dry.link("a", root, "z"),
        ):
            assert await code_of(call) in (Code.CROSS_VOLUME, Code.DENIED)
        await dry.sync()
        assert (await dry.usage()).used_nodes >= (await root.usage()).used_nodes
        # What is done in earnest shows where the dry run has not changed it.
        assert await code_of(dry.lookup("later")) is Code.NOT_FOUND
        await root.mkdir("later")
        await dry.lookup("later")
        await root.remove("later")
        # A second one begins with what is there, not with what the first one has.
        other = (await root.attenuate(Policy(dry_run=True))).capability
        assert await picture(other) == before
        assert await picture(volume.root) == before


async def test_a_dry_run_of_a_file() -> None:
    _, top = await a_tree()
    file = await top.open("a", WRITE)
    await file.truncate(10_000)
    dry = await file.attenuated(Policy(dry_run=True))
    again = dry.narrowed(Policy())
    model = bytearray(await file.read(0, 10_000))
    for offset, size in ((0, 3), (4090, 10), (9_999, 1), (20_000, 5), (5, 9_000)):
        data = bytes([offset % 250 + 1]) * size
        await dry.write(offset, data)
        model.extend(bytes(max(0, offset + size - len(model))))
        model[offset : offset + size] = data
        assert bytes(await again.read(0, 30_000)) == model
    for size in (12_345, 4_097, 4_096, 10, 5_000, 0, 3):
        await dry.truncate(size)
        del model[size:]
        model.extend(bytes(size - len(model)))
        assert bytes(await again.read(0, 30_000)) == model
        assert (await dry.stat()).size == await dry.size() == size
    offsets = await asyncio.gather(*(dry.append(b"%d" % number) for number in range(5)))
    assert offsets == [3, 4, 5, 6, 7]
    await dry.set_attributes(Attributes(executable=True))
    assert (await dry.stat()).executable
    assert not (await file.stat()).executable
    assert bytes(await file.read(0, 7)) == b"content"
    assert await file.size() == 10_000
    with pytest.raises(NoSpace):
        for offset in range(0, 2 * DRY_BYTES_MAX, 2**20):
            await dry.write(offset, b"x" * 2**20)
    await dry.close()
    assert bytes(await again.read(0, 1)) == b"x"
    await file.close()
    assert bytes(await again.read(0, 1)) == b"x"


async def test_a_dry_run_of_a_store() -> None:
    model = ModelStore()
    async with serving({"s": model}) as served, connect(served.unix["s"]) as store:
        assert isinstance(store, RemoteStore)
        for key in (b"a", b"b", b"c"):
            await store.put(b"old", key)
        content = (await store.put(b"content")).key
        await store.names.bind(Binding("n", hash=content))
        before = dict(model.state.objects), dict(model.state.names)
        dry: RemoteStore = (await store.attenuate(Policy(dry_run=True))).capability
        stat = await dry.put(b"new", b"b")
        assert stat.version > (await store.stat(b"b")).version
        await dry.delete(b"c")
        await dry.batch([Put(b"d", b"d"), Delete(b"a")])
        sink = await dry.begin(b"e")
        await sink.write(b"in ")
        await sink.write(b"pieces")
        await sink.commit()
        assert await dry.get(b"e") == b"in pieces"
        assert await dry.get(b"b") == b"new"
        assert bytes((await dry.read(b"b", 1, 1)).data) == b"e"
        keys = [each.key for each in (await dry.list()).objects if len(each.key) == 1]
        assert keys == [b"b", b"d", b"e"]
        paged: list[bytes] = []
        page = await dry.list(limit=1)
        while page.objects:
            paged += [each.key for each in page.objects]
            page = await dry.list(after=paged[-1], limit=1)
        assert sorted({*keys, content}) == paged
        for call, code in (
            (dry.get(b"a"), Code.NOT_FOUND),
            (dry.delete(b"c"), Code.NOT_FOUND),
            (dry.put(b"x", b"d", Condition(absent=True)), Code.CONFLICT),
            (dry.put(b"x", b"b", Condition(version=1)), Code.CONFLICT),
            (dry.put(b"x", content), Code.CONFLICT),
            (dry.batch([Put(b"z", b"z"), Delete(b"missing")]), Code.NOT_FOUND),
            (dry.compact(), Code.DENIED),
        ):
            assert await code_of(call) is code
        assert not await dry.has(b"z")
        await dry.put(b"again", b"b", Condition(version=stat.version))
        names = dry.names
        await names.unbind("n")
        await names.bind(Binding("m", hash=content))
        await (await names.sub("below")).bind(Binding("k", hash=content))
        assert [each.name for each in (await names.list()).bindings] == ["m"]
        assert (await (await dry.names.sub("below")).resolve("k")).hash == content
        token = await store.save("mine")
        await names.bind_token("ref", token)
        _, lent = await names.resolve_capability("ref")
        await lent.put(b"x", b"as if")  # type: ignore[union-attr]
        assert await code_of(store.names.resolve("ref")) is Code.NOT_FOUND
        for number in range(10):
            code = await code_of(dry.put(b"x" * 2**19, b"%d" % number))
        assert code is Code.NO_SPACE
        assert not await store.has(b"as if")
        assert (dict(model.state.objects), dict(model.state.names)) == before


async def test_binding_a_name_in_a_dry_run_notes_nothing(tmp_path: Path) -> None:
    model = ModelStore()
    table = ReferenceTable.load(tmp_path / "references.json", KEY)
    authority = Authority({"s": model}, table, KEY)
    await authority.ensure_owners()
    store: Any = await authority.restore(authority.owner_token("s"))
    token = await authority.save(store, "mine")
    names = store.narrowed(Policy(dry_run=True)).namespace()
    reference = await authority.may_bind(names, 0, token)
    await names.bind(Binding("n", reference=reference))
    assert await authority.lent(reference, names)
    known = table.get(reference)
    assert known is not None
    assert known.bound == ()
    with pytest.raises(NotFound):
        await authority.lent(reference, store.namespace())


@pytest.mark.parametrize("bad", ["a/b", "**", "", "\0zz\0x", "\x0061\0x", b"\xff", "x" * 256])
async def test_a_pattern_from_a_stranger_is_looked_at(bad: str | bytes) -> None:
    volume, _ = await a_tree()
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        request = root.raw.attenuate_request()
        request.init("policy").hiddenNames = [bad]
        assert await code_of(answer_of(request.send())) is Code.INVALID_ARGUMENT
        request = root.raw.attenuate_request()
        request.init("policy").hiddenNames = ["x"] * (HIDDEN_PATTERNS_MAX + 1)
        assert await code_of(answer_of(request.send())) is Code.TOO_LARGE


async def test_a_dry_run_stands_under_the_other_policies() -> None:
    _, top = await a_tree()
    outer = top.narrowed(Policy(max_bytes=100))
    await (await outer.create("f")).write(0, b"x" * 60)
    dry = await outer.attenuated(Policy(dry_run=True))
    file = await dry.open("f", WRITE)
    await file.append(b"x" * 40)
    with pytest.raises(QuotaExceeded):
        await file.append(b"x")
    # What was not done took no room.
    assert outer.grant.books[0].bytes_used == 60
    await (await outer.open("f", WRITE)).append(b"x" * 40)
    adding = dry.narrowed(Policy(append_only=True, hidden_names=("hidden*",)))
    with pytest.raises(Denied):
        await adding.remove("f")
    with pytest.raises(NotFound):
        await adding.sub("hidden-d")
    dry.grant.end(Revoked("over"))
    with pytest.raises(Revoked):
        await adding.list()


async def test_a_saved_dry_run_begins_anew(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    inner = await root.mkdir("d")
    await (await inner.create("f")).write(0, b"content")
    dry = await root.attenuated(Policy(dry_run=True, max_bytes=50))
    dry_inner = await dry.sub("d")
    file = await dry_inner.open("f", WRITE)
    await file.append(b"x" * 40)
    made = await dry_inner.create("made")
    with pytest.raises(NotFound):
        await authority.save(made, "")
    tokens = [await authority.save(each, "") for each in (dry, dry_inner, file)]
    for restart in (False, True, True):
        if restart:
            authority, _ = await authority_over(tmp_path, volume=volume)
        whole: Any = await authority.restore(tokens[0])
        assert [entry.name for entry in (await whole.list()).entries] == ["d"]
        for _ in range(2):
            restored: Any = await authority.restore(tokens[1])
            assert [entry.name for entry in (await restored.list()).entries] == ["f"]
            await (await restored.create("g")).write(0, b"x" * 50)
            with pytest.raises(QuotaExceeded):
                await (await restored.create("h")).write(0, b"x")
        again: Any = await authority.restore(tokens[2])
        assert bytes(await again.read(0, 100)) == b"content"
        await again.write(0, b"CONTENT")
    assert bytes(await (await inner.open("f")).read(0, 100)) == b"content"


async def test_dry_runs_are_bounded() -> None:
    _, top = await a_tree()
    runs = [await top.attenuated(Policy(dry_run=True)) for _ in range(DRY_RUNS_MAX)]
    for call in (
        top.attenuated(Policy(dry_run=True)),
        (await top.open("a")).attenuated(Policy(dry_run=True)),
    ):
        with pytest.raises(Busy):
            await call
    del runs
    gc.collect()
    full = await top.attenuated(Policy(dry_run=True))
    with pytest.raises((NoSpace, TooLarge)):
        for number in range(10):
            await (await full.create(f"{number}")).write(0, b"x" * 2**20)


async def test_what_is_only_read_has_no_dry_run() -> None:
    class ReadOnlyVolume(MemoryVolume):
        @property
        def read_only(self) -> bool:
            return True

    volume = await MemoryVolume.open()
    volume.__class__ = ReadOnlyVolume
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    dry = await top.attenuated(Policy(dry_run=True))
    assert dry.node is top.node


async def test_moves_between_a_dry_run_and_the_tree() -> None:
    _, top = await a_tree()
    dry = await top.attenuated(Policy(dry_run=True))
    with pytest.raises(CrossVolume):
        await top.rename("a", dry, "z")
    with pytest.raises(Denied):
        await dry.rename("a", top, "z")
    with pytest.raises(InvalidArgument):
        await dry.rename("d", await dry.sub("d"), "z")


# Traced ------------------------------------------------------------------------------------------


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
