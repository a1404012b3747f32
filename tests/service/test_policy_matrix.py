"""The whole matrix, over RPC: every method of every interface under every policy.

What has to come is `decide` of the method's row; what the methods are is the compiled schema.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.node import OpenFlags
from capstore.backers.store import Condition
from capstore.schema import wire
from capstore.schema.errors import Code
from capstore.service import quota
from capstore.service.decisions import POLICIES, ROWS, Act, Decision, Effect, decide
from capstore.service.policy import Policy
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteStore
from tests.service.policed import code_of
from tests.service.policy_calls import CALLS, HIDDEN, Scene, asked, reached, the_scene

pytestmark = pytest.mark.anyio

INTERFACES = {
    name: interface.schema
    for name, interface in vars(wire).items()
    if hasattr(interface, "schema") and hasattr(interface.schema, "method_names")
}
# What stands where a capability should be has no method of its own.
SERVED = {name: schema for name, schema in INTERFACES.items() if name != "Broken"}
GUARDED = ("File", "Directory", "Store", "Sink", "Namespace")


# The table ----------------------------------------------------------------------------------------


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


# The matrix ---------------------------------------------------------------------------------------


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


# What flags and items make of a call --------------------------------------------------------------

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


# The guide ----------------------------------------------------------------------------------------

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
