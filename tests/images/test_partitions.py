"""Partition tables forged byte by byte, and FAT volumes opened in partitions."""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.devices import MemoryDevice
from capstore.images.fat import open_fat
from capstore.images.partitions import PARTITIONS_MAX, Partition, partitions
from capstore.schema.errors import Closed, Corrupt, InvalidArgument
from tests.images import fatimages
from tests.images.fatimages import TREE, read_tree

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
Row = tuple[int, int, int]


def boot_record(rows: list[Row]) -> bytes:
    """A boot record with a table of (type, first sector, sectors)."""
    table = b"".join(
        struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\xff\xff\xff", first, sectors)
        for kind, first, sectors in rows
    )
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def disk(records: dict[int, list[Row]], sectors: int = 4000) -> bytearray:
    """A disk with boot records in the sectors that are named."""
    data = bytearray(sectors * 512)
    for sector, rows in records.items():
        data[sector * 512 : sector * 512 + 512] = boot_record(rows)
    return data


def read(data: bytes | bytearray) -> list[Partition]:
    return partitions(MemoryDevice(data))


def test_primary_partitions() -> None:
    data = disk({0: [(0x0C, 64, 1000), (0, 0, 0), (0x83, 1064, 500), (0x06, 1564, 36)]})
    assert read(data) == [
        Partition(1, 64 * 512, 1000 * 512, "0c"),
        Partition(3, 1064 * 512, 500 * 512, "83"),
        Partition(4, 1564 * 512, 36 * 512, "06"),
    ]


