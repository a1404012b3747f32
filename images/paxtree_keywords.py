"""The keywords of a saved tree's pax headers: what they may say.

Invariants: each keyword is taken once and none is left over; whatever the bytes are, the outcome
is a value in range or `Corrupt`.
"""

from __future__ import annotations

import re
from typing import Final

from capstore.schema.errors import Corrupt

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,19})", re.ASCII)
_TIME: Final = re.compile(r"(-?)([0-9]{1,10})\.([0-9]{9})", re.ASCII)


class Keywords:
    """The records of a pax header; each is taken once, and none may be left over."""

    def __init__(self, payload: bytes) -> None:
        self._values: dict[str, str] = {}
        at = 0
        while at < len(payload):
            at = self._take_record(payload, at)

    def _take_record(self, payload: bytes, at: int) -> int:
        match = re.compile(rb"([1-9][0-9]{0,5}) ").match(payload, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload) or payload[end - 1] != ord("\n"):
            raise Corrupt("a broken record in a pax header")
        try:
            key, equals, value = payload[match.end() : end - 1].decode().partition("=")
        except UnicodeDecodeError:
            raise Corrupt("a pax header that is no UTF-8") from None
        if not equals or key in self._values:
            raise Corrupt("a broken or repeated keyword in a pax header")
        self._values[key] = value
        return end

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str:
        try:
            return self._values.pop(key)
        except KeyError:
            raise Corrupt("a header lacks a keyword") from None

    def integer(self, key: str, bits: int = 63) -> int:
        text = self.text(key)
        if not _INTEGER.fullmatch(text) or not -(2**bits) <= int(text) < 2**bits:
            raise Corrupt("a number that is none")
        return int(text)

    def number(self, key: str, bits: int = 63) -> int:
        value = self.integer(key, bits)
        if value < 0:
            raise Corrupt("a negative number")
        return value

    def mark(self, key: str, bits: int = 63) -> int:
        """A number that is left out where it is 0."""
        if not self.has(key):
            return 0
        value = self.number(key, bits)
        if not value:
            raise Corrupt("a mark that says nothing")
        return value

    def hexadecimal(self, key: str) -> bytes:
        text = self.text(key)
        if not re.fullmatch(r"(?:[0-9a-f]{2})+", text, re.ASCII):
            raise Corrupt("an id that is none")
        return bytes.fromhex(text)

    def time(self, key: str) -> int:
        match = _TIME.fullmatch(self.text(key))
        if match is None:
            raise Corrupt("a time that is none")
        value = int(match[2]) * 10**9 + int(match[3])
        value = -value if match[1] else value
        if not -(2**63) <= value < 2**63:
            raise Corrupt("a time out of range")
        return value

    def end(self) -> None:
        if self._values:
            raise Corrupt("an unknown keyword in a pax header")
