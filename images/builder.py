"""What every builder of an image has in common: a tree is pushed into it, node by node.

Invariants: the same calls give the same bytes.  A directory comes before what is in it; entries of
a directory come in the order of their names' bytes, depth first.  Nothing is at the output's final
place before `finish` has returned (`capstore.images.durable`); `abort` leaves nothing behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capstore.schema.errors import InvalidArgument, Unsupported
from capstore.schema.limits import SYMLINK_TARGET_BYTES_MAX
from capstore.schema.nodes import Buffer, Provenance

Path = Sequence[str]


def check_named(path: Path) -> None:
    """Raises `InvalidArgument` for the root's path: only a directory is there."""
    if not path:
        raise InvalidArgument("the root is a directory")


def check_target(path: Path, target: str) -> None:
    """Raises `Unsupported` for a `target` that the symbolic link `path` cannot have in an image."""
    check_named(path)
    try:
        size = len(target.encode())
    except UnicodeEncodeError:
        raise Unsupported(f'"{path[-1]}" has a target that is no UTF-8') from None
    if not 0 < size <= SYMLINK_TARGET_BYTES_MAX or "\0" in target:
        limits = f"1 to {SYMLINK_TARGET_BYTES_MAX} bytes and no NUL"
        raise Unsupported(f'"{path[-1]}" has a target that is none: it has {limits}')


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of a node besides its content; times in ns since 1970."""

    modified: int = 0
    created: int = 0
    provenance: Provenance = Provenance.UNKNOWN
    executable: bool = False


class TreeBuilder(ABC):
    """An image in the making.  A path is a sequence of names; the root's is empty.

    A file is whole before anything else is called.  After an error only `abort` makes sense.

    Every method raises what the output's device raises, and `Unsupported`, with the path's last
    name, for what the format cannot hold.
    """

    @abstractmethod
    def directory(self, path: Path, facts: Facts) -> None:
        """A directory; the root comes first."""

    @abstractmethod
    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        """A file of `size` bytes, which `write` then gives."""

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """The next bytes of the file that was begun.  Raises `InvalidArgument` for too many."""

    @abstractmethod
    def end_file(self) -> None:
        """The file is whole.  Raises `InvalidArgument` if it is not of the size it was to be."""

    @abstractmethod
    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        """A symbolic link; its target has 1 to 4095 bytes of UTF-8 and no NUL."""

    @abstractmethod
    def link(self, path: Path, original: Path) -> None:
        """Another name of the file (or symbolic link) `original`, which came before."""

    @abstractmethod
    def finish(self) -> None:
        """Writes what is left and puts the image in its place, durably."""

    @abstractmethod
    def abort(self) -> None:
        """Drops what was built; does nothing after `finish`."""


class FilePieces:
    """The content of a file that is being pushed, cut into pieces of `piece_bytes`, the last of
    what is left.  `put` gets each with its offset, but those that are all zeros."""

    def __init__(self, size: int, piece_bytes: int, put: Callable[[int, bytes], None]) -> None:
        self.size = size
        self._piece_bytes = piece_bytes
        self._put = put
        self._done = 0
        self._pending = bytearray()

    def write(self, data: Buffer) -> None:
        """The next bytes.  Raises `InvalidArgument` for more than the file was to have."""
        view = memoryview(data).cast("B")
        if self._done + len(self._pending) + len(view) > self.size:
            raise InvalidArgument("the file is longer than it was to be")
        while view:
            piece = view[: self._piece_bytes - len(self._pending)]
            self._pending += piece
            view = view[len(piece) :]
            if len(self._pending) == self._piece_bytes:
                self._hand_on()

    def end(self) -> None:
        """The file is whole.  Raises `InvalidArgument` for less than it was to have."""
        if self._pending:
            self._hand_on()
        if self._done != self.size:
            raise InvalidArgument("the file is shorter than it was to be")

    def _hand_on(self) -> None:
        piece = bytes(self._pending)
        self._pending.clear()
        if piece.count(0) != len(piece):
            self._put(self._done, piece)
        self._done += len(piece)
