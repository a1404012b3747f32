"""What must hold however deep the chain, however often it is asked, and whatever the disk does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import OpenFlags
from capstore.schema import wire
from capstore.schema.errors import (
    Closed,
    Denied,
    ReadOnly,
    Revoked,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import GRANT_DEPTH_MAX
from capstore.service import references, session
from capstore.service.authority import Authority
from capstore.service.client import connect, open_connection
from capstore.service.grants import Policy
from capstore.service.references import ReferenceTable
from capstore.service.remote import Directory, answer_of
from tests.service.authorities import KEY, Clock, authority_over, owner_of
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio


async def test_attenuation_has_a_depth_and_revoking_reaches_its_end(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    top = (await owner_of(authority)).narrowed(Policy())
    deepest = top
    with pytest.raises(TooLarge):
        for _ in range(GRANT_DEPTH_MAX + 1):
            deepest = deepest.narrowed(Policy())
    assert deepest.grant.depth == GRANT_DEPTH_MAX
    with pytest.raises(TooLarge):
        await authority.save(deepest, "")
    await authority.revoke(top.grant)
    with pytest.raises(Revoked):
        await deepest.stat()


async def test_a_chain_of_saved_references_is_restored_from_its_end(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    node: Any = await owner_of(authority)
    first = token = ""
    for _ in range(GRANT_DEPTH_MAX):
        token = await authority.save(node, "")
        first = first or token
        node = await authority.restore(token)
    again, _ = await authority_over(tmp_path, volume=volume)
    await again.restore(token)
    await again.revoke_reference(again.controlled_by(first).id)
    with pytest.raises(Denied):
        await again.restore(token)


async def test_what_was_opened_to_read_is_saved_to_read(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    await root.create("f")
    reading = await root.open("f")
    token = await authority.save(reading, "")
    again, _ = await authority_over(tmp_path, volume=volume)
    for holder in (authority, again):
        restored: Any = await holder.restore(token)
        with pytest.raises(ReadOnly):
            await restored.write(0, b"more than was held")
    writing: Any = await authority.restore(
        await authority.save(await root.open("f", OpenFlags.WRITE), "")
    )
    await writing.write(0, b"as much as was held")


async def test_closing_is_for_one_holder() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        file = await r.write_file("f", b"content")
        weaker = await file.read_only()
        assert await weaker.read(0, 3) == b"con"
        await weaker.close()
        await weaker.close()
        with pytest.raises(Closed):
            await weaker.read(0, 3)
        assert (await weaker.stat()).size == 7
        assert await file.read(0, 7) == b"content"
        other = await file.read_only()
        await file.close()
        assert await other.read(0, 7) == b"content"
        with pytest.raises(Closed):
            await file.read(0, 7)


def _failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/secret")

    monkeypatch.setattr(references, "replace_file", full)


async def test_a_revocation_that_was_not_written_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    narrowed = root.narrowed(Policy())
    tokens = [await authority.save(narrowed, ""), await authority.save(root, "")]
    reference = authority.controlled_by(tokens[1])
    with monkeypatch.context() as patch:
        _failing(patch)
        for _ in range(3):
            with pytest.raises(StorageIOError, match="No space left"):
                await authority.revoke(narrowed.grant)
            with pytest.raises(StorageIOError):
                await authority.revoke_reference(reference.id)
        for token in tokens:
            with pytest.raises(Denied):
                await authority.restore(token)
    await authority.revoke(narrowed.grant)
    await authority.revoke_reference(reference.id)
    again, _ = await authority_over(tmp_path, volume=volume)
    for token in tokens:
        with pytest.raises(Denied):
            await again.restore(token)


async def test_the_service_writes_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capstore.service import server

    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.01)
    async with (
        serving({"m": await MemoryVolume.open()}, folder=tmp_path) as served,
        open_connection(served.unix["m"]) as connection,
    ):
        root = await connection.root()
        token = await root.save("x")
        control = await connection.reference(token)
        with monkeypatch.context() as patch:
            _failing(patch)
            with pytest.raises(StorageIOError):
                await control.revoke((await control.status()).id)
        path = tmp_path / "state" / "references.json"
        key = (tmp_path / "state" / "owner.key").read_bytes()
        async with asyncio.timeout(5):
            while ReferenceTable.load(path, key).find(token) is not None:
                await asyncio.sleep(0.02)


async def test_every_revoke_waits_for_changes_under_way(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    narrowed = root.narrowed(Policy())
    entered, leave = asyncio.Event(), asyncio.Event()

    class Slow:
        async def mkdir(self, name: str) -> Any:
            entered.set()
            await leave.wait()
            return root.node

    narrowed._node = Slow()  # type: ignore[assignment]
    change = asyncio.ensure_future(narrowed.mkdir("x"))
    await entered.wait()
    revoking = [asyncio.ensure_future(authority.revoke(narrowed.grant)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in revoking)
    leave.set()
    await asyncio.gather(*revoking)
    with pytest.raises(Revoked):
        await change


async def test_a_save_that_a_revocation_overtakes_gives_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    table: Any = authority._table
    add = table.add

    async def overtaken(reference: Any) -> Any:
        added = await add(reference)
        await table.remove([added.id])
        return added

    monkeypatch.setattr(table, "add", overtaken)
    with pytest.raises(Revoked):
        await authority.save(root, "")
    assert authority.below(1) == []


async def test_expired_references_make_room(tmp_path: Path) -> None:
    clock = Clock()
    authority, _ = await authority_over(tmp_path, clock=clock)
    root = await owner_of(authority)
    short = await authority.restore(
        await authority.save(root.narrowed(Policy(expires_at=9_000)), "")
    )
    await authority.save(short, "below")
    assert len(authority.below(1)) == 2
    clock.now = 9_000
    await authority.save(root, "lasting")
    assert [each.label for each in authority.below(1)] == ["lasting"]


async def test_a_reference_without_its_parents_gives_nothing(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    child = await authority.restore(await authority.save(root.narrowed(Policy(read_only=True)), ""))
    token = await authority.save(child, "")
    again = Authority({"m": volume}, ReferenceTable.load(tmp_path / "references.json", KEY), KEY)
    del again._table._by_id[child.grant.reference_id]
    with pytest.raises(Denied):
        await again.restore(token)


async def test_a_policy_with_more_fields_than_are_known_is_refused() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        request = r.raw.attenuate_request()
        policy = request.init("policy")
        policy.readOnly = True
        policy.fieldsKnown = len(wire.Policy.schema.fieldnames) + 1
        with pytest.raises(Unsupported):
            await answer_of(request.send())


async def test_broken_capabilities_are_counted_and_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "CAPABILITIES_MAX", 20)
    async with serving({"m": await MemoryVolume.open()}) as served:
        async with open_connection(served.unix["m"]) as connection:
            held = []
            with pytest.raises(Exception, match=r"(?i)disconnected"):
                for _ in range(100):
                    held.append(await connection._gate.raw.restore("wrong"))
                    await connection.info()
            assert 30 <= len(held) <= 50
        async with connect(served.unix["m"]) as root:
            await root.stat()


async def test_reserved_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        file = await r.write_file("f", b"x" * 2**20)
        gate, most = asyncio.Event(), 0
        mine = served.service.sessions[0]
        node_type = type(await served.service.volume("m").root.open("f"))
        read_into = node_type.read_into

        async def slow(self: Any, offset: int, view: memoryview) -> int:
            nonlocal most
            most = max(most, mine.reserved_bytes)
            await gate.wait()
            return await read_into(self, offset, view)

        monkeypatch.setattr(node_type, "read_into", slow)
        reads = [file.start_read(0, 2**20) for _ in range(40)]
        await asyncio.sleep(0.1)
        gate.set()
        for each in reads:
            assert len((await each.data())[0]) == 2**20
        assert 2**22 <= most <= session.UNSENT_BYTES_MAX
        assert mine.reserved_bytes == 0


async def test_who_holds_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from capstore.service import server

    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(session, "IDLE_SECONDS_MAX", 0.1)
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        silent = [await asyncio.open_unix_connection(served.unix["m"].socket) for _ in range(5)]
        async with asyncio.timeout(5):
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
        assert isinstance(r, Directory)
        await r.stat()


async def test_no_effect_without_room_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CAPABILITIES_MAX", 3)
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        held = [await r.create("a"), await r.mkdir("b")]
        for call in (r.create("c"), r.mkdir("d")):
            with pytest.raises(Exception, match="drop some"):
                await call
        assert [entry.name for entry in (await r.list()).entries] == ["a", "b"]
        assert len(held) == 2


async def test_renames_leave_no_trace_in_the_count() -> None:
    async with serving({"m": await MemoryVolume.open()}) as served, connect(served.unix["m"]) as r:
        await r.create("a")
        for _ in range(100):
            await r.rename("a", r, "b")
            await r.rename("b", r, "a")
        assert served.service.sessions[0].unsent_bytes < 2048
