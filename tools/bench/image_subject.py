"""What capstore does in the image cases: in process, by the interface that its backers use.

Invariants: what a case is about is done anew in every batch, an image that is opened is also
closed; nothing is kept from one batch to the next but what an open image keeps by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capstore.images.formats import open_image
from capstore.images.tree import ImageTree
from capstore.schema.limits import KIB, MIB, PAGE_ENTRIES_MAX
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.image_corpus import FAT_DIRECTORY, FAT_FILE, GZ_FILES, Images, gz_name
from capstore.tools.bench.image_corpus import path_of as ro1_path

NAME = "capstore"
READ_BYTES = 4 * KIB
BLOCK_BYTES = MIB

# Does one batch with these choices; returns how many units that was.
Batch = Callable[[random.Random], int]


def reads(images: Images, rng: random.Random) -> Iterator[tuple[int, int]]:
    """The reads of a batch: number of a file of the tar.gz, and offset in it."""
    for _ in range(images.parameters.gz_batch):
        yield rng.randrange(GZ_FILES), rng.randrange(images.gz_file_bytes - READ_BYTES)


def paths(images: Images, rng: random.Random) -> Iterator[tuple[str, ...]]:
    """The files that a batch looks up in the large tree."""
    for index in rng.choices(
        range(images.parameters.ro1_entries), k=images.parameters.lookup_batch
    ):
        yield ro1_path(index)


def _find(tree: ImageTree, path: tuple[str, ...]) -> int:
    """The node at `path`."""
    node = tree.root
    for name in path:
        node = tree.lookup(node, name).stat.node_id
    return node


@contextmanager
def tar_open(images: Images) -> Iterator[Batch]:
    """Opens the tar archive without a cache; counts members."""
    path, members = images.tar, images.parameters.tar_members

    def batch(rng: random.Random) -> int:
        tree = open_image(path, scheme="tar")
        try:
            # All but the root, and directories above those that are members.
            return checked(NAME, tree.usage().used_nodes - 1 - images.tar_implied, members)
        finally:
            tree.close()

    yield batch


@contextmanager
def tar_reopen(images: Images) -> Iterator[Batch]:
    """Opens the tar archive by its kept index and finds one file in it; counts openings."""
    path = images.tar
    open_image(path, scheme="tar", cache=images.cache).close()

    def batch(rng: random.Random) -> int:
        tree = open_image(path, scheme="tar", cache=images.cache)
        try:
            _find(tree, images.tar_file(rng))
        finally:
            tree.close()
        return 1

    yield batch


@contextmanager
def gz_read(images: Images) -> Iterator[Batch]:
    """Reads here and there in the open files of the tar.gz; counts reads."""
    path = images.gz
    images.tell("indexing the tar.gz")
    tree = open_image(path, scheme="tar", cache=images.cache)
    contents = [tree.content(_find(tree, (gz_name(index),))) for index in range(GZ_FILES)]
    buffer = memoryview(bytearray(READ_BYTES))

    def batch(rng: random.Random) -> int:
        for number, offset in reads(images, rng):
            checked(NAME, contents[number].read_into(offset, buffer), READ_BYTES)
        return images.parameters.gz_batch

    try:
        yield batch
    finally:
        tree.close()


@contextmanager
def fat_list(images: Images) -> Iterator[Batch]:
    """Opens the FAT volume and lists its directory with stats; counts entries."""
    path = images.fat_many

    def batch(rng: random.Random) -> int:
        tree = open_image(path, scheme="fat")
        try:
            directory = _find(tree, (FAT_DIRECTORY,))
            return checked(NAME, _count(tree, directory), images.parameters.fat_entries)
        finally:
            tree.close()

    yield batch


def _count(tree: ImageTree, directory: int) -> int:
    """Lists all of a directory, page by page."""
    page = tree.list(directory, "", PAGE_ENTRIES_MAX)
    count = len(page.entries)
    while page.more:
        page = tree.list(directory, page.entries[-1].name, PAGE_ENTRIES_MAX)
        count += len(page.entries)
    return count


@contextmanager
def fat_stream(images: Images) -> Iterator[Batch]:
    """Opens and reads the large file of the FAT volume, block by block; counts bytes."""
    tree = open_image(images.fat_large, scheme="fat")
    node = _find(tree, (FAT_FILE,))
    buffer = memoryview(bytearray(BLOCK_BYTES))

    def batch(rng: random.Random) -> int:
        content = tree.content(node)
        done = 0
        while got := content.read_into(done, buffer):
            done += got
        return checked(NAME, done, images.parameters.fat_bytes)

    try:
        yield batch
    finally:
        tree.close()


@contextmanager
def ro1_open(images: Images) -> Iterator[Batch]:
    """Opens the large CAPOSRO1 image; counts openings."""
    yield _opener(images.ro1)


@contextmanager
def ro1_open_small(images: Images) -> Iterator[Batch]:
    """Opens the small CAPOSRO1 image; counts openings."""
    yield _opener(images.ro1_small)


def _opener(path: Path) -> Batch:
    def batch(rng: random.Random) -> int:
        tree = open_image(path, scheme="ro1")
        try:
            tree.stat(tree.root)
        finally:
            tree.close()
        return 1

    return batch


@contextmanager
def ro1_lookup(images: Images) -> Iterator[Batch]:
    """Looks up paths in the open CAPOSRO1 image, name by name; counts names."""
    tree = open_image(images.ro1, scheme="ro1")

    def batch(rng: random.Random) -> int:
        count = 0
        for path in paths(images, rng):
            _find(tree, path)
            count += len(path)
        return count

    try:
        yield batch
    finally:
        tree.close()
