"""Handles of a host directory's nodes: the same node or none, before and after a restart."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstore.backers import hostfd
from capstore.backers.hostdir import HostVolume
from capstore.backers.node import DirectoryNode, FileNode
from capstore.schema.errors import InvalidArgument, NotFound, ReadOnly

pytestmark = pytest.mark.anyio


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[HostVolume]:
    made = await HostVolume.open(str(tmp_path))
    yield made
    await made.close()


async def test_a_handle_finds_its_node_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "caf\udce9 (deleted)").write_bytes(b"content")
    volume = await HostVolume.open(str(tmp_path))
    directory = await volume.root.sub("a")
    file = await directory.open("caf\uefe9 (deleted)")
    nodes = (volume.root, directory, file)
    words = [await volume.handle_of(node) for node in nodes]
    stats = [await node.stat() for node in nodes]
    await volume.close()

    again = await HostVolume.open(str(tmp_path))
    found = [await again.node_of(word) for word in words]
    assert [type(node) for node in found] == [type(node) for node in nodes]
    assert [await node.stat() for node in found] == stats
    opened = found[2]
    assert isinstance(opened, FileNode)
    await opened.write(0, b"C")
    await opened.sync()
    assert bytes(await opened.read(0, 100)) == b"Content"
    await again.close()

    reader = await HostVolume.open(str(tmp_path), read_only=True)
    opened = await reader.node_of(words[2])
    assert isinstance(opened, FileNode)
    with pytest.raises(ReadOnly):
        await opened.write(0, b"x")
    await reader.close()


async def test_a_renamed_node_has_another_handle(volume: HostVolume) -> None:
    root = volume.root
    directory = await root.mkdir("d")
    file = await directory.create("f")
    old = await volume.handle_of(file)
    await root.rename("d", root, "e")
    await directory.rename("f", root, "g")
    with pytest.raises(NotFound):
        await volume.node_of(old)
    for node in (directory, file):
        found = await volume.node_of(await volume.handle_of(node))
        assert (await found.stat()).node_id == (await node.stat()).node_id


async def test_a_node_that_took_the_place_is_not_mistaken(
    volume: HostVolume, tmp_path: Path
) -> None:
    root = volume.root
    for make in ("file", "directory"):
        node = await (root.create("x") if make == "file" else root.mkdir("x"))
        word = await volume.handle_of(node)
        stat = await node.stat()
        del node
        await root.remove("x")
        with pytest.raises(NotFound):
            await volume.node_of(word)
        # Filesystems like to give the number of the removed node to the next one.
        again = await (root.create("x") if make == "file" else root.mkdir("x"))
        if (await again.stat()).node_id == stat.node_id and not stat.created:
            pytest.skip("this filesystem records no birth")
        with pytest.raises(NotFound):
            await volume.node_of(word)
        await root.remove("x")
    other: DirectoryNode = await root.mkdir("y")
    word = await volume.handle_of(other)
    await root.remove("y")
    (tmp_path / "y").symlink_to(".")
    with pytest.raises(NotFound):
        await volume.node_of(word)


async def test_a_node_without_a_name_has_no_handle(volume: HostVolume) -> None:
    root = volume.root
    file, directory = await root.create("f"), await root.mkdir("d")
    for node, name in ((file, "f"), (directory, "d")):
        await root.remove(name)
        with pytest.raises(NotFound):
            await volume.handle_of(node)
        # A name that looks as the kernel shows a removed one.
        await root.create(f"{name} (deleted)")
        with pytest.raises(NotFound):
            await volume.handle_of(node)


async def test_what_is_no_handle(volume: HostVolume) -> None:
    await volume.root.create("f")
    good = json.loads(await volume.handle_of(await volume.root.open("f")))
    bad: list[bytes] = [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b"1"]
    for index, value in (
        (0, 2),
        (1, "f"),
        (1, ["a" * 300]),
        (1, [1]),
        (1, ["\ud800"]),
        (1, None),
        (2, "link"),
        (3, "1"),
        (3, True),
        (4, 1.5),
        (5, 1),
    ):
        bad.append(json.dumps([*good[:index], value, *good[index + 1 :]]).encode())
    for word in bad:
        with pytest.raises(InvalidArgument):
            await volume.node_of(word)
    good[3] += 1
    with pytest.raises(NotFound):
        await volume.node_of(json.dumps(good).encode())


async def test_without_openat2_and_statx(
    volume: HostVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfd.support(), "openat2", False)
    monkeypatch.setattr(hostfd.support(), "statx", False)
    directory = await (await volume.root.mkdir("a")).mkdir("b")
    found = await volume.node_of(await volume.handle_of(directory))
    assert (await found.stat()).node_id == (await directory.stat()).node_id


async def test_a_file_that_may_not_be_written_is_open_for_reading(
    volume: HostVolume, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    word = await volume.handle_of(await volume.root.open("f"))
    (tmp_path / "f").chmod(0o444)
    if os.geteuid() != 0:
        found = await volume.node_of(word)
        assert isinstance(found, FileNode)
        with pytest.raises(ReadOnly):
            await found.write(0, b"y")
        return
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        found = await volume.node_of(word)
    finally:
        os.seteuid(0)
    assert isinstance(found, FileNode)
    with pytest.raises(ReadOnly):
        await found.write(0, b"y")
