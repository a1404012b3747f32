"""Host directories in which case does not count: an entry is found by the name that is listed."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from capstore.backers import hostspell
from capstore.backers.hostdir import HostVolume
from capstore.backers.hostfd import OwnedFd, filesystem_of
from capstore.backers.hostspell import Spelling
from capstore.backers.node import DirectoryNode
from capstore.backers.spec import open_volume
from capstore.schema.errors import AlreadyExists, Denied, NotFound, Unsupported
from tests.backers.foldings import FOLDINGS, overlayfs
from tests.backers.spellings import FINDING, MAKING, Call, content_of, hiding, names_of, write

pytestmark = pytest.mark.anyio

CONTENT = b"what it was"


@pytest.fixture(scope="module", params=FOLDINGS)
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A filesystem in which case does not count."""
    with FOLDINGS[request.param](tmp_path_factory.mktemp(request.param)) as at:
        yield at


@pytest.fixture
def folded(mounted: Path) -> Path:
    """An empty directory in which case does not count, but for a file called `secret`."""
    folder = mounted / "folder"
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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often directories were read for their names."""
    done: list[int] = []
    read = hostspell.read_names

    def counted(directory: int) -> list[str]:
        done.append(directory)
        return read(directory)

    monkeypatch.setattr(hostspell, "read_names", counted)
    return done


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


@pytest.mark.parametrize("mounted", ["exfat"], indirect=True)
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


@pytest.mark.parametrize("mounted", ["exfat"], indirect=True)
async def test_an_entry_may_get_another_spelling(root: DirectoryNode, folded: Path) -> None:
    await root.rename("secret", root, "Secret")
    assert [each.name for each in folded.iterdir()] == ["Secret"]
    assert await content_of(root, "Secret") == CONTENT
    with pytest.raises(NotFound):
        await root.lookup("secret")


@pytest.mark.parametrize("mounted", ["exfat"], indirect=True)
async def test_a_walk_has_each_entry_once_whatever_its_spelling(root: DirectoryNode) -> None:
    for name in ("a", "b", "c", "d"):
        await write(root, name, CONTENT)
    page = await root.list("", 2)
    assert [entry.name for entry in page.entries] == ["a", "b"]
    await root.rename("d", root, "D")
    await root.rename("c", root, "C")
    await root.remove("secret")
    await write(root, "Secret", b"another")
    assert [entry.name for entry in (await root.list("b")).entries] == []
    assert await names_of(root) == ["C", "D", "Secret", "a", "b"]


@pytest.mark.parametrize("mounted", ["ntfs"], indirect=True)
async def test_what_is_listed_in_small_letters_is_found_by_them(root: DirectoryNode) -> None:
    await write(root, "New", b"new")
    assert await names_of(root) == ["new", "secret"]
    assert await content_of(root, "new") == b"new"
    with pytest.raises(NotFound):
        await root.lookup("New")
    with pytest.raises(Unsupported):
        await root.rename("secret", root, "Secret")
    assert await names_of(root) == ["new", "secret"]
    assert await content_of(root, "secret") == CONTENT


async def test_what_is_made_is_known_without_reading_the_directory(
    root: DirectoryNode, reads: list[int]
) -> None:
    await root.lookup("secret")
    reads.clear()
    for number in range(50):
        await write(root, f"file {number}", CONTENT)
        assert await content_of(root, f"file {number}") == CONTENT
        await root.rename(f"file {number}", root, f"done {number}")
        await root.remove(f"done {number}")
    # What was read is believed for a second.
    assert len(reads) <= 5


async def test_overlayfs_is_not_believed(tmp_path: Path) -> None:
    with overlayfs(tmp_path) as at:
        assert (at / "folder" / "SECRET").read_bytes() == CONTENT
        volume = await HostVolume.open(str(at / "folder"))
        try:
            assert await content_of(volume.root, "secret") == CONTENT
            await write(volume.root, "own", b"own")
            for name, call in FINDING.items():
                if name not in ("exchange", "exchange it"):
                    with pytest.raises(NotFound):
                        await call(volume.root, "SECRET")
            assert await names_of(volume.root) == ["own", "secret", "sub"]
            assert await content_of(volume.root, "secret") == CONTENT
        finally:
            await volume.close()


@pytest.mark.parametrize("mounted", ["exfat"], indirect=True)
async def test_a_spelling_that_others_change_is_known_a_second_later(
    root: DirectoryNode, folded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostspell, "_LIFE_SECONDS_MIN", 0.05)
    assert (await root.lookup("secret")).name == "secret"
    (folded / "secret").rename(folded / "SECRET")
    # The kernel, too, believes for a second what it was told by FUSE.
    await anyio.sleep(1.1)
    with pytest.raises(NotFound):
        await root.lookup("secret")
    assert await content_of(root, "SECRET") == CONTENT


@pytest.fixture
async def root_of_known(tmp_path: Path) -> AsyncIterator[HostVolume]:
    """A volume in the temporary folder, which says whether case counts, where it can."""
    volume = await HostVolume.open(str(tmp_path))
    yield volume
    await volume.close()


# Without such a filesystem ------------------------------------------------------------------------


@pytest.fixture
async def doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DirectoryNode]:
    """A directory of which nobody says whether case counts; it does."""
    monkeypatch.setattr(hostspell, "tells_apart", lambda directory: False)
    (tmp_path / "file").write_bytes(CONTENT)
    volume = await HostVolume.open(str(tmp_path))
    yield volume.root
    await volume.close()


async def test_no_directory_is_read_for_names_with_letters(
    doubted: DirectoryNode, reads: list[int]
) -> None:
    for number in range(20):
        await write(doubted, f"file {number}", CONTENT)
        assert await content_of(doubted, f"file {number}") == CONTENT
        await doubted.rename(f"file {number}", doubted, f"done {number}")
        await doubted.remove(f"done {number}")
        with pytest.raises(NotFound):
            await doubted.lookup(f"nowhere {number}")
    assert not reads


async def test_it_is_read_once_for_all_who_wait(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    names = [str(number) for number in range(100)]
    for name in names:
        (tmp_path / name).touch()
    read = hostspell.read_names

    def slowly(directory: int) -> list[str]:
        time.sleep(0.1)
        return read(directory)

    monkeypatch.setattr(hostspell, "read_names", slowly)
    found = await asyncio.gather(*map(doubted.lookup, names))
    assert [entry.name for entry in found] == names
    # One is under way when the others come, who wait for the next.
    assert len(reads) <= 3


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
    (tmp_path / "12").write_bytes(CONTENT)
    assert await content_of(doubted, "12") == CONTENT
    assert spelling.knows("12")
    assert not spelling.knows("file")


async def test_a_name_that_goes_while_it_is_made_is_not_believed(
    doubted: DirectoryNode, tmp_path: Path
) -> None:
    spelling = doubted._names.spelling  # type: ignore[attr-defined]
    (tmp_path / "12").touch()
    await doubted.lookup("12")
    with spelling.making("made"):
        spelling.gone("made")
    assert not spelling.knows("made")
    with spelling.making("made"):
        pass
    assert spelling.knows("made")


async def test_what_the_host_lists_otherwise_is_found_by_that(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with dots at the end on FAT."""
    read = hostspell.read_names
    monkeypatch.setattr(
        hostspell, "read_names", lambda directory: [name.rstrip(".") for name in read(directory)]
    )
    await doubted.lookup("file")
    await write(doubted, "12.", CONTENT)
    (tmp_path / "12").write_bytes(CONTENT)
    assert await content_of(doubted, "12") == CONTENT
    with pytest.raises(NotFound):
        await doubted.lookup("12.")


