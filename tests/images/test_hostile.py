"""Images made to do harm, served as anybody would serve them: bounded work, bounded memory.

Bounds are on processor time and resident memory, several times what the work takes where it is
done as it should be, and far below what it takes where it grows with a forged number.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from capstore.backers.node import DirectoryNode, NodeKind, Volume
from capstore.backers.spec import open_volume
from capstore.images.devices import MemoryDevice
from capstore.images.fat import FatTree
from capstore.images.nodetable import NodeTable
from capstore.images.partitions import partitions
from capstore.images.records import BLOCK_BYTES, RO1_NODE, RO1_SUPERBLOCK
from capstore.images.ro1_build import index_image
from capstore.images.ro1_tree import Ro1Tree
from capstore.schema.errors import Corrupt, NotFound, StorageError, TooLarge
from capstore.schema.limits import MIB
from capstore.tools.fuzz.corpus import cpio_member, gz, xz, zst
from capstore.tools.fuzz.worker import reset_peak, status_bytes
from tests.images.archives import END, block, member, pax
from tests.images.fatimages import Forge, short_entry

pytestmark = pytest.mark.anyio

SECONDS_MAX = 8.0
MEMORY_MAX = 200 * MIB
GIB = 1024 * MIB


@contextmanager
def bounded(seconds: float = SECONDS_MAX, size: int = MEMORY_MAX) -> Iterator[None]:
    """The block takes no more processor time and no more memory than this."""
    reset_peak()
    resident, begun = status_bytes("VmRSS"), time.process_time()
    yield
    taken, grown = time.process_time() - begun, status_bytes("VmHWM") - resident
    assert taken < seconds
    assert grown < size


async def opened(folder: Path, scheme: str, raw: bytes) -> Volume:
    path = folder / "image"
    path.write_bytes(raw)
    return await open_volume(f"{scheme}:{path}")


async def listed(directory: DirectoryNode) -> list[str]:
    page = await directory.list()
    assert not page.more
    return [entry.name for entry in page.entries]


async def read(directory: DirectoryNode, name: str, offset: int = 0, length: int = 100) -> bytes:
    file = await directory.open(name)
    buffer = bytearray(length)
    got = await file.read_into(offset, memoryview(buffer))
    await file.close()
    return bytes(buffer[:got])


# Depth and size -----------------------------------------------------------------------------------


async def test_a_path_nested_100000_deep(tmp_path: Path) -> None:
    depth = 100_000
    raw = pax({"path": b"d/" * depth + b"f"}) + member(b"deep", name=b"f") + END
    with bounded():
        volume = await opened(tmp_path, "tar", raw)
        directory = volume.root
        for _ in range(depth):
            directory = await directory.sub("d")
        assert await listed(directory) == ["f"]
        assert await read(directory, "f") == b"deep"
        assert (await volume.usage()).used_nodes == depth + 2
    await volume.close()


async def test_many_members_at_a_deep_path(tmp_path: Path) -> None:
    """What a path of a member costs is in the archive's own bytes, for each of them."""
    path = b"d/" * 400_000
    raw = b"".join(
        pax({"path": path + b"%d" % number}) + member(b"x", name=b"x") for number in range(8)
    )
    with bounded(size=500 * MIB):
        volume = await opened(tmp_path, "tar", raw + END)
        assert (await volume.usage()).used_nodes == 400_000 + 8 + 1
    await volume.close()


SIZE = 60 * GIB


def sparse_1_0() -> bytes:
    numbers = (3, 0, 512, 30 * GIB, 512, SIZE - 4, 4)
    text = b"".join(b"%d\n" % number for number in numbers).ljust(512, b"\0")
    keywords = {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"sparse",
        "GNU.sparse.realsize": b"%d" % SIZE,
    }
    data = b"a" * 512 + b"b" * 512 + b"last"
    return pax(keywords) + member(text + data, name=b"GNUSparseFile.1/s")


