"""Filesystems that can less than PyFilesystem2 promises, or tell what makes no sense."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fs import errors
from fs.base import FS
from fs.ftpfs import FTPFS
from fs.info import Info
from fs.memoryfs import MemoryFS
from fs.osfs import OSFS
from fs.path import abspath, join, normpath
from fs.wrapfs import WrapFS

from capstore.backers.node import Attributes, FileNode, NodeKind, OpenFlags, Provenance
from capstore.backers.pyfs import PyfsVolume
from capstore.schema.errors import (
    AlreadyExists,
    Denied,
    InvalidName,
    NoSpace,
    NotFound,
    StorageError,
    StorageIOError,
    Unsupported,
)
from tests.backers.spellings import FINDING, MAKING, hiding
from tests.contract.harness import content_of, entries_of, names_of, populate, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
DATA = bytes(range(256)) * 40


class Folding(WrapFS[FS]):
    """A tree in memory in which case does not count, nor dots at the end, as in FAT."""

    def __init__(self) -> None:
        super().__init__(MemoryFS())

    def delegate_path(self, path: str) -> tuple[FS, str]:
        inner, found = self.delegate_fs(), "/"
        for name in abspath(normpath(path)).split("/")[1:]:
            listed = inner.listdir(found) if inner.isdir(found) else []
            kept = name.rstrip(".")
            found = join(found, {each.lower(): each for each in listed}.get(kept.lower(), kept))
        return inner, found

    def getmeta(self, namespace: str = "standard") -> Mapping[str, object]:
        return {**super().getmeta(namespace), "case_insensitive": True}


class Plain(FS):
    """The methods that PyFilesystem2 demands, and not one more, over a tree in memory."""

    def __init__(self) -> None:
        FS.__init__(self)
        self.inner = MemoryFS()

    def getinfo(self, path, namespaces=None):  # type: ignore[no-untyped-def]
        return self.inner.getinfo(path, namespaces)

    def listdir(self, path):  # type: ignore[no-untyped-def]
        return self.inner.listdir(path)

    def makedir(self, path, permissions=None, recreate=False):  # type: ignore[no-untyped-def]
        self.inner.makedir(path, recreate=recreate)
        return self.opendir(path)

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        return self.inner.openbin(path, mode)

    def remove(self, path):  # type: ignore[no-untyped-def]
        self.inner.remove(path)

    def removedir(self, path):  # type: ignore[no-untyped-def]
        self.inner.removedir(path)

    def setinfo(self, path, info):  # type: ignore[no-untyped-def]
        self.inner.setinfo(path, info)


class WritesBack(Plain):
    """Downloads a file when it is opened, and uploads it to the same path when it is closed."""

    failure: Exception | None = None

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        filesystem = self
        with self.inner.openbin(path, "r" if "r" in mode else mode) as target:
            held = target.read() if "r" in mode else b""

        class Local(io.BytesIO):
            def close(self) -> None:
                if not self.closed and mode not in ("r", "rb"):
                    if filesystem.failure is not None:
                        super().close()
                        raise filesystem.failure
                    filesystem.inner.writebytes(path, self.getvalue())
                super().close()

        return Local(held)


class Server(Plain, FTPFS):
    """An FTP server in memory: writes behind the end of a file, and forgets what is behind."""

    def __init__(self) -> None:
        Plain.__init__(self)

    getmeta = FS.getmeta
    scandir = FS.scandir
    upload = FS.upload
    create = FS.create
    close = FS.close

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        assert mode in ("r", "rb", "a", "w", "wb", "x"), "a mode that destroys"
        return self.inner.openbin(path, mode)


class _Forward(io.RawIOBase):
    """A file that is read from its beginning to its end."""

    def __init__(self, data: bytes, *, honest: bool) -> None:
        self._data = io.BytesIO(data)
        self._honest = honest

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._honest


class Forward(Plain):
    """Files do not seek; `honest` ones say so."""

    honest = True

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        if mode != "r":
            return self.inner.openbin(path, mode)
        return _Forward(self.inner.readbytes(path), honest=self.honest)


class Pretending(Forward):
    honest = False


@asynccontextmanager
async def opened(filesystem: FS) -> AsyncIterator[PyfsVolume]:
    volume = await PyfsVolume.open(filesystem)
    yield volume
    await volume.close()


async def everything(file: FileNode) -> bytes:
    return bytes(await file.read(0, await file.size()))


@pytest.mark.parametrize("make", [Plain, WritesBack, Server, Forward])
async def test_what_all_can_do(make: Callable[[], FS]) -> None:
    async with opened(make()) as volume:
        root = volume.root
        await populate(root, {"d": {"inner": b"x"}, "e": {}})
        file = await root.create("f")
        for at in range(5):
            await file.write(at * len(DATA), DATA)
            assert (await root.lookup("f")).stat.size == (at + 1) * len(DATA)
        assert await file.append(b"end") == 5 * len(DATA)
        assert await everything(file) == DATA * 5 + b"end"
        assert bytes(await file.read(10**9, 1)) == b""
        reader = await root.open("f")
        await file.append(b"more")
        assert bytes(await reader.read(5 * len(DATA), 100)) == b"endmore"
        assert {entry.name: entry.stat.size for entry in await entries_of(root)}["f"] == 51_207
        # Open files follow what is renamed through the volume.
        await root.rename("f", await root.sub("d"), "g")
        await file.append(b"!")
        assert bytes(await reader.read(5 * len(DATA), 100)) == b"endmore!"
        assert await names_of(root) == ["d", "e"]
        await file.truncate(0)
        await file.truncate(10)
        assert await everything(reader) == bytes(10)
        node_id = (await file.stat()).node_id
        d = await root.sub("d")
        await d.remove("g")
        assert (await file.stat()).link_count == 0
        assert (await reader.stat()).node_id == node_id
        await (await d.create("g")).write(0, b"another")
        for gone in (reader.read(0, 1), file.write(0, b"x"), file.truncate(0), file.size()):
            with pytest.raises(NotFound):
                await gone
        await file.close()
        assert await content_of(d, "g") == b"another"
        # What it has no means for.
        with pytest.raises(Unsupported):
            await root.rename("d", root, "new")
        assert await tree_of(root) == {"d": {"inner": b"x", "g": b"another"}, "e": {}}


@pytest.mark.parametrize("make", [Plain, WritesBack])
async def test_writing_in_place(make: Callable[[], FS]) -> None:
    async with opened(make()) as volume:
        file = await volume.root.create("f")
        await file.write(5000, DATA)
        await file.write(10, b"here")
        await file.write(20_000, b"there")
        await file.truncate(20_003)
        whole = bytearray(5000) + DATA
        whole[10:14] = b"here"
        whole += bytes(20_000 - len(whole)) + b"the"
        assert await everything(file) == whole
        assert await content_of(volume.root, "f") == whole


async def test_a_server_is_not_written_within_a_file() -> None:
    async with opened(Server()) as volume:
        file = await volume.root.create("f")
        await file.write(0, DATA)
        for harmful in (file.write(5, b"x"), file.write(0, DATA), file.truncate(5)):
            with pytest.raises(Unsupported):
                await harmful
        await file.write(len(DATA) + 5, b"x")
        assert await everything(file) == DATA + bytes(5) + b"x"
        await (await volume.root.open("f", WRITE | OpenFlags.TRUNCATE)).write(0, b"new")
        assert await everything(file) == b"new"


@pytest.mark.parametrize("make", [Forward, Pretending])
async def test_files_that_do_not_seek(make: Callable[[], Forward]) -> None:
    filesystem = make()
    filesystem.inner.writebytes("f", DATA)
    async with opened(filesystem) as volume:
        file = await volume.root.open("f")
        for offset, length in [(0, 5000), (5000, 10), (9000, 10**6), (3, 4), (2500, 2500), (0, 1)]:
            assert bytes(await file.read(offset, length)) == DATA[offset : offset + length]
        assert bytes(await file.read(len(DATA), 1)) == b""


async def test_a_failure_to_finish_is_told_to_who_wrote() -> None:
    filesystem = WritesBack()
    async with opened(filesystem) as volume:
        file = await volume.root.create("f")
        for tell in (file.sync, lambda: file.append(b"x"), lambda: file.truncate(0), file.close):
            await file.write(0, b"lost")
            filesystem.failure = errors.InsufficientStorage()
            # Who looks makes it finish, and is not who has to know.
            assert (await volume.root.lookup("f")).stat.size == 0
            filesystem.failure = None
            with pytest.raises(NoSpace):
                await tell()
        assert await content_of(volume.root, "f") == b""
        file = await volume.root.open("f", WRITE)
        await file.write(0, b"lost")
        filesystem.failure = errors.InsufficientStorage()
        with pytest.raises(NoSpace):
            await file.close()
        await (await volume.root.open("f", WRITE)).write(0, b"lost")
        with pytest.raises(NoSpace):
            await volume.close()


class Short(Plain):
    """A connection that is lost after some bytes, so many times."""

    losses = 1

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        data = self.inner.readbytes(path)
        if self.losses:
            self.losses -= 1
            data = data[:5000]
        return io.BytesIO(data)


@pytest.mark.parametrize(("losses", "whole"), [(0, True), (1, True), (2, False), (9, False)])
async def test_a_file_does_not_end_early(losses: int, whole: bool) -> None:
    filesystem = Short()
    filesystem.inner.writebytes("f", DATA)
    filesystem.losses = losses
    async with opened(filesystem) as volume:
        file = await volume.root.open("f")
        if whole:
            assert await everything(file) == DATA
            return
        with pytest.raises(StorageIOError):
            await everything(file)


# Moving by copying --------------------------------------------------------------------------------


async def test_a_move_that_copies_keeps_the_time() -> None:
    filesystem = Plain()
    async with opened(filesystem) as volume:
        root = volume.root
        await populate(root, {"f": DATA, "g": b"old", "d": {}})
        await root.set_attributes(Attributes(modified=10**18), "f")
        before = (await root.lookup("f")).stat
        await root.rename("f", root, "g")
        after = (await root.lookup("g")).stat
        assert (after.modified, after.node_id) == (10**18, before.node_id)
        assert await tree_of(root) == {"d": {}, "g": DATA}


async def test_a_move_that_fails_leaves_no_copy() -> None:
    class Sticky(Plain):
        def remove(self, path):  # type: ignore[no-untyped-def]
            if path == "/f":
                raise errors.PermissionDenied(path)
            super().remove(path)

    async with opened(Sticky()) as volume:
        root = volume.root
        await populate(root, {"f": b"x", "d": {}})
        with pytest.raises(Denied):
            await root.rename("f", await root.sub("d"), "g")
        assert await tree_of(root) == {"d": {}, "f": b"x"}


# Writing that fails -------------------------------------------------------------------------------


class Full(Plain):
    """Takes so many bytes, a few at a time, and tells nothing of how many where `silent`."""

    room = 10**9
    silent = False

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        filesystem, inner = self, self.inner.openbin(path, mode)

        class Limited(io.RawIOBase):
            def write(self, data: bytes) -> int | None:  # type: ignore[override]
                if filesystem.silent:
                    inner.write(data)
                    return None
                size = min(7, len(data), filesystem.room)
                filesystem.room -= size
                return inner.write(data[:size])

            def seek(self, offset: int, whence: int = 0) -> int:
                return inner.seek(offset, whence)

            def truncate(self, size: int | None = None) -> int:
                return inner.truncate(size)

            def read(self, size: int = -1) -> bytes:
                return inner.read(size)

            def seekable(self) -> bool:
                return True

        return Limited()


async def test_a_write_that_fails_leaves_the_file_as_it_was() -> None:
    filesystem = Full()
    async with opened(filesystem) as volume:
        file = await volume.root.create("f")
        await file.write(0, b"0123456789" * 3)
        filesystem.room = 20
        for failing in (file.write(25, b"x" * 40), file.append(b"y" * 30), file.truncate(100)):
            filesystem.room = 20
            with pytest.raises(StorageIOError):
                await failing
            assert await everything(file) == b"0123456789" * 3
        filesystem.room, filesystem.silent = 10**9, True
        await file.write(30, b"more")
        assert await everything(file) == b"0123456789" * 3 + b"more"


# What makes no sense ------------------------------------------------------------------------------


class Telling(Plain):
    """Tells `told` of everything but the root."""

    told: dict[str, object] = {}  # noqa: RUF012 - set by the test
    names: tuple[str, ...] = ("f",)

    def scandir(self, path, namespaces=None, page=None):  # type: ignore[no-untyped-def]
        for name in self.names:
            yield Info({"basic": {"name": name, "is_dir": False}, **self.told})

    def getinfo(self, path, namespaces=None):  # type: ignore[no-untyped-def]
        if path == "/":
            return Info({"basic": {"name": "", "is_dir": True}})
        return Info({"basic": {"name": path[1:], "is_dir": False}, **self.told})


INFINITE = float("inf")


@pytest.mark.parametrize("size", [None, -1, "5", 1.5, 2**63, 2**100, float("nan")])
async def test_sizes_that_make_no_sense(size: object) -> None:
    filesystem = Telling()
    filesystem.told = {"details": {"size": size, "type": 2}}
    async with opened(filesystem) as volume:
        assert (await volume.root.lookup("f")).stat.size == 0


@pytest.mark.parametrize("time", [None, "now", INFINITE, -INFINITE, float("nan"), 1e300, 2**64])
async def test_times_that_make_no_sense(time: object) -> None:
    filesystem = Telling()
    filesystem.told = {"details": {"modified": time, "created": time}}
    async with opened(filesystem) as volume:
        stat = (await volume.root.lookup("f")).stat
        assert (stat.modified, stat.created) == (0, 0)
        assert stat.provenance is Provenance.UNKNOWN


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({}, NodeKind.FILE),
        ({"details": {"type": 0}}, NodeKind.FILE),
        ({"details": {"type": 2}}, NodeKind.FILE),
        ({"details": {"type": 3}}, NodeKind.SPECIAL),
        ({"details": {"type": 7}}, NodeKind.SPECIAL),
        ({"details": {"type": 99}}, NodeKind.SPECIAL),
        ({"details": {"type": "file"}}, NodeKind.SPECIAL),
        ({"details": None, "access": [], "link": 5}, NodeKind.FILE),
        ({"link": {"target": "there"}}, NodeKind.SYMLINK),
        ({"link": {"target": None}}, NodeKind.FILE),
        ({"basic": {"is_dir": True, "name": "f"}}, NodeKind.DIRECTORY),
        ({"access": {"permissions": 5}}, NodeKind.FILE),
    ],
)
async def test_kinds(told: dict[str, object], kind: NodeKind) -> None:
    filesystem = Telling()
    filesystem.told = told
    async with opened(filesystem) as volume:
        entry = await volume.root.lookup("f")
        assert entry.stat.kind is kind
        assert entry.target == ("there" if kind is NodeKind.SYMLINK else None)
        if kind in (NodeKind.SPECIAL, NodeKind.SYMLINK):
            with pytest.raises(Unsupported):
                await volume.root.open("f")
            with pytest.raises(AlreadyExists):
                await volume.root.create("f")


async def test_what_is_no_name_is_not_listed() -> None:
    long = "n" * 300
    filesystem = Telling()
    filesystem.names = ("", ".", "..", "a/b", "/", "a\0b", "\ud800", "ok", "a\udcff", long)
    async with opened(filesystem) as volume:
        # One that is too long is told, so that a copy does not look whole that is not.
        assert await names_of(volume.root) == ["a\uefff", long, "ok"]
        with pytest.raises(StorageError):
            await volume.root.open(long)


async def test_executable_where_it_is_set() -> None:
    class Permitting(Plain):
        permissions = ("u_r", "u_w", "g_r")

        def getinfo(self, path, namespaces=None):  # type: ignore[no-untyped-def]
            raw = dict(super().getinfo(path, namespaces).raw)
            access = {"permissions": list(self.permissions), "_write": ["permissions"]}
            return Info({**raw, "access": access})

        def setinfo(self, path, info):  # type: ignore[no-untyped-def]
            self.permissions = tuple(info["access"]["permissions"])

    filesystem = Permitting()
    async with opened(filesystem) as volume:
        file = await volume.root.create("tool", executable=True)
        assert (await file.stat()).executable
        assert filesystem.permissions == ("g_r", "g_x", "u_r", "u_w", "u_x")
        await volume.root.set_attributes(Attributes(executable=False), "tool")
        assert filesystem.permissions == ("g_r", "u_r", "u_w")
        assert not (await file.stat()).executable


async def test_a_reader_that_lies_about_how_much_it_read() -> None:
    class Lying(Plain):
        def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
            class Much(io.BytesIO):
                def read(self, size: int | None = -1) -> bytes:
                    return super().read()

            return Much(self.inner.readbytes(path))

    filesystem = Lying()
    filesystem.inner.writebytes("f", DATA)
    async with opened(filesystem) as volume:
        file: FileNode = await volume.root.open("f")
        with pytest.raises(StorageIOError):
            await file.read(0, 10)


async def test_a_reader_goes_on_where_writing_is_denied() -> None:
    class Denying(MemoryFS):
        def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
            if "+" in mode:
                raise errors.PermissionDenied(path)
            return super().openbin(path, mode, buffering, **options)

    filesystem = Denying()
    filesystem.writebytes("f", DATA)
    async with opened(filesystem) as volume:
        file = await volume.root.open("f")
        with pytest.raises(Denied):
            await volume.root.open("f", WRITE)
        await volume.root.remove("f")
        assert await everything(file) == DATA


# Where case does not count ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted((FINDING | MAKING).keys() - {"link"}))
async def test_another_spelling_is_another_name(name: str) -> None:
    call = (FINDING | MAKING)[name]
    filesystem = Folding()
    filesystem.writebytes("/secret", DATA)
    filesystem.writebytes("/own", b"own")
    assert filesystem.readbytes("/SECRET") == DATA
    expected = NotFound if name in FINDING else AlreadyExists
    async with opened(filesystem) as volume:
        for directory in (volume.root, hiding(volume)):
            with pytest.raises(expected):
                await call(directory, "Secret")
        with pytest.raises(NotFound):
            await call(hiding(volume), "secret")
        assert filesystem.readbytes("/secret") == DATA
        assert sorted(filesystem.listdir("/")) == ["own", "secret"]


@pytest.mark.parametrize("name", sorted(name for name in MAKING if not name.startswith("rename")))
async def test_what_would_be_listed_otherwise_is_not_made(name: str) -> None:
    filesystem = Folding()
    filesystem.writebytes("/own", b"own")
    async with opened(filesystem) as volume:
        with pytest.raises(InvalidName):
            await MAKING[name](volume.root, "New.")
        assert filesystem.listdir("/") == ["own"]
        assert await content_of(volume.root, "own") == b"own"


async def test_a_directory_that_cannot_be_listed(unprivileged: Callable[[], None]) -> None:
    # Nobody may enter the folder of a test of root's.
    with tempfile.TemporaryDirectory() as folder:
        blind = Path(folder) / "blind"
        blind.mkdir()
        for name in ("file", "12"):
            (blind / name).write_bytes(DATA)
        blind.chmod(0o711)
        Path(folder).chmod(0o755)
        unprivileged()
        async with opened(OSFS(folder)) as volume:
            directory = await volume.root.sub("blind")
            for name in ("file", "12"):
                assert await content_of(directory, name) == DATA
            if os.getuid() == 0:
                with pytest.raises(Denied):
                    await directory.list()
        os.seteuid(os.getuid())
