"""Sizes and durations as people write them: ``16MiB``, ``1.5GB``, ``2h``.

Invariants: a number without a unit is bytes, or seconds; anything else that is not understood is
`InvalidArgument`, never a guess.
"""

from __future__ import annotations

import re

from capstore.schema.errors import InvalidArgument

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")},
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("kMGT")},
}
# What 64 bits hold; also keeps what float() makes of a thousand digits away from int().
_VALUE_MAX = 2**63

_DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _parse(text: str, units: dict[str, int], what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in units:
        listed = ", ".join(unit for unit in units if unit)
        raise InvalidArgument(f'"{text}" is no {what}: a number with one of {listed}')
    value = float(match[1]) * units[match[2]]
    if value > _VALUE_MAX:
        raise InvalidArgument(f"the {what} is over {_VALUE_MAX}")
    return value


def parse_size(text: str) -> int:
    """Bytes; raises `InvalidArgument`."""
    return int(_parse(text, _SIZE_UNITS, "size"))


def parse_duration(text: str) -> float:
    """Seconds; raises `InvalidArgument`."""
    return _parse(text, _DURATION_UNITS, "duration")


def format_size(count: int) -> str:
    """`count` bytes with the binary unit that keeps it short: ``1.5 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
