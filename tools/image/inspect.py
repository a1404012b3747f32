"""``capstore image inspect``: what an image says of itself, and its map.

Invariants: an image that is damaged is shown as far as it can be; what could not be shown is said
on stderr, and the exit code is 1.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from capstore.images.tree import Region
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
from capstore.tools.image.stores import FORMAT, OpenFile, Segment, opened_file
from capstore.tools.image.survey import Survey

T = TypeVar("T")

_ROWS_MAX: Final = 100


_SEGMENTS_MAX: Final = 10_000


@dataclass(slots=True)
class Half:
    """A store (`format` is st1, and it has `segments`) or a tree."""

    format: str
    facts: dict[str, Any]
    usage: Usage
    segments: list[Segment] | None = None

    @property
    def name(self) -> str:
        """What the format is called."""
        return str(self.facts.get("format", self.format))


@dataclass(slots=True)
class Shown:
    """All that is shown of an image: a store, a tree, or the one in front of the other; `wrong`
    says that some of it could not be had."""

    halves: list[Half]
    survey: Survey
    wrong: list[StorageError] = field(default_factory=list)

    @property
    def format(self) -> str:
        """That of both halves, if there are two."""
        return "+".join(half.format for half in self.halves)


async def inspect(file: str, *, json: bool, picture: Path | None) -> None:
    """Shows the image `file`.

    Raises `NotFound`, `Busy`, `Corrupt` and `Unsupported` for what cannot be opened, and `Failed`
    where something is wrong with it.
    """
    draw = None
    if picture is not None:
        from capstore.tools.image.picture import drawer

        draw = drawer()
    async with opened_file(file) as image:
        shown = _look(image)
    if json:
        _write_json(shown)
    else:
        _write_text(shown)
    if draw is not None and picture is not None:
        draw(shown.survey, _title(image.path, shown), picture)
    for damage in shown.wrong:
        named = damage if damage in image.wrong else local_error(damage, image.path)
        complain(explained(named))
    if shown.wrong:
        raise Failed


def _look(file: OpenFile) -> Shown:
    wrong = list(file.wrong)

    def attempt(function: Callable[[], T], otherwise: T) -> T:
        try:
            return function()
        except StorageError as error:
            wrong.append(error)
            return otherwise

    halves: list[Half] = []
    # A FAT volume may be a part of the file; its regions say all of where it ends.
    is_part = file.tree is not None and file.tree.format == "fat"
    survey = Survey(0 if is_part else Path(file.path).stat().st_size)
    maps: list[Iterable[Region]] = []
    if (store := file.store) is not None:
        segments: list[Segment] = attempt(store.segments, [])
        half = Half(FORMAT, store.describe(), attempt(store.usage, Usage()), segments)
        halves.append(half)
        maps.append(store.regions())
    if file.tree is not None:
        tree = file.tree.volume.tree
        facts: dict[str, Any] = attempt(tree.describe, {})
        halves.append(Half(file.tree.format, facts, attempt(tree.usage, Usage())))
        maps.append(tree.regions())
    # The store is in front of the tree.
    attempt(lambda: survey.add(chain.from_iterable(maps)), None)
    return Shown(halves, survey, wrong)


def _title(file: str, shown: Shown) -> str:
    names = " + ".join(half.name for half in shown.halves)
    labels = "".join(f" “{half.usage.label}”" for half in shown.halves if half.usage.label)
    size = format_size(shown.survey.size)
    return f"{Path(file).name} · {names}{labels} · {size}"


# As JSON -----------------------------------------------------------------------------------------


def _write_json(shown: Shown) -> None:
    survey = shown.survey
    halves = [_half_json(half) for half in shown.halves]
    said = halves[0] if len(halves) == 1 else {"halves": halves}
    document = {
        "format": shown.format,
        "size": survey.size,
        **said,
        "totals": survey.totals(),
        "regions": [
            {"start": r.start, "length": r.length, "kind": r.kind, "label": r.label}
            for r in survey.regions
        ],
        "regionsLeftOut": survey.left_out,
    }
    json_format.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _half_json(half: Half) -> dict[str, Any]:
    usage = half.usage
    shape: dict[str, Any] = {
        "format": half.format,
        "facts": half.facts,
        "usage": {
            "totalBytes": usage.total_bytes,
            "usedBytes": usage.used_bytes,
            "freeBytes": usage.free_bytes,
            "totalNodes": usage.total_nodes,
            "usedNodes": usage.used_nodes,
            "label": usage.label,
        },
    }
    if half.segments is not None:
        shape["segments"] = [asdict(segment) for segment in half.segments[:_SEGMENTS_MAX]]
        shape["segmentsLeftOut"] = max(0, len(half.segments) - _SEGMENTS_MAX)
    return shape


# As text -----------------------------------------------------------------------------------------


def _write_text(shown: Shown) -> None:
    for half in shown.halves:
        _write_half(half, shown)
        out("")
    survey = shown.survey
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


def _write_half(half: Half, shown: Shown) -> None:
    lines = dict(_flat(half.facts))
    lines.setdefault("format", half.format)
    if len(shown.halves) == 1:
        lines["size"] = _size(shown.survey.size)
    lines |= _usage_lines(half)
    width = max(map(len, lines)) + 2
    for key, value in lines.items():
        out(f"{printable(key) + ':':<{width}}{printable(value)}")
    if half.segments:
        out("")
        _write_segments(half.segments)


def _write_segments(segments: Sequence[Segment]) -> None:
    out_table(
        ("SEGMENT", "USE", "LIVE", "DEAD", "FREE"),
        [
            (str(number), s.use, str(s.live), str(s.dead), str(s.free))
            for number, s in enumerate(segments[:_ROWS_MAX])
        ],
    )
    if len(segments) > _ROWS_MAX:
        out(f"... and {len(segments) - _ROWS_MAX} more")


def _usage_lines(half: Half) -> Iterator[tuple[str, str]]:
    usage, is_store = half.usage, half.segments is not None
    if usage.total_bytes:
        yield "used", f"{_size(usage.used_bytes)} of {_size(usage.total_bytes)}"
    elif is_store:
        yield "used", _size(usage.used_bytes)
    if usage.total_bytes:
        yield "free", _size(usage.free_bytes)
    if not is_store:
        more = f" of {usage.total_nodes}" if usage.total_nodes > usage.used_nodes else ""
        yield "nodes", f"{usage.used_nodes}{more}"


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
