"""What a case of the fuzzer of the wire sends: a real session, damaged or forged.

Invariants: all chance comes from the number of the case, so a case is the same whenever it is made
of the same sessions.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import capnp

from capstore.tools.fuzz.wire_tour import Session

WORD: Final = 8
_SIZES: Final = (0, 1, 2, 511, 512, 513, 1 << 18, (1 << 18) + 1, 1 << 27, 1 << 31, (1 << 32) - 1)
_VALUES: Final = (0, 1, 2, 3, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 64) - 1, 1 << 63)
# Where things stand in a call as writers make it: see ``capstore.service.frames``.
_CALL, _KIND_AT, _QUESTION_AT, _METHOD_AT, _INTERFACE_AT = 2, 16, 32, 36, 40
_TARGET_ID_AT: Final = 32 + 6 * WORD
_HEAD_FRAMES: Final = 2
_MUTATIONS: Final = (1, 1, 1, 2, 2, 3, 5)


class Draft:
    """The messages of a case while they are mutated."""

    def __init__(self, frames: list[bytes], others: Sequence[Session], rng: random.Random) -> None:
        self.frames = frames
        self.others = others
        self.rng = rng

    def index(self) -> int:
        """One of the messages; seldom of those that a session begins with."""
        begin = 0 if self.rng.random() < 0.1 else min(_HEAD_FRAMES, len(self.frames) - 1)
        return self.rng.randrange(begin, len(self.frames))

    def word(self, frame: bytes) -> int:
        """Where a word begins."""
        return self.rng.randrange(max(1, len(frame) // WORD)) * WORD


def _changed(frame: bytes, at: int, form: str, value: int) -> bytes:
    """`frame` with a number put in, where there is room."""
    size = struct.calcsize(form)
    if at + size > len(frame):
        return frame
    mask = (1 << 8 * size) - 1
    return frame[:at] + struct.pack(form, value & mask) + frame[at + size :]


def _flip(draft: Draft) -> None:
    at = draft.index()
    frame = bytearray(draft.frames[at])
    for _ in range(draft.rng.choice((1, 1, 2, 8))):
        if frame:
            frame[draft.rng.randrange(len(frame))] ^= 1 << draft.rng.randrange(8)
    draft.frames[at] = bytes(frame)


def _set_word(draft: Draft) -> None:
    at = draft.index()
    frame = draft.frames[at]
    value = draft.rng.choice(_VALUES)
    draft.frames[at] = _changed(frame, draft.word(frame), "<Q", value)


def _pointer(rng: random.Random) -> int:
    """A pointer that may lead anywhere."""
    offset = rng.choice((0, 1, -1, 2, 5, -3, 100, 1 << 20, -(1 << 29), (1 << 29) - 1))
    low = (offset << 2) & 0xFFFFFFFF
    kind = rng.randrange(4)
    if kind == 0:
        return low | rng.choice((0, 1, 3, 0xFFFF)) << 32 | rng.choice((0, 1, 3, 0xFFFF)) << 48
    if kind == 1:
        count = rng.choice((0, 1, 44, 1 << 20, (1 << 29) - 1))
        return low | 1 | rng.randrange(8) << 32 | count << 35
    if kind == 2:
        return low | 2 | rng.choice((0, 4)) | rng.choice((0, 1, 7, (1 << 32) - 1)) << 32
    return 3 | rng.choice((0, 0, 4)) | rng.choice((0, 1, 5, (1 << 32) - 1)) << 32


def _forge_pointer(draft: Draft) -> None:
    at = draft.index()
    frame = draft.frames[at]
    draft.frames[at] = _changed(frame, draft.word(frame), "<Q", _pointer(draft.rng))


def _cut(draft: Draft) -> None:
    at = draft.index()
    frame = draft.frames[at]
    draft.frames[at] = frame[: draft.rng.randrange(len(frame) + 1)]


def _cut_session(draft: Draft) -> None:
    at = draft.index()
    del draft.frames[at + 1 :]
    _cut(draft)


def _drop(draft: Draft) -> None:
    if len(draft.frames) > 1:
        del draft.frames[draft.index()]


def _repeat(draft: Draft) -> None:
    at = draft.index()
    times = draft.rng.choice((1, 1, 2, 30))
    draft.frames[at:at] = [draft.frames[at]] * times


def _swap(draft: Draft) -> None:
    one, other = draft.index(), draft.index()
    frames = draft.frames
    frames[one], frames[other] = frames[other], frames[one]


def _splice(draft: Draft) -> None:
    frames = draft.rng.choice(draft.others).frames
    begin = draft.rng.randrange(len(frames))
    at = draft.index()
    draft.frames[at:at] = frames[begin : begin + draft.rng.randint(1, 6)]


def _segments(draft: Draft) -> None:
    at = draft.index()
    place = draft.rng.choice((0, 4, 4, 8))
    draft.frames[at] = _changed(draft.frames[at], place, "<I", draft.rng.choice(_SIZES))


def _more_segments(draft: Draft) -> None:
    """The message in two segments, reached by a far pointer."""
    at = draft.index()
    frame = draft.frames[at]
    words = len(frame) // WORD - 1
    if words < 1 or len(frame) % WORD:
        return
    segment = draft.rng.choice((1, 1, 1, 2, 0))
    pad = 2 | 0 << 3 | segment << 32
    head = struct.pack("<IIIIQ", 1, 1, words, 0, pad)
    draft.frames[at] = head + frame[WORD:]


def _garbage(draft: Draft) -> None:
    at = draft.index()
    draft.frames.insert(at, draft.rng.randbytes(draft.rng.choice((1, 8, 64, 1000))))


def _number(draft: Draft) -> int:
    return draft.rng.choice((0, 1, 2, 3, 7, 20, 63, 1 << 16, (1 << 32) - 1))


def _wrong_question(draft: Draft) -> None:
    at = draft.index()
    draft.frames[at] = _changed(draft.frames[at], _QUESTION_AT, "<I", _number(draft))


def _wrong_kind(draft: Draft) -> None:
    at = draft.index()
    draft.frames[at] = _changed(draft.frames[at], _KIND_AT, "<H", draft.rng.randrange(16))


def _wrong_method(draft: Draft) -> None:
    at = draft.index()
    method = draft.rng.choice((*range(25), 255, 0xFFFF))
    draft.frames[at] = _changed(draft.frames[at], _METHOD_AT, "<H", method)


def _wrong_interface(draft: Draft) -> None:
    at = draft.index()
    frame = draft.rng.choice(draft.rng.choice(draft.others).frames)
    interface = frame[_INTERFACE_AT : _INTERFACE_AT + WORD].ljust(WORD, b"\xff")
    value = int.from_bytes(interface, "little")
    draft.frames[at] = _changed(draft.frames[at], _INTERFACE_AT, "<Q", value)


def _wrong_target(draft: Draft) -> None:
    at = draft.index()
    frame = draft.frames[at]
    place = _TARGET_ID_AT + draft.rng.randrange(-4, 6) * WORD + draft.rng.choice((0, 4))
    draft.frames[at] = _changed(frame, max(0, place), "<I", _number(draft))


def _capability(draft: Draft) -> None:
    """A pointer to a capability of the message's table, there or not."""
    at = draft.index()
    frame = draft.frames[at]
    value = 3 | _number(draft) << 32
    draft.frames[at] = _changed(frame, draft.word(frame), "<Q", value)


