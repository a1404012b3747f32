"""Devices that fail: for proving what an engine does when its disk does.

They are a part of the package for whoever proves a format of his own.  A crash proof is::

    base = bytes(...)                              # the image before
    device = RecordingDevice(MemoryDevice(base))
    ...                                            # work; note len(device.log) at each promise
    for state in crash_states(device.log, base):
        engine = open_engine(MemoryDevice(state.image))
        ...                                        # what was promised by state.at is there

A state that fails is had again by its id: `replay(log, base, state.id)`.

Invariants, beside those of `capstore.images.device`:

* A device here wraps another one, which belongs to whoever made it: `close` leaves it open, so that
  what is on it can be looked at.
* Nothing here is left to chance, and nothing waits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, Literal

from capstore.images.device import BlockDevice
from capstore.images.faults_log import SECTOR_BYTES, Flush, Operation, Resize, Write, apply_log
from capstore.images.faults_states import CrashState, Mode, crash_states, replay
from capstore.schema.errors import Closed, InvalidArgument, NoSpace, StorageIOError
from capstore.schema.nodes import Buffer

__all__ = [
    "SECTOR_BYTES",
    "CountdownDevice",
    "CrashState",
    "Failing",
    "Flush",
    "FreezingDevice",
    "Mode",
    "Operation",
    "PowerLost",
    "RecordingDevice",
    "Resize",
    "Write",
    "apply_log",
    "crash_states",
    "replay",
]

Failing = Literal["write", "resize", "reserve", "flush", "any"]


class PowerLost(StorageIOError):
    """The machine is off, as far as this device is concerned."""


class _PassingDevice(BlockDevice):
    """Hands everything on; its subclasses do so for the most part."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner: Final = inner
        self._closed = False

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._state()}{closed}) on {self.inner!r}"

    @abstractmethod
    def _state(self) -> str:
        """For `repr`."""

    def _check(self) -> None:
        if self._closed:
            raise Closed("the device is closed")

    def size(self) -> int:
        self._check()
        return self.inner.size()

    def read_into(self, offset: int, view: memoryview) -> None:
        self._check()
        self.inner.read_into(offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        self._check()
        return self.inner.read_now(offset, view)

    def write(self, offset: int, data: Buffer) -> None:
        self._check()
        self.inner.write(offset, data)

    def resize(self, size: int) -> None:
        self._check()
        self.inner.resize(size)

    def reserve(self, offset: int, length: int) -> None:
        self._check()
        self.inner.reserve(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._check()
        self.inner.discard(offset, length)

    def flush(self) -> None:
        self._check()
        self.inner.flush()

    def close(self) -> None:
        self._closed = True


class RecordingDevice(_PassingDevice):
    """Keeps what was written, resized and flushed, in order and after it was done, in `log`.

    Only what the inner device has done is recorded: to see torn writes of a `CountdownDevice`,
    put that around this one.
    """

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self._log: list[Operation] = []

    def _state(self) -> str:
        return f"{len(self._log)} operations"

    @property
    def log(self) -> Sequence[Operation]:
        """What was done until now; the same sequence goes on growing."""
        return self._log

    def write(self, offset: int, data: Buffer) -> None:
        kept = bytes(data)
        super().write(offset, kept)
        self._log.append(Write(offset, kept))

    def resize(self, size: int) -> None:
        super().resize(size)
        self._log.append(Resize(size))

    def discard(self, offset: int, length: int) -> None:
        """Zeros, from now on: what there was may be gone at any moment until the next flush."""
        self.write(offset, bytes(length))

    def flush(self) -> None:
        super().flush()
        self._log.append(Flush())


class FreezingDevice(_PassingDevice):
    """Loses power right after its `flushes`-th flush; 0 is at once.

    Whatever is asked for from then on is `PowerLost` and changes nothing, so the inner device
    keeps what was on the disk at that moment.  The flush itself still returns.
    """

    def __init__(self, inner: BlockDevice, flushes: int) -> None:
        super().__init__(inner)
        self._flushes_left = flushes

    def _state(self) -> str:
        return "frozen" if self.frozen else f"{self._flushes_left} flushes left"

    @property
    def frozen(self) -> bool:
        """Whether the power is gone."""
        return self._flushes_left <= 0

    def _check(self) -> None:
        super()._check()
        if self.frozen:
            raise PowerLost("the device was frozen")

    def flush(self) -> None:
        super().flush()
        self._flushes_left -= 1


class CountdownDevice(_PassingDevice):
    """Lets `failures_after` operations succeed; the next one fails with `error`.

    `what` are the operations that count: writes, resizes, reserves, flushes, or any of these.
    Reads never fail here.  With `torn` a write that fails has its first half written.

    As a `capstore.images.devices.FileDevice` does: after a `StorageIOError`, and after a torn
    write whatever its error, the device is latched.  After a `NoSpace` that wrote nothing it goes
    on, as if space had been found, and fails no more.  A flush fails with `StorageIOError` in any
    case, and a reserve with `NoSpace`: they have no other error.
    """

    def __init__(
        self,
        inner: BlockDevice,
        failures_after: int,
        what: Failing = "any",
        error: type[StorageIOError | NoSpace] = StorageIOError,
        *,
        torn: bool = False,
    ) -> None:
        """Raises `InvalidArgument` for a negative count."""
        if failures_after < 0:
            raise InvalidArgument("a count is not negative")
        super().__init__(inner)
        self._left = failures_after
        self._counted = 0
        self._what = what
        self._error = error
        self._torn = torn
        self._latched = False

    def _state(self) -> str:
        if self._latched:
            return "latched"
        return "failed" if self.failed else f"{self._left} left before a failing {self._what}"

    @property
    def failed(self) -> bool:
        """Whether the failure has happened."""
        return self._left < 0

    @property
    def counted(self) -> int:
        """How many of the operations that count there were."""
        return self._counted

    def write(self, offset: int, data: Buffer) -> None:
        self._check_latch()
        view = memoryview(data).cast("B")
        self.check_range(offset, len(view))
        if not self._fails("write"):
            super().write(offset, view)
            return
        half = view[: len(view) // 2] if self._torn else view[:0]
        if half:
            super().write(offset, half)
        self._latched = bool(half) or not issubclass(self._error, NoSpace)
        raise self._error("a failing write was asked for")

    def resize(self, size: int) -> None:
        self._check_latch()
        if self._fails("resize"):
            self._latched = not issubclass(self._error, NoSpace)
            raise self._error("a failing resize was asked for")
        super().resize(size)

    def reserve(self, offset: int, length: int) -> None:
        self._check_latch()
        self.check_range(offset, length)
        if self._fails("reserve"):
            raise NoSpace("a failing reserve was asked for")
        super().reserve(offset, length)

    def flush(self) -> None:
        self._check_latch()
        if self._fails("flush"):
            self._latched = True
            kind = StorageIOError if issubclass(self._error, NoSpace) else self._error
            raise kind("a failing flush was asked for")
        super().flush()

    def _check_latch(self) -> None:
        self._check()
        if self._latched:
            raise StorageIOError("an earlier write or flush failed; nothing more is written")

    def _fails(self, kind: Failing) -> bool:
        """Counts one operation down; whether it is the one to fail."""
        if self._what not in (kind, "any"):
            return False
        self._counted += 1
        if self.failed:
            return False
        self._left -= 1
        return self.failed