def sparse_0_1() -> bytes:
    records = {
        "GNU.sparse.size": b"%d" % SIZE,
        "GNU.sparse.name": b"sparse",
        "GNU.sparse.map": b"0,512,%d,512,%d,4" % (30 * GIB, SIZE - 4),
    }
    return pax(records) + member(b"a" * 512 + b"b" * 512 + b"last", name=b"GNUSparseFile.1/s")


def sparse_old() -> bytes:
    def number(value: int) -> bytes:
        return b"\x80" + value.to_bytes(11, "big")

    places = ((0, 512), (30 * GIB, 512), (SIZE - 4, 4))
    entries = b"".join(number(start) + number(length) for start, length in places)
    data = b"a" * 512 + b"b" * 512 + b"last"
    header = block(
        name=b"sparse",
        flag=b"S",
        magic=b"ustar  \0",
        size=b"%o" % len(data),
        sparse=entries.ljust(97, b"\0"),
        real=number(SIZE),
    )
    return header + data.ljust(1536, b"\0")


@pytest.mark.parametrize("make", [sparse_1_0, sparse_0_1, sparse_old])
async def test_a_sparse_member_of_60_gb(make: object, tmp_path: Path) -> None:
    assert callable(make)
    with bounded(1.0):
        volume = await opened(tmp_path, "tar", make() + END)
        assert (await volume.root.lookup("sparse")).stat.size == SIZE
        assert await read(volume.root, "sparse", SIZE - 8) == bytes(4) + b"last"
        assert await read(volume.root, "sparse", SIZE) == b""
        assert await read(volume.root, "sparse", 30 * GIB - 2, 4) == b"\0\0bb"
        assert await read(volume.root, "sparse", 10 * GIB, MIB) == bytes(MIB)
    await volume.close()


async def test_a_size_that_the_archive_does_not_have(tmp_path: Path) -> None:
    raw = member(b"good", name=b"good") + block(name=b"huge", size=b"77777777777")
    volume = await opened(tmp_path, "tar", raw)
    with bounded(1.0):
        assert await read(volume.root, "good") == b"good"
        with pytest.raises(Corrupt):
            await read(volume.root, "huge")
    await volume.close()


# Names and links ----------------------------------------------------------------------------------


async def test_names_that_would_collide_after_escaping(tmp_path: Path) -> None:
    """A byte that is no UTF-8, the character it is shown as, and that character's own bytes."""
    names = [b"\xff", "\uefff".encode(), b"\xee\xbf", "\uefee\uefbf".encode(), b"\xff\xff"]
    tar = b"".join(member(name, name=name) for name in names) + END
    cpio = b"".join(
        cpio_member(b"070701", name, name, inode=number) for number, name in enumerate(names, 1)
    ) + cpio_member(b"070701", b"TRAILER!!!", mode=0)
    for scheme, raw in (("tar", tar), ("cpio", cpio)):
        volume = await opened(tmp_path, scheme, raw)
        shown = await listed(volume.root)
        assert len(set(shown)) == len(names)
        assert sorted([await read(volume.root, name) for name in shown]) == sorted(names)
        await volume.close()


async def test_members_that_lead_outside(tmp_path: Path) -> None:
    raw = (
        member(b"stays", name=b"in")
        + member(b"1", name=b"../out")
        + member(b"2", name=b"/absolute")
        + member(b"3", name=b"a/../../out")
        + block(name=b"to host", flag=b"2", link=b"/etc/passwd")
        + block(name=b"up", flag=b"2", link=b"../../..")
        + block(name=b"hard", flag=b"1", link=b"../../../etc/passwd")
        + block(name=b"hard absolute", flag=b"1", link=b"/in")
        + member(b"4", name=b"up/through a link")
        + END
    )
    volume = await opened(tmp_path, "tar", raw)
    root = volume.root
    assert await listed(root) == ["absolute", "hard", "hard absolute", "in", "to host", "up"]
    assert (await root.lookup("to host")).target == "/etc/passwd"
    with pytest.raises(StorageError):
        await root.open("to host")
    with pytest.raises(Corrupt):
        await read(root, "hard")
    assert await read(root, "hard absolute") == b"stays"
    # The last member of the name wins: what was a link is a directory, and nothing was followed.
    assert await read(await root.sub("up"), "through a link") == b"4"
    await volume.close()


