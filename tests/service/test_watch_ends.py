"""How watches end, what bounds them, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema import wire
from capstore.schema.errors import (
    Busy,
    Corrupt,
    Disconnected,
    Expired,
    NotFound,
    Revoked,
    StorageError,
)
from capstore.schema.nodes import Change
from capstore.service import remote_watch, session, watcher
from capstore.service.client import connect, open_connection
from capstore.service.policy import Policy
from capstore.service.remote import Directory, answer_of
from capstore.service.watcher import Watch
from tests.service.inprocess import Served, serving
from tests.service.watches import CREATED, ended, hub_of, told, until, words

pytestmark = pytest.mark.anyio


class Recording(wire.Watcher.Server):  # type: ignore[misc]
    """A watcher that answers when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.calls_now = self.calls_most = 0

    @property
    def changes(self) -> list[str]:
        return list(itertools.chain(*self.batches))

    async def changed_context(self, context: Any) -> None:
        self.batches.append(
            [f"{told.kind} {told.name}".rstrip() for told in context.params.changes]
        )
        self.calls_now += 1
        self.calls_most = max(self.calls_most, self.calls_now)
        try:
            await self.gate.wait()
        finally:
            self.calls_now -= 1


class Raising(wire.Watcher.Server):  # type: ignore[misc]
    async def changed_context(self, context: Any) -> None:
        raise RuntimeError("a bug of the client's")


@asynccontextmanager
async def served_root() -> AsyncIterator[tuple[Served, Directory, Directory]]:
    async with (
        serving({"m": await MemoryVolume.open()}) as served,
        connect(served.unix["m"]) as root,
        connect(served.unix["m"]) as other,
    ):
        assert isinstance(root, Directory)
        assert isinstance(other, Directory)
        await other.stat()
        yield served, root, other
        await nothing_left(served)


def watches_of(served: Served) -> list[Watch]:
    return [watch for session in served.service.sessions for watch in session.watches]


def tellings() -> list[Any]:
    """The tasks that tell somebody something."""
    return [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "Watch._tell"
    ]


async def nothing_left(served: Served) -> None:
    """Raises if something of a watch is there in a while still."""
    hub, totals = hub_of(served), served.service._totals
    await until(lambda: not (hub.watches or watches_of(served) or tellings()))
    assert not hub._locks
    assert not hub._moving
    assert (totals.watches, totals.changes) == (0, 0)


# What ends it ------------------------------------------------------------------------------------


async def test_revoking_ends_it_and_nothing_more_is_told() -> None:
    async with served_root() as (served, root, other):
        lent = await root.attenuate(Policy(), revocable=True)
        below = await lent.capability.attenuate(Policy(read_only=True))
        recording = Recording()
        async with below.capability.watch() as changes:
            watch = (await lent.capability.raw.watch(recording)).watch
            await other.create("a")
            await until(lambda: recording.batches)
            # What is noted meanwhile is behind that one, and never told.
            await other.create("b")
            assert lent.revoker is not None
            await lent.revoker.revoke()
            await nothing_left(served)
            await other.create("c")
            recording.gate.set()
            assert isinstance(await ended(changes), Revoked)
            assert await ended(changes) is None
        assert recording.batches == [["created a"]]
        with pytest.raises(Revoked):
            await answer_of(watch.close())
        with pytest.raises(Revoked):
            async with below.capability.watch():
                pass


async def test_a_reference_that_is_revoked_ends_what_was_restored_with_it() -> None:
    async with served_root() as (served, root, other):
        token = await root.save("lent")
        async with (
            open_connection(served.unix["m"]) as owner,
            connect(served.unix["m"].with_token(token)) as lent,
        ):
            assert isinstance(lent, Directory)
            async with lent.watch() as changes:
                await other.create("a")
                async with asyncio.timeout(5):
                    assert (await anext(changes)).name == "a"
                control = await owner.reference(token)
                await control.revoke((await control.status()).id)
                await other.create("b")
                assert isinstance(await ended(changes), Revoked)


async def test_time_ends_it_with_the_next_change_and_without() -> None:
    async with served_root() as (served, root, other):
        policy = Policy(expires_at=time.time_ns() + 3600 * 10**9)
        narrow = (await root.attenuate(policy)).capability
        for is_changed in (True, False):
            async with narrow.watch() as changes:
                (watch,) = watches_of(served)
                real, watch.grant._clock = watch.grant._clock, lambda: 2**62
                if is_changed:
                    await other.create("a")
                else:
                    for each in served.service.sessions:
                        assert each.transport is not None
                        each.transport.look()
                assert isinstance(await ended(changes), Expired)
                assert not changes._inbox.changes
                await nothing_left(served)
                watch.grant._clock = real


