"""Archives through PyFilesystem2: what they show, what they refuse, and damage."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from fs.tarfs import TarFS
from fs.zipfs import ZipFS

from capstore.backers.node import Attributes, DirectoryNode, NodeKind, OpenFlags, Provenance
from capstore.backers.pyfs import PyfsVolume
from capstore.schema.errors import Corrupt, ReadOnly, StorageError
from tests.backers.pyfs_trees import TREE, WRITE, filled
from tests.contract.harness import content_of, entries_of, names_of, tree_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.mkdir("empty")
        made.writestr("a/b/c", b"deep")
        made.writestr("a/file", b"content")
        made.writestr("é", b"")
        made.writestr("large", TREE["large"])
    return path


async def test_a_zip_is_read(archive: Path) -> None:
    volume = await PyfsVolume.open(f"zip://{archive}")
    assert volume.read_only
    assert await tree_of(volume.root) == TREE
    entry = await volume.root.lookup("large")
    assert entry.stat.size == 512_000
    assert entry.stat.provenance is Provenance.HOST_FILESYSTEM
    # One that the archive does not list has no time.
    implied = (await volume.root.lookup("a")).stat
    assert (implied.provenance, implied.modified) == (Provenance.UNKNOWN, 0)
    await volume.close()


async def test_a_zip_is_read_at_any_offset(archive: Path) -> None:
    volume = await PyfsVolume.open(f"zip://{archive}")
    file = await volume.root.open("large")
    chance = random.Random(7)
    whole = TREE["large"]
    assert isinstance(whole, bytes)
    for _ in range(60):
        offset, length = chance.randrange(len(whole) + 100), chance.randrange(40_000)
        assert bytes(await file.read(offset, length)) == whole[offset : offset + length]
    assert bytes(await file.read(2**70, 5)) == b""
    await volume.close()


@pytest.mark.parametrize("url", ["zip://", "tar://"])
async def test_an_archive_refuses_changes(tmp_path: Path, archive: Path, url: str) -> None:
    path = archive
    if url == "tar://":
        path = tmp_path / "a.tar"
        with TarFS(str(path), write=True) as made:
            made.writetext("file", "x")
            made.makedir("a")
    with pytest.raises(ReadOnly):
        await PyfsVolume.open(f"{url}{path}", read_only=False)
    volume = await PyfsVolume.open(f"{url}{path}")
    root = volume.root
    before = await tree_of(root)
    a = await root.sub("a")
    for change in (
        root.create("new"),
        root.open("new", WRITE | OpenFlags.CREATE),
        root.mkdir("new"),
        root.remove("a"),
        root.rename("a", root, "new"),
        root.symlink("new", "x"),
        root.link("a", a, "new"),
        root.set_attributes(Attributes(modified=1), "a"),
        root.set_attributes(Attributes(modified=1)),
    ):
        with pytest.raises(ReadOnly):
            await change
    assert await tree_of(root) == before
    await volume.close()


async def test_a_zip_that_is_written_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new.zip"
    volume = await PyfsVolume.open(ZipFS(str(path), write=True))
    await filled(volume.root)
    await volume.close()
    volume = await PyfsVolume.open(f"zip://{path}")
    assert await tree_of(volume.root) == TREE
    await volume.close()


async def test_damage_is_corrupt(archive: Path) -> None:
    with zipfile.ZipFile(archive) as made:
        info = made.getinfo("a/file")
    raw = bytearray(archive.read_bytes())
    data = info.header_offset + 30 + len("a/file")
    raw[data : data + 4] = b"\xff" * 4
    archive.write_bytes(raw)
    volume = await PyfsVolume.open(f"zip://{archive}")
    a = await volume.root.sub("a")
    with pytest.raises(Corrupt):
        await content_of(a, "file")
    assert await content_of(await a.sub("b"), "c") == b"deep"
    await volume.close()
    for size in range(0, len(raw), 997):
        archive.write_bytes(raw[:size])
        with pytest.raises(Corrupt):
            await PyfsVolume.open(f"zip://{archive}")


async def test_dates_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "old.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(zipfile.ZipInfo("dated", (1999, 12, 31, 23, 59, 58)), b"x")
        info = zipfile.ZipInfo("undated")
        info.date_time = (1980, 0, 0, 0, 0, 0)
        made.writestr(info, b"xyz")
    volume = await PyfsVolume.open(f"zip://{path}")
    dated, undated = (entry.stat for entry in await entries_of(volume.root))
    assert dated.modified == 946_684_798 * 10**9
    assert (undated.size, undated.provenance) == (3, Provenance.UNKNOWN)
    assert await content_of(volume.root, "undated") == b"xyz"
    await volume.close()


async def test_any_bit_of_an_archive_may_be_wrong(tmp_path: Path) -> None:
    """What is read is what was written, whatever it is called, or nothing is."""
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("d/one", b"the first " * 9)
        made.writestr("two", b"2nd")
    whole = path.read_bytes()
    contents, failures = {b"the first " * 9, b"2nd"}, 0

    async def check(directory: DirectoryNode) -> None:
        for entry in await entries_of(directory):
            if entry.stat.kind is NodeKind.DIRECTORY:
                await check(await directory.sub(entry.name))
            else:
                assert await content_of(directory, entry.name) in contents

    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            volume = await PyfsVolume.open(f"zip://{path}")
        except StorageError:
            failures += 1
            continue
        try:
            await check(volume.root)
        except StorageError:
            failures += 1
        await volume.close()
    assert failures > len(whole) // 4


async def test_a_name_that_leads_out_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("../../out", b"x")
    volume = await PyfsVolume.open(f"zip://{path}")
    with pytest.raises(StorageError):
        await names_of(volume.root)
    await volume.close()
