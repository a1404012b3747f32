"""What a user would take instead to read an image: rivals of the image cases, in process as well.

Invariants: a rival does what `capstore.tools.bench.image_subject` does for the same case, by its
own public interface and as its makers use it; it is imported only if it takes part.
"""

from __future__ import annotations

import io
import random
import sqlite3
import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

from capstore.images.compressed_index import SPAN_BYTES
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.image_corpus import (
    FAT_DIRECTORY,
    FAT_FILE,
    GZ_FILES,
    SQLITE_FACTS,
    Images,
    gz_name,
)
from capstore.tools.bench.image_subject import BLOCK_BYTES, READ_BYTES, Batch, paths, reads
from capstore.tools.bench.machine import version_of

TARFILE, RATARMOUNT, PYFATFS, SQLITE = "tarfile", "ratarmount", "pyfatfs", "sqlite"
DENSE = "ratarmount-dense"

_MAPPED_BYTES = 1 << 30
# Which of them decompresses is ratarmount's choice, by the file's length.
_RATARMOUNT = ("ratarmountcore", "rapidgzip", "indexed_gzip")


def ratarmount_missing() -> str | None:
    """Why ratarmount does not take part, or None if it does."""
    return _missing(*_RATARMOUNT)


def pyfatfs_missing() -> str | None:
    """Why pyfatfs does not take part, or None if it does."""
    return _missing("pyfatfs")


def _missing(*distributions: str) -> str | None:
    for name in distributions:
        if version_of(name) is None:
            return f"{name} is not installed (pip install 'capstore[bench]')"
    return None


@contextmanager
def tar_open(images: Images) -> Iterator[Batch]:
    """Python's own listing of the tar archive."""
    path = images.tar

    def batch(rng: random.Random) -> int:
        with tarfile.open(path) as archive:
            return checked(TARFILE, len(archive.getmembers()), images.parameters.tar_members)

    yield batch


@contextmanager
def gz_read(images: Images) -> Iterator[Batch]:
    """The library of ratarmount, without FUSE: its mount source, whose files are opened once and
    unbuffered, as its FUSE layer opens them; with all of its defaults."""
    with _ratarmount_reads(images, RATARMOUNT) as batch:
        yield batch


@contextmanager
def gz_read_dense(images: Images) -> Iterator[Batch]:
    """The same, told to have seek points as near to each other as capstore has them."""
    with _ratarmount_reads(images, DENSE, gzipSeekPointSpacing=SPAN_BYTES) as batch:
        yield batch


@contextmanager
def _ratarmount_reads(images: Images, name: str, **options: int) -> Iterator[Batch]:
    path = str(images.gz)
    images.tell("indexing the tar.gz with ratarmount")
    with ExitStack() as stack:
        # It prints what it does.
        with redirect_stdout(io.StringIO()):
            opened = _ratarmount()(path, indexFilePath=":memory:", **options)
        source = stack.enter_context(opened)
        found = [source.lookup("/" + gz_name(index)) for index in range(GZ_FILES)]
        files = [stack.enter_context(closing(source.open(one, buffering=0))) for one in found]

        def batch(rng: random.Random) -> int:
            for number, offset in reads(images, rng):
                files[number].seek(offset)
                checked(name, len(files[number].read(READ_BYTES)), READ_BYTES)
            return images.parameters.gz_batch

        yield batch


def _ratarmount() -> Any:
    """Its function that opens an archive."""
    # It puts a pyfatfs of its own where the real one is looked for, unless that is there already.
    if pyfatfs_missing() is None:
        _pyfatfs()
    path = sys.path.copy()
    try:
        return import_module("ratarmountcore.mountsource.factory").open_mount_source
    finally:
        sys.path[:] = path


@contextmanager
def fat_list(images: Images) -> Iterator[Batch]:
    """The detailed scandir of pyfatfs, in a volume opened for it."""
    path, make = images.fat_many, _pyfatfs()

    def batch(rng: random.Random) -> int:
        with make(str(path), read_only=True) as volume:
            found = list(volume.scandir(f"/{FAT_DIRECTORY}", namespaces=["details"]))
        return checked(PYFATFS, len(found), images.parameters.fat_entries)

    yield batch


@contextmanager
def fat_stream(images: Images) -> Iterator[Batch]:
    """A file of pyfatfs, opened and read in the same blocks."""
    with _pyfatfs()(str(images.fat_large), read_only=True) as volume:

        def batch(rng: random.Random) -> int:
            done = 0
            with volume.openbin(f"/{FAT_FILE}") as file:
                while data := file.read(BLOCK_BYTES):
                    done += len(data)
            return checked(PYFATFS, done, images.parameters.fat_bytes)

        yield batch


def _pyfatfs() -> Any:
    """Its class of volumes."""
    with warnings.catch_warnings():
        # It imports PyFilesystem2, which imports pkg_resources.
        warnings.simplefilter("ignore")
        return import_module("pyfatfs.PyFatFS").PyFatFS


@contextmanager
def ro1_lookup(images: Images) -> Iterator[Batch]:
    """The same paths, name by name, in an indexed table of SQLite, mapped and never locked."""
    query = f"SELECT {', '.join(SQLITE_FACTS)} FROM entries WHERE parent = ? AND name = ?"  # noqa: S608
    uri = f"{images.sqlite.as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")

        def batch(rng: random.Random) -> int:
            count = 0
            for path in paths(images, rng):
                node = 0
                for name in path:
                    node = connection.execute(query, (node, name)).fetchone()[0]
                count += len(path)
            return count

        yield batch
