"""``capstore image extract``: from an image into a local directory.

Invariants: those of `capstore.tools.copying` and `capstore.tools.local_tree`, and for objects those
of `capstore.tools.image.unpacking`: nothing that is in an image leads out of the directory that was
typed, and what fails is reported while the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from capstore.backers.workers import in_worker
from capstore.schema.errors import InvalidArgument
from capstore.schema.names import from_bytes
from capstore.service.uri import split_path
from capstore.tools.copying import Copier, Original, Place, summed_up
from capstore.tools.image.source import (
    Folder,
    NodeTree,
    Tree,
    found_below,
    halves_of,
    opened_image,
    tree_of,
)
from capstore.tools.image.unpacking import unpack
from capstore.tools.local_tree import LocalDirectory, LocalTree, local_directory
from capstore.tools.progress import metered

# Where the halves of an image go.
TREE_FOLDER: Final = "files"
STORE_FOLDER: Final = "objects"


async def extract(
    file: str, dest: str, path: str, *, manifest: Path | None = None, quiet: bool
) -> None:
    """Copies what is at `path` in the image `file` to `dest`; objects all together, with what is
    known of them in the file `manifest`, and both halves of an image side by side.

    Raises what opening the image raises, OSError, `NotFound`, `InvalidArgument`, `NotEmpty`, and
    `Failed` where parts failed.
    """
    halves = await in_worker(lambda: halves_of(file))
    if manifest is not None and not halves.store:
        raise InvalidArgument("only objects have a manifest")
    if not halves.store:
        await _extract_tree(file, dest, path, quiet=quiet)
        return
    if path:
        raise InvalidArgument(f"PATH is for a tree of files{' (wf1:FILE)' * bool(halves.tree)}")
    if not halves.tree:
        await unpack(halves, Path(dest), manifest, quiet=quiet)
        return
    tree, store = (Path(dest, name) for name in (TREE_FOLDER, STORE_FOLDER))
    for folder in (tree, store):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        await unpack(halves, store, manifest, quiet=quiet)
    finally:
        # What fails in the one half is no reason to leave the other.
        await _extract_tree(file, str(tree), "", quiet=quiet)


async def _extract_tree(file: str, dest: str, path: str, *, quiet: bool) -> None:
    names = split_path(path)
    async with opened_image(file) as image:
        original = await _original(await tree_of(image.volume.root), names)
        with _place(dest) as place:
            async with metered("extract", quiet=quiet) as meter:
                copier = Copier(NodeTree(), LocalTree(), meter)
                await copier.copy(original, place, recursive=True)
            summed_up(meter)


async def _original(tree: Tree, names: tuple[str, ...]) -> Original[Folder]:
    if not names:
        return Original(tree.root, tree.entry, ())
    found = await found_below(tree, names)
    return Original(found.folder, found.entry, found.path)


@contextmanager
def _place(dest: str) -> Iterator[Place[LocalDirectory]]:
    """Into the directory `dest`, or under that name.  Raises OSError."""
    path = Path(dest)
    if path.is_dir():
        with local_directory(path) as directory:
            yield Place(directory)
        return
    with local_directory(path.parent) as directory:
        yield Place(directory, from_bytes(os.fsencode(path.name)))