@pytest.mark.parametrize("kind", [0x05, 0x0F, 0x85])
def test_logical_partitions(kind: int) -> None:
    data = disk(
        {
            0: [(0x0C, 64, 100), (kind, 200, 3000)],
            200: [(0x0B, 10, 90), (kind, 300, 200)],
            500: [(0x83, 20, 100), (kind, 800, 200)],
            1000: [(0x06, 30, 110)],
        }
    )
    assert [(one.number, one.start // 512, one.length // 512) for one in read(data)] == [
        (1, 64, 100),
        (5, 210, 90),
        (6, 520, 100),
        (7, 1030, 110),
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({200: [(0x0B, 10, 90), (0x05, 0, 200)]}, "offset 102400 is linked twice"),
        ({200: [(0x05, 100, 9)], 300: [(0x05, 100, 9)]}, "offset 153600 is linked twice"),
        ({}, "offset 102400 is none"),
        ({200: [(0x05, 100_000, 9)]}, "offset 51302400 is cut off"),
        ({200: [(0x05, 0xFFFFFFFF, 9)]}, "is cut off"),
        (
            {200 + at: [(0x05, at + 1, 9)] for at in range(PARTITIONS_MAX + 1)},
            f"more than {PARTITIONS_MAX}",
        ),
    ],
)
def test_chains_of_boot_records_are_bounded(records: dict[int, list[Row]], message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        read(disk({0: [(0x05, 200, 3000)], **records}))


def test_what_is_no_table() -> None:
    assert read(b"") == []
    assert read(bytes(511)) == []
    assert read(bytes(4096)) == []
    assert read(disk({0: []})) == []
    data = disk({0: [(0x0C, 64, 1000)]})
    data[446] = 0x42
    assert read(data) == []


# GPT ----------------------------------------------------------------------------------------------


def gpt_entry(kind: str, first: int, last: int, name: str) -> bytes:
    guid = uuid.UUID(kind).bytes_le
    own = uuid.UUID(int=first).bytes_le
    text = name.encode("utf-16-le").ljust(72, b"\0")
    return struct.pack("<16s16sQQQ72s", guid, own, first, last, 0, text)


def gpt_header(
    own: int, other: int, table_lba: int, table: bytes, count: int, width: int = 128
) -> bytes:
    fields = (b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, 999, bytes(16), table_lba)
    raw = struct.pack("<8sIIIIQQQQ16sQIII", *fields, count, width, zlib.crc32(table))
    return raw[:16] + struct.pack("<I", zlib.crc32(raw)) + raw[20:]


ENTRIES = [
    gpt_entry(ESP, 100, 299, "EFI system"),
    bytes(128),
    gpt_entry(LINUX, 300, 300, "Größe \U0001f600"),
]
EXPECTED = [(1, 100, 200, ESP, "EFI system"), (3, 300, 1, LINUX, "Größe \U0001f600")]


def gpt(sector: int = 512, sectors: int = 1000, entries: list[bytes] | None = None) -> bytearray:
    """A disk with a GPT and its backup."""
    table = b"".join(ENTRIES if entries is None else entries).ljust(128 * 128, b"\0")
    data = bytearray(sector * sectors)
    data[:512] = boot_record([(0xEE, 1, sectors - 1)])
    backup = sectors - 1 - len(table) // sector
    for own, other, at in ((1, sectors - 1, 2), (sectors - 1, 1, backup)):
        header = gpt_header(own, other, at, table, 128)
        data[own * sector : own * sector + len(header)] = header
        data[at * sector : at * sector + len(table)] = table
    return data


def shown(data: bytes | bytearray, sector: int = 512) -> list[tuple[int, int, int, str, str]]:
    return [
        (one.number, one.start // sector, one.length // sector, one.type, one.name)
        for one in read(data)
    ]


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector: int) -> None:
    assert shown(gpt(sector), sector) == EXPECTED


@pytest.mark.parametrize("at", [512, 512 + 16, 512 + 24, 512 + 72, 1024, 1024 + 128 * 127])
def test_the_backup_stands_in(at: int) -> None:
    data = gpt()
    data[at] ^= 0x10
    assert shown(data) == EXPECTED
    data[-512 + 16] ^= 1
    with pytest.raises(Corrupt, match="GPT"):
        read(data)


def test_a_gpt_that_is_cut_off_still_has_its_first_table() -> None:
    data = gpt()
    assert shown(data[: -100 * 512]) == EXPECTED
    for length in (512, 600, 1024, 1500, 4096):
        with pytest.raises(Corrupt):
            read(data[:length])


def forged_header(**changes: int) -> bytearray:
    """A disk whose only GPT header has valid checksums and forged fields."""
    data = gpt()
    values: dict[str, int] = {"lba": 2, "count": 128, "width": 128, **changes}
    table = bytes(data[1024 : 1024 + 128 * 128])
    header = gpt_header(1, 999, values["lba"], table, values["count"], values["width"])
    data[512 : 512 + len(header)] = header
    data[-512:] = bytes(512)
    return data


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0xFFFFFFFF},
        {"count": 0xFFFFFFFF, "width": 0xFFFFFFFF},
        {"width": 0xFFFFFFFF},
        {"lba": 2**64 - 1},
        {"lba": 10_000},
        {"lba": 3},
        {"width": 64, "count": 256},
        {"width": 4, "count": 4096},
    ],
)
def test_forged_headers(changes: dict[str, int]) -> None:
    assert shown(forged_header()) == EXPECTED
    with pytest.raises(Corrupt, match="GPT"):
        read(forged_header(**changes))


@pytest.mark.parametrize(("first", "last"), [(5, 4), (0, 2**64 - 1), (2**63, 2**63)])
def test_forged_entries(first: int, last: int) -> None:
    with pytest.raises(Corrupt, match="entry 1 of the GPT"):
        read(gpt(entries=[gpt_entry(ESP, first, last, "x")]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_are_partitions_or_damage(data: st.DataObject) -> None:
    image = gpt(sectors=200) if data.draw(st.booleans()) else disk({0: [(5, 1, 9)], 1: []}, 200)
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(446, 2000))] = data.draw(st.integers(0, 255))
    try:
        found = read(image)
    except Corrupt:
        return
    assert len(found) <= PARTITIONS_MAX


