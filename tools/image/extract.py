"""``capstore image extract``: from an image into a local directory.

Invariants: those of `capstore.tools.copying` and `capstore.tools.local_tree`: nothing that is in an
image leads out of the directory that was typed, and what fails is reported while the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capstore.schema.names import from_bytes
from capstore.service.uri import split_path
from capstore.tools.copying import Copier, Original, Place, summed_up
from capstore.tools.image.source import (
    Folder,
    NodeTree,
    Tree,
    found_below,
    opened_image,
    tree_of,
)
from capstore.tools.local_tree import LocalDirectory, LocalTree, local_directory
from capstore.tools.progress import metered


async def extract(file: str, dest: str, path: str, *, quiet: bool) -> None:
    """Copies what is at `path` in the image `file` to `dest`.

    Raises what opening the image raises, OSError, `NotFound`, and `Failed` where parts failed.
    """
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
