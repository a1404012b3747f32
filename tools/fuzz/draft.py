"""A damaged image in the making: bytes, what is known of their structure, and generic damage.

Invariants: all chance is the `rng` of the draft.  A mutator may meet bytes that another one has
moved: it checks every place against the bytes as they are, and does nothing where it does not fit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Encoding = Literal["little", "big", "octal", "hex"]
Mutator = Callable[["Draft"], None]

BLOCK_BYTES: Final = 512
# What growing an image is bounded by.
_GROWTH_BYTES_MAX: Final = 64 * 1024
_FIELD_CHANCE: Final = 0.5
_BYTES: Final = (0x00, 0x01, 0x7F, 0x80, 0xFF)
_POWERS: Final = (8, 15, 16, 31, 32, 33, 63, 64)


@dataclass(frozen=True, slots=True)
class Field:
    """A number of `width` bytes at `offset`; `octal` and `hex` are digits."""

    offset: int
    width: int
    encoding: Encoding


@dataclass(frozen=True)
class Original:
    """A valid image: `name` among its format's, where its numbers are, and marks.

    `marks` are offsets and numbers by which mutators of one format know its structure.
    """

    name: str
    data: bytes
    fields: Sequence[Field] = ()
    marks: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Draft:
    """The bytes of `original` while they are changed.

    `moved` says that bytes were given another place, or come from elsewhere: a checksum that goes
    with them does not tell.
    """

    def __init__(self, original: Original, others: Sequence[Original], rng: random.Random) -> None:
        self.original = original
        self.others = others
        self.rng = rng
        self.data = bytearray(original.data)
        self.moved = False

    def place(self, width: int = 1) -> int:
        """Where to change `width` bytes: often a field's place."""
        last = max(0, len(self.data) - width)
        fields = self.original.fields
        if fields and self.rng.random() < _FIELD_CHANCE:
            return min(last, self.rng.choice(fields).offset)
        return self.rng.randint(0, last)

    def block(self) -> int:
        """Where a block begins."""
        return self.rng.randint(0, max(0, len(self.data) // BLOCK_BYTES - 1)) * BLOCK_BYTES

    def put(self, offset: int, raw: bytes) -> None:
        """Overwrites what is there, if it is."""
        if 0 <= offset <= len(self.data) - len(raw):
            self.data[offset : offset + len(raw)] = raw

    def insert(self, offset: int, raw: bytes) -> None:
        """Puts `raw` between what is there."""
        if len(self.data) + len(raw) <= len(self.original.data) + _GROWTH_BYTES_MAX:
            self.data[offset:offset] = raw
            self.moved = True

    def number(self) -> int:
        """A number that parsers stumble over."""
        rng, size = self.rng, len(self.data)
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randint(0, 40)
        if kind == 1:
            return max(0, rng.choice((size, size // BLOCK_BYTES)) + rng.randint(-2, 2))
        if kind == 2:
            return max(0, (1 << rng.choice(_POWERS)) + rng.choice((-1, 0, 1)))
        return rng.getrandbits(rng.choice((8, 16, 24, 32, 64)))


def encoded(value: int, width: int, encoding: Encoding) -> bytes:
    """`value` in a field of `width` bytes; what does not fit is cut."""
    if encoding == "octal":
        # The end of the field may be the end of the digits, a space or a NUL.
        return (b"%o" % value)[-width:].rjust(width, b"0")
    if encoding == "hex":
        return (b"%x" % value)[-width:].rjust(width, b"0")
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, encoding)


# Damage in place ----------------------------------------------------------------------------------


def flip_bits(draft: Draft) -> None:
    """One bit to eight, anywhere."""
    for _ in range(draft.rng.choice((1, 1, 1, 2, 8))):
        at = draft.place()
        if at < len(draft.data):
            draft.data[at] ^= 1 << draft.rng.randrange(8)


def set_bytes(draft: Draft) -> None:
    """A short run of one byte."""
    length = draft.rng.choice((1, 1, 2, 4, 8, 32))
    draft.put(draft.place(length), bytes([draft.rng.choice(_BYTES)]) * length)


def set_noise(draft: Draft) -> None:
    """A short run of any bytes."""
    length = draft.rng.choice((1, 2, 4, 16))
    draft.put(draft.place(length), draft.rng.randbytes(length))


def set_number(draft: Draft) -> None:
    """A number where none of that width need be."""
    width = draft.rng.choice((2, 4, 8, 11))
    encodings: tuple[Encoding, ...] = ("little", "big", "octal", "hex")
    encoding = draft.rng.choice(encodings)
    draft.put(draft.place(width), encoded(draft.number(), width, encoding))


def set_field(draft: Draft) -> None:
    """A number in a field of the format, or another field's bytes."""
    fields = draft.original.fields
    if not fields:
        return set_number(draft)
    chosen = draft.rng.choice(fields)
    same = [one for one in draft.rng.choices(fields, k=8) if one.width == chosen.width]
    if same and draft.rng.random() < 0.3:
        source = same[0].offset
        raw = bytes(draft.data[source : source + chosen.width])
    else:
        raw = encoded(draft.number(), chosen.width, chosen.encoding)
    return draft.put(chosen.offset, raw)


def adjust_field(draft: Draft) -> None:
    """A binary field a little more or less."""
    fields = [one for one in draft.original.fields if one.encoding in ("little", "big")]
    if not fields:
        return flip_bits(draft)
    chosen = draft.rng.choice(fields)
    raw = bytes(draft.data[chosen.offset : chosen.offset + chosen.width])
    order: Literal["little", "big"] = "big" if chosen.encoding == "big" else "little"
    value = int.from_bytes(raw, order) + draft.rng.choice((-2, -1, 1, 2, 8, -8))
    return draft.put(chosen.offset, encoded(value, chosen.width, order))


def zero_block(draft: Draft) -> None:
    """A block that was lost."""
    at = draft.block()
    draft.put(at, bytes(min(BLOCK_BYTES, len(draft.data) - at)))


def truncate(draft: Draft) -> None:
    """The end is missing."""
    at = draft.block() if draft.rng.random() < 0.3 else draft.place()
    del draft.data[at:]


def extend(draft: Draft) -> None:
    """Something follows."""
    length = draft.rng.choice((1, 3, BLOCK_BYTES, 2 * BLOCK_BYTES))
    draft.data += draft.rng.choice((bytes(length), draft.rng.randbytes(length)))


# Damage that moves bytes --------------------------------------------------------------------------


def _blocks(draft: Draft) -> tuple[int, int]:
    """A start and an end, mostly of whole blocks."""
    if draft.rng.random() < 0.7:
        start = draft.block()
        return start, min(len(draft.data), start + BLOCK_BYTES * draft.rng.choice((1, 1, 2, 4)))
    start = draft.place()
    return start, min(len(draft.data), start + draft.rng.choice((1, 4, 32, 64)))


def copy_over(draft: Draft) -> None:
    """A piece also stands where another one was."""
    start, end = _blocks(draft)
    target = draft.block() if draft.rng.random() < 0.7 else draft.place(end - start)
    draft.put(target, bytes(draft.data[start:end]))
    draft.moved = True


def duplicate(draft: Draft) -> None:
    """A piece comes twice."""
    start, end = _blocks(draft)
    target = draft.rng.choice((end, draft.block(), len(draft.data)))
    draft.insert(target, bytes(draft.data[start:end]))


def remove(draft: Draft) -> None:
    """A piece is missing."""
    start, end = _blocks(draft)
    del draft.data[start:end]
    draft.moved = True


def splice(draft: Draft) -> None:
    """From somewhere on, another image."""
    other = draft.rng.choice(draft.others).data
    at = draft.block() if draft.rng.random() < 0.7 else draft.place()
    source = at if draft.rng.random() < 0.5 else draft.rng.randint(0, len(other))
    del draft.data[at:]
    draft.insert(at, other[source : source + len(draft.original.data)])
    draft.moved = True


MUTATORS: Final[tuple[Mutator, ...]] = (
    flip_bits,
    set_bytes,
    set_noise,
    set_number,
    set_field,
    set_field,
    adjust_field,
    zero_block,
    truncate,
    extend,
    copy_over,
    duplicate,
    remove,
    splice,
)
