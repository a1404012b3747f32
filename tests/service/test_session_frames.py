"""What a message is said to be, by its first bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.schema import wire
from capstore.schema.limits import MESSAGE_BYTES_MAX, MESSAGE_CAPABILITIES_MAX
from capstore.service import frames
from capstore.service.frames import (
    BOOTSTRAP,
    CALL,
    FINISH,
    RETURN,
    WHOLE_BYTES,
    Frame,
    Refused,
    frame_at,
    return_in,
    words_of,
)
from tests.service.raw_rpc import bootstrap, call, finish, restore, rpc


def answer(*, ends: bool) -> bytes:
    message = rpc.Message.new_message()
    built = message.init("return")
    built.answerId, built.noFinishNeeded = 5, ends
    return bytes(message.to_bytes())


def seen(data: bytes) -> Frame | None:
    return frame_at(data, 0, len(data))


@pytest.mark.parametrize(
    ("data", "kind", "question", "ends"),
    [
        (bootstrap(3), BOOTSTRAP, 3, False),
        (finish(2**32 - 1), FINISH, 2**32 - 1, False),
        (restore("A" * 43, question=9), CALL, 9, False),
        (restore("", question=9), CALL, 9, False),
        (call(wire.File, 2, wire.Error.new_message(), silent=True, question=7), CALL, 7, True),
        (call(wire.File, 2, wire.Error.new_message(), capabilities=16, of=4), CALL, 1, False),
        (answer(ends=True), RETURN, 5, True),
        (answer(ends=False), RETURN, 5, False),
    ],
)
def test_what_libraries_write(data: bytes, kind: int, question: int, ends: bool) -> None:
    assert seen(data) == Frame(len(data), kind, question, ends)
    assert frames._any_frame(data, 0, len(data)) == seen(data)
    at = b"\xff" * 5 + data + b"\xff" * 100
    assert frame_at(memoryview(at), 5, len(at)) == seen(data)
    for length in range(len(data)):
        assert frame_at(data, 0, length) is None


def test_content_is_not_waited_for() -> None:
    data = call(wire.File, 1, wire.Error.new_message(message="x" * 100_000))
    assert frame_at(data, 0, WHOLE_BYTES) == Frame(len(data), CALL, 1)
    assert frame_at(data, 0, WHOLE_BYTES - 1) is None


def test_answers_of_our_own() -> None:
    for ends in (True, False):
        data = answer(ends=ends)
        assert words_of(data[:8]) * 8 == len(data) - 8
        told = return_in(data[8:])
        assert told is not None
        assert (told.question, told.ends) == (5, ends)
    assert return_in(restore("x")[8:]) is None
    assert return_in(bootstrap()[8:]) is None


def provide() -> bytes:
    message = rpc.Message.new_message()
    message.init("provide").questionId = 1
    return bytes(message.to_bytes())


def long_finish() -> bytes:
    whole = finish(1)
    return struct.pack("<II", 0, 10_000) + whole[8:] + bytes(80_000 - len(whole) + 8)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 0, MESSAGE_BYTES_MAX // 8 + 1),
        struct.pack("<II", 600, 1),
        struct.pack("<IIII", 2, 2**31, 2**31, 2**31),
        struct.pack("<II", 0, 0),
        struct.pack("<IIQ", 0, 1, 0),
        struct.pack("<IIQ", 0, 1, 1),
        struct.pack("<IIQ", 0, 1, 1 << 48 | 1 << 32),
        provide(),
        long_finish(),
        call(wire.File, 2, wire.Error.new_message(), capabilities=MESSAGE_CAPABILITIES_MAX + 1),
    ],
)
def test_what_no_client_sends_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        seen(data)


def test_a_table_of_empty_capabilities_is_counted_by_its_tag() -> None:
    """A list of structs without words says how long it is, and takes no room."""
    data = bytearray(call(wire.File, 2, wire.Error.new_message(), capabilities=1))
    tag = 1 << 2 | 1 << 32 | 1 << 48
    words = range(len(data) - 8, 0, -8)
    at = next(at for at in words if struct.unpack_from("<Q", data, at)[0] == tag)
    struct.pack_into("<Q", data, at, 200_000 << 2)
    with pytest.raises(Refused, match="capabilities"):
        seen(bytes(data))


def in_two_segments(data: bytes, pad: int) -> bytes:
    """The message with its root reached by a far pointer."""
    return struct.pack("<IIIIQ", 1, 1, len(data) // 8 - 1, 0, pad) + data[8:]


def test_a_far_pointer_is_followed_once() -> None:
    data = in_two_segments(finish(8), 2 | 1 << 32)
    assert seen(data) == Frame(len(data), FINISH, 8)
    for pad in (2 | 2 << 32, 2 | 4 | 1 << 32, 2 | 900 << 3 | 1 << 32):
        with pytest.raises(Refused):
            seen(in_two_segments(finish(8), pad))


MESSAGES = (
    bootstrap(),
    finish(1),
    restore("A" * 43),
    call(wire.File, 2, wire.Error.new_message(), capabilities=2),
)


def outcome(look: Any, data: bytes) -> object:
    try:
        return look(data, 0, len(data))
    except Refused:
        return Refused


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 30), st.binary(min_size=8, max_size=8)), max_size=4),
)
def test_whatever_a_message_holds_it_is_told_or_refused(
    message: bytes, words: list[tuple[int, bytes]]
) -> None:
    data = bytearray(message)
    for index, word in words:
        if index * 8 < len(data):
            data[index * 8 : index * 8 + 8] = word
    outcome(frame_at, bytes(data))


def test_every_flipped_bit() -> None:
    for message in MESSAGES:
        for bit in range(len(message) * 8):
            data = bytearray(message)
            data[bit // 8] ^= 1 << bit % 8
            quick, slow = outcome(frame_at, data), outcome(frames._any_frame, data)
            assert quick == slow
