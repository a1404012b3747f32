"""A tree to read from, however it was named: what ``image build`` and ``image diff`` begin with.

Invariants:

* What is typed is, in this order: a location (``capnp://...``, ``@FILE`` or ``-``), a path of this
  machine (a directory, or an image file), or a volume specification.  ``./`` in front makes a path
  of anything.
* Whatever it is, it is read as directories of the node protocol and never changed.  A symbolic
  link is data; only those in a path that was typed below a location are followed.
* A walk comes depth first in the order of the names' bytes, and what it keeps grows with the depth
  of the tree and the length of one page, not with the size of the tree.
"""

from __future__ import annotations

import re
import stat as modes
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.image import ImageDirectory, ImageVolume
from capstore.backers.node import Buffer, DirectoryNode, Entry, FileNode, NodeKind, Volume
from capstore.backers.overlay_node import OverlayDirectory
from capstore.backers.overlay_view import open_to_read
from capstore.backers.spec_text import Spec
from capstore.backers.workers import in_worker
from capstore.images.devices import FileDevice
from capstore.images.formats import FORMATS, STORES, format_of, has_store, open_image
from capstore.schema.errors import (
    Corrupt,
    InvalidName,
    NotDirectory,
    NotFound,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import IMAGE_DEPTH_MAX, TRANSFER_BYTES_MAX
from capstore.schema.names import check_name
from capstore.service.remote import Directory
from capstore.tools.console import about, local, local_error, printable
from capstore.tools.location import locate, opened
from capstore.tools.remote_tree import RemoteTree, listed
from capstore.tools.resolve import find_directory
from capstore.tools.trees import Content

_LOCATION = re.compile(r"-|@.+|capnp://.*", re.DOTALL)
_SPEC = re.compile(r"[a-z][a-z0-9]*:.*", re.DOTALL)


class Folder:
    """A directory of a tree; the node that it is is opened when it is first used."""

    __slots__ = ("_listed", "_name", "_node", "_parent")

    def __init__(
        self, node: DirectoryNode | None, parent: Folder | None = None, name: str = ""
    ) -> None:
        self._node = node
        self._parent = parent
        self._name = name
        # The directories of an image that were listed in this walk, shared by all of it.
        self._listed: set[int] = set() if parent is None else parent._listed

    def anew(self) -> Folder:
        """The same directory, as the root of another walk."""
        return Folder(self._node)

    def sub(self, name: str) -> Folder:
        """The directory `name` in it."""
        return Folder(None, self, check_name(name))

    async def node(self) -> DirectoryNode:
        """The directory itself.  Raises `NotFound`, `NotDirectory`, and what the backer raises."""
        if self._node is None:
            if self._parent is None:
                raise RuntimeError("a folder has a node or a parent")
            above = await self._parent.node()
            if isinstance(above, Directory):
                self._node = above.pipelined((self._name,))
            else:
                self._node = await above.sub(self._name)
        return self._node

    async def node_to_list(self) -> DirectoryNode:
        """As `node`, once.

        Raises `Corrupt` for a directory of an image that was listed before: with two names each,
        a few dozen directories make a tree without end."""
        node = await self.node()
        node_id = _unique_id(node)
        if node_id is not None:
            if node_id in self._listed:
                raise Corrupt("this directory is at another place in the image, too")
            self._listed.add(node_id)
        return node


def _unique_id(node: DirectoryNode) -> int | None:
    """What tells directories apart that whoever wrote an image may have given several names."""
    if isinstance(node, ImageDirectory):
        return node.node
    return node.core.node_id if isinstance(node, OverlayDirectory) else None


class NodeTree:
    """Directories of the node protocol, of a service or of this process, to read from."""

    def sub(self, directory: Folder, name: str) -> Folder:
        return directory.sub(name)

    async def pages(self, directory: Folder) -> AsyncGenerator[Sequence[Entry], None]:
        node = await directory.node_to_list()
        if isinstance(node, Directory):
            async with aclosing(listed(node)) as pages:
                async for entries in pages:
                    yield entries
            return
        after = ""
        while True:
            page = await node.list(after)
            yield page.entries
            if not page.more:
                return
            after = page.entries[-1].name

    async def content(self, directory: Folder, entry: Entry) -> Content:
        node = await directory.node()
        if isinstance(node, Directory):
            return await RemoteTree().content(node, entry)
        return await content_of(await node.open(check_name(entry.name)))


async def content_of(file: FileNode) -> Content:
    """All that is in an open file, which is closed behind that."""
    try:
        first = await file.read(0, TRANSFER_BYTES_MAX)
    except BaseException:
        await file.close()
        raise
    if len(first) < TRANSFER_BYTES_MAX:
        await file.close()
        return Content(first)
    return Content(first, _rest_of(file))


async def _rest_of(file: FileNode) -> AsyncIterator[Buffer]:
    offset = TRANSFER_BYTES_MAX
    try:
        while piece := await file.read(offset, TRANSFER_BYTES_MAX):
            yield piece
            offset += len(piece)
    finally:
        await file.close()


@dataclass(frozen=True, slots=True)
class Tree:
    """An open tree: its root, and what is known of it."""

    root: Folder
    entry: Entry


@asynccontextmanager
async def opened_tree(text: str) -> AsyncIterator[Tree]:
    """The tree that `text` names.

    Raises `NotFound`, `NotDirectory`, `Corrupt` and `Unsupported` for a file that is no image, and
    what opening a location or a volume raises.
    """
    if _LOCATION.fullmatch(text):
        async with opened(locate(text)) as service:
            yield await tree_of(await find_directory(service.top, service.path))
        return
    volume = await _volume(text)
    try:
        yield await tree_of(volume.root)
    finally:
        await volume.close()


async def tree_of(root: DirectoryNode) -> Tree:
    """The tree below `root`."""
    return Tree(Folder(root), Entry("", await root.stat()))


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An open image: its file's path, its format as `open_image` calls it, and its volume."""

    path: str
    format: str
    volume: ImageVolume


@asynccontextmanager
async def opened_image(text: str) -> AsyncIterator[OpenImage]:
    """The image that `text` names: a file, or a specification of one (``fat:disk.img,part=2``).

    Raises `NotFound`, `Busy`, `Corrupt`, and `Unsupported` for what is none.
    """
    image = await _image(text)
    try:
        yield image
    finally:
        await image.volume.close()


async def _image(text: str) -> OpenImage:
    if await in_worker(lambda: _is_spec(text)):
        spec = Spec.parse(text)
        volume = await _volume_of_spec(text) if spec.scheme in FORMATS else None
        if not isinstance(volume, ImageVolume):
            known = ", ".join((*FORMATS, *STORES))
            raise Unsupported(f"{spec.scheme}: is no image of a tree (there are: {known})")
        return OpenImage(spec.argument, spec.scheme, volume)
    kind = (await in_worker(lambda: halves_of(text))).tree
    try:
        if kind is None:
            raise Unsupported("a store of objects is no tree of files")
        return OpenImage(text, kind, await ImageVolume.open(lambda: open_image(text, scheme=kind)))
    except StorageError as error:
        raise local_error(error, text) from error


@dataclass(frozen=True, slots=True)
class Halves:
    """What is in the image file at `path`: a `store` of objects, a tree of the format `tree`, or
    the one in front of the other."""

    path: str
    store: bool
    tree: str | None


def halves_of(text: str) -> Halves:
    """What the image that `text` names holds, as far as its superblocks say; a specification names
    one half.

    Raises `Unsupported` for what is no image, and what opening and reading the file raises.
    """
    if _is_spec(text):
        spec = Spec.parse(text)
        if spec.scheme in (*STORES, "wf1"):
            spec.check_options({"ro"})
        if spec.scheme in STORES:
            return Halves(spec.argument, store=True, tree=None)
        return Halves(spec.argument, store=False, tree=spec.scheme)
    try:
        kind = format_of(text)
        device = FileDevice.open(text, writable=False)
        try:
            store = has_store(device)
        finally:
            device.close()
    except StorageError as error:
        raise local_error(error, text) from error
    return Halves(text, store=store, tree=None if kind in STORES else kind)


def contents_of(text: str) -> Halves:
    """As `halves_of`, also of what is a tree and no image."""
    mode = _mode_of(text)
    if _LOCATION.fullmatch(text) or (not _is_spec(text) and (mode is None or modes.S_ISDIR(mode))):
        return Halves(text, store=False, tree="dir")
    return halves_of(text)


def _is_spec(text: str) -> bool:
    return _mode_of(text) is None and _SPEC.fullmatch(text) is not None


async def _volume(text: str) -> Volume:
    mode = await in_worker(lambda: _mode_of(text))
    if mode is None and _SPEC.fullmatch(text):
        return await _volume_of_spec(text)
    if mode is None:
        raise NotFound(f"{local(text)}: there is no such file or directory")
    if not modes.S_ISDIR(mode):
        return (await _image(text)).volume
    try:
        return await HostVolume.open(text, read_only=True)
    except StorageError as error:
        raise local_error(error, text) from error


async def _volume_of_spec(text: str) -> Volume:
    """What the specification names; what could be written is opened to be read."""
    spec = Spec.parse(text)
    if spec.scheme != "wf1":
        return await open_to_read(text)
    spec.check_options({"ro"})
    return await ImageVolume.open(lambda: open_image(spec.argument, scheme=spec.scheme))


def _mode_of(text: str) -> int | None:
    """Of the file or directory `text`, links followed; None if there is none."""
    try:
        return Path(text).stat().st_mode
    except FileNotFoundError:
        return None


# Walking -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a walk: `entry` in `folder`, at `path` below the root."""

    path: tuple[str, ...]
    folder: Folder
    entry: Entry

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.entry.stat.kind is NodeKind.DIRECTORY

    async def content(self) -> Content:
        """The content of the file that it is."""
        return await NodeTree().content(self.folder, self.entry)


async def depth_first(
    root: Folder, path: tuple[str, ...] = (), *, skip: frozenset[tuple[str, ...]] = frozenset()
) -> AsyncGenerator[Step, None]:
    """Everything below the root `root`, which is at `path`, but what is at or below one of `skip`.

    Raises `StorageError` with the path in front; `TooLarge` over `IMAGE_DEPTH_MAX` deep.
    """
    stack = [entries_of(root.anew(), path)]
    try:
        while stack:
            step = await anext(stack[-1], None)
            if step is None:
                await stack.pop().aclose()
            elif step.path not in skip:
                yield step
                if step.is_directory:
                    stack.append(entries_of(step.folder.sub(step.entry.name), step.path))
    finally:
        for entries in reversed(stack):
            await entries.aclose()


async def entries_of(folder: Folder, path: tuple[str, ...]) -> AsyncGenerator[Step, None]:
    """The entries of `folder`, which is at `path`.  Raises as `depth_first`."""
    if len(path) > IMAGE_DEPTH_MAX:
        raise TooLarge(f"a tree is at most {IMAGE_DEPTH_MAX} levels deep")
    try:
        async with aclosing(NodeTree().pages(folder)) as pages:
            async for page in pages:
                for entry in page:
                    yield Step((*path, _checked(entry.name)), folder, entry)
    except StorageError as error:
        raise about(path, error) from error


def _checked(name: str) -> str:
    """`name`, if it can be used; raises `InvalidName` with it."""
    try:
        return check_name(name)
    except InvalidName as error:
        raise InvalidName(f'"{printable(name)}": {error.message}') from error


async def found_below(tree: Tree, path: Sequence[str]) -> Step:
    """The entry at `path`, which is not empty; no link is followed.

    Raises `NotFound`, `NotDirectory` with the path in front.
    """
    folder = tree.root
    for depth, name in enumerate(path, 1):
        try:
            entry = await (await folder.node()).lookup(name)
        except StorageError as error:
            raise about(path[:depth], error) from error
        if depth == len(path):
            return Step(tuple(path), folder, entry)
        if entry.stat.kind is not NodeKind.DIRECTORY:
            raise about(path[:depth], NotDirectory("this is no directory"))
        folder = folder.sub(name)
    raise ValueError("the path is empty")
