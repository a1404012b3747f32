"""Nothing outside a host directory is seen, made, changed or removed through it.

Each test runs with openat2 and with the fallback for kernels without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from capstore.backers import hostfd
from capstore.backers.hostdir import HostVolume
from capstore.backers.node import Attributes, DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    NotDirectory,
    NotFound,
    StorageError,
    Unsupported,
)
from tests.backers.hosts import exchange, meanwhile

pytestmark = pytest.mark.anyio

SECRET = b"the secret outside"
# How long a race goes on; longer in the long tests.
RACES = pytest.mark.parametrize("seconds", [0.3, pytest.param(5.0, marks=pytest.mark.long)])
WRITE_CREATE = OpenFlags.WRITE | OpenFlags.CREATE


@pytest.fixture(params=["openat2", "fallback"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fallback":
        monkeypatch.setattr(hostfd.support(), "openat2", False)
    elif not hostfd.support().openat2:
        pytest.skip("this kernel has no openat2")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    (folder / "deep").mkdir()
    return folder


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


@pytest.fixture
async def root(inside: Path, outside: Path) -> AsyncIterator[DirectoryNode]:
    volume = await HostVolume.open(str(inside))
    yield volume.root
    await volume.close()
    assert untouched(outside)


def untouched(outside: Path) -> bool:
    found = sorted(path.name for path in outside.rglob("*"))
    return found == ["deep", "secret"] and (outside / "secret").read_bytes() == SECRET


# Links -----------------------------------------------------------------------------------------

LINKS: dict[str, str] = {
    "absolute to a file": "{outside}/secret",
    "absolute to a directory": "{outside}",
    "relative to a file": "../outside/secret",
    "relative to a directory": "../outside",
    "up and down again": "sub/../../outside/secret",
    "nested": "other/secret",
    "chain": "other",
    "loop": "link",
    "longer loop": "back",
    "dangling": "nowhere",
    "dangling outside": "../outside/new",
    "root": "/",
    "parent": "..",
    "self": ".",
    "magic: root": "/proc/self/root",
    "magic: working directory": "/proc/self/cwd",
    "magic: descriptor": "/proc/self/fd/0",
    "inside": "sub",
    "trailing slash": "sub/",
}

Act = Callable[[DirectoryNode], Awaitable[object]]

# What follows no link, and what it answers instead.
REFUSED: dict[str, tuple[Act, type[StorageError]]] = {
    "open": (lambda root: root.open("link"), Unsupported),
    "open to write": (lambda root: root.open("link", OpenFlags.WRITE), Unsupported),
    "open to create": (lambda root: root.open("link", WRITE_CREATE), Unsupported),
    "open to truncate": (
        lambda root: root.open("link", OpenFlags.WRITE | OpenFlags.TRUNCATE),
        Unsupported,
    ),
    "open exclusively": (
        lambda root: root.open("link", WRITE_CREATE | OpenFlags.EXCLUSIVE),
        AlreadyExists,
    ),
    "create": (lambda root: root.create("link"), AlreadyExists),
    "mkdir": (lambda root: root.mkdir("link"), AlreadyExists),
    "sub": (lambda root: root.sub("link"), NotDirectory),
    "remove a directory": (lambda root: root.remove("link", Expect.DIRECTORY), NotDirectory),
    "symlink": (lambda root: root.symlink("link", "x"), AlreadyExists),
    "link to": (lambda root: root.link("own", root, "link"), AlreadyExists),
    "executable": (
        lambda root: root.set_attributes(Attributes(executable=True), "link"),
        Unsupported,
    ),
    "rename, not replacing": (
        lambda root: root.rename("own", root, "link", RenameMode.NO_REPLACE),
        AlreadyExists,
    ),
}


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS)
async def test_no_method_follows_a_link(
    root: DirectoryNode, inside: Path, outside: Path, target: str
) -> None:
    target = target.format(outside=outside)
    (inside / "sub").mkdir()
    (inside / "own").write_bytes(b"own")
    (inside / "other").symlink_to(outside)
    (inside / "back").symlink_to("link")
    (inside / "link").symlink_to(target)
    for act, error in REFUSED.values():
        with pytest.raises(error):
            await act(root)
    entry = await root.lookup("link")
    assert (entry.stat.kind, entry.target) == (NodeKind.SYMLINK, target)
    assert [e.target for e in (await root.list()).entries if e.name == "link"] == [target]
    await root.set_attributes(Attributes(modified=10**18), "link")
    assert (inside / "link").lstat().st_mtime_ns == 10**18
    await root.link("link", root, "second")
    assert (await root.lookup("second")).target == target
    await root.rename("link", root, "third")
    await root.rename("own", root, "third", RenameMode.EXCHANGE)
    await root.rename("third", root, "second")  # the file replaces the link
    assert (inside / "second").read_bytes() == b"own"
    await root.remove("own")
    assert not (inside / "own").is_symlink()


async def test_a_file_with_a_name_outside_is_data_inside(
    root: DirectoryNode, inside: Path, tmp_path: Path
) -> None:
    # A hard link is no reference but the file itself: who makes one inside puts the file inside.
    (tmp_path / "shared").write_bytes(b"shared")
    os.link(tmp_path / "shared", inside / "hard")
    file = await root.open("hard")
    assert bytes(await file.read(0, 10)) == b"shared"
    assert (await file.stat()).link_count == 2


# Names -----------------------------------------------------------------------------------------

ESCAPES = [
    "..",
    ".",
    "",
    "/",
    "../outside",
    "../outside/secret",
    "sub/..",
    "sub/../..",
    "/etc/passwd",
    "sub/file",
    "..\0",
    "secret\0",
    "\0",
]
NAMING: list[Callable[[DirectoryNode, str], Awaitable[object]]] = [
    lambda root, name: root.lookup(name),
    lambda root, name: root.open(name),
    lambda root, name: root.open(name, WRITE_CREATE),
    lambda root, name: root.create(name),
    lambda root, name: root.mkdir(name),
    lambda root, name: root.sub(name),
    lambda root, name: root.remove(name),
    lambda root, name: root.remove(name, Expect.DIRECTORY),
    lambda root, name: root.symlink(name, "x"),
    lambda root, name: root.link(name, root, "new"),
    lambda root, name: root.link("own", root, name),
    lambda root, name: root.rename(name, root, "new"),
    lambda root, name: root.rename("own", root, name),
    lambda root, name: root.rename(name, root, "own", RenameMode.EXCHANGE),
    lambda root, name: root.set_attributes(Attributes(modified=0), name or "/"),
]


@pytest.mark.parametrize("name", ESCAPES)
async def test_no_name_leads_upwards_or_down_two(
    root: DirectoryNode, inside: Path, name: str
) -> None:
    (inside / "sub").mkdir()
    (inside / "sub" / "file").write_bytes(b"x")
    (inside / "own").write_bytes(b"own")
    for act in NAMING:
        with pytest.raises(InvalidName):
            await act(root, name)
    assert sorted(os.listdir(inside)) == ["own", "sub"]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"../a"])
def test_the_call_layer_refuses_what_is_no_segment(inside: Path, name: bytes) -> None:
    above = os.open(inside, os.O_PATH)
    for call in (
        lambda: hostfd.open_at(above, name, os.O_PATH),
        lambda: hostfd.open_at(above, name, os.O_RDWR | os.O_CREAT, 0o600),
        lambda: hostfd.stat_at(above, name),
        lambda: hostfd.rename_at(above, name, above, b"x", 0),
        lambda: hostfd.rename_at(above, b"x", above, name, hostfd.RENAME_EXCHANGE),
    ):
        with pytest.raises(OSError, match="single segment"):
            call()
    os.close(above)


def test_openat2_refuses_an_escape_that_got_past_the_checks(
    inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hostfd.support().openat2:
        pytest.skip("it is the fallback's turn")
    monkeypatch.setattr(hostfd, "check_segment", lambda name: name)
    (inside / "link").symlink_to(outside)
    above = os.open(inside, os.O_PATH)
    for name in (b"../outside/secret", b"..", b"/etc/passwd", b"link/secret"):
        with pytest.raises(OSError, match=r"Invalid cross-device link|symbolic links"):
            hostfd.open_at(above, name, os.O_PATH)
    os.close(above)


@pytest.mark.parametrize(
    "place", [[".."], ["sub", ".."], ["../outside"], ["/"], [""], ["."], ["a\0b"]]
)
async def test_no_handle_leads_upwards(inside: Path, place: list[str]) -> None:
    volume = await HostVolume.open(str(inside))
    word = (await volume.handle_of(volume.root)).replace(
        b"[]", repr(place).replace("'", '"').replace("\\x00", "\\u0000").encode()
    )
    with pytest.raises(InvalidArgument):
        await volume.node_of(word)
    await volume.close()


# Races -----------------------------------------------------------------------------------------


async def race(act: Callable[[], Awaitable[None]], seconds: float) -> int:
    """Does `act` for a while; counts how often it got through, which may take a while longer."""
    through = 0
    until = time.monotonic() + seconds
    while time.monotonic() < (until if through else until + 10):
        with suppress(StorageError):
            await act()
            through += 1
    return through


@RACES
async def test_a_directory_that_turns_into_a_link_in_mid_walk(
    root: DirectoryNode, inside: Path, outside: Path, seconds: float
) -> None:
    (inside / "dir").mkdir()
    (inside / "dir" / "secret").write_bytes(b"inside")
    (inside / "trap").symlink_to(outside)

    async def walk() -> None:
        directory = await root.sub("dir")
        for entry in (await directory.list()).entries:
            assert entry.name == "secret"
        file = await directory.open("secret", OpenFlags.WRITE)
        assert bytes(await file.read(0, 100)) == b"inside"
        await file.write(0, b"inside")
        await (await directory.create("deeper")).close()
        await directory.remove("deeper")

    with meanwhile(lambda: exchange(inside / "dir", inside / "trap")):
        assert await race(walk, seconds) > 0
    assert untouched(outside)


@RACES
async def test_a_file_that_turns_into_a_link_while_it_is_opened(
    root: DirectoryNode, inside: Path, outside: Path, seconds: float
) -> None:
    (inside / "file").write_bytes(b"inside")
    (inside / "trap").symlink_to(outside / "secret")

    async def use() -> None:
        reader = await root.open("file")
        assert bytes(await reader.read(0, 100)) in (b"inside", b"")
        writer = await root.open("file", WRITE_CREATE | OpenFlags.TRUNCATE)
        await writer.write(0, b"inside")
        await root.set_attributes(Attributes(modified=1), "file")
        entry = await root.lookup("file")
        assert (entry.stat.kind is NodeKind.SYMLINK) == (entry.target is not None)

    with meanwhile(lambda: exchange(inside / "file", inside / "trap")):
        assert await race(use, seconds) > 0
    assert untouched(outside)
    assert (outside / "secret").stat().st_mtime_ns != 1


@RACES
async def test_a_file_that_turns_into_a_fifo_while_it_is_opened(
    root: DirectoryNode, inside: Path, seconds: float
) -> None:
    (inside / "file").write_bytes(b"inside")
    os.mkfifo(inside / "fifo")

    async def use() -> None:
        reader = await root.open("file")
        assert bytes(await reader.read(0, 100)) == b"inside"
        await (await root.open("file", OpenFlags.WRITE)).close()

    with meanwhile(lambda: exchange(inside / "file", inside / "fifo")):
        assert await race(use, seconds) > 0


@RACES
async def test_a_name_that_comes_and_goes_while_it_is_made(
    root: DirectoryNode, inside: Path, outside: Path, seconds: float
) -> None:
    def come_and_go() -> None:
        (inside / "new").symlink_to(outside / "made")
        (inside / "new").unlink(missing_ok=True)

    def step() -> None:
        with suppress(FileExistsError):
            come_and_go()

    async def make() -> None:
        file = await root.open("new", WRITE_CREATE)
        await file.write(0, b"inside")
        await root.remove("new")

    with meanwhile(step):
        assert await race(make, seconds) > 0
    assert untouched(outside)


async def test_a_directory_that_is_moved_away_stays_with_its_holder(
    root: DirectoryNode, inside: Path, tmp_path: Path
) -> None:
    (inside / "a" / "b").mkdir(parents=True)
    held = await root.sub("a")
    os.rename(inside / "a", tmp_path / "moved")
    with pytest.raises(NotFound):
        await root.sub("a")
    assert [entry.name for entry in (await held.list()).entries] == ["b"]
    with pytest.raises(InvalidName):
        await held.lookup("..")


async def test_an_outsider_cannot_be_named_by_a_handle(
    inside: Path, outside: Path, tmp_path: Path
) -> None:
    volume = await HostVolume.open(str(inside))
    (inside / "a").mkdir()
    held = await volume.root.sub("a")
    word = await volume.handle_of(held)
    os.rename(inside / "a", tmp_path / "moved")
    with pytest.raises(NotFound):
        await volume.handle_of(held)
    (inside / "a").symlink_to(tmp_path / "moved")
    with pytest.raises(NotFound):
        await volume.node_of(word)
    await volume.close()
