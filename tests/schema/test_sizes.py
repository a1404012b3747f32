"""Sizes and durations as people write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstore.schema.errors import InvalidArgument
from capstore.schema.sizes import format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("512B", 512),
        ("1KiB", 1024),
        ("16MiB", 16 * 1024**2),
        ("1.5 GiB", 3 * 512 * 1024**2),
        ("2TiB", 2 * 1024**4),
        ("1kB", 1000),
        ("1.5GB", 1_500_000_000),
        (" 7 ", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5s", 1.5), ("2h", 7200), ("1d", 86_400), ("2w", 1_209_600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "MiB", "-1", "1e3", "1,5", "1.", ".5", "1 2", "1mib", "1KB", "inf", "nan", "0x10"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "h", "-1s", "1 year", "1M", "1ms", "infinity"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_formatting(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**53))
def test_what_is_formatted_is_parsed_to_about_the_same(size: int) -> None:
    parsed = parse_size(format_size(size))
    assert abs(parsed - size) <= max(0.06 * size, 0)


@given(st.text(max_size=20))
def test_nothing_foreign_is_raised(text: str) -> None:
    with suppress(InvalidArgument):
        parse_size(text)
