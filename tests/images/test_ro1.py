"""CAPOSRO1: what goes in comes out, the same bytes each time, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import ro1
from capstore.images.builder import Facts
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.records import BLOCK_BYTES, RO1_ENTRY, RO1_EXTENT, RO1_NODE, Record
from capstore.images.ro1_build import Ro1Builder
from capstore.images.ro1_tree import Ro1Tree
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    Corrupt,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    StorageError,
    Unsupported,
)
from capstore.schema.limits import PAGE_BYTES_MAX
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

SMALL = Folder(
    {
        "dir": Folder({"deep": Folder({"file": File(b"x" * 70_000)}), "same": Hard(("a",))}),
        "a": File(b"hello", Facts(5, 3, Provenance.TAR_HEADER, executable=True)),
        "link": Link("dir/deep"),
        "sparse": File(bytes(70_000) + b"end" + bytes(200_000)),
    },
    Facts(9, 0, Provenance.WALL_CLOCK),
)


def image_of(tree: Folder, *, label: str = "", built: int = 0) -> bytes:
    device = MemoryDevice()
    push(Ro1Builder(device, label=label, built=built), tree)
    return device.read(0, device.size())


def opened(image: bytes) -> Ro1Tree:
    return Ro1Tree(MemoryDevice(image, read_only=True), memoryview(image))


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_out(tree: Folder) -> None:
    image = image_of(tree)
    found = opened(image)
    assert shown(found) == tree
    assert list(found.verify()) == []
    assert image_of(tree) == image


def test_hard_links_are_names_of_one_node() -> None:
    tree = opened(image_of(SMALL))
    assert shown(tree) == without_hard_links(SMALL)
    first = tree.lookup(tree.root, "a").stat
    second = tree.lookup(tree.lookup(tree.root, "dir").stat.node_id, "same").stat
    assert first == second
    assert first.link_count == 2


def test_zeros_take_no_room() -> None:
    image = image_of(Folder({"f": File(bytes(10**7) + b"x" + bytes(10**7))}))
    assert len(image) < 80_000
    tree = opened(image)
    content = tree.content(tree.lookup(0, "f").stat.node_id)
    assert read_all(content) == bytes(10**7) + b"x" + bytes(10**7)


@given(st.integers(0, 400_000), st.integers(1, 200_000))
@settings(max_examples=60, deadline=None)
def test_any_part_of_a_file_is_read(offset: int, length: int) -> None:
    data = bytes(range(256)) * 300 + bytes(131_072) + b"tail" * 20_000
    tree = opened(_PARTS.setdefault("image", image_of(Folder({"f": File(data)}))))
    content = tree.content(1)
    for read in (content.read_into, content.read_now):
        view = memoryview(bytearray(length))
        got = read(offset, view)
        assert got is not None
        assert bytes(view[:got]) == data[offset : offset + length]


_PARTS: dict[str, bytes] = {}


def test_label_and_time_of_building_are_kept() -> None:
    tree = opened(image_of(SMALL, label="größe", built=77))
    assert tree.usage().label == "größe"
    assert tree.describe()["built"] == 77
    with pytest.raises(InvalidArgument):
        Ro1Builder(MemoryDevice(), label="x" * 256)


def test_regions_are_in_order_and_cover_what_is_used() -> None:
    image = image_of(SMALL) + bytes(5 * BLOCK_BYTES)
    regions = list(opened(image).regions())
    assert [region.kind for region in regions[:3]] == ["superblock", "superblock", "data"]
    assert regions[-1].kind == "unused"
    assert regions[-1].start + regions[-1].length == len(image)
    for before, after in pairwise(regions):
        assert before.start + before.length <= after.start < len(image)


def test_wrong_questions_have_their_errors() -> None:
    tree = opened(image_of(SMALL))
    link = tree.lookup(0, "link").stat.node_id
    with pytest.raises(NotFound):
        tree.lookup(0, "nothing")
    with pytest.raises(InvalidName):
        tree.lookup(0, "dir/deep")
    with pytest.raises(NotDirectory):
        tree.list(link, "", 10)
    with pytest.raises(IsDirectory):
        tree.content(0)
    with pytest.raises(Unsupported):
        tree.content(link)
    with pytest.raises(NotFound):
        tree.stat(1000)
    tree.close()
    with pytest.raises(Closed):
        tree.stat(0)


# Building ----------------------------------------------------------------------------------------


def test_wrong_calls_of_the_builder_are_refused() -> None:
    builder = Ro1Builder(MemoryDevice())
    builder.directory((), Facts())
    with pytest.raises(InvalidName):
        builder.directory(("..",), Facts())
    with pytest.raises(NotFound):
        builder.symlink(("no", "where"), Facts(), "x")
    builder.begin_file(("f",), Facts(), 3)
    with pytest.raises(InvalidArgument):
        builder.write(b"four")
    builder.write(b"tw")
    with pytest.raises(InvalidArgument):
        builder.end_file()
    for call in (
        lambda: builder.begin_file(("g",), Facts(), 0),
        lambda: builder.directory(("g",), Facts()),
        lambda: builder.symlink(("g",), Facts(), "x"),
        lambda: builder.link(("g",), ("f",)),
        builder.finish,
    ):
        with pytest.raises(InvalidArgument, match="not whole"):
            call()
    builder.write(b"o")
    builder.end_file()
    with pytest.raises(InvalidArgument):
        builder.end_file()
    builder.directory(("d",), Facts())
    with pytest.raises(AlreadyExists):
        builder.directory(("d",), Facts())
    with pytest.raises(InvalidArgument):
        builder.link(("e",), ("d",))
    for call in (
        lambda: builder.begin_file((), Facts(), 0),
        lambda: builder.symlink((), Facts(), "x"),
        lambda: builder.link((), ("f",)),
    ):
        with pytest.raises(InvalidArgument, match="root"):
            call()
    builder.finish()
    for call in (builder.finish, lambda: builder.directory(("late",), Facts())):
        with pytest.raises(InvalidArgument, match="finished"):
            call()
    with pytest.raises(InvalidArgument):
        Ro1Builder(MemoryDevice(), label="\ud800")


def test_the_bytes_of_an_image_are_those_of_version_1() -> None:
    image = image_of(SMALL, label="golden", built=77)
    digest = "83217f0b600f707352e20a5d34bffe19521acdf05b3cda0df71d3be5af83d920"
    assert hashlib.sha256(image).hexdigest() == digest


class Counting(MemoryDevice):
    """A device that counts the bytes that are read."""

    taken = 0

    def read_into(self, offset: int, view: memoryview) -> None:
        self.taken += len(view)
        super().read_into(offset, view)


def test_opening_costs_the_same_whatever_the_image_holds() -> None:
    costs = set()
    for count in (1, 3000):
        image = image_of(Folder({f"{number:05}": File(b"x") for number in range(count)}))
        device = Counting(image, read_only=True)
        view = memoryview(image)
        tree = Ro1Tree(device, view)
        assert tree.lookup(0, f"{count - 1:05}").name == f"{count - 1:05}"
        costs.add(device.taken)
    assert costs == {2 * BLOCK_BYTES}


def test_a_long_directory_and_names_of_255_bytes() -> None:
    names = [f"{number:0255}" for number in range(2500)]
    many = Folder({f"{number:06}": File() for number in range(30_000)})
    tree = opened(
        image_of(Folder({"long": Folder({name: File() for name in names}), "many": many}))
    )
    long, directory = (tree.lookup(0, name).stat.node_id for name in ("long", "many"))
    for number in (0, 1, 14_999, 29_999):
        assert tree.lookup(directory, f"{number:06}").name == f"{number:06}"
    for missing in ("", "000000x", "1"):
        with pytest.raises((NotFound, InvalidName)):
            tree.lookup(directory, missing)
    assert [entry.name for entry in tree.list(directory, "029998", 10).entries] == ["029999"]
    page = tree.list(long, "", 10**9)
    assert page.more
    assert len(page.entries) == 1000
    assert [entry.name for entry in page.entries] == names[:1000]
    # Names that are not there are places in the order.
    assert [e.name for e in tree.list(directory, "000003x", 1).entries] == ["000004"]
    assert [e.name for e in tree.list(directory, "000003/", 0).entries] == ["000004"]
    assert [e.name for e in tree.list(directory, "\U0010ffff" * 100, 1).entries] == []
    with pytest.raises(InvalidName):
        tree.list(directory, "\ud800", 1)


def test_a_page_has_a_bound_in_bytes() -> None:
    target = "t" * 4095
    tree = opened(image_of(Folder({f"{number:04}": Link(target) for number in range(300)})))
    found: list[str] = []
    while True:
        page = tree.list(0, found[-1] if found else "", 1000)
        assert sum(len(e.name) + len(e.target or "") for e in page.entries) <= PAGE_BYTES_MAX
        found += [entry.name for entry in page.entries]
        if not page.more:
            break
    assert found == [f"{number:04}" for number in range(300)]


def test_an_image_that_was_not_finished_is_none() -> None:
    device = MemoryDevice()
    builder = Ro1Builder(device)
    builder.directory((), Facts())
    builder.begin_file(("f",), Facts(), 10**7)
    builder.write(b"x" * 10**7)
    builder.end_file()
    with pytest.raises(Corrupt):
        opened(device.read(0, device.size()))


# Damage ------------------------------------------------------------------------------------------


def harmless(image: bytes, expected: Folder) -> None:
    """Reads all that can be read: a listed error or a correct answer, nothing else."""
    try:
        tree = opened(image)
    except StorageError:
        return
    _harmless_directory(tree, tree.root, expected)
    for finding in tree.verify():
        assert finding.message


def _harmless_directory(tree: Ro1Tree, number: int, expected: Folder) -> None:
    for name, node in expected.entries.items():
        try:
            entry = tree.lookup(number, name)
            stat = tree.stat(entry.stat.node_id)
            if stat.kind is NodeKind.DIRECTORY:
                assert isinstance(node, Folder)
                _harmless_directory(tree, entry.stat.node_id, node)
            elif isinstance(node, Link):
                assert entry.target == node.target
            else:
                assert isinstance(node, File)
                assert read_all(tree.content(entry.stat.node_id)) == node.content
        except StorageError:
            continue
    try:
        page = tree.list(number, "", 100)
    except StorageError:
        return
    assert [entry.name for entry in page.entries] == sorted(expected.entries)


TINY = Folder(
    {"d": Folder({"f": File(b"inside", Facts(executable=True))}), "e": File(b"e"), "l": Link("d/f")}
)


def test_every_flipped_bit_is_noticed_or_does_not_matter(stride: int) -> None:
    image = image_of(TINY, label="tiny")
    used = set[int]()
    for span in opened(image).spans():
        used.update(range(span.start, span.start + min(span.length, 400)))
    for at in range(0, len(image), stride):
        # In what only fills blocks, one bit of each byte will do.
        for bit in range(8) if at in used else (at % 8,):
            flipped = bytearray(image)
            flipped[at] ^= 1 << bit
            harmless(bytes(flipped), TINY)


def unreadable(tree: Ro1Tree) -> list[int]:
    """The files that cannot be read."""
    found = []
    for number in range(tree.superblock.nodes.count):
        try:
            read_all(tree.content(number))
        except Corrupt:
            found.append(number)
        except (IsDirectory, Unsupported):
            continue
    return found


def test_every_flipped_bit_of_a_record_or_of_data_is_found() -> None:
    image = image_of(TINY, label="tiny")
    spans = [span for span in opened(image).spans() if span.name != "data"]
    data = image.index(b"inside")
    places = [range(span.start, span.start + span.length) for span in spans]
    places = [range(slot.start, slot.start + 176) for slot in places[:2]] + places[2:]
    for place in [*places, range(data, data + 6)]:
        for at in place:
            flipped = bytearray(image)
            flipped[at] ^= 1 << at % 8
            tree = opened(bytes(flipped))
            assert list(tree.verify()) or unreadable(tree), at


def test_each_damage_is_a_finding() -> None:
    image = bytearray(image_of(SMALL))
    tree = opened(bytes(image))
    at = [tree.superblock.heap.start + image[tree.superblock.heap.start :].index(b"link")]
    at += [tree.superblock.entries.start + number * RO1_ENTRY.size for number in (0, 1)]
    for place in at:
        image[place] ^= 1
    tree = opened(bytes(image))
    findings = list(tree.verify())
    assert [finding.where for finding in findings] == ["directory 0"] * 3
    assert len({finding.offset for finding in findings}) == 3


def test_every_truncation_is_noticed() -> None:
    image = image_of(TINY)
    for length in range(len(image)):
        with pytest.raises(Corrupt):
            opened(image[:length])


def test_damage_leaves_the_rest_readable() -> None:
    image = bytearray(image_of(SMALL))
    image[image.index(b"xxxx")] ^= 1
    tree = opened(bytes(image))
    deep = tree.lookup(tree.lookup(0, "dir").stat.node_id, "deep").stat.node_id
    content = tree.content(tree.lookup(deep, "file").stat.node_id)
    with pytest.raises(Corrupt, match="data at offset"):
        read_all(content)
    assert read_all(tree.content(tree.lookup(0, "a").stat.node_id)) == b"hello"
    assert unreadable(tree) == [tree.lookup(deep, "file").stat.node_id]


def test_one_of_two_superblocks_is_enough() -> None:
    image = bytearray(image_of(TINY))
    image[20] ^= 1
    tree = opened(bytes(image))
    assert shown(tree) == TINY
    assert [finding.where for finding in tree.verify()] == ["superblock 0"]


# Forgery: images whose seals fit and whose numbers lie --------------------------------------------


class Forger:
    """Changes records of an image and seals them again."""

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.tree = opened(image)

    def set(self, record: Record, table: str, number: int, **values: int) -> Forger:
        start = getattr(self.tree.superblock, table).start + number * record.size
        old = record.unpack(self.image[start : start + record.size], "it")._asdict()
        old.pop("crc")
        self.image[start : start + record.size] = record.pack(**(old | values))
        return self

    def set_superblock(self, **values: Any) -> Forger:
        record = ro1.RO1_SUPERBLOCK
        for lba in ro1.SUPERBLOCK_LBAS:
            at = lba * BLOCK_BYTES
            old = record.unpack(self.image[at : at + record.size], "it")._asdict()
            old.pop("crc")
            self.image[at : at + record.size] = record.pack(**(old | values))
        return self


HUGE = 2**63 + 5
# Nodes of TINY: 0 root, 1 d, 2 e, 3 l, 4 f.  Entries: 0 d, 1 e, 2 l, 3 f.
FORGERIES: dict[str, Callable[[Forger], object]] = {
    "a directory inside of itself": lambda f: f.set(RO1_ENTRY, "entries", 3, node=1),
    "the root below itself": lambda f: f.set(RO1_ENTRY, "entries", 3, node=0),
    "a directory with two names": lambda f: f.set(RO1_ENTRY, "entries", 1, node=1),
    "a directory that is elsewhere": lambda f: f.set(RO1_NODE, "nodes", 1, parent=3),
    "a node that is not there": lambda f: f.set(RO1_ENTRY, "entries", 0, node=999),
    "entries of another directory": lambda f: f.set(RO1_NODE, "nodes", 1, first=0),
    "more entries than there are": lambda f: f.set(RO1_NODE, "nodes", 1, count=2**32 - 1),
    "entries from nowhere": lambda f: f.set(RO1_NODE, "nodes", 1, first=HUGE),
    "a root that is a file": lambda f: f.set(RO1_NODE, "nodes", 0, kind=0),
    "a link longer than its target": lambda f: f.set(RO1_NODE, "nodes", 3, size=99),
    "a node without a name": lambda f: f.set(RO1_NODE, "nodes", 2, links=0),
    "an unknown kind": lambda f: f.set(RO1_NODE, "nodes", 1, kind=9),
    "an unknown provenance": lambda f: f.set(RO1_NODE, "nodes", 2, provenance=99),
    "a huge size": lambda f: f.set(RO1_NODE, "nodes", 2, size=HUGE),
    "extents from nowhere": lambda f: f.set(RO1_NODE, "nodes", 2, first=HUGE),
    "more extents than there are": lambda f: f.set(RO1_NODE, "nodes", 2, count=2**32 - 1),
    "a target from nowhere": lambda f: f.set(RO1_NODE, "nodes", 3, first=HUGE),
    "a target that is long": lambda f: f.set(RO1_NODE, "nodes", 3, count=2**32 - 1),
    "an empty target": lambda f: f.set(RO1_NODE, "nodes", 3, count=0, check=0),
    "an extent of nothing": lambda f: f.set(RO1_EXTENT, "extents", 0, length=0),
    "an extent of nothing at the end": lambda f: f.set(
        RO1_EXTENT, "extents", 0, length=0, fileOffset=1
    ),
    "an extent outside": lambda f: f.set(RO1_EXTENT, "extents", 0, source=HUGE),
    "an extent behind the end": lambda f: f.set(RO1_EXTENT, "extents", 0, source=2**62),
    "an extent of negative length": lambda f: f.set(RO1_EXTENT, "extents", 0, length=2**64 - 1),
    "an extent behind its file": lambda f: f.set(RO1_EXTENT, "extents", 0, fileOffset=5),
    "a sum that is not there": lambda f: f.set(RO1_EXTENT, "extents", 0, firstSum=2**32 - 1),
    "a name from nowhere": lambda f: f.set(RO1_ENTRY, "entries", 0, nameAt=HUGE),
    "a name with the wrong prefix": lambda f: f.set(RO1_ENTRY, "entries", 0, prefix=0),
    "names out of order": lambda f: f.set(RO1_ENTRY, "entries", 0, nameAt=2, nameSum=0x55555555),
}
SUPERBLOCKS: dict[str, dict[str, int]] = {
    "no root": {"nodeCount": 0},
    "tables behind the end": {"nodesLba": 2**60},
    "a table longer than the image": {"entryCount": 2**40},
    "tables on top of each other": {"heapLba": 4},
    "tables on the superblock": {"heapLba": 0},
    "a longer image": {"imageBlocks": 2**50},
    "a long label": {"labelBytes": 2**32 - 1},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_records_are_harmless(name: str) -> None:
    forger = Forger(image_of(TINY))
    FORGERIES[name](forger)
    image = bytes(forger.image)
    tree = opened(image)
    findings = list(tree.verify())
    assert findings or unreadable(tree)
    assert findings or "sum" in name  # those are looked at by who reads
    with pytest.raises(Corrupt):
        shown(tree)
    harmless(image, TINY)


@pytest.mark.parametrize("name", SUPERBLOCKS)
def test_forged_superblocks_are_refused(name: str) -> None:
    forger = Forger(image_of(TINY)).set_superblock(**SUPERBLOCKS[name])
    with pytest.raises(Corrupt, match="superblock"):
        opened(bytes(forger.image))


@pytest.mark.parametrize("values", [{"version": 2}, {"version": 0}, {"features": 2}])
def test_what_is_newer_is_refused(values: dict[str, int]) -> None:
    forger = Forger(image_of(TINY)).set_superblock(**values)
    with pytest.raises(Unsupported, match="not known"):
        opened(bytes(forger.image))


@pytest.mark.parametrize("text", [b"t" * 4096, b"a\0b", b"\xff"], ids=["long", "nul", "bad"])
def test_targets_that_are_none(text: bytes) -> None:
    """The heap holds them, with right checksums."""
    image = image_of(Folder({"a": Link("x" * 4000), "l": Link("x" * 4000)}))
    forger = Forger(image)
    heap = forger.tree.superblock.heap
    start = heap.start + heap.length - len(text)
    forger.image[start : start + len(text)] = text
    node = forger.tree.lookup(0, "l").stat.node_id
    forger.set(
        RO1_NODE,
        "nodes",
        node,
        first=heap.length - len(text),
        count=len(text),
        size=len(text),
        check=crc32c(text),
    )
    tree = opened(bytes(forger.image))
    for call in (lambda: tree.list(0, "a", 10), lambda: tree.lookup(0, "l")):
        with pytest.raises(Corrupt, match="text"):
            call()


def test_directories_that_claim_the_same_entries_are_checked_once() -> None:
    count = 300
    tree = Folder(
        {f"d{number:03}": Folder() for number in range(count)}
        | {f"f{number:03}": File() for number in range(count)}
    )
    forger = Forger(image_of(tree))
    for number in range(1, count + 1):
        forger.set(RO1_NODE, "nodes", number, first=0, count=2 * count)
    looked = []

    class Watched(Ro1Tree):
        def entry(self, number: int, directory: int) -> Any:
            looked.append(number)
            return super().entry(number, directory)

    image = bytes(forger.image)
    findings = list(Watched(MemoryDevice(image), memoryview(image)).verify())
    assert len(findings) >= count
    assert len(looked) == 2 * count


def test_an_index_is_no_image_by_itself() -> None:
    forger = Forger(image_of(TINY)).set_superblock(features=ro1.EXTERNAL_DATA)
    with pytest.raises(Unsupported):
        opened(bytes(forger.image))
