"""Reading a CAPOSST1 store: in any thread, at any time.

Invariants: what is given was checked, by its checksum and, where it is under its hash, by that;
values that were checked are kept, some of them, with the entry that they are of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from capstore.images import st1
from capstore.images.st1_entry import Entry, Part, stat_of
from capstore.images.st1_state import View
from capstore.images.st1_writer import Writer
from capstore.images.waiting import WITHOUT_WAITING, WouldWait
from capstore.schema.errors import Closed, Corrupt, InvalidArgument, NotFound
from capstore.schema.limits import KIB, MIB, PAGE_ENTRIES_MAX
from capstore.schema.objects import ObjectStat, check_key

# Values that were read lately, and checked then.
CACHED_VALUES_MAX: Final = 131_072
CACHED_VALUES_BYTES_MAX: Final = 32 * MIB
CACHED_BYTES_MAX: Final = 4 * KIB
# Longer values are not read by whoever may not wait.
_AT_ONCE_BYTES_MAX: Final = 64 * KIB


class Reading:
    """What is in the `view` of a store, whose values `writer` knows the places of."""

    writer: Writer

    def __init__(self, view: View) -> None:
        self.view = view
        self._closed = False
        # With the entry that each is of: another one under the key has another version.
        self._values: dict[bytes, tuple[Entry, bytes]] = {}
        self._values_bytes = 0

    def stat(self, key: bytes) -> ObjectStat:
        """What is known of an object.  Raises `NotFound`, `Corrupt`."""
        return stat_of(key, self._entry(st1.OBJECTS + check_key(key)))

    def get(self, key: bytes) -> bytes:
        """The whole object.  Raises `NotFound`, `Corrupt`."""
        stored = st1.OBJECTS + check_key(key)
        return self.value_of(stored, self._entry(stored))

    def read_pair(self, key: bytes) -> tuple[bytes, ObjectStat]:
        """The whole object, and what is known of it.  Raises `NotFound`, `Corrupt`."""
        stored = st1.OBJECTS + check_key(key)
        entry = self._entry(stored)
        return self.value_of(stored, entry), stat_of(key, entry)

    def value_of(self, stored: bytes, entry: Entry) -> bytes:
        """The whole value of an entry, checked.  Raises `Corrupt`."""
        cached = self._values.get(stored)
        if cached is not None and (cached[0] is entry or cached[0] == entry):
            return cached[1]
        if entry.size > _AT_ONCE_BYTES_MAX:
            # Checking it takes its time, wherever it is.
            self.check_may_wait()
        if entry.parts:
            value = b"".join(self._part(part) for part in entry.parts)
        else:
            value = self.writer.read_value(entry)
        if entry.is_hashed and hashlib.sha256(value).digest() != stored[1:]:
            raise Corrupt(f"the object at offset {self._where(entry)} is not what its hash says")
        if entry.size <= CACHED_BYTES_MAX:
            self._keep_value(stored, entry, value)
        return value

    def _keep_value(self, stored: bytes, entry: Entry, value: bytes) -> None:
        self.forget_value(stored)
        full = len(self._values) >= CACHED_VALUES_MAX
        if full or self._values_bytes > CACHED_VALUES_BYTES_MAX:
            self._values, self._values_bytes = {}, 0
        self._values[stored] = entry, value
        self._values_bytes += len(value)

    def forget_value(self, stored: bytes) -> None:
        """The value under a stored key is not to be kept any longer: nobody can ask for it."""
        cached = self._values.pop(stored, None)
        if cached is not None:
            self._values_bytes -= len(cached[1])

    def _where(self, entry: Entry) -> int:
        if entry.parts:
            return entry.parts[0].place
        return entry.place + self.writer.bases.get(entry.frame, 0)

    def _part(self, part: Part) -> bytes:
        return self.writer.read_at(part.place, part.length, part.sum)

    def read(self, key: bytes, offset: int, length: int) -> tuple[bytes, ObjectStat]:
        """`length` bytes from `offset` on, fewer only at the end, and what they are of.

        Raises `NotFound`, `Corrupt`, `InvalidArgument`."""
        if offset < 0 or length < 0:
            raise InvalidArgument("offset and length are not negative")
        stored = st1.OBJECTS + check_key(key)
        entry = self._entry(stored)
        stat = stat_of(key, entry)
        end = min(entry.size, offset + length)
        if not entry.parts:
            return self.value_of(stored, entry)[offset:end], stat
        pieces = []
        for part in entry.parts:
            if part.offset < end and part.offset + part.length > offset:
                begin = max(0, offset - part.offset)
                pieces.append(self._part(part)[begin : end - part.offset])
        return b"".join(pieces), stat

    def list(
        self, prefix: bytes = b"", after: bytes = b"", limit: int = PAGE_ENTRIES_MAX
    ) -> tuple[Sequence[ObjectStat], bool]:
        """Up to `limit` objects whose keys begin with `prefix` and come after `after`, in the order
        of keys; and whether more follow.  Raises `Corrupt`."""
        self._check_open()
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        found = list(islice(self.entries(st1.OBJECTS, prefix, after), limit + 1))
        stats = [stat_of(key[1:], entry) for key, entry in found[:limit]]
        return stats, len(found) > limit

    def entries(
        self, space: bytes, prefix: bytes = b"", after: bytes = b""
    ) -> Iterator[tuple[bytes, Entry]]:
        """Stored keys of a space, that begin with `prefix` and come after `after`, in order, with
        their entries; of one moment, as long as nothing is done in between.  Raises `Corrupt`."""
        lower = prefix if prefix > after or not after else after + b"\0"
        return self.view.pairs(space + lower, space + prefix)

    def find(self, stored: bytes) -> Entry | None:
        """What is under a stored key.  Raises `Corrupt`."""
        self._check_open()
        return self.view.find(stored)

    def _entry(self, stored: bytes) -> Entry:
        self._check_open()
        entry = self.view.find(stored)
        if entry is None:
            raise NotFound("there is no such object")
        return entry

    @staticmethod
    def check_may_wait() -> None:
        """Raises `WouldWait` where nothing may."""
        if WITHOUT_WAITING.entered:
            raise WouldWait

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the store was closed")
