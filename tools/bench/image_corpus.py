"""The images that the image cases are about: each made when it is first asked for, from the seed.

Invariants: everything is in one directory that nobody but the bench changes, and gone with it.
Archives are written by Python's own library and FAT volumes by the host's tools, never by what is
measured.  Making an image takes no part in any figure.
"""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from capstore.images.builder import Facts
from capstore.images.devices import FileDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.schema.limits import KIB, MIB
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.parameters import Parameters

FAT_DIRECTORY = "MANY"
FAT_FILE = "LARGE.BIN"
GZ_FILES = 16
SQLITE_FACTS = ("node", "kind", "size", "modified")
SMALL_RO1_ENTRIES = 10
_FAT_TOOLS = {"mkfs.fat": "dosfstools", "mcopy": "mtools", "mmd": "mtools"}
# What a volume has besides its content, generously.
_FAT_ROOM_BYTES = 16 * MIB
_GZ_LEVEL = 6
_GZ_BLOCK_BYTES = 32 * KIB
# Text is cut out of a pool so long that a cut seldom comes twice in DEFLATE's window.
_TEXT_POOL_BYTES = MIB
_TEXT_CUT_BYTES = 512
_TAR_FILE_BYTES_MAX = 1024
_PER_DIRECTORY = 100

Path3 = tuple[str, str, str]


def fat_tools_missing() -> str | None:
    """Why no FAT image can be made, or None if one can."""
    missing = [tool for tool in _FAT_TOOLS if shutil.which(tool) is None]
    if not missing:
        return None
    packages = sorted({_FAT_TOOLS[tool] for tool in missing})
    return f"{', '.join(missing)} not installed (packages {', '.join(packages)})"


def path_of(index: int) -> Path3:
    """Where the file `index` of a large tree is: a hundred files in each directory."""
    directory = index // _PER_DIRECTORY
    top = directory // _PER_DIRECTORY
    return f"top-{top:04}", f"directory-{directory:06}", f"file-{index:08}.dat"


