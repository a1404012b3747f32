"""A memory volume's file: saving, loading, locking, and crashes in between."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capstore.backers import memory_save
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_data import CHUNK_BYTES, entry_cost
from capstore.backers.node import Attributes, DirectoryNode, OpenFlags, Provenance
from capstore.schema.errors import (
    Busy,
    Corrupt,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotFound,
    StorageIOError,
    TooLarge,
)
from tests.backers.hosts import host_tree
from tests.contract.harness import (
    Link,
    content_of,
    entries_of,
    names_of,
    populate,
    tree_of,
)

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
TREE = {
    "d": {"deep": {"é\n": b"odd name"}, "l": Link("../x")},
    "empty": {},
    "f": bytes(range(256)) * 1000,
    "zeros": bytes(300_000),
}


async def used(volume: MemoryVolume) -> tuple[int, int]:
    usage = await volume.usage()
    return usage.used_bytes, usage.used_nodes


async def saved(path: Path) -> MemoryVolume:
    return await MemoryVolume.open(file=str(path))


async def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, TREE)
    d = await volume.root.sub("d")
    await volume.root.link("f", d, "second")
    await volume.root.set_attributes(Attributes(executable=True, created=-5, modified=7), "f")
    await volume.root.set_attributes(Attributes(modified=-1_234_567_890_123), "empty")
    entries, below = await entries_of(volume.root), await entries_of(d)
    stat, usage, tree = await volume.root.stat(), await used(volume), await tree_of(volume.root)
    handle = await volume.handle_of(d)
    await volume.close()

    again = await saved(path)
    assert await entries_of(again.root) == entries
    assert await entries_of(await again.root.sub("d")) == below
    assert (await again.root.stat(), await used(again), await tree_of(again.root)) == (
        stat,
        usage,
        tree,
    )
    assert (await (await again.node_of(handle)).stat()).node_id == entries[0].stat.node_id
    assert stat.provenance is Provenance.WALL_CLOCK
    file = await again.root.open("f", WRITE)
    await file.write(0, b"one file, two names")
    assert (await content_of(await again.root.sub("d"), "second")).startswith(b"one file")
    await again.close()


async def test_deep_and_long_paths_come_back(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    at: DirectoryNode = volume.root
    for number in range(60):
        at = await at.mkdir(f"{number}" + "n" * 250)
    file = await at.create("f" * 255)
    await file.write(0, b"deep")
    await at.link("f" * 255, volume.root, "shallow")
    tree = await tree_of(volume.root)
    await volume.close()
    # Each path is written once for everything below it; cut paths keep that linear.
    assert path.stat().st_size < 400_000
    again = await saved(path)
    assert await tree_of(again.root) == tree
    assert (await again.root.lookup("shallow")).stat.link_count == 2
    await again.close()


async def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, TREE)
    await volume.root.link("f", await volume.root.sub("d"), "hard")
    await volume.root.set_attributes(
        Attributes(executable=True, modified=1_500_000_000_123456789), "f"
    )
    tree = await tree_of(volume.root)
    await volume.close()
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        ["tar", "--warning=no-unknown-keyword", "-xf", path, "-C", out], check=True, text=True
    )
    assert host_tree(out) == tree
    stat = (out / "f").stat()
    assert stat.st_mtime_ns == 1_500_000_000_123456789
    assert stat.st_mode & 0o777 == 0o755
    assert stat.st_ino == (out / "d" / "hard").stat().st_ino


async def test_sync_saves_and_skips(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    file = await volume.root.create("f")
    await volume.sync()
    first = path.stat().st_ino
    await volume.sync()
    await volume.root.sync()
    assert path.stat().st_ino == first
    await file.write(0, b"x")
    await file.sync()
    assert path.stat().st_ino != first
    assert os.listdir(tmp_path) == ["tree.pax"]
    await volume.close()


async def test_many_syncs_share_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = 0
    write_tree = memory_save.write_tree

    def counted(*arguments: object) -> None:
        nonlocal saves
        saves += 1
        write_tree(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_save, "write_tree", counted)
    volume = await saved(tmp_path / "tree.pax")

    async def change(number: int) -> None:
        await volume.root.create(str(number))
        await volume.sync()

    await asyncio.gather(*map(change, range(50)))
    assert saves <= 2
    await volume.close()
    again = await saved(tmp_path / "tree.pax")
    assert len(await names_of(again.root)) == 50
    await again.close()


async def test_changes_during_a_save_are_not_in_it_and_do_not_lack_space(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    size = 40 * CHUNK_BYTES
    volume = await MemoryVolume.open(file=str(path), total_bytes_max=size + entry_cost("f"))
    file = await volume.root.create("f")
    await file.write(0, b"a" * size)
    sync = asyncio.create_task(volume.sync())
    # The save has its snapshot; the volume is full, and every chunk is overwritten.
    while not volume.tree.generation:
        await asyncio.sleep(0)
    await file.write(0, b"b" * size)
    await sync
    copy = tmp_path / "copy.pax"
    copy.write_bytes(path.read_bytes())
    first = await saved(copy)
    assert await content_of(first.root, "f") == b"a" * size
    await first.close()
    assert (await volume.usage()).free_bytes == 0
    await volume.close()
    again = await saved(path)
    assert await content_of(again.root, "f") == b"b" * size
    await again.close()


async def test_one_volume_holds_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    for _ in range(2):
        with pytest.raises(Busy):
            await saved(path)
        # The lock goes with the file that replaces the locked one.
        await volume.root.open("f", WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE)
        await volume.sync()
    await volume.close()
    await (await saved(path)).close()


async def test_a_save_that_fails_leaves_the_old_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, {"old": b"content"})
    await volume.sync()
    old = path.read_bytes()
    await populate(volume.root, {"new": b"content"})
    for step in ("write_tree", "fsync", "rename"):
        with monkeypatch.context() as patch:

            def fail(*_: object, **__: object) -> None:
                raise OSError(5, "injected", "/secret/path")

            patch.setattr(memory_save if step == "write_tree" else os, step, fail)
            with pytest.raises(StorageIOError) as caught:
                await volume.sync()
        assert "secret" not in str(caught.value)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["tree.pax"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageIOError):
            await volume.close()
    # What could not be saved is still there, and can be saved later.
    assert await names_of(volume.root) == ["new", "old"]
    await volume.close()
    again = await saved(path)
    assert await names_of(again.root) == ["new", "old"]
    await again.close()


CRASHING = """
import os, sys, anyio
from capstore.backers.memory import MemoryVolume

