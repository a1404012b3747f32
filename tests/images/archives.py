"""Archives for tests: trees on the host's disk, other people's tools, and what an index shows."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from capstore.images.builder import Facts
from capstore.images.cpio_content import SummedContent
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.index import IndexBuilder
from capstore.images.ro1_build import index_image
from capstore.images.ro1_tree import Ro1Tree
from capstore.images.tar_pax import pax_record
from capstore.images.tree import Finding
from capstore.schema.errors import StorageError
from capstore.schema.limits import MIB
from capstore.schema.names import from_bytes
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.trees import File, Folder, Link, read_all

SECOND = 1_000_000_000
Parse = Callable[[BlockDevice, IndexBuilder], None]


@dataclass
class Served:
    """An archive with its index."""

    tree: Ro1Tree
    findings: list[Finding]

    def paths(self) -> dict[str, bytes | str | StorageError | NodeKind]:
        """By path: a file's content or why it has none, a link's target, or the kind."""
        return dict(self._walk(self.tree.root, ""))

    def _walk(
        self, directory: int, above: str
    ) -> Iterator[tuple[str, bytes | str | StorageError | NodeKind]]:
        after, more = "", True
        while more:
            page = self.tree.list(directory, after, 100)
            for entry in page.entries:
                path = above + entry.name
                yield path, self._what(entry.stat.kind, entry.stat.node_id, entry.target)
                if entry.stat.kind is NodeKind.DIRECTORY:
                    yield from self._walk(entry.stat.node_id, path + "/")
            more = page.more
            after = page.entries[-1].name if page.entries else ""

    def _what(
        self, kind: NodeKind, node: int, target: str | None
    ) -> bytes | str | StorageError | NodeKind:
        if target is not None:
            return target
        if kind is not NodeKind.FILE:
            return kind
        try:
            return read_all(self.tree.content(node))
        except StorageError as error:
            return error

    def node(self, path: str) -> int:
        """The id of the node at `path`."""
        at = self.tree.root
        for name in path.split("/"):
            at = self.tree.lookup(at, name).stat.node_id
        return at


def serve(raw: bytes | BlockDevice, parse: Parse, *, bytes_max: int = 64 * MIB) -> Served:
    """Indexes an archive."""
    device = raw if isinstance(raw, BlockDevice) else MemoryDevice(raw, read_only=True)
    index = IndexBuilder(bytes_max=bytes_max)
    parse(device, index)
    image = MemoryDevice(index_image(index.table.tables(), device.size()))
    tree = Ro1Tree(image, image.view, data=device, summed=SummedContent)
    return Served(tree, index.findings)


# Trees on the host --------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path, stdin: bytes = b"") -> bytes:
    """Runs a tool and gives what it wrote; it must succeed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    done = subprocess.run(
        [*command], cwd=cwd, input=stdin, capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def plant(root: Path, *, long: bool = True, whole_seconds: bool = False) -> None:
    """A tree with what archives stumble over; paths over 100 bytes only where `long`."""
    base = os.fsencode(root)
    part = 0 if whole_seconds else 123_456_789

    def file(name: bytes, content: bytes, mtime: int, mode: int = 0o644) -> None:
        path = os.path.join(base, name)
        Path(os.fsdecode(path)).write_bytes(content)
        os.chmod(path, mode)
        os.utime(path, ns=(mtime, mtime))

    os.makedirs(os.path.join(base, b"d/e/f"))
    os.mkdir(os.path.join(base, b"empty dir"))
    file(b"d/a.txt", b"hello\n", 1_600_000_000 * SECOND + part)
    file(b"d/run", b"#!/bin/sh\n", 1_500_000_000 * SECOND, 0o755)
    file(b"d/e/f/none", b"", part)
    file("d/größe €".encode(), b"\0" * 513, 3 * SECOND)
    file(b"d/e/bad\xff\xfename", b"raw", 4 * SECOND + 5 * part)
    file(b"big", bytes(range(256)) * 300, 2_000_000_000 * SECOND)
    file(b"block", b"x" * 512, 7 * SECOND)
    os.symlink(b"../d//a.txt", os.path.join(base, b"d/link"))
    os.symlink(b"nowhere\xff", os.path.join(base, b"dangling"))
    os.link(os.path.join(base, b"d/a.txt"), os.path.join(base, b"hard"))
    os.link(os.path.join(base, b"d/a.txt"), os.path.join(base, b"z hard"))
    os.mkfifo(os.path.join(base, b"pipe"))
    if long:
        deep = b"/".join([b"n" * 60] * 5)
        os.makedirs(os.path.join(base, deep))
        file(deep + b"/" + b"l" * 200, b"long", 8 * SECOND)
        os.symlink(b"t" * 300, os.path.join(base, deep, b"link"))
        os.link(os.path.join(base, deep, b"l" * 200), os.path.join(base, b"other"))
    for above, directories, names in os.walk(base, topdown=False):
        for name in [*directories, *names]:
            path = os.path.join(above, name)
            if os.path.islink(path) or os.path.isdir(path):
                times = (9 * SECOND, 9 * SECOND)
                os.utime(path, ns=times, follow_symlinks=False)
    os.utime(base, ns=(10 * SECOND, 10 * SECOND))


def planted(root: Path, provenance: Provenance, *, unit: int = 1, special: bool = True) -> Folder:
    """The tree under `root` as an archive shows it, with times in whole `unit` ns."""
    return _planted(os.fsencode(root), provenance, unit, special)


def _planted(root: bytes, provenance: Provenance, unit: int, special: bool) -> Folder:
    entries: dict[str, File | Link | Folder | NodeKind] = {}
    for name in os.listdir(root):
        path = os.path.join(root, name)
        info = os.lstat(path)
        facts = _facts(info, provenance, unit)
        if stat.S_ISDIR(info.st_mode):
            entries[from_bytes(name)] = _planted(path, provenance, unit, special)
        elif stat.S_ISLNK(info.st_mode):
            entries[from_bytes(name)] = Link(from_bytes(os.readlink(path)), facts)
        elif stat.S_ISREG(info.st_mode):
            with open(path, "rb") as stream:
                entries[from_bytes(name)] = File(stream.read(), facts)
        elif special:
            entries[from_bytes(name)] = NodeKind.SPECIAL
    return Folder(entries, _facts(os.lstat(root), provenance, unit))  # type: ignore[arg-type]


def _facts(info: os.stat_result, provenance: Provenance, unit: int) -> Facts:
    executable = stat.S_ISREG(info.st_mode) and bool(info.st_mode & 0o111)
    return Facts(info.st_mtime_ns // unit * unit, 0, provenance, executable)


def shown(served: Served, directory: int | None = None) -> Folder:
    """What the archive shows, as `planted` has it."""
    tree = served.tree
    directory = tree.root if directory is None else directory
    entries: dict[str, File | Link | Folder | NodeKind] = {}
    for entry in tree.list(directory, "", 1000).entries:
        info = entry.stat
        facts = Facts(info.modified, info.created, info.provenance, info.executable)
        if info.kind is NodeKind.DIRECTORY:
            entries[entry.name] = shown(served, info.node_id)
        elif info.kind is NodeKind.FILE:
            entries[entry.name] = File(read_all(tree.content(info.node_id)), facts)
        elif entry.target is not None:
            entries[entry.name] = Link(entry.target, facts)
        else:
            entries[entry.name] = info.kind
    info = tree.stat(directory)
    return Folder(entries, Facts(info.modified, info.created, info.provenance))  # type: ignore[arg-type]


# Blocks by hand -----------------------------------------------------------------------------------

_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "flag": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
    "sparse": (386, 97),
    "real": (483, 12),
}


def block(*, signed: bool = False, **fields: bytes) -> bytes:
    """A tar header with these fields as they are, and the right checksum for them."""
    raw = bytearray(512)
    for name, value in {
        "mode": b"0000644",
        "size": b"0",
        "mtime": b"0",
        "flag": b"0",
        "magic": b"ustar\x0000",
        **fields,
    }.items():
        start, length = _FIELDS[name]
        assert len(value) <= length
        raw[start : start + length] = value.ljust(length, b"\0")
    return summed(bytes(raw), signed=signed)


def summed(header: bytes, *, signed: bool = False) -> bytes:
    """`header` with the right checksum."""
    raw = header[:148] + b" " * 8 + header[156:]
    total = sum(raw) - (256 * sum(byte > 127 for byte in raw) if signed else 0)
    return header[:148] + b"%06o\0 " % total + header[156:]


def member(content: bytes = b"", **fields: bytes) -> bytes:
    """A header with `content` behind it."""
    return block(**{"size": b"%o" % len(content), **fields}) + content.ljust(
        len(content) + -len(content) % 512, b"\0"
    )


def pax(records: dict[str, bytes] | bytes, flag: bytes = b"x") -> bytes:
    """A pax header of these records."""
    if isinstance(records, dict):
        records = b"".join(pax_record(key, value) for key, value in records.items())
    return member(records, name=b"pax", flag=flag)


END = bytes(1024)
