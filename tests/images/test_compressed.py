"""Compressed files as devices: what the usual tools write is read back, at any offset."""

import random
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import compressed, compressed_index
from capstore.images.compressed import CompressedDevice, detect, first_bytes, open_compressed
from capstore.images.devices import MemoryDevice
from capstore.images.devices_file import FileDevice
from capstore.schema.errors import Closed, Corrupt, InvalidArgument, ReadOnly, Unsupported
from capstore.schema.limits import KIB, MIB

COMMANDS = {
    "gz": "gzip -c",
    "gz-1": "gzip -1c",
    "gz-9": "gzip -9c",
    "bz2": "bzip2 -c",
    "bz2-1": "bzip2 -1c",
    "xz": "xz -1c",
    "xz-blocks": "xz -1 -T2 --block-size=700000 -c",
    "xz-bcj": "xz --x86 --lzma2=preset=1 --check=sha256 -c",
    "xz-none": "xz -0 --check=none -c",
    "xz-crc32": "xz -0 --check=crc32 -c",
    "zst": "zstd -qc",
    "zst-1": "zstd -q -1 --no-check -c",
    "zst-long": "zstd -q --long=27 -c",
}


def some_text(size: int, seed: int = 1) -> bytes:
    """Words and noise that compress about as programs do, with a stretch of zeros."""
    rand = random.Random(seed)
    words = [rand.randbytes(rand.randrange(1, 9)) for _ in range(2000)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(rand.choices(words, k=1000)) + rand.randbytes(500)
        if rand.random() < 0.05:
            out += bytes(50_000)
    return bytes(out[:size])


PLAIN = some_text(3_000_000)


def run(command: str, data: bytes) -> bytes:
    return subprocess.run(command.split(), input=data, stdout=subprocess.PIPE, check=True).stdout


@cache
def packed(name: str) -> bytes:
    return run(COMMANDS[name], PLAIN)


@cache
def opened(name: str) -> CompressedDevice:
    return open_compressed(MemoryDevice(packed(name), read_only=True))


@pytest.fixture(scope="module", autouse=True)
def forgets() -> Iterator[None]:
    yield
    packed.cache_clear()
    opened.cache_clear()


def device_of(data: bytes) -> MemoryDevice:
    return MemoryDevice(data, read_only=True)


def content(data: bytes) -> bytes:
    device = open_compressed(device_of(data))
    assert device.damage is None
    assert device.verified == device.size()
    return device.read(0, device.size())


@pytest.mark.parametrize("name", COMMANDS)
def test_what_tools_write_reads_back(name: str) -> None:
    device = opened(name)
    assert (device.kind, device.damage) == (name.split("-")[0], None)
    assert device.size() == device.verified == len(PLAIN)
    assert device.read(0, len(PLAIN)) == PLAIN


@given(
    st.sampled_from(sorted(COMMANDS)),
    st.lists(st.tuples(st.integers(0, len(PLAIN)), st.integers(0, 200_000)), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_range_reads_back(name: str, ranges: list[tuple[int, int]]) -> None:
    device = opened(name)
    for offset, wanted in ranges:
        length = min(wanted, len(PLAIN) - offset)
        expected = PLAIN[offset : offset + length]
        assert device.read(offset, length) == expected
        view = memoryview(bytearray(length))
        if device.read_now(offset, view):
            assert view == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_points_are_kept_and_taken_back(name: str) -> None:
    points = opened(name).export_points()
    again = open_compressed(device_of(packed(name)), points=points)
    assert again.export_points() == points
    rand = random.Random(7)
    for _ in range(6):
        offset = rand.randrange(len(PLAIN) - 5000)
        assert again.read(offset, 5000) == PLAIN[offset : offset + 5000]


@pytest.mark.parametrize("name", ["gz", "gz-1", "gz-9", "bz2", "xz-blocks"])
def test_a_read_decompresses_no_more_than_its_span(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = open_compressed(device_of(packed(name)), points=opened(name).export_points())
    given_out = 0
    decode = device._codec.decode

    def counted(source, point):
        nonlocal given_out
        for piece in decode(source, point):
            given_out += len(piece)
            yield piece

    monkeypatch.setattr(device._codec, "decode", counted)
    device.read(len(PLAIN) - 10, 10)
    assert 0 < given_out < 2 * MIB
    before = given_out
    device.read(len(PLAIN) - 5000, 4000)
    assert given_out == before


def test_gz_points_are_inside_members() -> None:
    assert len(opened("gz").__repr__().split()) == 5
    spans = opened("gz")._index.spans
    assert len(spans) >= 4
    assert {span.point.state[0] for span in spans[1:]} - {0}


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_several_streams_with_their_padding(suffix: str) -> None:
    one, other = packed(suffix), run(COMMANDS[suffix], b"and more" * 1000)
    empty = run(COMMANDS[suffix], b"")
    plain = PLAIN + b"and more" * 1000
    assert content(one + other) == plain
    assert content(empty + one + empty + empty + other + empty) == plain
    assert content(one + other + bytes(512)) == plain
    assert content(empty) == b""
    if suffix == "xz":
        assert content(one + bytes(8) + other + bytes(4)) == plain


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_many_small_streams(suffix: str) -> None:
    parts = [some_text(9000, seed) for seed in range(60)]
    plain = b"".join(parts)
    data = b"".join(run(COMMANDS[suffix], part) for part in parts)
    device = open_compressed(device_of(data))
    assert device.read(0, device.size()) == plain
    assert len(device._index.spans) < 5
    again = open_compressed(device_of(data), points=device.export_points())
    assert again.read(300_000, 100_000) == plain[300_000:400_000]


def test_streams_with_little_in_them_are_not_all_decoded_for_a_byte() -> None:
    one = run("gzip -nc", b"a")
    count = 600 * 1024 // len(one)
    device = open_compressed(device_of(one * count))
    assert device.read(0, count) == b"a" * count
    longest = max(span.length for span in device._index.spans)
    assert longest * len(one) <= 512 * 1024 + len(one)


def test_gz_headers_with_everything() -> None:
    import zlib

    body = run("gzip -nc", b"content" * 100)[10:]
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x05\x00extra" + b"name\0" + b"comment\0"
    good = head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + body
    assert content(good) == b"content" * 100
    with pytest.raises(Corrupt, match="CRC"):
        open_compressed(device_of(good[:15] + b"X" + good[16:]))


def test_zst_skippable_frames() -> None:
    skip = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    data = skip + packed("zst") + skip + packed("zst-1") + skip
    assert detect(skip) == "zst"
    assert content(data) == PLAIN + PLAIN


def test_detect() -> None:
    for name in COMMANDS:
        assert detect(packed(name)[:10]) == name.split("-")[0]
        assert detect(run(COMMANDS[name], b"")) == name.split("-")[0]
    for head in (b"", b"BZ", b"BZh9 is a text", b"\x1f\x8b\x00", b"\x50\x2a\x4d", bytes(16)):
        assert detect(head) is None
    with pytest.raises(Unsupported):
        open_compressed(device_of(b"plain"))


@pytest.mark.parametrize("name", COMMANDS)
def test_first_bytes(name: str) -> None:
    assert first_bytes(device_of(packed(name)), 1000) == PLAIN[:1000]
    assert first_bytes(device_of(run(COMMANDS[name], b"short")), 1000) == b"short"
    if not name.startswith("bz2"):
        assert first_bytes(device_of(packed(name)[:500_000]), 1000) == PLAIN[:1000]


@pytest.mark.parametrize("name", ["xz", "zst", "gz"])
def test_long_spans_are_spooled(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compressed_index, "SPAN_BYTES_MAX", 300 * KIB)
    monkeypatch.setattr(compressed, "SPAN_BYTES_MAX", 300 * KIB)
    plain = PLAIN[:2_000_000] + bytes(500_000)
    data = run(COMMANDS[name], plain)
    device = open_compressed(device_of(data), spool_directory=str(tmp_path))
    assert device._index.spooled
    assert device.read(0, len(plain)) == plain
    assert not list(tmp_path.iterdir())
    again = open_compressed(
        device_of(data), points=device.export_points(), spool_directory=str(tmp_path)
    )
    assert not again._index.spooled
    assert again.read(1_234_567, 1000) == plain[1_234_567:1_235_567]
    assert again._index.spooled
    assert again.read(2_100_000, 1000) == bytes(1000)


@pytest.mark.parametrize("name", ["gz", "bz2", "zst", "xz-blocks"])
def test_threads_read_at_once(name: str) -> None:
    device = open_compressed(device_of(packed(name)), points=opened(name).export_points())
    wrong: list[int] = []

    def read(seed: int) -> None:
        rand = random.Random(seed)
        for _ in range(20):
            offset = rand.randrange(len(PLAIN) - 4096)
            if device.read(offset, 4096) != PLAIN[offset : offset + 4096]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "SPAN_CACHE_BYTES_MAX", 1_500_000)
    device = open_compressed(device_of(packed("gz")))
    assert device.read(0, len(PLAIN)) == PLAIN
    assert 0 < device._cached_bytes == sum(map(len, device._cache.values())) <= 1_500_000
    last = memoryview(bytearray(10))
    assert device.read_now(len(PLAIN) - 10, last)
    assert last == PLAIN[-10:]
    assert not device.read_now(0, last)


def test_a_device_is_read_only_and_closes(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(packed("gz"))
    device = open_compressed(path)
    for change in (lambda: device.write(0, b"x"), lambda: device.resize(0)):
        with pytest.raises(ReadOnly):
            change()
    device.flush()
    for offset, length in ((-1, 1), (0, -1), (len(PLAIN), 1), (0, len(PLAIN) + 1)):
        with pytest.raises(InvalidArgument):
            device.read(offset, length)
    assert device.read(len(PLAIN), 0) == b""
    device.read(0, 10)
    device.close()
    device.close()
    assert "closed" in repr(device)
    for call in (
        device.size,
        device.flush,
        device.export_points,
        lambda: device.read(0, 1),
        lambda: device.read_now(0, memoryview(bytearray(1))),
        lambda: device.write(0, b""),
        lambda: device.resize(1),
    ):
        with pytest.raises(Closed):
            call()


def test_a_device_that_was_given_stays_open_when_opening_fails(tmp_path: Path) -> None:
    given_device = device_of(b"no such format")
    with pytest.raises(Unsupported):
        open_compressed(given_device)
    assert given_device.size() == 14
    path = tmp_path / "a"
    path.write_bytes(b"no such format")
    with pytest.raises(Unsupported):
        open_compressed(path)
    # Its lock is gone.
    FileDevice.open(path).close()


def test_the_file_cannot_be_exchanged_under_the_device() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.gz"
        path.write_bytes(packed("gz"))
        device = open_compressed(str(path))
        path.unlink()
        path.write_bytes(run("gzip -c", b"another"))
        assert device.read(len(PLAIN) - 9, 9) == PLAIN[-9:]
        device.close()