async def main():
    volume = await MemoryVolume.open(file=sys.argv[1])
    step = int(sys.argv[2])
    file = await volume.root.create("new")
    await file.write(0, b"x" * 1_000_000)
    for name in ("open", "fchmod", "fsync", "rename", "close"):
        def counted(*arguments, real=getattr(os, name), **named):
            calls.append(1)
            if len(calls) == step:
                os._exit(9)
            return real(*arguments, **named)
        setattr(os, name, counted)
    await volume.sync()
    os._exit(0)

calls = []
anyio.run(main)
"""


async def test_a_crash_during_a_save_leaves_one_whole_tree(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, {"old": b"content"})
    await volume.close()
    old = path.read_bytes()
    outcomes: list[list[str]] = []
    for step in range(1, 30):
        path.write_bytes(old)
        done = subprocess.run([sys.executable, "-c", CRASHING, path, str(step)], check=False)
        again = await saved(path)
        outcomes.append(await names_of(again.root))
        assert (await content_of(again.root, "old")) == b"content"
        await again.close()
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert outcomes[0] == ["old"]
    assert outcomes[-1] == ["new", "old"]
    assert sorted(outcomes, key=len) == outcomes


async def test_the_file_s_own_circumstances(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    await (await saved(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    (tmp_path / "to it").symlink_to(path)
    volume = await saved(tmp_path / "to it")
    await volume.root.create("f")
    await volume.close()
    assert (tmp_path / "to it").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(IsDirectory):
        await saved(tmp_path)
    with pytest.raises(NotFound):
        await saved(tmp_path / "missing" / "tree.pax")
    with pytest.raises(InvalidArgument):
        await MemoryVolume.open(file="a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument):
        await saved(tmp_path / "pipe")


async def test_somebody_else_s_tar_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "content").write_text("precious")
    for form in ("pax", "gnu", "ustar"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", f"--format={form}", "-cf", path, "-C", tmp_path, "content"], check=True
        )
        before = path.read_bytes()
        with pytest.raises(Corrupt):
            await saved(path)
        assert path.read_bytes() == before


async def test_a_smaller_volume_refuses_a_larger_tree(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, {"a": b"x" * 5000, "b": b"y" * 5000})
    await volume.close()
    for error, limits in (
        (TooLarge, {"file_bytes_max": 4999}),
        (NoSpace, {"total_bytes_max": 9999}),
        (NoSpace, {"total_bytes_max": 10_000 + 2 * entry_cost("a") - 1}),
        (NoSpace, {"nodes_max": 2}),
    ):
        with pytest.raises(error):
            await MemoryVolume.open(file=str(path), **limits)
    fits = {"file_bytes_max": 5000, "total_bytes_max": 10_000 + 2 * entry_cost("a")}
    await (await MemoryVolume.open(file=str(path), nodes_max=3, **fits)).close()


async def test_ids_are_not_given_twice_though_a_save_was_missed(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    volume = await saved(path)
    await populate(volume.root, {"kept": b""})
    await volume.sync()
    old = path.read_bytes()
    lost = await volume.root.create("lost")
    handle = await volume.handle_of(lost)
    await volume.close()
    path.write_bytes(old)
    again = await saved(path)
    for number in range(10):
        await again.root.create(str(number))
    with pytest.raises(NotFound):
        await again.node_of(handle)
    await again.close()
