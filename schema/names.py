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

from capstore.schema.errors import InvalidName
from capstore.schema.limits import NAME_BYTES_MAX

_ESCAPE_BASE = 0xEF00
_ESCAPES = range(0xEF80, 0xF000)


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
    """Decodes character by character; escapes bad bytes, and characters of the escape range."""
    pieces: list[str] = []
    at = 0
    while at < len(raw):
        step, char = _first_character(raw[at : at + 4])
        if char is None or ord(char) in _ESCAPES:
            pieces.extend(chr(_ESCAPE_BASE + byte) for byte in raw[at : at + step])
        else:
            pieces.append(char)
        at += step
    return "".join(pieces)


def _first_character(raw: bytes) -> tuple[int, str | None]:
    """How many bytes the first character of `raw` takes, and the character; None for a bad byte."""
    for width in range(1, len(raw) + 1):
        try:
            return width, raw[:width].decode()
        except UnicodeDecodeError:
            continue
    return 1, None


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
