"""Damaged and forged logs of CAPOSWF1, and damage anywhere: named, no hang, never written to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capstore.images import wf1
from capstore.images.builder import Facts
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.records import BLOCK_BYTES, WF1_ENTRY, WF1_EXTENT, WF1_FRAME, WF1_NODE, Record
from capstore.images.wf1_build import Wf1Builder
from capstore.images.wf1_compact import repair
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_tree import Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import Corrupt
from tests.images.trees import push, read_all
from tests.images.wf1forge import FILE_2, SIZE, TREE, Forger, clock, entropy, findings


@pytest.fixture(scope="module")
def image() -> bytes:
    device = MemoryDevice()
    push(Wf1Builder(device, size=SIZE), TREE)
    return bytes(device.view)


# The log ------------------------------------------------------------------------------------------


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


# Damage -------------------------------------------------------------------------------------------


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
