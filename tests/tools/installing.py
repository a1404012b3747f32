"""What an installer does to a tree: files unpacked, overwritten, moved and removed.

The steps are made while they are done to a directory of the host, and are then done again through
the node protocol, to whatever tree is to become the same.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capstore.backers.node import Attributes, DirectoryNode, Expect, NodeKind, OpenFlags
from tests.contract.harness import entries_of

# Times that are set are from here on, a second apart, and long ago.
_EPOCH_NS: Final = 1_500_000_000 * 10**9
_SECOND: Final = 10**9

# The name of the operation, and its operands: paths relative to the root, and values.
Step = tuple[object, ...]


def install(root: Path, count: int, seed: int) -> list[Step]:
    """Does `count` steps to the tree of a directory; returns them."""
    return _Installer(root, seed).run(count)


class _Installer:
    """Chooses steps that can be done, and does them on the host."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._steps: list[Step] = []
        self._number = 0

    def run(self, count: int) -> list[Step]:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._unpack, 4),
            (self._overwrite, 6),
            (self._patch, 6),
            (self._cut, 2),
            (self._chmod, 2),
            (self._remove, 5),
            (self._remove_tree, 1),
            (self._replace, 4),
            (self._rename_directory, 2),
            (self._link, 2),
            (self._symlink, 2),
        ]
        functions, weights = zip(*kinds, strict=True)
        while len(self._steps) < count:
            self._random.choices(functions, weights)[0]()
        return self._steps

    # Choosing ------------------------------------------------------------------------------------

    def _name(self) -> str:
        self._number += 1
        return f"n{self._number}"

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 300, 5000, 70_000)))

    def _any(self, kind: Callable[[Path], bool]) -> Path | None:
        """Something in a directory that is reached at random, from the root on."""
        at = self._root
        for _ in range(self._random.choice((1, 2, 2, 3, 4))):
            inside = sorted(path for path in at.iterdir() if kind(path) or _is_directory(path))
            if not inside:
                break
            found = self._random.choice(inside)
            if not _is_directory(found):
                return found
            at = found
        return at if at != self._root and kind(at) else None

    def _directory(self) -> Path:
        return self._any(_is_directory) or self._root

    def _do(self, *step: object) -> None:
        on_host(self._root, step)
        self._steps.append(step)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    # Steps ---------------------------------------------------------------------------------------

    def _write(self, path: Path) -> None:
        self._do("write", self._relative(path), self._data())
        self._touch(path)

    def _touch(self, path: Path) -> None:
        time = _EPOCH_NS + len(self._steps) * _SECOND
        self._do("time", self._relative(path), time)

    def _unpack(self) -> None:
        folder = self._directory() / self._name()
        self._do("mkdir", self._relative(folder))
        for _ in range(self._random.randrange(6)):
            self._write(folder / self._name())

    def _overwrite(self) -> None:
        if (path := self._any(_is_file)) is not None:
            self._write(path)

    def _patch(self) -> None:
        if (path := self._any(_is_file)) is not None:
            offset = self._random.randrange(path.stat().st_size + 1)
            self._do("patch", self._relative(path), offset, self._data())
            self._touch(path)

    def _cut(self) -> None:
        if (path := self._any(_is_file)) is not None:
            size = self._random.randrange(2 * path.stat().st_size + 1)
            self._do("truncate", self._relative(path), size)
            self._touch(path)

    def _chmod(self) -> None:
        if (path := self._any(_is_file)) is not None:
            self._do("executable", self._relative(path), self._random.random() < 0.5)

    def _remove(self) -> None:
        if (path := self._any(_is_leaf)) is not None:
            self._do("remove", self._relative(path))

    def _remove_tree(self) -> None:
        path = self._any(_is_directory)
        if path is not None and path.parent != self._root:
            self._do("remove tree", self._relative(path))

    def _replace(self) -> None:
        """As an installer does it: a new file under another name, moved over the old one."""
        path, other = self._any(_is_leaf), self._any(_is_leaf)
        if path is not None and other is not None and path != other and not _are_one(path, other):
            self._do("rename", self._relative(path), self._relative(other))

    def _rename_directory(self) -> None:
        path, target = self._any(_is_directory), self._directory()
        if path is not None and not target.is_relative_to(path):
            self._do("rename", self._relative(path), self._relative(target / self._name()))

    def _link(self) -> None:
        if (path := self._any(_is_file)) is not None:
            new = self._directory() / self._name()
            self._do("link", self._relative(path), self._relative(new))

    def _symlink(self) -> None:
        path = self._directory() / self._name()
        self._do("symlink", self._relative(path), f"../{self._name()}")
        self._touch(path)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_leaf(path: Path) -> bool:
    return not _is_directory(path)


