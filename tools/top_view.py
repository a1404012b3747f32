"""How ``capstore top`` looks: a picture of `Rates`, drawn again at each look.

Invariants: what a service says is shown as text, with everything escaped that could do more to a
terminal; the loop goes on where the service does not answer, and says so.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from capstore.backers.workers import in_worker
from capstore.schema.errors import StorageError, TransportError
from capstore.schema.sizes import format_size
from capstore.tools.console import out_json, printable
from capstore.tools.top_source import Look, Rates, Source, parts_of, rates_between

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["picture", "watch"]

_METHODS_MAX: Final = 20
_BUSIEST_MAX: Final = 5
_SECOND_MS: Final = 1000


async def watch(source: Source, interval: float, *, once: bool, json: bool) -> None:
    """Shows what happens at `source`, until it is cancelled or, with `once`, one time.

    Raises `Disconnected` and `Corrupt` for the first look, and with `once` for any."""
    before = await _look(source)
    if once:
        await asyncio.sleep(interval)
        _show(rates_between(before, await _look(source)), json=json)
    elif json:
        while True:
            await asyncio.sleep(interval)
            now = await _look(source)
            _show(rates_between(before, now), json=True)
            before = now
    else:
        await _live(source, before, interval)


async def _look(source: Source) -> Look:
    def look() -> Look:
        text = source.get("/metrics")
        return Look.of(text, source.get("/busiest"), time.monotonic())

    return await in_worker(look)


def _show(rates: Rates, *, json: bool) -> None:
    if json:
        out_json(rates.to_json())
        sys.stdout.flush()
        return
    from rich.console import Console

    Console(markup=False, highlight=False).print(picture(rates))


async def _live(source: Source, before: Look, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    with Live(Text(f"{source} ..."), console=console, screen=console.is_terminal) as live:
        while True:
            await asyncio.sleep(interval)
            try:
                now = await _look(source)
            except (StorageError, TransportError) as error:
                live.update(Text(printable(str(error))), refresh=True)
                continue
            live.update(picture(rates_between(before, now)), refresh=True)
            before = now


# The picture -------------------------------------------------------------------------------------


def picture(rates: Rates) -> RenderableType:
    """What a terminal shows of `rates`."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line) for line in _summary(rates)]
    rows = [
        (
            each.name,
            _count(each.calls),
            _count(each.failures),
            _time(each.p50),
            _time(each.p99),
            _size(each.bytes),
        )
        for each in rates.methods[:_METHODS_MAX]
    ]
    parts.append(_table(("METHOD", "CALLS/S", "FAILED/S", "P50", "P99", "BYTES/S"), rows))
    parts += _busiest("CONNECTION", rates.connections, _connection)
    parts += _busiest("REFERENCE", rates.references, _reference)
    return Group(*parts)


def _summary(rates: Rates) -> list[str]:
    now, totals = rates.gauges, rates.totals
    handles = ", ".join(
        f"{count:.0f} {name}" for name, count in sorted(rates.handles.items()) if count
    )
    calls = f"{_count(rates.calls)} calls/s, {_count(rates.failures)} failed/s"
    moved = f"{_size(rates.read_bytes)}/s read, {_size(rates.written_bytes)}/s written"
    refused = f"{totals['connectionsRefused']:.0f} refused so far"
    there = f"{now['connections']:.0f} connections ({refused})"
    under_way = f"{now['callsInFlight']:.0f} calls under way"
    held = f"{now['references']:.0f} references, {_size(now['unsentBytes'])} unsent"
    kept = f"{totals['flushes']:.0f} flushes, {totals['checkpoints']:.0f} checkpoints"
    lines = [
        f"{calls}, {moved}",
        f"{there}, {under_way}, {held}",
        printable(f"handles: {handles or 'none'}"),
        f"{kept}, {totals['gcPauseSeconds']:.2f} s of garbage collection so far",
    ]
    if totals["auditLost"]:
        lines.append(f"{totals['auditLost']:.0f} lines of the audit were lost")
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _busiest(heading: str, rows: Sequence[Mapping[str, Any]], who: Any) -> list[RenderableType]:
    busy = parts_of(rows, _BUSIEST_MAX)
    if not busy:
        return []
    cells = [
        (who(row), _count(row["callsPerSecond"]), _size(row["bytesPerSecond"])) for row in busy
    ]
    return [_table((heading, "CALLS/S", "BYTES/S"), cells)]


def _connection(row: Mapping[str, Any]) -> str:
    peer = f" uid {row['uid']}" if "uid" in row else f" {row.get('address', '')}"
    return f"{row.get('connection')}{peer}".rstrip()


def _reference(row: Mapping[str, Any]) -> str:
    return f"{row.get('reference')} {row.get('label') or ''}".rstrip()


def _count(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _size(value: float) -> str:
    return format_size(int(value))


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * _SECOND_MS:.3g} ms"
