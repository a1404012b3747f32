"""Building a tar archive: ustar headers, and pax headers before them where those do not suffice.

Invariants: everything belongs to root; files have mode 0644 or 0755, directories 0755, symbolic
links 0777.  A pax header says a path that is long or not ASCII, a time that is not in whole
seconds from 1970, and a size over 8 GiB; nothing else needs one.  Names are written as the bytes
they stand for (`capstore.schema.names`).

Source: POSIX.1-2017 ``pax``; ``hdrcharset=BINARY`` marks what is no UTF-8, as libarchive has it.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from capstore.images.builder import Facts, Path, TreeBuilder, check_named, check_target
from capstore.images.tar_header import OCTAL_MAX, ZERO_BLOCK, padded, ustar_header
from capstore.images.tar_output import Output, stored_bytes, stored_path
from capstore.images.tar_pax import pax_record, time_text
from capstore.schema.errors import Unsupported
from capstore.schema.limits import PAX_BYTES_MAX
from capstore.schema.nodes import Buffer

_FIELD_BYTES: Final = 100
_PAX_NAME: Final = b"././@PaxHeader"
_SECOND: Final = 1_000_000_000


class TarBuilder(TreeBuilder):
    """Writes an archive to `stream`, which stays open; putting it in place is the caller's."""

    def __init__(self, stream: BinaryIO) -> None:
        self._output = Output(stream)

    def directory(self, path: Path, facts: Facts) -> None:
        self._member(b"5", path, facts, mode=0o755)

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        check_named(path)
        mode = 0o755 if facts.executable else 0o644
        self._member(b"0", path, facts, mode=mode, size=size)
        self._output.begin(size, padded(size) - size)

    def write(self, data: Buffer) -> None:
        self._output.content(data)

    def end_file(self) -> None:
        self._output.end()

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        check_target(path, target)
        self._member(b"2", path, facts, mode=0o777, link=stored_bytes(target, path))

    def link(self, path: Path, original: Path) -> None:
        check_named(path)
        self._member(b"1", path, Facts(), mode=0o644, link=stored_path(original))

    def finish(self) -> None:
        self._output.write(2 * ZERO_BLOCK)
        self._output.flush()

    def abort(self) -> None:
        """Nothing is kept that would have to be dropped."""

    def _member(
        self,
        flag: bytes,
        path: Path,
        facts: Facts,
        *,
        mode: int,
        size: int = 0,
        link: bytes = b"",
    ) -> None:
        name = stored_path(path)
        if flag == b"5":
            name = name + b"/" if name else b"./"
        payload = _extension(name, link, size, facts.modified)
        if len(payload) > PAX_BYTES_MAX:
            raise Unsupported(f'"{path[-1]}" has too long a path for a tar archive')
        if payload:
            block = ustar_header(b"x", _PAX_NAME, mode=0o644, size=len(payload))
            self._output.write(block + payload.ljust(padded(len(payload)), b"\0"))
        seconds = facts.modified // _SECOND
        self._output.write(
            ustar_header(flag, name, mode=mode, size=size, seconds=seconds, link=link)
        )


def _extension(name: bytes, link: bytes, size: int, modified: int) -> bytes:
    """The records of the pax header that a member needs; empty if it needs none."""
    texts = {key: text for key, text in (("path", name), ("linkpath", link)) if _is_long(text)}
    records = [pax_record(key, text) for key, text in texts.items()]
    if not all(_is_utf8(text) for text in texts.values()):
        records.insert(0, pax_record("hdrcharset", b"BINARY"))
    if modified % _SECOND or not 0 <= modified // _SECOND <= OCTAL_MAX:
        records.append(pax_record("mtime", time_text(modified).encode()))
    if size > OCTAL_MAX:
        records.append(pax_record("size", b"%d" % size))
    return b"".join(records)


def _is_long(text: bytes) -> bool:
    return len(text) > _FIELD_BYTES or not text.isascii()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
