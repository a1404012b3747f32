"""The audit: a line of JSON for every call that is wanted, in a file or on stderr.

Invariants:

* A line tells who (connection, peer, saved reference), what (interface, method, node, bytes moved)
  and how it ended.  It never holds a token, content, a target of a link or a key of an object;
  names of entries only where that was asked for.
* The loop is never blocked: lines wait in a bounded queue, and a worker writes many at once, after
  `DELAY_SECONDS` at the latest.  Where the queue is full (a disk that is slow), calls wait until
  there is room: who floods the service cannot hide in what was dropped.
* Where writing fails, the lines are lost and counted, the service's log says so once, and the first
  line that can be written again tells how many there were.  With `required` every call is refused
  from then on until a line has been written.

What a crash of the process can lose is `DELAY_SECONDS` of lines; nothing is flushed to the disk
itself, so a crash of the machine loses what its kernel had not written.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from time import time_ns
from typing import Any, Final, NamedTuple, Protocol

import capnp

from capstore.backers.workers import in_worker
from capstore.schema.errors import Code, StorageIOError, from_os_error
from capstore.schema.limits import AUDIT_QUEUE_LINES_MAX, NAME_BYTES_MAX
from capstore.service.decisions import ROWS, Effect
from capstore.service.dispatch import OK, Method

__all__ = ["Audit", "Only", "Origin", "Selection", "Sink"]

log = logging.getLogger("capstore.service")

DELAY_SECONDS: Final = 0.05
# So many lines are written without waiting for more.
_BATCH_LINES: Final = 1024
_NANOSECONDS: Final = 1_000_000_000

REFUSALS: Final = frozenset(
    code.value
    for code in (Code.DENIED, Code.REVOKED, Code.EXPIRED, Code.READ_ONLY, Code.QUOTA_EXCEEDED)
)
# What changes authority changes something, too.
_AUTHORITY: Final = frozenset({"save", "revoke", "renew", "rotate"})
# Where a parameter called so is the name of an entry, and not the key of an object.
_NAMING: Final = ("Directory", "Namespace")


class Only(enum.Enum):
    """What a call has to be to get a line."""

    CHANGES = "changes"
    FAILURES = "failures"
    REFUSALS = "refusals"
    TRACED = "traced"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a capability comes from; 0 and empty where there is no telling."""

    volume: str = ""
    reference: int = 0
    label: str = ""
    traced: bool = False


@dataclass(frozen=True)
class Selection:
    """Which calls get a line: those of a method that one of the globs `calls` fits
    (``Interface.method``), and that are one of the kinds in `only`, if there are any.  Calls under
    a traced capability get one always."""

    calls: tuple[str, ...] = ("*",)
    only: frozenset[Only] = frozenset()
    _fits: dict[Method, bool] = field(default_factory=dict, repr=False, compare=False)

    def fits(self, method: Method) -> bool:
        """Whether one of the globs fits."""
        fits = self._fits.get(method)
        if fits is None:
            fits = any(fnmatchcase(str(method), glob) for glob in self.calls)
            self._fits[method] = fits
        return fits

    def wants_at_all(self, method: Method, code: str) -> bool:
        """Whether a call that ended so may be wanted, traced or not."""
        if not self.fits(method):
            return False
        if not self.only or Only.CHANGES in self.only:
            return True
        if Only.FAILURES in self.only and code != OK:
            return True
        return Only.REFUSALS in self.only and code in REFUSALS

    def wants(self, method: Method, code: str, context: Any, traced: bool) -> bool:
        """Whether a call gets a line."""
        if traced:
            return True
        if not self.wants_at_all(method, code):
            return False
        if Only.CHANGES not in self.only:
            return True
        return (
            _changes(method, context)
            or (Only.FAILURES in self.only and code != OK)
            or (Only.REFUSALS in self.only and code in REFUSALS)
        )


