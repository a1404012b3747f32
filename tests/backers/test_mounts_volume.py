"""One tree out of several volumes as a whole: ids, durability, snapshots and handles."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import MountsVolume
from capstore.backers.mounts_node import MountedDirectory
from capstore.backers.mounts_place import PlaceDirectory
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    FileNode,
    Node,
    Volume,
)
from capstore.schema.errors import (
    Busy,
    Closed,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageIOError,
    Unsupported,
)
from tests.backers.mounted import FIXED, REFUSED, at, ids_of, memory, mounted, reading
from tests.contract.harness import content_of, entries_of, tree_of

pytestmark = pytest.mark.anyio


# Node ids ----------------------------------------------------------------------------------------


async def test_ids_are_unique_and_the_same_after_a_restart(tmp_path: Path) -> None:
    prefixes = {"/": "0", "/a/b": "1", "/a/c/d": "2", "/e": "3"}
    seen: list[dict[str, int]] = []
    for name in prefixes.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "d").mkdir()
        (tmp_path / name / "f").write_bytes(b"")
    for _ in range(2):
        opened = {
            prefix: await HostVolume.open(str(tmp_path / name)) for prefix, name in prefixes.items()
        }
        # The order in which they are given says nothing.
        volume = MountsVolume.over(dict(sorted(opened.items(), reverse=bool(seen))))
        seen.append(await ids_of(volume.root))
        await volume.close()
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == len(seen[0]) == 4 * 3 + 2


async def test_an_id_is_of_the_volume_s_and_of_the_mount_s_number() -> None:
    parts = {prefix: await memory({"f": b""}) for prefix in ("/", "/x/y", "/b", "/é", "/b-/c")}
    volume = MountsVolume.over(parts)
    for number, prefix in enumerate(["/", "/b", "/b-/c", "/x/y", "/é"]):
        inner = (await parts[prefix].root.lookup("f")).stat
        stat = (await (await at(volume, prefix)).lookup("f")).stat
        assert stat == inner._replace(node_id=inner.node_id * 256 + number)


# Durability --------------------------------------------------------------------------------------


class Counted(MemoryVolume):
    """Counts how often it was synced and closed, and fails in it when it shall."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.synced = self.closings = 0
        self.failure: Exception | None = None

    async def sync(self) -> None:
        self.synced += 1
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        self.closings += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.closed = True


async def counted(*prefixes: str) -> tuple[MountsVolume, list[Counted]]:
    parts = {prefix: await Counted.open() for prefix in prefixes}
    volumes = [part for part in parts.values() if isinstance(part, Counted)]
    return MountsVolume.over(parts), volumes


async def test_sync_syncs_all_that_is_below() -> None:
    volume, parts = await counted("/", "/a/b", "/a/b/c", "/d")
    await parts[0].root.mkdir("e")

    async def synced(node: Node | Volume) -> list[int]:
        for part in parts:
            part.synced = 0
        await node.sync()
        return [part.synced for part in parts]

    assert await synced(volume) == [1, 1, 1, 1]
    assert await synced(volume.root) == [1, 1, 1, 1]
    assert await synced(await at(volume, "a")) == [0, 1, 1, 0]
    assert await synced(await at(volume, "a/b")) == [0, 1, 1, 0]
    assert await synced(await at(volume, "a/b/c")) == [0, 0, 1, 0]
    assert await synced(await at(volume, "e")) == [1, 0, 0, 0]
    assert await synced(await (await at(volume, "d")).create("f")) == [0, 0, 0, 1]


@pytest.mark.parametrize("of_volume", [True, False])
async def test_sync_goes_on_when_one_fails(of_volume: bool) -> None:
    volume, parts = await counted("/", "/a", "/b", "/c")
    parts[1].failure, parts[3].failure = StorageIOError("first"), StorageIOError("second")
    with pytest.raises(StorageIOError, match="first"):
        await (volume.sync() if of_volume else volume.root.sync())
    assert [part.synced for part in parts] == [1, 1, 1, 1]


async def test_what_does_not_write_is_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, parts = await counted("/", "/a", "/b")
    monkeypatch.setattr(Counted, "read_only", property(lambda self: self is parts[1]))
    await volume.sync()
    await volume.root.sync()
    assert [part.synced for part in parts] == [2, 0, 2]


