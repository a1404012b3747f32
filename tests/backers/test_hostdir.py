"""What a host directory does beyond the contract suite: kinds, modes, mounts, descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from capstore.backers import hostfd, hostops
from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Expect,
    NodeKind,
    OpenFlags,
    Provenance,
    RenameMode,
)
from capstore.schema.errors import (
    Busy,
    Closed,
    CrossVolume,
    Denied,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    StorageError,
    Unsupported,
)
from tests.backers.hosts import descriptors_settle, mounted_tmpfs, open_descriptors

pytestmark = pytest.mark.anyio

WRITE_CREATE = OpenFlags.WRITE | OpenFlags.CREATE


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[HostVolume]:
    made = await HostVolume.open(str(tmp_path))
    yield made
    await made.close()


@pytest.fixture
def root(volume: HostVolume) -> DirectoryNode:
    return volume.root


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


# Opening the volume ----------------------------------------------------------------------------


async def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error in (
        ("file", NotDirectory),
        ("missing", NotFound),
        ("nul\0", InvalidArgument),
    ):
        with pytest.raises(error) as caught:
            await HostVolume.open(str(tmp_path / path))
        assert str(tmp_path) not in str(caught.value)


async def test_the_served_path_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    volume = await HostVolume.open(str(tmp_path / "link"))
    await volume.root.create("f")
    assert (tmp_path / "real" / "f").exists()
    await volume.close()
    assert repr(volume) == "HostVolume(closed)"


# Special nodes ---------------------------------------------------------------------------------


def make_special(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.fspath(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("making a device needs privilege")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
@pytest.mark.parametrize("openat2", [True, False])
async def test_special_nodes_are_listed_and_never_opened(
    root: DirectoryNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    openat2: bool,
) -> None:
    monkeypatch.setattr(hostfd.support(), "openat2", openat2)
    monkeypatch.setattr(hostops, "reopen", None)
    make_special(kind, tmp_path / "x")
    (entry,) = (await root.list()).entries
    assert entry.stat.kind is NodeKind.SPECIAL
    assert (await root.lookup("x")) == entry
    for flags in (OpenFlags.READ, OpenFlags.WRITE, WRITE_CREATE, OpenFlags.WRITE | 8):
        with pytest.raises(Unsupported):
            await root.open("x", OpenFlags(flags))
    with pytest.raises(NotDirectory):
        await root.sub("x")
    with pytest.raises(Unsupported):
        await root.set_attributes(Attributes(executable=True), "x")
    await root.set_attributes(Attributes(modified=5), "x")
    assert (await root.lookup("x")).stat.modified == 5
    await root.rename("x", root, "y")
    await root.remove("y", Expect.NOT_DIRECTORY)


# Modes, times, versions ------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
async def test_new_nodes_have_the_modes_that_the_umask_leaves(
    root: DirectoryNode, tmp_path: Path
) -> None:
    await root.create("plain")
    await root.create("program", executable=True)
    await root.open("opened", WRITE_CREATE)
    await root.mkdir("directory")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)}
    assert modes == {"plain": 0o640, "program": 0o750, "opened": 0o640, "directory": 0o750}


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o755), (0o640, 0o750), (0o600, 0o700), (0o200, 0o300)]
)
async def test_executable_is_for_those_who_may_read(
    root: DirectoryNode, tmp_path: Path, before: int, after: int
) -> None:
    path = tmp_path / "f"
    path.touch()
    path.chmod(before)
    await root.set_attributes(Attributes(executable=True), "f")
    assert path.stat().st_mode & 0o777 == after
    assert (await root.lookup("f")).stat.executable
    file = await root.open("f", OpenFlags.WRITE)
    await file.set_attributes(Attributes(executable=False))
    assert path.stat().st_mode & 0o777 == before
    assert not (await file.stat()).executable


async def test_attributes_that_cannot_be_recorded_change_nothing(
    root: DirectoryNode, tmp_path: Path
) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    before = await root.lookup("f")
    with pytest.raises(Unsupported):
        await root.set_attributes(Attributes(created=1, modified=1, executable=True), "f")
    with pytest.raises(InvalidArgument):
        await root.set_attributes(Attributes(modified=2**63, executable=True), "f")
    with pytest.raises(Unsupported):
        await root.set_attributes(Attributes(executable=True, modified=1), "d")
    assert await root.lookup("f") == before
    assert (await root.lookup("d")).stat.modified != 1


async def test_attributes_change_together_or_not_at_all(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch(mode=0o640)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no", str(tmp_path))

    monkeypatch.setattr(os, "utime", fail)
    with pytest.raises(Denied) as caught:
        await root.set_attributes(Attributes(executable=True, modified=1), "f")
    assert str(tmp_path) not in str(caught.value)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


async def test_created_is_the_same_however_it_is_asked_for(
    root: DirectoryNode, tmp_path: Path
) -> None:
    file = await root.create("f")
    await file.write(0, b"x")
    entry = await root.lookup("f")
    assert entry.stat == await file.stat() == (await root.list()).entries[0].stat
    assert entry.stat.provenance is Provenance.HOST_FILESYSTEM
    assert 0 <= entry.stat.created <= entry.stat.modified
    assert entry.stat.node_id == (tmp_path / "f").stat().st_ino


async def test_without_statx_created_is_not_recorded(
    root: DirectoryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfd.support(), "statx", False)
    file = await root.create("f")
    assert (await file.stat()).created == 0
    assert (await root.lookup("f")).stat == await file.stat()


async def test_versions_differ_after_each_change(root: DirectoryNode) -> None:
    file = await root.create("f")
    versions = [(await file.stat()).version]
    for step in range(50):
        await file.write(0, bytes([step]))
        versions.append((await file.stat()).version)
    # Before multigrain timestamps (Linux 6.13) one tick is one version, if the size stays.
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 13):
        assert len(set(versions)) == len(versions)
    sizes = {(await file.stat()).version}
    for size in range(2, 50):
        await file.truncate(size)
        sizes.add((await file.stat()).version)
    assert len(sizes) == 49


# Names -----------------------------------------------------------------------------------------


async def test_names_that_are_no_utf8(root: DirectoryNode, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(raw, "wb") as made:
        made.write(b"old")
    os.symlink(b"to\xff", os.fsencode(tmp_path) + b"/link")
    names = [entry.name for entry in (await root.list()).entries]
    assert names == ["caf\uefe9", "link"]
    assert (await root.lookup("link")).target == "to\uefff"
    file = await root.open(names[0])
    assert bytes(await file.read(0, 9)) == b"old"
    await root.rename(names[0], root, "\uef80x")
    await root.symlink("second", "to\uefff")
    listed = {os.fsencode(name) for name in os.listdir(tmp_path)}
    assert listed == {b"\x80x", b"link", b"second"}
    assert os.readlink(os.fsencode(tmp_path) + b"/second") == b"to\xff"
    with pytest.raises(InvalidName):
        await root.create("\uefc3\uefa9")  # these bytes are UTF-8 and need no escape


async def test_a_name_too_long_when_escaped_is_shown_but_refused(
    root: DirectoryNode, tmp_path: Path
) -> None:
    raw = b"\xff" * 200
    with open(os.fsencode(tmp_path) + b"/" + raw, "wb"):
        pass
    (tmp_path / "z").touch()
    page = await root.list(limit=1)
    shown = page.entries[0].name
    assert shown == "z"
    page = await root.list(shown, limit=1)
    assert page.entries[0].name == "\uefff" * 200
    assert not page.more
    assert (await root.list(page.entries[0].name)).entries == []
    with pytest.raises(InvalidName):
        await root.open(page.entries[0].name)


# Renaming, linking, removing -------------------------------------------------------------------


async def test_targets_of_other_volumes_are_refused(
    volume: HostVolume, root: DirectoryNode, tmp_path: Path
) -> None:
    (tmp_path / "f").touch()
    twin, memory = await HostVolume.open(str(tmp_path)), await MemoryVolume.open()
    for other in (twin.root, memory.root):
        with pytest.raises(CrossVolume):
            await root.rename("f", other, "g")
        with pytest.raises(CrossVolume):
            await root.link("f", other, "g")
    with pytest.raises(InvalidArgument):
        await volume.handle_of(twin.root)
    await twin.close()
    await memory.close()


@pytest.mark.parametrize("mode", [RenameMode.NO_REPLACE, RenameMode.EXCHANGE])
async def test_a_filesystem_without_the_mode_is_told_from_a_move_into_itself(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: RenameMode
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(hostops, "rename_at", refuse)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "f").touch()
    (tmp_path / "a" / "b" / "f").touch()
    below = await (await root.sub("a")).sub("b")
    with pytest.raises(InvalidArgument):
        await root.rename("a", below, "c", mode)
    with pytest.raises(Unsupported):
        await root.rename("f", below, "f", mode)
    if mode is RenameMode.EXCHANGE:
        with pytest.raises(InvalidArgument):
            await below.rename("c", root, "a", mode)


async def test_another_device_mounted_below(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    before = open_descriptors()
    try:
        with mounted_tmpfs(tmp_path / "mount", "1m"):
            volume = await HostVolume.open(str(tmp_path))
            root, other = volume.root, await volume.root.sub("mount")
            file = await other.create("there")
            await root.create("here")
            with pytest.raises(CrossVolume):
                await root.rename("here", other, "moved")
            with pytest.raises(CrossVolume):
                await other.link("there", root, "linked")
            found, plain = await file.stat(), (tmp_path / "mount" / "there").stat()
            assert found.node_id not in (plain.st_ino, (await root.lookup("here")).stat.node_id)
            assert (await other.lookup("there")).stat.node_id == found.node_id
            assert (await other.usage()).total_bytes == 1 << 20
            await file.write(0, b"x")
            await volume.sync()
            word = await volume.handle_of(file)
            again = await volume.node_of(word)
            assert (await again.stat()).node_id == found.node_id
            await volume.close()
            del root, other, file, again, volume
    except PermissionError:
        pytest.skip("mounting needs privilege")
    assert open_descriptors() == before


# Permissions -----------------------------------------------------------------------------------


async def test_what_the_host_forbids_is_denied(
    root: DirectoryNode, tmp_path: Path, unprivileged: Callable[[], None]
) -> None:
    for name, mode in (("secret", 0o000), ("fixed", 0o444), ("open", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    for name, mode in (("closed", 0o000), ("blind", 0o711), ("still", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
        (tmp_path / name).chmod(mode)
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)
    closed, blind, still = [await root.sub(name) for name in ("closed", "blind", "still")]
    unprivileged()
    assert bytes(await (await root.open("open", OpenFlags.WRITE)).read(0, 1)) == b""
    assert (await blind.lookup("f")).name == "f"
    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: root.open("secret"),
        lambda: root.open("fixed", OpenFlags.WRITE),
        lambda: closed.lookup("f"),
        lambda: closed.list(),
        lambda: blind.list(),
    ]
    if os.getuid() == 0:  # the nodes are somebody else's
        refused += [
            lambda: still.create("new"),
            lambda: still.remove("f"),
            lambda: still.rename("f", still, "g"),
            lambda: root.set_attributes(Attributes(executable=True), "open"),
        ]
    for act in refused:
        with pytest.raises(Denied):
            await act()


# Read-only -------------------------------------------------------------------------------------


async def test_a_read_only_volume_asks_the_host_for_nothing_that_changes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    volume = await HostVolume.open(str(tmp_path), read_only=True)
    root, stamp = volume.root, tmp_path.stat().st_ctime_ns
    assert volume.read_only
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: root.open("f", OpenFlags.WRITE),
        lambda: root.open("missing", WRITE_CREATE),
        lambda: root.open("missing", OpenFlags.WRITE),
        lambda: root.create("g"),
        lambda: root.mkdir("g"),
        lambda: root.remove("missing"),
        lambda: root.rename("f", root, "g"),
        lambda: root.symlink("g", "f"),
        lambda: root.link("f", root, "g"),
        lambda: root.set_attributes(Attributes(modified=1), "f"),
        lambda: root.set_attributes(Attributes(modified=1)),
    ]
    for change in changes:
        with pytest.raises(ReadOnly):
            await change()
    file = await root.open("f")
    await file.sync()
    await root.sync()
    with pytest.raises(ReadOnly):
        await file.set_attributes(Attributes(executable=True))
    assert tmp_path.stat().st_ctime_ns == stamp
    await volume.close()


# The life of descriptors -----------------------------------------------------------------------


async def test_closing_the_volume_closes_everything_once(tmp_path: Path) -> None:
    before = open_descriptors()
    volume = await HostVolume.open(str(tmp_path))
    root = volume.root
    directory = await root.mkdir("d")
    file = await directory.create("f")
    await volume.close()
    assert open_descriptors() == before
    await volume.close()
    await file.close()
    later: list[Callable[[], Awaitable[object]]] = [
        volume.sync,
        volume.usage,
        lambda: volume.handle_of(directory),
        lambda: volume.node_of(b"x"),
        root.stat,
        root.list,
        lambda: directory.sub("x"),
        lambda: directory.open("f"),
        lambda: directory.create("x"),
        file.stat,
        file.size,
        file.sync,
        lambda: file.write(0, b"x"),
        lambda: file.read(0, 1),
    ]
    for call in later:
        with pytest.raises(Closed):
            await call()
    assert open_descriptors() == before


async def test_failures_leave_nothing_open(root: DirectoryNode, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("f")
    before = open_descriptors()
    for name, error in (("d", IsDirectory), ("l", Unsupported), ("nothing", NotFound)):
        for flags in (OpenFlags.READ, OpenFlags.WRITE):
            with pytest.raises(error):
                await root.open(name, flags)
    with pytest.raises(NotDirectory):
        await root.sub("f")
    assert open_descriptors() == before


async def test_a_directory_that_cannot_be_held_is_not_made(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(hostops, "open_directory", refuse)
    with pytest.raises(Busy):
        await root.mkdir("d")
    assert os.listdir(tmp_path) == []


CANCELLED: list[Callable[[DirectoryNode], Awaitable[object]]] = [
    lambda root: root.open("f"),
    lambda root: root.open("f", OpenFlags.WRITE),
    lambda root: root.open("new", WRITE_CREATE),
    lambda root: root.create("new"),
    lambda root: root.mkdir("new"),
    lambda root: root.sub("d"),
    lambda root: root.list(),
    lambda root: root.lookup("l"),
    lambda root: root.rename("f", root, "f", RenameMode.EXCHANGE),
]


@pytest.mark.parametrize("openat2", [True, False])
@pytest.mark.parametrize("act", CANCELLED)
async def test_a_cancelled_call_leaves_nothing_open_and_nothing_half_done(
    root: DirectoryNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[DirectoryNode], Awaitable[object]],
    openat2: bool,
) -> None:
    monkeypatch.setattr(hostfd.support(), "openat2", openat2)
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("f")
    await root.list()  # the threads of the pool and their descriptors exist
    before = open_descriptors()
    for turns in range(12):
        task = asyncio.ensure_future(_awaited(act, root))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        del task
        assert await descriptors_settle(before)
        with suppress(StorageError):
            await root.remove("new")
    assert sorted(os.listdir(tmp_path)) == ["d", "f", "l"]


async def _awaited(act: Callable[[DirectoryNode], Awaitable[object]], root: DirectoryNode) -> None:
    await act(root)


async def test_many_calls_cancelled_at_random_times(root: DirectoryNode, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    await root.list()
    before = open_descriptors()

    async def use(number: int) -> None:
        directory = await root.mkdir(f"d{number}")
        file = await directory.create("f")
        await file.write(0, b"x" * 1000)
        await (await root.open("f")).read(0, 10_000)
        await directory.rename("f", root, f"f{number}")

    for round_ in range(10):
        with anyio.move_on_after(0.0005 * round_):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(use, round_ * 100 + number)
    assert await descriptors_settle(before)
