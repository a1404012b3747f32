"""The whole matrix, over RPC: every method of every interface under every policy.

What has to come is `decide` of the method's row; what the methods are is the compiled schema.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, NodeKind, OpenFlags
from capstore.backers.store import Binding, Condition
from capstore.schema import wire
from capstore.schema.errors import Code, StorageError
from capstore.service import quota
from capstore.service.client import open_connection
from capstore.service.decisions import POLICIES, ROWS, Act, Decision, Effect, decide
from capstore.service.policy import Policy
from capstore.service.remote import Attenuable, Directory, answer_of
from capstore.service.remote_store import RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving
from tests.service.observed import traced_only

pytestmark = pytest.mark.anyio

INTERFACES = {
    name: interface.schema
    for name, interface in vars(wire).items()
    if hasattr(interface, "schema") and hasattr(interface.schema, "method_names")
}
# What stands where a capability should be has no method of its own.
SERVED = {name: schema for name, schema in INTERFACES.items() if name != "Broken"}
GUARDED = ("File", "Directory", "Store", "Sink", "Namespace")


# The table ---------------------------------------------------------------------------------------


def test_every_method_of_the_schema_has_a_row() -> None:
    methods = {(name, each) for name, schema in SERVED.items() for each in schema.method_names}
    assert len(methods) > 70
    assert set(ROWS) == methods


def test_every_parameter_that_names_something_is_looked_at() -> None:
    # What is called so elsewhere in the schema is no name of an entry.
    words = {"name", "newName", "key", "items"}
    for (interface, method), row in ROWS.items():
        if interface in GUARDED:
            params = SERVED[interface].methods[method].param_type.fields
            assert set(row.names) == words & set(params), (interface, method)


def test_every_field_of_a_policy_is_decided_about() -> None:
    assert {*POLICIES, "fieldsKnown"} == set(wire.Policy.schema.fieldnames)


def test_every_method_is_called_below() -> None:
    assert set(CALLS) == {key for key in ROWS if key[0] in GUARDED}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_only_takes_away(policy: str) -> None:
    for (interface, method), row in ROWS.items():
        decision = decide(policy, row)
        assert isinstance(decision, Decision)
        if row.act is Act.CONTROL:
            assert decision is Decision.YES, (interface, method)
        if policy == "readOnly":
            assert (decision is Decision.YES) == (row.act.effect is Effect.OBSERVE)


# The calls ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a call is made with: names by parameter, and data."""

    names: Mapping[str, str]
    data: bytes

    def name(self, parameter: str = "name") -> str:
        return self.names[parameter]

    def key(self, parameter: str = "key") -> bytes:
        return self.names[parameter].encode()


Call = Callable[[Any, Asked], Awaitable[object]]


@dataclass(frozen=True)
class Way:
    """How a method is called, and with what names where nothing else is asked for."""

    call: Call
    names: Mapping[str, str]


def way(call: Call, **names: str) -> Way:
    return Way(call, names)


def ask(method: str, *positional: str, **fields: Any) -> Call:
    """A call that takes the names `positional` from what is asked for, and `fields`."""

    async def call(cap: Attenuable, asked: Asked) -> object:
        request = getattr(cap.raw, f"{method}_request")()
        for parameter in positional:
            is_key = parameter == "key"
            setattr(request, parameter, asked.key() if is_key else asked.name(parameter))
        for field, value in fields.items():
            setattr(request, field, asked.data if value is DATA else value)
        return await answer_of(request.send())

    return call


DATA = object()


async def _batch(cap: RemoteStore, asked: Asked) -> object:
    request = cap.raw.batch_request()
    item = request.init("items", 1)[0]
    item.key, item.put = asked.key("items"), asked.data
    return await answer_of(request.send())


async def _move(cap: Directory, asked: Asked, method: str) -> object:
    request = getattr(cap.raw, f"{method}_request")()
    request.name, request.target, request.newName = asked.name(), cap.raw, asked.name("newName")
    return await answer_of(request.send())


async def _rename(cap: Directory, asked: Asked) -> object:
    return await _move(cap, asked, "rename")


async def _link(cap: Directory, asked: Asked) -> object:
    return await _move(cap, asked, "link")


