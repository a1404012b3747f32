"""What a message of a connection is, read from its first bytes.

Invariants:

* Nothing here believes a message: every pointer that is followed leads into the bytes that are
  there, and a dozen words of a message are looked at, whatever its size.
* What is refused here no client sends: messages of levels of RPC that are not served, more than
  `MESSAGE_BYTES_MAX`, more than `OTHER_BYTES_MAX` in what is no call, a call that brings more than
  `MESSAGE_CAPABILITIES_MAX` capabilities.  Not more than that: what contradicts itself further in
  is for the Cap'n Proto library to refuse.

The framing is that of streams (capnproto.org/encoding.html, "Serialization over a stream"), the
messages are those of ``rpc.capnp``.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from capstore.schema.limits import KIB, MESSAGE_BYTES_MAX, MESSAGE_CAPABILITIES_MAX

WORD: Final = 8
# Messages up to here are looked at when they are whole, longer ones when so much is there.
WHOLE_BYTES: Final = 16 * KIB
# Only calls carry content.
OTHER_BYTES_MAX: Final = 64 * KIB
# As the C++ library has it.
_SEGMENTS_MAX: Final = 512

# Discriminants of ``Message``.
UNIMPLEMENTED, ABORT, CALL, RETURN, FINISH, RESOLVE, RELEASE = range(7)
BOOTSTRAP, DISEMBARGO = 8, 13
_SERVED: Final = frozenset(
    {UNIMPLEMENTED, ABORT, CALL, RETURN, FINISH, RESOLVE, RELEASE, BOOTSTRAP, DISEMBARGO}
)
# What is nothing but numbers.
_SHORT: Final = frozenset({FINISH, RELEASE, BOOTSTRAP})
# Where things stand in ``Call``, ``Payload`` and ``Return``, in words, pointers or bits.
_CALL_FLAGS: Final = 2
_ONLY_PROMISE_PIPELINE: Final = 1 << 2
_CALL_PARAMS: Final = 1
_PAYLOAD_TABLE: Final = 1
_NO_FINISH_NEEDED: Final = 1 << 33

_U32: Final = Struct("<I")
_TABLE: Final = Struct("<II")
_U64: Final = Struct("<Q")
# What writers make: one segment, in it the Message at once and its body behind that.  Segments
# less one, words of the segment, pointer to the Message, discriminant, pointer to the body, first
# word of the body.
_USUAL: Final = Struct("<IIQH6xQQ")
_USUAL_SEGMENT: Final = Struct("<8xH6xQQ")
_USUAL_ROOT: Final = 1 << 48 | 1 << 32
_LOW: Final = 0xFFFFFFFF
# A body of 3 words of data and 3 pointers; its last word of data, and its second pointer.
_USUAL_CALL: Final = 3 << 48 | 3 << 32
_CALL_REST: Final = Struct("<48xQ8xQ")
_CALL_PARAMS_WORD: Final = 7
_CALL_WORDS: Final = 9
_FINISH_WORDS: Final = 4
# A Payload without data and with two pointers.
_USUAL_PAYLOAD: Final = 2 << 16


class Refused(Exception):
    """A message that ends its connection; its text is for the log."""


class _NotThere(Exception):
    """A word that has not arrived yet."""


class Frame(NamedTuple):
    """A message: its bytes with the segment table, its kind, and the question it is about.

    `ends` says of a call that nobody answers it, and of an answer that nobody has to finish it.
    """

    size: int
    kind: int
    question: int = 0
    ends: bool = False

    @property
    def asks(self) -> bool:
        """Whether it is a question."""
        return self.kind == CALL or self.kind == BOOTSTRAP


Data = bytes | bytearray | memoryview


def frame_at(data: Data, at: int, end: int) -> Frame | None:
    """The message that begins at `at`; None while too little of it is there.

    Raises `Refused`.
    """
    if end - at >= _USUAL.size:
        more, words, root, kind, body, first = _USUAL.unpack_from(data, at)
        size = (words + 1) * WORD
        if not more and root == _USUAL_ROOT and not body & _LOW and size <= end - at:
            if kind in _SHORT:
                if body >> 32 and words >= _FINISH_WORDS and size <= OTHER_BYTES_MAX:
                    return Frame(size, kind, first & _LOW)
            elif kind == CALL and body == _USUAL_CALL and words >= _CALL_WORDS:
                frame = _usual_call(data, at, size, first)
                if frame is not None:
                    return frame
    return _any_frame(data, at, end)


def words_of(table: bytes) -> int:
    """How many words a message has behind its segment table, which is all of `table`."""
    if len(table) == WORD:
        more, words = _TABLE.unpack(table)
        if not more:
            return int(words)
    segments = _U32.unpack_from(table)[0] + 1
    return int(sum(_U32.unpack_from(table, 4 + 4 * index)[0] for index in range(segments)))


def return_in(segment: bytes) -> Frame | None:
    """The answer that a message of our own is whose first segment this is; None if it is none."""
    if len(segment) < _USUAL_SEGMENT.size:
        return None
    kind, body, first = _USUAL_SEGMENT.unpack_from(segment)
    if kind != RETURN or not body:
        return None
    return Frame(len(segment), kind, first & _LOW, bool(first & _NO_FINISH_NEEDED))


def _usual_call(data: Data, at: int, size: int, first: int) -> Frame | None:
    """A call without capabilities, as writers make it; None for any other."""
    flags, params = _CALL_REST.unpack_from(data, at)
    if flags & _ONLY_PROMISE_PIPELINE or params & 3 or params >> 32 != _USUAL_PAYLOAD:
        return None
    # The offset is signed; a payload before its pointer is not usual.
    table = _CALL_PARAMS_WORD + 1 + ((params & _LOW) >> 2) + _PAYLOAD_TABLE
    if (table + 2) * WORD > size or _U64.unpack_from(data, at + (table + 1) * WORD)[0]:
        return None
    return Frame(size, CALL, first & _LOW)


def _any_frame(data: Data, at: int, end: int) -> Frame | None:
    there = end - at
    if there < WORD:
        return None
    segments = _U32.unpack_from(data, at)[0] + 1
    if segments > _SEGMENTS_MAX:
        raise Refused("more segments than a message has")
    table = (segments // 2 + 1) * WORD
    if there < table:
        return None
    sizes = [_U32.unpack_from(data, at + 4 + 4 * index)[0] for index in range(segments)]
    content = sum(sizes) * WORD
    if content > MESSAGE_BYTES_MAX:
        raise Refused("a message over the limit")
    size = table + content
    if there < min(size, WHOLE_BYTES):
        return None
    try:
        return _Reading(data, at + table, min(end, at + size), sizes).frame(size)
    except _NotThere:
        raise Refused("a message that does not say at its beginning what it is") from None


class _Struct(NamedTuple):
    """A struct in a message: its segment, where it is in it, words of data, pointers."""

    segment: int
    at: int
    words: int
    pointers: int


class _Reading:
    """A message, as far as it is there."""

    def __init__(self, data: Data, at: int, end: int, sizes: list[int]) -> None:
        self._data = data
        self._end = end
        self._segments: list[tuple[int, int]] = []
        for words in sizes:
            self._segments.append((at, words))
            at += words * WORD

    def frame(self, size: int) -> Frame:
        """What it is.  Raises `Refused`, `_NotThere`."""
        message = self._struct(0, 0)
        if message is None:
            raise Refused("no message")
        kind = self._word(message.segment, message.at) & 0xFFFF if message.words else 0
        if kind not in _SERVED:
            raise Refused("a message of a level of RPC that is not served")
        if kind != CALL and size > OTHER_BYTES_MAX:
            raise Refused("a message over the limit of those that carry no content")
        body = None
        if message.pointers:
            body = self._struct(message.segment, message.at + message.words)
        if body is None or not body.words:
            return Frame(size, kind)
        first = self._word(body.segment, body.at)
        if kind == CALL:
            return Frame(size, kind, first & _LOW, self._check_call(body, size))
        return Frame(size, kind, first & _LOW, kind == RETURN and bool(first & _NO_FINISH_NEEDED))

    def _check_call(self, body: _Struct, size: int) -> bool:
        """Whether nobody answers the call.  Raises `Refused` for too many capabilities."""
        ends = body.words > _CALL_FLAGS and bool(
            self._word(body.segment, body.at + _CALL_FLAGS) & _ONLY_PROMISE_PIPELINE
        )
        if ends and size > OTHER_BYTES_MAX:
            raise Refused("content that nobody answers for")
        try:
            count = self._capabilities(body)
        except _NotThere:
            # Behind content that has not arrived: who sends that much has paid for a long table.
            count = 0
        if count > MESSAGE_CAPABILITIES_MAX:
            raise Refused("more capabilities than a call brings")
        return ends

    def _capabilities(self, call: _Struct) -> int:
        """How many a call brings."""
        if call.pointers <= _CALL_PARAMS:
            return 0
        payload = self._struct(call.segment, call.at + call.words + _CALL_PARAMS)
        if payload is None or payload.pointers <= _PAYLOAD_TABLE:
            return 0
        place = payload.at + payload.words + _PAYLOAD_TABLE
        pointer, segment, at = self._follow(payload.segment, place)
        if not pointer:
            return 0
        if pointer & 3 != _LIST:
            raise Refused("a table of capabilities that is no list")
        count = pointer >> 35
        if pointer >> 32 & 7 == _STRUCTS:
            # Elements may be empty: how many there are stands before them.
            return (self._word(segment, at) & _LOW) >> 2
        return count

    def _struct(self, segment: int, index: int) -> _Struct | None:
        """What the pointer there leads to; None for a null one."""
        pointer, segment, at = self._follow(segment, index)
        if not pointer:
            return None
        if pointer & 3 != _STRUCT:
            raise Refused("a pointer that leads to no struct")
        return _Struct(segment, at, pointer >> 32 & 0xFFFF, pointer >> 48)

    def _follow(self, segment: int, index: int) -> tuple[int, int, int]:
        """A pointer, with the segment and place of what it leads to; through one far pointer."""
        pointer = self._word(segment, index)
        if pointer & 3 == _FAR:
            if pointer & 4:
                raise Refused("a far pointer that no writer of messages makes")
            segment, index = pointer >> 32, (pointer & _LOW) >> 3
            pointer = self._word(segment, index)
        offset = (pointer & _LOW) >> 2
        if offset >= 1 << 29:
            offset -= 1 << 30
        return pointer, segment, index + 1 + offset

    def _word(self, segment: int, index: int) -> int:
        """Raises `Refused` outside of the segment, and `_NotThere`."""
        if segment >= len(self._segments):
            raise Refused("a pointer to no segment")
        start, words = self._segments[segment]
        if not 0 <= index < words:
            raise Refused("a pointer out of its segment")
        if start + (index + 1) * WORD > self._end:
            raise _NotThere
        word: int = _U64.unpack_from(self._data, start + index * WORD)[0]
        return word


# Kinds of pointers, and of lists.
_STRUCT, _LIST, _FAR = range(3)
_STRUCTS: Final = 7
