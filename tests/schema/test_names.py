"""Names, and the bytes that stand behind them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capstore.schema.errors import InvalidName
from capstore.schema.names import check_name, from_bytes, to_bytes

GOOD = ["a", "a" * 255, "€" * 85, "\U0001f5c4" * 63, " ", "...", "..a", "-", "\n", "a\\b"]
BAD = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "\0",
    "a\0",
    "a" * 256,
    "€" * 85 + "a",
    "\U0001f5c4" * 64,
    "\ud800",
    "a\udfff",
]

# Bytes and characters that meet the escape range often.
RAW = st.lists(
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from([chr(code).encode() for code in (0xEF7F, 0xEF80, 0xEFBF, 0xEFFF, 0xF000)]),
        st.sampled_from([b"a", b"\xc3", b"\xa9", b"\xee\xbe", b"\xf0\x9f"]),
    ),
    max_size=12,
).map(b"".join)
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xEF7E, max_codepoint=0xF001),
    ),
    max_size=20,
)


@pytest.mark.parametrize("name", GOOD)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@given(st.text(max_size=300))
def test_check_name_is_the_rule(name: str) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raw = b""
    good = 0 < len(raw) <= 255 and raw not in (b".", b"..") and not set(b"/\0") & set(raw)
    if good:
        assert check_name(name) == name
    else:
        with pytest.raises(InvalidName):
            check_name(name)


@given(RAW)
@example(b"\xff\xfe")
@example(chr(0xEF80).encode())
@example(b"\xee\xbe\x80\xff")
def test_every_stored_name_has_its_own_text(raw: bytes) -> None:
    text = from_bytes(raw)
    text.encode()  # valid UTF-8, so it can be sent
    assert to_bytes(text) == raw


@given(RAW, RAW)
def test_two_stored_names_never_look_alike(one: bytes, two: bytes) -> None:
    assert (from_bytes(one) == from_bytes(two)) == (one == two)


@given(TEXT)
@example(chr(0xEFC3) + chr(0xEFA9))
@example(chr(0xEF80))
def test_a_text_stands_for_what_it_was_made_from_or_for_nothing(text: str) -> None:
    try:
        raw = to_bytes(text)
    except InvalidName:
        return
    assert from_bytes(raw) == text


@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0xEF7F)))
def test_ordinary_text_is_itself(text: str) -> None:
    assert to_bytes(text) == text.encode()
    assert from_bytes(text.encode()) == text


def test_a_claim_to_be_escaped_that_is_false() -> None:
    # The escapes of bytes that together are valid UTF-8.
    with pytest.raises(InvalidName):
        to_bytes(chr(0xEF00 + 0xC3) + chr(0xEF00 + 0xA9))


def test_bytes_that_are_no_utf8() -> None:
    assert from_bytes(b"caf\xe9") == "caf" + chr(0xEFE9)
    assert to_bytes("caf" + chr(0xEFE9)) == b"caf\xe9"
