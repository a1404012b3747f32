"""Damaged, forged and exploding compressed files: an error or the right bytes, and soon."""

import bz2
import gzip
import itertools
import lzma
import random
import struct
import subprocess
import time
import zlib

import pytest

from capstore.images import compressed_gz_points, compressed_index
from capstore.images.checksums import crc32c
from capstore.images.compressed import CompressedDevice, open_compressed
from capstore.images.compressed_gz_points import aligned
from capstore.images.devices import MemoryDevice
from capstore.schema.errors import Corrupt, StorageError, StorageIOError, TooLarge, Unsupported
from capstore.schema.limits import KIB, MIB

KINDS = ("gz", "bz2", "xz", "zst")
FIRST = b"the first of two streams, " * 12 + bytes(range(64))
SECOND = b"and the second stream " * 20
PLAIN = FIRST + SECOND


def run(command: str, data: bytes) -> bytes:
    return subprocess.run(command.split(), input=data, stdout=subprocess.PIPE, check=True).stdout


def pack(kind: str, data: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(data, mtime=0)
    if kind == "bz2":
        return bz2.compress(data)
    return lzma.compress(data, preset=0) if kind == "xz" else run("zstd -qc", data)


def open_bytes(data: bytes, **options: object) -> CompressedDevice:
    return open_compressed(MemoryDevice(data, read_only=True), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_at_every_length(kind: str) -> None:
    first, second = pack(kind, FIRST), pack(kind, SECOND)
    data = first + second
    for length in range(len(data)):
        try:
            device = open_bytes(data[:length])
        except (Corrupt, Unsupported):
            assert length < len(first)
            continue
        size = device.size()
        assert device.read(0, size) == PLAIN[:size]
        # A file that ends between two streams has nothing wrong with it.
        assert (device.damage is None) == (length == len(first))
        if kind in ("gz", "zst"):
            assert device.verified == (len(FIRST) if length >= len(first) else 0)
        else:
            # Each block has a checksum of its own, before the one of the stream.
            assert device.verified in (0, len(FIRST), len(PLAIN))
            assert device.verified >= len(FIRST) or length < len(first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_flip(kind: str) -> None:
    first = pack(kind, FIRST)
    data = first + pack(kind, SECOND)
    unverified = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            device = open_bytes(bytes(flipped))
        except (Corrupt, Unsupported, TooLarge):
            continue
        verified = device.verified
        assert device.read(0, verified) == PLAIN[:verified]
        assert device.damage is not None or device.size() in (len(FIRST), len(PLAIN))
        if bit >= 8 * len(first):
            assert verified >= len(FIRST)
        if device.size() > verified:
            # It looks cut off: no checksum was found that speaks of the rest.
            assert "cut off" in (device.damage or "")
            unverified += 1
        device.read(0, device.size())
    assert unverified < len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_behind_the_end(kind: str) -> None:
    for garbage in (b"garbage", b"\0\0\0\0garbage", b"\x1f\x8b", b"BZ", pack("gz", b"x")[:5]):
        device = open_bytes(pack(kind, PLAIN) + garbage)
        assert device.damage is not None
        assert device.read(0, device.size()) == PLAIN
        assert device.verified == len(PLAIN)


class Padded(MemoryDevice):
    """With so many zeros behind its data as nobody keeps in memory."""

    padding = 512 * MIB

    def size(self) -> int:
        return super().size() + self.padding

    def read_into(self, offset: int, view: memoryview) -> None:
        inside = max(0, min(len(view), super().size() - offset))
        if inside:
            view[:inside] = self.view[offset : offset + inside]
        view[inside:] = bytes(len(view) - inside)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_file_is_opened_soon(kind: str) -> None:
    source = Padded(pack(kind, PLAIN))
    begin = time.process_time()
    device = open_compressed(source)
    assert time.process_time() - begin < 2
    assert (device.damage, device.read(0, device.size())) == (None, PLAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_checksum_takes_only_its_stream_away(kind: str) -> None:
    first, second = bytearray(pack(kind, FIRST)), bytearray(pack(kind, SECOND))
    at = {"gz": -6, "bz2": 12, "xz": -42, "zst": -2}[kind]
    second[at] ^= 1
    device = open_bytes(bytes(first + second + pack(kind, b"third")))
    assert device.damage is not None
    assert device.read(0, device.size()) == FIRST


def test_a_zst_frame_that_lost_its_checksum_flag() -> None:
    plain = random.Random(4).randbytes(5000)
    frame = bytearray(pack("zst", plain))
    frame[4] ^= 4
    frame[2000] ^= 1
    with pytest.raises(Corrupt):
        open_bytes(bytes(frame))
    first = pack("zst", FIRST)
    device = open_bytes(first + bytes(frame) + first)
    assert (device.verified, device.read(0, device.size())) == (len(FIRST), FIRST)


@pytest.mark.parametrize("kind", KINDS)
def test_noise(kind: str) -> None:
    rand = random.Random(3)
    plain = rand.randbytes(20_000) + bytes(100_000) + b"some text " * 5000
    data = pack(kind, plain)
    for _ in range(150):
        flipped = bytearray(data)
        for _ in range(rand.randrange(1, 20)):
            flipped[rand.randrange(len(data))] = rand.randrange(256)
        try:
            device = open_bytes(bytes(flipped))
        except StorageError:
            continue
        verified = device.verified
        assert device.read(0, verified) == plain[:verified]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_points_are_refused(kind: str) -> None:
    data = pack(kind, PLAIN)
    points = open_bytes(data).export_points()
    for length in range(len(points)):
        with pytest.raises(Corrupt):
            open_bytes(data, points=points[:length])
    for bit in range(8 * len(points)):
        flipped = bytearray(points)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            open_bytes(data, points=bytes(flipped))
    other = pack(kind, PLAIN[:-1] + b"!")
    with pytest.raises(Corrupt, match="another file"):
        open_bytes(other, points=points)


@pytest.mark.parametrize("kind", KINDS)
def test_forged_points_give_no_wrong_bytes(kind: str) -> None:
    """Bytes changed at random, and sealed again: whatever is read was what the sums say."""
    plain = random.Random(1).randbytes(700_000) + b"text " * 200_000
    data = pack(kind, plain)
    points = open_bytes(data).export_points()
    rand = random.Random(5)
    refused = 0
    for _ in range(120):
        forged = bytearray(points[:-4])
        for _ in range(rand.randrange(1, 3)):
            at = rand.randrange(min(len(forged), 300))
            forged[at] = rand.choice((0, 255, rand.randrange(256)))
        try:
            device = open_bytes(data, points=bytes(forged) + struct.pack("<I", crc32c(forged)))
            for offset in rand.sample((0, 400_000, 1_000_000, device.size() - 100), 2):
                assert device.read(offset, 100) == plain[offset : offset + 100]
        except StorageError:
            refused += 1
    assert refused > 50


def test_a_file_that_changes_is_noticed() -> None:
    plain = random.Random(2).randbytes(2_000_000)
    data = bytearray(gzip.compress(plain, 0))
    source = MemoryDevice(bytes(data))
    device = open_compressed(source)
    source.write(1_000_000, b"changed")
    with pytest.raises(Corrupt):
        device.read(990_000, 20_000)
    assert device.read(1_900_000, 1000) == plain[1_900_000:1_901_000]


class Failing(MemoryDevice):
    failing = False

    def read_into(self, offset: int, view: memoryview) -> None:
        if self.failing:
            raise StorageIOError("the disk is gone")
        super().read_into(offset, view)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_device_come_through(kind: str) -> None:
    source = Failing(pack(kind, PLAIN), read_only=True)
    device = open_compressed(source)
    source.failing = True
    with pytest.raises(StorageIOError):
        device.read(0, 10)
    source.failing = False
    assert device.read(0, 10) == PLAIN[:10]


ZEROS = {"gz": "gzip -1c", "bz2": "bzip2 -1c", "xz": "xz -0c", "zst": "zstd -q -1 -c"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_of_zeros_is_refused_soon(kind: str) -> None:
    bomb = run(ZEROS[kind], bytes(16 * MIB)) * 16
    begin = time.process_time()
    with pytest.raises(TooLarge):
        open_bytes(bomb, content_bytes_max=24 * MIB)
    assert time.process_time() - begin < 5


def test_zeros_take_no_room_in_the_spool() -> None:
    plain = bytes(12 * MIB) + b"end"
    device = open_bytes(run("zstd -qc", plain), spool_bytes_max=64 * KIB)
    assert device._index.spooled
    assert device.read(12 * MIB - 5, 8) == bytes(5) + b"end"


@pytest.mark.parametrize("command", ["zstd -qc", "xz -0c"])
def test_the_spool_is_bounded(command: str) -> None:
    plain = b"not nothing " * MIB
    with pytest.raises(TooLarge, match="spool"):
        open_bytes(run(command, plain), spool_bytes_max=5 * MIB)
    assert open_bytes(run(command, plain), spool_bytes_max=12 * MIB).size() == len(plain)


def test_what_could_not_be_spooled_takes_no_room() -> None:
    """Two frames of 9 MiB, and room for one and a half: the first one is served all the same."""
    frames = [run("zstd -qc", word * (9 * MIB // 4)) for word in (b"abcd", b"efgh")]
    points = open_bytes(b"".join(frames)).export_points()
    device = open_bytes(b"".join(frames), points=points, spool_bytes_max=14 * MIB)
    for _ in range(2):
        with pytest.raises(TooLarge, match="spool"):
            device.read(0, device.size())
    assert device._spool.end == 9 * MIB
    assert device.read(9 * MIB - 4, 4) == b"abcd"
    damaged = bytearray(b"".join(frames))
    damaged[len(frames[0]) // 2] ^= 1
    source = MemoryDevice(b"".join(frames))
    device = open_compressed(source, points=points, spool_bytes_max=14 * MIB)
    source.write(0, damaged)
    with pytest.raises(Corrupt):
        device.read(0, 4)
    assert device.read(9 * MIB, 4) == b"efgh"
    assert device._spool.end == 9 * MIB


def test_points_take_no_multiple_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that repeats itself: blocks of 32 KiB of content in 300 bytes, and full windows."""
    monkeypatch.setattr(compressed_index, "STATES_BYTES_FLOOR", 64 * KIB)
    plain = random.Random(6).randbytes(32_000) * 640
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 1)
    data = packer.compress(plain) + packer.flush()
    device = open_bytes(data)
    states = sum(len(span.point.state) for span in device._index.spans)
    assert 32_000 < states <= 64 * KIB + len(data)
    for offset in (0, 5_000_000, len(plain) - 100):
        assert device.read(offset, 100) == plain[offset : offset + 100]
    assert device.damage is None


def test_a_window_that_needs_too_much_memory() -> None:
    # A frame header that asks for a window of 2 GiB, and an empty last block.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00"
    with pytest.raises(TooLarge):
        open_bytes(frame)
    header = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    forged = bytearray(header)
    # The block header: size, flags, filter, size of its properties, dictionary, padding, CRC32.
    forged[12 + 4] = 36
    forged[20:24] = zlib.crc32(forged[12:20]).to_bytes(4, "little")
    with pytest.raises(TooLarge):
        open_bytes(bytes(forged))


def test_a_mark_inside_a_bzip2_block_does_not_end_it() -> None:
    """Stored bits look like a mark by chance once in 2**48; so a search that finds too much."""
    from capstore.images import compressed_bz2

    plain = random.Random(9).randbytes(300_000)
    data = bz2.compress(plain, 1)
    calls = itertools.count()
    find = compressed_bz2._first_mark

    def too_much(found: bytes, start: int) -> int | None:
        return start + 4000 if next(calls) < 3 else find(found, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed_bz2, "_first_mark", too_much)
        device = open_bytes(data)
    assert (device.damage, device.read(0, device.size())) == (None, plain)


@pytest.mark.parametrize("bit", range(8))
def test_deflate_can_begin_at_any_bit(bit: int) -> None:
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = body.compress(PLAIN) + body.flush()
    shifted = (int.from_bytes(stream, "little") << bit | (1 << bit) - 1).to_bytes(
        len(stream) + 1, "little"
    )
    decompressor = zlib.decompressobj(-15)
    assert decompressor.decompress(aligned(shifted[0], bit) + shifted[1:]) == PLAIN
    assert decompressor.eof


@pytest.mark.parametrize("how", ["none", "wrong", "raises"])
def test_gz_goes_on_without_hints(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compressed_gz_points._points

    def points(export: bytes):
        if how == "wrong":
            yield from ((o + 3, c, b, w) for o, c, b, w in real(export))

    def broken(**_: object) -> None:
        raise OSError("the library is broken")

    if how == "raises":
        monkeypatch.setattr("indexed_gzip.IndexedGzipFile", broken)
    monkeypatch.setattr(compressed_gz_points, "_points", points)
    plain = random.Random(2).randbytes(1_000_000) + b"text " * 500_000
    device = open_bytes(gzip.compress(plain))
    assert (device.damage, device.size()) == (None, len(plain))
    assert len(device._index.spans) == 1
    assert device.read(2_000_000, 5000) == plain[2_000_000:2_005_000]
