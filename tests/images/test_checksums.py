"""Checksums: known values, and what a seal is good for."""

from __future__ import annotations

import random

import pytest

from capstore.images.checksums import crc32c, seal_of


@pytest.mark.parametrize(
    ("data", "value"),
    # RFC 3720, section B.4.
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_checksums(data: bytes, value: int) -> None:
    assert crc32c(data) == crc32c(bytearray(data)) == crc32c(memoryview(data)) == value


@pytest.mark.parametrize("size", [4096, 4097, 100_000])
def test_any_buffer_of_any_length(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32c(bytearray(data)) == crc32c(memoryview(b"x" + data)[1:]) == crc32c(data)


def test_a_checksum_over_sealed_records_says_which_they_are() -> None:
    def sealed(body: bytes) -> bytes:
        return body + seal_of(body).to_bytes(4, "little")

    bodies = [bytes([n]) * 60 for n in range(100)]
    assert len({crc32c(sealed(body)) for body in bodies}) == len(bodies)
    # What it is for: with the plain checksum they are all the same.
    plain = {crc32c(body + crc32c(body).to_bytes(4, "little")) for body in bodies}
    assert len(plain) == 1
