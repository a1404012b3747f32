"""Damaged FAT images: one file's damage stays its own, and nothing but listed errors comes out."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.fat import FatTree
from capstore.schema.errors import Corrupt, NotFound, StorageError
from capstore.schema.nodes import NodeKind
from tests.images.fatimages import Forge, everything, fill, make, plant, read_tree, short_entry

BAD = 0x0FFFFFF7
GOOD = b"good" * 200


@pytest.fixture(params=[12, 16, 32])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    """A volume with a sound file GOOD in clusters 100 and 101, and a file BAD in 10, 11 and 12."""
    forge = Forge.empty(tmp_path, request.param)
    forge.file(forge.root, b"GOOD       ", GOOD, 100, 101)
    forge.file(forge.root, b"BAD        ", b"b" * 1500, 10, 11, 12)
    return forge


def size_at(forge: Forge, size: int) -> None:
    struct.pack_into("<I", forge.data, forge.root + 32 + 28, size)


def head_at(forge: Forge, cluster: int) -> None:
    struct.pack_into("<H", forge.data, forge.root + 32 + 26, cluster)


def shared_head(forge: Forge) -> None:
    forge.put(forge.root, short_entry(b"TWIN       ", cluster=10, size=1500))


def head_inside(forge: Forge) -> None:
    forge.put(forge.root, short_entry(b"TWIN       ", cluster=11, size=1000))


def far_head(forge: Forge) -> None:
    forge.directory(forge.root, b"FOLDER     ", 0, 50)
    forge.put(forge.offset(50), short_entry(b"TWIN       ", cluster=10, size=1500))


def merge(forge: Forge) -> None:
    forge.file(forge.root, b"TWIN       ", b"t" * 1500, 30, 31)
    forge.link(31, 12)


DAMAGE: dict[str, tuple[Callable[[Forge], None], str]] = {
    "loop to the start": (lambda forge: forge.link(12, 10), "loops back to cluster 10"),
    "loop to itself": (lambda forge: forge.link(12, 12), "loops back to cluster 12"),
    "loop in the middle": (lambda forge: forge.link(12, 11), "loops back to cluster 11"),
    "free inside": (lambda forge: forge.link(11, 0), "cluster 11 is marked as free"),
    "free at the start": (lambda forge: forge.link(10, 0), "cluster 10 is marked as free"),
    "bad inside": (lambda forge: forge.link(11, BAD), "cluster 11 is marked as bad"),
    "reserved number": (lambda forge: forge.link(11, 1), "leads to cluster 1, which"),
    "behind the end": (
        lambda forge: forge.link(11, forge.clusters + 2),
        "cluster 11 leads to cluster",
    ),
    "short chain": (lambda forge: forge.link(11, 0x0FFFFFFF), "ends with cluster 11"),
    "long chain": (lambda forge: forge.chain(12, 13), "goes on with cluster 13"),
    "long chain elsewhere": (lambda forge: forge.chain(12, 40), "goes on with cluster 40"),
    "size too small": (lambda forge: size_at(forge, 512), "goes on with cluster 11"),
    "size too large": (lambda forge: size_at(forge, 1537), "3 clusters instead of 4"),
    "largest size": (lambda forge: size_at(forge, 0xFFFFFFFF), "ends with cluster 12"),
    "size zero with a chain": (lambda forge: size_at(forge, 0), "empty file has the cluster 10"),
    "no first cluster": (lambda forge: head_at(forge, 0), "entry leads to cluster 0"),
    "first cluster 1": (lambda forge: head_at(forge, 1), "entry leads to cluster 1"),
    "first cluster too high": (lambda forge: head_at(forge, 0xFFFF), "cluster"),
    "two first clusters": (shared_head, "cluster 10 is cross-linked"),
    "first cluster inside": (head_inside, "cluster 11 is cross-linked"),
    "first cluster elsewhere": (far_head, "cluster 10 is cross-linked"),
    "chains that meet": (merge, "cluster 12 is cross-linked"),
    "a lost chain that meets": (lambda forge: forge.link(200, 11), "cluster 11 is cross-linked"),
    "copies differ": (
        lambda forge: forge.link(11, 14, copies=(1,)),
        "copies of the FAT differ in cluster 11",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_the_files_own(forge: Forge, case: str) -> None:
    damage, message = DAMAGE[case]
    tree = forge.tree()
    assert everything(tree.content(tree.lookup(tree.root, "bad").stat.node_id)) == b"b" * 1500
    assert list(tree.verify()) == []
    damage(forge)
    tree = forge.tree()
    node = tree.lookup(tree.root, "bad").stat.node_id
    for _ in range(2):
        with pytest.raises(Corrupt, match=message) as raised:
            tree.content(node)
        assert str(forge.root + 32) in raised.value.message
    assert everything(tree.content(tree.lookup(tree.root, "good").stat.node_id)) == GOOD
    found = [finding for finding in tree.verify() if finding.where == "/BAD"]
    assert [finding.offset for finding in found] == [forge.root + 32]
    assert message in found[0].message


# Directories --------------------------------------------------------------------------------------


@pytest.fixture
def folders(forge: Forge) -> Forge:
    """/OUTER (20) with /OUTER/INNER (21) and a file in each."""
    forge.directory(forge.root, b"OUTER      ", 0, 20)
    forge.directory(forge.offset(20), b"INNER      ", 20, 21)
    forge.file(forge.offset(20), b"FILE       ", b"outer", 22)
    forge.file(forge.offset(21), b"FILE       ", b"inner", 23)
    return forge


def walk(tree: FatTree, *names: str) -> int:
    node = tree.root
    for name in names:
        node = tree.lookup(node, name).stat.node_id
    return node


def test_folders_are_sound(folders: Forge) -> None:
    tree = folders.tree()
    assert everything(tree.content(walk(tree, "outer", "inner", "file"))) == b"inner"
    assert list(tree.verify()) == []


@pytest.mark.parametrize("target", [20, 21])
def test_a_loop_to_an_ancestor(folders: Forge, target: int) -> None:
    entry = short_entry(b"LOOP       ", attributes=0x10, cluster=target)
    at = folders.put(folders.offset(21), entry)
    tree = folders.tree()
    with pytest.raises(Corrupt, match=f"cluster {target} is another directory's") as raised:
        tree.list(walk(tree, "outer", "inner", "loop"), "", 10)
    assert str(at) in raised.value.message
    assert everything(tree.content(walk(tree, "outer", "inner", "file"))) == b"inner"
    assert "/OUTER/INNER/LOOP" in [finding.where for finding in tree.verify()]


def test_a_loop_to_the_root(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    forge.put(forge.root, short_entry(b"LOOP       ", attributes=0x10, cluster=2))
    forge.put(forge.root, short_entry(b"ZERO       ", attributes=0x10, cluster=0))
    tree = forge.tree()
    for name in ("loop", "zero"):
        with pytest.raises(Corrupt, match="cluster"):
            tree.list(walk(tree, name), "", 10)
    assert len(tree.list(tree.root, "", 10).entries) == 2


def test_a_directory_with_two_entries_belongs_to_the_first(folders: Forge) -> None:
    folders.put(folders.root, short_entry(b"TWIN       ", attributes=0x10, cluster=20))
    for first in ("outer", "twin"):
        tree = folders.tree()
        walk(tree, first)
        assert everything(tree.content(walk(tree, "outer", "file"))) == b"outer"
        with pytest.raises(Corrupt, match="cluster 20 is another"):
            tree.list(walk(tree, "twin"), "", 10)


def test_a_file_in_a_directorys_clusters_is_damaged_alone(folders: Forge) -> None:
    folders.put(folders.root, short_entry(b"SPY        ", cluster=20, size=100))
    tree = folders.tree()
    with pytest.raises(Corrupt, match="cluster 20 is cross-linked"):
        tree.content(walk(tree, "spy"))
    assert everything(tree.content(walk(tree, "outer", "file"))) == b"outer"


def test_a_directory_that_begins_as_none(folders: Forge) -> None:
    # Its entry leads to a file, whose content would be entries by chance.
    folders.put(folders.root, short_entry(b"FAKE       ", attributes=0x10, cluster=100))
    tree = folders.tree()
    with pytest.raises(Corrupt, match="cluster 100 does not begin a directory"):
        tree.list(walk(tree, "fake"), "", 10)
    assert everything(tree.content(walk(tree, "good"))) == GOOD


@pytest.mark.parametrize("slot", [0, 1])
def test_one_dot_entry_is_enough(folders: Forge, slot: int) -> None:
    folders.data[folders.offset(20) + slot * 32] = 0xE5
    tree = folders.tree()
    assert everything(tree.content(walk(tree, "outer", "file"))) == b"outer"
    assert [finding.where for finding in tree.verify()] == ["/OUTER"]


def test_forged_dot_entries_lead_nowhere(folders: Forge) -> None:
    for slot, cluster in ((0, 21), (1, 20)):
        struct.pack_into("<H", folders.data, folders.offset(20) + slot * 32 + 26, cluster)
    tree = folders.tree()
    listed = [entry.name for entry in tree.list(walk(tree, "outer"), "", 10).entries]
    assert listed == ["FILE", "INNER"]
    assert [(finding.where, finding.offset) for finding in tree.verify()] == [
        ("/OUTER", folders.offset(20)),
        ("/OUTER", folders.offset(20) + 32),
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda forge: forge.link(20, 0), "cluster 20 is marked as free"),
        (lambda forge: forge.link(20, 1), "cluster 20 leads to cluster 1"),
        (lambda forge: forge.link(20, 20), "cluster 20 begins a directory and is inside"),
        (lambda forge: forge.link(201, 20), "cluster 20 begins a directory and is inside"),
        (lambda forge: forge.link(20, 5, copies=(0,)), "copies of the FAT differ in cluster 20"),
    ],
)
def test_chains_of_directories(
    folders: Forge, damage: Callable[[Forge], None], message: str
) -> None:
    damage(folders)
    tree = folders.tree()
    with pytest.raises(Corrupt, match=message):
        tree.list(walk(tree, "outer"), "", 10)
    assert everything(tree.content(walk(tree, "good"))) == GOOD
    found = [finding.message for finding in tree.verify() if finding.where == "/OUTER"]
    assert len(found) == 1
    assert message in found[0]


def test_an_endless_directory_is_bounded(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 16)
    count = 5000
    forge.directory(forge.root, b"LONG       ", 0, *range(10, 10 + count))
    tree = forge.tree()
    with pytest.raises(Corrupt, match="too long"):
        tree.list(walk(tree, "long"), "", 10)


def test_a_damaged_root_of_fat32_costs_the_tree_alone(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    forge.link(2, 0)
    tree = forge.tree()
    with pytest.raises(Corrupt, match="the root directory"):
        tree.list(tree.root, "", 10)
    assert tree.usage().total_bytes
    assert "/" in [finding.where for finding in tree.verify()]
    assert list(tree.regions())


def test_deep_nesting_is_walked_in_bounded_time(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    deep = 1000
    where, parent = forge.root, 0
    for cluster in range(10, 10 + deep):
        forge.directory(where, b"D          ", parent, cluster)
        where, parent = forge.offset(cluster), cluster
    forge.file(where, b"BOTTOM     ", b"deep", 5)
    tree = forge.tree()
    started = time.process_time()
    node = tree.root
    for _ in range(deep):
        node = tree.lookup(node, "d").stat.node_id
    assert everything(tree.content(tree.lookup(node, "bottom").stat.node_id)) == b"deep"
    assert time.process_time() - started < 30
    assert list(tree.verify()) == []


# The volume ---------------------------------------------------------------------------------------


def test_verify_finds_what_is_wrong_with_the_volume(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    forge.chain(70, 71, 72)
    forge.link(90, 5, copies=(1,))
    forge.link(91, 5, copies=(1,))
    forge.data[forge.fat] = 0xF0
    struct.pack_into("<I", forge.data, 512 + 488, 12345)
    forge.data[6 * 512 + 44] ^= 1
    free = forge.tree().usage().free_bytes // 512
    found = [(finding.where, finding.message, finding.offset) for finding in forge.tree().verify()]
    assert found == [
        ("backup boot sector", "differs from the boot sector", 6 * 512),
        ("FSInfo", f"claims 12345 free clusters, there are {free}", 512),
        ("FAT", "its first entry does not hold the media F8", forge.fat),
        ("FAT", "the copies differ in cluster 0", forge.fat),
        ("FAT", "the copies differ in clusters 90 to 91", forge.fat + 90 * 4),
        (
            "FAT",
            "3 clusters are in no sound chain, the first is cluster 70",
            forge.offset(70),
        ),
    ]


def test_verify_finds_a_wrong_fsinfo_and_sizes_of_directories(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 32)
    forge.data[512] = 0
    forge.directory(forge.root, b"FOLDER     ", 0, 9)
    struct.pack_into("<I", forge.data, forge.root + 28, 512)
    found = {finding.message for finding in forge.tree().verify()}
    assert found == {
        "the FSInfo sector at offset 512 has no signatures",
        "an entry of a directory has a size",
    }
    assert forge.tree().describe()["free_clusters_hint"] is None


def test_chains_of_what_is_not_listed_are_not_lost(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 12)
    forge.file(forge.root, b"A/B        ", b"nameless", 9)
    forge.directory(forge.root, b"C/D        ", 0, 10)
    forge.file(forge.offset(10), b"E          ", b"below", 11)
    found = [finding.message for finding in forge.tree().verify()]
    assert found == ["the entry has no valid name"] * 2


def test_regions_show_what_is_in_the_clusters(tmp_path: Path) -> None:
    forge = Forge.empty(tmp_path, 12)
    forge.directory(forge.root, b"FOLDER     ", 0, 2)
    forge.file(forge.root, b"FILE       ", b"x" * 1000, 3, 4)
    forge.link(5, BAD)
    inside = [
        (region.kind, region.length)
        for region in forge.tree().regions()
        if region.start >= forge.offset(2)
    ]
    assert inside[:3] == [("directory", 512), ("data", 1024), ("damaged", 512)]
    assert inside[3][0] == "free"


# Everything that can happen to a small image ------------------------------------------------------

SMALL = {
    "a long name for a file.txt": b"long" * 1200,
    "SHORT.TXT": b"short",
    "folder/INSIDE.BIN": b"\x77" * 6000,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    image = make(folder / "small.img", 40, "-F", "12", "-s", "4", "-r", "16", "-a")
    return fill(image, plant(folder / "planted", SMALL)).read_bytes()


def survey(data: bytes | bytearray) -> dict[str, bytes | None]:
    """All files that can be read, None for those that cannot; only listed errors may come."""
    found: dict[str, bytes | None] = {}
    try:
        tree = FatTree(MemoryDevice(data, read_only=True))
    except StorageError:
        return found
    pending = [(tree.root, "")]
    while pending:
        node, prefix = pending.pop()
        try:
            entries = tree.list(node, "", 1000).entries
        except Corrupt:
            continue
        for entry in entries:
            path = prefix + entry.name
            assert tree.lookup(node, entry.name) == entry
            if entry.stat.kind is NodeKind.DIRECTORY:
                pending.append((entry.stat.node_id, f"{path}/"))
                continue
            try:
                found[path] = everything(tree.content(entry.stat.node_id))
            except (Corrupt, NotFound):
                found[path] = None
    tree.usage()
    tree.describe()
    assert sum(region.length for region in tree.regions()) == len(data)
    list(tree.verify())
    return found


def test_the_small_image_is_sound(small: bytes) -> None:
    assert survey(small) == SMALL
    assert read_tree(FatTree(MemoryDevice(small))) == SMALL


def test_truncated_at_every_length(small: bytes) -> None:
    for length in range(len(small)):
        assert survey(memoryview(small)[:length]) == {}


def test_every_bit_of_the_fats_flipped(small: bytes) -> None:
    """The copies differ then: a file is whole or damaged, never something else."""
    forge = Forge(bytearray(small))
    used = (forge.clusters + 3) * 3 // 2
    for copy in range(2):
        start = forge.fat + copy * forge.fat_bytes
        for bit in range(used * 8):
            forge.data[start + bit // 8] ^= 1 << bit % 8
            for path, content in survey(forge.data).items():
                assert content is None or content == SMALL[path]
            forge.data[start + bit // 8] ^= 1 << bit % 8


def test_every_bit_of_the_boot_sector_and_the_directories_flipped(
    small: bytes, stride: int
) -> None:
    forge = Forge(bytearray(small))
    # All fields of a FAT12 boot sector, and five slots with the mark that ends them.
    places = [*range(62), 510, 511, *range(forge.root, forge.root + 5 * 32 + 1)]
    folder = FatTree(MemoryDevice(small))
    inside = walk(folder, "folder", "INSIDE.BIN") * 32
    places += range(inside - 2 * 32, inside + 32 + 1)
    assert small[forge.root + 4 * 32]
    assert not small[forge.root + 5 * 32]
    assert small[inside - 2 * 32 :].startswith(b".          ")
    for number in range(0, len(places) * 8, stride):
        place, bit = places[number // 8], number % 8
        forge.data[place] ^= 1 << bit
        survey(forge.data)
        forge.data[place] ^= 1 << bit