async def test_its_directory_ends_it() -> None:
    async with served_root() as (_, root, other):
        for number, end in enumerate(
            (
                lambda: other.remove("d"),
                lambda: other.rename("e", other, "d"),
                lambda: root.rename("e", root, "d"),
            )
        ):
            below = await root.mkdir("d")
            if number:
                await root.mkdir("e")
            async with below.watch() as changes, other.watch() as above:
                await end()
                assert isinstance(await ended(changes), NotFound)
                assert "removed d" in words(await told(above, other))
            with pytest.raises(NotFound):
                await below.watch().__aenter__()
            if number:
                await root.remove("d")
        # A renaming does not.
        below = await root.mkdir("d")
        async with below.watch() as changes:
            await other.rename("d", other, "e")
            await below.create("x")
            assert words(await told(changes, below)) == ["created x"]


async def test_closing_it_and_closing_it_again() -> None:
    async with served_root() as (served, root, other):
        recording = Recording()
        watch = (await root.raw.watch(recording)).watch
        await other.create("a")
        await until(lambda: recording.batches)
        for _ in range(3):
            await answer_of(watch.close())
        await nothing_left(served)
        await other.create("b")
        recording.gate.set()
        await root.stat()
        assert recording.batches == [["created a"]]
        changes = root.watch()
        await changes.aclose()
        await changes.aclose()
        assert await ended(changes) is None
        async with root.watch() as changes:
            await changes.aclose()
            assert await ended(changes) is None


async def test_dropping_it() -> None:
    async with served_root() as (served, root, other):
        watch = (await root.raw.watch(Recording())).watch
        await other.create("a")
        assert watches_of(served)
        del watch
        await nothing_left(served)
        changes = root.watch()
        assert changes.__aiter__() is changes
        first = asyncio.ensure_future(anext(changes))
        await until(lambda: watches_of(served))
        await other.create("b")
        assert (await first).name == "b"
        del changes, first
        gc.collect()
        await nothing_left(served)


async def test_the_end_of_the_connection() -> None:
    async with served_root() as (served, _, other):
        for is_abrupt in (False, True):
            recording = Recording()
            async with connect(served.unix["m"]) as third:
                assert isinstance(third, Directory)
                changes = third.watch()
                await changes.__aenter__()
                watch = (await third.raw.watch(recording)).watch
                await other.write_file("a", b"")
                await until(lambda: recording.batches)  # noqa: B023 - asked for at once
                await other.write_file("a", b"")
                if is_abrupt:
                    session = served.service.sessions[-1]
                    assert session.transport is not None
                    session.transport.abort()
                    assert isinstance(await ended(changes), Disconnected)
                    await nothing_left(served)
                del watch
            await nothing_left(served)


async def test_a_service_that_stops_leaves_no_task() -> None:
    volume = await MemoryVolume.open()
    async with serving({"m": volume}) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            async with root.watch() as changes:
                recording = Recording()
                watch = (await root.raw.watch(recording)).watch
                await root.create("a")
                await until(lambda: recording.batches)
                await root.create("b")
                hub = hub_of(served)
                await served.service.stop()
                assert not hub.watches
                assert not tellings()
                assert isinstance(await ended(changes), Disconnected)
            del watch


# Who is told -------------------------------------------------------------------------------------


async def test_what_is_no_watcher() -> None:
    async with served_root() as (served, root, other):
        response = await root.raw.watch()
        assert str(response.error.code) == "invalidArgument"
        broken = root.raw.sub("nothing").directory
        for number, strange in enumerate((Raising(), root.raw, broken)):
            capability = (
                strange if number == 0 else strange.cast_as(wire.Watcher)  # type: ignore[attr-defined]
            )
            watch = (await root.raw.watch(capability)).watch
            await (await other.mkdir(f"d{number}")).stat()
            await nothing_left(served)
            with pytest.raises(StorageError, match="closed"):
                await answer_of(watch.close())


async def test_one_telling_is_under_way_and_what_follows_is_told_once() -> None:
    async with served_root() as (served, root, other):
        recording = Recording()
        watch = (await root.raw.watch(recording)).watch
        file = await other.create("a")
        await until(lambda: recording.batches)
        for _ in range(20):
            await file.append(b"x")
        await other.link("a", other, "b")
        await other.remove("b")
        await other.link("a", other, "b")
        recording.gate.set()
        await until(lambda: len(recording.batches) == 2)
        assert recording.batches[1] == ["modified a", "removed b", "created b"]
        assert recording.calls_most == 1
        await answer_of(watch.close())
        await nothing_left(served)


async def test_who_never_answers_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "WATCH_CHANGES_MAX", 50)
    async with served_root() as (served, root, other):
        recording = Recording()
        watch = (await root.raw.watch(recording)).watch
        async with root.watch() as changes:
            async with asyncio.timeout(10):
                for number in range(200):
                    await other.mkdir(f"d{number}")
            stuck = next(each for each in watches_of(served) if each._telling is not None)
            assert len(stuck._noted) <= 50
            assert served.service.sessions[0]._asking_back == 0
            # Another one beside it is told of everything, or that it was not.
            found = words(await told(changes, other))
            assert found[-1] == "created d199" or "overflow" in found
        assert recording.batches == [["created d0"]]
        recording.gate.set()
        await until(lambda: "overflow" in recording.changes)
        assert recording.calls_most == 1
        await other.mkdir("later")
        await until(lambda: "created later" in recording.changes)
        await answer_of(watch.close())


