"""The index of an archive as a file: a cache, made anew whenever the archive may be another one.

Invariants:

* ``docs/spec/index.md`` says what every byte means; the file is replaced as a whole.
* An index is used only for the archive it was made of: the same length, modification time and
  digest of its first bytes.  Whatever else is wrong with the file, it is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.devices import MappedDevice, WindowDevice
from capstore.images.durable import replace_file
from capstore.images.records import BLOCK_BYTES, INDEX_HEADER
from capstore.images.tree import Finding
from capstore.schema import layout
from capstore.schema.errors import Corrupt, StorageError
from capstore.schema.limits import KIB

_MAGIC: Final = int(layout.indexMagic)
_VERSION: Final = int(layout.indexVersion)
_HEAD_BYTES: Final = 64 * KIB
_HASH_WORDS: Final = 4


@dataclass(frozen=True, slots=True)
class Source:
    """What an archive is recognised by: `size` in bytes, `modified` in ns since 1970, and the
    SHA-256 of its first 64 KiB."""

    size: int
    modified: int
    head: bytes

    @classmethod
    def of(cls, device: BlockDevice, modified: int) -> Source:
        """The archive on `device`; raises what reading it raises."""
        head = device.read(0, min(_HEAD_BYTES, device.size()))
        return cls(device.size(), modified, hashlib.sha256(head).digest())


@dataclass(frozen=True, slots=True)
class Index:
    """An index: the image with external data, what the pass could not serve (`dropped` counts
    findings that were not kept), and seek points."""

    device: BlockDevice
    view: memoryview
    findings: tuple[Finding, ...]
    dropped: int
    points: bytes


def index_path(folder: Path, archive: str | os.PathLike[str], kind: str) -> Path:
    """Where the index of `archive`, read as `kind`, is kept in `folder`."""
    word = os.fsencode(Path(archive).resolve()) + b"\0" + kind.encode()
    return folder / f"{hashlib.sha256(word).hexdigest()[:32]}.index"


def facts_of(findings: Sequence[Finding], dropped: int) -> bytes:
    """What the pass could not serve, as the file has it."""
    rows = [[found.where, found.message, found.offset] for found in findings]
    return json.dumps({"findings": rows, "dropped": dropped}).encode()


def _parsed_facts(raw: bytes) -> tuple[tuple[Finding, ...], int]:
    """The reverse of `facts_of`; raises `Corrupt`."""
    try:
        facts = json.loads(raw)
        findings = tuple(_finding(*row) for row in facts["findings"])
        return findings, operator.index(facts["dropped"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Corrupt("the index has facts that are none") from None


def _finding(where: object, message: object, offset: object) -> Finding:
    if not (isinstance(where, str) and isinstance(message, str)):
        raise TypeError
    return Finding(where, message, None if offset is None else operator.index(offset))  # type: ignore[arg-type]


def save_index(path: Path, source: Source, image: bytes, facts: bytes, points: bytes) -> None:
    """Writes the file.  Raises OSError, and `InvalidArgument` for a time that 64 bits do not
    hold."""
    body = image + facts + points
    header = INDEX_HEADER.pack(
        magic=_MAGIC,
        sourceBytes=source.size,
        sourceModified=source.modified,
        tableBlocks=len(image) // BLOCK_BYTES,
        factsBytes=len(facts),
        pointsBytes=len(points),
        bodySum=crc32c(body),
        version=_VERSION,
        **_hash_fields(source),
    )
    replace_file(path, header.ljust(BLOCK_BYTES, b"\0") + body)


def _hash_fields(source: Source) -> dict[str, int]:
    words = struct.unpack(f"<{_HASH_WORDS}Q", source.head)
    return {f"sourceHash{number}": words[number] for number in range(_HASH_WORDS)}


def load_index(path: Path, source: Source) -> Index | None:
    """The index of `source` that is kept at `path`; None where there is none that can be used."""
    with suppress(StorageError):
        device = MappedDevice.open(path)
        try:
            return _checked(device, source)
        except BaseException:
            device.close()
            raise
    return None


def _checked(device: MappedDevice, source: Source) -> Index:
    header = INDEX_HEADER.unpack(device.view[:BLOCK_BYTES], "the index header")
    expected = {"magic": _MAGIC, "version": _VERSION, "sourceBytes": source.size}
    expected |= {"sourceModified": source.modified} | _hash_fields(source)
    if any(getattr(header, name) != value for name, value in expected.items()):
        raise Corrupt("the index is of another archive")
    tables = header.tableBlocks * BLOCK_BYTES
    facts_at = BLOCK_BYTES + tables
    points_at = facts_at + header.factsBytes
    if points_at + header.pointsBytes != device.size():
        raise Corrupt("the index is cut off")
    if crc32c(device.view[BLOCK_BYTES:]) != header.bodySum:
        raise Corrupt("the index has a wrong checksum")
    findings, dropped = _parsed_facts(device.view[facts_at:points_at].tobytes())
    return Index(
        WindowDevice(device, BLOCK_BYTES, tables, owns=True),
        device.view[BLOCK_BYTES:facts_at],
        findings,
        dropped,
        device.view[points_at:].tobytes(),
    )
