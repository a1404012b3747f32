"""What waits for its turn beside a watch, and what is told when not all can be seen."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest

from capstore.backers.memory import MemoryDirectory, MemoryVolume
from capstore.backers.node import DirectoryNode, Entry
from capstore.schema.errors import Busy, Revoked, StorageIOError
from capstore.schema.limits import KIB
from capstore.schema.nodes import Change, ChangeKind
from capstore.service import session
from capstore.service.client import connect
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory
from capstore.service.remote import Directory
from capstore.service.remote_watch import _Inbox
from tests.service import telling
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio


class Looker:
    """One who watches."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.is_over = False

    def note(self, change: Change) -> None:
        self.changes.append(change)

    def removed(self) -> None:
        self.is_over = True


async def owned() -> GuardedDirectory:
    volume = await MemoryVolume.open()
    return GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))


@pytest.mark.parametrize("change", ["remove", "symlink", "link", "rename"])
async def test_who_is_revoked_in_the_queue_changes_nothing(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await owned()
    await (await whole.create("f")).close()
    looker = Looker()
    await whole.grant.hub.begin(await whole.node_id(), looker)
    mine = whole.narrowed(Policy())
    gate, calls = asyncio.Event(), 0
    original = MemoryDirectory.mkdir

    async def mkdir(self: MemoryDirectory, name: str) -> DirectoryNode:
        await gate.wait()
        return await original(self, name)

    monkeypatch.setattr(MemoryDirectory, "mkdir", mkdir)

    async def counted(self: MemoryDirectory, *args: Any) -> None:
        nonlocal calls
        calls += 1

    monkeypatch.setattr(MemoryDirectory, change, counted)
    first = asyncio.create_task(whole.mkdir("x"))
    await asyncio.sleep(0)
    waiting: Any = {
        "remove": lambda: mine.remove("x"),
        "symlink": lambda: mine.symlink("x", "anywhere"),
        "link": lambda: mine.link("f", mine, "x"),
        "rename": lambda: mine.rename("f", mine, "x"),
    }[change]
    second = asyncio.create_task(waiting())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not second.done()
    mine.grant.end(Revoked("over"))
    gate.set()
    await first
    with pytest.raises(Revoked):
        await second
    assert calls == 0


async def test_a_directory_that_cannot_be_seen_where_it_went_is_not_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = await owned()
    moved = await whole.mkdir("a")
    above, inside = Looker(), Looker()
    await whole.grant.hub.begin(await whole.node_id(), above)
    await whole.grant.hub.begin(await moved.node_id(), inside)
    original = MemoryDirectory.lookup

    async def lookup(self: MemoryDirectory, name: str) -> Entry:
        if name == "b" and is_blind:
            raise StorageIOError("not now")
        return await original(self, name)

    is_blind = True
    monkeypatch.setattr(MemoryDirectory, "lookup", lookup)
    await whole.rename("a", whole, "b")
    assert not inside.is_over
    assert ChangeKind.OVERFLOW in {change.kind for change in above.changes}
    is_blind = False
    await whole.remove("b")
    assert inside.is_over


async def test_who_leaves_what_he_was_told_unanswered_watches_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "TELLINGS_LEFT_MAX", 3)
    async with serving({"m": await MemoryVolume.open()}) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            for number in range(3):
                async with root.watch():
                    # It is told two things, and asks for none.
                    await root.mkdir(f"d{number}")
                    await asyncio.sleep(0.05)
            with pytest.raises(Busy):
                async with root.watch():
                    pass
            await root.mkdir("else")
        async with connect(served.unix["m"]) as root, root.watch():  # type: ignore[union-attr]
            pass


async def test_a_service_that_tells_on_unanswered_makes_nobody_wait() -> None:
    inbox = _Inbox()
    first = asyncio.create_task(inbox.put([Change(ChangeKind.CREATED, "a")]))
    await asyncio.sleep(0)
    assert not first.done()
    await inbox.put([Change(ChangeKind.CREATED, "b")])
    assert not first.done()
    assert inbox.take() == Change(ChangeKind.OVERFLOW)
    await first


@pytest.mark.skipif(not hasattr(telling.libc, "mallinfo2"), reason="an older C library")
async def test_what_was_told_is_not_kept_until_it_is_answered() -> None:
    watches, changes = 128, 1000
    # The changes of one telling would be 8 KB more.
    enough = watches * 6 * KIB
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.service.telling", str(changes), str(enough)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert service.stdin is not None
        assert service.stdout is not None
        uri = (await service.stdout.readline()).decode().strip()
        async with connect(uri) as root, AsyncExitStack() as stack:
            assert isinstance(root, Directory)
            for _ in range(watches):
                # Nothing of it is ever asked for.
                await stack.enter_async_context(root.watch())
            service.stdin.write(b"tell\n")
            grown = int(await service.stdout.readline())
        assert grown < enough
        service.stdin.write(b"end\n")
        assert await service.wait() == 0
    finally:
        if service.returncode is None:
            service.kill()
            await service.wait()
