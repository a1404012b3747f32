"""Names and times in forged FAT directories."""

from __future__ import annotations

import datetime
import struct
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.fat import FatTree
from capstore.images.fat_names import folded, long_name, short_name
from capstore.schema.errors import NotFound
from capstore.schema.nodes import Provenance, Stat
from tests.images.fatimages import Forge, long_entries, short_entry

SHORT = b"SHORT   TXT"


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge.empty(tmp_path, 12)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image for tests with many examples, which patch copies of it."""
    return bytes(Forge.empty(tmp_path_factory.mktemp("empty"), 12, 160).data)


def names(forge: Forge) -> list[str]:
    tree = forge.tree()
    return [entry.name for entry in tree.list(tree.root, "", 1000).entries]


def messages(tree: FatTree) -> list[str]:
    return [finding.message for finding in tree.verify()]


@pytest.mark.parametrize(
    ("raw", "case", "name"),
    [
        (b"README  TXT", 0x00, "README.TXT"),
        (b"README  TXT", 0x08, "readme.TXT"),
        (b"README  TXT", 0x10, "README.txt"),
        (b"README  TXT", 0x18, "readme.txt"),
        (b"NOEXT      ", 0x18, "noext"),
        (b"A B     C D", 0x00, "A B.C D"),
        (b"\x05BC     ", 0x00, "\u03c3BC"),
        (b"\x9a\x8e\x99     \xe1  ", 0x00, "ÜÄÖ.ß"),
        (b"\x9a\x8e\x99     \xe4  ", 0x18, "üäö.\u03c3"),
    ],
)
def test_short_names(forge: Forge, raw: bytes, case: int, name: str) -> None:
    raw = raw.ljust(11)
    assert short_name(raw, case) == name
    forge.put(forge.root, short_entry(raw, case=case))
    assert names(forge) == [name]
    assert messages(forge.tree()) == []


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "exactly 13 ch",
        "fourteen chars",
        "exactly twenty-six letters",
        "twenty-seven letters, alas.",
        "é" * 127,
        "a" * 255,
        "emoji \U0001f600 inside",
        "split \U0001f600".rjust(14),
        "\U0001f600" * 63,
        "trailing dot.",
        ".hidden",
        "with\ttab",
    ],
)
def test_long_names(forge: Forge, name: str) -> None:
    forge.put(forge.root, *long_entries(name, SHORT), short_entry(SHORT))
    assert names(forge) == [name]
    tree = forge.tree()
    assert tree.lookup(tree.root, "short.txt").name == name
    assert messages(tree) == []


@pytest.mark.parametrize(
    "name",
    [
        b"\x00\xd8a\0",
        b"a\0\x00\xdc",
        "a/b",
        ".",
        "..",
        "日" * 86,
        "a" * 256,
        b"\0\0" + b"\xff" * 24,
    ],
)
def test_a_long_name_that_is_none_leaves_the_short_one(forge: Forge, name: str | bytes) -> None:
    forge.put(forge.root, *long_entries(name, SHORT), short_entry(SHORT))
    assert names(forge) == ["SHORT.TXT"]
    assert messages(forge.tree()) == ["the long name is no name"]


def test_padding_may_be_anything() -> None:
    assert long_name("name\0".encode("utf-16-le") + b"\x00\xd8junk") == "name"
    assert long_name("name".encode("utf-16-le")) == "name"


def broken_sets() -> dict[str, list[bytes]]:
    good = long_entries("a name of three long entries, no less", SHORT)
    short = short_entry(SHORT)
    other = short_entry(b"OTHER   TXT")
    renumbered = [bytes([0x42]) + good[1][1:], good[1], good[2]]
    return {
        "checksum": [*long_entries("some long name", SHORT, total=1), short],
        "no last mark": [good[1], good[2], short],
        "first is missing": [good[0], good[1], short],
        "middle is missing": [good[0], good[2], short],
        "order": [good[0], good[2], good[1], short],
        "number twice": [*renumbered[:2], good[1], short],
        "number 0": [bytes([0x40]) + good[2][1:], short],
        "number 21": [bytes([0x55]) + good[2][1:], short],
        "type": [good[0][:12] + b"\1" + good[0][13:], *good[1:], short],
        "deleted in between": [*good, b"\xe5" + short[1:], short],
        "another entry in between": [*good, other, short],
        "part is deleted": [good[0], b"\xe5" + good[1][1:], good[2], short],
    }


@pytest.mark.parametrize("case", broken_sets())
def test_broken_sets_of_long_entries_are_ignored(forge: Forge, case: str) -> None:
    forge.put(forge.root, *broken_sets()[case])
    assert [name for name in names(forge) if name != "OTHER.TXT"] == ["SHORT.TXT"]
    tree = forge.tree()
    assert "a long entry belongs to no short entry" in messages(tree)
    assert tree.lookup(tree.root, "SHORT.TXT").name == "SHORT.TXT"


def test_orphans_at_the_end_are_ignored(forge: Forge) -> None:
    forge.put(forge.root, short_entry(SHORT), *long_entries("orphan", SHORT))
    assert names(forge) == ["SHORT.TXT"]


def test_a_second_set_behind_an_orphan_counts(forge: Forge) -> None:
    orphan = long_entries("this was another file", b"OTHER   TXT")
    forge.put(forge.root, *orphan, *long_entries("real", SHORT), short_entry(SHORT))
    assert names(forge) == ["real"]
    assert len(messages(forge.tree())) == len(orphan)


def test_what_is_no_entry(forge: Forge) -> None:
    forge.put(
        forge.root,
        b"\xe5" + short_entry(SHORT)[1:],
        short_entry(b".".ljust(11), attributes=0x10),
        short_entry(b"..".ljust(11), attributes=0x10),
        short_entry(b"LABEL      ", attributes=0x08),
        short_entry(SHORT),
    )
    after_the_end = forge.root + 6 * 32
    forge.data[after_the_end : after_the_end + 32] = short_entry(b"GHOST      ")
    assert names(forge) == ["SHORT.TXT"]


def test_an_entry_without_a_name_is_left_out(forge: Forge) -> None:
    forge.put(
        forge.root, short_entry(b"A/B     TXT"), short_entry(b" ".ljust(11)), short_entry(SHORT)
    )
    assert names(forge) == ["SHORT.TXT"]
    tree = forge.tree()
    found = [(finding.message, finding.offset) for finding in tree.verify()]
    assert found == [
        ("the entry has no valid name", forge.root),
        ("the entry has no valid name", forge.root + 32),
    ]
    with pytest.raises(NotFound):
        tree.stat(forge.root // 32)


def test_a_long_name_saves_an_entry_without_a_short_one(forge: Forge) -> None:
    forge.put(forge.root, *long_entries("good", b"A/B     TXT"), short_entry(b"A/B     TXT"))
    assert names(forge) == ["good"]


def test_the_first_of_equal_names_wins(forge: Forge) -> None:
    shorts = [b"ONE     TXT", b"TWO     TXT", b"THREE   TXT"]
    for size, (short, name) in enumerate(zip(shorts, ("Same", "sAME", "Same"), strict=True)):
        forge.put(forge.root, *long_entries(name, short), short_entry(short, size=size))
    assert names(forge) == ["Same"]
    tree = forge.tree()
    assert tree.lookup(tree.root, "SAME").stat.size == 0
    with pytest.raises(NotFound):
        tree.lookup(tree.root, "TWO.TXT")
    assert any("another entry 'sAME'" in message for message in messages(tree))


def test_equal_short_names_are_found(forge: Forge) -> None:
    for name in ("first", "second"):
        forge.put(forge.root, *long_entries(name, SHORT), short_entry(SHORT))
    tree = forge.tree()
    assert names(forge) == ["first", "second"]
    assert tree.lookup(tree.root, "SHORT.TXT").name == "first"
    assert messages(tree) == ["another entry has the same short name"]


def test_a_listed_name_goes_before_an_alias(forge: Forge) -> None:
    forge.put(forge.root, *long_entries("long one", SHORT), short_entry(SHORT))
    forge.put(forge.root, short_entry(SHORT))
    tree = forge.tree()
    for name in names(forge):
        assert tree.lookup(tree.root, name).name == name


@settings(max_examples=200, deadline=None)
@given(st.characters(codec="utf-8"))
def test_folding_is_the_simple_mapping(char: str) -> None:
    upper = folded(char)
    assert len(upper) == 1
    assert folded(upper) == upper or unicodedata.category(upper) == "Lu"
    if len(char.upper()) == 1 and char <= "\uffff":
        assert upper == char.upper()


def test_folding_of_characters_that_grow() -> None:
    assert folded("ß") == "ß"
    assert folded("ᾳ") == "ᾼ"
    assert folded("ﬁ") == "ﬁ"
    assert folded("\U00010428") == "\U00010428"
    assert folded("mixed Ünï") == "MIXED ÜNÏ"


# Times --------------------------------------------------------------------------------------------


def date(year: int, month: int, day: int) -> int:
    return (year - 1980) << 9 | month << 5 | day


def clock(hour: int, minute: int, second: int) -> int:
    return hour << 11 | minute << 5 | second // 2


def stat_of(forge: Forge, entry: bytes) -> Stat:
    forge.put(forge.root, entry)
    tree = forge.tree()
    return tree.lookup(tree.root, "SHORT.TXT").stat


@settings(max_examples=60, deadline=None)
@given(
    moment=st.datetimes(datetime.datetime(1980, 1, 1), datetime.datetime(2107, 12, 31, 23, 59)),
    hundredths=st.integers(0, 99),
)
def test_times_are_utc(empty: bytes, moment: datetime.datetime, hundredths: int) -> None:
    forge = Forge(bytearray(empty))
    day = date(moment.year, moment.month, moment.day)
    time = clock(moment.hour, moment.minute, moment.second)
    tenths = moment.second % 2 * 100 + hundredths
    stat = stat_of(
        forge, short_entry(SHORT, created=(day, time), modified=(day, time), tenths=tenths)
    )
    whole = int(moment.replace(microsecond=0, tzinfo=datetime.UTC).timestamp())
    assert stat.modified == (whole - whole % 2) * 10**9
    assert stat.created == whole * 10**9 + hundredths * 10**7
    assert stat.provenance is Provenance.FAT_DIRECTORY_ENTRY


NOT_DATES = [
    (0, 0),
    (date(2001, 0, 5), 0),
    (date(2001, 13, 5), 0),
    (date(2001, 5, 0), 0),
    (date(2001, 2, 29), 0),
    (date(2001, 4, 31), 0),
    (date(2100, 2, 29), 0),
    (date(2001, 4, 30), clock(24, 0, 0)),
    (date(2001, 4, 30), clock(0, 60, 0)),
    (date(2001, 4, 30), clock(0, 0, 60)),
    (0xFFFF, 0xFFFF),
]


@pytest.mark.parametrize("stored", NOT_DATES)
def test_what_is_no_date_is_not_recorded(forge: Forge, stored: tuple[int, int]) -> None:
    good = (date(2000, 2, 29), clock(1, 2, 4))
    stat = stat_of(forge, short_entry(SHORT, created=good, modified=stored))
    assert (stat.created, stat.modified, stat.provenance) == (0, 0, Provenance.UNKNOWN)


@pytest.mark.parametrize("stored", NOT_DATES)
def test_modification_counts_without_creation(forge: Forge, stored: tuple[int, int]) -> None:
    good = (date(2000, 2, 29), clock(1, 2, 4))
    stat = stat_of(forge, short_entry(SHORT, created=stored, modified=good))
    expected = datetime.datetime(2000, 2, 29, 1, 2, 4, tzinfo=datetime.UTC)
    assert stat.created == 0
    assert stat.modified == int(expected.timestamp()) * 10**9
    assert stat.provenance is Provenance.FAT_DIRECTORY_ENTRY


def test_hundredths_that_are_none_are_left_out(forge: Forge) -> None:
    day = (date(2000, 1, 1), 0)
    stat = stat_of(forge, short_entry(SHORT, created=day, modified=day, tenths=200))
    assert stat.created == stat.modified


@settings(max_examples=80, deadline=None)
@given(junk=st.binary(min_size=32, max_size=32 * 24))
def test_any_bytes_are_a_directory_or_damage(empty: bytes, junk: bytes) -> None:
    forge = Forge(bytearray(empty))
    forge.data[forge.root : forge.root + len(junk) // 32 * 32] = junk[: len(junk) // 32 * 32]
    tree = forge.tree()
    listed = tree.list(tree.root, "", 1000).entries
    assert len({folded(entry.name) for entry in listed}) == len(listed)
    for entry in listed:
        assert tree.lookup(tree.root, entry.name) == entry
        assert tree.stat(entry.stat.node_id) == entry.stat
    list(tree.verify())


def test_the_forger_knows_the_layout() -> None:
    assert struct.unpack_from("<I", short_entry(SHORT, size=77), 28) == (77,)
    assert len(long_entries("x" * 27, SHORT)) == 3
