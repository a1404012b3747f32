"""Fixed-size records of ``layout.capnp``: where each field is comes from the compiled schema.

Invariants:

* A record is the data section of a struct without pointers, booleans and groups, so that every
  field is a whole number of bytes at a fixed offset; the last four bytes are its `crc`.
* Nothing that was packed is written unless it unpacks to what it was packed from, and nothing that
  was read is used unless its `crc` fits (`Corrupt`).

Source: the encoding of Cap'n Proto structs, https://capnproto.org/encoding.html#structs.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capstore.images.checksums import seal_of, seals_of
from capstore.schema import layout
from capstore.schema.errors import Corrupt, InvalidArgument
from capstore.schema.nodes import Buffer

_WORD_BYTES: Final = 8
_CRC: Final = "crc"
# By the schema's name of a type: its format in `struct` and numpy, and its width.
_TYPES: Final = {
    "uint8": ("B", "u1", 1),
    "uint16": ("H", "u2", 2),
    "enum": ("H", "u2", 2),
    "uint32": ("I", "u4", 4),
    "uint64": ("Q", "u8", 8),
    "int8": ("b", "i1", 1),
    "int16": ("h", "i2", 2),
    "int32": ("i", "i4", 4),
    "int64": ("q", "i8", 8),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `offset` and `width` in bytes, `type` as the schema calls it."""

    name: str
    type: str
    offset: int
    width: int


def _format(fields: Sequence[Field], size: int) -> str:
    """What `struct` calls a record of `size` bytes with `fields` in it."""
    parts, at = ["<"], 0
    for field in fields:
        parts.append("x" * (field.offset - at) + _TYPES[field.type][0])
        at = field.offset + field.width
    return "".join(parts) + "x" * (size - at)