async def test_members_that_lead_to_themselves(tmp_path: Path) -> None:
    raw = (
        block(name=b"self", flag=b"2", link=b"self")
        + block(name=b"hard", flag=b"1", link=b"hard")
        + block(name=b"one", flag=b"1", link=b"two")
        + block(name=b"two", flag=b"1", link=b"one")
        + block(name=b"d/", flag=b"5")
        + block(name=b"d/d", flag=b"1", link=b"d")
        + member(b"x", name=b"d/./././x")
        + END
    )
    volume = await opened(tmp_path, "tar", raw)
    with bounded(1.0):
        root = volume.root
        assert (await root.lookup("self")).target == "self"
        for name in ("hard", "one", "two"):
            with pytest.raises(Corrupt):
                await read(root, name)
        below = await root.sub("d")
        assert await listed(below) == ["d", "x"]
        assert (await below.lookup("d")).stat.kind is NodeKind.FILE
        with pytest.raises(NotFound):
            await below.lookup("..x")
    await volume.close()


# Bombs --------------------------------------------------------------------------------------------


async def test_a_bomb_of_headers(tmp_path: Path) -> None:
    """A small file that decompresses to members without end is refused by the index's budget."""
    raw = zst(block(name=b"d/x") * 320_000)
    assert len(raw) < 64 * 1024
    with bounded(10.0, 400 * MIB):
        with pytest.raises(TooLarge):
            await opened(tmp_path, "tar", raw)


