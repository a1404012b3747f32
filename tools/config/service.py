"""What ``capstore.toml`` says of the service itself: where it listens, what it tells, its sandbox.

Invariants: an option of ``capstore serve`` and a key that mean the same have the same name.  What
was typed stands before what the file says, key by key; a switch is on where either says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer

from capstore.schema.errors import InvalidArgument
from capstore.schema.sizes import parse_size
from capstore.service.audit import Only
from capstore.tools.config.document import Table, hint
from capstore.tools.config.lines import Path as KeyPath
from capstore.tools.confine import Sandbox
from capstore.tools.observing import KEEP_MAX, ObserveOptions, check_glob
from capstore.tools.serving import parse_address

__all__ = ["LOG_LEVELS", "file_at", "listen_at", "log_level_at", "observe_at", "sandbox_at"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_KINDS: Final = [kind.value for kind in Only]


def file_at(table: Table, key: str, default: str) -> str:
    """A path of this machine."""
    text = table.get(key, str, default)
    if text and "\0" not in text:
        return text
    if isinstance(table.value(key), str):
        table.problem(key, "is no path")
    return default


def listen_at(top: Table) -> list[str]:
    """The addresses."""

    def check(text: str) -> None:
        parse_address(text)

    return _checked(top, "listen", check)


def log_level_at(top: Table) -> str:
    """The least that is logged."""
    level = top.get("log-level", str, "info")
    if level not in LOG_LEVELS:
        top.problem("log-level", f'"{level}" is no level: {hint(level, LOG_LEVELS)}')
    return level


def sandbox_at(top: Table, typed: Sandbox) -> Sandbox:
    """The sandbox that the file asks for, or that was typed."""
    said = Sandbox.of(
        wanted=top.get("sandbox", bool, False), required=top.get("require-sandbox", bool, False)
    )
    return max(said, typed)


# What it tells -----------------------------------------------------------------------------------


def observe_at(top: Table, typed: ObserveOptions) -> ObserveOptions:
    """What is audited, and where the metrics are."""
    said = ObserveOptions(
        audit=file_at(top, "audit", "") or None,
        calls=tuple(_checked(top, "audit-calls", check_glob)),
        only=tuple(_checked(top, "audit-only", _check_kind)),
        names=top.get("audit-names", bool, False),
        required=top.get("audit-required", bool, False),
        size_max=_size(top, "audit-max-bytes"),
        keep=_keep(top),
        metrics=_metrics(top),
        anywhere=top.get("metrics-anywhere", bool, False),
    )
    whole = typed.before(said)
    for key, message in whole.conflicts(""):
        # What was typed wrong is refused when all of the file is known to be right.
        if key in top:
            top.problem(key, message)
    return whole


def _checked(table: Table, key: str, check: Callable[[str], None]) -> list[str]:
    """The strings of an array, each once; `check` raises a usage error for what makes no sense."""
    found: list[str] = []
    for path, text in table.strings(key):
        _check(table, path, text, check)
        if text in found:
            table.document.problem(path, f'"{text}" is there already')
        found.append(text)
    return found


def _check(table: Table, path: KeyPath, text: str, check: Callable[[str], None]) -> None:
    try:
        check(text)
    except typer.BadParameter as error:
        table.document.problem(path, error.message)


def _check_kind(text: str) -> None:
    if text not in _KINDS:
        raise typer.BadParameter(f'"{text}" is no kind of calls: {hint(text, _KINDS)}')


def _metrics(top: Table) -> str | None:
    text = top.get("metrics", str, "")
    if not isinstance(top.value("metrics"), str):
        return None
    try:
        parse_address(text)
    except typer.BadParameter as error:
        top.problem("metrics", error.message)
        return None
    return text


def _size(top: Table, key: str) -> int | None:
    """Bytes, as a number or with a unit."""
    value = top.value(key)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = top.get(key, str, "")
    if not isinstance(value, str):
        return None
    try:
        return parse_size(text)
    except InvalidArgument as error:
        top.problem(key, error.message)
        return None


def _keep(top: Table) -> int | None:
    keep = top.get("audit-keep", int, 1)
    if not 1 <= keep <= KEEP_MAX:
        top.problem("audit-keep", f"is from 1 to {KEEP_MAX}, not {keep}")
    return keep if "audit-keep" in top else None
