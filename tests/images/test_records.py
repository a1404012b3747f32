"""The record codec, and the pages that describe records byte by byte."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstore.images import records
from capstore.images.records import Field, Record
from capstore.schema import layout, wire
from capstore.schema.errors import Corrupt, InvalidArgument

SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec"
RECORDS = [value for value in vars(records).values() if isinstance(value, Record)]
HEADING = re.compile(r"^## (?:\d+\. )?`(\w+)`, (\d+) bytes$", re.MULTILINE)


def limits_of(field: Field) -> tuple[int, int]:
    bits = field.width * 8
    if field.type.startswith("int"):
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


@st.composite
def rows(draw: st.DrawFn) -> tuple[Record, dict[str, int]]:
    record = draw(st.sampled_from(RECORDS))
    return record, {
        field.name: draw(st.integers(*limits_of(field))) for field in record.fields[:-1]
    }


def test_every_struct_of_the_layout_has_a_codec() -> None:
    structs = {
        str(node.name)
        for node in layout.schema.node.nestedNodes
        if hasattr(getattr(layout, str(node.name)), "new_message")
    }
    assert structs == {record.name for record in RECORDS}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_page_says_where_each_field_is(record: Record) -> None:
    sections = {}
    for page in SPEC.glob("*.md"):
        text = page.read_text()
        for match in HEADING.finditer(text):
            assert match[1] not in sections, "described twice"
            sections[match[1]] = (int(match[2]), text[match.end() :].split("\n## ")[0])
    size, section = sections[record.name]
    assert size == record.size
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    assert rows == [(str(f.offset), str(f.width), f.name) for f in record.fields]


def test_the_pages_describe_nothing_that_is_not_there() -> None:
    described = {
        name for page in SPEC.glob("*.md") for name, _ in HEADING.findall(page.read_text())
    }
    assert described == {record.name for record in RECORDS}


@given(rows())
def test_a_record_reads_back_as_it_was_packed(row: tuple[Record, dict[str, int]]) -> None:
    record, values = row
    sealed = record.pack(**values)
    assert len(sealed) == record.size
    read = record.unpack(sealed, "it")
    assert {name: getattr(read, name) for name in values} == values


@given(rows())
def test_the_layout_is_that_of_cap_n_proto(row: tuple[Record, dict[str, int]]) -> None:
    """A message that pycapnp builds has the same bytes in its data section."""
    record, values = row
    kinds = {"kind": wire.NodeKind, "provenance": wire.Provenance}
    for name, enum in kinds.items():
        if name in values:
            values[name] %= len(enum.schema.enumerants)
    message = getattr(layout, record.name).new_message()
    for name, value in values.items():
        setattr(message, name, value)
    sealed = record.pack(**values)
    message.crc = int.from_bytes(sealed[-4:], "little")
    # One segment: its table (8 bytes), the root pointer (8), then the data section.
    assert message.to_bytes()[16:] == sealed


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_a_table_is_its_records_one_after_another(offsets: list[int]) -> None:
    record = records.RO1_EXTENT
    table = np.zeros(len(offsets), record.dtype)
    table["source"] = offsets
    sealed = record.seal(table)
    assert sealed == b"".join(record.pack(source=offset) for offset in offsets)
    assert record.table(sealed)["source"].tolist() == offsets
    assert record.unsealed(sealed).tolist() == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_flipped_bit_is_noticed(record: Record) -> None:
    values = {field.name: limits_of(field)[1] // 3 for field in record.fields[:-1]}
    sealed = record.pack(**values)
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="it at offset 7 has a wrong checksum"):
            record.unpack(flipped, "it", 7)
        assert record.unsealed(sealed + flipped + sealed).tolist() == [1]
        where = f"it at offset {7 + len(sealed)} has a wrong checksum"
        with pytest.raises(Corrupt, match=where):
            record.unpack_all(sealed + bytes(flipped) + sealed, "it", 7)
    assert record.unpack_all(2 * sealed, "it") == 2 * [record.unpack(sealed, "it")]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_that_is_cut_off_is_corrupt(record: Record) -> None:
    sealed = record.pack()
    for length in range(record.size):
        with pytest.raises(Corrupt, match="cut off"):
            record.unpack(sealed[:length], "it")
    with pytest.raises(Corrupt):
        record.table(sealed[:-1])


def test_what_a_field_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        records.RO1_NODE.pack(links=1 << 32)
    with pytest.raises(InvalidArgument):
        records.RO1_NODE.pack(size=-1)
    with pytest.raises(TypeError, match="colour"):
        records.RO1_NODE.pack(colour=1)


@pytest.mark.parametrize("struct", ["Error", "Entry", "Stat"])
def test_pointers_and_booleans_have_no_place_in_a_record(struct: str) -> None:
    with pytest.raises(TypeError):
        Record(getattr(wire, struct))
