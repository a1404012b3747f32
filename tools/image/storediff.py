"""What is different between two stores of objects.

Invariants: both are read in the order of their keys, side by side, objects first and then names;
content is compared piece by piece, and only where sizes agree.  Times are compared where both
sides recorded them; versions, which tell of the past of a store, are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from capstore.backers.workers import in_worker
from capstore.images import st1
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_entry import Entry, stat_of
from capstore.schema.errors import StorageError
from capstore.schema.limits import MIB
from capstore.schema.nodes import Provenance
from capstore.tools.image.storekeys import key_json, text_of
from capstore.tools.progress import Meter

LETTERS: Final = {"added": "A", "deleted": "D", "modified": "M"}
_PIECE_BYTES: Final = MIB
_STEPS: Final = 64

Pair = tuple[bytes, Entry | None, Entry | None]


@dataclass(frozen=True, slots=True)
class ObjectDifference:
    """An object, or a name, that is not the same on both sides; `what` says in what it differs."""

    change: str
    stored: bytes
    hashed: bool = False
    what: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``object`` or ``name``."""
        return "name" if self.stored.startswith(st1.NAMES) else "object"

    def line(self) -> str:
        """As text."""
        words = ", ".join(["name"] * (self.kind == "name") + [*self.what])
        said = f" ({words})" if words else ""
        return f"{LETTERS[self.change]} {text_of(self.stored, hashed=self.hashed)}{said}"

    def json(self) -> dict[str, object]:
        """As ``--json`` shows it."""
        return {
            "change": self.change,
            "kind": self.kind,
            **key_json(self.stored[1:], hashed=self.hashed),
            "what": list(self.what),
        }


class StoreComparison:
    """Compares stores; `meter` counts what it reads and what could not be compared."""

    def __init__(
        self, one: St1Engine, other: St1Engine, meter: Meter, *, ignore_times: bool
    ) -> None:
        self._one = one
        self._other = other
        self._meter = meter
        self._ignore_times = ignore_times

    async def differences(self) -> AsyncIterator[ObjectDifference]:
        """What is different, in the order of keys.  Raises `Corrupt` where keys are damaged."""
        steps = self._steps()
        # In a worker, but never for long: whoever waits may be told to stop.
        while some := await in_worker(lambda: list(islice(steps, _STEPS))):
            for difference in some:
                if difference is not None:
                    yield difference

    def _steps(self) -> Iterator[ObjectDifference | None]:
        """The differences, and None for each piece of work that brought none."""
        for space in (st1.OBJECTS, st1.NAMES):
            for stored, mine, yours in self._pairs(space):
                self._meter.entries += 1
                if yours is None or mine is None:
                    entry, change = (mine, "deleted") if mine is not None else (yours, "added")
                    what: tuple[str, ...] = ()
                else:
                    entry, change = mine, "modified"
                    what = yield from self._compared(stored, mine, yours)
                    if not what:
                        continue
                hashed = entry is not None and entry.is_hashed
                yield ObjectDifference(change, stored, hashed=hashed, what=what)

    def _pairs(self, space: bytes) -> Iterator[Pair]:
        """Each key that either side has, in order."""
        sides = [engine.entries(space) for engine in (self._one, self._other)]
        mine, yours = (next(side, None) for side in sides)
        while mine is not None or yours is not None:
            key = min(pair[0] for pair in (mine, yours) if pair is not None)
            first = mine[1] if mine is not None and mine[0] == key else None
            second = yours[1] if yours is not None and yours[0] == key else None
            yield key, first, second
            mine = mine if first is None else next(sides[0], None)
            yours = yours if second is None else next(sides[1], None)

    def _compared(
        self, stored: bytes, mine: Entry, yours: Entry
    ) -> Generator[None, None, tuple[str, ...]]:
        what: list[str] = []
        if mine.size != yours.size:
            what.append("size")
        else:
            try:
                same = yield from self._same_content(stored, mine, yours)
                what += [] if same else ["content"]
            except StorageError as error:
                named = text_of(stored, hashed=mine.is_hashed)
                self._meter.failed(f"{error.code.value}: {named}: {error.message}")
        if not self._ignore_times and _time_differs(stored[1:], mine, yours):
            what.append("time")
        return tuple(what)

    def _same_content(
        self, stored: bytes, mine: Entry, yours: Entry
    ) -> Generator[None, None, bool]:
        if stored[:1] == st1.NAMES:
            yield
            return self._one.value_of(stored, mine) == self._other.value_of(stored, yours)
        for at in range(0, mine.size, _PIECE_BYTES):
            pieces = [
                engine.read(stored[1:], at, _PIECE_BYTES)[0] for engine in (self._one, self._other)
            ]
            self._meter.bytes += len(pieces[0])
            if pieces[0] != pieces[1]:
                return False
            yield
        return True


def _time_differs(key: bytes, mine: Entry, yours: Entry) -> bool:
    one, other = stat_of(key, mine), stat_of(key, yours)
    if Provenance.UNKNOWN in (one.provenance, other.provenance):
        return False
    return one.created != other.created
