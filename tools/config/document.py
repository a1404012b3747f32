"""A TOML document as its reader checks it: values with their types, and all problems at once.

Invariants:

* A problem names the key as it would be written at the top of the file, dotted, and its line.
* Looking goes on behind a problem: what is wrong has its default.  No problem is told twice.
* A key that nobody asked for is a problem (`Table.finish`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, time
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from capstore.tools.config.lines import Path, lines_of

__all__ = ["BYTES_MAX", "Document", "Problem", "Table", "dotted", "hint", "kind_of"]

# No one writes more; a file that was meant to be something else is not read to its end.
BYTES_MAX: Final = 1 << 20

T = TypeVar("T")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_AT_LINE: Final = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), .*|end of document)\)")
_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (str, "a string"),
    (int, "a number"),
    (float, "a number"),
    (dict, "a table"),
    (list, "an array [...]"),
    (date, "a date"),
    (time, "a time"),
)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong on which line (from 1), under which dotted key (empty: with the whole)."""

    line: int
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.line}: {key}{self.message}"


def dotted(path: Path) -> str:
    """A path as one writes it: ``volumes.tree.mounts."/tmp"``, ``share[0].label``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." if text else ""
            text += part if _BARE_KEY.fullmatch(part) else _quoted(part)
    return text


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def kind_of(value: object) -> str:
    """What a value is, in words."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "nothing known")


def hint(word: str, known: Collection[str]) -> str:
    """A hint at what `word` was meant to be, or at what there is."""
    close = get_close_matches(word, known, 1)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"there is: {', '.join(known)}" if known else "there is none"


class Document:
    """A document that was read, the lines of its keys and the problems found so far."""

    def __init__(self, raw: bytes) -> None:
        """Raises nothing: a document that is no TOML is empty, and has that problem."""
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {}
        self._top: dict[str, Any] = {}
        text = self._decoded(raw)
        try:
            self._top = tomllib.loads(text)
            self._lines = lines_of(text)
        except tomllib.TOMLDecodeError as error:
            self._refuse(text, error)
        except RecursionError:
            self._top = {}
            self.problems.append(Problem(1, "", "too many brackets within one another"))

    def _decoded(self, raw: bytes) -> str:
        if len(raw) > BYTES_MAX:
            self.problems.append(Problem(1, "", f"longer than {BYTES_MAX} bytes"))
            return ""
        try:
            return raw.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            self.problems.append(Problem(line, "", "not UTF-8"))
            return ""

    def _refuse(self, text: str, error: tomllib.TOMLDecodeError) -> None:
        match = _AT_LINE.fullmatch(str(error))
        what = match["what"] if match else str(error)
        line = int(match["line"]) if match and match["line"] else len(text.splitlines()) or 1
        self.problems.append(Problem(line, "", f"no TOML: {what}"))

    @property
    def readable(self) -> bool:
        """Whether there is a document to be looked at."""
        return bool(self._lines) or not self.problems

    @property
    def top(self) -> Table:
        """The table that is the whole document."""
        return Table(self, (), self._top)

    def line(self, path: Path) -> int:
        """The line of a key, or of the table it is missing in."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def problem(self, path: Path, message: str) -> None:
        """Notes what is wrong with the value at `path`."""
        problem = Problem(self.line(path), dotted(path), message)
        if problem not in self.problems:
            self.problems.append(problem)


class Table:
    """A table of a document; what is asked of it is what it may have."""

    def __init__(self, document: Document, path: Path, values: dict[str, Any]) -> None:
        self.document = document
        self.path = path
        self._values = values
        self._asked: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def keys(self) -> Collection[str]:
        """The keys there are, in order."""
        return self._values.keys()

    def at(self, key: str) -> Path:
        """The path of a key."""
        return (*self.path, key)

    def value(self, key: str) -> object:
        """The value of a key, whatever it is; None where there is none."""
        self._asked[key] = None
        return self._values.get(key)

    def get(self, key: str, kind: type[T], default: T) -> T:
        """The value of a key, `default` where it is missing or not of this kind."""
        value = self.value(key)
        if value is None:
            return default
        if not _is(value, kind):
            wanted = next(words for known, words in _KINDS if known is kind)
            self.problem(key, f"must be {wanted}, is {kind_of(value)}")
            return default
        return value  # type: ignore[return-value]  # as `_is` says

    def need(self, key: str, kind: type[T], default: T) -> T:
        """As `get`, and missing it is a problem."""
        if key not in self._values:
            self.problem(key, "is missing")
        return self.get(key, kind, default)

    def strings(self, key: str) -> list[tuple[Path, str]]:
        """The strings of an array, with their paths."""
        found = []
        for number, value in enumerate(self.get(key, list, [])):
            path = (*self.at(key), number)
            if isinstance(value, str):
                found.append((path, value))
            else:
                self.document.problem(path, f"must be a string, is {kind_of(value)}")
        return found

    def table(self, key: str) -> Table:
        """The table below a key, an empty one where it is missing."""
        return Table(self.document, self.at(key), self.get(key, dict, {}))

    def tables(self, key: str) -> list[Table]:
        """The tables of an array of tables."""
        found = []
        for number, value in enumerate(self.get(key, list, [])):
            path = (*self.at(key), number)
            if isinstance(value, dict):
                found.append(Table(self.document, path, value))
            else:
                self.document.problem(path, f"must be a table, is {kind_of(value)}")
        return found

    def problem(self, key: str, message: str) -> None:
        """Notes what is wrong with the value of a key."""
        self.document.problem(self.at(key), message)

    def finish(self) -> None:
        """Complains of the keys that were not asked for."""
        for key in self._values:
            if key not in self._asked:
                self.problem(key, f"is no key here: {hint(key, self._asked)}")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
