"""A FAT image, authored by mkfs.fat and mtools.

Invariants:

* The same calls give the same bytes: the volume's id is a digest of what is in it, the order of
  entries is that of the calls, and no program's clock has a say.
* Names are held exactly.  mtools writes some names otherwise than they are (`fatnames`), so those
  are copied under names of the same length and put right at the end (`fatfinish`).
* What was made is read back and compared before it counts as made.

The files are staged in a folder of the host, a folder for each directory, and go into the image
with one call for many of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as HostPath
from typing import BinaryIO, Final

from capstore.images.builder import Facts, Path, TreeBuilder
from capstore.schema.errors import (
    InvalidArgument,
    NoSpace,
    NotFound,
    StorageIOError,
    Unsupported,
    from_os_error,
)
from capstore.schema.nodes import Buffer
from capstore.tools.image.fatnames import is_plain, looks_made, stand_in
from capstore.tools.image.fatplan import SECTOR_BYTES, Checker, Shape, checked_label, plan

PROGRAMS: Final = {"mkfs.fat": "dosfstools", "mmd": "mtools", "mcopy": "mtools"}

# Bytes of names in one call of a program; the system takes ten times as much.
_ARGUMENT_BYTES_MAX: Final = 128 << 10


@dataclass(slots=True)
class Planned:
    """An entry of the image: what it is called there at first, what it is to be, and of a
    directory its entries by their names and the number of its folder."""

    first_name: str
    name: str
    facts: Facts
    size: int | None = None
    entries: dict[str, Planned] = field(default_factory=dict)
    folder: int = 0


class FatBuilder(TreeBuilder):
    """Stages a tree in the folder `stage` and makes an image of it at `path`.

    See `fatplan.plan` for `size` (bytes) and `fat_type`.  Raises `Unsupported` where a program is
    missing, `InvalidArgument` for the label.
    """

    def __init__(
        self,
        path: HostPath,
        stage: HostPath,
        *,
        label: str = "",
        size: int | None = None,
        fat_type: int | None = None,
    ) -> None:
        _check_programs()
        self._path = path
        self._stage = stage
        self._label = checked_label(label)
        self._size = size
        self._fat_type = fat_type
        self._checker = Checker()
        self._digest = hashlib.sha256()
        self._folders = 0
        self._root = Planned("", "", Facts())
        self._file: tuple[BinaryIO, int] | None = None
        with _mapped():
            self._folder_of(0).mkdir(parents=True)

    def directory(self, path: Path, facts: Facts) -> None:
        if not path:
            self._root.facts = facts
            return
        self._checker.add(path, None)
        planned = self._planned(path, facts)
        self._folders += 1
        planned.folder = self._folders
        with _mapped():
            self._folder_of(planned.folder).mkdir()

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        self._checker.add(path, size)
        planned = self._planned(path, facts)
        planned.size = size
        self._digest.update(b"%d\n" % size)
        staged = self._folder_of(self._find(path[:-1]).folder) / planned.first_name
        with _mapped():
            self._file = staged.open("xb"), size

    def write(self, data: Buffer) -> None:
        file, left = self._begun()
        self._digest.update(data)
        self._file = file, left - len(data)
        with _mapped():
            file.write(data)

    def end_file(self) -> None:
        file, left = self._begun()
        self._file = None
        with _mapped():
            file.close()
        if left:
            raise InvalidArgument("a file is not of the size that it was to be")

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        raise Unsupported("FAT holds no symbolic links")

    def link(self, path: Path, original: Path) -> None:
        raise Unsupported("FAT holds no hard links")

    def abort(self) -> None:
        if self._file is not None:
            self._file[0].close()
            self._file = None
        shutil.rmtree(self._stage, ignore_errors=True)

    def _begun(self) -> tuple[BinaryIO, int]:
        if self._file is None:
            raise InvalidArgument("no file was begun")
        return self._file

    def _folder_of(self, number: int) -> HostPath:
        return self._stage / str(number)

    def _find(self, path: Path) -> Planned:
        at = self._root
        for name in path:
            if name not in at.entries:
                raise NotFound("what is above comes first")
            at = at.entries[name]
        return at

    def _planned(self, path: Path, facts: Facts) -> Planned:
        above = self._find(path[:-1])
        name = path[-1]
        first = name if is_plain(name) else stand_in(name, len(above.entries))
        planned = Planned(first, name, facts)
        above.entries[name] = planned
        described = ("/".join(path), facts.modified, facts.created, facts.provenance.value)
        self._digest.update(repr(described).encode())
        return planned

    # The image -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Makes the image.

        Raises `NoSpace`, `TooLarge` and `InvalidArgument` as `plan`, `StorageIOError` for a program
        that failed, `Corrupt` where the result is not what was asked for.
        """
        from capstore.tools.image.fatfinish import finish

        if self._file is not None:
            raise InvalidArgument("a file is not whole")
        shape = plan(self._checker, size=self._size, bits=self._fat_type)
        self._make_volume(shape)
        for directory, path in _directories(self._root):
            early, late = _by_turn(directory)
            self._put(early, directory.folder, path)
            self._put(late, directory.folder, path)
        shutil.rmtree(self._stage, ignore_errors=True)
        finish(self._path, self._root)

    def _put(self, entries: Sequence[Planned], folder: int, path: str) -> None:
        """Makes entries of the directory at `path`, whose files are in `folder`."""
        below = (f"::{path}/{entry.first_name}" for entry in entries if entry.size is None)
        for paths in _chunks(below):
            self._run(["mmd", "-D", "s", "-i", self._image, *paths], 0)
        files = (f"./{entry.first_name}" for entry in entries if entry.size is not None)
        for names in _chunks(files):
            command = ["mcopy", "-Q", "-D", "s", "-i", self._image, *names, f"::{path}/"]
            self._run(command, folder)

    @property
    def _image(self) -> str:
        return str(self._path.absolute())

    def _make_volume(self, shape: Shape) -> None:
        command = ["mkfs.fat", "--invariant", "-i", self._digest.hexdigest()[:8]]
        command += ["-F", str(shape.bits), "-s", str(shape.cluster_sectors)]
        command += ["-S", str(SECTOR_BYTES), "-f", "2"]
        if shape.root_slots:
            command += ["-r", str(shape.root_slots)]
        if self._label:
            command += ["-n", self._label]
        blocks = shape.sectors * SECTOR_BYTES // 1024
        self._run([*command, "-C", self._image, str(blocks)], 0)

    def _run(self, command: Sequence[str], folder: int) -> None:
        """Runs a program in a staging folder.  Raises `StorageIOError`, `NoSpace`."""
        environment = {
            "PATH": _search_path(),
            # What is not ASCII is a stand-in; the programs are to take it for what it is.
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "MTOOLSRC": os.devnull,
            "MTOOLS_SKIP_CHECK": "1",
            "SOURCE_DATE_EPOCH": "315532800",
        }
        with _mapped():
            done = subprocess.run(
                command,
                cwd=self._folder_of(folder),
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            kind = NoSpace if "full" in said.lower() else StorageIOError
            raise kind(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")


def _directories(root: Planned, path: str = "") -> Iterator[tuple[Planned, str]]:
    """All directories with their paths of first names, each before what is in it."""
    stack = [(root, path)]
    while stack:
        directory, path = stack.pop()
        yield directory, path
        below = [e for e in directory.entries.values() if e.size is None]
        stack.extend((entry, f"{path}/{entry.first_name}") for entry in reversed(below))


def _by_turn(directory: Planned) -> tuple[list[Planned], list[Planned]]:
    """The entries of a directory that have to be made first, and the others."""
    early: list[Planned] = []
    late: list[Planned] = []
    for entry in directory.entries.values():
        (early if looks_made(entry.name) else late).append(entry)
    return early, late


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    """The names in lists that are short enough for a command line."""
    chunk: list[str] = []
    room = _ARGUMENT_BYTES_MAX
    for name in names:
        room -= len(name.encode()) + 1
        if room < 0 and chunk:
            yield chunk
            chunk, room = [], _ARGUMENT_BYTES_MAX - len(name.encode()) - 1
        chunk.append(name)
    if chunk:
        yield chunk


def _search_path() -> str:
    # mkfs.fat is where only root looks by itself.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _check_programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        packages = " and ".join(dict.fromkeys(PROGRAMS[name] for name in missing))
        raise Unsupported(
            f"FAT images are made with {' and '.join(missing)}, which this machine does not have:"
            f" install {packages} (Debian's names)"
        )


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "staging the files") from error
