"""Building CAPOSWF1, reading what was built, and the bytes of a tiny image."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import wf1
from capstore.images.builder import Facts
from capstore.images.devices import MemoryDevice
from capstore.images.tree import REGION_KINDS, Region
from capstore.images.wf1_build import Wf1Builder
from capstore.images.wf1_open import open_wf1
from capstore.images.wf1_ops import new_node
from capstore.images.wf1_tree import Units, Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    Corrupt,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotFound,
    Unsupported,
)
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.trees import (
    TREES,
    File,
    Folder,
    Hard,
    Link,
    push,
    read_all,
    shown,
    without_hard_links,
)

SIZE = 1 << 20
TIME = Facts(1_600_000_000_000_000_001, 1_500_000_000_000_000_002, Provenance.TAR_HEADER)
SMALL = Folder(
    {
        "a": File(b"content", replace(TIME, executable=True)),
        "b": Folder({"c": File(b"x" * 70_000), "d": Hard(("a",)), "e": Folder()}, TIME),
        "link": Link("b/c", TIME),
        "ü": File(bytes(200_000) + b"end"),
    },
    TIME,
)
# Of the images of SMALL: what changes these changes the format.
GOLDEN_GROWING = "94167d62c2caf4aa87ca8bc7dc2f4e5dffc4cec51601c0c891116d344523a97a"
GOLDEN_FIXED = "a18261089a1bbe5a9863b0fc7d5b8d5531e640dd53157511d8a53d7894056b7d"


def built(tree: Folder, *, size: int | None = None, stamp: int = 7) -> bytes:
    device = MemoryDevice()
    push(Wf1Builder(device, size=size, built=stamp), tree)
    return bytes(device.view)


def opened(image: bytes) -> Wf1Tree:
    return Wf1Tree(MemoryDevice(image, read_only=True))


def plain(tree: Folder) -> Folder:
    """As it is shown: nothing but a file is executable."""

    def one(node: File | Link | Hard | Folder) -> File | Link | Hard | Folder:
        if isinstance(node, Hard | File):
            return node
        facts = replace(node.facts, executable=False)
        if isinstance(node, Link):
            return replace(node, facts=facts)
        return Folder({name: one(inner) for name, inner in node.entries.items()}, facts)

    found = one(without_hard_links(tree))
    assert isinstance(found, Folder)
    return found


@settings(max_examples=60, deadline=None)
@given(TREES, st.sampled_from([None, 4 * SIZE]))
def test_a_tree_comes_back_as_it_went(tree: Folder, size: int | None) -> None:
    image = built(tree, size=size)
    device = MemoryDevice(image)
    assert list(verify(device)) == []
    assert shown(opened(image)) == plain(tree)
    assert built(tree, size=size) == image
    # It is a volume like any other.
    engine = open_wf1(device)
    engine.mkdir(wf1.ROOT, "one more name that nothing has")
    engine.sync()
    assert list(verify(MemoryDevice(device.view))) == []


@pytest.mark.parametrize(("size", "golden"), [(None, GOLDEN_GROWING), (SIZE, GOLDEN_FIXED)])
def test_the_bytes_of_an_image(size: int | None, golden: str) -> None:
    assert hashlib.sha256(built(SMALL, size=size)).hexdigest() == golden


def test_what_is_kept() -> None:
    tree = opened(built(SMALL))
    a = tree.lookup(tree.root, "a").stat
    assert a == tree.lookup(tree.lookup(tree.root, "b").stat.node_id, "d").stat
    assert (a.link_count, a.executable, a.provenance) == (2, True, Provenance.TAR_HEADER)
    assert (a.modified, a.created) == (TIME.modified, TIME.created)
    assert tree.lookup(tree.root, "link").target == "b/c"
    content = tree.content(tree.lookup(tree.root, "ü").stat.node_id)
    assert isinstance(content, Units)
    # Zeros are not stored, by units of 64 KiB.
    assert content.extents[:, :2].tolist() == [[196_608, 3395]]
    facts = tree.describe()
    assert (facts["format"], facts["created"], facts["grows"]) == ("CAPOSWF1", 7, True)
    assert facts["checkpoint"]["nodes"] == tree.usage().used_nodes == 7


def test_both_superblocks_are_good() -> None:
    image = built(SMALL)
    for lba in wf1.SUPERBLOCK_LBAS:
        one = bytearray(image)
        one[lba * 512 : lba * 512 + 512] = bytes(512)
        assert shown(opened(bytes(one))) == plain(SMALL)


def test_other_content_has_another_id() -> None:
    ids = {
        opened(built(tree)).describe()["imageId"]
        for tree in (Folder(), SMALL, Folder({"a": File(b"x")}), Folder({"a": File(b"y")}))
    }
    assert len(ids) == 4


def test_the_map() -> None:
    for image in (built(SMALL), built(SMALL, size=SIZE), built(Folder())):
        regions = list(opened(image).regions())
        kinds = {region.kind for region in regions}
        assert kinds <= set(REGION_KINDS)
        end = wf1.SUPERBLOCK_LBAS[0] * 512
        assert regions[0].start == end
        for region in regions:
            assert region.start >= end
            assert region.length > 0
            end = region.start + region.length
        assert end == len(image)


def test_the_map_shows_what_is_dead() -> None:
    device = MemoryDevice(built(SMALL, size=SIZE))
    before = _bytes_of(device, "data"), _bytes_of(device, "dead")
    engine = open_wf1(device)
    engine.remove(engine.state.child(wf1.ROOT, "b"), "c")
    engine.mkdir(wf1.ROOT, "log")
    engine.sync()
    after = _bytes_of(device, "data"), _bytes_of(device, "dead")
    assert before[0] - after[0] == 70_144 == after[1] - before[1]
    assert _bytes_of(device, "log")


def _bytes_of(device: MemoryDevice, kind: str) -> int:
    regions: list[Region] = list(opened(bytes(device.view)).regions())
    return sum(region.length for region in regions if region.kind == kind)


def test_calls_in_a_wrong_order() -> None:
    builder = Wf1Builder(MemoryDevice())
    with pytest.raises(NotFound):
        builder.directory(("a",), Facts())
    builder.directory((), Facts())
    with pytest.raises(InvalidArgument):
        builder.directory((), Facts())
    with pytest.raises(InvalidArgument):
        builder.write(b"x")
    builder.begin_file(("a",), Facts(), 3)
    with pytest.raises(InvalidArgument):
        builder.symlink(("b",), Facts(), "x")
    with pytest.raises(InvalidArgument):
        builder.write(b"four")
    with pytest.raises(InvalidArgument):
        builder.end_file()
    builder.write(b"abc")
    builder.end_file()
    for path in ((), ("x", "y")):
        with pytest.raises((InvalidArgument, NotFound)):
            builder.begin_file(path, Facts(), 0)
    with pytest.raises(AlreadyExists):
        builder.directory(("a",), Facts())
    with pytest.raises(NotFound):
        builder.link(("b",), ("missing",))
    with pytest.raises(InvalidName):
        builder.directory(("..",), Facts())
    with pytest.raises(Unsupported):
        builder.symlink(("l",), Facts(), "\0")
    builder.link(("b",), ("a",))
    builder.finish()
    builder.abort()


def test_more_than_there_is_room_for() -> None:
    with pytest.raises(NoSpace):
        built(Folder({"a": File(b"x" * SIZE)}), size=SIZE)
    with pytest.raises(InvalidArgument):
        built(Folder(), size=100_000)


def test_looking_at_what_is_not_there() -> None:
    tree = opened(built(SMALL))
    file = tree.lookup(tree.root, "a").stat.node_id
    link = tree.lookup(tree.root, "link").stat.node_id
    for number in (0, -1, 99, 1 << 70):
        with pytest.raises(NotFound):
            tree.stat(number)
    with pytest.raises(NotFound):
        tree.lookup(tree.root, "missing")
    with pytest.raises(InvalidName):
        tree.lookup(tree.root, "a/b")
    with pytest.raises(InvalidName):
        tree.list(tree.root, "\ud800", 1)
    with pytest.raises(NotDirectory):
        tree.list(file, "", 1)
    with pytest.raises(IsDirectory):
        tree.content(tree.root)
    with pytest.raises(Unsupported):
        tree.content(link)
    content = tree.content(file)
    with pytest.raises(InvalidArgument):
        content.read_into(-1, memoryview(bytearray(1)))
    assert content.read_into(99, memoryview(bytearray(1))) == 0
    assert tree.waits(tree.root)
    assert tree.content_waits(file)
    tree.close()
    with pytest.raises(Closed):
        tree.stat(tree.root)


def test_what_only_an_overlay_knows_is_special() -> None:
    device = MemoryDevice(built(Folder()))
    engine = open_wf1(device)
    engine.make(wf1.ROOT, "gone", new_node(wf1.WHITEOUT, 5))
    engine.sync()
    tree = opened(bytes(device.view))
    assert tree.lookup(tree.root, "gone").stat.kind is NodeKind.SPECIAL
    assert list(tree.verify()) == []


def test_parts_of_units_are_read_as_they_are() -> None:
    device = MemoryDevice(built(Folder()))
    engine = open_wf1(device)
    file = engine.create(wf1.ROOT, "file")
    content = bytearray(bytes(range(256)) * 800)
    engine.write(file, 0, content)
    for at in range(0, 200_000, 7000):
        engine.write(file, at, b"--")
        content[at : at + 2] = b"--"
    engine.checkpoint()
    tree = opened(bytes(device.view))
    for step in (1 << 20, 999):
        assert read_all(tree.content(file), step) == content
    damaged = bytearray(device.view)
    at = damaged.index(bytes(range(256)))
    damaged[at + 3] ^= 1
    with pytest.raises(Corrupt):
        read_all(opened(bytes(damaged)).content(file))
