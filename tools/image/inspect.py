"""``capstore image inspect``: what an image says of itself, and its map.

Invariants: an image that is damaged is shown as far as it can be; what could not be shown is said
on stderr, and the exit code is 1.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from capstore.schema.errors import StorageError
from capstore.schema.nodes import Usage
from capstore.schema.sizes import format_size
from capstore.tools.console import (
    Failed,
    complain,
    explained,
    local_error,
    out,
    out_table,
    printable,
)
from capstore.tools.image.source import OpenImage, opened_image
from capstore.tools.image.survey import Survey

T = TypeVar("T")

_ROWS_MAX: Final = 100


@dataclass(slots=True)
class Shown:
    """All that is shown of an image; `wrong` says that some of it could not be had."""

    format: str
    facts: dict[str, Any]
    usage: Usage
    survey: Survey
    wrong: list[StorageError] = field(default_factory=list)


async def inspect(file: str, *, json: bool, picture: Path | None) -> None:
    """Shows the image `file`.

    Raises `NotFound`, `Busy`, `Corrupt` and `Unsupported` for what cannot be opened, and `Failed`
    where something is wrong with it.
    """
    draw = None
    if picture is not None:
        from capstore.tools.image.picture import drawer

        draw = drawer()
    async with opened_image(file) as image:
        shown = _look(image)
    if json:
        _write_json(shown)
    else:
        _write_text(shown)
    if draw is not None and picture is not None:
        draw(shown.survey, _title(image.path, shown), picture)
    for damage in shown.wrong:
        complain(explained(local_error(damage, image.path)))
    if shown.wrong:
        raise Failed


def _look(image: OpenImage) -> Shown:
    tree = image.volume.tree
    wrong: list[StorageError] = []

    def attempt(function: Callable[[], T], otherwise: T) -> T:
        try:
            return function()
        except StorageError as error:
            wrong.append(error)
            return otherwise

    facts: dict[str, Any] = attempt(tree.describe, {})
    usage = attempt(tree.usage, Usage())
    # A FAT volume may be a part of the file; its regions say all of where it ends.
    survey = Survey(0 if image.format == "fat" else Path(image.path).stat().st_size)
    attempt(lambda: survey.add(tree.regions()), None)
    return Shown(image.format, facts, usage, survey, wrong)


def _title(file: str, shown: Shown) -> str:
    name = str(shown.facts.get("format", shown.format))
    label = f" “{shown.usage.label}”" if shown.usage.label else ""
    size = format_size(shown.survey.size)
    return f"{Path(file).name} · {name}{label} · {size}"


# As JSON -----------------------------------------------------------------------------------------


def _write_json(shown: Shown) -> None:
    usage, survey = shown.usage, shown.survey
    document = {
        "format": shown.format,
        "size": survey.size,
        "facts": shown.facts,
        "usage": {
            "totalBytes": usage.total_bytes,
            "usedBytes": usage.used_bytes,
            "freeBytes": usage.free_bytes,
            "totalNodes": usage.total_nodes,
            "usedNodes": usage.used_nodes,
            "label": usage.label,
        },
        "totals": survey.totals(),
        "regions": [
            {"start": r.start, "length": r.length, "kind": r.kind, "label": r.label}
            for r in survey.regions
        ],
        "regionsLeftOut": survey.left_out,
    }
    json_format.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


# As text -----------------------------------------------------------------------------------------


def _write_text(shown: Shown) -> None:
    lines = dict(_flat(shown.facts))
    lines.setdefault("format", shown.format)
    lines |= _usage_lines(shown)
    width = max(map(len, lines)) + 2
    for key, value in lines.items():
        out(f"{printable(key) + ':':<{width}}{printable(value)}")
    survey = shown.survey
    out("")
    out_table(
        ("KIND", "BYTES", "SHARE"),
        [
            (kind, str(count), f"{count / survey.size:.1%}")
            for kind, count in survey.totals().items()
        ],
    )
    out("")
    out_table(
        ("START", "LENGTH", "KIND", "WHAT"),
        [(str(r.start), str(r.length), r.kind, r.label) for r in survey.regions[:_ROWS_MAX]],
    )
    more = len(survey.regions) - _ROWS_MAX + survey.left_out
    if more > 0:
        out(f"... and {more} more")


def _usage_lines(shown: Shown) -> Iterator[tuple[str, str]]:
    usage = shown.usage
    yield "size", _size(shown.survey.size)
    if usage.total_bytes:
        yield "used", f"{_size(usage.used_bytes)} of {_size(usage.total_bytes)}"
        yield "free", _size(usage.free_bytes)
    yield (
        "nodes",
        f"{usage.used_nodes}"
        + (f" of {usage.total_nodes}" if usage.total_nodes > usage.used_nodes else ""),
    )


def _size(count: int) -> str:
    return f"{count} ({format_size(count)})" if count >= 1024 else str(count)


def _flat(facts: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Facts as lines; what is in an object gets the object's name in front."""
    for key, value in facts.items():
        if not isinstance(value, dict):
            yield above + key, _plain(value)
        elif any(isinstance(inner, dict | list) for inner in value.values()):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, ", ".join(f"{name} {_plain(v)}" for name, v in value.items())


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json_format.dumps(value)
