"""Pausing Python's automatic collector of cyclic garbage, by whoever has a reason to.

The collector runs each time that so many objects were made, in whatever thread made them, and looks
at all of them again and again: where a million objects are built that stay, that takes longer than
building them.  (The service has another reason: objects that only one thread may free.)

Invariants: the collector is as it was when the last pause has ended, in whatever threads pauses
overlap.  Somebody else who turns it on or off meanwhile may see his choice undone.  A child made by
fork, in which none of the threads goes on that paused it, has no pauses.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


def pause_collection() -> None:
    """Pauses it, until `resume_collection` is called as often as this."""
    global _pauses, _was_enabled  # noqa: PLW0603 - there is one collector
    with _lock:
        if not _pauses:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1


def resume_collection() -> None:
    """Undoes one `pause_collection`."""
    global _pauses  # noqa: PLW0603 - there is one collector
    with _lock:
        _pauses -= 1
        if not _pauses and _was_enabled:
            gc.enable()


def is_collection_wanted() -> bool:
    """Whether there would be automatic collection if nobody had paused it."""
    return _was_enabled if _pauses else gc.isenabled()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses it for the block."""
    pause_collection()
    try:
        yield
    finally:
        resume_collection()


def _resume_in_child() -> None:
    global _lock, _pauses  # noqa: PLW0603 - there is one collector
    _lock = threading.Lock()
    if _pauses and _was_enabled:
        gc.enable()
    _pauses = 0


os.register_at_fork(after_in_child=_resume_in_child)
