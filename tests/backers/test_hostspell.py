"""Host directories in which case does not count: an entry is found by the name that is listed."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from capstore.backers import hostspell
from capstore.backers.hostdir import HostVolume
from capstore.backers.hostfd import OwnedFd, filesystem_of
from capstore.backers.node import DirectoryNode
from capstore.backers.spec import open_volume
from capstore.schema.errors import AlreadyExists, Denied, NotFound
from tests.backers.spellings import FINDING, MAKING, Call, content_of, hiding, names_of, write

pytestmark = pytest.mark.anyio

CONTENT = b"what it was"
IMAGE_BYTES = 4 << 20


def _run(*command: str | Path) -> str:
    return subprocess.run(
        [str(each) for each in command], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def exfat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An exFAT filesystem that is mounted."""
    if shutil.which("mkfs.exfat") is None or shutil.which("mount.exfat-fuse") is None:
        pytest.skip("no exFAT here")
    folder = tmp_path_factory.mktemp("exfat")
    image, at = folder / "image", folder / "at"
    at.mkdir()
    with image.open("wb") as made:
        made.truncate(IMAGE_BYTES)
    _run("mkfs.exfat", image)
    try:
        device = _run("losetup", "--find", "--show", image)
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("no loop devices for this user")
    try:
        _run("mount.exfat-fuse", device, at)
        if not at.is_mount():
            pytest.skip("no FUSE here")
        yield at
        gc.collect()
        _run("umount", at)
    finally:
        _run("losetup", "--detach", device)


@pytest.fixture
def folded(exfat: Path) -> Path:
    """An empty directory in which case does not count, but for a file called `secret`."""
    folder = exfat / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "secret").write_bytes(CONTENT)
    assert (folder / "SECRET").read_bytes() == CONTENT
    return folder


@pytest.fixture
async def volume(folded: Path) -> AsyncIterator[HostVolume]:
    volume = await HostVolume.open(str(folded))
    yield volume
    await volume.close()


@pytest.fixture
def root(volume: HostVolume) -> DirectoryNode:
    return volume.root


@pytest.mark.parametrize("call", FINDING.values(), ids=FINDING)
async def test_another_spelling_finds_nothing(
    root: DirectoryNode, folded: Path, call: Call
) -> None:
    await write(root, "own", b"own")
    with pytest.raises(NotFound):
        await call(root, "SECRET")
    assert (folded / "secret").read_bytes() == CONTENT
    assert await names_of(root) == ["own", "secret"]


@pytest.mark.parametrize("call", MAKING.values(), ids=MAKING)
async def test_nothing_is_made_in_the_place_of_another_spelling(
    root: DirectoryNode, folded: Path, call: Call
) -> None:
    await write(root, "own", b"own")
    with pytest.raises(AlreadyExists):
        await call(root, "Secret")
    assert (folded / "secret").read_bytes() == CONTENT
    assert await names_of(root) == ["own", "secret"]


@pytest.mark.parametrize("call", (FINDING | MAKING).values(), ids=FINDING | MAKING)
async def test_what_is_hidden_is_not_reached_by_another_spelling(
    volume: HostVolume, folded: Path, call: Call
) -> None:
    root, narrowed = volume.root, hiding(volume)
    await write(root, "own", b"own")
    with pytest.raises(NotFound):
        await call(narrowed, "secret")
    for name in ("SECRET", "sEcret"):
        with pytest.raises((NotFound, AlreadyExists)):
            await call(narrowed, name)
    assert (folded / "secret").read_bytes() == CONTENT
    assert await names_of(root) == ["own", "secret"]


@pytest.mark.parametrize("call", FINDING.values(), ids=FINDING)
async def test_nor_through_an_overlay(folded: Path, call: Call) -> None:
    (folded / "own").write_bytes(b"own")
    volume = await open_volume(f"overlay:memory:+dir:{folded},ro")
    try:
        narrowed = hiding(volume)
        for name in ("SECRET", "secret", "sEcret"):
            with pytest.raises(NotFound):
                await call(narrowed, name)
        assert await names_of(volume.root) == ["own", "secret"]
    finally:
        await volume.close()


async def test_names_that_come_and_go_are_found_as_they_are(
    root: DirectoryNode, folded: Path
) -> None:
    assert await content_of(root, "secret") == CONTENT
    await write(root, "new", b"made here")
    assert await content_of(root, "new") == b"made here"
    (folded / "other").write_bytes(b"made by others")
    assert await content_of(root, "other") == b"made by others"
    await root.rename("new", root, "newer")
    assert await content_of(root, "newer") == b"made here"
    with pytest.raises(NotFound):
        await root.lookup("new")
    await root.remove("newer")
    with pytest.raises(NotFound):
        await root.lookup("newer")
    made = await root.mkdir("sub")
    await write(made, "Deep", b"deep")
    assert await content_of(await root.sub("sub"), "Deep") == b"deep"
    with pytest.raises(NotFound):
        await (await root.sub("sub")).lookup("deep")


