"""FAT: names, short and long, and what is equal among them.

Invariants: functions of stored bytes alone.  A long name is None unless it is one whole set of
long entries, in order, that carries the checksum of the short entry behind it.

Source: fatgen103, "FAT Long Directory Entries"; code page 437 for short names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from capstore.schema.errors import InvalidName
from capstore.schema.names import check_name

_NT_LOWER_BASE: Final = 0x08
_NT_LOWER_EXTENSION: Final = 0x10
_BASE_BYTES: Final = 8
# The first byte of a name that begins with E5, which marks what was deleted.
_ESCAPED_E5: Final = 0x05


def short_name(raw: bytes, case: int = 0) -> str:
    """The name in a short entry's eleven bytes; `case` is the entry's NT byte.

    The result may be no name: forged entries hold anything.
    """
    if raw[0] == _ESCAPED_E5:
        raw = b"\xe5" + raw[1:]
    base = raw[:_BASE_BYTES].rstrip(b" ").decode("cp437")
    extension = raw[_BASE_BYTES:].rstrip(b" ").decode("cp437")
    if case & _NT_LOWER_BASE:
        base = _lower(base)
    if case & _NT_LOWER_EXTENSION:
        extension = _lower(extension)
    return f"{base}.{extension}" if extension else base


def _lower(text: str) -> str:
    # Character by character: `str.lower` looks at a sigma's neighbours.
    return text.lower() if text.isascii() else "".join(map(str.lower, text))


def long_name(raw: bytes) -> str | None:
    """The name in the units of a set of long entries, first unit first; None if it is none.

    What follows the terminating zero is padding, whatever it is.
    """
    try:
        text = raw.decode("utf-16-le")
    except UnicodeDecodeError:
        # The padding behind the name may be what is no UTF-16.
        units = raw[: len(raw) & ~1]
        end = next((at for at in range(0, len(units), 2) if units[at : at + 2] == b"\0\0"), None)
        try:
            text = units[:end].decode("utf-16-le")
        except UnicodeDecodeError:
            return None
    text = text.partition("\0")[0]
    return text if is_name(text) else None


def is_name(text: str) -> bool:
    """Whether `text` is a name (`capstore.schema.names`)."""
    try:
        check_name(text)
    except InvalidName:
        return False
    return True


def folded(name: str) -> str:
    """What names that FAT holds for the same have in common: each UTF-16 unit in upper case."""
    return name.upper() if name.isascii() else "".join(map(_upper, name))


@lru_cache(maxsize=4096)
def _upper(char: str) -> str:
    """The simple upper-case mapping of one character, itself outside of the BMP.

    `str.upper` has the full mapping (two letters for a sharp s).  Where that is longer, the simple
    one is the title case, or there is none.
    """
    if char > "\uffff":
        return char
    for mapped in (char.upper(), char.title()):
        if len(mapped) == 1:
            return mapped if mapped <= "\uffff" else char
    return char
