"""How a PyFilesystem2 filesystem's names and resource information are read.

Invariants:

* Whatever a filesystem says of a resource is checked before use: a value of another type or out of
  range counts as not recorded.  Times are floating point seconds there; what is made of them is
  rounded to microseconds, which is what is left of them.
* A stored name is shown as it is, or escaped (`capstore.schema.names`) where it holds surrogates,
  by which Python shows bytes that are no UTF-8.  What is no name at all (empty, ``.``, ``..``, with
  ``/`` or NUL, not encodable) is not listed, for nothing could be done with it.
* Where a filesystem tells of links themselves (the namespace ``lstat``), all that is told of any
  entry is of the entry itself and never of what a link points to.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from fs.base import FS
from fs.enums import ResourceType
from fs.ftpfs import FTPFS
from fs.info import Info
from fs.memoryfs import MemoryFS
from fs.wrapfs import WrapFS
from fs.zipfs import ReadZipFS

from capstore.backers.node import NodeKind, Provenance
from capstore.schema.names import check_name, from_bytes, to_bytes

_INT64: Final = range(-(1 << 63), 1 << 63)
_LINK_NAMESPACES: Final = ("link", "lstat")
# The details of a member whose date is none (many are of day 0 in month 0) are an exception.
_ZIP_NAMESPACES: Final = ("zip", "access")
_NAMESPACES: Final = ("details", "access", "link")
_KINDS: Final = {
    modes.S_IFREG: NodeKind.FILE,
    modes.S_IFDIR: NodeKind.DIRECTORY,
    modes.S_IFLNK: NodeKind.SYMLINK,
}


# Names -----------------------------------------------------------------------------------------


def shown(stored: str) -> str | None:
    """`stored` as text of the protocol; None where it cannot be shown."""
    if stored.isascii():
        return stored
    try:
        return from_bytes(stored.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None


def shown_name(stored: str) -> str | None:
    """The name that `stored` is shown by; None for what is no name."""
    if stored in ("", ".", "..") or "/" in stored or "\0" in stored:
        return None
    return shown(stored)


def stored_name(name: str) -> str:
    """What the filesystem knows `name` as; raises `InvalidName`."""
    return to_bytes(check_name(name)).decode("utf-8", "surrogateescape")


# The filesystem --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a filesystem beyond PyFilesystem2's contract.

    `folds_case`: it finds an entry by names that differ from its own in case.
    `namespaces`: what to ask it for to make a `Look` of it.  `on_host`: its paths are paths of the
    host.  `tells_of_links`: it has the namespace ``lstat``.
    `lasting`: an open file is the file itself, also when its name changes, and what is written to
    it is visible at once.  `appends_only`: writing within a file would destroy what follows.
    `renames`: the host's rename works on it.  `copies_files`, `copies_directories`: moving one
    is done by copying.
    """

    folds_case: bool
    namespaces: tuple[str, ...]
    read_only: bool
    on_host: bool
    tells_of_links: bool
    lasting: bool
    appends_only: bool
    renames: bool
    copies_files: bool
    copies_directories: bool
    provenance: Provenance

    @staticmethod
    def of(filesystem: FS) -> Traits:
        """Asks the filesystem; may block, and raises whatever it raises."""
        meta = filesystem.getmeta()
        on_host = bool(filesystem.hassyspath("/"))
        root = filesystem.getinfo("/", namespaces=_LINK_NAMESPACES)
        inner = filesystem
        while isinstance(inner, WrapFS):
            inner = inner.delegate_fs()
        in_memory = isinstance(inner, MemoryFS)
        tells_of_links = "lstat" in root.raw
        namespaces = _ZIP_NAMESPACES if isinstance(inner, ReadZipFS) else _NAMESPACES
        return Traits(
            folds_case=bool(meta.get("case_insensitive", False)),
            namespaces=_LINK_NAMESPACES if tells_of_links else namespaces,
            read_only=bool(meta.get("read_only", False)),
            on_host=on_host,
            tells_of_links=tells_of_links,
            lasting=on_host or in_memory,
            appends_only=isinstance(inner, FTPFS),
            renames=on_host and bool(meta.get("supports_rename", False)),
            copies_files=type(inner).move is FS.move,
            copies_directories=type(inner).movedir is FS.movedir,
            provenance=Provenance.WALL_CLOCK if in_memory else Provenance.HOST_FILESYSTEM,
        )

    def as_read_only(self) -> Traits:
        """The same, never written."""
        return replace(self, read_only=True)


