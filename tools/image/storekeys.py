"""Keys of objects as text, and as paths of files.

Invariants: two keys never have the same text, nor the same path; a path leads nowhere but below the
directory that it is used in.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from capstore.images import st1
from capstore.schema.errors import InvalidName
from capstore.schema.limits import IMAGE_DEPTH_MAX
from capstore.schema.names import check_name, to_bytes

# The names, as a filesystem has them, that lead to a file.
Place = tuple[bytes, ...]

# What holds the files of keys that are no paths.
HEX_FOLDER: Final = ".hex"
# A file's name has at most 255 bytes, and a key twice as many digits as it has bytes.
_DIGITS_MAX: Final = 240
# Ends the name of a directory of digits, so that it is that of no file of fewer digits.
_GOES_ON: Final = "+"


def escaped(key: bytes) -> str:
    r"""A key as one printable word of a line: what is no printable UTF-8 is ``\xNN``, and a
    backslash is two."""
    text = key.decode("utf-8", "surrogateescape")
    return "".join(char if _is_plain(char) else _escape(char) for char in text)


def _is_plain(char: str) -> bool:
    return char.isprintable() and char != "\\"


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def text_of(stored: bytes, *, hashed: bool) -> str:
    """What is under a stored key as a word of a line: content by its hash, a name by the path that
    it was made of."""
    key = stored[1:]
    if stored.startswith(st1.NAMES):
        return escaped(b"/".join(path_of_name(key) or (key,)))
    return key.hex() if hashed else escaped(key)


def key_json(key: bytes, *, hashed: bool) -> dict[str, str | None]:
    """A key as JSON shows it: ``key`` is null for what is no text, or a hash."""
    text = None
    if not hashed:
        with suppress(UnicodeDecodeError):
            text = key.decode()
    return {"key": text, "hex": key.hex()}


def path_of(key: bytes) -> Place | None:
    """The path that a key is; None for one that is none."""
    try:
        names = [check_name(name) for name in key.decode().split("/")]
    except (InvalidName, UnicodeDecodeError):
        return None
    # Compared as a filesystem may that knows no case.
    if len(names) > IMAGE_DEPTH_MAX or names[0].casefold() == HEX_FOLDER:
        return None
    return tuple(name.encode() for name in names)


def path_of_name(name: bytes) -> Place | None:
    """As `path_of`, of the path of a name: bytes that are no UTF-8 are escaped in names."""
    place = path_of(name)
    try:
        return None if place is None else tuple(to_bytes(part.decode()) for part in place)
    except InvalidName:
        return None


def hex_path_of(key: bytes) -> Place:
    """The path of digits that every key has."""
    digits = key.hex()
    starts = range(0, len(digits), _DIGITS_MAX)
    *parts, last = (digits[at : at + _DIGITS_MAX] for at in starts)
    return tuple(part.encode() for part in (HEX_FOLDER, *(p + _GOES_ON for p in parts), last))