def _are_one(path: Path, other: Path) -> bool:
    return path.lstat().st_ino == other.lstat().st_ino


# On the host --------------------------------------------------------------------------------------


def on_host(root: Path, step: Step) -> None:
    """Does a step to the tree of a directory."""
    match step:
        case ("write", str(path), bytes(data)):
            (root / path).write_bytes(data)
        case ("patch", str(path), int(offset), bytes(data)):
            with (root / path).open("r+b") as file:
                file.seek(offset)
                file.write(data)
        case ("truncate", str(path), int(size)):
            os.truncate(root / path, size)
        case ("time", str(path), int(time)):
            os.utime(root / path, ns=(time, time), follow_symlinks=False)
        case ("executable", str(path), bool(executable)):
            (root / path).chmod(0o755 if executable else 0o644)
        case ("mkdir", str(path)):
            (root / path).mkdir()
        case ("remove", str(path)):
            (root / path).unlink()
        case ("remove tree", str(path)):
            shutil.rmtree(root / path)
        case ("rename", str(path), str(new)):
            (root / path).rename(root / new)
        case ("link", str(path), str(new)):
            os.link(root / path, root / new)
        case ("symlink", str(path), str(target)):
            (root / path).symlink_to(target)
        case _:
            raise ValueError(step)


# On nodes -----------------------------------------------------------------------------------------


async def on_nodes(root: DirectoryNode, steps: list[Step]) -> None:
    """Does steps to the tree of a directory of nodes."""
    for step in steps:
        await _on_nodes(root, step)


async def _at(root: DirectoryNode, path: str) -> tuple[DirectoryNode, str]:
    *above, name = path.split("/")
    directory = root
    for segment in above:
        directory = await directory.sub(segment)
    return directory, name


async def _on_nodes(root: DirectoryNode, step: Step) -> None:
    directory, name = await _at(root, str(step[1]))
    match step:
        case ("write", _, bytes(data)):
            flags = OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE
            file = await directory.open(name, flags)
            await file.write(0, data)
            await file.close()
        case ("patch", _, int(offset), bytes(data)):
            file = await directory.open(name, OpenFlags.WRITE)
            await file.write(offset, data)
            await file.close()
        case ("truncate", _, int(size)):
            file = await directory.open(name, OpenFlags.WRITE)
            await file.truncate(size)
            await file.close()
        case ("time", _, int(time)):
            await directory.set_attributes(Attributes(modified=time), name)
        case ("executable", _, bool(executable)):
            await directory.set_attributes(Attributes(executable=executable), name)
        case ("mkdir", _):
            await directory.mkdir(name)
        case ("remove", _):
            await directory.remove(name, Expect.NOT_DIRECTORY)
        case ("remove tree", _):
            await _remove_tree(await directory.sub(name))
            await directory.remove(name, Expect.DIRECTORY)
        case ("symlink", _, str(target)):
            await directory.symlink(name, target)
        case _:
            await _with_two(root, step, directory, name)


async def _with_two(root: DirectoryNode, step: Step, directory: DirectoryNode, name: str) -> None:
    target, new_name = await _at(root, str(step[2]))
    if step[0] == "rename":
        await directory.rename(name, target, new_name)
    else:
        assert step[0] == "link"
        await directory.link(name, target, new_name)


async def _remove_tree(directory: DirectoryNode) -> None:
    for entry in await entries_of(directory):
        if entry.stat.kind is NodeKind.DIRECTORY:
            await _remove_tree(await directory.sub(entry.name))
        await directory.remove(entry.name)
