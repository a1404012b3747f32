"""FAT images made by mkfs.fat and mtools, served and compared with a second reader."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capstore.images import fat
from capstore.images.devices import MappedDevice, MemoryDevice
from capstore.images.fat import FatTree, open_fat
from capstore.schema.errors import (
    Closed,
    Corrupt,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    Unsupported,
)
from capstore.schema.nodes import NodeKind, Provenance
from tests.images import fatimages
from tests.images.fatimages import TREE, Forge, everything, read_tree, short_entry

SHAPES = {
    "fat12": (1440, "-F", "12"),
    "fat12 of one cluster a sector": (720, "-F", "12", "-s", "1"),
    "fat12 with one FAT": (512, "-F", "12", "-f", "1"),
    "fat16": (8192, "-F", "16", "-s", "2"),
    "fat16 with sectors of 2048": (65536, "-F", "16", "-S", "2048"),
    "fat16 of large clusters": (262_144, "-F", "16", "-s", "128"),
    "fat32": (40_000, "-F", "32", "-s", "1"),
    "fat32 with sectors of 4096": (300_000, "-F", "32", "-S", "4096", "-s", "1"),
    "fat32 with one FAT": (34_000, "-F", "32", "-f", "1", "-s", "1"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fatimages.plant(tmp_path_factory.mktemp("planted"), TREE)


@pytest.fixture(scope="module", params=SHAPES)
def image(
    request: pytest.FixtureRequest, planted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    kib, *options = SHAPES[request.param]
    path = tmp_path_factory.mktemp("image") / "disk.img"
    fatimages.make(path, int(kib), "-n", "A LABEL", *map(str, options))
    return fatimages.fill(path, planted)


@pytest.fixture
def tree(image: Path) -> FatTree:
    return open_fat(MappedDevice.open(image))


def test_every_file_comes_back(tree: FatTree) -> None:
    assert read_tree(tree) == TREE


def test_a_second_reader_agrees(tree: FatTree, image: Path, tmp_path: Path) -> None:
    fatimages.run("mcopy", "-s", "-m", "-Q", "-i", image, "::/*", tmp_path)
    copied = {
        str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()
    }
    assert {name: path.read_bytes() for name, path in copied.items()} == read_tree(tree)
    for name, path in copied.items():
        node = tree.root
        for part in name.split("/"):
            stat = tree.lookup(node, part).stat
            node = stat.node_id
        assert stat.modified == path.stat().st_mtime_ns
        assert stat.provenance is Provenance.FAT_DIRECTORY_ENTRY
        assert not stat.executable


def test_a_clean_image_is_clean_for_both(tree: FatTree, image: Path) -> None:
    fatimages.fsck(image)
    assert list(tree.verify()) == []


def test_usage_is_what_mtools_counts(tree: FatTree, image: Path) -> None:
    usage = tree.usage()
    listed = fatimages.run("mdir", "-i", image, "::/").splitlines()[-2:]
    free = next(line for line in listed if "bytes free" in line)
    assert usage.free_bytes == int(free.replace("bytes free", "").replace(" ", ""))
    assert usage.label == "A LABEL"
    assert usage.used_bytes + usage.free_bytes == usage.total_bytes
    directories = {name.rpartition("/")[0] for name in TREE}
    parents = {name.split("/")[0] for name in directories} | directories | {"sub/inner"}
    assert usage.used_nodes == len(TREE) + len(parents)


def test_regions_are_ascending_and_whole(tree: FatTree, image: Path) -> None:
    end = 0
    for region in tree.regions():
        assert region.start == end
        assert region.length > 0
        end += region.length
    assert end == image.stat().st_size
    free = sum(region.length for region in tree.regions() if region.kind == "free")
    assert free == tree.usage().free_bytes


def test_the_description_names_the_type(tree: FatTree, request: pytest.FixtureRequest) -> None:
    shown = tree.describe()
    assert shown["format"].lower() == request.node.callspec.params["image"][:5]
    assert shown["unmounted"] is True
    assert shown["volume_id"] == "1234ABCD"
    assert shown["free_clusters_hint"] in (None, shown["free_clusters"])


# What does not depend on the image's shape --------------------------------------------------------


@pytest.fixture(scope="module")
def floppy(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = fatimages.make(tmp_path_factory.mktemp("floppy") / "floppy.img", 1440, "-F", "12")
    return fatimages.fill(path, planted).read_bytes()


def test_lookup_takes_any_case_and_short_names(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    long = "Mixed Case Name.TXT"
    for name in (long, long.upper(), long.lower(), "MIXEDC~1.TXT", "mixedc~1.txt"):
        assert tree.lookup(tree.root, name).name == long
    assert tree.lookup(tree.root, "GRÜSSE AUS KÖLN.TXT".replace("SS", "ß")).name.startswith("Gr")
    with pytest.raises(NotFound):
        tree.lookup(tree.root, "GRÜSSE AUS KÖLN.TXT")
    folder = tree.lookup(tree.root, "ПУСТАЯ ПАПКА").stat
    assert tree.lookup(folder.node_id, "Текст").name == "текст"


def test_lookup_refuses_what_is_no_name(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    for name in ("", ".", "..", "a/b", "a\0", "x" * 256):
        with pytest.raises(InvalidName):
            tree.lookup(tree.root, name)


def test_pages_follow_one_another(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    whole = tree.list(tree.root, "", 1000)
    assert not whole.more
    names = [entry.name for entry in whole.entries]
    assert names == sorted(names, key=str.encode)
    after, seen = "", list[str]()
    while True:
        page = tree.list(tree.root, after, 3)
        seen += [entry.name for entry in page.entries]
        assert len(page.entries) <= 3
        if not page.more:
            break
        after = seen[-1]
    assert seen == names
    assert len(tree.list(tree.root, "", 0).entries) == 1
    assert tree.list(tree.root, names[-1], 5).entries == []


def test_stat_by_id_is_what_was_listed(floppy: bytes) -> None:
    listed = FatTree(MemoryDevice(floppy))
    fresh = FatTree(MemoryDevice(floppy))
    ids = set()
    pending = [listed.root]
    while pending:
        for entry in listed.list(pending.pop(), "", 1000).entries:
            ids.add(entry.stat.node_id)
            assert fresh.stat(entry.stat.node_id) == entry.stat
            if entry.stat.kind is NodeKind.DIRECTORY:
                pending.append(entry.stat.node_id)
    assert len(ids) == fresh.usage().used_nodes - 1
    assert fresh.stat(fresh.root).kind is NodeKind.DIRECTORY


def test_what_is_no_node(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    for node in (0, 2, 10**15, -1, 2**62):
        for use in (tree.stat, tree.content, lambda node: tree.list(node, "", 1)):
            with pytest.raises(NotFound):
                use(node)
    file = tree.lookup(tree.root, "README").stat.node_id
    with pytest.raises(NotDirectory):
        tree.list(file, "", 1)
    with pytest.raises(NotDirectory):
        tree.lookup(file, "README")
    for node in (tree.root, tree.lookup(tree.root, "sub").stat.node_id):
        with pytest.raises(IsDirectory):
            tree.content(node)


def test_only_the_first_look_waits(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    assert tree.waits(tree.root)
    sub = tree.lookup(tree.root, "sub").stat.node_id
    assert not tree.waits(tree.root)
    assert tree.waits(sub)
    tree.list(sub, "", 1)
    assert not tree.waits(sub)


def test_listings_are_kept_while_there_is_room(
    floppy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fat, "CACHED_ENTRIES_MAX", 30)
    tree = FatTree(MemoryDevice(floppy))
    for _ in range(2):
        assert read_tree(tree) == TREE
    kept = [node for node in directories(tree) if not tree.waits(node)]
    assert 0 < len(kept) < len(directories(tree))


def directories(tree: FatTree) -> list[int]:
    found = [tree.root]
    for node in found:
        entries = tree.list(node, "", 1000).entries
        found += [one.stat.node_id for one in entries if one.stat.kind is NodeKind.DIRECTORY]
    return found


def test_threads_read_the_same(floppy: bytes) -> None:
    for _ in range(5):
        tree = FatTree(MemoryDevice(floppy))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read_tree, [tree] * 8)) == [TREE] * 8


def test_content_is_read_in_pieces(floppy: bytes) -> None:
    tree = FatTree(MemoryDevice(floppy))
    name = next(name for name in TREE if name.startswith("a name"))
    content = tree.content(tree.lookup(tree.root, name).stat.node_id)
    for offset, length in ((0, 1), (511, 2), (512, 512), (5000, 9999), (10_239, 5), (10_240, 5)):
        buffer = bytearray(length)
        got = content.read_into(offset, memoryview(buffer))
        assert bytes(buffer[:got]) == TREE[name][offset : offset + length]


def test_fragments_are_put_together(tmp_path: Path) -> None:
    for bits in (12, 16, 32):
        forge = Forge.empty(tmp_path, bits)
        content = bytes(range(256)) * 6
        node = forge.file(forge.root, b"PIECES     ", content, 9, 5, 6)
        assert everything(forge.tree().content(node)) == content


def test_closing_closes_the_device(floppy: bytes) -> None:
    device = MemoryDevice(floppy)
    tree = FatTree(device)
    tree.list(tree.root, "", 1)
    tree.close()
    tree.close()
    with pytest.raises(Closed):
        device.size()
    with pytest.raises(Closed):
        tree.list(tree.root, "", 1)


def test_attributes_do_not_matter(tmp_path: Path, planted: Path) -> None:
    image = fatimages.make(tmp_path / "attributes.img", 1440)
    fatimages.fill(image, planted)
    fatimages.run("mattrib", "+r", "+h", "+s", "-i", image, "::/README", "::/sub")
    assert read_tree(FatTree(MemoryDevice(image.read_bytes()))) == TREE


def test_the_label_is_the_roots_or_else_the_boot_sectors(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 12)
    assert forge.tree().usage().label == ""
    forge.data[43:54] = b"IN BOOT    "
    assert forge.tree().usage().label == "IN BOOT"
    forge.put(forge.root, short_entry(b"GONE".ljust(11), attributes=0x08))
    forge.data[forge.root] = 0xE5
    forge.put(forge.root, short_entry(b"IN R\x99\x99T    ", attributes=0x28))
    tree = forge.tree()
    assert tree.usage().label == "IN RÖÖT"
    assert tree.list(tree.root, "", 10).entries == []


def test_the_table_that_is_in_use_is_read(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    node = forge.file(forge.root, b"FILE       ", b"x" * 1024, 5, 6)
    forge.link(5, 77, copies=(0,))
    with pytest.raises(Corrupt):
        forge.tree().content(node)
    forge.data[40] = 0x81
    assert everything(forge.tree().content(node)) == b"x" * 1024


def test_four_fats(tmp_path: Path, planted: Path) -> None:
    # fsck.fat knows only volumes with one or two.
    image = fatimages.make(tmp_path / "four.img", 34_000, "-F", "32", "-f", "4", "-s", "1")
    tree = FatTree(MemoryDevice(fatimages.fill(image, planted).read_bytes()))
    assert read_tree(tree) == TREE
    assert list(tree.verify()) == []


def test_fat32_is_known_by_its_layout_where_it_has_few_clusters(tmp_path: Path) -> None:
    # mkfs.fat makes such volumes and Linux reads them; mtools does not write them.
    image = fatimages.make(tmp_path / "few.img", 34_000, "-F", "32", "-s", "8")
    forge = Forge(bytearray(image.read_bytes()))
    node = forge.file(forge.root, b"FILE       ", b"few" * 3000, 5, 9, 10)
    tree = forge.tree()
    assert tree.describe()["format"] == "FAT32"
    assert tree.describe()["clusters"] < 65_525
    assert everything(tree.content(node)) == b"few" * 3000


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_two_thousand_entries(tmp_path: Path, bits: int) -> None:
    forge = Forge.empty(tmp_path, bits)
    count = 2000
    clusters = range(3, 3 + (count * 4 + 2) * 32 // 512 + 1)
    forge.directory(forge.root, b"MANY       ", 0, *clusters)
    rows = forge.offset(3)
    for number in range(count):
        short = f"F{number:06}TXT".encode().ljust(11)[:11]
        long = fatimages.long_entries(f"a long name with number {number}", short)
        rows = forge.put(rows, *long, short_entry(short))
    path = tmp_path / "many.img"
    path.write_bytes(forge.data)
    if bits != 32:
        fatimages.fsck(path)
    tree = forge.tree()
    folder = tree.lookup(tree.root, "many").stat.node_id
    names, after = list[str](), ""
    while True:
        page = tree.list(folder, after, 1000)
        names += [entry.name for entry in page.entries]
        if not page.more:
            break
        after = names[-1]
    assert names == sorted(f"a long name with number {number}" for number in range(count))


# The boot sector ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (510, b"\0\0"),
        (11, b"\0\1"),
        (11, b"\0\0"),
        (11, b"\0\x20"),
        (13, b"\0"),
        (13, b"\3"),
        (14, b"\0\0"),
        (14, b"\xff\xff"),
        (16, b"\0"),
        (17, b"\0\0"),
        (19, b"\1\0"),
        (19, b"\xff\xff"),
        (21, b"\x11"),
        (22, b"\1\0"),
        (22, b"\xff\xff"),
    ],
)
def test_boot_sectors_that_are_none(tmp_path: Path, offset: int, value: bytes) -> None:
    forge = Forge.empty(tmp_path, 12)
    forge.data[offset : offset + len(value)] = value
    with pytest.raises(Corrupt, match="boot sector at offset 0"):
        forge.tree()


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (17, b"\1\0", Corrupt),
        (36, b"\0\0\0\0", Corrupt),
        (36, b"\xff\xff\xff\xff", Corrupt),
        (40, b"\x85\0", Corrupt),
        (42, b"\1\0", Unsupported),
        (44, b"\0\0\0\0", Corrupt),
        (44, b"\xff\xff\xff\x0f", Corrupt),
        (32, b"\xff\xff\xff\xff", Corrupt),
    ],
)
def test_boot_sectors_of_fat32_that_are_none(
    tmp_path: Path, offset: int, value: bytes, error: type[Exception]
) -> None:
    forge = Forge.empty(tmp_path, 32)
    forge.data[offset : offset + len(value)] = value
    with pytest.raises(error):
        forge.tree()


def test_an_image_that_is_shorter_than_its_boot_sector_says(floppy: bytes) -> None:
    for length in (0, 1, 100, 511, 512, 513, len(floppy) // 2, len(floppy) - 1):
        with pytest.raises(Corrupt):
            FatTree(MemoryDevice(floppy[:length]))