def _changes(method: Method, context: Any) -> bool:
    """Whether a call is one that changes something, if it succeeds."""
    if method.name in _AUTHORITY:
        return True
    row = ROWS.get((method.interface, method.name))
    if row is None:
        # A broken capability: what it stood in for is not known.
        return False
    if method.interface == "Directory" and method.name == "open":
        return bool(context.params.flags)
    return row.act.effect is not Effect.OBSERVE


class Sink(Protocol):
    """Where lines go.  Its methods block, and are called one at a time."""

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Writes whole lines; how many were written, and what kept it from writing the rest."""

    def reopen(self) -> None:
        """Lets go of a file that may have been moved away.  Raises OSError."""

    def close(self) -> None:
        """Lets go of everything; raises nothing."""


class _Line(NamedTuple):
    ended: int
    connection: int
    peer: Mapping[str, int | str]
    origin: Origin
    method: Method
    node: int | None
    moved: int
    code: str
    nanoseconds: int
    names: Mapping[str, str | None] | None


class Audit:
    """The audit of one service; see the module's invariants.

    To be used on one event loop.  `lines` were written, `lost` could not be.
    """

    def __init__(
        self,
        sink: Sink,
        selection: Selection | None = None,
        *,
        names: bool = False,
        required: bool = False,
        queue_lines_max: int = AUDIT_QUEUE_LINES_MAX,
    ) -> None:
        self.selection = selection or Selection()
        self.lines = 0
        self.lost = 0
        # Whether a call has to ask `admitted` before it begins.
        self.holds_back = False
        self._sink = sink
        self._names = names
        self._required = required
        self._queue_lines_max = queue_lines_max
        self._batch_lines = min(_BATCH_LINES, queue_lines_max)
        self._pending: list[_Line] = []
        self._being_written = 0
        self._told_lost = 0
        self._failing = False
        self._is_reopening = False
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._rounds: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "failing" if self._failing else "in order"
        return f"<Audit {state}: {self.lines} lines, {self.lost} lost, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many lines are yet to be written."""
        return len(self._pending) + self._being_written

    @property
    def failing(self) -> bool:
        """Whether the last lines could not be written."""
        return self._failing

    # Calls ---------------------------------------------------------------------------------------

    async def admitted(self) -> None:
        """Returns when there is room for a line.

        Raises `StorageIOError` where lines are required and cannot be written."""
        while self.waiting >= self._queue_lines_max:
            self._room.clear()
            await self._room.wait()
        if self._failing and self._required:
            # Whether there will be a line of this call or not, it is tried again.
            self._is_reopening = True
            self._begin_soon()
            raise StorageIOError("the service cannot write its audit and serves nothing meanwhile")

    def note(
        self,
        connection: int,
        peer: Mapping[str, int | str],
        origin: Origin,
        method: Method,
        node: int | None,
        moved: int,
        code: str,
        nanoseconds: int,
        context: Any,
    ) -> None:
        """Notes a call that has ended now."""
        names = _names_of(method, context) if self._names else None
        self._pending.append(
            _Line(
                time_ns(),
                connection,
                peer,
                origin,
                method,
                node,
                moved,
                code,
                nanoseconds,
                names,
            )
        )
        count = len(self._pending)
        if count + self._being_written >= self._queue_lines_max:
            self.holds_back = True
        if count >= self._batch_lines:
            self._begin()
        elif self._timer is None:
            self._begin_soon()

    def lose(self) -> None:
        """Counts a line that could not be made; as one that could not be written."""
        self.lost += 1
        self._failing = True
        self.holds_back |= self._required
        # What can be written again says how many were lost.
        self._is_reopening = True
        self._begin_soon()

    # Writing -------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Writes to the file that has the name from now on: the other one was moved away."""
        self._is_reopening = True
        self._begin()

    async def close(self) -> None:
        """Writes what waits, and lets go of the file."""
        self._begin()
        while self._rounds is not None:
            await asyncio.wait([self._rounds])
        await in_worker(self._sink.close)

    def _begin_soon(self) -> None:
        if self._timer is None and self._rounds is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(DELAY_SECONDS, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._pending or self._is_reopening:
                # What failed may have gone wrong for good with this very descriptor.
                reopening = self._is_reopening or self._failing
                self._is_reopening = False
                batch, self._pending = self._pending, []
                self._being_written = len(batch)
                lost = self.lost - self._told_lost
                try:
                    written, error = await in_worker(
                        lambda: self._write(batch, lost, reopening)  # noqa: B023 - awaited here
                    )
                except Exception:
                    log.exception("a bug in the audit")
                    written, error = -1 if lost else 0, OSError(errno.EIO, "a bug")
                finally:
                    self._being_written = 0
                self._wrote(len(batch), written, lost, error)
        finally:
            self._rounds = None
            self._room.set()

    def _write(
        self, batch: Sequence[_Line], lost: int, reopening: bool
    ) -> tuple[int, OSError | None]:
        """How many of the lines were written, -1 if not even that some were lost.  In a worker."""
        try:
            if reopening:
                self._sink.reopen()
            lines = [_json(line) for line in batch]
            if lost:
                lines.insert(0, _json_lost(lost))
            written, error = self._sink.write(lines)
        except OSError as error:
            return (-1 if lost else 0), error
        return (written - 1 if lost else written), error

    def _wrote(self, count: int, written: int, lost: int, error: OSError | None) -> None:
        if written >= 0 and lost:
            self._told_lost += lost
        written = max(written, 0)
        self.lines += written
        self.lost += count - written
        if error is not None and not self._failing:
            what = "calls are refused" if self._required else "calls go on without it"
            log.error("the audit cannot be written (%s): %s", from_os_error(error), what)
        if error is None and self._failing:
            log.warning("the audit is written again; %d lines were lost so far", self.lost)
        self._failing = error is not None
        self.holds_back = self.waiting >= self._queue_lines_max or (
            self._failing and self._required
        )
        self._room.set()


def _names_of(method: Method, context: Any) -> Mapping[str, str | None] | None:
    """The names that a call is about; None for what is none."""
    row = ROWS.get((method.interface, method.name))
    if row is None or method.interface not in _NAMING or not row.names:
        return None
    return {name: _name(context.params, name) for name in row.names}


def _name(params: Any, field_name: str) -> str | None:
    try:
        name: str = params._get(field_name)
    except (UnicodeDecodeError, capnp.KjException):
        return None
    return name if len(name) <= NAME_BYTES_MAX else None


# A line ------------------------------------------------------------------------------------------

# ASCII only, so that nothing in a line can do anything to a terminal.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def _time_text(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _NANOSECONDS)
    return f"{_second_text(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=16)
def _second_text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


@lru_cache(maxsize=4096)
def _origin_text(origin: Origin) -> str:
    known = {
        "volume": origin.volume or None,
        "reference": origin.reference or None,
        "label": origin.label or None,
    }
    return _encode(known)[1:-1]


def _json(line: _Line) -> bytes:
    # What comes from elsewhere is encoded; the rest are numbers, and words of the schema's.  All of
    # it by the encoder would take three times as long.
    peer = f"{_encode(line.peer)[1:-1]}," if line.peer else ""
    node = "null" if line.node is None else line.node
    names = f",{_encode(line.names)[1:-1]}" if line.names else ""
    return (
        f'{{"time":"{_time_text(line.ended - line.nanoseconds)}","connection":{line.connection},'
        f'{peer}{_origin_text(line.origin)},"interface":"{line.method.interface}",'
        f'"method":"{line.method.name}","node":{node},"bytes":{line.moved},"code":"{line.code}",'
        f'"microseconds":{line.nanoseconds // 1000}{names}}}\n'
    ).encode()


def _json_lost(count: int) -> bytes:
    return _encode({"time": _time_text(time_ns()), "lost": count}).encode() + b"\n"