async def test_who_does_not_read_is_told_nothing_and_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection is held up by what it has not taken; watches wait for it like answers."""
    async with served_root() as (served, root, other):
        recording = Recording()
        recording.gate.set()
        watch = (await root.raw.watch(recording)).watch
        books = next(each for each in served.service.sessions if each.watches)
        books.answer_queued(session.UNSENT_BYTES_MAX)
        await other.mkdir("a")
        (telling,) = watches_of(served)
        assert telling._telling is not None
        assert list(telling._noted)
        await other.mkdir("b")
        books.bytes_taken(session.UNSENT_BYTES_MAX)
        await until(lambda: recording.batches)
        assert recording.batches == [["created a", "created b"]]
        await answer_of(watch.close())
        await nothing_left(served)
        await root.stat()
        assert books.unsent_bytes < 4096


async def test_its_size_on_the_wire_is_not_overrated(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    write = session.MeteredTransport.write

    def recorded(self: session.MeteredTransport, data: bytes) -> None:
        sent.append(bytes(data))
        write(self, data)

    async with served_root() as (served, root, other):
        watch = (await root.raw.watch(Recording())).watch
        for name in ("x", "1234567", "12345678", "ä" * 127):
            (telling,) = watches_of(served)
            with monkeypatch.context() as patch:
                patch.setattr(session.MeteredTransport, "write", recorded)
                telling.note(Change(CREATED, name, 2**63))
                room = watcher._size_of([Change(CREATED, name, 2**63)])
                await until(lambda: any(name.encode() in data for data in sent))  # noqa: B023
            # The segment table and the one segment.
            size = next(len(data) for data in sent if name.encode() in data)
            assert size - 64 <= room <= size + 8
            await answer_of(watch.close())
            watch = (await root.raw.watch(Recording())).watch
        del watch, other


# Bounds ------------------------------------------------------------------------------------------


async def test_a_connection_has_so_many_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WATCHES_MAX", 3)
    async with served_root() as (served, root, other):
        held = [(await root.raw.watch(Recording())).watch for _ in range(3)]
        with pytest.raises(Busy, match="end some"):
            await root.watch().__aenter__()
        async with other.watch():
            pass
        await answer_of(held.pop().close())
        async with root.watch():
            pass
        held.clear()
        await nothing_left(served)


async def test_all_have_so_many_and_each_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WATCHES_TOTAL_MAX", 4)
    async with served_root() as (_, root, other):
        held = [(await root.raw.watch(Recording())).watch for _ in range(4)]
        with pytest.raises(Busy, match="all connections"):
            await root.watch().__aenter__()
        # Who has less than a share may.
        async with other.watch(), other.watch():
            pass
        held.clear()


async def test_all_have_so_many_changes_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WATCH_CHANGES_TOTAL_MAX", 20)
    async with served_root() as (served, root, other):
        recording = Recording()
        held = [(await root.raw.watch(recording)).watch for _ in range(4)]
        for number in range(30):
            await other.mkdir(f"d{number}")
        assert served.service._totals.changes <= 21
        async with other.watch() as changes:
            await other.mkdir("x")
            assert words(await told(changes, other)) == ["created x"]
        recording.gate.set()
        await until(lambda: recording.changes.count("overflow") >= 1)
        held.clear()


async def test_capabilities_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CAPABILITIES_MAX", 3)
    async with served_root() as (served, root, _):
        held = [(await root.raw.watch(Recording())).watch for _ in range(2)]
        with pytest.raises(Busy):
            await root.watch().__aenter__()
        held.clear()
        await nothing_left(served)


# The client --------------------------------------------------------------------------------------


class Params:
    """What a service tells, made by hand."""

    def __init__(self, changes: list[tuple[str, str]]) -> None:
        self.params = self
        self.changes = []
        for kind, name in changes:
            told = wire.Change.new_message()
            told.kind, told.name = kind, name
            self.changes.append(told.as_reader())


async def test_a_service_that_does_not_wait_makes_it_an_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_watch, "WATCH_CHANGES_MAX", 10)
    inbox = remote_watch._Inbox()
    served = remote_watch._Watcher(inbox)
    calls = [
        asyncio.ensure_future(served.changed_context(Params([("created", f"f{number}")])))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    assert len(inbox.changes) <= 10
    assert any(change.kind.value == "overflow" for change in inbox.changes)
    while inbox.changes:
        inbox.take()
    await asyncio.gather(*calls)
    await served.changed_context(Params([]))
    inbox.end()
    await served.changed_context(Params([("created", "late")]))


@pytest.mark.parametrize("name", ["", "a/b", "..", "x\0y"])
async def test_a_service_that_tells_nonsense(name: str) -> None:
    inbox = remote_watch._Inbox()
    served = remote_watch._Watcher(inbox)
    await served.changed_context(Params([("created", name)]))
    assert isinstance(inbox.failure, Corrupt)
    assert inbox.is_over


async def test_reading_late_loses_nothing() -> None:
    async with served_root() as (_, root, other), root.watch() as changes:
        for number in range(100):
            await other.write_file(f"f{number}", b"")
        found = words(await told(changes, other))
    assert found == [f"created f{number}" for number in range(100)]
