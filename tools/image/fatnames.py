"""Names that mtools does not write as they are, and names to stand in for them.

Invariants: a stand-in has as many UTF-16 units as the name and is stored as a long name, so the
name can be written over it in place.  No plain name is ever a stand-in.  The short names that
mtools makes are no names of others, if those that could be (`looks_made`) are there before it
makes any.

mtools 4.0 writes a name that is no ASCII but fits 8.3 as a short name in the code page only, with
the case lost where the code page has no upper-case letter; drops what is beyond the basic plane;
refuses names of DOS's devices; and takes brackets in a target for a pattern.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9 !#$%&'()@^`{}~_.,;=-][A-Za-z0-9 !#$%&'()@^`{}~_.,;=+-]*")
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|clock\$|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MADE: Final = re.compile(r"(?=.*~|_+$)[^. ]{1,8}(\.[^. ]{1,3})?")

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
# From here on, letters of which no code page of DOS has an approximation.
_IDEOGRAPHS: Final = "".join(map(chr, range(0x4E00, 0x9F00)))
_SHORT_UNITS: Final = 4


def is_plain(name: str) -> bool:
    """Whether mtools writes the name as it is."""
    return _PLAIN.fullmatch(name) is not None and _DEVICE.fullmatch(name) is None


def looks_made(name: str) -> bool:
    """Whether mtools could make such a short name for another one."""
    return is_plain(name) and _MADE.fullmatch(name) is not None


def stand_in(name: str, number: int) -> str:
    """A name of as many units as `name`, another one for each `number` (below 20,000 for a name of
    one unit, with more units far beyond what a directory holds)."""
    units = len(name.encode("utf-16-le")) // 2
    if units <= _SHORT_UNITS:
        return _in_digits(number, units, _IDEOGRAPHS)
    # A plus is what no short name holds: it makes a long one necessary.
    return "+" + _in_digits(number, units - 1, _DIGITS)


def _in_digits(number: int, width: int, digits: str) -> str:
    text = ""
    for _ in range(width):
        number, digit = divmod(number, len(digits))
        text = digits[digit] + text
    return text
