"""Flushing a device for whoever writes it: what is durable, and what a failure means.

Invariants:

* One flush is under way at a time: of two at once, the kernel would tell only one that it failed.
* After a failed write or flush nobody can say what is on the device: `check` raises
  `StorageIOError` from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from capstore.images.device import BlockDevice
from capstore.schema.errors import StorageIOError
from capstore.schema.limits import MIB

# So much is written by work beside operations until it is flushed.
PACE_BYTES: Final = 4 * MIB
_FAILED: Final = "an earlier write or flush failed: open it again"


class Flushing:
    """A device that is written in frames: those up to the sequence `durable` are durable."""

    def __init__(self, device: BlockDevice, durable: int) -> None:
        self.device = device
        self.durable = durable
        self.failed = False
        # Whether somebody else calls `flush` when `waits_for_flush` says so: then work in steps
        # waits for that, instead of holding up operations.
        self.patient = False
        self.waits_for_flush = False
        self._flushing = threading.Lock()
        self._begun = self._ended = 0

    @property
    def flushes(self) -> int:
        """How many flushes there were."""
        return self._ended

    def check(self) -> None:
        """Raises `StorageIOError` after a failure."""
        if self.failed:
            raise StorageIOError(_FAILED)

    def flush(self, sequence: int = 0) -> None:
        """Flushes the device, which makes the frames up to `sequence` durable that were written
        before.  In any thread, also beside operations.  Raises `StorageIOError`, for good."""
        with self._flushing:
            self.check()
            self._begun += 1
            try:
                self.device.flush()
            except BaseException:
                self.failed = True
                raise
            self._ended = self._begun
            self.durable = max(self.durable, sequence)

    def flush_steps(self, is_in_a_hurry: Callable[[], bool]) -> Iterator[None]:
        """A flush that begins behind this; one by somebody else where there is time for that."""
        begun = self._begun
        self.waits_for_flush = self.patient
        while self.patient and not is_in_a_hurry() and self._ended <= begun:
            self.check()
            yield
        self.waits_for_flush = False
        if self._ended <= begun:
            self.flush()

    def paced(self, steps: Iterator[None], is_in_a_hurry: Callable[[], bool]) -> Iterator[None]:
        """`steps`, with a flush whenever they have written much, where somebody else flushes.

        Whoever waits for something to be durable waits for what was written beside it, too: so that
        shall never be much."""
        for _ in steps:
            yield
            much = self.device.unflushed_bytes >= PACE_BYTES
            if much and self.patient and not is_in_a_hurry():
                yield from self.flush_steps(is_in_a_hurry)

    def flushed(self, sequence: int) -> None:
        """The frames up to `sequence` are durable, by a flush of the device itself."""
        with self._flushing:
            self.durable = max(self.durable, sequence)
