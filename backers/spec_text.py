"""Volume specifications taken apart: ``SCHEME:ARGUMENT[,OPTION[=VALUE]]...``.

Invariants: a comma or backslash that belongs to the argument is written with a backslash in front.
Nothing is looked at but the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from capstore.schema.errors import InvalidArgument
from capstore.schema.sizes import parse_size


@dataclass(frozen=True, slots=True)
class Spec:
    """A specification taken apart: `scheme`, `argument` and `options` (None: without a value)."""

    scheme: str
    argument: str
    options: dict[str, str | None]

    @staticmethod
    def parse(text: str) -> Spec:
        """Takes `text` apart; raises `InvalidArgument` if it has no scheme."""
        scheme, colon, rest = text.partition(":")
        if not colon or not re.fullmatch(r"[a-z][a-z0-9]*", scheme):
            raise InvalidArgument(f'"{text}" is no volume specification: SCHEME:ARGUMENT')
        argument, *parts = _split(rest)
        options: dict[str, str | None] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            options[name] = value if equals else None
        return Spec(scheme, argument, options)

    def check_options(self, known: Collection[str]) -> None:
        """Raises `InvalidArgument` for an option that is not in `known`."""
        for name in self.options:
            if name not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise InvalidArgument(f'{self.scheme}: has no option "{name}" (it has: {listed})')

    def flag(self, name: str) -> bool:
        """Whether the option `name` was given, without a value."""
        if self.options.get(name) is not None:
            raise InvalidArgument(f'{self.scheme}: option "{name}" takes no value')
        return name in self.options

    def size(self, name: str, default: int) -> int:
        """The option `name` as a size in bytes (``16MiB``)."""
        value = self.options.get(name)
        return default if value is None else parse_size(value)


def _split(rest: str) -> list[str]:
    """Splits at commas that no backslash escapes, and drops the escapes."""
    parts = [""]
    for escaped, comma, plain in re.findall(r"\\(.)|(,)|([^\\,]+|\\)", rest, re.DOTALL):
        if comma:
            parts.append("")
        else:
            parts[-1] += escaped or plain
    return parts
