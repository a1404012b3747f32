"""What is taken away from what is shared, as it is typed, and as it is shown.

Invariants: an option, a key of ``capstore.toml`` and a field of `Policy` that mean the same have
the same name, but for how their words are joined; what makes no sense is refused before anybody is
asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from capstore.schema.errors import InvalidArgument, StorageError
from capstore.schema.sizes import format_size, parse_size
from capstore.service.policy import Policy

__all__ = ["TERMS", "Term", "TermError", "json_of", "read_terms", "words_of"]


def _count(value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() else 0
    if not 0 < number < 2**32:
        raise InvalidArgument(f'"{value}" is no number from 1 on')
    return number


def _size(value: str) -> int:
    size = parse_size(value)
    if not size:
        raise InvalidArgument("0 bytes would be no bound: --read-only or --append-only is meant")
    return size


def _names(patterns: Sequence[str]) -> str:
    return "without " + " ".join(patterns)


@dataclass(frozen=True, slots=True)
class Term:
    """A field of `Policy`: how its value is read from text (None for what is no number), and its
    words."""

    field: str
    parse: Callable[[str], int] | None
    words: Callable[[Any], str]

    @property
    def key(self) -> str:
        """As options and the configuration file have it."""
        return "hide" if self.field == "hidden_names" else self.field.replace("_", "-")

    @property
    def json_key(self) -> str:
        """As the wire has it."""
        first, *rest = self.field.split("_")
        return first + "".join(word.title() for word in rest)


TERMS: Final = (
    Term("append_only", None, lambda _: "append-only"),
    Term("max_bytes", _size, lambda size: f"at most {format_size(size)}"),
    Term("max_nodes", _count, lambda count: f"at most {count} nodes"),
    Term("max_file_bytes", _size, lambda size: f"files up to {format_size(size)}"),
    Term("calls_per_second", _count, lambda count: f"{count} calls/s"),
    Term("bytes_per_second", _size, lambda size: f"{format_size(size)}/s"),
    Term("hidden_names", None, _names),
    Term("dry_run", None, lambda _: "dry run"),
    Term("traced", None, lambda _: "traced"),
)


def read_terms(typed: Mapping[str, str | Sequence[str] | bool | None]) -> Policy:
    """The policy of what was typed, by the keys of `TERMS`.  Raises `TermError`."""
    values: dict[str, Any] = {}
    for term in TERMS:
        value = typed.get(term.key)
        if isinstance(value, str) and term.parse is not None:
            try:
                values[term.field] = term.parse(value)
            except InvalidArgument as error:
                raise TermError(term.key, error.message) from error
        elif value:
            values[term.field] = value if isinstance(value, bool) else tuple(value)
    try:
        return Policy(**values).check()
    except StorageError as error:
        raise TermError("hide", error.message) from error


class TermError(Exception):
    """What was typed under `key` makes no sense: `message`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


def words_of(policy: Policy) -> list[str]:
    """What a policy takes away beside changing and time, in words."""
    values = [(term, getattr(policy, term.field)) for term in TERMS]
    return [term.words(value) for term, value in values if value]


def json_of(policy: Policy) -> dict[str, Any]:
    """The same as a JSON object: only what is taken away."""
    values = [(term.json_key, getattr(policy, term.field)) for term in TERMS]
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values if value
    }
