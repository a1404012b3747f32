"""The file allocation table, decoded and followed, against a reader that takes one step a time."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import fat_table
from capstore.images.devices import MemoryDevice
from capstore.images.fat_boot import read_geometry
from capstore.images.fat_table import BAD, END, FREE, Table, decode, normal, stretches
from capstore.schema.errors import Corrupt
from tests.images.fatimages import Forge


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=96))
def test_decoding_twelve_bits(raw: bytes) -> None:
    whole = len(raw) * 8 // 12
    expected = []
    for index in range(whole):
        pair = int.from_bytes(raw[index * 3 // 2 : index * 3 // 2 + 2], "little")
        expected.append(pair >> 4 if index % 2 else pair & 0xFFF)
    assert decode(raw, 12)[:whole].tolist() == expected


@pytest.mark.parametrize(("bits", "mask"), [(12, 0xFFF), (16, 0xFFFF), (32, 0x0FFFFFFF)])
def test_marks_are_those_of_fat32(bits: int, mask: int) -> None:
    stored = np.array([0, 1, 2, mask - 9, mask - 8, mask - 7, mask], np.uint32)
    shown = normal(stored, bits).tolist()
    assert shown == [0, 1, 2, mask - 9, BAD, END, END + 7]


def small_table(empty: bytes, numbers: dict[int, int], heads: list[int]) -> Table:
    forge = Forge(bytearray(empty))
    for cluster, value in numbers.items():
        forge.link(cluster, value)
    device = MemoryDevice(forge.data)
    table = Table(device, read_geometry(device))
    table.seal(np.array(heads, np.uint32))
    return table


def slow(table: Table, head: int, need: int, heads: list[int]) -> list[int] | None:
    """The clusters of a file, by the definition; None for damage."""
    numbers = table.next.tolist()
    leading = [n for n in numbers if 2 <= n < table.stop] + [n for n in heads if n < table.stop]
    clusters: list[int] = []
    at = head
    while 2 <= at < table.stop:
        if leading.count(at) > 1 or at in clusters:
            return None
        clusters.append(at)
        at = numbers[at]
    return clusters if at >= END and len(clusters) == need else None


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes(Forge.empty(tmp_path_factory.mktemp("table"), 12, 80).data)


@settings(max_examples=150, deadline=None)
@given(
    links=st.dictionaries(
        st.integers(2, 20),
        st.one_of(st.integers(2, 20), st.sampled_from([0, 1, 60, 0xFF0, 0xFF7, 0xFFF])),
    ),
    neighbours=st.sets(st.integers(2, 20)),
    heads=st.lists(st.integers(0, 22), max_size=4),
    need=st.integers(1, 8),
)
def test_runs_are_what_single_steps_give(
    empty: bytes, links: dict[int, int], neighbours: set[int], heads: list[int], need: int
) -> None:
    numbers = links | {one: one + 1 for one in neighbours}
    table = small_table(empty, numbers, heads)
    for head in heads:
        expected = slow(table, head, need, heads)
        try:
            runs = table.runs(head, need)
        except Corrupt:
            assert expected is None
        else:
            assert [n for first, last in runs for n in range(first, last + 1)] == expected


def test_free_clusters_are_counted(empty: bytes) -> None:
    table = small_table(empty, {5: 6, 6: 0xFFF, 9: 0xFF7}, [5])
    assert table.free == int((table.next[2:] == FREE).sum()) == table.stop - 2 - 3
    assert table.runs(5, 2).tolist() == [[5, 6]]
    assert table.runs(0, 0).tolist() == []


def test_a_million_fragments_do_not_take_seconds(empty: bytes) -> None:
    count = 1_000_000
    order = np.arange(3, 3 + count, dtype=np.uint32)
    np.random.default_rng(7).shuffle(order)
    numbers = np.zeros(count + 3, np.uint32)
    numbers[order[:-1]] = order[1:]
    numbers[order[-1]] = END
    geometry = dataclasses.replace(
        read_geometry(MemoryDevice(empty)), bits=32, clusters=count + 1, fat_offset=0, fats=1
    )
    device = MemoryDevice(numbers.tobytes())
    started = time.process_time()
    table = Table(device, geometry)
    table.seal(order[:1])
    runs = table.runs(int(order[0]), count)
    assert time.process_time() - started < 5
    # Eight bytes for each run: millions of objects would take a multiple of the table.
    assert runs.nbytes == 8 * len(runs)
    assert int((runs[:, 1].astype(np.int64) - runs[:, 0] + 1).sum()) == count
    with pytest.raises(Corrupt, match="ends with"):
        table.runs(int(order[0]), count + 1)


def test_copies_that_differ_far_inside(empty: bytes) -> None:
    numbers = np.zeros(1_000_002, np.uint32)
    copies = [numbers.copy(), numbers.copy(), numbers.copy()]
    copies[1][[7, 999_999]] = END
    copies[2][800_000] = 5
    # The reserved bits are no part of an entry.
    copies[2][800_001] = 0xF0000000
    geometry = dataclasses.replace(
        read_geometry(MemoryDevice(empty)),
        bits=32,
        clusters=1_000_000,
        fat_offset=0,
        fat_bytes=numbers.nbytes,
        fats=3,
    )
    device = MemoryDevice(b"".join(copy.tobytes() for copy in copies))
    assert list(Table(device, geometry).differing()) == [(n, n) for n in (7, 800_000, 999_999)]
    alone = dataclasses.replace(geometry, mirrored=False, active_fat=1)
    assert list(Table(device, alone).differing()) == []
    assert Table(device, alone).free == 1_000_000 - 2


def test_runs_and_stretches_cross_the_pieces(monkeypatch: pytest.MonkeyPatch, empty: bytes) -> None:
    numbers = {at: at + 1 for at in range(3, 40)} | {40: 0xFFF, 50: 51, 51: 0xFFF}
    whole = small_table(empty, numbers, [3, 50])
    monkeypatch.setattr(fat_table, "_PIECE_ENTRIES", 8)
    table = small_table(empty, numbers, [3, 50])
    assert list(table._ends_view) == list(whole._ends_view)
    assert table.runs(3, 38).tolist() == [[3, 40]]
    values = np.array([1] * 8 + [2] * 20 + [3], np.uint8)
    assert list(stretches(values)) == [(0, 8), (8, 28), (28, 29)]
    assert list(stretches(values[:1])) == [(0, 1)]


def test_a_sealed_table_takes_nine_bytes_for_each_cluster(empty: bytes) -> None:
    count = 12_000_000
    geometry = dataclasses.replace(
        read_geometry(MemoryDevice(empty)), bits=32, clusters=count, fat_offset=0, fats=1
    )
    device = MemoryDevice(bytes((count + 2) * 4), read_only=True)
    tracemalloc.start()
    try:
        Table(device, geometry).seal(np.empty(0, np.uint32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9 * count + 32 * 1024 * 1024