async def _bind(cap: Any, asked: Asked) -> object:
    request = cap.raw.bind_request()
    request.name = asked.name()
    request.init("binding").hash = HASH
    return await answer_of(request.send())


async def _set(cap: Any, asked: Asked) -> object:
    request = cap.raw.setAttributes_request()
    if "name" in asked.names:
        request.name = asked.name()
    change = request.init("attributes")
    change.setExecutable = change.executable = True
    return await answer_of(request.send())


async def _attenuate(cap: Any, asked: Asked) -> object:
    return await cap.attenuate(Policy())


async def _watch(cap: Directory, asked: Asked) -> object:
    async with cap.watch():
        return None


class _Sink(Attenuable):
    """A put in pieces as the schema has it, with whatever beginning it answered."""


def derived(method: str) -> Way:
    return way(ask(method))


CALLS: dict[tuple[str, str], Way] = {
    ("File", "read"): way(ask("read", length=10)),
    ("File", "write"): way(ask("write", offset=7, data=DATA)),
    ("File", "stat"): derived("stat"),
    ("File", "truncate"): way(ask("truncate", size=100)),
    ("File", "sync"): derived("sync"),
    ("File", "close"): derived("close"),
    ("File", "append"): way(ask("append", data=DATA)),
    ("File", "readOnly"): derived("readOnly"),
    ("File", "attenuate"): way(_attenuate),
    ("File", "setAttributes"): way(_set),
    ("File", "save"): way(ask("save", label="x")),
    ("Directory", "open"): way(ask("open", "name"), name="f"),
    ("Directory", "list"): way(ask("list", limit=2)),
    ("Directory", "mkdir"): way(ask("mkdir", "name"), name="new"),
    ("Directory", "remove"): way(ask("remove", "name"), name="f"),
    ("Directory", "sub"): way(ask("sub", "name"), name="d"),
    ("Directory", "create"): way(ask("create", "name"), name="new"),
    ("Directory", "rename"): way(_rename, name="f", newName="new"),
    ("Directory", "lookup"): way(ask("lookup", "name"), name="f"),
    ("Directory", "stat"): derived("stat"),
    ("Directory", "readOnly"): derived("readOnly"),
    ("Directory", "attenuate"): way(_attenuate),
    ("Directory", "sync"): derived("sync"),
    ("Directory", "symlink"): way(ask("symlink", "name", target="elsewhere"), name="new"),
    ("Directory", "link"): way(_link, name="f", newName="new"),
    ("Directory", "setAttributes"): way(_set, name="f"),
    ("Directory", "usage"): derived("usage"),
    ("Directory", "snapshot"): derived("snapshot"),
    ("Directory", "watch"): way(_watch),
    ("Directory", "ticket"): derived("ticket"),
    ("Directory", "save"): way(ask("save", label="x")),
    ("Store", "put"): way(ask("put", "key", data=DATA), key="new"),
    ("Store", "get"): way(ask("get", "key"), key="f"),
    ("Store", "has"): way(ask("has", "key"), key="f"),
    ("Store", "delete"): way(ask("delete", "key"), key="f"),
    ("Store", "list"): way(ask("list", limit=2)),
    ("Store", "stat"): way(ask("stat", "key"), key="f"),
    ("Store", "read"): way(ask("read", "key", length=3), key="f"),
    ("Store", "begin"): way(ask("begin", "key", size=8), key="new"),
    ("Store", "batch"): way(_batch, items="new"),
    ("Store", "sync"): derived("sync"),
    ("Store", "usage"): derived("usage"),
    ("Store", "getOnly"): derived("getOnly"),
    ("Store", "putOnly"): derived("putOnly"),
    ("Store", "subStore"): way(ask("subStore", prefix=b"x")),
    ("Store", "attenuate"): way(_attenuate),
    ("Store", "ticket"): derived("ticket"),
    ("Store", "save"): way(ask("save", label="x")),
    ("Store", "compact"): derived("compact"),
    ("Store", "collect"): derived("collect"),
    ("Store", "namespace"): derived("namespace"),
    ("Sink", "write"): way(ask("write", data=DATA)),
    ("Sink", "commit"): derived("commit"),
    ("Sink", "abort"): derived("abort"),
    ("Namespace", "resolve"): way(ask("resolve", "name"), name="f"),
    ("Namespace", "bind"): way(_bind, name="new"),
    ("Namespace", "unbind"): way(ask("unbind", "name"), name="f"),
    ("Namespace", "list"): way(ask("list", limit=2)),
    ("Namespace", "sub"): way(ask("sub", "name"), name="d"),
    ("Namespace", "save"): way(ask("save", label="x")),
}

