"""Overlays to test: an upper layer of each sort over lower layers of each sort.

A test names its stack as ``UPPER over LOWER`` and gives the tree that the lower layers are to
show; `stacked` makes the layers and hands out a `Stack`, which can be opened over and over.  With
nothing below (``memory alone``) it is the plain volume with the same tree in it: what an overlay
has to behave like, and the proof that a test asks for nothing else.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.layer import Layer, Upper
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, DirectoryNode, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.spec import open_volume
from capstore.backers.wf1 import Wf1Volume
from capstore.images.builder import Facts
from capstore.images.devices import MemoryDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.images.tar_build import TarBuilder
from capstore.schema.nodes import Provenance
from tests.contract import model
from tests.contract.wf1 import FOLDER
from tests.images.fatimages import fill, make
from tests.images.trees import File, Folder, Hard, Link, push, without_hard_links

Entry = File | Link | Hard | Folder

# Even seconds, which FAT can hold, long ago.
_LONG_AGO = 1_600_000_000
SECOND = 1_000_000_000


def facts(at: int = 0, *, executable: bool = False) -> Facts:
    """Times of a base image, `at` to tell nodes apart by."""
    time = (_LONG_AGO + 2 * at) * SECOND
    return Facts(time, time, Provenance.WALL_CLOCK, executable)


def file(content: bytes = b"", at: int = 0, *, executable: bool = False) -> File:
    return File(content, facts(at, executable=executable))


def folder(entries: dict[str, Entry] | None = None, at: int = 0) -> Folder:
    return Folder(entries or {}, facts(at))


# Few names, so that what is done to one often meets another.  No file is called `-`, which mcopy
# takes for its input.
BASE = folder(
    {
        "-": Link("nowhere", facts(1)),
        "a": folder(
            {
                "-": Link("a", facts(7)),
                "a": file(b"three names" * 500, 3),
                "b": folder({"c": file(b"deep", 6), "é": Hard(("a", "a"))}, 5),
                "c": file(b"run me", 4, executable=True),
                "é": folder({}, 8),
            },
            2,
        ),
        "b": Hard(("a", "a")),
        "c": folder({"a": file(b"1", 10), "b": file(b"", 11)}, 9),
        "é": file(b"hello", 12),
    }
)

# Upper layers ------------------------------------------------------------------------------------


async def _memory(place: Path) -> Volume:
    return await MemoryVolume.open(file=str(place / "upper.memory"))


async def _wf1(place: Path) -> Volume:
    return await Wf1Volume.open(place / "upper.wf1", create=True)


async def _dir(place: Path) -> Volume:
    (place / "upper").mkdir(exist_ok=True)
    return await HostVolume.open(str(place / "upper"))


# What is not here is not tested.
UPPERS: dict[str, Callable[[Path], Awaitable[Volume]]] = {
    "memory": _memory,
    "wf1": _wf1,
    "dir": _dir,
}
# Those that have nothing but names to keep their marks in.
NAMES_ONLY = frozenset({"dir"})

# Lower layers ------------------------------------------------------------------------------------

# From the top to the bottom.
LOWERS: dict[str, tuple[str, ...]] = {
    "tar": ("tar",),
    "ro1": ("ro1",),
    "fat": ("fat",),
    "memory": ("memory",),
    "ro1+tar": ("ro1", "tar"),
    "memory+fat": ("memory", "fat"),
    "alone": (),
}

STACKS = [f"{upper} over {lower}" for upper in UPPERS for lower in LOWERS if lower != "alone"]
# One of each upper layer and of each lower one, and the plain volume.
FEW = [
    name
    for name in ("memory over tar", "wf1 over ro1+tar", "dir over memory", "memory alone")
    if name.split()[0] in UPPERS
]


def fitting(lower: str, tree: Folder) -> Folder:
    """`tree` as far as the lower layers can hold it."""
    return _for_fat(without_hard_links(tree)) if "fat" in LOWERS[lower] else tree


def _for_fat(tree: Folder) -> Folder:
    entries: dict[str, Entry] = {}
    for name, what in tree.entries.items():
        if isinstance(what, Folder):
            entries[name] = _for_fat(what)
        elif isinstance(what, File):
            entries[name] = replace(what, facts=replace(what.facts, executable=False))
    return replace(tree, entries=entries)


def split(tree: Folder) -> tuple[Folder, Folder]:
    """Two layers that together show `tree`, with much in the lower one that the upper one hides.

    A node with several names is in the lower one, with all of them.
    """
    several = {path for _, path in _hard(tree, ())} | {path for path, _ in _hard(tree, ())}
    return _split(tree, (), several, itertools.count())


def _hard(tree: Folder, above: tuple[str, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    found = []
    for name, what in tree.entries.items():
        if isinstance(what, Hard):
            found.append(((*above, name), what.path))
        elif isinstance(what, Folder):
            found += _hard(what, (*above, name))
    return found


def _split(
    tree: Folder, above: tuple[str, ...], several: set[tuple[str, ...]], turns: Iterator[int]
) -> tuple[Folder, Folder]:
    top: dict[str, Entry] = {}
    bottom: dict[str, Entry] = {}
    for name, what in sorted(tree.entries.items()):
        path = (*above, name)
        turn = next(turns)
        if isinstance(what, Folder) and (turn % 3 or any(p[: len(path)] == path for p in several)):
            top[name], bottom[name] = _split(what, path, several, turns)
        elif turn % 2 and path not in several:
            top[name] = what
            bottom[name] = _DECOYS[turn // 2 % 2 if not isinstance(what, Folder) else 0]
        elif isinstance(what, Folder):
            top[name] = what
        else:
            bottom[name] = what
    return replace(tree, entries=top), replace(tree, entries=bottom)


_DECOYS: tuple[Entry, Entry] = (
    file(b"hidden by a layer above", 90),
    folder({"hidden": file(b"with its directory", 91), "a": file(b"", 92)}, 93),
)


_built: dict[tuple[str, bytes], bytes] = {}


def _image(kind: str, tree: Folder) -> bytes:
    """The image of `tree`, built once."""
    key = kind, hashlib.sha256(pickle.dumps(tree)).digest()
    if key not in _built:
        _built[key] = _BUILDERS[kind](tree)
    return _built[key]


def _tar(tree: Folder) -> bytes:
    stream = io.BytesIO()
    push(TarBuilder(stream), tree)
    return stream.getvalue()


def _ro1(tree: Folder) -> bytes:
    device = MemoryDevice()
    push(Ro1Builder(device), tree)
    return bytes(device.view)


def _fat(tree: Folder) -> bytes:
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as name:
        below = Path(name) / "tree"
        _unpack(below, tree)
        image = make(Path(name) / "image", 1440, "-F", "12")
        fill(image, below)
        return image.read_bytes()


def _unpack(at: Path, tree: Folder) -> None:
    at.mkdir()
    for name, what in tree.entries.items():
        if isinstance(what, Folder):
            _unpack(at / name, what)
        else:
            assert isinstance(what, File)
            (at / name).write_bytes(what.content)
            os.utime(at / name, ns=(what.facts.modified, what.facts.modified))
    os.utime(at, ns=(tree.facts.modified, tree.facts.modified))


_BUILDERS: dict[str, Callable[[Folder], bytes]] = {"tar": _tar, "ro1": _ro1, "fat": _fat}


async def fill_volume(volume: Volume, tree: Folder) -> None:
    """Makes `tree` in a volume that can be written."""
    await _fill(volume.root, volume.root, tree)


async def _fill(root: DirectoryNode, directory: DirectoryNode, tree: Folder) -> None:
    for name, what in sorted(tree.entries.items()):
        if isinstance(what, Folder):
            await _fill(root, await directory.mkdir(name), what)
        elif isinstance(what, File):
            made = await directory.create(name, executable=what.facts.executable)
            await made.write(0, what.content)
            await made.set_attributes(Attributes(modified=what.facts.modified))
            await made.close()
        elif isinstance(what, Link):
            await directory.symlink(name, what.target)
            await directory.set_attributes(Attributes(modified=what.facts.modified), name)
        else:
            at = root
            for step in what.path[:-1]:
                at = await at.sub(step)
            await at.link(what.path[-1], directory, name)
    await directory.set_attributes(Attributes(modified=tree.facts.modified))


def ideal(tree: Folder) -> model.Directory:
    """`tree` as the model has it."""
    return _ideal(tree, {}, ())


def _ideal(
    tree: Folder, files: dict[tuple[str, ...], model.Node], above: tuple[str, ...]
) -> model.Directory:
    made = model.Directory()
    for name, what in sorted(tree.entries.items()):
        path = (*above, name)
        if isinstance(what, Folder):
            made.entries[name] = _ideal(what, files, path)
        elif isinstance(what, File):
            made.entries[name] = files[path] = model.File(bytearray(what.content))
        elif isinstance(what, Link):
            made.entries[name] = files[path] = model.Symlink(what.target)
        else:
            made.entries[name] = files[what.path]
    return made


# Stacks ------------------------------------------------------------------------------------------


@dataclass
class Stack:
    """Layers in a folder of the host, `tree` what they show before anything is changed."""

    place: Path
    upper: str
    lower: str
    tree: Folder
    writable_files: bool = False
    # What the layers are seen through.
    through_upper: Callable[[Upper], Upper] = lambda layer: layer
    through_lower: Callable[[Layer], Layer] = lambda layer: layer

    @property
    def names_only(self) -> bool:
        """Whether the upper layer keeps marks as names."""
        return self.upper in NAMES_ONLY and self.lower != "alone"

    async def open(self) -> Volume:
        """The overlay over the layers as they are."""
        if self.lower == "alone":
            return await self._alone()
        upper = self.through_upper(await open_upper(await self.open_upper_volume()))
        lowers = [self.through_lower(open_layer(one)) for one in await self.open_lowers()]
        return await OverlayVolume.over(upper, lowers, writable_files=self.writable_files)

    async def open_upper_volume(self) -> Volume:
        """The upper layer alone."""
        return await UPPERS[self.upper](self.place)

    async def open_lowers(self) -> list[Volume]:
        """The lower layers, from the top to the bottom."""
        kinds = LOWERS[self.lower]
        trees = [self.tree] if len(kinds) == 1 else list(split(self.tree))
        return [
            await self._open_lower(self.place / f"lower {number}", kind, tree)
            for number, (kind, tree) in enumerate(zip(kinds, trees, strict=True))
        ]

    async def _open_lower(self, path: Path, kind: str, tree: Folder) -> Volume:
        is_new = not path.exists()
        if kind == "memory":
            volume = await MemoryVolume.open(file=str(path))
            if is_new:
                await fill_volume(volume, tree)
            return volume
        if is_new:
            path.write_bytes(_image(kind, tree))
        return await open_volume(f"{kind}:{path}")

    async def _alone(self) -> Volume:
        is_new = not list(self.place.iterdir())
        volume = await self.open_upper_volume()
        if is_new:
            await fill_volume(volume, self.tree)
        return volume


@asynccontextmanager
async def stacked(
    name: str, tree: Folder = BASE, *, writable_files: bool = False
) -> AsyncIterator[Stack]:
    """The layers of the stack `name`, in a folder that goes afterwards."""
    upper, _, lower = name.replace(" alone", " over alone").partition(" over ")
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as place:
        fits = fitting(lower, tree)
        yield Stack(Path(place), upper, lower, fits, writable_files)


@asynccontextmanager
async def overlaid(
    name: str, tree: Folder = BASE, *, writable_files: bool = False
) -> AsyncIterator[Volume]:
    """The stack `name`, open."""
    async with stacked(name, tree, writable_files=writable_files) as stack:
        volume = await stack.open()
        yield volume
        await volume.close()
