"""Records of pax headers, and what such headers say about a member.

Invariants: a header that is not well formed to its last byte is `Corrupt` as a whole: a part of
it is never believed.  Times are integers all the way.

Source: POSIX.1-2017 ``pax``, "pax Extended Header"; the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from capstore.schema.errors import Corrupt

_INT64_MAX: Final = (1 << 63) - 1
_LENGTH: Final = re.compile(rb"([0-9]{1,9}) ")
_DECIMAL: Final = re.compile(rb"[0-9]{1,19}")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")

Keywords = dict[bytes, bytes]


def pax_record(key: str, value: bytes) -> bytes:
    """One record: length (which counts itself), keyword, value, newline."""
    body = b" %s=%s\n" % (key.encode(), value)
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d%s" % (length, body)


def time_text(nanoseconds: int) -> str:
    """A time as pax has it, in seconds with a fraction."""
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09}"


def parse_time(text: bytes) -> int | None:
    """Nanoseconds since 1970, rounded down; None for what is no time or does not fit 64 bits."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    fraction = match[3] or b""
    value = int(match[2]) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    if match[1]:
        value = -value - (1 if fraction[9:].strip(b"0") else 0)
    return value if -_INT64_MAX <= value <= _INT64_MAX else None


def parse_decimal(text: bytes, what: str) -> int:
    """A number that is not negative and fits 64 bits; raises `Corrupt`, naming `what`."""
    value = int(text) if _DECIMAL.fullmatch(text) else -1
    if not 0 <= value <= _INT64_MAX:
        raise Corrupt(f"{what} is no number")
    return value


def parse_records(payload: bytes) -> Keywords:
    """The records of a pax header; of a keyword that comes again the last value counts.

    The pairs of ``GNU.sparse.offset`` and ``GNU.sparse.numbytes`` (format 0.0) become one
    ``GNU.sparse.map`` as format 0.1 has it.  Raises `Corrupt`.
    """
    keywords: Keywords = {}
    pairs: list[bytes] = []
    for key, value in _records(payload):
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) % 2] or b"," in value:
                raise Corrupt("a sparse map in a pax header is out of order")
            pairs.append(value)
        else:
            keywords[key] = value
    if pairs:
        keywords[b"GNU.sparse.map"] = b",".join(pairs)
    return keywords


def _records(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(payload) and payload[at]:
        match = _LENGTH.match(payload, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload) or payload[end - 1] != ord("\n"):
            raise Corrupt(f"a pax header has a broken record at byte {at}")
        key, equals, value = payload[match.end() : end - 1].partition(b"=")
        if not key or not equals:
            raise Corrupt(f"a pax header has a record without keyword at byte {at}")
        yield key, value
        at = end
    if payload[at:].strip(b"\0"):
        raise Corrupt(f"a pax header has a broken record at byte {at}")
