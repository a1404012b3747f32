"""Names of directory entries: what is one, and how bytes that are no UTF-8 become one.

Invariants:

* A name is 1 to 255 bytes of UTF-8 without ``/`` and NUL, and neither ``.`` nor ``..``.
* `from_bytes` and `to_bytes` are inverse to each other wherever both are defined.  A byte that is
  not part of valid UTF-8 is shown as one character of U+EF80 to U+EFFF (the byte plus 0xEF00, as
  MirBSD's OPTU-8 has it).  A character of that range that stands in the stored bytes as itself is
  shown byte by byte, so two stored names never look alike; a name that claims to be escaped and is
  not what escaping gives is refused.
"""

from __future__ import annotations

import re

from capstore.schema.errors import InvalidName
from capstore.schema.limits import NAME_BYTES_MAX

_ESCAPE_BASE = 0xEF00
_ESCAPES = range(0xEF80, 0xF000)
# A character of that range as it is stored: its first byte begins no other one.
_STORED_ESCAPE = re.compile(rb"\xee[\xbe\xbf][\x80-\xbf]")
# What Python makes of bad bytes, and what is made of that here.
_SURROGATES = {0xDC00 + byte: _ESCAPE_BASE + byte for byte in range(0x80, 0x100)}


def check_name(name: str) -> str:
    """`name` itself if it is one, else raises `InvalidName`."""
    if not name or name in (".", ".."):
        raise InvalidName('a name is not empty, "." or ".."')
    if "/" in name or "\0" in name:
        raise InvalidName('a name holds no "/" and no NUL')
    if len(name) * 4 > NAME_BYTES_MAX or not name.isascii():
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise InvalidName("a name is valid UTF-8") from None
        if size > NAME_BYTES_MAX:
            raise InvalidName(f"a name has at most {NAME_BYTES_MAX} bytes")
    return name


def from_bytes(raw: bytes) -> str:
    """The name that stands for the stored bytes `raw`, escaped where they are no UTF-8.

    The result may be longer than a name may be: what it names then cannot be reached.
    """
    if raw.isascii():
        return raw.decode("ascii")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return _escaped(raw)
    return _escaped(raw) if _holds_escapes(text) else text


def _holds_escapes(text: str) -> bool:
    return any(ord(char) in _ESCAPES for char in text)


def _escaped(raw: bytes) -> str:
    """Decodes; escapes bad bytes, and the bytes of characters of the escape range."""
    pieces: list[str] = []
    at = 0
    for match in _STORED_ESCAPE.finditer(raw):
        pieces.append(_decoded(raw[at : match.start()]))
        pieces.extend(chr(_ESCAPE_BASE + byte) for byte in match[0])
        at = match.end()
    pieces.append(_decoded(raw[at:]))
    return "".join(pieces)


def _decoded(raw: bytes) -> str:
    """`raw` with each bad byte escaped."""
    return raw.decode("utf-8", "surrogateescape").translate(_SURROGATES)


def to_bytes(name: str) -> bytes:
    """The stored bytes that `name` stands for; raises `InvalidName` where it stands for none."""
    if name.isascii():
        return name.encode("ascii")
    try:
        raw = b"".join(
            bytes([ord(char) - _ESCAPE_BASE]) if ord(char) in _ESCAPES else char.encode()
            for char in name
        )
    except UnicodeEncodeError:
        raise InvalidName("a name is valid UTF-8") from None
    if _holds_escapes(name) and from_bytes(raw) != name:
        raise InvalidName("the name uses the escape range for bytes that need no escape")
    return raw
