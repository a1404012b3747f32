"""Attenuation, revocation, saved references and their durable table."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, DirectoryNode, Expect, OpenFlags, RenameMode
from capstore.schema.errors import (
    Busy,
    Corrupt,
    Denied,
    Expired,
    NotFound,
    ReadOnly,
    Revoked,
    StorageError,
)
from capstore.service.client import connect, open_connection
from capstore.service.grants import Effect, Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory
from capstore.service.references import ReferenceTable, digest_of
from capstore.service.remote import Directory, File
from capstore.service.state import StateDirectory
from tests.service.authorities import KEY, Clock, authority_over, owner_of
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio

# Saved references ------------------------------------------------------------------------------


async def test_a_reference_outlives_the_service(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    sub = await root.mkdir("sub")
    file = await sub.create("f")
    await file.write(0, b"content")
    directory_token = await authority.save(sub.narrowed(Policy(read_only=True)), "a share")
    file_token = await authority.save(file, "a file")
    await root.rename("sub", root, "renamed")

    again, _ = await authority_over(tmp_path, volume=volume)
    assert again.owner_token("m") == authority.owner_token("m")
    shared = await again.restore(directory_token)
    assert isinstance(shared, GuardedDirectory)
    assert [entry.name for entry in (await shared.list()).entries] == ["f"]
    with pytest.raises(ReadOnly):
        await shared.mkdir("x")
    saved_file = await again.restore(file_token)
    assert await saved_file.read(0, 100) == b"content"  # type: ignore[union-attr]
    listed = again.below(again.controlled_by(again.owner_token("m")).id)
    assert [(each.label, each.kind) for each in listed] == [
        ("a share", "directory"),
        ("a file", "file"),
    ]


async def test_what_was_removed_is_gone_though_its_name_lives_on(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    token = await authority.save(await root.mkdir("d"), "")
    await root.remove("d")
    await root.mkdir("d")
    with pytest.raises(NotFound):
        await authority.restore(token)


async def test_no_token_is_on_disk(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    tokens = [authority.owner_token("m"), await authority.save(root, "x")]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for token in tokens:
        assert token.encode() not in stored
        assert digest_of(token).encode() in stored


async def test_revoking_a_parent_revokes_all_below_live_and_saved(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    child_token = await authority.save(root, "child")
    child = await authority.restore(child_token)
    assert isinstance(child, GuardedDirectory)
    grandchild_token = await authority.save(child, "grandchild")
    grandchild = await authority.restore(grandchild_token)
    other_token = await authority.save(root, "other")
    await authority.revoke_reference(authority.controlled_by(child_token).id)
    for live in (child, grandchild):
        with pytest.raises(Revoked):
            await live.stat()
    again, _ = await authority_over(tmp_path, volume=volume)
    for holder in (authority, again):
        for token in (child_token, grandchild_token):
            with pytest.raises(Denied, match="no such reference"):
                await holder.restore(token)
        await holder.restore(other_token)


async def test_a_revoker_ends_what_was_saved_from_its_capability(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    narrowed = root.narrowed(Policy())
    token = await authority.save(narrowed, "")
    await authority.revoke(narrowed.grant)
    await root.stat()
    again, _ = await authority_over(tmp_path, volume=volume)
    for holder in (authority, again):
        with pytest.raises(Denied):
            await holder.restore(token)


async def test_revoking_the_owner_gives_another_token_at_the_next_start(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    token = authority.owner_token("m")
    shared = await authority.save(await owner_of(authority), "")
    await authority.revoke_reference(authority.controlled_by(token).id)
    again, _ = await authority_over(tmp_path, volume=volume)
    for dead in (token, shared):
        with pytest.raises(Denied):
            await again.restore(dead)
    assert again.owner_token("m") != token
    await again.restore(again.owner_token("m"))


async def test_expiry(tmp_path: Path) -> None:
    clock = Clock()
    authority, _ = await authority_over(tmp_path, clock=clock)
    root = await owner_of(authority)
    token = await authority.save(root.narrowed(Policy(expires_at=2_000)), "")
    live = await authority.restore(token)
    # A later end below an earlier one changes nothing.
    longer = live.narrowed(Policy(expires_at=9_000))
    await longer.stat()
    clock.now = 2_000
    for node in (live, longer):
        with pytest.raises(Expired):
            await node.stat()
    with pytest.raises(Denied, match="no such reference"):
        await authority.restore(token)
    await root.stat()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "policy", "version"])
async def test_a_table_changed_by_others_is_refused(tmp_path: Path, damage: str) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    await authority.save(root.narrowed(Policy(read_only=True)), "x")
    path = tmp_path / "references.json"
    raw = path.read_bytes()
    document = json.loads(raw)
    if damage == "policy":
        document["body"]["references"][1]["policy"]["read_only"] = False
    if damage == "version":
        document["body"]["version"] = 99
    path.write_bytes(
        {
            "flip": raw.replace(b"owner", b"Owner", 1),
            "truncate": raw[: len(raw) // 2],
            "empty": b"",
        }.get(damage, json.dumps(document).encode())
    )
    with pytest.raises(Corrupt):
        ReferenceTable.load(path, KEY)


async def test_saves_that_come_together_share_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capstore.service import references

    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    writes = []
    replace = references.replace_file
    monkeypatch.setattr(
        references, "replace_file", lambda *args: (writes.append(1), replace(*args))
    )
    tokens = await asyncio.gather(*(authority.save(root, str(n)) for n in range(50)))
    assert len(set(tokens)) == 50
    assert len(writes) <= 3
    for token in tokens:
        await authority.restore(token)


async def test_a_save_that_could_not_be_written_gives_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capstore.service import references

    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(references, "replace_file", full)
        with pytest.raises(StorageError) as caught:
            await authority.save(root, "x")
        assert "/secret" not in str(caught.value)
    assert authority.below(1) == []
    await authority.save(root, "y")


async def test_two_services_do_not_share_a_state(tmp_path: Path) -> None:
    first = StateDirectory.open(tmp_path / "state")
    with pytest.raises(Busy):
        StateDirectory.open(tmp_path / "state")
    first.close()
    StateDirectory.open(tmp_path / "state").close()


async def test_a_secret_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    StateDirectory.open(tmp_path / "state").close()
    (tmp_path / "state" / "owner.key").chmod(0o640)
    with pytest.raises(Denied, match="chmod 600"):
        StateDirectory.open(tmp_path / "state")


# Grants ----------------------------------------------------------------------------------------


async def test_revoking_releases_what_was_held(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    narrowed = root.narrowed(Policy())
    file = await narrowed.create("f")
    await authority.revoke(narrowed.grant)
    assert file._node is None
    assert narrowed._node is None
    assert root._node is not None


policies = st.builds(
    Policy, read_only=st.booleans(), expires_at=st.sampled_from([0, 50, 100, 1_000])
)


@given(chain=st.lists(policies, min_size=1, max_size=6), now=st.integers(0, 2_000))
async def test_authority_only_shrinks(chain: list[Policy], now: int) -> None:
    clock = Clock()
    clock.now = now
    grant = Grant(ServedVolume("m", None), chain[0], clock=clock)  # type: ignore[arg-type]
    grants = [grant]
    for policy in chain[1:]:
        grant = grant.derive(policy)
        grants.append(grant)
    for effect in Effect:
        outcomes = [_outcome(each, effect) for each in grants]
        # Once a link refuses, every link below it does.
        for above, below in itertools.pairwise(outcomes):
            assert above is None or below is not None
        refused = any(policy.read_only and effect is not Effect.OBSERVE for policy in chain) or any(
            policy.expires_at and now >= policy.expires_at for policy in chain
        )
        assert (outcomes[-1] is not None) == refused
    middle = grants[len(grants) // 2]
    middle.end(Revoked("over"))
    for each in grants:
        assert each.revoked == each.stands_under(middle)


def _outcome(grant: Grant, effect: Effect) -> type[StorageError] | None:
    try:
        grant.check(effect)
    except StorageError as error:
        return type(error)
    return None


# Attenuation over RPC, as properties -----------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "d", "l", "new"])

MOVES = st.one_of(
    st.tuples(st.just("open"), NAMES, st.sampled_from([0, 1, 3, 7, 9, 11])),
    st.tuples(st.just("create"), NAMES),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("sub"), NAMES),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES, st.sampled_from(list(RenameMode))),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("symlink"), NAMES),
    st.tuples(st.just("set_attributes"), NAMES),
    st.tuples(st.just("attenuate"), st.booleans()),
    st.tuples(st.just("read_only")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("save")),
    st.tuples(st.just("file"), st.sampled_from(["write", "append", "truncate", "set", "sync"])),
)


async def _play(move: tuple[Any, ...], held: list[Any], restore: Any) -> None:
    """One move of a client that tries everything with everything it ever got."""
    verb, *args = move
    directories = [each for each in held if isinstance(each, Directory)]
    files = [each for each in held if isinstance(each, File)]
    here = directories[len(held) * 7 % len(directories)]
    got: Any = None
    match verb:
        case "open":
            got = await here.open(args[0], OpenFlags(args[1]))
        case "create" | "mkdir" | "sub":
            got = await getattr(here, verb)(args[0])
        case "remove":
            await here.remove(args[0], Expect.ANY)
        case "rename":
            await here.rename(args[0], directories[-1], args[1], args[2])
        case "link":
            await here.link(args[0], directories[-1], args[1])
        case "symlink":
            await here.symlink(args[0], "target")
        case "set_attributes":
            await here.set_attributes(Attributes(executable=True, modified=1), args[0])
        case "attenuate":
            got = (await here.attenuate(Policy(read_only=args[0]))).capability
        case "read_only" | "snapshot":
            got = await getattr(here, verb)()
        case "save":
            got = await restore(await here.save("x"))
        case "file" if files:
            await _play_file(args[0], files[-1])
    if got is not None:
        held.append(got)


async def _play_file(verb: str, file: File) -> None:
    match verb:
        case "write":
            await file.write(0, b"changed")
        case "append":
            await file.append(b"changed")
        case "truncate":
            await file.truncate(0)
        case "set":
            await file.set_attributes(Attributes(modified=1))
        case "sync":
            await file.sync()


async def _picture(directory: DirectoryNode) -> list[Any]:
    result = []
    for entry in (await directory.list()).entries:
        below: Any = None
        if entry.stat.kind.value == "directory":
            below = await _picture(await directory.sub(entry.name))
        elif entry.stat.kind.value == "file":
            below = bytes(await (await directory.open(entry.name)).read(0, 1000))
        result.append((entry, below))
    return result


async def _sample_tree() -> MemoryVolume:
    volume = await MemoryVolume.open()
    await (await volume.root.create("a")).write(0, b"content of a")
    await volume.root.create("b")
    inner = await volume.root.mkdir("d")
    await inner.create("a")
    await volume.root.symlink("l", "a")
    return volume


async def _try_all(moves: list[tuple[Any, ...]], start: Any, restore: Any) -> list[Any]:
    held = [start]
    for move in moves:
        try:
            await _play(move, held, restore)
        except StorageError:
            continue
    return held


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(MOVES, max_size=25))
async def test_no_sequence_of_calls_on_a_read_only_capability_changes_the_tree(
    moves: list[tuple[Any, ...]],
) -> None:
    volume = await _sample_tree()
    async with serving({"m": volume}) as served, open_connection(served.unix["m"]) as connection:
        root = await connection.root()
        assert isinstance(root, Directory)
        before = await _picture(volume.root)
        await _try_all(moves, await root.read_only(), connection.restore)
        assert await _picture(volume.root) == before


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(MOVES, max_size=25))
async def test_everything_reached_from_a_revoked_capability_answers_revoked(
    moves: list[tuple[Any, ...]],
) -> None:
    volume = await _sample_tree()
    async with serving({"m": volume}) as served, open_connection(served.unix["m"]) as connection:
        root = await connection.root()
        assert isinstance(root, Directory)
        narrowed = await root.attenuate(Policy(), revocable=True)
        held = await _try_all(moves, narrowed.capability, connection.restore)
        assert narrowed.revoker is not None
        await narrowed.revoker.revoke()
        assert (await narrowed.revoker.status())[0]
        await narrowed.revoker.revoke()
        after = await _picture(volume.root)
        for each in held:
            with pytest.raises(Revoked):
                await each.stat()
        with pytest.raises(Revoked):
            await narrowed.capability.rename("a", root, "escaped")
        assert await _picture(volume.root) == after
        await root.list()


async def test_a_node_does_not_move_out_from_under_a_policy() -> None:
    async with serving({"m": await _sample_tree()}) as served, connect(served.unix["m"]) as root:
        inner = await root.sub("d")
        narrowed = (await inner.attenuate(Policy(), revocable=True)).capability
        for move in (
            narrowed.rename("a", root, "out"),
            narrowed.link("a", root, "out"),
            root.rename("a", narrowed, "a", RenameMode.EXCHANGE),
        ):
            with pytest.raises(Denied):
                await move
        await root.rename("b", narrowed, "in")
        assert [entry.name for entry in (await narrowed.list()).entries] == ["a", "in"]
        read_only = await inner.read_only()
        for move in (
            root.rename("a", read_only, "x"),
            read_only.rename("a", root, "x"),
            read_only.link("a", root, "x"),
        ):
            with pytest.raises(ReadOnly):
                await move