async def test_who_waits_for_a_reading_that_fails_reads_again(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(directory: int) -> list[str]:
        time.sleep(0.05)
        raise PermissionError(errno.EACCES, "not to be read")

    monkeypatch.setattr(hostspell, "read_names", refused)
    names = ["12", "13", "14", "15"]
    for name in names:
        (tmp_path / name).touch()
    found = await asyncio.gather(*map(doubted.lookup, names))
    assert [entry.name for entry in found] == names


async def test_what_went_is_not_kept(root_of_known: HostVolume) -> None:
    root = root_of_known.root
    for number in range(3):
        await write(root, f"file {number}", CONTENT)
        await root.rename(f"file {number}", root, f"done {number}")
        await root.remove(f"done {number}")
    names = root._names  # type: ignore[attr-defined]
    assert names.spelling._lost is None
    assert not names.spelling._listed
    assert not names._has_losses


async def test_what_is_made_meanwhile_is_not_replaced(
    doubted: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(doubted, "own", b"own")
    is_taken, asked = Spelling.is_taken, []

    def before_somebody(self: Spelling, directory: int, name: str) -> bool:
        answer = is_taken(self, directory, name)
        if not asked:
            (tmp_path / name).write_bytes(CONTENT)
        asked.append(answer)
        return answer

    monkeypatch.setattr(Spelling, "is_taken", before_somebody)
    await doubted.rename("own", doubted, "goal")
    # It was seen, the second time, as what it is.
    assert asked == [False, True]
    assert await content_of(doubted, "goal") == b"own"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("file", None),
        ("file", "FILE"),
        ("caf\u00e9", None),
        ("caf\u00e9", "cafe\u0301"),
        ("12", None),
        ("12", "12."),
        ("12\u00ad", "12"),
    ],
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

_EXT4, _XFS, _BTRFS, _TMPFS = 0xEF53, 0x58465342, 0x9123683E, 0x01021994
_FUSE, _OVERLAYFS = 0x65735546, 0x794C7630


@pytest.mark.parametrize(
    ("kind", "answer", "apart"),
    [
        (_EXT4, (0x80000).to_bytes(4, sys.byteorder) + bytes(4), True),
        (_EXT4, (0x40080000).to_bytes(4, sys.byteorder) + bytes(4), False),
        (_EXT4, errno.ENOTTY, False),
        (_EXT4, errno.EACCES, False),
        (_EXT4, errno.EMFILE, None),
        (_TMPFS, errno.ENOTTY, True),
        (_OVERLAYFS, bytes(8), False),
        (_XFS, bytes(92) + (1 << 4).to_bytes(4, sys.byteorder) + bytes(16), True),
        (_XFS, bytes(92) + (1 << 13).to_bytes(4, sys.byteorder) + bytes(16), False),
        (_BTRFS, errno.EIO, True),
        (_FUSE, errno.EIO, False),
    ],
)
def test_what_filesystems_say(
    monkeypatch: pytest.MonkeyPatch, kind: int, answer: bytes | int, apart: bool | None
) -> None:
    def asked(directory: int, request: int, size: int) -> bytes:
        if isinstance(answer, int):
            raise OSError(answer, "no answer")
        assert len(answer) == size
        return answer

    monkeypatch.setattr(hostspell, "filesystem_of", lambda directory: kind)
    monkeypatch.setattr(hostspell, "_asked", asked)
    if apart is None:
        with pytest.raises(OSError, match="no answer"):
            hostspell.tells_apart(0)
    else:
        assert hostspell.tells_apart(0) is apart


def test_this_filesystem_answers(tmp_path: Path) -> None:
    """Those that tests run on tell names apart, and say so."""
    with OwnedFd(os.open(tmp_path, os.O_PATH)) as fd:
        if filesystem_of(fd.fileno()) not in (_EXT4, _XFS, _BTRFS):
            pytest.skip("a filesystem that does not say")
        assert hostspell.tells_apart(fd.fileno())
