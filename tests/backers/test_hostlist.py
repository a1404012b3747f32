"""Listings of a host directory: what a walk reads, shows and costs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstore.backers import hostlist
from capstore.backers.hostdir import HostVolume
from capstore.backers.node import DirectoryNode
from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX

pytestmark = pytest.mark.anyio


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[DirectoryNode]:
    volume = await HostVolume.open(str(tmp_path))
    yield volume.root
    await volume.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each time that a directory is read."""
    counted: list[int] = []
    real = hostlist.read_names

    def read_names(directory: int) -> list[str]:
        counted.append(directory)
        return real(directory)

    monkeypatch.setattr(hostlist, "read_names", read_names)
    return counted


def fill(folder: Path, count: int) -> list[str]:
    names = [f"{number:06}" for number in range(count)]
    for name in names:
        (folder / name).touch()
    return names


async def walk(root: DirectoryNode, limit: int = PAGE_ENTRIES_MAX) -> list[str]:
    names: list[str] = []
    while True:
        page = await root.list(names[-1] if names else "", limit)
        names.extend(entry.name for entry in page.entries)
        if not page.more:
            return names


async def test_a_walk_reads_the_directory_once(
    root: DirectoryNode, tmp_path: Path, reads: list[int]
) -> None:
    names = fill(tmp_path, 3000)
    assert await walk(root, 100) == names
    assert len(reads) == 1
    assert await walk(root, 100) == names
    assert len(reads) == 2


async def test_a_walk_in_a_busy_directory_does_not_read_it_for_each_page(
    root: DirectoryNode, tmp_path: Path, reads: list[int]
) -> None:
    names = fill(tmp_path, 2000)
    seen: list[str] = []
    more = True
    while more:
        page = await root.list(seen[-1] if seen else "", 20)
        seen.extend(entry.name for entry in page.entries)
        (tmp_path / f"foreign{len(seen)}").touch()
        await root.create(f"own{len(seen)}")
        more = page.more and len(seen) < 2500
    assert seen[:2000] == names
    assert len(reads) < 20


async def test_a_list_that_is_too_old_is_read_again(
    root: DirectoryNode, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlist, "_LIFE_SECONDS_MIN", 0)
    monkeypatch.setattr(hostlist, "_LIFE_COSTS", 0)
    names = fill(tmp_path, 100)
    assert await walk(root, 10) == names
    assert len(reads) == 10


async def test_what_the_volume_adds_is_in_the_next_page(
    root: DirectoryNode, tmp_path: Path
) -> None:
    fill(tmp_path, 10)
    (tmp_path / "d").mkdir()
    await root.list(limit=2)
    twin = await (await root.sub("d")).mkdir("up")
    await root.create("0000015")
    await root.mkdir("0000025")
    await root.symlink("0000035", "x")
    await root.link("000000", root, "0000045")
    await root.rename("000009", root, "0000055")
    await (await root.sub("d")).rename("up", root, "0000065")
    await root.remove("000004")
    later = [entry.name for entry in (await root.list("000001")).entries]
    added = [f"0000{number}5" for number in ("01", "02", "03", "04", "05", "06")]
    stayed = [f"{number:06}" for number in (2, 3, 5, 6, 7, 8)]
    assert later == [*sorted(added + stayed), "d"]
    assert (await twin.list()).entries == []


async def test_so_many_additions_that_reading_is_cheaper(
    root: DirectoryNode, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlist, "_ADDED_MAX", 5)
    fill(tmp_path, 10)
    await root.list(limit=1)
    for number in range(8):
        await root.create(f"new{number}")
    assert len((await root.list("000000")).entries) == 9 + 8
    assert len(reads) == 2


async def test_what_vanishes_between_reading_and_looking_is_skipped(
    root: DirectoryNode, tmp_path: Path
) -> None:
    names = fill(tmp_path, 10)
    await root.list(limit=1)
    for name in names[1:9]:
        (tmp_path / name).unlink()
    page = await root.list(names[0], 3)
    assert [entry.name for entry in page.entries] == [names[9]]
    assert not page.more
    await root.list(limit=1)
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    assert (await root.list(names[0])).entries == []


async def test_a_page_is_bounded_in_bytes(root: DirectoryNode, tmp_path: Path) -> None:
    target = "t" * 4000
    for number in range(300):
        (tmp_path / f"{number:04}").symlink_to(target)
    page = await root.list()
    assert len(page.entries) == PAGE_BYTES_MAX // (4 + 4000)
    assert page.more
    assert len(await walk(root)) == 300


async def test_limits(root: DirectoryNode, tmp_path: Path) -> None:
    fill(tmp_path, PAGE_ENTRIES_MAX + 1)
    assert len((await root.list(limit=10**9)).entries) == PAGE_ENTRIES_MAX
    for limit in (0, -1):
        with pytest.raises(InvalidArgument):
            await root.list(limit=limit)


async def test_abandoned_walks_do_not_pile_up(
    root: DirectoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlist, "_WALKS_MAX", 2)
    held = []
    for number in range(5):
        directory = await root.mkdir(f"d{number}")
        fill(tmp_path / f"d{number}", 3)
        await directory.list(limit=1)
        held.append(directory)
    kept = [directory._names._sorted is not None for directory in held]  # type: ignore[attr-defined]
    assert kept == [False, False, False, True, True]
    assert [entry.name for entry in (await held[0].list("000000")).entries] == ["000001", "000002"]