@dataclass
class Images:
    """The images in `folder`, which exists; `tell` hears what is being made."""

    folder: Path
    parameters: Parameters
    tell: Callable[[str], None]

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self.parameters.seed}/{what}")  # noqa: S311 - a workload

    @property
    def cache(self) -> Path:
        """Where indices of archives are kept."""
        return self.folder / "cache"

    # tar -----------------------------------------------------------------------------------------

    @cached_property
    def tar(self) -> Path:
        """A tar archive of small files in directories; a directory is a member, too."""
        path = self.folder / "many.tar"
        rng = self._rng("tar")
        with tarfile.open(path, "w") as archive:
            for index in range(self.parameters.tar_members):
                if index % (_PER_DIRECTORY**2) == 0:
                    self._tell_part("a tar archive", index, self.parameters.tar_members)
                name = "/".join(path_of(index))
                info = tarfile.TarInfo(
                    name.rpartition("/")[0] if self._is_directory(index) else name
                )
                info.mtime = 1_700_000_000 + index
                content = b""
                if self._is_directory(index):
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                else:
                    content = rng.randbytes(rng.randrange(_TAR_FILE_BYTES_MAX))
                    info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    @staticmethod
    def _is_directory(index: int) -> bool:
        return index % _PER_DIRECTORY == 0

    @property
    def tar_implied(self) -> int:
        """How many directories above its members are no members."""
        return -(-self.parameters.tar_members // _PER_DIRECTORY**2)

    def tar_file(self, rng: random.Random) -> Path3:
        """One of the archive's files."""
        index = rng.randrange(self.parameters.tar_members)
        return path_of(index + self._is_directory(index))

    # tar.gz --------------------------------------------------------------------------------------

    @cached_property
    def gz(self) -> Path:
        """A tar.gz of `GZ_FILES` files of equal length, half random and half text: one member,
        so that nothing but a decompressor's state leads into its middle."""
        path = self.folder / "large.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=_GZ_LEVEL) as archive:
            for index in range(GZ_FILES):
                self._tell_part("a tar.gz", index, GZ_FILES)
                info = tarfile.TarInfo(gz_name(index))
                info.size = self.gz_file_bytes
                archive.addfile(info, io.BytesIO(self.gz_content(index)))
        return path

    @property
    def gz_file_bytes(self) -> int:
        """The length of each of its files."""
        return self.parameters.gz_bytes // GZ_FILES

    def gz_content(self, index: int) -> bytes:
        """The bytes of its file `index`."""
        rng = self._rng(f"gz/{index}")
        content = bytearray()
        while len(content) < self.gz_file_bytes:
            content += rng.randbytes(_GZ_BLOCK_BYTES)
            for _ in range(_GZ_BLOCK_BYTES // _TEXT_CUT_BYTES):
                at = rng.randrange(_TEXT_POOL_BYTES - _TEXT_CUT_BYTES)
                content += self._text[at : at + _TEXT_CUT_BYTES]
        return bytes(content[: self.gz_file_bytes])

    @cached_property
    def _text(self) -> bytes:
        rng = self._rng("text")
        letters = b"etaoinshrdlucmfwypvbgk"
        words = [bytes(rng.choices(letters, k=rng.randrange(2, 11))) for _ in range(5000)]
        text = bytearray()
        while len(text) < _TEXT_POOL_BYTES:
            text += b" ".join(rng.choices(words, k=1000)) + b"\n"
        return bytes(text[:_TEXT_POOL_BYTES])

    # FAT -----------------------------------------------------------------------------------------

    @cached_property
    def fat_many(self) -> Path:
        """A FAT volume with one directory of many small files."""
        self.tell("making a FAT volume of many files")
        path = self._volume("many.img", 0)
        source = self.folder / "fat-many"
        source.mkdir()
        files = [source / f"FILE{index:04}.TXT" for index in range(self.parameters.fat_entries)]
        for file in files:
            file.write_text(file.name)
        _tool("mmd", "-i", str(path), f"::/{FAT_DIRECTORY}")
        # One call, whose search for a free name is done in memory.
        _tool("mcopy", "-i", str(path), *map(str, files), f"::/{FAT_DIRECTORY}/")
        return path

    @cached_property
    def fat_large(self) -> Path:
        """A FAT volume with one large file."""
        self.tell("making a FAT volume of one large file")
        source = self.folder / FAT_FILE
        rng = self._rng("fat")
        with source.open("wb") as file:
            for start in range(0, self.parameters.fat_bytes, MIB):
                file.write(rng.randbytes(min(MIB, self.parameters.fat_bytes - start)))
        path = self._volume("large.img", self.parameters.fat_bytes)
        _tool("mcopy", "-i", str(path), str(source), "::/")
        return path

    def _volume(self, name: str, content_bytes: int) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(_FAT_ROOM_BYTES + content_bytes)
        _tool("mkfs.fat", str(path))
        return path

    # CAPOSRO1 ------------------------------------------------------------------------------------

    @cached_property
    def ro1(self) -> Path:
        """A CAPOSRO1 image of many empty files."""
        return self._build_ro1("many.ro1", self.parameters.ro1_entries)

    @cached_property
    def ro1_small(self) -> Path:
        """A CAPOSRO1 image of `SMALL_RO1_ENTRIES` files."""
        return self._build_ro1("few.ro1", SMALL_RO1_ENTRIES)

    def _build_ro1(self, name: str, count: int) -> Path:
        path = self.folder / name
        device = FileDevice.open(path, create=True)
        try:
            builder = Ro1Builder(device)
            for place in self._nodes(count, "a CAPOSRO1 image"):
                facts = Facts(modified=1_700_000_000_000_000_000)
                if len(place) < 3:
                    builder.directory(place, facts)
                else:
                    builder.begin_file(place, facts, 0)
                    builder.end_file()
            builder.finish()
        finally:
            device.close()
        return path

    def _nodes(self, count: int, what: str) -> Iterator[tuple[str, ...]]:
        """The places of `count` files and of the directories above each, the root first."""
        above: tuple[str, ...] = ()
        yield above
        for index in range(count):
            if index % (_PER_DIRECTORY**2) == 0:
                self._tell_part(what, index, count)
            place = path_of(index)
            if place[:1] != above[:1]:
                yield place[:1]
            if place[:2] != above:
                yield place[:2]
                above = place[:2]
            yield place

    @cached_property
    def sqlite(self) -> Path:
        """The same tree as `ro1` has, as one table of SQLite with (parent, name) as its key."""
        path = self.folder / "many.sqlite"
        connection = sqlite3.connect(path)
        try:
            facts = ", ".join(f"{name} INTEGER" for name in SQLITE_FACTS)
            connection.execute(
                f"CREATE TABLE entries (parent INTEGER, name TEXT, {facts},"
                " PRIMARY KEY (parent, name)) WITHOUT ROWID"
            )
            rows = self._rows()
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.commit()
        finally:
            connection.close()
        return path

    def _rows(self) -> Iterator[tuple[int, str, int, int, int, int]]:
        # The directories that the last node is in, from the root down.
        open_nodes = [0]
        places = self._nodes(self.parameters.ro1_entries, "a table of SQLite")
        next(places)
        for node, place in enumerate(places, 1):
            del open_nodes[len(place) :]
            kind = int(len(place) < 3)
            yield open_nodes[-1], place[-1], node, kind, 0, 1_700_000_000_000_000_000
            open_nodes.append(node)

    def _tell_part(self, what: str, done: int, total: int) -> None:
        self.tell(f"making {what}, {100 * done // total} %")


def gz_name(index: int) -> str:
    """The file `index` of the tar.gz."""
    return f"file-{index:02}.dat"


def _tool(*command: str) -> None:
    """Runs a tool of the host.  Raises `BenchError` with what it said."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{command[0]} failed: {result.stderr.strip() or result.stdout.strip()}")
