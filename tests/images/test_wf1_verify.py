"""Damaged and forged images of CAPOSWF1: named, never a hang, never written to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from capstore.images import wf1
from capstore.images.builder import Facts
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.records import (
    BLOCK_BYTES,
    WF1_CHECKPOINT,
    WF1_ENTRY,
    WF1_EXTENT,
    WF1_FRAME,
    WF1_NODE,
    WF1_SUPERBLOCK,
    Record,
)
from capstore.images.segments import DATA
from capstore.images.tree import Finding
from capstore.images.wf1_build import Wf1Builder
from capstore.images.wf1_compact import repair
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_tree import Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import Corrupt, StorageError, Unsupported
from capstore.tools.image.reading import contents_read
from capstore.tools.progress import Meter
from tests.images.trees import File, Folder, Link, push, read_all

SIZE = 1 << 20
TREE = Folder(
    {
        "dir": Folder({"inner": Folder({"deep": Folder()}), "file": File(b"one" * 40_000)}),
        "file": File(b"two" * 300),
        "link": Link("dir/file"),
        "other": Folder(),
        "z": File(b"three"),
    }
)
# Their ids, in the order of the walk.
DIR, FILE, INNER, DEEP, FILE_2, LINK, OTHER = 2, 3, 4, 5, 6, 7, 8


def clock() -> int:
    return 1


def entropy(count: int) -> bytes:
    return b"k" * count


@pytest.fixture(scope="module")
def image() -> bytes:
    device = MemoryDevice()
    push(Wf1Builder(device, size=SIZE), TREE)
    return bytes(device.view)


class Forger:
    """An image whose records are changed, and sealed again."""

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.found = recover(MemoryDevice(image))

    def at(self, table: int, record: Record, row: int) -> int:
        return self.found.tables.place(self.found.tables.head.starts[table] + row * record.size)

    def change(self, record: Record, offset: int, **values: int) -> Any:
        """Changes fields of the record at `offset`; what it was before."""
        before = record.unpack(self.image[offset:], "a record", offset)
        fields = before._asdict() | values
        del fields["crc"]
        self.image[offset : offset + record.size] = record.pack(**fields)
        return before

    def node(self, number: int, **values: int) -> Any:
        """Changes a node; the tables of a small image have it in the row of its number."""
        return self.change(WF1_NODE, self.at(0, WF1_NODE, number - 1), **values)

    def entry(self, row: int, **values: int) -> Any:
        return self.change(WF1_ENTRY, self.at(1, WF1_ENTRY, row), **values)

    def extent(self, row: int, **values: int) -> Any:
        return self.change(WF1_EXTENT, self.at(2, WF1_EXTENT, row), **values)

    def head(self, **values: int) -> None:
        """Changes the head of the checkpoint, and what the superblocks say of it."""
        at = self.found.tables.place(0)
        self.change(WF1_CHECKPOINT, at, **values)
        self.superblock(checkpointSum=crc32c(bytes(self.image[at : at + WF1_CHECKPOINT.size])))

    def numbers(self, at: int, *values: int) -> None:
        """Changes numbers behind the head, of 4 bytes each: runs, then usage."""
        head = self.found.tables.head
        start = self.found.tables.place(0) + WF1_CHECKPOINT.size
        for index, value in enumerate(values, at):
            offset = start + 4 * index
            self.image[offset : offset + 4] = value.to_bytes(4, "little")
        end = start + 4 * (len(head.runs) + len(head.usage))
        self.head(headSum=crc32c(bytes(self.image[start:end])))

    def superblock(self, **values: int) -> None:
        for lba in wf1.SUPERBLOCK_LBAS:
            self.change(WF1_SUPERBLOCK, lba * BLOCK_BYTES, **values)

    @property
    def entry_of(self) -> dict[tuple[int, int], int]:
        """The rows of entries, by directory and node."""
        rows = {}
        for row in range(self.found.tables.head.counts.entries):
            raw = self.image[self.at(1, WF1_ENTRY, row) :]
            record = WF1_ENTRY.unpack(raw, "an entry")
            rows[record.directory, record.node] = row
        return rows


def findings(image: bytes | bytearray) -> list[Finding]:
    """What is wrong with an image, its files included; it is the same afterwards."""
    device = MemoryDevice(image)
    found = list(verify(device))
    try:
        tree = Wf1Tree(device)
    except (Corrupt, Unsupported):
        assert found
    else:
        found += [Finding("/".join(p), e.message) for p, e in contents_read(tree, Meter())]
        with suppress(Corrupt):
            list(tree.regions())
        tree.describe()
        tree.usage()
    assert device.view == image
    return found


def test_a_good_image_has_no_findings(image: bytes) -> None:
    assert findings(image) == []


# Forged records ----------------------------------------------------------------------------------

BIG = (1 << 64) - 1


def loop(f: Forger) -> None:
    """A directory below itself, which nothing else leads to."""
    f.node(DIR, parent=DEEP)
    f.entry(f.entry_of[wf1.ROOT, DIR], node=FILE)
    f.entry(f.entry_of[DIR, INNER], node=INNER)
    row = f.entry_of[INNER, DEEP]
    f.entry(row, node=DEEP)
    f.node(DEEP, first=row, count=0, parent=DEEP)


def two_parents(f: Forger) -> None:
    f.entry(f.entry_of[wf1.ROOT, OTHER], node=DEEP)


def the_root_below(f: Forger) -> None:
    f.entry(f.entry_of[wf1.ROOT, OTHER], node=wf1.ROOT)


def itself_below(f: Forger) -> None:
    f.node(INNER, parent=INNER)
    f.entry(f.entry_of[INNER, DEEP], node=INNER)


def over_the_superblock(f: Forger) -> None:
    f.extent(0, lba=wf1.SUPERBLOCK_LBAS[0])


def over_the_tables(f: Forger) -> None:
    f.extent(0, lba=f.found.superblock.checkpoint_lba)


def over_the_log(f: Forger) -> None:
    f.extent(0, lba=f.found.space.geometry.lba(f.found.log_segments[0]))


def over_another(f: Forger) -> None:
    raw = f.image[f.at(2, WF1_EXTENT, 0) :]
    first = WF1_EXTENT.unpack(raw, "an extent")
    f.extent(1, lba=first.lba, sum=first.sum, storedLess1=first.storedLess1)


def half_over_another(f: Forger) -> None:
    raw = f.image[f.at(2, WF1_EXTENT, 0) :]
    f.extent(1, lba=WF1_EXTENT.unpack(raw, "an extent").lba + 1)


def half_over_another_part(f: Forger) -> None:
    """Other bytes, but units that overlap."""
    raw = f.image[f.at(2, WF1_EXTENT, 0) :]
    lba = WF1_EXTENT.unpack(raw, "an extent").lba
    f.extent(0, lengthLess1=0)
    f.extent(1, lba=lba + 1, skip=8, lengthLess1=7)


def other_usage(f: Forger) -> None:
    f.numbers(1 + f.found.space.use.index(DATA), 7)


FORGERIES: list[tuple[Callable[[Forger], object], str]] = [
    (loop, "no way from the root"),
    (two_parents, "it is a directory in 1"),
    (the_root_below, "node 1"),
    (itself_below, "it is a directory in 2"),
    (over_the_superblock, "lies where none can be"),
    (over_the_tables, "is none of data"),
    (over_the_log, "is none of data"),
    (over_another, "another extent's"),
    (half_over_another, "another"),
    (half_over_another_part, "lies over another"),
    (lambda f: f.node(DIR, count=1), "counts"),
    (lambda f: f.node(DIR, count=3), "of another directory"),
    (lambda f: f.node(DIR, count=1 << 31), "behind the end"),
    (lambda f: f.node(DIR, first=BIG), "behind the end"),
    (lambda f: f.node(DIR, first=BIG - 1), "behind the end"),
    (lambda f: f.node(DIR, first=0), "of another directory"),
    (lambda f: f.node(FILE_2, links=2), "it has 1 names, but says 2"),
    (lambda f: f.node(FILE_2, links=0), "it has 1 names, but says 0"),
    (lambda f: f.node(FILE_2, id=FILE), "out of order"),
    (lambda f: f.node(FILE_2, id=BIG), "out of order"),
    (lambda f: f.node(9, id=BIG), "numbers that no node has"),
    (lambda f: f.node(9, id=BIG >> 2), "has not been given"),
    (lambda f: f.node(9, id=0), "out of order"),
    (lambda f: f.node(FILE_2, kind=77), "of no known kind"),
    (lambda f: f.node(FILE_2, kind=wf1.DIRECTORY), "directory"),
    (lambda f: f.node(FILE_2, provenance=99), "of no known kind"),
    (lambda f: f.node(FILE_2, flags=8), "flags that are not known"),
    (lambda f: f.node(FILE_2, flags=wf1.REMOVED), "flags that are not known"),
    (lambda f: f.node(FILE_2, version=BIG), "version is to come"),
    (lambda f: f.node(FILE_2, size=BIG), "numbers that no node has"),
    (lambda f: f.node(FILE_2, size=1), "extents behind its end"),
    (lambda f: f.node(FILE_2, count=BIG >> 32), "extents behind the end"),
    (lambda f: f.node(FILE_2, first=0), "do not follow"),
    (lambda f: f.node(FILE_2, count=0), "counted"),
    (lambda f: f.node(LINK, count=3), "target"),
    (lambda f: f.node(LINK, count=BIG >> 32), "not there"),
    (lambda f: f.node(LINK, first=BIG), "not there"),
    (lambda f: f.node(LINK, size=3), "size"),
    (lambda f: f.node(OTHER, size=3), "size"),
    (lambda f: f.node(wf1.ROOT, kind=wf1.FILE), "root"),
    (lambda f: f.node(wf1.ROOT, parent=DIR), "root"),
    (lambda f: f.node(wf1.ROOT, id=0), "root"),
    (lambda f: f.entry(0, node=BIG), "not there"),
    (lambda f: f.entry(0, node=0), "of another directory"),
    (lambda f: f.entry(0, directory=DEEP), "of another directory"),
    (lambda f: f.entry(0, nameAt=0xFFFFFFFF), "not there"),
    (lambda f: f.entry(0, nameBytes=0, nameSum=0), "no valid name"),
    (lambda f: f.entry(0, nameBytes=0xFFFF), "not there"),
    (lambda f: f.entry(0, nameSum=0), "wrong checksum"),
    (lambda f: f.entry(0, nameSum=crc32c(b"."), nameBytes=1), "wrong checksum"),
    (lambda f: f.extent(0, lba=BIG), "lies where none can be"),
    (lambda f: f.extent(0, lba=1 << 54), "lies where none can be"),
    (lambda f: f.extent(0, fileOffset=BIG), "lies where none can be"),
    (lambda f: f.extent(1, fileOffset=0), "overlap"),
    (lambda f: f.extent(0, skip=9), "lies where none can be"),
    (lambda f: f.extent(0, sum=0), "wrong checksum"),
    (lambda f: f.extent(0, lengthLess1=9), "live"),
    (lambda f: f.head(nodeCount=BIG), "longer than itself"),
    (lambda f: f.head(nodeCount=0), "cannot be"),
    (lambda f: f.head(entryCount=1 << 40), "longer than itself"),
    (lambda f: f.head(nodeCount=8), "counted"),
    (lambda f: f.head(heapBytes=BIG), "longer than itself"),
    (lambda f: f.head(heapBytes=0), "not there"),
    (lambda f: f.head(nextNode=3), "has not been given"),
    (lambda f: f.head(changes=0), "version is to come"),
    (lambda f: f.head(runCount=0), "checksum"),
    (lambda f: f.head(runCount=BIG >> 32), "checksum"),
    (lambda f: f.head(usageCount=BIG >> 32), "checksum"),
    (lambda f: f.head(magic=0), "not the one that the superblock means"),
    (lambda f: f.numbers(0, f.found.tables.head.runs[0] + 1), "does not say where it is"),
    (other_usage, "said to be live"),
    (lambda f: f.numbers(1, 1 << 31), "cannot be"),
    (lambda f: f.superblock(checkpointSum=0), "not the one that the superblock means"),
    (lambda f: f.superblock(checkpointLba=BIG), "in no segment"),
    (lambda f: f.superblock(checkpointLba=0), "in no segment"),
    (lambda f: f.superblock(logLba=BIG), "in no segment"),
    (lambda f: f.superblock(segmentBlocks=0), "segments of 0 bytes"),
    (lambda f: f.superblock(segmentBlocks=129), "segments of"),
    (lambda f: f.superblock(segmentBlocks=1 << 31), "segments of"),
    (lambda f: f.superblock(regionBlocks=BIG), "behind the image"),
    (lambda f: f.superblock(regionBlocks=1), "in no segment"),
    (lambda f: f.superblock(magic=0), "none of CAPOSWF1"),
    (lambda f: f.superblock(version=0), "version 0"),
    (lambda f: f.superblock(version=2), "version 2"),
    (lambda f: f.superblock(features=1), "features 0x1"),
]


@pytest.mark.parametrize(("forge", "message"), FORGERIES)
def test_forged_records(forge: Callable[[Forger], object], message: str, image: bytes) -> None:
    forger = Forger(image)
    forge(forger)
    found = findings(forger.image)
    assert any(message in f"{f.where}: {f.message}" for f in found), found
    assert not any(finding.repairable for finding in found)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 2}, Unsupported),
        ({"features": 1 << 63}, Unsupported),
        ({"magic": 5}, Corrupt),
        ({"checkpointLba": 5}, Corrupt),
        ({"checkpointSum": 5}, Corrupt),
    ],
)
def test_what_is_refused_is_not_written_to(
    fields: dict[str, int], error: type[StorageError], image: bytes
) -> None:
    forger = Forger(image)
    forger.superblock(**fields)
    device = MemoryDevice(forger.image)
    with pytest.raises(error):
        open_wf1(device)
    with pytest.raises(error):
        repair(device, clock=clock, entropy=entropy)
    with pytest.raises(error):
        Wf1Tree(device)
    assert device.view == forger.image


# The log -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged() -> bytes:
    """A volume with four frames in its log, the last of them not followed by any other."""
    device = MemoryDevice()
    format_wf1(device, size=SIZE, clock=clock, entropy=entropy)
    engine = open_wf1(device, clock=clock, entropy=entropy)
    for name in "abcd":
        file = engine.create(wf1.ROOT, name)
        engine.write(file, 0, name.encode() * 3000)
        engine.sync()
    return bytes(device.view)


def frames_of(image: bytes) -> list[int]:
    """Where the frames of the log begin."""
    found = recover(MemoryDevice(image))
    start = found.superblock.log_lba * BLOCK_BYTES
    size = found.space.geometry.segment_bytes
    key = found.superblock.log_key.to_bytes(8, "little")
    starts = [at for at in range(start, start + size, BLOCK_BYTES) if image[at : at + 8] == key]
    return [at for at in starts if WF1_FRAME.unpack(image[at:], "a frame").sequence]


def names_in(image: bytes | bytearray) -> str:
    engine = open_wf1(MemoryDevice(image), writable=False)
    return "".join(name for name, _ in engine.state.list_names(wf1.ROOT, "", 100))


def reframed(image: bytes, at: int, **values: int) -> bytearray:
    forged = bytearray(image)
    fields = WF1_FRAME.unpack(image[at:], "a frame")._asdict() | values
    del fields["crc"]
    forged[at : at + WF1_FRAME.size] = WF1_FRAME.pack(**fields)
    return forged


def test_the_log_is_read(logged: bytes) -> None:
    assert len(frames_of(logged)) == 4
    assert names_in(logged) == "abcd"
    assert findings(logged) == []


def test_a_torn_tail_is_found_and_repaired(logged: bytes) -> None:
    last = frames_of(logged)[-1]
    torn = bytearray(logged)
    # Its header is there, and not all of its payload.
    torn[last + 100] ^= 1
    (finding,) = findings(torn)
    assert (finding.where, finding.offset, finding.repairable) == ("log", last, True)
    assert names_in(torn) == "abc"
    device = MemoryDevice(torn)
    repair(device, clock=clock, entropy=entropy)
    assert findings(bytes(device.view)) == []
    assert names_in(bytes(device.view)) == "abc"


def test_a_frame_whose_data_was_lost_is_a_torn_tail(logged: bytes) -> None:
    torn = logged.replace(b"d" * 3000, bytes(3000))
    assert torn != logged
    (finding,) = findings(torn)
    assert finding.repairable
    assert names_in(torn) == "abc"


def test_a_durable_frame_that_is_missing_is_damage(logged: bytes) -> None:
    for at in frames_of(logged)[:-1]:
        torn = bytearray(logged)
        torn[at + 100] ^= 1
        (finding,) = findings(torn)
        assert "a frame is missing" in finding.message
        assert not finding.repairable


def test_a_superblock_that_was_being_written(image: bytes) -> None:
    for lba in wf1.SUPERBLOCK_LBAS:
        torn = bytearray(image)
        torn[lba * BLOCK_BYTES + 20] ^= 1
        (finding,) = findings(torn)
        assert finding.repairable
        device = MemoryDevice(torn)
        repair(device, clock=clock, entropy=entropy)
        assert findings(bytes(device.view)) == []


@pytest.mark.parametrize("target", ["itself", "no segment", "beside", "tables"])
def test_a_log_that_goes_on_nowhere_or_in_circles(target: str, logged: bytes) -> None:
    found = recover(MemoryDevice(logged))
    log = found.superblock.log_lba
    where = {
        "itself": log,
        "no segment": (1 << 64) - 1,
        "beside": log + 1,
        "tables": found.superblock.checkpoint_lba,
    }[target]
    forged = reframed(logged, frames_of(logged)[1], next=where)
    (finding,) = findings(forged)
    message = "checkpoint" if target == "tables" else "goes on where it cannot"
    assert message in finding.message
    with pytest.raises(Corrupt):
        open_wf1(MemoryDevice(forged))


@pytest.mark.parametrize(
    "values",
    [
        {"nodeCount": 0xFFFFFFFF},
        {"entryCount": 0xFFFFFFFF, "extentCount": 0xFFFFFFFF},
        {"heapBytes": 0xFFFFFFFF},
        {"nodeCount": 0},
        {"extentCount": 0},
        {"sequence": (1 << 64) - 1},
        {"sequence": 0},
        {"epoch": (1 << 64) - 1},
        {"epoch": 0},
        {"key": 5},
        {"payloadSum": 0},
    ],
)
def test_forged_frames(values: dict[str, int], logged: bytes) -> None:
    """The second of four: the others show that it was durable."""
    forged = reframed(logged, frames_of(logged)[1], **values)
    assert findings(forged)
    device = MemoryDevice(forged)
    with pytest.raises(Corrupt):
        open_wf1(device)
    assert device.view == forged


def test_a_frame_that_claims_to_be_durable_to_the_end_of_time(logged: bytes) -> None:
    forged = reframed(logged, frames_of(logged)[-1], durable=(1 << 64) - 1)
    assert names_in(forged) == "abcd"


def _resealed(image: bytes, frame: int, offset: int, record: Record, **values: int) -> bytearray:
    """A frame with one of its records changed."""
    forged = bytearray(image)
    fields = record.unpack(image[offset:], "a record")._asdict() | values
    del fields["crc"]
    forged[offset : offset + record.size] = record.pack(**fields)
    header = WF1_FRAME.unpack(image[frame:], "a frame")
    start = frame + WF1_FRAME.size
    size = (
        header.nodeCount * WF1_NODE.size
        + header.entryCount * WF1_ENTRY.size
        + header.extentCount * WF1_EXTENT.size
        + header.heapBytes
    )
    return reframed(bytes(forged), frame, payloadSum=crc32c(bytes(forged[start : start + size])))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": 0}, "numbers"),
        ({"id": (1 << 64) - 1}, "numbers"),
        ({"kind": 99}, "kind"),
        ({"size": (1 << 64) - 1}, "numbers"),
        ({"size": 1}, "behind its end"),
        ({"first": 9}, "not there"),
        ({"count": 0xFFFFFFFF}, "not there"),
        ({"id": (1 << 63) - 1}, "numbers"),
        ({"id": (1 << 62)}, "no name"),
        ({"kind": wf1.DIRECTORY}, "it has a size, but no content"),
        ({"links": 0}, "not there"),
        ({"links": 3}, "says 3"),
        ({"flags": wf1.REMOVED}, "not there"),
        ({"kind": wf1.SYMLINK}, "target"),
    ],
)
def test_forged_nodes_in_the_log(values: dict[str, int], message: str, logged: bytes) -> None:
    """The last node of a frame, which is the file as it was written."""
    frame = frames_of(logged)[1]
    count = WF1_FRAME.unpack(logged[frame:], "a frame").nodeCount
    at = frame + WF1_FRAME.size + (count - 1) * WF1_NODE.size
    found = findings(_resealed(logged, frame, at, WF1_NODE, **values))
    assert any(message in f"{f.where}: {f.message}" for f in found), found


@pytest.mark.parametrize(
    ("record", "values", "message"),
    [
        (WF1_ENTRY, {"node": 77}, "not there"),
        (WF1_ENTRY, {"node": 1}, "node 1"),
        (WF1_ENTRY, {"directory": 77}, "no name"),
        (WF1_ENTRY, {"nameAt": 0xFFFFFFFF}, "checksum"),
        (WF1_ENTRY, {"nameBytes": 0, "nameSum": 0}, "no valid name"),
        (WF1_EXTENT, {"lba": (1 << 64) - 1}, "lies where none can be"),
        (WF1_EXTENT, {"lba": 256}, "lies where none can be"),
        (WF1_EXTENT, {"sum": 0}, "wrong checksum"),
        (WF1_EXTENT, {"fileOffset": 1}, "behind its end"),
    ],
)
def test_forged_names_and_extents_in_the_log(
    record: Record, values: dict[str, int], message: str, logged: bytes
) -> None:
    frame = frames_of(logged)[1]
    header = WF1_FRAME.unpack(logged[frame:], "a frame")
    at = frame + WF1_FRAME.size + header.nodeCount * WF1_NODE.size
    if record is WF1_EXTENT:
        at += header.entryCount * WF1_ENTRY.size
    found = findings(_resealed(logged, frame, at, record, **values))
    assert any(message in f"{f.where}: {f.message}" for f in found), found


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_an_extent_of_the_log_over_what_is_no_data(what: str, logged: bytes) -> None:
    """Its segment would be made free when the extent is gone, and is in use."""
    frame = frames_of(logged)[1]
    header = WF1_FRAME.unpack(logged[frame:], "a frame")
    at = frame + WF1_FRAME.size + header.nodeCount * WF1_NODE.size
    at += header.entryCount * WF1_ENTRY.size
    lba = getattr(recover(MemoryDevice(logged)).superblock, f"{what}_lba")
    (finding,) = findings(_resealed(logged, frame, at, WF1_EXTENT, lba=lba))
    assert f"lies in the {what}" in finding.message


def test_a_log_in_the_checkpoint(image: bytes) -> None:
    forger = Forger(image)
    forger.superblock(logLba=forger.found.superblock.checkpoint_lba)
    (finding,) = findings(forger.image)
    assert "the log" in finding.message


# Damage ------------------------------------------------------------------------------------------


def _metadata(image: bytes) -> list[tuple[int, int]]:
    """Where there is something but data: (offset, length)."""
    tree = Wf1Tree(MemoryDevice(image))
    wanted = ("superblock", "table", "log")
    return [(r.start, r.length) for r in tree.regions() if r.kind in wanted]


def _all_of(image: bytes | bytearray) -> dict[str, bytes]:
    """Every file by its path.  Raises `Corrupt`."""
    tree, found = Wf1Tree(MemoryDevice(image)), {}
    stack = [("", tree.root)]
    while stack:
        path, directory = stack.pop()
        for entry in tree.list(directory, "", 1000).entries:
            here, stat = f"{path}/{entry.name}", entry.stat
            if stat.kind.value == "directory":
                stack.append((here, stat.node_id))
            elif stat.kind.value == "file":
                found[here] = read_all(tree.content(stat.node_id))
            else:
                found[here] = (entry.target or "").encode()
    return found


@pytest.mark.parametrize("which", ["image", "logged"])
def test_every_flipped_bit(which: str, request: pytest.FixtureRequest) -> None:
    """Of what is not zero: one bit of every byte, another one each time."""
    good: bytes = request.getfixturevalue(which)
    expected = _all_of(good)
    noticed = 0
    for start, length in _metadata(good):
        for offset in range(start, start + length):
            if not good[offset]:
                continue
            damaged = bytearray(good)
            damaged[offset] ^= 1 << (offset % 8)
            device = MemoryDevice(damaged)
            found = list(verify(device))
            noticed += bool(found)
            try:
                shown = _all_of(damaged)
            except Corrupt:
                assert found, offset
            else:
                # All of it, or, where the tail is torn, without what was last.
                assert shown == expected or (found and expected.items() > shown.items()), offset
    assert noticed > 300


@pytest.mark.parametrize("which", ["image", "logged"])
def test_cut_off_at_every_block(which: str, request: pytest.FixtureRequest, stride: int) -> None:
    good: bytes = request.getfixturevalue(which)
    for size in range(0, len(good), stride * BLOCK_BYTES):
        device = MemoryDevice(good[:size])
        with pytest.raises(Corrupt):
            open_wf1(device)
        assert list(verify(device))
        assert device.view == good[:size]


def test_a_growing_image_cut_off_at_every_block(stride: int) -> None:
    device = MemoryDevice()
    format_wf1(device, segment_bytes=1 << 16, clock=clock, entropy=entropy)
    engine = open_wf1(device, clock=clock, entropy=entropy)
    for name in "ab":
        engine.write(engine.create(wf1.ROOT, name), 0, name.encode() * 3000)
    engine.checkpoint()
    engine.create(wf1.ROOT, "c")
    engine.sync()
    good = bytes(device.view)
    expected = _all_of(good)
    for size in range(0, len(good), stride * BLOCK_BYTES):
        device = MemoryDevice(good[:size])
        list(verify(device))
        try:
            shown = _all_of(good[:size])
        except Corrupt:
            continue
        # Only what lies behind all that is in use may be missing.
        assert shown == expected


def test_facts_are_no_part_of_structure(image: bytes) -> None:
    """Times may be anything."""
    forger = Forger(image)
    forger.node(FILE_2, created=-(1 << 63), modified=(1 << 63) - 1)
    assert findings(forger.image) == []
    tree = Wf1Tree(MemoryDevice(forger.image))
    assert replace(Facts(), modified=tree.stat(FILE_2).modified).modified in (0, (1 << 63) - 1)
