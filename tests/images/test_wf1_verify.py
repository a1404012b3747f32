"""Forged images of CAPOSWF1: named, never a hang, never written to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.records import WF1_EXTENT
from capstore.images.segments import DATA
from capstore.images.wf1_build import Wf1Builder
from capstore.images.wf1_compact import repair
from capstore.images.wf1_open import open_wf1
from capstore.images.wf1_tree import Wf1Tree
from capstore.schema.errors import Corrupt, StorageError, Unsupported
from tests.images.trees import push
from tests.images.wf1forge import (
    BIG,
    DEEP,
    DIR,
    FILE,
    FILE_2,
    INNER,
    LINK,
    OTHER,
    SIZE,
    TREE,
    Forger,
    clock,
    entropy,
    findings,
)


@pytest.fixture(scope="module")
def image() -> bytes:
    device = MemoryDevice()
    push(Wf1Builder(device, size=SIZE), TREE)
    return bytes(device.view)


def test_a_good_image_has_no_findings(image: bytes) -> None:
    assert findings(image) == []


# Forged records -----------------------------------------------------------------------------------


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
