"""On which line of a TOML document each of its keys stands.

Invariants:

* The document is one that `tomllib` accepts (TOML 1.0; of 1.1 also line breaks in inline tables).
  So nothing here decides what is valid, and the values are `tomllib`'s: this finds places, and
  finds one for every key and every item of an array there.
* A path is the keys from the top, with the index of an item where there is an array.

`tomllib` keeps no positions, and a parser that does is not at hand: the ones there are for Python
are not maintained any more, or would be a compiled grammar of which only the tokens were used.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Final

__all__ = ["Path", "lines_of"]

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*+")
_BLANK_IN_LINE: Final = re.compile(r"[ \t]*+")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*+'{3,5}"
    r'|"(?:[^"\\]|\\.)*+"'
    r"|'[^']*+'",
    re.DOTALL,
)
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
# Numbers, booleans and dates; a date may have a blank in it.
_PLAIN: Final = re.compile(r"[^,\]}#\r\n]+")


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, of every key and every item of an array, by path.

    A table stands where its header does, or else where it is first spoken of.  Raises
    RecursionError for arrays and inline tables too deep within one another.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    """Goes through a document once; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._at = 0
        # How many items an array of tables has so far.
        self._items: dict[Path, int] = {}
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        """Notes the lines of the whole document."""
        table: Path = ()
        while self._next():
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    # Tables --------------------------------------------------------------------------------------

    def _header(self) -> Path:
        """The path of the table that a header opens."""
        line = self._line()
        of_array = self._text.startswith("[[", self._at)
        self._at += 1 + of_array
        *above, last = self._keys()
        self._at += 1 + of_array
        path: Path = ()
        for key in above:
            path = self._noted((*path, key), line)
        path = (*path, last)
        if of_array:
            self._items[path] = self._items.get(path, 0) + 1
            return self._noted(path, line)
        self.lines[path] = line
        return path

    def _noted(self, path: Path, line: int) -> Path:
        """Notes a table, unless it was before; its path, of an array that of its last item."""
        self.lines.setdefault(path, line)
        if path in self._items:
            path = (*path, self._items[path] - 1)
            self.lines.setdefault(path, line)
        return path

    def _pair(self, path: Path) -> None:
        """Passes ``key = value`` in the table `path`."""
        line = self._line()
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        # Behind the keys is the equals sign.
        self._at += 1
        self._pass(_BLANK_IN_LINE)
        self._value(path)

    # Keys and values -----------------------------------------------------------------------------

    def _keys(self) -> list[str]:
        """The keys that dots join, and passes the blanks behind them."""
        keys: list[str] = []
        while True:
            self._pass(_BLANK_IN_LINE)
            quoted = self._text[self._at] in "\"'"
            token = self._pass(_STRING if quoted else _BARE_KEY)
            keys.append(tomllib.loads(f"key = {token}")["key"] if quoted else token)
            self._pass(_BLANK_IN_LINE)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._pass(_STRING if first in "\"'" else _PLAIN)

    def _array(self, path: Path) -> None:
        self._at += 1
        count = 0
        while self._next_item("]"):
            self.lines[*path, count] = self._line()
            self._value((*path, count))
            count += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._next_item("}"):
            self._pair(path)

    # Characters ----------------------------------------------------------------------------------

    def _next_item(self, end: str) -> bool:
        """Goes on to the next item, or behind the `end`; whether there is one."""
        self._next()
        if self._text[self._at] == ",":
            self._at += 1
            self._next()
        if self._text[self._at] == end:
            self._at += 1
            return False
        return True

    def _next(self) -> bool:
        """Passes blanks, line breaks and comments; whether anything follows."""
        self._pass(_BLANK)
        return self._at < len(self._text)

    def _pass(self, token: re.Pattern[str]) -> str:
        match = token.match(self._text, self._at)
        assert match is not None, "tomllib has accepted it"  # noqa: S101
        self._at = match.end()
        return match[0]

    def _line(self) -> int:
        return bisect_right(self._ends, self._at - 1) + 1
