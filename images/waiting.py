"""Reading without waiting: for threads that have other things to do.

Invariants: in a thread that is `WITHOUT_WAITING`, what is not at hand is `WouldWait`, and nothing
else; other threads do not notice.
"""

from __future__ import annotations

import threading
from typing import Final

from capstore.images.device import BlockDevice


class WouldWait(Exception):
    """What was asked for is not at hand: ask again where waiting is allowed."""


class _WithoutWaiting(threading.local):
    """While it is entered, in this thread only, reading raises `WouldWait` instead of waiting."""

    entered = False

    def __enter__(self) -> None:
        self.entered = True

    def __exit__(self, *_: object) -> None:
        self.entered = False


WITHOUT_WAITING: Final = _WithoutWaiting()


def read_at_hand(device: BlockDevice, offset: int, view: memoryview) -> None:
    """As `BlockDevice.read_into`; raises `WouldWait` for what is not at hand, as above."""
    if not WITHOUT_WAITING.entered:
        device.read_into(offset, view)
    elif not device.read_now(offset, view):
        raise WouldWait