@pytest.mark.parametrize("pack", [gz, xz, zst], ids=["gz", "xz", "zst"])
async def test_a_bomb_of_deep_paths(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    raw = pack(pax({"path": b"d/" * 500_000 + b"f"}) + member(b"x", name=b"f") + END)
    assert len(raw) < 64 * 1024
    with bounded(SECONDS_MAX, 400 * MIB):
        with pytest.raises(TooLarge):
            await opened(tmp_path, "tar", raw)


GLOBALS = {
    "a path with a bad end": ("path", b"d/" * 500_000 + b"../x", b"0"),
    "a path that is no UTF-8": ("path", b"\xff" * 1_000_000, b"0"),
    "a directory that is no UTF-8": ("path", b"\xff" * 1_000_000 + b"/x", b"5"),
    "a target of a hard link": ("linkpath", b"d/" * 500_000 + b"x", b"1"),
    "a target of a symbolic link": ("linkpath", b"\xff" * 1_000_000, b"2"),
    "a time": ("mtime", b"1." + b"1" * 1_000_000, b"0"),
}


@pytest.mark.parametrize("name", GLOBALS)
async def test_a_global_header_that_costs_each_member(name: str, tmp_path: Path) -> None:
    """A megabyte that is said once must not be taken apart for each member of 512 bytes."""
    keyword, value, flag = GLOBALS[name]
    header = block(name=b"f", flag=flag, link=b"target")
    raw = pax({keyword: value}, b"g") + header * 400 + END
    # Where it is, a minute or an hour: it ends at the first that are too long.
    few = pax({keyword: value}, b"g") + header * 4 + END
    with bounded(1.0):
        await (await opened(tmp_path, "tar", few)).close()
    with bounded(2.0):
        await (await opened(tmp_path, "tar", raw)).close()


NO_UTF8: Final = b"\xff" * 1_000_000
NAMES: Final = {
    "a path": ("tar", pax({"path": NO_UTF8}) + block(name=b"f") + END),
    "a target": ("tar", pax({"linkpath": NO_UTF8}) + block(name=b"f", flag=b"2") + END),
    "a hard link": ("tar", pax({"linkpath": NO_UTF8}) + block(name=b"f", flag=b"1") + END),
    "long names": ("tar", (member(NO_UTF8[:60_000], flag=b"L") + block(name=b"f")) * 16 + END),
    "cpio names": ("cpio", cpio_member(b"070701", NO_UTF8[:4095]) * 250),
}


@pytest.mark.parametrize("name", NAMES)
async def test_names_that_are_no_utf8_are_as_cheap_as_others(name: str, tmp_path: Path) -> None:
    """They pack well: of a small archive a gigabyte may have to be looked at."""
    scheme, raw = NAMES[name]
    with bounded(1.0):
        volume = await opened(tmp_path, scheme, zst(raw))
    assert set(await listed(volume.root)) <= {"f"}
    await volume.close()


# Numbers that multiply ----------------------------------------------------------------------------


def test_files_that_claim_all_extents() -> None:
    """Each file is looked at for what it has, not for what there is."""
    count = 4000
    table = NodeTable()
    for number in range(count):
        node = table.add(NodeKind.FILE)
        table.children[0][f"{number:06}"] = node
        if not number:
            table.set_content(node, 10 * count, [(10 * at, 1, at, 0) for at in range(count)])
    raw = bytearray(index_image(table.tables(), count))
    superblock = RO1_SUPERBLOCK.unpack(raw, "")
    start = superblock.nodesLba * BLOCK_BYTES
    rows = np.frombuffer(raw, RO1_NODE.dtype, superblock.nodeCount, start).copy()
    for field in ("size", "first", "count"):
        rows[field][1:] = rows[field][1]
    sealed = RO1_NODE.seal(rows)
    raw[start : start + len(sealed)] = sealed
    image = MemoryDevice(raw, read_only=True)
    tree = Ro1Tree(image, image.view, data=MemoryDevice(bytes(count)))
    with bounded(1.5):
        assert tree.content(1).size == 10 * count
        list(tree.verify())


def test_entries_that_lead_to_one_long_chain(tmp_path: Path) -> None:
    """Each of them is damaged, and says so without a walk along the whole chain."""
    forge = Forge.empty(tmp_path, 32)
    clusters = range(3000, 100, -1)
    head = forge.chain(*clusters)
    count = 16 * 1000
    forge.directory(forge.root, b"MANY       ", 0, *range(4000, 4000 + count // 16))
    entries = b"".join(
        short_entry(b"%-11d" % number, cluster=head, size=512 * len(clusters))
        for number in range(count - 2)
    )
    at = forge.offset(4000) + 64
    forge.data[at : at + len(entries)] = entries
    tree = FatTree(MemoryDevice(forge.data))
    with bounded(4.0):
        findings = list(tree.verify())
    assert len(findings) >= count - 2


def test_partition_tables_of_any_count(tmp_path: Path) -> None:
    """Of a GPT whose table is a megabyte of entries, and of a chain of boot records as long."""
    row = struct.pack("<16s16sQQQ72s", b"\1" * 16, bytes(16), 40, 50, 0, bytes(72))
    table = row * (MIB // 128)
    header = bytearray(
        struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART", 0x10000, 92, 0, 0, 1, 9, 4, 9, bytes(16), 2, len(table) // 128, 128,
            zlib.crc32(table),
        )
    )  # fmt: skip
    header[16:20] = zlib.crc32(bytes(header)).to_bytes(4, "little")
    mbr = bytes(446) + struct.pack("<B3xB3xII", 0, 0xEE, 1, 100) + bytes(48) + b"\x55\xaa"
    with bounded(1.0), pytest.raises(Corrupt):
        partitions(MemoryDevice(mbr + header.ljust(512, b"\0") + table))

    def link(first: int) -> bytes:
        rows = struct.pack("<B3xB3xII", 0, 1, 1, 1) + struct.pack("<B3xB3xII", 0, 5, first, 1)
        return bytes(446) + rows + bytes(32) + b"\x55\xaa"

    chain = b"".join(link(number) for number in range(1, 3000))
    with bounded(1.0), pytest.raises(Corrupt):
        partitions(MemoryDevice(link(1) + chain))
