"""Keys in order, which come one by one.

Invariants: keys are there once each and never go; adding one costs about what finding it does.
Whoever reads in other threads sees all that were there when he began.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Final

from capstore.images.waiting import WITHOUT_WAITING, WouldWait

_BUCKET_KEYS: Final = 512


class SortedKeys:
    """The keys, in buckets that split when they are full."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        ordered = sorted(keys)
        starts = range(0, len(ordered), _BUCKET_KEYS)
        self._buckets = [ordered[at : at + _BUCKET_KEYS] for at in starts] or [[]]
        # The first key of each bucket but the first.
        self._firsts = [bucket[0] for bucket in self._buckets[1:]]
        self._lock = threading.Lock()

    def add(self, key: bytes) -> None:
        """Adds a key that is not there."""
        with self._lock:
            at = bisect_left(self._firsts, key)
            if at < len(self._firsts) and self._firsts[at] == key:
                at += 1
            bucket = self._buckets[at]
            insort(bucket, key)
            if len(bucket) >= 2 * _BUCKET_KEYS:
                self._buckets.insert(at + 1, bucket[_BUCKET_KEYS:])
                self._firsts.insert(at, bucket[_BUCKET_KEYS])
                del bucket[_BUCKET_KEYS:]

    def since(self, lower: bytes, count: int) -> list[bytes]:
        """Up to `count` keys that are not less than `lower`, in order.

        Raises `WouldWait` where nothing may wait."""
        if not self._lock.acquire(blocking=not WITHOUT_WAITING.entered):
            raise WouldWait
        try:
            at = bisect_left(self._firsts, lower)
            if at < len(self._firsts) and self._firsts[at] == lower:
                at += 1
            begin = bisect_left(self._buckets[at], lower)
            found = self._buckets[at][begin : begin + count]
            while len(found) < count and at + 1 < len(self._buckets):
                at += 1
                found += self._buckets[at][: count - len(found)]
            return found
        finally:
            self._lock.release()

    def __iter__(self) -> Iterator[bytes]:
        """All of them, when none is added any more."""
        for bucket in self._buckets:
            yield from bucket
