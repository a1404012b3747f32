"""Objects of a store as files of a local directory.

Invariants:

* The directory is new, or empty before: nothing in it is replaced, not even by what a filesystem
  takes for the same name.  Every name is one checked segment, used relative to a descriptor that
  was opened without following links, so nothing is outside of the directory.
* An object whose key is a path is at that path; content that a name stands for is at the name's.
  Where something is there already, and for every other key, the file is ``.hex/DIGITS``.
* A file appears under its name when it is complete and was checked.
* What fails is reported, and the rest is unpacked all the same.  Memory is one piece of an object,
  and the hashes that names stand for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from capstore.backers.workers import in_worker
from capstore.images import st1
from capstore.images.durable import replace_file
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_entry import Entry, stat_of
from capstore.images.st1_names import resolve
from capstore.schema.errors import (
    Corrupt,
    InvalidArgument,
    NotEmpty,
    StorageError,
    from_os_error,
)
from capstore.schema.limits import MIB
from capstore.schema.names import from_bytes
from capstore.schema.nodes import Provenance
from capstore.schema.objects import Binding
from capstore.tools.console import local, utc_text
from capstore.tools.copying import summed_up
from capstore.tools.image.output import rename_to_nothing
from capstore.tools.image.source import Halves
from capstore.tools.image.storekeys import (
    Place,
    hex_path_of,
    key_json,
    path_of,
    path_of_name,
    text_of,
)
from capstore.tools.image.stores import opened_store
from capstore.tools.local_tree import local_directory
from capstore.tools.progress import Meter, metered
from capstore.tools.remote_tree import temporary_name

# Takes what is said of a file that was made.
Say = Callable[[dict[str, Any]], None]

_PIECE_BYTES: Final = MIB
# So much is done in a worker before whoever waits can tell it to stop.
_STEPS: Final = 64
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What is said of a place that is not to be had: something is there, what is above it is no
# directory, or this filesystem does not know such names.
_TAKEN: Final = frozenset(
    {
        *(errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR),
        *(errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL),
    }
)


async def unpack(halves: Halves, dest: Path, manifest: Path | None, *, quiet: bool) -> None:
    """Unpacks the store in an image into the directory `dest`, which is made if need be; a JSON
    object for each file goes into the array in the file `manifest`.

    Raises what opening the store raises, OSError, `NotEmpty`, `InvalidArgument` for a manifest in
    `dest`, and `Failed` where parts failed.
    """
    async with opened_store(halves) as store, metered("extract", quiet=quiet) as meter:
        with ExitStack() as stack:
            root = await in_worker(lambda: stack.enter_context(_target(dest, manifest)))
            lines = stack.enter_context(TemporaryFile())
            unpacker = Unpacker(store.engine, root, meter)
            await _all(unpacker.steps(partial(_note, lines)))
            if manifest is not None:
                await in_worker(lambda: _keep(lines, manifest))
        summed_up(meter)


async def _all(steps: Generator[None]) -> None:
    """Takes all steps, in workers; may be cancelled between them."""
    ended = object()

    def some() -> bool:
        return all(next(steps, ended) is not ended for _ in range(_STEPS))

    try:
        while await in_worker(some):
            continue
    finally:
        await in_worker(steps.close)


@contextmanager
def _target(dest: Path, manifest: Path | None) -> Iterator[int]:
    """A descriptor of the empty directory `dest`.  Raises as `unpack`."""
    dest.mkdir(exist_ok=True)
    if manifest is not None and manifest.parent.resolve().is_relative_to(dest.resolve()):
        raise InvalidArgument("the manifest is not to be among the files")
    with local_directory(dest) as directory, directory.opened() as descriptor:
        with os.scandir(descriptor) as entries:
            if any(entries):
                raise NotEmpty(f"{local(str(dest))} is not empty: objects go into a new directory")
        yield descriptor


def _note(lines: IO[bytes], said: dict[str, Any]) -> None:
    lines.write((b",\n " if lines.tell() else b"[") + json.dumps(said).encode())


def _keep(lines: IO[bytes], manifest: Path) -> None:
    lines.write(b"]\n" if lines.tell() else b"[]\n")
    lines.seek(0)
    replace_file(manifest, partial(shutil.copyfileobj, lines), mode=0o644)


class Unpacker:
    """Unpacks the store of `engine` into the directory that `root` is a descriptor of; `meter`
    counts, and is told of what fails."""

    def __init__(self, engine: St1Engine, root: int, meter: Meter) -> None:
        self._engine = engine
        self._root = root
        self._meter = meter
        # The content that was unpacked by a name.
        self._named: set[bytes] = set()

    def steps(self, say: Say) -> Generator[None]:
        """Unpacks everything, a piece at a time: first what names stand for.

        Raises `Corrupt` where not even the keys can be read."""
        for stored, _ in self._engine.entries(st1.NAMES):
            what = f'name "{text_of(stored, hashed=False)}"'
            yield from self._reported(what, self._of_name(what, stored[len(st1.NAMES) :], say))
        for stored, entry in self._engine.entries(st1.OBJECTS):
            key = stored[len(st1.OBJECTS) :]
            if not (entry.is_hashed and key in self._named):
                what = f'key "{text_of(stored, hashed=entry.is_hashed)}"'
                yield from self._reported(what, self._of_object(key, entry, say))

    def _reported(self, what: str, steps: Iterator[None]) -> Iterator[None]:
        try:
            yield
            yield from steps
            self._meter.entries += 1
        except StorageError as error:
            self._meter.failed(f"{error.code.value}: {what}: {error.message}")
        except OSError as error:
            self._meter.failed(f"{from_os_error(error).code.value}: {what}: {error.strerror}")

    def _of_name(self, what: str, name: bytes, say: Say) -> Iterator[None]:
        binding = _binding(self._engine, name)
        entry = None
        if binding.hash is not None:
            entry = self._engine.find(st1.OBJECTS + binding.hash)
        if binding.hash is None or entry is None:
            why = "a saved capability" if binding.hash is None else "content that is not there"
            self._meter.warn(f"passed over: {what} stands for {why}")
            return
        place = path_of_name(name)
        is_placed = False
        if place is not None:
            is_placed = yield from self._file(binding.hash, entry, place)
        if is_placed:
            self._named.add(binding.hash)
        # Else it is where all content is that no name stands for.
        path = place if is_placed and place is not None else hex_path_of(binding.hash)
        say(_said(binding.hash, entry, path) | {"name": name.decode()})

    def _of_object(self, key: bytes, entry: Entry, say: Say) -> Iterator[None]:
        place = None if entry.is_hashed else path_of(key)
        if place is None or not (yield from self._file(key, entry, place)):
            place = hex_path_of(key)
            if not (yield from self._file(key, entry, place)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        say(_said(key, entry, place))

    def _file(self, key: bytes, entry: Entry, place: Place) -> Generator[None, None, bool]:
        """Makes the file of an object; false where its place is taken.

        Raises OSError and what reading it raises."""
        temporary = temporary_name().encode()
        # The umask applies, as for everything else that is made for a person.
        descriptor = os.open(temporary, _NEW, 0o666, dir_fd=self._root)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield from self._content(key, entry, file)
                file.flush()
                if entry.created and stat_of(key, entry).provenance is not Provenance.UNKNOWN:
                    os.utime(file.fileno(), ns=(entry.created, entry.created))
            try:
                with self._above(place) as above:
                    rename_to_nothing(self._root, temporary, above, place[-1])
            except OSError as error:
                if error.errno in _TAKEN:
                    return False
                raise
            return True
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._root)

    def _content(self, key: bytes, entry: Entry, file: IO[bytes]) -> Iterator[None]:
        digest = hashlib.sha256()
        for at in range(0, entry.size, _PIECE_BYTES):
            piece, _ = self._engine.read(key, at, _PIECE_BYTES)
            digest.update(piece)
            file.write(piece)
            self._meter.bytes += len(piece)
            yield
        if entry.is_hashed and digest.digest() != key:
            raise Corrupt("it is not what its hash says")

    @contextmanager
    def _above(self, place: Place) -> Iterator[int]:
        """A descriptor of the directory in which `place` is, made if need be."""
        descriptor = os.dup(self._root)
        try:
            for name in place[:-1]:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
                below = os.open(name, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)


def _binding(engine: St1Engine, name: bytes) -> Binding:
    """What a stored name stands for.  Raises `Corrupt`, `InvalidName`."""
    try:
        *above, last = name.decode().split("/")
    except UnicodeDecodeError:
        raise Corrupt("it is no text") from None
    return resolve(engine, above, last)


def _said(key: bytes, entry: Entry, place: Place) -> dict[str, Any]:
    stat = stat_of(key, entry)
    recorded = stat.provenance is not Provenance.UNKNOWN
    return {
        "file": "/".join(map(from_bytes, place)),
        **key_json(key, hashed=entry.is_hashed),
        "size": stat.size,
        "version": stat.version,
        "created": utc_text(stat.created) if recorded else None,
        "provenance": stat.provenance.value,
    }
