"""A put of a CAPOSST1 store in pieces.

Invariants: nothing of it is seen before `commit`, which is one change; a part is written when it is
whole, so memory is one part; the segments of parts stay until the put is committed or given up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capstore.images import st1
from capstore.images.st1_entry import Part
from capstore.schema.errors import Closed
from capstore.schema.nodes import Buffer
from capstore.schema.objects import Condition, ObjectStat

if TYPE_CHECKING:
    from capstore.images.st1_engine import St1Engine


class Writing:
    """One put; made by `St1Engine.begin`."""

    def __init__(self, engine: St1Engine, key: bytes, condition: Condition) -> None:
        self._engine = engine
        self._key = key
        self._condition = condition
        self._hash = hashlib.sha256()
        self._part_bytes = st1.part_bytes_of(engine.geometry.segment_bytes)
        self._parts: list[Part] = []
        self._buffer = bytearray()
        self._size = 0
        self._ended = False

    def __repr__(self) -> str:
        return f"<Writing {self._size} bytes{', ended' * self._ended}>"

    def write(self, data: Buffer) -> None:
        """Adds a piece, behind those before.  Raises `TooLarge`, `NoSpace`, `Closed`, with nothing
        added; `WouldWait` for what has to be written."""
        self._check()
        view = memoryview(data).cast("B")
        self._engine.check_size(self._size + len(view))
        if len(self._buffer) + len(view) >= self._part_bytes:
            self._put_parts(view)
        else:
            self._buffer += view
        self._hash.update(view)
        self._size += len(view)

    def _put_parts(self, view: memoryview) -> None:
        """Writes all that makes whole parts, with `view` behind what waits; the rest waits."""
        engine, size = self._engine, self._part_bytes
        engine.check_may_wait()
        data = bytes(self._buffer) + view
        engine.make_room_for_parts(len(data) // size)
        before = len(self._parts)
        try:
            for at in range(0, len(data) - size + 1, size):
                self._put_part(data[at : at + size])
        except BaseException:
            # Nothing was added, also where a part of it was written.
            self._release(self._parts[before:])
            del self._parts[before:]
            raise
        self._buffer = bytearray(data[len(data) // size * size :])

    def _put_part(self, data: bytes) -> None:
        engine = self._engine
        part = engine.writer.put_data(data)
        engine.upkeep.hold(engine.geometry.at(part.place))
        end = self._parts[-1].offset + self._parts[-1].length if self._parts else 0
        self._parts.append(part._replace(offset=end))

    def _release(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._engine.upkeep.release(self._engine.geometry.at(part.place))

    def commit(self) -> ObjectStat:
        """The object appears, whole.  Raises as `St1Engine.put`, and then may be called again;
        `Closed` when it was committed or aborted before."""
        self._check()
        engine = self._engine
        if self._parts:
            engine.check_may_wait()
            if self._buffer:
                engine.make_room_for_parts(1)
                self._put_part(bytes(self._buffer))
                self._buffer.clear()
            stat = engine.put_parts(self._key, self._hash.digest(), self._parts, self._condition)
        else:
            stat = engine.put(self._key, bytes(self._buffer), self._condition)
        self.abort()
        return stat

    def abort(self) -> None:
        """Gives up; doing so again, or behind `commit`, does nothing."""
        if not self._ended:
            self._ended = True
            self._release(self._parts)

    def _check(self) -> None:
        if self._ended:
            raise Closed("the put was ended")
        self._engine.check_writable()
