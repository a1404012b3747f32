"""What the connections of a service share: bounds on all of them together, and turns.

Invariants:

* A connection that holds less than its share of a bound is never held up by what others hold.
* In one turn of the loop messages of a bounded cost are passed on to RPC, over all connections:
  those that flood make the others wait for a few such turns, whatever they send.
* One that has nothing under way is not held up by those that have: there is a bound of its own for
  the first calls of such, and while clients are there that ask one by one the turns of the others
  are short: a call takes several turns, so their length is its time, and long ones are cheaper.
* Those that wait are served one after the other.

Turns are as in deficit round robin with new flows first (Shreedhar and Varghese 1995; RFC 8290):
without them one read of the socket brings RPC some hundred calls, and RPC begins all at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from capstore.schema.limits import (
    CALLS_IN_FLIGHT_MAX,
    CALLS_SHARED_MAX,
    CALLS_SHARED_MIN,
    KIB,
    TURN_CALLS_ALONE_MAX,
    TURN_CALLS_FRESH_MAX,
    TURN_CALLS_HURRIED_MAX,
    TURN_CALLS_MAX,
)

# One read of a socket.
READ_BYTES: Final = 64 * KIB
# What a call costs, and a message that only ends something.
CALL_COST: Final = 8
END_COST: Final = 1
# Content of 16 KiB costs as much as a call without.
_COST_SHIFT: Final = 11


def cost_of(size: int) -> int:
    """What moving `size` bytes costs."""
    return size >> _COST_SHIFT


@dataclass(slots=True)
class Totals:
    """What all connections hold together."""

    connections: int = 0
    calls: int = 0
    call_bytes: int = 0
    unsent_bytes: int = 0
    capabilities: int = 0
    watches: int = 0
    changes: int = 0

    def over_share(self, used: int, limit: int, own: int) -> bool:
        """Whether all together use `limit`, and one of them with `own` more than its share."""
        return used >= limit and own * self.connections >= limit


class Waiting(Protocol):
    """A connection that may have messages to pass on."""

    # Its place among those that wait.
    is_queued: bool
    number: int

    @property
    def is_ready(self) -> bool:
        """Whether it could pass on a message now."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing of it is under way."""

    def pass_on(self, cost_max: int) -> int:
        """Passes on messages that cost about so much, one at least; returns what they cost, 0 if
        there were none."""


class Turns:
    """Who may pass messages on to RPC, and how many, in this turn of the loop."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.window = CALLS_IN_FLIGHT_MAX
        self._budget = TURN_CALLS_ALONE_MAX * CALL_COST
        self._spent = 0
        self._spent_on_fresh = 0
        self._fresh: deque[Waiting] = deque()
        self._others: deque[Waiting] = deque()
        self._is_coming = False
        self._is_shared = False
        self._hurried_until = 0.0
        self._one_by_one: set[int] = set()
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()

    def __repr__(self) -> str:
        return f"<Turns: {len(self._fresh)} fresh and {len(self._others)} others wait>"

    def ask(self, inlet: Waiting) -> None:
        """Lets `inlet` pass messages on, now or in its turn."""
        if inlet.is_queued:
            return
        if inlet.is_fresh:
            if self._spent_on_fresh < _FRESH_BUDGET and not self._fresh:
                self._spent_on_fresh += self._give_fresh(inlet, CALL_COST)
        elif self._spent < (budget := self._budget_now()) and not self._others:
            self._spent += self._give_other(inlet, budget - self._spent)
        self._queue(inlet)

    def _queue(self, inlet: Waiting) -> None:
        if inlet.is_ready and not inlet.is_queued:
            inlet.is_queued = True
            (self._fresh if inlet.is_fresh else self._others).append(inlet)
            self._come()

    def look(self) -> None:
        """Forgets who has been quiet; to be called about every second."""
        self._seen_before, self._seen = self._seen, set()
        self._one_by_one.clear()
        self._reckon()

    def _give(self, inlet: Waiting, cost_max: int) -> int:
        cost = inlet.pass_on(cost_max)
        if cost:
            if inlet.number not in self._seen:
                self._seen.add(inlet.number)
                self._reckon()
            self._come()
        return cost

    def _give_fresh(self, inlet: Waiting, cost_max: int) -> int:
        cost = self._give(inlet, cost_max)
        if cost and self._is_shared:
            if inlet.number in self._one_by_one:
                self._hurried_until = asyncio.get_running_loop().time() + _HURRY_SECONDS
            self._one_by_one.add(inlet.number)
        return cost

    def _give_other(self, inlet: Waiting, cost_max: int) -> int:
        self._one_by_one.discard(inlet.number)
        return self._give(inlet, cost_max)

    def _budget_now(self) -> int:
        if self._is_shared and asyncio.get_running_loop().time() < self._hurried_until:
            return TURN_CALLS_HURRIED_MAX * CALL_COST
        return self._budget

    def _reckon(self) -> None:
        """How many have asked of late decides how much one may have under way, and at once."""
        active = len(self._seen | self._seen_before)
        self._is_shared = active > 1
        if self._is_shared:
            self._budget = TURN_CALLS_MAX * CALL_COST
            self.window = max(CALLS_SHARED_MIN, CALLS_SHARED_MAX // active)
        else:
            self._budget = TURN_CALLS_ALONE_MAX * CALL_COST
            self.window = CALLS_IN_FLIGHT_MAX

    def _come(self) -> None:
        if not self._is_coming:
            self._is_coming = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_coming = False
        self._spent_on_fresh = self._serve(self._fresh, _FRESH_BUDGET, self._give_fresh)
        self._spent = self._serve(self._others, self._budget_now(), self._give_other)
        if self._fresh or self._others:
            self._come()

    def _serve(
        self, queue: deque[Waiting], budget: int, give: Callable[[Waiting, int], int]
    ) -> int:
        """Gives those that wait their turn; returns what it cost."""
        spent = 0
        share = max(CALL_COST, budget // max(1, len(queue)))
        for _ in range(len(queue)):
            if spent >= budget:
                break
            inlet = queue.popleft()
            inlet.is_queued = False
            spent += give(inlet, share)
            self._queue(inlet)
        return spent


# So long turns are short behind a call of a client that asks one by one.
_HURRY_SECONDS: Final = 2.0
_FRESH_BUDGET: Final = TURN_CALLS_FRESH_MAX * CALL_COST