# FAT in partitions --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("volume")
    image = fatimages.make(folder / "volume.img", 1440, "-F", "12", "-n", "PART")
    return fatimages.fill(image, fatimages.plant(folder / "planted", TREE)).read_bytes()


@pytest.fixture(params=["mbr", "logical", "gpt"])
def partitioned(request: pytest.FixtureRequest, volume: bytes) -> tuple[bytearray, int]:
    """A disk with the volume in it, and the number of its partition."""
    sectors = len(volume) // 512
    if request.param == "gpt":
        entries = [gpt_entry(LINUX, 50, 60, "other"), gpt_entry(ESP, 100, 99 + sectors, "fat")]
        data, number = gpt(sectors=4000, entries=entries), 2
    elif request.param == "mbr":
        data, number = disk({0: [(0x83, 50, 11), (0x01, 100, sectors)]}), 2
    else:
        data = disk({0: [(0x83, 50, 11), (0x05, 90, 3900)], 90: [(0x01, 10, sectors)]})
        number = 5
    data[100 * 512 : 100 * 512 + len(volume)] = volume
    return data, number


def test_a_partition_is_served(partitioned: tuple[bytearray, int]) -> None:
    data, number = partitioned
    device = MemoryDevice(data)
    tree = open_fat(device, number)
    assert read_tree(tree) == TREE
    assert tree.usage().label == "PART"
    assert list(tree.verify()) == []
    tree.close()
    with pytest.raises(Closed):
        device.size()


def test_a_partition_must_be_named(partitioned: tuple[bytearray, int]) -> None:
    data, number = partitioned
    device = MemoryDevice(data)
    with pytest.raises(InvalidArgument, match=rf"part=N: part=1 .*part={number} "):
        open_fat(device)
    for wrong in (0, -1, number + 1, 99):
        with pytest.raises(InvalidArgument, match=rf"no part={wrong}, but part=1 "):
            open_fat(device, wrong)
    with pytest.raises(Corrupt, match="boot sector"):
        open_fat(device, 1)
    assert device.size() == len(data)


def test_a_partition_that_is_cut_off(partitioned: tuple[bytearray, int]) -> None:
    data, number = partitioned
    with pytest.raises(Corrupt, match=f"partition {number} at offset 51200 is cut off"):
        open_fat(MemoryDevice(data[: 200 * 512]), number)


def test_a_bare_volume_has_no_partitions(volume: bytes) -> None:
    assert read_tree(open_fat(MemoryDevice(volume))) == TREE
    with pytest.raises(InvalidArgument, match="no part=1, but no partition"):
        open_fat(MemoryDevice(volume), 1)


def test_a_volume_with_a_table_of_its_own_is_bare(tmp_path: Path) -> None:
    image = fatimages.make(tmp_path / "stick.img", 8192, "--mbr=y")
    data = image.read_bytes()
    assert data[446 + 4] != 0
    assert read(data) == []
    assert read_tree(open_fat(MemoryDevice(data))) == {"": b""}


def test_damage_behind_a_partition_leaves_it_readable(volume: bytes) -> None:
    data = disk({0: [(0x0C, 64, len(volume) // 512), (0x05, 3000, 900)]})
    data[64 * 512 : 64 * 512 + len(volume)] = volume
    with pytest.raises(Corrupt, match="offset 1536000 is none"):
        read(data)
    tree = open_fat(MemoryDevice(data), 1)
    assert tree.usage().total_bytes
    with pytest.raises(Corrupt, match="offset 1536000 is none"):
        open_fat(MemoryDevice(data), 5)


def test_what_is_neither() -> None:
    for data in (b"", bytes(100), bytes(4096), b"\x55\xaa" * 600):
        with pytest.raises(Corrupt, match="boot sector"):
            open_fat(MemoryDevice(data))
