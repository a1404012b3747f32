"""``pyfs:``: directories of the host, trees in memory; pages, handles and closing."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fs.memoryfs import MemoryFS
from fs.osfs import OSFS
from fs.wrap import read_only

from capstore.backers import pyfs_places, pyfs_walk
from capstore.backers.node import Attributes, Expect, NodeKind, OpenFlags, RenameMode, Usage
from capstore.backers.pyfs import PyfsDirectory, PyfsFile, PyfsVolume
from capstore.schema.errors import (
    Closed,
    CrossVolume,
    InvalidArgument,
    InvalidName,
    NotDirectory,
    NotFound,
    ReadOnly,
    StorageError,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from tests.backers.pyfs_trees import TREE, WRITE, filled
from tests.contract.harness import content_of, entries_of, names_of, populate, tree_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mem() -> AsyncIterator[PyfsVolume]:
    volume = await PyfsVolume.open("mem://")
    yield volume
    await volume.close()


@pytest.fixture
async def osfs(tmp_path: Path) -> AsyncIterator[PyfsVolume]:
    volume = await PyfsVolume.open(f"osfs://{tmp_path}")
    yield volume
    await volume.close()


# The host -----------------------------------------------------------------------------------------


async def test_a_directory_of_the_host(osfs: PyfsVolume, tmp_path: Path) -> None:
    await filled(osfs.root)
    assert await tree_of(osfs.root) == TREE
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"deep"
    await osfs.root.rename("a", await osfs.root.sub("empty"), "z")
    assert (tmp_path / "empty" / "z" / "b" / "c").read_bytes() == b"deep"
    usage = await osfs.usage()
    assert usage.total_bytes >= usage.used_bytes > 0
    await osfs.sync()


async def test_links_are_shown_and_never_followed(osfs: PyfsVolume, tmp_path: Path) -> None:
    root = osfs.root
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    links = {"dir": str(outside), "file": str(outside / "precious"), "gone": "nowhere"}
    links |= {"loop": "loop", "odd": os.fsdecode(b"\xff"), "long": "t" * 4000}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    listed = await entries_of(root)
    assert [entry.name for entry in listed] == sorted(links)
    for entry in listed:
        assert entry.stat.kind is NodeKind.SYMLINK
        assert entry.target == (links[entry.name] if entry.name != "odd" else "\uefff")
        assert await root.lookup(entry.name) == entry
        for flags in (OpenFlags.READ, WRITE, WRITE | OpenFlags.TRUNCATE, WRITE | OpenFlags.CREATE):
            with pytest.raises(Unsupported):
                await root.open(entry.name, flags)
        with pytest.raises(NotDirectory):
            await root.sub(entry.name)
        with pytest.raises(Unsupported):
            await root.set_attributes(Attributes(modified=1), entry.name)
    await root.rename("dir", root, "moved")
    for name in (*(set(links) - {"dir"}), "moved"):
        await root.remove(name, Expect.NOT_DIRECTORY)
    assert await names_of(root) == []
    assert (outside / "precious").read_bytes() == b"x"


async def test_special_nodes_are_not_opened(osfs: PyfsVolume, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket"):
            assert (await osfs.root.lookup(name)).stat.kind is NodeKind.SPECIAL
            with pytest.raises(Unsupported):
                await osfs.root.open(name)
            with pytest.raises(Unsupported):
                await osfs.root.open(name, WRITE | OpenFlags.CREATE)


async def test_names_that_are_no_utf_8(osfs: PyfsVolume, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/a\xff"
    Path(os.fsdecode(raw)).write_bytes(b"odd")
    assert await names_of(osfs.root) == ["a\uefff"]
    assert await content_of(osfs.root, "a\uefff") == b"odd"
    await osfs.root.rename("a\uefff", osfs.root, "b\uef80")
    assert os.listdir(os.fsencode(tmp_path)) == [b"b\x80"]
    with pytest.raises(InvalidName):
        await osfs.root.lookup("\uefc3\uefa9")  # bytes that need no escape


async def test_executable_and_times_of_the_host(osfs: PyfsVolume, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"")
    (tmp_path / "tool").chmod(0o755)
    os.utime(tmp_path / "tool", ns=(1, 1_234_567_890_123_456_789))
    os.link(tmp_path / "tool", tmp_path / "other")
    stat = (await osfs.root.lookup("tool")).stat
    assert stat.executable
    assert stat.modified == 1_234_567_890_123_456_789
    assert stat.link_count == 2
    # OSFS sets no permissions.
    with pytest.raises(Unsupported):
        await osfs.root.set_attributes(Attributes(executable=False), "tool")
    with pytest.raises(Unsupported):
        await osfs.root.create("new", executable=True)
    assert await names_of(osfs.root) == ["other", "tool"]
    # Two names of one file: the host leaves both.
    before = await entries_of(osfs.root)
    await osfs.root.rename("tool", osfs.root, "other")
    assert await entries_of(osfs.root) == before


async def test_what_others_do_is_seen(osfs: PyfsVolume, tmp_path: Path) -> None:
    await filled(osfs.root)
    a = await osfs.root.sub("a")
    versions = {(await a.stat()).version, (await a.lookup("file")).stat.version}
    (tmp_path / "a" / "new").write_bytes(b"")
    (tmp_path / "a" / "file").write_bytes(b"changed")
    versions |= {(await a.stat()).version, (await a.lookup("file")).stat.version}
    assert len(versions) == 4
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert await names_of(a) == []
    assert (await a.stat()).link_count == 0
    for lost in (a.lookup("file"), a.create("x"), a.mkdir("x"), a.remove("file")):
        with pytest.raises(NotFound):
            await lost


async def test_a_root_that_is_gone_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    volume = await PyfsVolume.open(f"osfs://{tmp_path / 'root'}", read_only=True)
    (tmp_path / "root").rmdir()
    with pytest.raises(NotFound):
        await names_of(volume.root)
    await volume.close()


# In memory ----------------------------------------------------------------------------------------


async def test_a_tree_in_memory(mem: PyfsVolume) -> None:
    root = await filled(mem.root)
    assert not mem.read_only
    assert await tree_of(root) == TREE
    assert await mem.usage() == Usage()
    await mem.sync()


async def test_what_there_is_no_means_for(mem: PyfsVolume) -> None:
    root = await filled(mem.root)
    a = await root.sub("a")
    file = await a.open("file", WRITE)
    for missing in (
        root.symlink("new", "x"),
        a.link("file", root, "new"),
        root.rename("a", root, "empty", RenameMode.EXCHANGE),
        root.snapshot(),
        root.create("new", executable=True),
        file.set_attributes(Attributes(executable=True)),
        file.set_attributes(Attributes(created=1)),
        root.set_attributes(Attributes(modified=1)),
        a.set_attributes(Attributes(executable=True)),
    ):
        with pytest.raises(Unsupported):
            await missing
    with pytest.raises(InvalidArgument):
        await file.set_attributes(Attributes(modified=2**63))
    assert await tree_of(root) == TREE


async def test_a_gap_is_bounded(mem: PyfsVolume) -> None:
    file = await mem.root.create("f")
    for refused in (file.write(2**31, b"x"), file.truncate(2**40), file.write(2**63, b"x")):
        with pytest.raises(TooLarge):
            await refused
    assert await file.size() == 0


async def test_read_only_of_one_that_writes() -> None:
    filesystem = MemoryFS()
    filesystem.writetext("f", "x")
    volume = await PyfsVolume.open(filesystem, read_only=True)
    assert volume.read_only
    with pytest.raises(ReadOnly):
        await volume.root.create("new")
    await volume.close()
    assert filesystem.isclosed()
    wrapped = await PyfsVolume.open(read_only(MemoryFS()))
    assert wrapped.read_only
    await wrapped.close()


# Pages --------------------------------------------------------------------------------------------


async def test_a_walk_scans_once_unless_something_changes(
    mem: PyfsVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02}" for number in range(30)]
    await populate(mem.root, dict.fromkeys(names, b""))
    scans: list[str] = []
    scandir = mem.tree.fs.scandir

    def counted(path: str, **options: object) -> object:
        scans.append(path)
        return scandir(path, **options)

    monkeypatch.setattr(mem.tree.fs, "scandir", counted)
    page = await mem.root.list("", 10)
    page = await mem.root.list(page.entries[-1].name, 10)
    assert len(scans) == 1
    await mem.root.create("150")
    page = await mem.root.list(page.entries[0].name, 30)
    assert "150" in [entry.name for entry in page.entries]
    assert len(scans) == 2
    assert [entry.name for entry in await entries_of(mem.root, 7)] == sorted([*names, "150"])
    assert len(scans) == 3


async def test_a_directory_larger_than_a_scan(
    mem: PyfsVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyfs_walk, "PYFS_SCAN_ENTRIES_MAX", 10)
    names = [f"{number:02}" for number in range(45)]
    await populate(mem.root, dict.fromkeys(names, b""))
    for limit in (1, 4, 10, 11, 50):
        assert [entry.name for entry in await entries_of(mem.root, limit)] == names


async def test_abandoned_walks_are_forgotten(mem: PyfsVolume) -> None:
    for number in range(20):
        directory = await mem.root.mkdir(f"d{number}")
        await populate(directory, {"a": b"", "b": b""})
        await directory.list("", 1)
    assert len(mem.tree._scans._kept) == pyfs_walk.PYFS_SCANS_MAX


# Ids and handles ----------------------------------------------------------------------------------


async def test_ids_stay_with_what_is_below(mem: PyfsVolume) -> None:
    root = await filled(mem.root)
    a = await root.sub("a")
    before = (await (await a.sub("b")).lookup("c")).stat
    await root.rename("a", root, "z")
    z = await root.sub("z")
    assert (await (await z.sub("b")).lookup("c")).stat == before
    await root.mkdir("a")
    assert (await root.lookup("a")).stat.node_id != (await a.stat()).node_id


async def test_ids_stay_unique_when_there_are_too_many_exceptions(
    mem: PyfsVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyfs_places, "PYFS_PLACES_MAX", 5)
    held = await mem.root.create("held")
    first = await held.stat()
    seen = {first.node_id}
    for number in range(40):
        name = f"f{number}"
        file = await mem.root.create("f")
        before = (await file.stat()).node_id
        versions = {(await file.stat()).version}
        await mem.root.rename("f", mem.root, name)
        assert (await file.stat()).node_id == before
        await file.write(0, b"x")
        versions.add((await file.stat()).version)
        await file.truncate(1)
        versions.add((await file.stat()).version)
        assert len(versions) == 3
        listed = [entry.stat.node_id for entry in await entries_of(mem.root)]
        assert len(set(listed)) == len(listed)
        assert before not in seen
        seen.add(before)
        await mem.root.remove(name)
    assert (await held.stat()).node_id == first.node_id
    assert len(mem.tree.places._ids) <= 5
    assert len(mem.tree.places._versions) <= 5


async def test_handles(mem: PyfsVolume) -> None:
    root = await filled(mem.root)
    a = await root.sub("a")
    file = await a.open("file")
    words = {node: await mem.handle_of(node) for node in (root, a, file)}
    for node, word in words.items():
        found = await mem.node_of(word)
        assert (await found.stat()).node_id == (await node.stat()).node_id
    again = await mem.node_of(words[file])
    assert isinstance(again, PyfsFile)
    await again.write(0, b"changed")
    assert await content_of(a, "file") == b"changed"
    await root.rename("a", root, "z")
    for node in (a, file):
        with pytest.raises(NotFound):
            await mem.node_of(words[node])
        assert await mem.handle_of(node) != words[node]
    # The names, given to others.
    await populate(root, {"a": {"file": b"another"}})
    for node in (a, file):
        with pytest.raises(NotFound):
            await mem.node_of(words[node])
    z = await root.sub("z")
    await z.remove("file")
    with pytest.raises(NotFound):
        await mem.handle_of(file)
    with pytest.raises(InvalidArgument):
        await mem.handle_of((await PyfsVolume.open("mem://")).root)


async def test_handles_of_an_earlier_opening(tmp_path: Path) -> None:
    url = f"osfs://{tmp_path}"
    first = await PyfsVolume.open(url)
    a = await (await filled(first.root)).sub("a")
    directory, file = await first.handle_of(a), await first.handle_of(await a.open("file"))
    await first.close()
    second = await PyfsVolume.open(url, read_only=True)
    found, opened = await second.node_of(directory), await second.node_of(file)
    assert isinstance(found, PyfsDirectory)
    assert await names_of(found) == ["b", "file"]
    assert isinstance(opened, PyfsFile)
    assert bytes(await opened.read(0, 100)) == b"content"
    with pytest.raises(ReadOnly):
        await opened.write(0, b"x")
    (tmp_path / "a" / "file").rename(tmp_path / "file")
    (tmp_path / "a" / "file").mkdir()
    with pytest.raises(StorageError):
        await second.node_of(file)
    await second.close()


@pytest.mark.parametrize(
    "handle",
    [b"", b"short", bytes(17), bytes(16) + b"d", bytes(16) + b"f", bytes(16) + b"dno/root"]
    + [bytes(16) + b"d/" + path for path in (b"", b"..", b"a//b", b"a\0", b"\xff")],
)
async def test_what_is_no_handle(mem: PyfsVolume, handle: bytes) -> None:
    if handle == bytes(16) + b"d":
        assert isinstance(await mem.node_of(handle), PyfsDirectory)  # the root's
        return
    with pytest.raises(InvalidArgument):
        await mem.node_of(handle)


async def test_two_volumes_do_not_mix(mem: PyfsVolume) -> None:
    await filled(mem.root)
    filesystem = mem.tree.fs
    other = await PyfsVolume.open(read_only(filesystem))
    with pytest.raises(CrossVolume):
        await mem.root.rename("a", other.root, "b")
    with pytest.raises(CrossVolume):
        await mem.root.link("large", other.root, "b")


# The life of things -------------------------------------------------------------------------------


async def test_closing(tmp_path: Path) -> None:
    filesystem = OSFS(str(tmp_path))
    volume = await PyfsVolume.open(filesystem)
    file = await volume.root.create("f")
    await file.write(0, b"x")
    directory = await volume.root.mkdir("d")
    assert repr(volume) == "<PyfsVolume OSFS rw>"
    await asyncio.gather(volume.close(), volume.close())
    assert filesystem.isclosed()
    for call in (
        file.read(0, 1),
        file.write(0, b"y"),
        file.stat(),
        directory.list(),
        directory.create("x"),
        volume.root.lookup("f"),
        volume.usage(),
        volume.sync(),
        volume.handle_of(directory),
        volume.node_of(b""),
    ):
        with pytest.raises(Closed):
            await call
    await file.close()
    await volume.close()
    assert (tmp_path / "f").read_bytes() == b"x"
    assert repr(volume) == "<PyfsVolume OSFS closed>"


async def test_a_file_that_is_dropped_is_closed(osfs: PyfsVolume) -> None:
    file = await osfs.root.create("f")
    other = await osfs.root.open("f")
    assert len(osfs.tree._open) == 1
    await file.write(0, b"x")
    await other.close()
    assert len(osfs.tree._open) == 1
    del file
    gc.collect()
    while osfs.tree._open:
        await asyncio.sleep(0)
    assert await content_of(osfs.root, "f") == b"x"


async def test_the_loop_goes_on_while_the_filesystem_waits() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryFS):
        def listdir(self, path: str) -> list[str]:
            raise NotImplementedError

        def scandir(self, path, namespaces=None, page=None):  # type: ignore[no-untyped-def]
            entered.set()
            go_on.wait()
            return super().scandir(path, namespaces, page)

    volume = await PyfsVolume.open(Slow())
    listing = asyncio.create_task(volume.root.list())
    while not entered.is_set():
        await asyncio.sleep(0)
    listing.cancel()
    await asyncio.sleep(0)
    assert not listing.done()  # a cancelled call has ended when it raises
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await listing
    await volume.close()


async def test_a_cancelled_opening_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryFS):
        def getmeta(self, namespace: str = "standard") -> object:
            entered.set()
            go_on.wait()
            return super().getmeta(namespace)

    filesystem = Slow()
    monkeypatch.setattr("capstore.backers.pyfs.open_fs", lambda *_, **__: filesystem)
    opening = asyncio.create_task(PyfsVolume.open("mem://"))
    while not entered.is_set():
        await asyncio.sleep(0)
    opening.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert filesystem.isclosed()


async def test_a_filesystem_that_others_close() -> None:
    filesystem = MemoryFS()
    volume = await PyfsVolume.open(filesystem)
    filesystem.close()
    with pytest.raises((Closed, StorageIOError)):
        await volume.root.lookup("f")
    await volume.close()
