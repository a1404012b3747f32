"""Readers that a writer can wait for, and that never wait for a writer.

Invariants: who reads is counted from entering to leaving, in the period in which it entered; a
writer ends that period and waits until none of it are left.  Only one writer waits at a time, so
two counts are enough: that of the period before last is 0.  (This is how read-copy-update knows
when something may be reclaimed: McKenney and Slingwine, "Read-Copy Update: Using Execution History
to Solve Concurrency Problems", PDCS 1998.)
"""

from __future__ import annotations

import threading
import time
from typing import Final

# It looks for microseconds, and waits for nothing.
_LOOK_SECONDS: Final = 0.0001


class Readers:
    """Who reads enters it as a context, one at a time in each thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._period = 0
        self._counts = [0, 0]
        self._mine = threading.local()
        # Odd while the one thread that looks at things most often does so: it counts here, once
        # before and once behind, instead of entering.
        self.turn = 0

    def __enter__(self) -> None:
        with self._changed:
            self._mine.period = self._period
            self._counts[self._period] += 1

    def __exit__(self, *_: object) -> None:
        period = self._mine.period
        with self._changed:
            self._counts[period] -= 1
            if not self._counts[period]:
                self._changed.notify_all()

    def wait_for_earlier(self) -> None:
        """Returns when everybody has left who had entered before the call."""
        with self._changed:
            period = self._period
            self._period = 1 - period
            while self._counts[period]:
                self._changed.wait()
        turn = self.turn
        while turn % 2 and self.turn == turn:
            time.sleep(_LOOK_SECONDS)
