"""Progress on a terminal; nothing at all in a pipe.

Invariants: what is counted costs an addition; the terminal is written to by a task of its own, a
few times a second, on stderr, and not before the work has taken a moment.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from capstore.schema.sizes import format_size
from capstore.tools.console import complain

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_SECONDS: Final = 0.5
_INTERVAL_SECONDS: Final = 0.1


class Meter:
    """What a transfer has done so far; `total` bytes are to come if that is known."""

    def __init__(self) -> None:
        self.bytes = 0
        self.entries = 0
        self.failures = 0
        self.total: int | None = None
        self._bar: Progress | None = None

    def failed(self, message: str) -> None:
        """Counts a failure and says so, above the bar where there is one."""
        self.failures += 1
        self.warn(message)

    def warn(self, message: str) -> None:
        """Says something about one entry."""
        if self._bar is not None:
            # A live display moves out of the way of what is written around it only if it is told.
            self._bar.stop()
            complain(message)
            self._bar.start()
        else:
            complain(message)

    async def show(self, what: str) -> None:
        """Draws the bar until it is cancelled."""
        await asyncio.sleep(_QUIET_SECONDS)
        with _bar() as bar:
            self._bar = bar
            task = bar.add_task(what, total=self.total, said="")
            began = time.monotonic() - _QUIET_SECONDS
            try:
                while True:
                    said = self._said(time.monotonic() - began)
                    bar.update(task, completed=self.bytes, total=self.total, said=said)
                    await asyncio.sleep(_INTERVAL_SECONDS)
            finally:
                self._bar = None

    def _said(self, seconds: float) -> str:
        parts = [f"{self.entries} entries"]
        # What removes moves no bytes.
        if self.bytes or self.total:
            size = format_size(self.bytes)
            of = f" of {format_size(self.total)}" if self.total is not None else ""
            parts += [size + of, f"{format_size(int(self.bytes / seconds))}/s"]
        return ", ".join(parts)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


@asynccontextmanager
async def metered(what: str, *, quiet: bool) -> AsyncIterator[Meter]:
    """A meter, drawn as a bar with the title `what` where somebody watches."""
    meter = Meter()
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield meter
        return
    drawing = asyncio.create_task(meter.show(what))
    try:
        yield meter
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
