"""Whether a history of operations is linearizable: each can be taken to have happened at one moment
between its call and its return, one after the other, with the results that it had.

After Wing & Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of Lowe,
"Testing for linearizability" (2017).  Linearizability is local (Herlihy & Wing 1990), so each key
is looked at by itself.

Invariants: values are unique, so a value says which put it is of.  An operation whose outcome
nobody knows (there was a crash) may have happened at any moment since its call, or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

NEVER: Final = 1 << 62
# What an operation came to.
DONE: Final = "done"
NOT_FOUND: Final = "not found"
CONFLICT: Final = "conflict"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on a key, from `begin` to `end`.

    `value` is what was put, or what was read; `version` that of it, if that is known.  `absent` and
    `at` are what a change demanded."""

    op: str
    key: bytes
    begin: int
    end: int
    outcome: str
    value: bytes = b""
    version: int = 0
    absent: bool = False
    at: int | None = None


def why_not_linearizable(history: Sequence[Call]) -> str | None:
    """What is wrong with a history, which begins with no keys; None if it is linearizable."""
    wrong = _wrong_versions(history)
    if wrong is not None:
        return wrong
    values = {call.version: call.value for call in history if call.version}
    for key in sorted({call.key for call in history}):
        if not _Search([call for call in history if call.key == key], values).succeeds():
            return f"the operations on {key!r} have no order"
    return None


def _wrong_versions(history: Sequence[Call]) -> str | None:
    """A version is one value's, and rises with every put."""
    known: dict[int, tuple[bytes, bytes]] = {}
    for call in history:
        if call.version and known.setdefault(call.version, (call.key, call.value)) != (
            call.key,
            call.value,
        ):
            return f"version {call.version} is of two values"
    puts = [call for call in history if call.op == "put" and call.outcome == DONE]
    # Behind each version in order, the earliest end of a higher one.
    earliest = NEVER
    for put in sorted(puts, key=lambda put: -put.version):
        if earliest < put.begin:
            return f"version {put.version} was given behind a higher one"
        earliest = min(earliest, put.end)
    return None


class _Search:
    """A search for an order of calls on one key."""

    def __init__(self, calls: Iterable[Call], values: dict[int, bytes]) -> None:
        self._calls = sorted(calls, key=lambda call: call.begin)
        self._values = values
        self._all = (1 << len(self._calls)) - 1
        self._needed = sum(
            1 << number for number, call in enumerate(self._calls) if call.outcome != UNKNOWN
        )

    def succeeds(self) -> bool:
        """Whether there is one."""
        # Which calls have been put in order, as bits; the first that was not; what is there.
        waiting: list[tuple[int, bytes | None]] = [(0, None)]
        known = set(waiting)
        while waiting:
            done, value = waiting.pop()
            if done & self._needed == self._needed:
                return True
            for number in self._next(done):
                possible, after = self._apply(self._calls[number], value)
                state = (done | 1 << number, after)
                if possible and state not in known:
                    known.add(state)
                    waiting.append(state)
        return False

    def _next(self, done: int) -> Iterator[int]:
        """Calls that may come next: those that no other ended before."""
        # The first that is not done yet.
        first = (~done & (done + 1)).bit_length() - 1
        end = NEVER
        found = []
        for number in range(first, len(self._calls)):
            call = self._calls[number]
            if call.begin > end:
                break
            if not done >> number & 1:
                found.append(number)
                end = min(end, call.end)
        yield from (number for number in found if self._calls[number].begin <= end)

    def _apply(self, call: Call, value: bytes | None) -> tuple[bool, bytes | None]:
        """Whether a call can have had its outcome where there was `value`; what is there then."""
        holds = not (call.absent and value is not None)
        if call.at is not None:
            holds = holds and value is not None and self._values.get(call.at) == value
        if call.op == "get":
            found = call.value if call.outcome == DONE else None
            return found == value, value
        if call.op == "delete" and value is None:
            return call.outcome in (NOT_FOUND, UNKNOWN), None
        if call.outcome == NOT_FOUND:
            return False, value
        if call.outcome == CONFLICT:
            return not holds, value
        if not holds:
            # Of what nobody knows, that it did nothing.
            return call.outcome == UNKNOWN, value
        return True, call.value if call.op == "put" else None
