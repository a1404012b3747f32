"""Images as rows of sectors: the same as those of bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.faults import SECTOR_BYTES
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_log import put, resize

S = SECTOR_BYTES
offsets = st.integers(0, 5).map(lambda n: n * S) | st.integers(0, 5 * S)
contents = st.builds(
    lambda fill, length: fill * length, st.sampled_from([b"a", b"b", b"\0"]), offsets
)
changes = st.lists(st.tuples(offsets, contents) | offsets, max_size=8)


@settings(max_examples=200, deadline=None)
@given(base=contents, wanted=changes)
def test_a_row_of_sectors_is_the_image(base: bytes, wanted: list[tuple[int, bytes] | int]) -> None:
    sectors = Sectors()
    image, plain = SectorImage(sectors, base), bytearray(base)
    met = {image.key: bytes(base)}
    for change in wanted:
        before, raw = image, bytes(plain)
        image = image.copy()
        if isinstance(change, int):
            image.resize(change)
            resize(plain, change, cut=True)
        else:
            image.write(*change)
            put(plain, *change)
        assert bytes(image) == plain
        assert len(image) == len(plain)
        assert bytes(before) == raw
        # Equal keys stand for equal images.
        assert met.setdefault(image.key, bytes(plain)) == plain
        assert SectorImage(sectors, plain).key == image.key
        at = len(plain) // 3
        assert image.read(at, S + 1) == plain[at : at + S + 1]


def test_a_sector_is_kept_once() -> None:
    sectors = Sectors()
    images = [SectorImage(sectors, b"a" * 8 * S + bytes(n)) for n in range(100)]
    assert len(sectors) == 2
    assert len({image.key for image in images}) == 100