class Record:
    """The codec of one record; `schema` is a struct of ``layout.capnp``.

    `size` is in bytes, `fields` are in the order of their offsets, `dtype` describes a table of
    records to numpy.
    """

    def __init__(self, schema: Any) -> None:
        node = schema.schema.node
        self.name: str = node.displayName.rpartition(":")[2]
        self.size: int = node.struct.dataWordCount * _WORD_BYTES
        if node.struct.pointerCount:
            raise TypeError(f"{self.name} has pointers")
        fields = sorted(map(self._field, node.struct.fields), key=lambda field: field.offset)
        self.fields: tuple[Field, ...] = tuple(fields)
        if (last := fields[-1]).name != _CRC or last.offset + last.width != self.size:
            raise TypeError(f"{self.name} does not end with its crc")
        self.dtype: npt.DTypeLike = np.dtype(
            {
                "names": [field.name for field in fields],
                "formats": ["<" + _TYPES[field.type][1] for field in fields],
                "offsets": [field.offset for field in fields],
                "itemsize": self.size,
            }
        )
        self._struct = struct.Struct(_format(self.fields, self.size))
        names = [field.name for field in fields]
        self._single = {
            field.name: (struct.Struct("<" + _TYPES[field.type][0]), field.offset)
            for field in fields
        }
        self._tuple: Any = namedtuple(self.name, names)  # type: ignore[misc]  # noqa: PYI024 - data

    def __repr__(self) -> str:
        return f"Record({self.name}, {self.size} bytes)"

    def _field(self, field: Any) -> Field:
        kind = str(field.slot.type.which()) if str(field.which()) == "slot" else "group"
        if kind not in _TYPES:
            raise TypeError(f"{self.name}.{field.name} is a {kind}, which no record has")
        width = _TYPES[kind][2]
        return Field(str(field.name), kind, field.slot.offset * width, width)

    # One record ----------------------------------------------------------------------------------

    def pack(self, **values: int) -> bytes:
        """A sealed record of `values`; fields that are not named are zero.

        Raises `InvalidArgument` for a value that its field cannot hold, TypeError for a name that
        is none.
        """
        row = [values.pop(field.name, 0) for field in self.fields[:-1]]
        if values:
            raise TypeError(f"{self.name} has no {', '.join(values)}")
        try:
            raw = self._struct.pack(*row, 0)
        except struct.error as error:
            raise InvalidArgument(f"{self.name}: {error}") from None
        sealed = raw[:-4] + seal_of(raw[:-4]).to_bytes(4, "little")
        if self.unpack(sealed, self.name)[:-1] != tuple(row):
            raise InvalidArgument(f"{self.name} does not read back as it was written")
        return sealed

    def unpack(self, data: Buffer, what: str, offset: int = 0) -> Any:
        """The record that begins `data`, as a named tuple.

        Raises `Corrupt`, which calls it `what` at `offset` of the image, unless its seal fits.
        """
        raw = bytes(data[: self.size])
        if len(raw) < self.size:
            raise Corrupt(f"{what} at offset {offset} is cut off")
        if seal_of(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise Corrupt(f"{what} at offset {offset} has a wrong checksum")
        return self._tuple._make(self._struct.unpack(raw))

    def unpack_all(self, data: bytes, what: str, offset: int = 0) -> list[Any]:
        """The records that `data`, a whole number of them, consists of; raises as `unpack`."""
        rows = [self._tuple._make(row) for row in self._struct.iter_unpack(data)]
        body = self.size - 4
        for at, row in zip(range(0, len(data), self.size), rows, strict=True):
            if seal_of(data[at : at + body]) != row[-1]:
                raise Corrupt(f"{what} at offset {offset + at} has a wrong checksum")
        return rows

    def view(self, data: Buffer, offset: int = 0) -> Any:
        """The record at `offset` of `data`, whose seal was checked before."""
        return self._tuple._make(self._struct.unpack_from(data, offset))

    def rows_of(self, data: Buffer) -> Iterator[tuple[int, ...]]:
        """The values of each record of `data`, a whole number of them, in the order of `fields`;
        their seals are not looked at."""
        return self._struct.iter_unpack(data)

    @property
    def values_at(self) -> Callable[[Buffer, int], tuple[int, ...]]:
        """As `view`, at its fastest: the values in the order of `fields`."""
        return self._struct.unpack_from

    def sealer(self, *names: str) -> Callable[..., bytes]:
        """A faster `pack` for many records: takes the values of the fields `names`, in the order
        of their offsets; the others are zero.  What it returns raises `InvalidArgument` for a value
        that its field cannot hold."""
        layout, body = self.packer(*names), self.size - 4

        def sealed(*values: int) -> bytes:
            try:
                raw = layout.pack(*values)[:body]
            except struct.error as error:
                raise InvalidArgument(f"{self.name}: {error}") from None
            return raw + seal_of(raw).to_bytes(4, "little")

        return sealed

    # A record that is being made, in a table of such ------------------------------------------

    def packer(self, *names: str) -> struct.Struct:
        """Packs values of the fields `names`, in the order of their offsets, into a record whose
        other fields are zero and whose seal is for `seal` to add."""
        chosen = [field for field in self.fields if field.name in names]
        if [field.name for field in chosen] != list(names):
            raise TypeError(f"{self.name} has no such fields in this order: {names}")
        return struct.Struct(_format(chosen, self.size))

    def put(self, table: bytearray, offset: int, **values: int) -> None:
        """Changes fields of the record at `offset`; raises `InvalidArgument`."""
        try:
            for name, value in values.items():
                field, at = self._single[name]
                field.pack_into(table, offset + at, value)
        except struct.error as error:
            raise InvalidArgument(f"{self.name}: {error}") from None

    def get(self, table: bytearray, offset: int, name: str) -> int:
        """A field of the record at `offset`."""
        field, at = self._single[name]
        return int(field.unpack_from(table, offset + at)[0])

    # Tables --------------------------------------------------------------------------------------

    def table(self, data: Buffer) -> npt.NDArray[Any]:
        """The records of `data` in place, as a structured array; their seals are not looked at.

        Raises `Corrupt` when `data` is no whole number of records.
        """
        if len(data) % self.size:
            raise Corrupt(f"a table of {self.name} is cut off")
        return np.frombuffer(data, self.dtype)

    def seal(self, table: npt.NDArray[Any]) -> bytes:
        """The bytes of `table`, a contiguous array of `dtype`, each record with its `crc`."""
        raw = np.frombuffer(table.tobytes(), np.uint8).reshape(-1, self.size).copy()
        raw[:, -4:] = self._seals(raw).view(np.uint8).reshape(-1, 4)
        return raw.tobytes()

    def unsealed(self, data: Buffer) -> npt.NDArray[np.int64]:
        """The indices of those records in `data` whose seals do not fit."""
        raw = np.frombuffer(data, np.uint8).reshape(-1, self.size)
        found = np.ascontiguousarray(raw[:, -4:]).view("<u4").reshape(-1)
        return np.flatnonzero(found != self._seals(raw))

    def _seals(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        body = self.size - 4
        data, step = raw.tobytes(), self.size
        seals = seals_of([data[at : at + body] for at in range(0, len(data), step)])
        return seals.astype("<u4", copy=False)


RO1_SUPERBLOCK: Final = Record(layout.Ro1Superblock)
RO1_NODE: Final = Record(layout.Ro1Node)
RO1_ENTRY: Final = Record(layout.Ro1Entry)
RO1_EXTENT: Final = Record(layout.Ro1Extent)
INDEX_HEADER: Final = Record(layout.IndexHeader)
WF1_SUPERBLOCK: Final = Record(layout.Wf1Superblock)
WF1_CHECKPOINT: Final = Record(layout.Wf1Checkpoint)
WF1_FRAME: Final = Record(layout.Wf1Frame)
WF1_NODE: Final = Record(layout.Wf1Node)
WF1_ENTRY: Final = Record(layout.Wf1Entry)
WF1_EXTENT: Final = Record(layout.Wf1Extent)
ST1_SUPERBLOCK: Final = Record(layout.St1Superblock)
ST1_TABLE: Final = Record(layout.St1Table)
ST1_FRAME: Final = Record(layout.St1Frame)
ST1_ENTRY: Final = Record(layout.St1Entry)
ST1_PART: Final = Record(layout.St1Part)
ST1_BINDING: Final = Record(layout.St1Binding)

BLOCK_BYTES: Final = int(layout.blockBytes)


def blocks_of(length: int) -> int:
    """How many blocks hold `length` bytes."""
    return -(-length // BLOCK_BYTES)