CONTENT, HIDDEN = b"content", "hidden-"


# The scene ---------------------------------------------------------------------------------------


class Scene:
    """A service with a tree and a store that are made anew for each call."""

    def __init__(self, volume: MemoryVolume, model: ModelStore, roots: Mapping[str, Any]) -> None:
        self.volume = volume
        self.model = model
        self._roots = roots
        self._number = 0
        self._path = ""

    async def reset(self) -> None:
        self._number += 1
        self._path = str(self._number)
        top = await self.volume.root.mkdir(self._path)
        self.real = top
        for prefix in ("", HIDDEN):
            await (await top.create(prefix + "f")).write(0, CONTENT)
            await (await (await top.mkdir(prefix + "d")).create("below")).write(0, CONTENT)
            await top.symlink(prefix + "l", "f")
        self.model.state.objects.clear()
        self.model.state.names.clear()
        for prefix in ("", HIDDEN):
            await self.model.put(CONTENT, f"{prefix}f".encode())
            await self.model.put(CONTENT, f"{prefix}g".encode())
        global HASH
        HASH = (await self.model.put(b"bound")).key
        for name in ("f", "g", HIDDEN + "f"):
            await self.model.names.bind(Binding(name, hash=HASH))

    async def whole(self, interface: str) -> Any:
        """What is attenuated for a call of `interface`."""
        if interface in ("Store", "Sink", "Namespace"):
            return self._roots["s"]
        top = await self._roots["m"].sub(self._path)
        return await top.open("f", OpenFlags.WRITE) if interface == "File" else top

    async def picture(self) -> object:
        names = sorted(self.model.state.names.items())
        objects = {key: each.data for key, each in self.model.state.objects.items()}
        return await picture(self.real), names, objects


HASH = b""


async def picture(directory: DirectoryNode) -> list[object]:
    found: list[object] = []
    for entry in (await directory.list()).entries:
        below: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            below = await picture(await directory.sub(entry.name))
        elif entry.stat.kind is NodeKind.FILE:
            file = await directory.open(entry.name)
            below = bytes(await file.read(0, 1000)), entry.stat.executable
        found.append((entry.name, below))
    return found


@asynccontextmanager
async def the_scene() -> AsyncIterator[Scene]:
    volume, model = await MemoryVolume.open(), ModelStore()
    async with (
        serving({"m": volume, "s": model}, observers=traced_only()) as served,
        open_connection(served.unix["m"]) as tree,
        open_connection(served.unix["s"]) as store,
    ):
        roots = {"m": await tree.root(), "s": await store.root()}
        yield Scene(volume, model, roots)


async def reached(interface: str, cap: Any) -> Any:
    """The capability of `interface` that `cap` leads to; a broken one says why it is."""
    if interface == "Sink":
        request = cap.raw.begin_request()
        request.key = b"sink"
        return _Sink(request.send().sink)
    if interface == "Namespace":
        return _Sink(cap.raw.namespace().namespace)
    return cap


async def code_of(call: Awaitable[object]) -> Code | None:
    try:
        await call
    except StorageError as error:
        return error.code
    return None


def asked(way: Way, /, **other: str) -> Asked:
    return Asked({**way.names, **other}, b"12345678")


# The matrix --------------------------------------------------------------------------------------


async def under(
    scene: Scene,
    key: tuple[str, str],
    policy: Policy,
    /,
    *,
    before: Callable[[Any, Any], Awaitable[object]] | None = None,
    **names: str,
) -> Code | None:
    """What the call answers on a capability under `policy`, of a fresh scene."""
    await scene.reset()
    narrowed = (await (await scene.whole(key[0])).attenuate(policy)).capability
    cap = await reached(key[0], narrowed)
    if before is not None:
        await before(narrowed, cap)
    return await code_of(CALLS[key].call(cap, asked(CALLS[key], **names)))