# What it says of a resource --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a resource: a `Stat` before its identity is.

    Times are in ns since 1970, None where they are not recorded; `changed` goes into the version.
    """

    kind: NodeKind
    size: int = 0
    modified: int | None = None
    created: int | None = None
    changed: int = 0
    executable: bool = False
    links: int = 1
    target: str | None = None

    @staticmethod
    def of(info: Info) -> Look:
        """Reads what `getinfo` or `scandir` gave for `Traits.namespaces`."""
        raw: Mapping[str, object] = info.raw
        told = _namespace(raw, "link").get("target")
        target = shown(told) if isinstance(told, str) else None
        status = _namespace(raw, "lstat")
        if status:
            return _of_status(status, target)
        return _of_details(raw, target)

    @staticmethod
    def of_path(path: str) -> Look:
        """Of the host's own file, for a link that leads nowhere.  Raises OSError."""
        found = os.lstat(path)
        status = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        target = None
        if modes.S_ISLNK(found.st_mode):
            target = shown(os.readlink(path))  # noqa: PTH115 - a path of the host by its text
        return _of_status(status, target)


def _of_status(status: Mapping[str, object], target: str | None) -> Look:
    """Of the fields of an `os.stat_result`."""
    mode = _count(status.get("st_mode"))
    kind = _KINDS.get(modes.S_IFMT(mode), NodeKind.SPECIAL)
    if kind is NodeKind.SYMLINK and target is None:
        kind = NodeKind.SPECIAL
    modified = _nanoseconds(status, "st_mtime")
    return Look(
        kind=kind,
        size=_size(kind, status.get("st_size"), target),
        modified=modified,
        created=_nanoseconds(status, "st_birthtime"),
        changed=_nanoseconds(status, "st_ctime") or modified or 0,
        executable=kind is NodeKind.FILE and bool(mode & modes.S_IXUSR),
        links=max(1, _count(status.get("st_nlink"))) if kind is not NodeKind.DIRECTORY else 1,
        target=target if kind is NodeKind.SYMLINK else None,
    )


def _of_details(raw: Mapping[str, object], target: str | None) -> Look:
    """Of the namespaces that PyFilesystem2 defines, or of a zip's."""
    details = _namespace(raw, "details") or _of_zip(_namespace(raw, "zip"))
    kind = _kind(raw, details.get("type"), target)
    modified = _time(details.get("modified"))
    permissions = _namespace(raw, "access").get("permissions")
    executable = isinstance(permissions, list | tuple) and "u_x" in permissions
    return Look(
        kind=kind,
        size=_size(kind, details.get("size"), target),
        modified=modified,
        created=_time(details.get("created")),
        changed=modified or 0,
        executable=kind is NodeKind.FILE and executable,
        target=target if kind is NodeKind.SYMLINK else None,
    )


def _of_zip(member: Mapping[str, object]) -> Mapping[str, object]:
    """Details of a `zipfile.ZipInfo`; its date has no zone, and counts as UTC as in `fs.zipfs`."""
    modified = None
    date = member.get("date_time")
    if isinstance(date, tuple):
        with suppress(TypeError, ValueError):
            modified = datetime(*date).replace(tzinfo=UTC).timestamp()
    return {"size": member.get("file_size"), "modified": modified}


def _kind(raw: Mapping[str, object], kind: object, target: str | None) -> NodeKind:
    if target is not None:
        return NodeKind.SYMLINK
    if kind == ResourceType.symlink:
        return NodeKind.SPECIAL  # one that does not say where it leads
    if _namespace(raw, "basic").get("is_dir"):
        return NodeKind.DIRECTORY
    if kind in (None, ResourceType.unknown, ResourceType.file):
        return NodeKind.FILE
    return NodeKind.SPECIAL


def _namespace(raw: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}


def _size(kind: NodeKind, told: object, target: str | None) -> int:
    if kind is NodeKind.SYMLINK:
        return len((target or "").encode())
    return _count(told) if kind is NodeKind.FILE else 0


def _count(told: object) -> int:
    return told if isinstance(told, int) and 0 <= told in _INT64 else 0


def _nanoseconds(status: Mapping[str, object], field: str) -> int | None:
    exact = status.get(field + "_ns")
    if isinstance(exact, int) and exact in _INT64:
        return exact
    return _time(status.get(field))


def _time(seconds: object) -> int | None:
    """Seconds since 1970 as nanoseconds, as far as they are a time that the protocol has."""
    if not isinstance(seconds, int | float):
        return None
    try:
        nanoseconds = round(seconds * 1_000_000) * 1000
    except (OverflowError, ValueError):  # infinite, or no number
        return None
    return nanoseconds if nanoseconds in _INT64 else None


def check_time(nanoseconds: int) -> bool:
    """Whether the protocol has this time."""
    return nanoseconds in _INT64
