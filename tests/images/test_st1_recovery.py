"""Damaged, forged and cut-off CAPOSST1 images: what they are answered, and what verifying finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from capstore.images import st1
from capstore.images.checksums import crc32c, seal_of
from capstore.images.devices import MemoryDevice
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_FRAME, ST1_SUPERBLOCK, ST1_TABLE
from capstore.images.st1_compact import repair
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import open_st1
from capstore.images.st1_recovery import recover
from capstore.images.st1_verify import verify
from capstore.schema.errors import Corrupt, StorageError, Unsupported
from tests.images.st1model import KIB, Clock, Model, content_of, entropy, new_store, reopened

SEGMENT = 4 * KIB


def small_store() -> tuple[bytes, Model, St1Engine]:
    """A store with a table, a log of several durable frames, values inside and outside of it."""
    device = MemoryDevice()
    engine = new_store(64 * KIB, None, device)
    random = Random(1)
    for number in range(6):
        engine.put(b"table%d" % number, random.randbytes(100))
    engine.put(b"parts", random.randbytes(9000))
    engine.compact()
    engine.put(b"", b"hashed")
    engine.sync()
    engine.put(b"big", random.randbytes(2000))
    engine.delete(b"table3")
    engine.sync()
    engine.put(b"last", b"frame")
    engine.sync()
    return bytes(device.view), content_of(engine), engine


IMAGE, WANTED, ENGINE = small_store()


def opened(image: bytes | bytearray) -> Model:
    return content_of(reopened(MemoryDevice(image, read_only=True), writable=False))


def test_the_store_is_sound() -> None:
    assert opened(IMAGE) == WANTED
    assert list(verify(MemoryDevice(IMAGE))) == []


def regions() -> list[range]:
    """Where superblocks, table and log are."""
    geometry, size = ENGINE.geometry, ENGINE.geometry.segment_bytes
    found = [range(112), range(BLOCK_BYTES, BLOCK_BYTES + 112)]
    head = ENGINE.view.table.head
    found += [
        range(geometry.start(run), geometry.start(run) + min(size, head.sections.end))
        for run in head.runs
    ]
    start = ENGINE.writer.superblock.log_lba * BLOCK_BYTES
    found.append(range(start, last_frame(IMAGE) + BLOCK_BYTES))
    return found


def test_every_bit_of_the_metadata() -> None:
    """A flipped bit is an error, or changes nothing, or is an earlier state of what nobody can
    tell from a torn tail: the last frame, whose being durable no later one tells."""
    before_last = {key: value for key, value in WANTED.items() if key != b"last"}
    outcomes: set[str] = set()
    for region in regions():
        for at in region:
            for bit in range(8) if at % 7 == 0 else (at % 8,):
                image = bytearray(IMAGE)
                image[at] ^= 1 << bit
                try:
                    found = opened(image)
                except Corrupt:
                    outcomes.add("Corrupt")
                    continue
                assert found in (WANTED, before_last), (at, bit)
                outcomes.add("same" if found == WANTED else "before")
    assert outcomes == {"Corrupt", "same", "before"}


def test_every_byte_of_the_values() -> None:
    for key, value in WANTED.items():
        at = IMAGE.rindex(value[:300])
        for offset in range(0, min(len(value), 300), 37):
            image = bytearray(IMAGE)
            image[at + offset] ^= 0x10
            try:
                found = opened(image)
            except Corrupt:
                continue
            assert found.get(key) in (None, value)


def test_every_length() -> None:
    for length in [*range(0, 2048, 13), *range(2048, len(IMAGE), 509)]:
        with pytest.raises(Corrupt):
            opened(IMAGE[:length])
        assert list(verify(MemoryDevice(IMAGE[:length])))


def test_verifying_finds_each_flipped_bit() -> None:
    for region in regions():
        for at in region[::5]:
            image = bytearray(IMAGE)
            image[at] ^= 4
            findings = list(verify(MemoryDevice(image)))
            same = False
            try:
                same = opened(image) == WANTED
            except StorageError:
                assert findings, at
            if not same:
                assert findings, at


# Forged superblocks ------------------------------------------------------------------------------


def with_superblock(**changes: Any) -> bytes:
    superblock = replace(ENGINE.writer.superblock, **changes)
    image = bytearray(IMAGE)
    slot = superblock.generation % 2
    image[slot * BLOCK_BYTES : slot * BLOCK_BYTES + ST1_SUPERBLOCK.size] = superblock.pack()
    return bytes(image)


@pytest.mark.parametrize(
    "changes",
    [
        {"segment_blocks": 0},
        {"segment_blocks": 7},
        {"segment_blocks": 1 << 31},
        {"table_lba": 0},
        {"table_lba": 1 << 60},
        {"table_lba": 9},
        {"log_lba": 3},
        {"log_lba": 1 << 63},
        {"region_blocks": 1 << 40},
        {"region_blocks": 9},
        {"table_sum": 1},
    ],
)
def test_a_superblock_that_points_to_nowhere(changes: dict[str, int]) -> None:
    with pytest.raises(Corrupt):
        opened(with_superblock(**changes))


def sealed(raw: bytes) -> bytes:
    return raw[:-4] + seal_of(raw[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("version", 2, Unsupported),
        ("version", 0, Unsupported),
        ("features", 1, Unsupported),
        ("magic", 0x314657534F504143, Corrupt),
    ],
)
def test_what_is_newer_or_another_format(field: str, value: int, error: type[Exception]) -> None:
    image = bytearray(IMAGE)
    for lba in st1.SUPERBLOCK_LBAS:
        at = lba * BLOCK_BYTES
        ST1_SUPERBLOCK.put(image, at, **{field: value})
        image[at : at + 112] = sealed(bytes(image[at : at + 112]))
    with pytest.raises(error):
        opened(image)
    with pytest.raises(error):
        repair(MemoryDevice(image), clock=Clock(), entropy=entropy)
    assert list(verify(MemoryDevice(image)))[-1].where == "store"


def with_table(change: Callable[[bytearray, int], None]) -> bytes:
    """An image with a table whose head was forged."""
    image = bytearray(IMAGE)
    at = ENGINE.geometry.start(ENGINE.view.table.head.runs[0])
    change(image, at)
    image[at : at + ST1_TABLE.size] = sealed(bytes(image[at : at + ST1_TABLE.size]))
    checksum = crc32c(bytes(image[at : at + ST1_TABLE.size]))
    superblock = replace(ENGINE.writer.superblock, table_sum=checksum)
    slot = superblock.generation % 2
    image[slot * BLOCK_BYTES : slot * BLOCK_BYTES + ST1_SUPERBLOCK.size] = superblock.pack()
    return bytes(image)


@pytest.mark.parametrize("field", [f.name for f in ST1_TABLE.fields if f.name != "crc"])
@pytest.mark.parametrize("value", [0, 1, 0xFFFF, 0xFFFFFFFF, 1 << 63])
def test_a_forged_head_of_a_table(field: str, value: int) -> None:
    width = next(f.width for f in ST1_TABLE.fields if f.name == field)

    def change(image: bytearray, at: int) -> None:
        ST1_TABLE.put(image, at, **{field: value & ((1 << 8 * width) - 1)})

    image = with_table(change)
    try:
        found = opened(image)
    except Corrupt:
        return
    if image == IMAGE:
        return
    # What it says of versions, sequences and names is not told by anything else.
    assert found == WANTED
    assert field in ("sequence", "version", "nameCount")


# Frames ------------------------------------------------------------------------------------------


def last_frame(image: bytes) -> int:
    """Where the last frame of the log is."""
    found = recover(MemoryDevice(image))
    start = found.space.geometry.start(found.position.segment)
    at = start + found.position.offset - BLOCK_BYTES
    assert ST1_FRAME.view(image, at).sequence == found.position.sequence - 1
    return at


def forged_frame(change: Callable[[bytearray], None], header: Callable[[bytearray], None]) -> bytes:
    """The image with its last frame forged: `change` its payload, `header` its head."""
    image, at = bytearray(IMAGE), last_frame(IMAGE)
    frame = image[at : at + BLOCK_BYTES]
    head = ST1_FRAME.view(frame)
    size = head.entryCount * ST1_ENTRY.size + head.heapBytes
    payload = frame[ST1_FRAME.size : ST1_FRAME.size + size]
    change(payload)
    frame[ST1_FRAME.size : ST1_FRAME.size + size] = payload
    ST1_FRAME.put(frame, 0, payloadSum=crc32c(bytes(payload)))
    header(frame)
    frame[: ST1_FRAME.size] = sealed(bytes(frame[: ST1_FRAME.size]))
    image[at : at + BLOCK_BYTES] = frame
    return bytes(image)


def test_the_forger_forges_nothing_by_itself() -> None:
    assert forged_frame(lambda _: None, lambda _: None) == IMAGE


@pytest.mark.parametrize("field", [f.name for f in ST1_ENTRY.fields if f.name != "crc"])
@pytest.mark.parametrize("value", [0, 1, 4, 9, 0xFFFF, 0xFFFFFFFF, (1 << 63) - 1])
def test_a_forged_entry(field: str, value: int) -> None:
    width = next(f.width for f in ST1_ENTRY.fields if f.name == field)

    def change(payload: bytearray) -> None:
        ST1_ENTRY.put(payload, 0, **{field: value & ((1 << 8 * width - 1) - 1)})
        payload[: ST1_ENTRY.size] = sealed(bytes(payload[: ST1_ENTRY.size]))

    try:
        found = opened(forged_frame(change, lambda _: None))
    except Corrupt:
        return
    found.pop(b"last", None)
    assert found == {key: value for key, value in WANTED.items() if key != b"last"}


def test_an_entry_with_a_wrong_seal() -> None:
    def change(payload: bytearray) -> None:
        payload[3] ^= 1

    with pytest.raises(Corrupt, match="wrong checksum"):
        opened(forged_frame(change, lambda _: None))


@pytest.mark.parametrize("field", ["entryCount", "partCount", "heapBytes"])
@pytest.mark.parametrize("value", [0, 1, 1000, 0xFFFFFFFF])
def test_a_frame_of_a_bad_length(field: str, value: int) -> None:
    """The log ends in front of it."""

    def header(frame: bytearray) -> None:
        ST1_FRAME.put(frame, 0, **{field: value})

    found = opened(forged_frame(lambda _: None, header))
    wanted = dict(WANTED)
    if (field, value) not in (("entryCount", 1), ("partCount", 0)):
        del wanted[b"last"]
    assert found == wanted


@pytest.mark.parametrize("next_lba", [1, 9, 17, 1 << 40, (1 << 64) - 1])
def test_a_log_that_goes_on_where_it_cannot(next_lba: int) -> None:
    def header(frame: bytearray) -> None:
        ST1_FRAME.put(frame, 0, next=next_lba)

    with pytest.raises(Corrupt):
        opened(forged_frame(lambda _: None, header))


@pytest.mark.parametrize("length", range(0, BLOCK_BYTES, 31))
def test_a_last_frame_that_is_cut_off(length: int) -> None:
    at = last_frame(IMAGE)
    image = IMAGE[: at + length] + bytes(BLOCK_BYTES - length) + IMAGE[at + BLOCK_BYTES :]
    found = opened(image)
    header = ST1_FRAME.view(IMAGE, at)
    whole = length >= ST1_FRAME.size + header.entryCount * ST1_ENTRY.size + header.heapBytes
    assert (b"last" in found) == whole
    findings = list(verify(MemoryDevice(image)))
    assert [finding.repairable for finding in findings] == [True] * (not whole and length >= 8)
    # And the next writer goes on there.
    device = MemoryDevice(image)
    engine = reopened(device)
    engine.put(b"next", b"one")
    engine.sync()
    assert opened(bytes(device.view)) == {**found, b"next": b"one"}
    assert not list(verify(device))


def test_a_missing_frame_in_front_of_a_durable_one() -> None:
    at = last_frame(IMAGE) - BLOCK_BYTES
    image = bytearray(IMAGE)
    image[at : at + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    with pytest.raises(Corrupt, match="a frame is missing"):
        opened(image)


def test_two_frames_that_are_joined() -> None:
    """A frame whose length takes in the next one is none: the log ends, and something durable is
    missing."""
    at = last_frame(IMAGE) - BLOCK_BYTES
    image = bytearray(IMAGE)
    head = ST1_FRAME.view(image, at)
    ST1_FRAME.put(image, at, heapBytes=head.heapBytes + BLOCK_BYTES)
    image[at : at + ST1_FRAME.size] = sealed(bytes(image[at : at + ST1_FRAME.size]))
    with pytest.raises(Corrupt, match="a frame is missing"):
        opened(image)


def test_a_frame_of_an_earlier_life_does_not_count() -> None:
    """What a crash cut off stays cut off, though what came in its place ends where it begins."""
    device = MemoryDevice()
    engine = new_store(None, SEGMENT, device)
    engine.put(b"a", b"1")
    engine.commit()
    first = engine.writer.position.offset
    engine.put(b"b", b"2")
    engine.commit()
    # The first frame is lost, the second is not.
    device.write(engine.geometry.start(engine.writer.position.segment), bytes(first))
    engine = reopened(device)
    assert content_of(engine) == {}
    engine.put(b"c", b"3")
    engine.sync()
    assert content_of(reopened(device)) == {b"c": b"3"}


def test_a_value_that_looks_like_a_frame() -> None:
    device = MemoryDevice()
    engine = new_store(None, 16 * KIB, device)
    engine.put(b"a", b"1")
    engine.sync()
    start = engine.geometry.start(engine.writer.position.segment)
    frame = device.read(start, BLOCK_BYTES)
    key = ST1_FRAME.view(frame).key
    forged = bytearray(frame)
    ST1_FRAME.put(forged, 0, sequence=9, durable=8, key=key ^ 1)
    forged[: ST1_FRAME.size] = sealed(bytes(forged[: ST1_FRAME.size]))
    # In front of it as much as the rest of the block takes.
    engine.put(b"b", bytes(400) + bytes(forged) * 3)
    engine.sync()
    assert set(content_of(reopened(device))) == {b"a", b"b"}


def test_a_torn_superblock_is_no_loss() -> None:
    device = MemoryDevice(IMAGE)
    engine = reopened(device)
    slot = engine.writer.superblock.generation % 2
    device.write(slot * BLOCK_BYTES, b"\xff" * 100)
    assert opened(bytes(device.view)) == WANTED
    findings = list(verify(device))
    assert [finding.repairable for finding in findings] == [True]
    repair(device, clock=Clock(), entropy=entropy)
    assert not list(verify(device))
    assert opened(bytes(device.view)) == WANTED


def test_unflushed_frames_count_only_with_their_values() -> None:
    device = MemoryDevice()
    engine = new_store(None, 64 * KIB, device)
    engine.put(b"a", b"1")
    engine.sync()
    engine.put(b"b", bytes(range(256)) * 200)
    engine.put(b"c", b"3")
    engine.commit()
    assert set(content_of(reopened(MemoryDevice(device.view)))) == {b"a", b"b", b"c"}
    entry = engine.find(b"\0b")
    assert entry is not None
    device.write(entry.place + 600, b"lost")
    assert set(content_of(reopened(MemoryDevice(device.view)))) == {b"a"}
    # What was said to be durable is damage.
    superblock = replace(engine.writer.superblock, durable=engine.writer.position.sequence - 1)
    slot = superblock.generation % 2
    device.write(slot * BLOCK_BYTES, superblock.pack())
    damaged = reopened(MemoryDevice(device.view))
    with pytest.raises(Corrupt):
        damaged.get(b"b")
    assert damaged.get(b"c") == b"3"


def test_opening_writes_nothing_into_what_is_damaged() -> None:
    for at in (ENGINE.geometry.start(ENGINE.view.table.head.runs[0]) + 5, 12):
        image = bytearray(IMAGE)
        image[at] ^= 1
        image[at ^ 512 if at < 1024 else at] ^= 1 if at < 1024 else 0
        device = MemoryDevice(image)
        with pytest.raises(Corrupt):
            open_st1(device, clock=Clock(), entropy=entropy)
        assert bytes(device.view) == bytes(image)
