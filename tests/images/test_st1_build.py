"""Building CAPOSST1, its map, and the image that holds a tree beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

import pytest

from capstore.images import st1, wf1
from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice, MemoryDevice
from capstore.images.formats import format_of, open_image
from capstore.images.records import BLOCK_BYTES
from capstore.images.st1_build import St1Builder
from capstore.images.st1_compact import compact
from capstore.images.st1_map import regions
from capstore.images.st1_recovery import recover
from capstore.images.st1_verify import verify
from capstore.images.tree import REGION_KINDS
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_verify import verify as verify_wf1
from capstore.schema.errors import Corrupt, InvalidArgument, NoSpace, Unsupported
from tests.images.st1model import KIB, Clock, content_of, entropy, new_store, reopened

COMBINED = st1.COMBINED_BLOCKS * BLOCK_BYTES


def built(size: int | None) -> MemoryDevice:
    device = MemoryDevice()
    builder = St1Builder(device, size=size, built=1_700_000_000_000_000_000)
    random = Random(1)
    for number in range(40):
        builder.put(b"key %d" % number, random.randbytes(number * 37))
    builder.put(b"key 7", b"another value")
    key = builder.put_pieces(b"", [random.randbytes(5000)] * 3)
    assert len(key) == 32
    builder.finish()
    return device


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (None, "b52edf34c972362a"),
        (COMBINED, "234f08f3839e7fc8"),
        (1 << 20, "ea4dc99bbc015205"),
    ],
)
def test_the_same_calls_give_the_same_bytes(size: int | None, digest: str) -> None:
    device = built(size)
    assert hashlib.sha256(device.view).hexdigest()[:16] == digest
    assert not list(verify(device))
    assert content_of(reopened(device))[b"key 7"] == b"another value"
    assert device.size() == size or size is None


def test_too_much_and_too_small() -> None:
    with pytest.raises(InvalidArgument):
        St1Builder(MemoryDevice(), size=30 * KIB)
    builder = St1Builder(MemoryDevice(), size=COMBINED)
    with pytest.raises(NoSpace):
        builder.put(b"k", bytes(COMBINED - 20 * KIB))


@pytest.mark.parametrize("size", [None, 64 * KIB, 1 << 20])
def test_the_map_has_no_gaps(size: int | None) -> None:
    engine = new_store(size, 16 * KIB if size is None else None)
    random = Random(2)
    for number in range(60):
        engine.put(b"%d" % random.randrange(20), random.randbytes(random.choice((0, 100, 1500))))
        if number % 25 == 0:
            engine.compact()
    engine.sync()
    found = recover(engine.device)
    at, live = 0, 0
    for region in regions(engine.device, found):
        assert region.kind in REGION_KINDS
        assert (region.start, region.length > 0) == (at, True)
        at += region.length
        live += region.length * (region.kind == "data")
    assert at == engine.device.size()
    in_log = sum(found.space.live[segment] for segment in found.log_segments)
    for key in found.replaced:
        entry = found.table.find_key(key)
        assert entry is not None
        in_log += 0 if found.space.geometry.at(entry.place) in found.log_segments else entry.size
    assert live == sum(found.space.live) - in_log


def test_compacting_a_file_makes_it_short(tmp_path: Path) -> None:
    path = tmp_path / "store"
    device = FileDevice.open(path, create=True)
    engine = new_store(None, 64 * KIB, device)
    for number in range(3000):
        engine.put(b"%d" % (number % 300), bytes([number % 256]) * 2000)
    wanted = content_of(engine)
    compact(engine)
    engine.close()
    assert path.stat().st_size < 1.1 * 300 * 2000 + 6 * 64 * KIB
    assert content_of(reopened(FileDevice.open(path))) == wanted


# Combined ----------------------------------------------------------------------------------------


def combined(device: BlockDevice, size: int | None) -> None:
    builder = St1Builder(device, size=COMBINED)
    builder.put(b"key", b"value")
    builder.finish()
    format_wf1(device, size=size, clock=Clock(), entropy=entropy)


@pytest.mark.parametrize("size", [None, 4 << 20])
def test_a_store_in_front_of_a_tree(size: int | None) -> None:
    device = MemoryDevice()
    combined(device, size)
    store = reopened(device)
    volume = open_wf1(device, clock=Clock(), entropy=entropy)
    for number in range(200):
        file = volume.create(1, f"file {number}")
        volume.write(file, 0, bytes([number]) * 3000)
        store.put(b"%d" % (number % 9), bytes([number]) * 700)
        if number % 10 == 0:
            volume.sync()
            store.sync()
    volume.checkpoint()
    store.compact()
    volume.sync()
    store.sync()
    assert not list(verify(device))
    assert not list(verify_wf1(device))
    again = open_wf1(MemoryDevice(device.view), clock=Clock(), entropy=entropy)
    assert again.state.counts.nodes == 201
    assert content_of(reopened(MemoryDevice(device.view))) == content_of(store)


def test_telling_the_formats(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    for path in (alone, both):
        device = FileDevice.open(path, create=True)
        if path is alone:
            St1Builder(device, size=COMBINED).finish()
        else:
            combined(device, None)
        device.close()
    assert format_of(alone) == "st1"
    assert format_of(both) == "wf1"
    with pytest.raises(Unsupported):
        open_image(alone)
    open_image(both).close()


def test_what_lies_in_a_store_is_no_tree(tmp_path: Path) -> None:
    """Somebody has put the bytes of a tree's superblock to where one would be."""
    path = tmp_path / "image"
    tree = MemoryDevice()
    format_wf1(tree)
    at = wf1.SUPERBLOCK_LBAS[0] * 512
    image = bytearray(built(None).view)
    image[at : at + 1024] = tree.read(at, 1024)
    path.write_bytes(image)
    assert format_of(path) == "st1"
    before = path.read_bytes()
    device = FileDevice.open(path)
    with pytest.raises(Corrupt, match="belong to a store"):
        open_wf1(device)
    device.close()
    assert path.read_bytes() == before
