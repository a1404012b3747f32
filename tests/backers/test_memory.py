"""What is particular to memory: limits, accounting, sharing with snapshots, and the saved file."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from capstore.backers import memory_save
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_data import CHUNK_BYTES, entry_cost
from capstore.backers.node import Attributes, DirectoryNode, FileNode, OpenFlags, Provenance
from capstore.schema.errors import (
    Busy,
    Closed,
    Corrupt,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotFound,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from tests.contract.harness import (
    Link,
    clear,
    content_of,
    entries_of,
    names_of,
    populate,
    replace_content,
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


# Limits -----------------------------------------------------------------------------------------


async def test_a_file_that_would_be_too_long_is_as_it_was() -> None:
    volume = await MemoryVolume.open(file_bytes_max=1000)
    file = await volume.root.create("f")
    await file.write(0, b"x" * 1000)
    before = await used(volume), await file.stat()
    for refused in (file.write(999, b"ab"), file.append(b"x"), file.truncate(1001)):
        with pytest.raises(TooLarge):
            await refused
    with pytest.raises(TooLarge):
        await file.write(2**62, b"x")
    assert (await used(volume), await file.stat()) == before


async def test_a_full_volume_loses_nothing() -> None:
    volume = await MemoryVolume.open(total_bytes_max=10_000)
    root = volume.root
    file = await root.create("f")
    await file.write(0, b"x" * 9000)
    before = await used(volume), await tree_of(root), await file.stat()
    other = await root.open("f", WRITE)
    for refused in (
        file.write(8999, b"y" * 2000),
        other.append(b"y" * 2000),
        file.truncate(11_000),
        root.symlink("l", "t" * 2000),
    ):
        with pytest.raises(NoSpace):
            await refused
    assert (await used(volume), await tree_of(root), await file.stat()) == before
    await file.write(0, b"y" * 9000)
    free = (await volume.usage()).free_bytes
    await file.append(b"z" * free)
    assert (await volume.usage()).free_bytes == 0
    with pytest.raises(NoSpace):
        await root.create("g")
    await root.rename("f", root, "h")
    with pytest.raises(NoSpace):
        await root.rename("h", root, "longer")
    assert await names_of(root) == ["h"]
    await root.remove("h")
    await root.create("g")


async def test_endless_empty_files_end() -> None:
    volume = await MemoryVolume.open(nodes_max=10)
    for number in range(9):
        await volume.root.create(str(number))
    for refused in (
        volume.root.create("x"),
        volume.root.mkdir("x"),
        volume.root.symlink("x", "y"),
        volume.root.open("x", WRITE | OpenFlags.CREATE),
    ):
        with pytest.raises(NoSpace):
            await refused
    await volume.root.remove("0")
    await volume.root.mkdir("x")


async def test_endless_names_of_one_file_end() -> None:
    volume = await MemoryVolume.open(total_bytes_max=10_000)
    await volume.root.create("f")
    made = 0
    with suppress(NoSpace):
        while made < 10_000:
            await volume.root.link("f", volume.root, str(made))
            made += 1
    assert 100 < made < 200


async def test_a_hole_takes_no_memory_but_is_paid_for() -> None:
    huge = 2**40
    volume = await MemoryVolume.open(total_bytes_max=2 * huge, file_bytes_max=huge)
    file = await volume.root.create("f")
    await file.truncate(huge)
    await file.write(huge // 2, b"x")
    assert (await volume.usage()).used_bytes == huge + entry_cost("f")
    assert bytes(await file.read(huge // 2 - 2, 5)) == b"\0\0x\0\0"
    await file.truncate(10)
    assert (await volume.usage()).used_bytes == 10 + entry_cost("f")


async def test_filling_a_hole_never_lacks_space() -> None:
    volume = await MemoryVolume.open(total_bytes_max=200_000 + entry_cost("f"))
    file = await volume.root.create("f")
    await file.truncate(200_000)
    for offset in range(0, 200_000, 10_000):
        await file.write(offset, b"x" * 10_000)
    assert (await volume.usage()).free_bytes == 0


# Accounting -------------------------------------------------------------------------------------


async def test_everything_is_given_back() -> None:
    volume = await MemoryVolume.open()
    fresh = await used(volume)
    assert fresh == (0, 1)
    await populate(volume.root, TREE)
    await volume.root.link("f", volume.root, "second")
    snapshot = await volume.root.snapshot()
    await replace_content(volume.root, "f", b"changed" * 1000)
    held = await volume.root.open("f", WRITE)
    sub = await volume.root.sub("d")
    await clear(volume.root)
    await held.write(100_000, b"x")
    await held.truncate(3)
    assert await used(volume) > fresh
    del snapshot, held, sub
    assert await used(volume) == fresh


async def test_a_removed_file_counts_until_it_is_closed_or_dropped() -> None:
    volume = await MemoryVolume.open()
    for way in ("close", "drop"):
        file: FileNode | None = await volume.root.create("f")
        assert file is not None
        second = await volume.root.open("f")
        await file.write(0, b"x" * 1000)
        await volume.root.remove("f")
        assert await used(volume) == (1000, 2)
        if way == "close":
            await file.close()
            await file.close()
            assert await used(volume) == (1000, 2)
            await second.close()
        file = None
        del second
        assert await used(volume) == (0, 1)


async def test_a_removed_directory_counts_until_it_is_dropped() -> None:
    volume = await MemoryVolume.open()
    held: DirectoryNode | None = await volume.root.mkdir("d")
    await volume.root.remove("d")
    assert (await used(volume))[1] == 2
    held = None
    assert held is None
    assert (await used(volume))[1] == 1


async def test_what_a_snapshot_holds_back_is_counted_by_the_chunk() -> None:
    volume = await MemoryVolume.open()
    file = await volume.root.create("f")
    await file.write(0, b"x" * 100 * CHUNK_BYTES)
    before, _ = await used(volume)
    snapshot = await volume.root.snapshot()
    assert (await used(volume))[0] == before
    await file.write(5 * CHUNK_BYTES, b"y")
    await file.write(5 * CHUNK_BYTES + 1, b"y")
    assert (await used(volume))[0] == before + CHUNK_BYTES
    second = await volume.root.snapshot()
    await file.write(5 * CHUNK_BYTES, b"z")
    assert (await used(volume))[0] == before + 2 * CHUNK_BYTES
    assert bytes(await (await snapshot.open("f")).read(5 * CHUNK_BYTES, 2)) == b"xx"
    assert bytes(await (await second.open("f")).read(5 * CHUNK_BYTES, 2)) == b"yy"
    del snapshot
    assert (await used(volume))[0] == before + CHUNK_BYTES
    del second
    assert (await used(volume))[0] == before
    # Nobody looks any more: nothing is copied.
    await file.write(9 * CHUNK_BYTES, b"y")
    assert (await used(volume))[0] == before


async def test_a_snapshot_holds_back_what_was_removed() -> None:
    volume = await MemoryVolume.open()
    await populate(volume.root, TREE)
    before = await used(volume)
    snapshot = await volume.root.snapshot()
    await clear(volume.root)
    assert await used(volume) >= before
    assert await tree_of(snapshot) == TREE
    del snapshot
    assert await used(volume) == (0, 1)


async def test_a_full_volume_under_a_snapshot_is_as_it_was() -> None:
    volume = await MemoryVolume.open(total_bytes_max=CHUNK_BYTES + 1000)
    file = await volume.root.create("f")
    await file.write(0, b"x" * CHUNK_BYTES)
    snapshot = await volume.root.snapshot()
    for refused in (file.write(0, b"y"), file.truncate(CHUNK_BYTES - 1)):
        with pytest.raises(NoSpace):
            await refused
    assert await content_of(volume.root, "f") == b"x" * CHUNK_BYTES
    del snapshot
    await file.write(0, b"y")


async def test_no_cycles_keep_memory() -> None:
    volume = await MemoryVolume.open()
    gc.collect()
    gc.disable()
    try:
        at: DirectoryNode = volume.root
        for _ in range(5000):
            at = await at.mkdir("d")
        await at.create("f")
        del at
        await volume.root.rename("d", volume.root, "e")
        volume.tree.root.state.entries.clear()  # type: ignore[attr-defined]
        assert (await used(volume))[1] == 1
    finally:
        gc.enable()


async def test_the_order_of_a_large_directory_is_kept_up() -> None:
    volume = await MemoryVolume.open()
    count = 10_000
    for number in range(count):
        await volume.root.symlink(f"{number * 7919 % count:05}", "x")
    await volume.root.list()
    for number in range(0, count, 3):
        await volume.root.remove(f"{number:05}")
    await volume.root.create("00000")
    expected = [f"{number:05}" for number in range(count) if number % 3 or not number]
    assert await names_of(volume.root) == expected


# Handles ----------------------------------------------------------------------------------------


async def test_a_handle_finds_its_node() -> None:
    volume = await MemoryVolume.open()
    d = await volume.root.mkdir("d")
    file = await d.create("f")
    root, to_d, to_f = [await volume.handle_of(node) for node in (volume.root, d, file)]
    await d.rename("f", volume.root, "g")
    again = await volume.node_of(to_f)
    assert isinstance(again, FileNode)
    await again.write(0, b"through the handle")
    assert await content_of(volume.root, "g") == b"through the handle"
    assert (await (await volume.node_of(to_d)).stat()) == await d.stat()
    assert (await (await volume.node_of(root)).stat()) == await volume.root.stat()


async def test_a_handle_of_a_removed_node() -> None:
    volume = await MemoryVolume.open()
    file = await volume.root.create("f")
    handle = await volume.handle_of(file)
    await volume.root.remove("f")
    with pytest.raises(NotFound):
        await volume.node_of(handle)
    with pytest.raises(NotFound):
        await volume.handle_of(file)
    await volume.root.create("f")
    del file
    with pytest.raises(NotFound):
        await volume.node_of(handle)


async def test_what_is_no_handle() -> None:
    volume = await MemoryVolume.open()
    other = await MemoryVolume.open()
    handle = await volume.handle_of(volume.root)
    for wrong in (b"", handle[:-1], handle + b"x", b"x" * 24, await other.handle_of(other.root)):
        with pytest.raises(InvalidArgument):
            await volume.node_of(wrong)
    with pytest.raises(InvalidArgument):
        await volume.handle_of(other.root)
    with pytest.raises(Unsupported):
        await volume.handle_of(await volume.root.snapshot())


# Closing ----------------------------------------------------------------------------------------


async def test_a_closed_volume_answers_closed() -> None:
    volume = await MemoryVolume.open()
    root = volume.root
    file = await root.create("f")
    await volume.close()
    await volume.close()
    for refused in (
        root.list(),
        root.lookup("f"),
        root.create("g"),
        root.snapshot(),
        root.stat(),
        file.read(0, 1),
        file.write(0, b"x"),
        volume.usage(),
        volume.sync(),
        volume.handle_of(root),
    ):
        with pytest.raises(Closed):
            await refused
    await file.close()


# The saved file ---------------------------------------------------------------------------------


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
    assert _host_tree(out) == tree
    stat = (out / "f").stat()
    assert stat.st_mtime_ns == 1_500_000_000_123456789
    assert stat.st_mode & 0o777 == 0o755
    assert stat.st_ino == (out / "d" / "hard").stat().st_ino


def _host_tree(folder: Path) -> dict[str, object]:
    tree: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            tree[path.name] = Link(os.readlink(path))
        elif path.is_dir():
            tree[path.name] = _host_tree(path)
        else:
            tree[path.name] = path.read_bytes()
    return tree


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
