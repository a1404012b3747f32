"""Building CAPOSWF1: the engine's own operations, with a fixed clock, and a last checkpoint.

Invariants:

* The same calls give the same bytes: the image's id is a digest of the tables of its checkpoint,
  which hold the checksums of all data.
* A unit of zeros is a hole.
* The superblocks are written last; an image that was not finished has those of an empty volume, or
  of one that is not whole, and is at no place that anybody looks at.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from capstore.images import wf1
from capstore.images.builder import (
    Facts,
    FilePieces,
    Path,
    TreeBuilder,
    check_named,
    check_target,
)
from capstore.images.device import BlockDevice
from capstore.images.wf1 import UNIT_BYTES
from capstore.images.wf1_base import PAGE_BYTES, Tables
from capstore.images.wf1_compact import cut
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_state import GONE, Change, Node, NodeChange
from capstore.schema.errors import InvalidArgument, NotFound
from capstore.schema.nodes import Buffer


class Wf1Builder(TreeBuilder):
    """Makes a volume on `device`, from its beginning, and fills it.

    With `size` (bytes of the whole image) it never changes its length, else it grows.  `built` (ns
    since 1970) is when it was made.  Raises `InvalidArgument` for a size that is too small and for
    calls in a wrong order, `NoSpace` for more than the size allows.
    """

    def __init__(self, device: BlockDevice, *, size: int | None = None, built: int = 0) -> None:
        def clock() -> int:
            return built

        format_wf1(device, size=size, clock=clock, entropy=_not_random)
        self._device = device
        self._engine: Engine = open_wf1(device, clock=clock, entropy=_not_random)
        # The directories that lead to where we are: (name, id, facts).
        self._stack: list[tuple[str, int, Facts]] = []
        # The file that was begun: its id, its facts, and what is not in place yet.
        self._file: tuple[int, Facts, FilePieces] | None = None

    # Nodes ---------------------------------------------------------------------------------------

    def directory(self, path: Path, facts: Facts) -> None:
        self._check_whole()
        if not path:
            if self._stack:
                raise InvalidArgument("the root comes first, once")
            self._stack.append(("", wf1.ROOT, facts))
            return
        number = self._engine.make(self._parent(path), path[-1], _node(wf1.DIRECTORY, facts))
        self._stack.append((path[-1], number, facts))

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        check_target(path, target)
        self._check_whole()
        node = _node(wf1.SYMLINK, facts)._replace(target=target, size=len(target.encode()))
        self._engine.make(self._parent(path), path[-1], node)

    def link(self, path: Path, original: Path) -> None:
        check_named(original)
        self._check_whole()
        parent = self._parent(path)
        self._engine.link(self._find(original[:-1]), original[-1], parent, path[-1])

    def _check_whole(self) -> None:
        if self._file is not None:
            raise InvalidArgument("the file before is not whole")

    def _parent(self, path: Path) -> int:
        """The directory in which `path` is; those that are left on the way to it are whole."""
        check_named(path)
        above = ["", *path[:-1]]
        while self._stack and [name for name, _, _ in self._stack] != above[: len(self._stack)]:
            self._leave()
        if len(self._stack) != len(above):
            raise NotFound("what is above comes first")
        return self._stack[-1][1]

    def _leave(self) -> None:
        """The last directory is whole: making what is in it is no change of it."""
        _, number, facts = self._stack.pop()
        self._restore(number, facts)

    def _restore(self, number: int, facts: Facts) -> None:
        node = self._engine.state.node(number)
        if node is None:
            raise NotFound("the node is gone")
        self._engine.perform(Change((NodeChange(_with_facts(node, facts)),)))

    def _find(self, path: Path) -> int:
        at = wf1.ROOT
        for name in path:
            at = self._engine.state.child(at, name)
            if at == GONE:
                raise NotFound("the original comes first")
        return at

    # Files ---------------------------------------------------------------------------------------

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        self._check_whole()
        number = self._engine.make(self._parent(path), path[-1], _node(wf1.FILE, facts))
        pieces = FilePieces(
            size, UNIT_BYTES, lambda offset, unit: self._engine.write(number, offset, unit)
        )
        self._file = (number, facts, pieces)

    def write(self, data: Buffer) -> None:
        self._begun()[2].write(data)

    def end_file(self) -> None:
        number, facts, pieces = self._begun()
        pieces.end()
        self._file = None
        if pieces.size:
            self._engine.truncate(number, pieces.size)
            self._restore(number, facts)

    def _begun(self) -> tuple[int, Facts, FilePieces]:
        if self._file is None:
            raise InvalidArgument("no file was begun")
        return self._file

    # The end -------------------------------------------------------------------------------------

    def finish(self) -> None:
        self._check_whole()
        while self._stack:
            self._leave()
        if self._engine.space.grows:
            cut(self._engine)
        else:
            self._engine.checkpoint()
        _identify(self._device)

    def abort(self) -> None:
        """Nothing to do: what was made is at no place of its own."""


def _not_random(count: int) -> bytes:
    """The same bytes each time: the key of a log that whoever opens the volume begins anew."""
    return hashlib.sha256(b"capstore wf1").digest()[:count]


def _node(kind: int, facts: Facts) -> Node:
    return _with_facts(Node(id=0, kind=kind), facts)


def _with_facts(node: Node, facts: Facts) -> Node:
    executable = facts.executable and node.kind == wf1.FILE
    return node._replace(
        flags=wf1.EXECUTABLE if executable else 0,
        created=facts.created,
        modified=facts.modified,
        provenance=facts.provenance,
    )


def _identify(device: BlockDevice) -> None:
    """Gives the finished image its id, in both superblocks."""
    found = recover(device)
    last = replace(found.superblock, image_id=_digest(device, found.tables))
    for generation in range(1, 1 + len(wf1.SUPERBLOCK_LBAS)):
        wf1.write_superblock(device, replace(last, generation=generation))
    device.flush()


def _digest(device: BlockDevice, tables: Tables) -> int:
    digest = hashlib.sha256()
    size = tables.head.length
    # A page lies in one piece.
    for at in range(0, size, PAGE_BYTES):
        digest.update(device.read(tables.place(at), PAGE_BYTES))
    return int.from_bytes(digest.digest()[:16], "big")
