"""Reading all that is in an image, without a loop: for those who check it.

Invariants: each node is read once, whatever its names; a file's holes are not read, so the work is
bounded by what the image holds; the memory is that of the ids of directories and of files with
several names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from capstore.images.tree import Content, ExtentContent, ImageTree
from capstore.schema.errors import Closed, Corrupt, StorageError
from capstore.schema.limits import MIB
from capstore.schema.nodes import Entry, NodeKind
from capstore.tools.progress import Meter

_PIECE_BYTES: Final = MIB


class _Level:
    """A directory on the way down: `name` in `above`, listed up to `after`."""

    __slots__ = ("above", "after", "entries", "more", "name", "node")

    def __init__(self, node: int, name: str, above: _Level | None) -> None:
        self.node = node
        self.name = name
        self.above = above
        self.after = ""
        self.more = True
        self.entries: Iterator[Entry] = iter(())

    def path(self, *last: str) -> list[str]:
        """The names that lead to it, and `last`."""
        names = list(last)
        level: _Level | None = self
        while level is not None and level.above is not None:
            names.insert(0, level.name)
            level = level.above
        return names

    def next(self, tree: ImageTree) -> Entry | None:
        """The next entry; None at the end.  Raises as `ImageTree.list`."""
        while (entry := next(self.entries, None)) is None and self.more:
            # Should the listing fail, this directory ends there.
            self.more = False
            page = tree.list(self.node, self.after, 1000)
            self.entries = iter(page.entries)
            if page.more:
                self.after, self.more = page.entries[-1].name, True
        return entry


def contents_read(tree: ImageTree, meter: Meter) -> Iterator[tuple[list[str], StorageError]]:
    """Reads every directory and every file; gives the path and the error of what cannot be.

    Raises `Closed` when the image is closed meanwhile.
    """
    buffer = memoryview(bytearray(_PIECE_BYTES))
    stack = [_Level(tree.root, "", None)]
    seen = {tree.root}
    while stack:
        level = stack[-1]
        entry = None
        try:
            entry = level.next(tree)
            if entry is None:
                stack.pop()
                continue
            meter.entries += 1
            if entry.stat.kind is NodeKind.DIRECTORY:
                _once(seen, entry.stat.node_id)
                stack.append(_Level(entry.stat.node_id, entry.name, level))
            elif entry.stat.kind is NodeKind.FILE and _is_new(seen, entry):
                _read(tree.content(entry.stat.node_id), buffer, meter)
        except Closed:
            raise
        except StorageError as error:
            yield level.path(*([] if entry is None else [entry.name])), error


def _once(seen: set[int], directory: int) -> None:
    if directory in seen:
        raise Corrupt("this directory is at another place in the image, too")
    seen.add(directory)


def _is_new(seen: set[int], entry: Entry) -> bool:
    if entry.stat.link_count < 2:
        return True
    new = entry.stat.node_id not in seen
    seen.add(entry.stat.node_id)
    return new


def _read(content: Content, buffer: memoryview, meter: Meter) -> None:
    for start, end in _stored(content):
        at = start
        while at < end:
            got = content.read_into(at, buffer[: min(len(buffer), end - at)])
            if not got:
                raise Corrupt("the file ends before its size")
            at += got
            meter.bytes += got


def _stored(content: Content) -> Iterator[tuple[int, int]]:
    """The stretches of a file that are stored; a hole can be as long as numbers go."""
    if not isinstance(content, ExtentContent):
        yield 0, content.size
        return
    for start, length, _ in content.extents.tolist():
        yield start, start + length
