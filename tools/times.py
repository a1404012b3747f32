"""Points in time as a person types them: a date, or how long from now."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import typer

from capstore.schema.errors import InvalidArgument
from capstore.schema.sizes import parse_duration

NEVER = "never"
_NS = 1_000_000_000


def typed_time(text: str, option: str) -> int:
    """In ns since 1970.  Raises a usage error about `option`, also for what is over."""
    try:
        ends = _date(text) or time.time_ns() + int(parse_duration(text) * _NS)
    except InvalidArgument:
        raise typer.BadParameter(
            f'"{text}" is no time: 30m, 2h, 7d from now, or a date like 2027-01-31 or '
            f"2027-01-31T12:00Z ({option})"
        ) from None
    if not time.time_ns() < ends < 2**63:
        raise typer.BadParameter(f"{option} needs a time to come, before the year 2262")
    return ends


def _date(text: str) -> int | None:
    """A date in ISO 8601, in ns since 1970; None for anything else."""
    try:
        # What is typed without a zone is of this machine, as what is shown is.
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp()) * _NS
    except (ValueError, OverflowError):
        return None