async def test_an_entry_may_get_another_spelling(root: DirectoryNode, folded: Path) -> None:
    await root.rename("secret", root, "Secret")
    assert [each.name for each in folded.iterdir()] == ["Secret"]
    assert await content_of(root, "Secret") == CONTENT
    with pytest.raises(NotFound):
        await root.lookup("secret")


async def test_a_spelling_that_others_change_is_known_a_second_later(
    root: DirectoryNode, folded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostspell, "_LIFE_SECONDS_MIN", 0.05)
    assert (await root.lookup("secret")).name == "secret"
    (folded / "secret").rename(folded / "SECRET")
    await anyio.sleep(1)
    with pytest.raises(NotFound):
        await root.lookup("secret")
    assert await content_of(root, "SECRET") == CONTENT


# Without such a filesystem ------------------------------------------------------------------------


@pytest.fixture
async def doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DirectoryNode]:
    """A directory of which nobody says whether case counts; it does."""
    monkeypatch.setattr(hostspell, "tells_apart", lambda directory: False)
    (tmp_path / "file").write_bytes(CONTENT)
    volume = await HostVolume.open(str(tmp_path))
    yield volume.root
    await volume.close()


async def test_a_directory_is_read_once_for_manynames_of(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = hostspell.read_names

    def counted(directory: int) -> list[str]:
        reads.append(directory)
        return read(directory)

    monkeypatch.setattr(hostspell, "read_names", counted)
    for number in range(100):
        await write(doubted, f"file {number}", CONTENT)
    for number in range(100):
        assert await content_of(doubted, f"file {number}") == CONTENT
        await doubted.rename(f"file {number}", doubted, f"done {number}")
        await doubted.remove(f"done {number}")
    assert len(reads) <= 5
    for number in range(5):
        with pytest.raises(NotFound):
            await doubted.lookup(f"nowhere {number}")
    assert len(reads) <= 5


async def test_a_name_that_goes_while_the_directory_is_read_is_not_believed(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelling = doubted._names.spelling  # type: ignore[attr-defined]
    read = hostspell.read_names

    def beside(directory: int) -> list[str]:
        listed = read(directory)
        spelling.gone("file")
        return listed

    monkeypatch.setattr(hostspell, "read_names", beside)
    assert await content_of(doubted, "file") == CONTENT
    assert not spelling.knows("file")


@pytest.mark.parametrize(
    ("name", "other"),
    [("file", None), ("file", "FILE"), ("caf\u00e9", "cafe\u0301"), ("12", None)],
)
async def test_where_the_directory_cannot_be_read(
    doubted: DirectoryNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    other: str | None,
) -> None:
    def refused(directory: int) -> list[str]:
        raise PermissionError(errno.EACCES, "not to be read")

    monkeypatch.setattr(hostspell, "read_names", refused)
    (tmp_path / name).write_bytes(CONTENT)
    if other is not None:
        (tmp_path / other).touch()
        with pytest.raises(Denied):
            await doubted.lookup(name)
    else:
        assert await content_of(doubted, name) == CONTENT


async def test_two_that_differ_in_case_are_two(doubted: DirectoryNode) -> None:
    await write(doubted, "FILE", b"another")
    assert await content_of(doubted, "file") == CONTENT
    assert await content_of(doubted, "FILE") == b"another"
    await doubted.rename("FILE", doubted, "file")
    assert await names_of(doubted) == ["file"]
    assert await content_of(doubted, "file") == b"another"


# What filesystems say -----------------------------------------------------------------------------

_EXT4, _XFS, _BTRFS, _FUSE = 0xEF53, 0x58465342, 0x9123683E, 0x65735546


@pytest.mark.parametrize(
    ("kind", "answer", "apart"),
    [
        (_EXT4, (0x80000).to_bytes(8, "little"), True),
        (_EXT4, (0x40080000).to_bytes(8, "little"), False),
        (_EXT4, errno.ENOTTY, True),
        (_EXT4, errno.EACCES, False),
        (_XFS, bytes(92) + (1 << 4).to_bytes(4, "little") + bytes(16), True),
        (_XFS, bytes(92) + (1 << 13).to_bytes(4, "little") + bytes(16), False),
        (_BTRFS, errno.EIO, True),
        (_FUSE, errno.EIO, False),
    ],
)
def test_what_filesystems_say(
    monkeypatch: pytest.MonkeyPatch, kind: int, answer: bytes | int, apart: bool
) -> None:
    def asked(directory: int, request: int, size: int) -> bytes:
        if isinstance(answer, int):
            raise OSError(answer, "no answer")
        assert len(answer) == size
        return answer

    monkeypatch.setattr(hostspell, "filesystem_of", lambda directory: kind)
    monkeypatch.setattr(hostspell, "_asked", asked)
    assert hostspell.tells_apart(0) is apart


def test_this_filesystem_answers(tmp_path: Path) -> None:
    """Those that tests run on tell names apart, and say so."""
    with OwnedFd(os.open(tmp_path, os.O_PATH)) as fd:
        if filesystem_of(fd.fileno()) not in (_EXT4, _XFS, _BTRFS):
            pytest.skip("a filesystem that does not say")
        assert hostspell.tells_apart(fd.fileno())