async def check_read_only(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    expected = {Decision.YES: None, Decision.READ_ONLY: Code.READ_ONLY}[decision]
    if key == ("Sink", "abort"):
        # There is no sink of a store that is only read.
        expected = Code.READ_ONLY
    assert await under(scene, key, Policy(read_only=True)) == expected


async def check_revocable(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    assert decision is Decision.REVOKED
    await scene.reset()
    narrowed = await (await scene.whole(key[0])).attenuate(Policy(), revocable=True)
    cap = await reached(key[0], narrowed.capability)
    if key[0] in ("Sink", "Namespace"):
        await answer_of(cap.raw.save("x") if key[0] == "Namespace" else cap.raw.write(b""))
    await narrowed.revoker.revoke()
    assert await code_of(CALLS[key].call(cap, asked(CALLS[key]))) is Code.REVOKED


async def check_expired(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    assert decision is Decision.EXPIRED
    assert await under(scene, key, Policy(expires_at=1)) is Code.EXPIRED


async def check_append_only(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    policy = Policy(append_only=True)
    expected = Code.DENIED if decision is Decision.DENIED else None
    assert await under(scene, key, policy) == expected
    if decision is Decision.NEW_ONLY and key[0] != "Sink":
        before = await scene.picture()
        (parameter,) = CALLS[key].names
        assert await under(scene, key, policy, **{parameter: "f"}) is Code.CONFLICT
        await scene.reset()
        assert await scene.picture() != before


async def check_max_bytes(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    # A sink has taken the room before it is committed.
    if key == ("Sink", "commit"):
        return
    code = await under(scene, key, Policy(max_bytes=7))
    assert code == quota_code(key, decision)


async def check_max_nodes(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    async def use(narrowed: Any, cap: Any) -> None:
        if isinstance(narrowed, Directory):
            await narrowed.mkdir("used")
        elif isinstance(narrowed, RemoteStore):
            await narrowed.put(b"", b"used")

    code = await under(scene, key, Policy(max_nodes=1), before=use)
    assert code == quota_code(key, decision)


def quota_code(key: tuple[str, str], decision: Decision) -> Code | None:
    return {
        Decision.YES: None,
        Decision.OVER_QUOTA: Code.QUOTA_EXCEEDED,
        Decision.READ_ONLY: Code.READ_ONLY,
        Decision.DENIED: Code.DENIED,
    }[decision]


async def check_max_file_bytes(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    expected = {
        Decision.YES: None,
        Decision.TOO_LARGE: Code.TOO_LARGE,
        Decision.DENIED: Code.DENIED,
    }[decision]
    assert await under(scene, key, Policy(max_file_bytes=7)) == expected


async def _spend(narrowed: Any, cap: Any) -> None:
    if isinstance(narrowed, Directory):
        await (await narrowed.open("f")).read(0, 100)
    elif isinstance(narrowed, RemoteStore):
        await code_of(narrowed.get(b"f"))
    else:
        await narrowed.read(0, 100)


async def check_calls(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    async def spend(narrowed: Any, cap: Any) -> None:
        # A sink is there before the rate is used up.
        await code_of(narrowed.sync())
        await code_of(narrowed.sync())

    code = await under(scene, key, Policy(calls_per_second=1), before=spend)
    assert code == rate_code(key, decision)


async def check_bytes(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    code = await under(scene, key, Policy(bytes_per_second=1), before=_spend)
    assert code == rate_code(key, decision)


def rate_code(key: tuple[str, str], decision: Decision) -> Code | None:
    return {
        Decision.YES: None,
        Decision.LATER: Code.BUSY,
        Decision.DENIED: Code.DENIED,
    }[decision]


async def check_hidden(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    policy, names = Policy(hidden_names=(HIDDEN + "*",)), CALLS[key].names
    if decision is Decision.DENIED:
        assert await under(scene, key, policy) is Code.DENIED
        return
    assert await under(scene, key, policy) is None
    for parameter in ROWS[key].names:
        hidden = {parameter: HIDDEN + names[parameter]}
        code = await under(scene, key, policy, **hidden)
        # Whether something is there is the very answer of `has`.
        assert code is (None if key == ("Store", "has") else Code.NOT_FOUND), parameter
    if key == ("Directory", "watch"):
        await check_watching(scene, policy)
    elif decision is Decision.LEFT_OUT:
        await check_listing(scene, key[0], policy)


async def check_listing(scene: Scene, interface: str, policy: Policy) -> None:
    await scene.reset()
    whole = await scene.whole(interface)
    narrowed = (await whole.attenuate(policy)).capability
    if interface == "Namespace":
        whole, narrowed = whole.names, narrowed.names
    seen = [names_of(await each.list()) for each in (whole, narrowed)]
    assert seen[1] == [each for each in seen[0] if not each.startswith(HIDDEN)]
    assert 1 < len(seen[1]) < len(seen[0])
    # Pages are as full as any, and end where what is not hidden ends.
    first = await narrowed.list(limit=len(seen[1]) - 1)
    assert (names_of(first), first.more) == (seen[1][:-1], True)
    whole_page = await narrowed.list(limit=len(seen[1]))
    assert (names_of(whole_page), whole_page.more) == (seen[1], False)


async def check_watching(scene: Scene, policy: Policy) -> None:
    await scene.reset()
    whole = await scene.whole("Directory")
    narrowed = (await whole.attenuate(policy)).capability
    async with whole.watch() as everything, narrowed.watch() as shown:
        for name in (HIDDEN + "new", "new"):
            await whole.mkdir(name)
        async with asyncio.timeout(10):
            assert (await anext(shown)).name == "new"
            assert (await anext(everything)).name == HIDDEN + "new"


def names_of(page: Any) -> list[str]:
    if hasattr(page, "objects"):
        return [each.key.decode("latin-1") for each in page.objects]
    found = page.entries if hasattr(page, "entries") else page.bindings
    return [each.name for each in found]


async def check_dry_run(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    await scene.reset()
    before = await scene.picture()
    narrowed = (await (await scene.whole(key[0])).attenuate(Policy(dry_run=True))).capability
    cap = await reached(key[0], narrowed)
    code = await code_of(CALLS[key].call(cap, asked(CALLS[key])))
    expected = Code.DENIED if decision is Decision.DENIED else None
    assert code == expected
    assert await scene.picture() == before
    assert (decision is Decision.AS_IF) == (
        ROWS[key].act.effect is not Effect.OBSERVE and decision is not Decision.DENIED
    )


async def check_traced(scene: Scene, key: tuple[str, str], decision: Decision) -> None:
    assert decision is Decision.YES
    assert await under(scene, key, Policy(traced=True)) is None


CHECKS: dict[str, Callable[[Scene, tuple[str, str], Decision], Awaitable[None]]] = {
    "readOnly": check_read_only,
    "revocable": check_revocable,
    "expiresAt": check_expired,
    "appendOnly": check_append_only,
    "maxBytes": check_max_bytes,
    "maxNodes": check_max_nodes,
    "maxFileBytes": check_max_file_bytes,
    "callsPerSecond": check_calls,
    "bytesPerSecond": check_bytes,
    "hiddenNames": check_hidden,
    "dryRun": check_dry_run,
    "traced": check_traced,
}


def test_every_policy_is_checked() -> None:
    assert set(CHECKS) == set(POLICIES)


async def test_without_a_policy_every_call_does_something_or_answers() -> None:
    async with the_scene() as scene:
        for key, row in ROWS.items():
            if key[0] in GUARDED:
                await scene.reset()
                before = await scene.picture()
                cap = await reached(key[0], await scene.whole(key[0]))
                code = await code_of(CALLS[key].call(cap, asked(CALLS[key])))
                assert code is None, key
                changed = await scene.picture() != before
                if key not in QUIET:
                    assert changed == (row.act.effect is not Effect.OBSERVE), key


# What is seen only when it ends, and what a small store does not show.
QUIET = {
    ("Store", "begin"),
    ("Sink", "write"),
    ("Store", "compact"),
    ("Store", "collect"),
}


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_matrix(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "PACE_SECONDS_MAX", 0)
    wrong: list[str] = []
    async with the_scene() as scene:
        for key, row in ROWS.items():
            if key[0] not in GUARDED:
                continue
            try:
                await CHECKS[policy](scene, key, decide(policy, row))
            except AssertionError as error:
                wrong.append(f"{key[0]}.{key[1]}: {decide(policy, row)}: {error}")
    assert not wrong, "\n".join(wrong)


# What flags and items make of a call -------------------------------------------------------------

FLAGS = {
    "write": OpenFlags.WRITE,
    "create": OpenFlags.WRITE | OpenFlags.CREATE,
    "truncate": OpenFlags.WRITE | OpenFlags.TRUNCATE,
}


@pytest.mark.parametrize("policy", ["readOnly", "appendOnly", "dryRun"])
async def test_what_flags_make_of_opening(policy: str) -> None:
    fields = {"readOnly": "read_only", "appendOnly": "append_only", "dryRun": "dry_run"}
    terms = replace(Policy(), **{fields[policy]: True})  # type: ignore[arg-type]
    row = ROWS["Directory", "open"]
    assert row.may is not None
    assert set(row.may) == set(FLAGS)
    async with the_scene() as scene:
        for word, act in row.may.items():
            await scene.reset()
            before = await scene.picture()
            narrowed = (await (await scene.whole("Directory")).attenuate(terms)).capability
            name = "new" if word == "create" else "f"
            code = await code_of(narrowed.open(name, FLAGS[word]))
            decision = decide(policy, replace(row, act=act))
            assert code == REFUSALS.get(decision), (word, decision)
            if decision is not Decision.YES:
                assert await scene.picture() == before


async def test_what_items_make_of_a_batch() -> None:
    from capstore.backers.store import Delete, Put

    row = ROWS["Store", "batch"]
    assert row.may is not None
    async with the_scene() as scene:
        for policy, terms in (
            ("readOnly", Policy(read_only=True)),
            ("appendOnly", Policy(append_only=True)),
        ):
            await scene.reset()
            before = await scene.picture()
            narrowed = (await (await scene.whole("Store")).attenuate(terms)).capability
            decision = decide(policy, replace(row, act=row.may["delete"]))
            code = await code_of(narrowed.batch([Put(b"new", b"x"), Delete(b"f")]))
            assert code == REFUSALS[decision]
            versioned = narrowed.put(b"x", b"f", Condition(version=1))
            assert await code_of(versioned) in (Code.DENIED, Code.READ_ONLY)
            assert await scene.picture() == before


REFUSALS = {Decision.READ_ONLY: Code.READ_ONLY, Decision.DENIED: Code.DENIED}


# The guide ---------------------------------------------------------------------------------------

# The columns of its table, and what stands in each.
COLUMNS = (
    (Act.OBSERVE,),
    (Act.APPEND,),
    (Act.CREATE,),
    (Act.PUT,),
    (Act.WRITE, Act.TRUNCATE),
    (Act.ATTRIBUTES, Act.REMOVE, Act.RENAME),
    (Act.MAINTAIN,),
    (Act.DERIVE,),
)


def test_the_table_of_the_guide_is_what_is_decided() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}
    assert {name: told.get(name) for name in POLICIES} == {
        name: [told_of(name, acts) for acts in COLUMNS] for name in POLICIES
    }


def told_of(policy: str, acts: Sequence[Act]) -> str:
    """What the policy makes of methods with these acts: each different refusal, once."""
    keys = [key for key, row in ROWS.items() if row.act in acts and key[0] in GUARDED]
    # Namespaces are told of in words below the table.
    rows = [ROWS[key] for key in keys if not ROWS[key].uncounted]
    words = dict.fromkeys(decide(policy, row).value for row in rows)
    refusals = [word for word in words if word != Decision.YES.value]
    return ", ".join(refusals or words)


if __name__ == "__main__":
    for each in POLICIES:
        print(f"| `{each}` | {' | '.join(told_of(each, acts) for acts in COLUMNS)} |")
