"""Names and keys that a policy hides.

Invariants:

* A pattern is a glob as in `fnmatch`, in which case counts, for one name as a whole; for a store,
  for one key as a whole, byte by byte.
* Matching takes no longer than the product of the lengths of pattern and name: `*` does not
  backtrack (`fnmatch.translate` makes atomic groups), and there are few patterns.
* A pattern of a store that was taken below a prefix keeps that prefix (`below`), so it holds for
  the same keys wherever they are seen from; who is shown it (`shown`) does not see the prefix.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache

from capstore.schema.errors import InvalidArgument, TooLarge
from capstore.schema.limits import (
    HIDDEN_BYTES_MAX,
    HIDDEN_PATTERN_BYTES_MAX,
    HIDDEN_PATTERNS_MAX,
)

__all__ = ["Hidden", "below", "check_all", "check_kept", "check_pattern", "hidden_of", "shown"]

# No pattern has a NUL, so what stands between two of them is a prefix in hexadecimal digits.
_MARK = "\0"
_HEXADECIMAL = re.compile("(?:[0-9a-f]{2})+")


def check_pattern(pattern: str) -> str:
    """`pattern` if it is one.  Raises `InvalidArgument`."""
    try:
        size = len(pattern.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("a pattern of hidden names is UTF-8") from None
    if not 0 < size <= HIDDEN_PATTERN_BYTES_MAX:
        raise InvalidArgument(
            f"a pattern of hidden names has 1 to {HIDDEN_PATTERN_BYTES_MAX} bytes"
        )
    if "/" in pattern or "**" in pattern or _MARK in pattern:
        raise InvalidArgument('a pattern is for one name: without "/", "**" and NUL')
    return pattern


def check_kept(pattern: str) -> None:
    """Raises `InvalidArgument` for what is neither a pattern nor one with its prefix (`below`)."""
    if pattern.startswith(_MARK):
        prefix, mark, pattern = pattern[1:].partition(_MARK)
        if not mark or _HEXADECIMAL.fullmatch(prefix) is None:
            raise InvalidArgument("no pattern of hidden names")
    check_pattern(pattern)


def check_all(patterns: Sequence[str]) -> None:
    """Raises `TooLarge` for more than one capability holds."""
    if len(patterns) > HIDDEN_PATTERNS_MAX or sum(map(len, patterns)) > HIDDEN_BYTES_MAX:
        raise TooLarge(
            f"a capability hides at most {HIDDEN_PATTERNS_MAX} patterns, "
            f"of {HIDDEN_BYTES_MAX} bytes in all"
        )


def below(prefix: bytes, patterns: Sequence[str]) -> tuple[str, ...]:
    """`patterns` for the keys below `prefix`."""
    if not prefix:
        return tuple(patterns)
    return tuple(
        each if each.startswith(_MARK) else f"{_MARK}{prefix.hex()}{_MARK}{each}"
        for each in patterns
    )


def shown(pattern: str) -> str:
    """The pattern as it was given."""
    return pattern.rpartition(_MARK)[2]


class Hidden:
    """What some patterns hide; made by `hidden_of`."""

    __slots__ = ("_by_prefix", "_name", "pause")

    def __init__(self, patterns: Sequence[str]) -> None:
        by_prefix: dict[bytes, list[str]] = {}
        for each in patterns:
            prefix = each[1:].partition(_MARK)[0] if each.startswith(_MARK) else ""
            by_prefix.setdefault(bytes.fromhex(prefix), []).append(shown(each))
        self._name = _compiled(by_prefix.get(b"", ()))
        self._by_prefix = [
            (prefix, _compiled([each.encode().decode("latin-1") for each in globs]))
            for prefix, globs in by_prefix.items()
        ]
        # After how many matches others shall have their turn.
        self.pause = max(1, 16 * HIDDEN_BYTES_MAX // (1 + sum(map(len, patterns))))

    def name(self, name: str) -> bool:
        """Whether a name is hidden."""
        return self._name(name) is not None

    def key(self, key: bytes) -> bool:
        """Whether a key of the whole store is hidden."""
        for prefix, match in self._by_prefix:
            if key.startswith(prefix) and match(key[len(prefix) :].decode("latin-1")) is not None:
                return True
        return False


def _compiled(globs: Sequence[str]):  # type: ignore[no-untyped-def]
    """The matcher of any of `globs`."""
    if not globs:
        return re.compile(r"(?!)").match
    return re.compile("|".join(fnmatch.translate(each) for each in globs)).match


@lru_cache(maxsize=256)
def hidden_of(patterns: tuple[str, ...]) -> Hidden | None:
    """What `patterns` hide; None for nothing."""
    return Hidden(patterns) if patterns else None
