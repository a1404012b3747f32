"""Which histories are linearizable."""

from __future__ import annotations

import pytest

from capstore.tools.prove.linear import (
    CONFLICT,
    DONE,
    NEVER,
    NOT_FOUND,
    UNKNOWN,
    Call,
    why_not_linearizable,
)


def put(begin: int, end: int, version: int, **more: object) -> Call:
    call = Call("put", b"k", begin, end, DONE, b"%d" % version, version)
    return Call(**{**{n: getattr(call, n) for n in Call.__slots__}, **more})  # type: ignore[arg-type]


def get(begin: int, end: int, version: int) -> Call:
    if not version:
        return Call("get", b"k", begin, end, NOT_FOUND)
    return Call("get", b"k", begin, end, DONE, b"%d" % version, version)


def delete(begin: int, end: int, outcome: str = DONE, at: int | None = None) -> Call:
    return Call("delete", b"k", begin, end, outcome, at=at)


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [put(1, 2, 1), get(3, 4, 1), put(5, 6, 2), get(7, 8, 2)],
    "a read in the middle of a put": [put(1, 9, 1), get(2, 3, 0), get(4, 5, 1)],
    "puts at once": [put(1, 9, 1), put(2, 8, 2), get(10, 11, 2)],
    "puts at once, whose first was deleted": [put(1, 9, 1), delete(3, 4), get(5, 6, 0)],
    "compare and set": [put(1, 2, 1), put(3, 8, 2, at=1), put(4, 9, 0, at=1, outcome=CONFLICT)],
    "put if absent": [put(1, 5, 1, absent=True), put(2, 6, 0, absent=True, outcome=CONFLICT)],
    "a crash that did it": [put(1, 2, 1), put(3, NEVER, 2, outcome=UNKNOWN), get(9, 10, 2)],
    "a crash that did not": [put(1, 2, 1), put(3, NEVER, 2, outcome=UNKNOWN), get(9, 10, 1)],
    "a crash in a delete": [put(1, 2, 1), delete(3, NEVER, UNKNOWN), get(9, 10, 0)],
    "deleted at its version": [put(1, 2, 1), delete(3, 4, at=1), delete(5, 6, NOT_FOUND)],
}
NOT_LINEARIZABLE = {
    "a read of what was replaced": [put(1, 2, 1), put(3, 4, 2), get(5, 6, 1)],
    "a read before the put": [get(1, 2, 1), put(3, 4, 1)],
    "reads that go back": [put(1, 2, 1), put(3, 9, 2), get(4, 5, 2), get(6, 7, 1)],
    "two who were first": [put(1, 5, 1, absent=True), put(2, 6, 2, absent=True)],
    "a lost update": [put(1, 2, 1), put(3, 8, 2, at=1), put(4, 9, 3, at=1)],
    "refused for nothing": [put(1, 2, 1), put(3, 4, 0, at=1, outcome=CONFLICT)],
    "deleted and there": [put(1, 2, 1), delete(3, 4), get(5, 6, 1)],
    "what nobody put": [get(1, 2, 7)],
    "a version twice": [put(1, 2, 1), put(3, 4, 1, value=b"other")],
    "a version that goes back": [put(1, 2, 2), put(3, 4, 1)],
    "lost in a crash": [put(1, 2, 1), get(9, 10, 0)],
}


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE.keys())
def test_linearizable(history: list[Call]) -> None:
    assert why_not_linearizable(history) is None


@pytest.mark.parametrize("history", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE.keys())
def test_not_linearizable(history: list[Call]) -> None:
    assert why_not_linearizable(history) is not None


def test_keys_are_by_themselves() -> None:
    other = Call("put", b"other", 1, 2, DONE, b"x", 9)
    assert why_not_linearizable([other, put(1, 4, 1), get(5, 6, 1)]) is None