async def test_closing_closes_all_and_then_raises() -> None:
    volume, parts = await counted("/", "/a", "/b", "/c")
    parts[0].failure, parts[2].failure = StorageIOError("first"), ValueError("second")
    with pytest.raises(StorageIOError, match="first"):
        await volume.close()
    assert [part.closings for part in parts] == [1, 1, 1, 1]
    assert [part.closed for part in parts] == [False, True, False, True]
    with pytest.raises(Closed):
        await volume.usage()
    # What failed is tried again.
    parts[0].failure = parts[2].failure = None
    await volume.close()
    assert all(part.closed for part in parts)


@pytest.mark.parametrize("turns", range(6))
async def test_closing_is_not_cut_short(turns: int) -> None:
    volume, parts = await counted("/", "/a", "/b", "/c")
    task = asyncio.create_task(volume.close())
    for _ in range(turns + 1):
        await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    if task.cancelled():
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [part.closings for part in parts] == [1, 1, 1, 1]


async def test_closing_in_a_cancelled_scope() -> None:
    volume, parts = await counted("/", "/a")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await volume.close()
    assert [part.closed for part in parts] == [True, True]


async def test_a_closed_volume_refuses() -> None:
    volume = await mounted(root={"d": {"f": b""}, "a": {}}, a_b={}, w_x={})
    root = volume.root
    directories = [root, *[await at(volume, path) for path in ("d", "a", "a/b", "w", "w/x")]]
    file = await directories[1].open("f")
    await volume.close()
    await volume.close()
    assert repr(volume) == "<MountsVolume closed 3 mounts>"
    for call in (volume.usage, volume.sync, root.snapshot, file.size):
        with pytest.raises(Closed):
            await call()
    with pytest.raises(Closed):
        await volume.node_of(b"")
    with pytest.raises(Closed):
        await volume.handle_of(root)
    for directory in directories:
        for refused in (
            directory.stat(),
            directory.list(),
            directory.sync(),
            directory.usage(),
            directory.sub("b"),
            directory.lookup("x"),
            directory.mkdir("x"),
            directory.create("b"),
            directory.remove("b"),
            directory.rename("x", directory, "b"),
        ):
            with pytest.raises(Closed):
                await refused