def _forged(draft: Draft) -> None:
    """A message of RPC that is well formed and out of place."""
    kind = draft.rng.choice(tuple(_FORGERS))
    message = _rpc().Message.new_message()
    _FORGERS[kind](message, draft)
    draft.frames.insert(draft.index(), bytes(message.to_bytes()))


def _forge_call(message: Any, draft: Draft) -> None:
    call = message.init("call")
    call.questionId, call.methodId = 1000 + draft.rng.randrange(50), draft.rng.randrange(20)
    frame = draft.rng.choice(draft.rng.choice(draft.others).frames)
    call.interfaceId = int.from_bytes(frame[_INTERFACE_AT : _INTERFACE_AT + WORD], "little")
    if draft.rng.random() < 0.5:
        call.target.importedCap = _number(draft)
    else:
        answer = call.target.init("promisedAnswer")
        answer.questionId = draft.rng.randrange(20)
        steps = answer.init("transform", draft.rng.choice((0, 1, 1, 2, 5)))
        for step in steps:
            step.getPointerField = draft.rng.randrange(4)
    table = call.init("params").init("capTable", draft.rng.choice((0, 1, 2, 15, 17)))
    for descriptor in table:
        setattr(descriptor, draft.rng.choice(("senderHosted", "senderPromise")), _number(draft))
    call.onlyPromisePipeline = draft.rng.random() < 0.2
    if draft.rng.random() < 0.2:
        call.sendResultsTo.yourself = None


def _forge_simple(kind: str, field: str) -> Callable[[Any, Draft], None]:
    def forge(message: Any, draft: Draft) -> None:
        setattr(message.init(kind), field, _number(draft))

    return forge


def _forge_disembargo(message: Any, draft: Draft) -> None:
    disembargo = message.init("disembargo")
    disembargo.target.importedCap = _number(draft)
    field = draft.rng.choice(("senderLoopback", "receiverLoopback"))
    setattr(disembargo.context, field, _number(draft))


def _forge_resolve(message: Any, draft: Draft) -> None:
    resolve = message.init("resolve")
    resolve.promiseId = _number(draft)
    resolve.init("cap").senderHosted = _number(draft)


def _forge_abort(message: Any, draft: Draft) -> None:
    message.init("abort").reason = "x" * draft.rng.choice((0, 10, 1000))


_FORGERS: Final[dict[str, Callable[[Any, Draft], None]]] = {
    "call": _forge_call,
    "bootstrap": _forge_simple("bootstrap", "questionId"),
    "finish": _forge_simple("finish", "questionId"),
    "release": _forge_simple("release", "id"),
    "return": _forge_simple("return", "answerId"),
    "disembargo": _forge_disembargo,
    "resolve": _forge_resolve,
    "abort": _forge_abort,
}

MUTATORS: Final = (
    _flip, _set_word, _forge_pointer, _forge_pointer, _cut, _cut_session, _drop, _repeat, _swap,
    _splice, _segments, _more_segments, _garbage, _wrong_question, _wrong_kind, _wrong_method,
    _wrong_method, _wrong_interface, _wrong_target, _capability, _forged, _forged,
)  # fmt: skip


def _rpc() -> Any:
    """The schema of RPC itself, which pycapnp ships."""
    global _schema  # noqa: PLW0603 - loaded once
    if _schema is None:
        from pathlib import Path

        folder = Path(capnp.__file__).parent
        _schema = capnp.load(str(folder / "rpc.capnp"), imports=[str(folder.parent)])
    return _schema


_schema: Any = None


def case_of(seed: int, sessions: Sequence[Session]) -> tuple[Session, list[bytes]]:
    """The session that the case is made of, and the messages it sends instead."""
    rng = random.Random(f"wire case {seed}")  # noqa: S311 - no secret
    session = rng.choice(sessions)
    draft = Draft(list(session.frames), sessions, rng)
    for _ in range(rng.choice(_MUTATIONS)):
        rng.choice(MUTATORS)(draft)
    return session, draft.frames
