"""What a watch tells, over RPC and of every kind of tree, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, OpenFlags, RenameMode
from capstore.backers.spec import open_volume
from capstore.schema.errors import NoSpace, StorageError, StorageIOError
from capstore.schema.nodes import Change
from capstore.service.client import connect
from capstore.service.policy import Policy
from capstore.service.remote import Directory, File
from capstore.service.remote_watch import Watching
from tests.service.inprocess import Served, serving
from tests.service.watches import CREATED, MODIFIED, REMOVED, hub_of, told, words

pytestmark = pytest.mark.anyio

KINDS = ("memory", "wf1", "dir", "overlay", "mounts", "pyfs")


def spec_of(kind: str, folder: Path) -> str:
    (folder / "d").mkdir()
    return {
        "memory": "memory:",
        "wf1": f"wf1:{folder}/v.wf1,create",
        "dir": f"dir:{folder}/d",
        "overlay": f"overlay:memory:+dir:{folder}/d,ro",
        "mounts": f"mounts:/=memory:,/m=dir:{folder}/d",
        "pyfs": "pyfs:mem://",
    }[kind]


@asynccontextmanager
async def watched(
    spec: str = "memory:",
) -> AsyncIterator[tuple[Served, Directory, Watching, Directory]]:
    """A service, whose root is watched, and another client of it."""
    async with (
        serving({"m": await open_volume(spec)}) as served,
        connect(served.unix["m"]) as root,
        connect(served.unix["m"]) as other,
    ):
        assert isinstance(root, Directory)
        assert isinstance(other, Directory)
        async with root.watch() as changes:
            yield served, root, changes, other


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_change_is_told(kind: str, tmp_path: Path) -> None:
    async with watched(spec_of(kind, tmp_path)) as (served, _, changes, other):
        file = await other.create("a")
        node = (await file.stat()).node_id
        assert await told(changes, other) == [Change(CREATED, "a", node)]
        for change in (file.write(0, b"123"), file.append(b"4"), file.truncate(2)):
            await change
            assert await told(changes, other) == [Change(MODIFIED, "a", node)]
        below = await other.mkdir("d")
        assert words(await told(changes, other)) == ["created d"]
        await file.close()

        # Opening tells of what it makes and empties.
        for flags, expected in (
            (OpenFlags.READ, []),
            (OpenFlags.WRITE, []),
            (OpenFlags.WRITE | OpenFlags.CREATE, []),
            (OpenFlags.WRITE | OpenFlags.TRUNCATE, ["modified a"]),
            (OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE, ["modified a"]),
        ):
            await (await other.open("a", flags)).close()
            assert words(await told(changes, other)) == expected, flags
        await (await other.open("b", OpenFlags.WRITE | OpenFlags.CREATE)).close()
        assert words(await told(changes, other)) == ["created b"]

        # Both sides of a rename, and what it replaces.
        await other.rename("a", other, "c")
        assert words(await told(changes, other)) == ["removed a", "created c"]
        await other.rename("b", other, "c")
        assert words(await told(changes, other)) == ["removed b", "removed c", "created c"]
        await other.rename("c", below, "c")
        assert words(await told(changes, other)) == ["removed c"]
        await below.rename("c", other, "e", RenameMode.NO_REPLACE)
        assert words(await told(changes, other)) == ["created e"]
        await other.rename("e", other, "e")
        assert await told(changes, other) == []

        await other.remove("e")
        await other.remove("d")
        assert words(await told(changes, other)) == ["removed e", "removed d"]
        hub = hub_of(served)
    assert not hub.watches


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pyfs"])
async def test_links_exchanges_and_attributes_are_told(kind: str, tmp_path: Path) -> None:
    async with watched(spec_of(kind, tmp_path)) as (_, _, changes, other):
        file = await other.create("a")
        node = (await file.stat()).node_id
        await other.symlink("l", "a")
        await other.link("a", other, "b")
        found = await told(changes, other)
        assert words(found) == ["created a", "created l", "created b"]
        assert found[2].node_id == node
        # Another name of the same file: nothing changes.
        await other.rename("a", other, "b")
        await other.rename("a", other, "b", RenameMode.EXCHANGE)
        assert await told(changes, other) == []

        await file.set_attributes(Attributes(executable=True))
        assert await told(changes, other) == [Change(MODIFIED, "a", node)]
        await other.set_attributes(Attributes(modified=10**9), "b")
        assert await told(changes, other) == [Change(MODIFIED, "b", node)]
        await (await other.mkdir("d")).set_attributes(Attributes(modified=10**9))
        assert words(await told(changes, other)) == ["created d"]

        directory = (await other.lookup("d")).stat.node_id
        await other.rename("a", other, "d", RenameMode.EXCHANGE)
        assert await told(changes, other) == [
            Change(REMOVED, "a", node),
            Change(REMOVED, "d", directory),
            Change(CREATED, "a", directory),
            Change(CREATED, "d", node),
        ]
        await file.write(0, b"x")
        assert words(await told(changes, other)) == ["modified d"]


async def test_what_does_not_happen_is_not_told() -> None:
    async with watched() as (_, _, changes, other):
        file = await other.create("a")
        assert words(await told(changes, other)) == ["created a"]
        only = await other.read_only()
        for refused in (
            other.mkdir("a"),
            other.open("a", OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE),
            other.remove("nothing"),
            other.rename("nothing", other, "a"),
            other.link("nothing", other, "b"),
            other.symlink("b", ""),
            file.truncate(2**40),
            only.remove("a"),
            only.set_attributes(Attributes(executable=True), "a"),
            (await only.open("a")).write(0, b"x"),
        ):
            with pytest.raises(StorageError):
                await refused
        await file.write(5, b"")
        await file.append(b"")
        assert await told(changes, other) == []
        await file.write(0, b"x")
        assert words(await told(changes, other)) == ["modified a"]


async def test_only_entries_of_the_directory_itself_are_told() -> None:
    async with watched() as (_, _, changes, other):
        below = await other.mkdir("d")
        await told(changes, other)
        async with below.watch() as deeper:
            await (await below.create("x")).write(0, b"x")
            assert await told(changes, other) == []
            assert words(await told(deeper, below)) == ["created x", "modified x"]


# Where a file is ---------------------------------------------------------------------------------


async def test_a_file_that_was_open_before_is_told_by_the_name_that_it_has_now() -> None:
    async with (
        serving({"m": await MemoryVolume.open()}) as served,
        connect(served.unix["m"]) as root,
        connect(served.unix["m"]) as other,
    ):
        assert isinstance(root, Directory)
        assert isinstance(other, Directory)
        kept = await other.create("kept")
        moved = await other.create("moved")
        gone = await other.create("gone")
        replaced = await other.create("replaced")
        below = await root.mkdir("d")
        # By other capabilities of the same directory, and while nobody watches.
        await root.rename("moved", root, "now")
        await root.remove("gone")
        await root.write_file("new", b"")
        await root.rename("new", root, "replaced")
        async with root.watch() as changes:
            for file in (kept, moved, gone, replaced):
                await file.write(0, b"x")
            assert words(await told(changes, root)) == ["modified kept", "modified now"]
            await root.rename("now", below, "now")
            async with below.watch() as deeper:
                await moved.write(0, b"y")
                assert words(await told(deeper, below)) == ["modified now"]
            assert words(await told(changes, root)) == ["removed now"]
        for file in (kept, moved, gone, replaced):
            await file.close()
        assert repr(hub_of(served)) == "<Hub: 0 watches, 0 places>"


async def test_a_file_has_the_name_by_which_it_was_opened() -> None:
    async with watched() as (served, _, changes, other):
        first = await other.create("a")
        await other.link("a", other, "b")
        second = await other.open("b", OpenFlags.WRITE)
        weaker = (await second.attenuate(Policy(append_only=True))).capability
        await told(changes, other)
        for file, name in ((first, "a"), (second, "b"), (weaker, "b")):
            await file.append(b"x")
            assert words(await told(changes, other)) == [f"modified {name}"]
        await other.remove("a")
        await first.append(b"x")
        assert words(await told(changes, other)) == ["removed a"]
        # One that was restored has none.
        token = await second.save("f")
        async with connect(served.unix["m"].with_token(token)) as restored:
            assert isinstance(restored, File)
            await restored.append(b"x")
            assert await told(changes, other) == []
        await second.close()
        await weaker.append(b"x")
        assert words(await told(changes, other)) == ["modified b"]


async def test_a_move_beside_an_opening_leaves_no_name() -> None:
    """Unwatched, nobody keeps these in order; so what is written then is told to nobody, rather
    than under a name that the file may not have."""
    volume = await MemoryVolume.open()
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        await root.write_file("a", b"")
        gate, opening = asyncio.Event(), asyncio.Event()
        kind = type(volume.root)
        real = kind.open

        async def slow(self: object, name: str, flags: OpenFlags = OpenFlags.READ) -> object:
            file = await real(self, name, flags)  # type: ignore[arg-type]
            opening.set()
            await gate.wait()
            return file

        kind.open = slow  # type: ignore[method-assign, assignment]
        try:
            task = asyncio.ensure_future(root.open("a", OpenFlags.WRITE))
            await opening.wait()
            await root.rename("a", root, "b")
            gate.set()
            file = await task
        finally:
            kind.open = real  # type: ignore[method-assign]
        async with root.watch() as changes:
            await file.write(0, b"x")
            assert await told(changes, root) == []
        assert not hub_of(served).openings


# What cannot be told exactly ---------------------------------------------------------------------


async def test_what_nobody_knows_is_an_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched() as (served, _, changes, other):
        kind = type(served.service.volume("m").root)
        real = kind.mkdir

        async def broken(self: object, name: str) -> object:
            await real(self, name)  # type: ignore[arg-type]
            raise StorageIOError("the disk is gone")

        monkeypatch.setattr(kind, "mkdir", broken)
        with pytest.raises(StorageIOError):
            await other.mkdir("a")
        assert words(await told(changes, other)) == ["overflow"]

        async def full(self: object, name: str) -> object:
            raise NoSpace("full")

        monkeypatch.setattr(kind, "mkdir", full)
        with pytest.raises(NoSpace):
            await other.mkdir("b")
        assert await told(changes, other) == []


async def test_who_is_cancelled_is_told_of_all_the_same() -> None:
    async with watched() as (served, _, changes, other):
        kind = type(served.service.volume("m").root)
        real, begun, gate = kind.mkdir, asyncio.Event(), asyncio.Event()

        async def slow(self: object, name: str) -> object:
            made = await real(self, name)  # type: ignore[arg-type]
            begun.set()
            await gate.wait()
            return made

        kind.mkdir = slow  # type: ignore[method-assign, assignment]
        try:
            making = asyncio.ensure_future(other.mkdir("a"))
            await begun.wait()
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
            gate.set()
        finally:
            kind.mkdir = real  # type: ignore[method-assign]
        assert words(await told(changes, other)) == ["created a"]


async def test_a_change_that_is_under_way_is_over_when_the_watch_is_there() -> None:
    volume = await MemoryVolume.open()
    async with (
        serving({"m": volume}) as served,
        connect(served.unix["m"]) as root,
        connect(served.unix["m"]) as other,
    ):
        assert isinstance(root, Directory)
        assert isinstance(other, Directory)
        kind = type(volume.root)
        real, begun, gate = kind.mkdir, asyncio.Event(), asyncio.Event()

        async def slow(self: object, name: str) -> object:
            begun.set()
            await gate.wait()
            return await real(self, name)  # type: ignore[arg-type]

        kind.mkdir = slow  # type: ignore[method-assign, assignment]
        try:
            making = asyncio.ensure_future(other.mkdir("a"))
            await begun.wait()
            changes = root.watch()
            watching = asyncio.ensure_future(changes.__aenter__())
            await root.stat()
            # What begins meanwhile does not wait for that.
            await other.create("b")
            assert not watching.done()
            gate.set()
            await watching
            assert [entry.name for entry in (await root.list()).entries] == ["a", "b"]
            await making
        finally:
            kind.mkdir = real  # type: ignore[method-assign]
        # What was to be seen in the listing is not told.
        assert await told(changes, other) == []
        await changes.aclose()


# Policies ----------------------------------------------------------------------------------------


async def test_hidden_names_are_told_by_their_visible_side() -> None:
    async with watched() as (_, root, changes, other):
        policy = Policy(hidden_names=(".*",))
        narrow = (await root.attenuate(policy)).capability
        async with narrow.watch() as seen:
            secret = await other.create(".secret")
            await secret.write(0, b"x")
            await other.symlink(".l", "x")
            await other.set_attributes(Attributes(modified=1), ".secret")
            await other.rename(".secret", other, "shown")
            await secret.write(0, b"y")
            await other.rename("shown", other, ".secret")
            await secret.write(0, b"z")
            await other.create("other")
            await other.rename("other", other, ".secret", RenameMode.EXCHANGE)
            await other.rename("other", other, ".secret")
            expected = [
                "created shown",
                "modified shown",
                "removed shown",
                "created other",
                "removed other",
                "created other",
                "removed other",
            ]
            assert words(await told(seen, other)) == expected
        assert any(change.name == ".secret" for change in await told(changes, other))


async def test_what_fails_under_a_hidden_name_is_no_overflow_to_who_does_not_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched() as (served, root, changes, other):
        narrow = (await root.attenuate(Policy(hidden_names=(".*",)))).capability
        kind = type(served.service.volume("m").root)

        async def broken(self: object, name: str) -> object:
            raise StorageIOError("the disk is gone")

        monkeypatch.setattr(kind, "mkdir", broken)
        async with narrow.watch() as seen:
            with pytest.raises(StorageIOError):
                await other.mkdir(".a")
            assert await told(seen, other) == []
            assert words(await told(changes, other)) == ["overflow"]


async def test_weaker_capabilities_watch_and_change_as_any() -> None:
    async with watched() as (_, root, changes, other):
        for policy in (
            Policy(read_only=True),
            Policy(append_only=True),
            Policy(max_nodes=3),
            Policy(calls_per_second=1),
        ):
            narrow = (await root.attenuate(policy)).capability
            async with narrow.watch() as seen:
                assert await told(seen, other) == []
        await told(changes, other)
        # Under a quota what is changed is accounted for, and told.
        narrow = (await other.attenuate(Policy(max_bytes=100, max_nodes=10))).capability
        file = await narrow.write_file("a", b"1234")
        await file.append(b"5")
        await narrow.mkdir("d")
        await narrow.symlink("l", "a")
        await narrow.link("a", narrow, "b")
        await narrow.rename("a", narrow, "b2")
        await narrow.remove("b")
        await narrow.write_file("b2", b"")
        assert words(await told(changes, other)) == [
            "created a",
            "modified a",
            "created d",
            "created l",
            "created b",
            "removed a",
            "created b2",
            "removed b",
            "modified b2",
        ]


async def test_a_dry_run_tells_of_itself_and_to_itself() -> None:
    async with watched() as (_, root, changes, other):
        await other.write_file("real", b"1234")
        await told(changes, other)
        dry = (await root.attenuate(Policy(dry_run=True))).capability
        async with dry.watch() as seen:
            file = await dry.create("a")
            await file.write(0, b"x")
            await dry.rename("real", dry, "moved")
            assert words(await told(seen, dry)) == [
                "created a",
                "modified a",
                "removed real",
                "created moved",
            ]
            lone = (
                await (await other.open("real", OpenFlags.WRITE)).attenuate(Policy(dry_run=True))
            ).capability
            await lone.write(0, b"x")
            assert await told(changes, other) == []
            await other.create("b")
            assert await told(seen, dry) == []
        assert words(await told(changes, other)) == ["created b"]


async def test_a_snapshot_stays_as_it_is() -> None:
    async with watched() as (_, root, changes, other):
        snapshot = await root.snapshot()
        async with snapshot.watch() as seen:
            await other.create("a")
            assert words(await told(changes, other)) == ["created a"]
            assert not seen._inbox.changes
            await snapshot.stat()
            assert not seen._inbox.changes


async def test_a_read_only_tree_is_watched_in_vain(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    async with watched(f"dir:{tmp_path}/d,ro") as (_, root, changes, _other):
        async with (await root.sub("sub")).watch():
            (tmp_path / "d" / "sub" / "x").write_text("by somebody else")
            await root.stat()
            assert not changes._inbox.changes