async def test_a_closed_volume_that_never_wrote_refuses(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    parts = {"/": await reading(tmp_path / "a", {}), "/x": await reading(tmp_path / "b", {})}
    volume = MountsVolume.over(parts)
    await volume.close()
    for call in (volume.sync, volume.root.sync, volume.usage):
        with pytest.raises(Closed):
            await call()


# Snapshots ---------------------------------------------------------------------------------------


async def test_a_snapshot_shows_all_volumes_as_they_were() -> None:
    volume = await mounted(root={"f": b"x", "a": {}}, a_b={"g": b"y"}, w_x={"h": b"z"})
    before, ids = await tree_of(volume.root), await ids_of(volume.root)
    entries = await entries_of(volume.root)
    snapshot = await volume.root.snapshot()
    for path in ("", "a", "a/b", "w/x"):
        await (await at(volume, path)).create("new")
    await (await at(volume, "a/b")).remove("g")
    again = await snapshot.snapshot()
    for shown in (snapshot, again):
        assert await tree_of(shown) == before
        assert await ids_of(shown) == ids
        assert await entries_of(shown) == entries
        assert await (await shown.sub("a")).usage() == await volume.usage()
        await shown.sync()


async def test_a_snapshot_of_a_part_shows_what_is_mounted_below() -> None:
    volume = await mounted(root={"a": {"f": b""}}, a_b={"g": b"y"}, a_b_c={"h": b""}, d={})
    snapshot = await (await volume.root.sub("a")).snapshot()
    part = await (await (await volume.root.sub("a")).sub("b")).snapshot()
    inner = await (await snapshot.sub("b")).snapshot()
    await (await at(volume, "a/b")).create("new")
    await (await at(volume, "a/b/c")).create("new")
    assert await tree_of(snapshot) == {"b": {"c": {"h": b""}, "g": b"y"}, "f": b""}
    assert await tree_of(part) == await tree_of(inner) == {"c": {"h": b""}, "g": b"y"}


async def test_a_snapshot_is_read_only_everywhere() -> None:
    volume = await mounted(root=FIXED, mnt={"in": b""}, a_b={"in": b""}, w_x={})
    live, snapshot = volume.root, await volume.root.snapshot()
    before = await tree_of(snapshot)
    for name in ("mnt", "a", "w"):
        for what, (change, _) in REFUSED.items():
            if what != "open":
                with pytest.raises(ReadOnly):
                    await change(snapshot, name)
        with pytest.raises(ReadOnly):
            await snapshot.set_attributes(Attributes(modified=1), name)
        with pytest.raises(ReadOnly):
            await live.rename("f", snapshot, name)
    for path in ("", "a", "mnt", "w"):
        inner = snapshot if not path else await snapshot.sub(path)
        for make in (inner.create, inner.mkdir):
            with pytest.raises(ReadOnly):
                await make("new")
        with pytest.raises(ReadOnly):
            await live.rename("f", inner, "new")
        with pytest.raises(ReadOnly):
            await inner.rename("x", live, "new")
    assert await tree_of(snapshot) == await tree_of(live) == before


async def test_what_does_not_change_is_its_own_snapshot(tmp_path: Path) -> None:
    fixed = await reading(tmp_path, {"d": {"f": b"x"}})
    volume = MountsVolume.over(
        {"/": await memory({"g": b""}), "/ro": fixed, "/ro/d": await memory()}
    )
    snapshot = await volume.root.snapshot()
    await (await at(volume, "ro/d")).create("new")
    assert await tree_of(snapshot) == {"g": b"", "ro": {"d": {}}}
    part = await (await at(volume, "ro")).snapshot()
    assert await tree_of(part) == {"d": {"new": b""}}
    plain = MountsVolume.over({"/": fixed, "/x": await memory()})
    assert await tree_of(await (await at(plain, "d")).snapshot()) == {"f": b"x"}
    await volume.close()


async def test_what_changes_and_has_no_snapshot_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    volume = MountsVolume.over(
        {
            "/": await memory({"d": {}}),
            "/w/x": await HostVolume.open(str(tmp_path)),
            "/w/x/y": await memory({"f": b""}),
        }
    )
    for path in ("", "w", "w/x", "w/x/inner"):
        with pytest.raises(Unsupported):
            await (await at(volume, path)).snapshot()
    assert await tree_of(await (await at(volume, "w/x/y")).snapshot()) == {"f": b""}
    assert await tree_of(await (await at(volume, "d")).snapshot()) == {}
    await volume.close()


async def test_where_no_mount_is_below_a_directory_is_the_volume_s() -> None:
    """Nothing of places is asked for there."""
    volume = await mounted(root={"d": {}, "a": {}}, a_b={"e": {}})
    for path in ("d", "a/b", "a/b/e"):
        assert type(await at(volume, path)) is MountedDirectory
    for path in ("", "a"):
        assert type(await at(volume, path)) is PlaceDirectory


async def test_a_snapshot_that_is_dropped_holds_nothing_back() -> None:
    inner = await memory({"big": b"x" * 100_000, "d": {}})
    volume = MountsVolume.over({"/": await memory(), "/w/x": inner})
    before = (await inner.usage()).used_bytes
    snapshot = await volume.root.snapshot()
    held = await (await (await snapshot.sub("w")).sub("x")).open("big")
    await (await at(volume, "w/x")).remove("big")
    del snapshot
    assert bytes(await held.read(0, 1)) == b"x"
    await held.close()
    assert (await inner.usage()).used_bytes < before - 100_000


# Handles -----------------------------------------------------------------------------------------


async def handle(volume: MountsVolume, path: str) -> bytes:
    return await volume.handle_of(await at(volume, path))


async def test_a_node_is_found_again_by_its_handle() -> None:
    volume = await mounted(root={"a": {"f": b"x", "d": {}}}, a_b={"g": b"y"}, w_x_y={"d": {}})
    handles: set[bytes] = set()
    for path in ("", "a", "a/d", "a/b", "w", "w/x", "w/x/y", "w/x/y/d"):
        directory = await at(volume, path)
        word = await volume.handle_of(directory)
        handles.add(word)
        found = await volume.node_of(word)
        assert isinstance(found, DirectoryNode)
        assert await found.stat() == await directory.stat()
        assert await tree_of(found) == await tree_of(directory)
        assert await volume.handle_of(found) == word
    assert len(handles) == 8
    file = await (await at(volume, "a/b")).open("g")
    found = await volume.node_of(await volume.handle_of(file))
    assert isinstance(found, FileNode)
    await found.write(0, b"z")
    assert await content_of(await at(volume, "a/b"), "g") == b"z"
    assert await found.stat() == await file.stat()


async def test_a_directory_that_was_found_has_its_place() -> None:
    """So what is fixed in it stays so."""
    volume = await mounted(root={"a": {"b": {}}, "f": b""}, a_b_c={"g": b""}, mnt={})
    for path, name in (("", "a"), ("", "mnt"), ("a", "b"), ("a/b", "c")):
        found = await volume.node_of(await handle(volume, path))
        assert isinstance(found, DirectoryNode)
        with pytest.raises(Busy):
            await found.rename(name, found, "new")
        with pytest.raises(Busy):
            await found.remove(name)
        with pytest.raises(Busy):
            await volume.root.rename("f", found, name)


async def test_adding_a_mount_changes_no_handles() -> None:
    parts = {"/": await memory({"a": {"d": {}}}), "/m": await memory({"f": b""})}
    volume = MountsVolume.over(parts)
    handles = {path: await handle(volume, path) for path in ("", "a", "a/d", "m")}
    more = MountsVolume.over({**parts, "/b": await memory(), "/a/x": await memory()})
    for path, word in handles.items():
        found = await more.node_of(word)
        assert isinstance(found, DirectoryNode)
        assert await tree_of(found) == await tree_of(await at(more, path))
        assert await handle(more, path) == word


async def test_what_is_not_there_any_more_is_not_found() -> None:
    parts = {"/": await memory(), "/w/x": await memory({"d": {}, "f": b""})}
    volume = MountsVolume.over(parts)
    gone = [await handle(volume, path) for path in ("w", "w/x", "w/x/d")]
    fewer = MountsVolume.over({"/": parts["/"]})
    between = MountsVolume.over({"/": parts["/"], "/w": await memory(), "/w/x/y": await memory()})
    for word in gone:
        for other in (fewer, between):
            with pytest.raises(NotFound):
                await other.node_of(word)
    # A volume has the directory now, which is another one.
    await parts["/"].root.mkdir("w")
    with pytest.raises(NotFound):
        await volume.node_of(gone[0])
    x = await at(volume, "w/x")
    file = await x.open("f")
    await x.remove("d")
    await x.remove("f")
    with pytest.raises(NotFound):
        await volume.node_of(gone[2])
    with pytest.raises(NotFound):
        await volume.handle_of(file)


async def test_what_is_no_handle() -> None:
    volume, other = await mounted(root={"d": {}}, mnt={}), await mounted(root={"d": {}})
    good = await handle(volume, "d")
    for word in (b"", good[:1], good[:10], good[:17], good[:-1], b"x" + good[1:], good + b"x"):
        with pytest.raises(InvalidArgument):
            await volume.node_of(word)
    with pytest.raises(NotFound):
        await volume.node_of(good[:1] + bytes(16) + good[17:])
    for node in (other.root, await at(other, "d"), (await memory()).root):
        with pytest.raises(InvalidArgument):
            await volume.handle_of(node)


async def test_what_is_mounted_over_a_node_hides_its_name_alone() -> None:
    below = await memory({"a": {"b": {"c": {"f": b"x"}, "g": b"y"}}})
    before = MountsVolume.over({"/": below})
    words = [await handle(before, path) for path in ("a", "a/b", "a/b/c")]
    volume = MountsVolume.over({"/": below, "/a/b": await memory(), "/a/b/c": await memory()})
    a, b, c = [await volume.node_of(word) for word in words]
    assert isinstance(a, DirectoryNode)
    assert isinstance(b, DirectoryNode)
    assert isinstance(c, DirectoryNode)
    assert await tree_of(a) == {"b": {"c": {}}}
    assert await tree_of(b) == {"c": {"f": b"x"}, "g": b"y"}
    await b.rename("c", b, "d")
    assert await tree_of(c) == {"f": b"x"}
    assert await tree_of(volume.root) == {"a": {"b": {"c": {}}}}


async def test_a_snapshot_has_no_handles(tmp_path: Path) -> None:
    """Nor has what shows through it as it is: the tree around it is another one."""
    fixed = await reading(tmp_path, {"f": b""})
    volume = MountsVolume.over({"/": await memory({"d": {}}), "/ro": fixed, "/w/x": await memory()})
    snapshot = await volume.root.snapshot()
    shown = [snapshot, *[await snapshot.sub(name) for name in ("d", "ro", "w")]]
    part = await (await volume.root.sub("ro")).snapshot()
    for node in [*shown, part, await shown[2].open("f")]:
        with pytest.raises(Unsupported):
            await volume.handle_of(node)
    await volume.close()


# Cancellation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_cancelled_sync_is_over(turns: int) -> None:
    """Nothing of it is still under way."""
    under_way = 0

    class Slow(MemoryVolume):
        async def sync(self) -> None:
            nonlocal under_way
            under_way += 1
            try:
                await asyncio.sleep(0)
            finally:
                under_way -= 1

    volume = MountsVolume.over({prefix: await Slow.open() for prefix in ("/", "/a", "/b/c", "/d")})
    task = asyncio.create_task(volume.root.sync())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert under_way == 0
