"""Garbage collection of a CAPOSST1 store: by mark, from the names.

Invariants:

* Only objects go that are under their hash, were put (for the last time) before the collection
  began and at least so long ago, and that no name stood for at any moment since it began.
* It goes on in bounded steps; operations may come between two of them.
* Each object is removed by itself, if it still has the version that was looked at: what a crash
  leaves is a store with a part of its garbage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from capstore.images import st1
from capstore.images.st1_engine import Clock, St1Engine
from capstore.images.st1_names import bound_hashes
from capstore.schema.errors import Busy, Conflict, NotFound
from capstore.schema.objects import Collected, Condition

# A step looks at so many names or entries.
_STEP: Final = 256


class Collecting:
    """One collection, of what was put at least `older_than` ns before `clock` says.

    Raises `Busy` while there is another."""

    def __init__(self, engine: St1Engine, older_than: int, clock: Clock) -> None:
        engine.check_writable()
        if engine.marking is not None:
            raise Busy("garbage is being collected")
        self._engine = engine
        self._version = engine.version
        self._created = clock() - older_than
        # Whoever binds a name adds to this.
        self._marked: set[bytes] = set()
        engine.marking = self._marked
        self.collected = Collected()

    def steps(self) -> Iterator[None]:
        """Collects; each item is one step.  `collected` says what was removed.

        Raises `Corrupt` if a name cannot be read, with nothing removed, and what removing does."""
        try:
            yield from self._mark()
            yield from self._sweep()
        finally:
            self._engine.marking = None

    def _mark(self) -> Iterator[None]:
        for number, digest in enumerate(bound_hashes(self._engine), 1):
            if digest is not None:
                self._marked.add(digest)
            if not number % _STEP:
                yield

    def _sweep(self) -> Iterator[None]:
        behind = b""
        while True:
            looked_at, found = 0, []
            for stored, entry in self._engine.entries(st1.OBJECTS, b"", behind):
                looked_at += 1
                behind = stored[1:]
                old = entry.version <= self._version and entry.created <= self._created
                if entry.is_hashed and old and behind not in self._marked:
                    found.append((stored, entry))
                if looked_at == _STEP:
                    break
            for stored, entry in found:
                self._remove(stored, entry.version, entry.size)
            if looked_at < _STEP:
                return
            yield

    def _remove(self, stored: bytes, version: int, size: int) -> None:
        # Removing goes on with other work, but binds nothing: what is marked is still so.
        with suppress(NotFound, Conflict):
            self._engine.remove(stored, Condition(version=version))
            done = self.collected
            self.collected = Collected(done.objects + 1, done.bytes + size)


def collect(engine: St1Engine, older_than: int, clock: Clock) -> Collected:
    """All of a collection."""
    collecting = Collecting(engine, older_than, clock)
    for _ in collecting.steps():
        continue
    return collecting.collected
