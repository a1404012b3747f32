"""What a node of a memory volume holds, and what that costs.

Invariants:

* Memory in use is charged to one `Account`.  Each object that holds some carries its charge
  (`Charged.charged`) and gives it back when it dies, so whatever keeps the object alive (a name,
  an open handle, a snapshot) keeps it paid for, and it is paid back exactly once.
* The charge of a live file is its length: bytes in chunks are charged by the chunk, holes by the
  state, and writing into a hole moves the charge.  Filling a hole therefore never lacks space.
* What may fail is reserved before anything changes; an operation that raises changed nothing.
* A state or chunk whose generation is at most that of the newest snapshot alive is shared with
  that snapshot and is never changed; the writer copies it first.
* A whiteout is no entry: it is in a table of its own, costs what an entry of its name costs, and
  no name is in both tables.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.node import NodeKind, Provenance
from capstore.schema.errors import InvalidArgument, NoSpace, TooLarge
from capstore.schema.limits import KIB
from capstore.schema.names import check_name

CHUNK_BYTES = 64 * KIB
# What an entry costs besides its name: about a slot of a dict and the string's own header.
ENTRY_BYTES = 64
# So many changes in a row that no listing came between drop the sorted names: a bulk import
# should not pay for keeping them in order.
_UNREAD_CHANGES_MAX = 4096

# A path, as a symbolic link's target is.
REDIRECT_BYTES_MAX = 4095
_ORIGINS = range(2**64)
_COUNTS = range(2**63)

V = TypeVar("V")


class Account:
    """Bytes and nodes in use, against `bytes_max` and `nodes_max`."""

    def __init__(self, bytes_max: int, nodes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nodes_max = nodes_max
        self._bytes = 0
        self._nodes = 0
        self._lending = 0
        self._lent = 0
        # Finalizers run in any thread and between any two steps of this one, so they only leave
        # a note here; the next call settles it.
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, size: int, nodes: int = 0, copied: int = 0) -> None:
        """Charges `size` bytes (fewer than 0 gives back) and `nodes`; raises `NoSpace`.

        `copied` bytes are charged because a snapshot holds back what they replace.
        """
        self._settle()
        lent = self._lent + (copied if self._lending else 0)
        if size + copied > 0 and self._bytes + size + copied > self.bytes_max + lent:
            raise NoSpace("the volume is full")
        if nodes > 0 and self._nodes + nodes > self.nodes_max:
            raise NoSpace("the volume has as many nodes as it may have")
        self._lent = lent
        self._bytes += size + copied
        self._nodes += nodes

    @contextmanager
    def lending(self) -> Iterator[None]:
        """While the volume is saved: what its snapshot holds back does not fill the volume.

        Else a write could fail only because a save happens to be under way.
        """
        self._lending += 1
        try:
            yield
        finally:
            self._lending -= 1
            if not self._lending:
                self._lent = 0

    def give(self, size: int) -> None:
        """Gives back `size` bytes; for use where the volume is used, not in finalizers."""
        self._bytes -= size

    def give_later(self, size: int, nodes: int) -> None:
        """Gives back from a finalizer, in whatever thread that is."""
        self._returned.append((size, nodes))

    def in_use(self) -> tuple[int, int]:
        """Bytes and nodes charged now."""
        self._settle()
        return self._bytes, self._nodes

    def _settle(self) -> None:
        while self._returned:
            size, nodes = self._returned.popleft()
            self._bytes -= size
            self._nodes -= nodes


class Charged:
    """Something that holds `charged` bytes of `account` for as long as it lives."""

    __slots__ = ("account", "charged")
    nodes = 0

    def __init__(self, account: Account, charged: int) -> None:
        self.account = account
        self.charged = charged

    def __del__(self) -> None:
        self.account.give_later(self.charged, self.nodes)


class Chunk(Charged):
    """Up to `CHUNK_BYTES` of a file, from the chunk's beginning; what is missing is a hole."""

    __slots__ = ("data", "generation")

    def __init__(self, account: Account, generation: int, data: bytearray) -> None:
        super().__init__(account, len(data))
        self.generation = generation
        self.data = data

    def put(self, start: int, piece: memoryview) -> int:
        """Writes `piece` at `start`; returns by how many bytes the chunk grew."""
        before = len(self.data)
        if before < start:
            self.data.extend(bytes(start - before))
        self.data[start : start + len(piece)] = piece
        grown = len(self.data) - before
        self.charged += grown
        return grown


class State(Charged):
    """One version of a node, from `generation` on: what `stat` tells of it."""

    __slots__ = (
        "created",
        "executable",
        "generation",
        "links",
        "mark",
        "modified",
        "provenance",
        "version",
    )

    def __init__(self, account: Account, generation: int, version: int, now: int) -> None:
        super().__init__(account, 0)
        self.generation = generation
        self.version = version
        self.created = now
        self.modified = now
        self.provenance = Provenance.WALL_CLOCK
        self.executable = False
        self.links = 0
        self.mark = NO_MARK

    @property
    def shown(self) -> int:
        """Under how many names the node is shown, those in layers below included."""
        return self.links + self.mark.below

    def put_mark(self, mark: Mark) -> None:
        """Sets the mark; what it costs more than the old one (`mark_cost`) was taken before."""
        self.charged += mark_cost(mark) - mark_cost(self.mark)
        self.mark = mark

    def copy(self, generation: int) -> State:
        """A copy to change while snapshots keep this one; raises `NoSpace`."""
        other = State(self.account, generation, self.version, self.modified)
        self._copy_stat(other)
        return other

    def _copy_stat(self, other: State) -> None:
        other.created = self.created
        other.provenance = self.provenance
        other.executable = self.executable
        other.links = self.links
        other.mark = self.mark


class FileState(State):
    """Content: `size` bytes in `chunks` by index; `charged` is what of it is holes."""

    __slots__ = ("chunks", "size")

    def __init__(self, account: Account, generation: int, version: int, now: int) -> None:
        super().__init__(account, generation, version, now)
        self.size = 0
        self.chunks: dict[int, Chunk] = {}

    def copy(self, generation: int) -> FileState:
        """As `State.copy`; the chunks are shared, and the live copy goes on paying for holes."""
        other = FileState(self.account, generation, self.version, self.modified)
        self._copy_stat(other)
        other.size = self.size
        other.chunks = self.chunks.copy()
        other.charged, self.charged = self.charged, 0
        return other

    def pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, Chunk | None]]:
        """The chunk under each part of ``[offset, end)``, as ``(start, stop)`` in the file."""
        while offset < end:
            index = offset // CHUNK_BYTES
            stop = min(end, (index + 1) * CHUNK_BYTES)
            yield offset, stop, self.chunks.get(index)
            offset = stop

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fills `view` from `offset` as far as the file goes; returns how many bytes that were."""
        length = min(len(view), self.size - offset)
        if length <= 0:
            return 0
        for start, stop, chunk in self.pieces(offset, offset + length):
            held = 0
            if chunk is not None:
                base = start % CHUNK_BYTES
                with memoryview(chunk.data) as data, data[base : base + stop - start] as part:
                    held = len(part)
                    view[start - offset : start - offset + held] = part
            if held < stop - start:
                view[start - offset + held : stop - offset] = bytes(stop - start - held)
        return length

    def write(self, offset: int, data: memoryview, shared_until: int) -> None:
        """Writes `data`; chunks up to the generation `shared_until` are copied first.

        Raises `NoSpace` with nothing changed.
        """
        if not len(data):
            return
        end = offset + len(data)
        growth = max(0, end - self.size)
        copied = sum(
            len(chunk.data)
            for _, _, chunk in self.pieces(offset, end)
            if chunk is not None and chunk.generation <= shared_until
        )
        self.account.take(growth, copied=copied)
        self.charged += growth
        self.size += growth
        for start, stop, chunk in self.pieces(offset, end):
            own = self._own_chunk(start // CHUNK_BYTES, chunk, shared_until)
            piece = data[start - offset : stop - offset]
            self.charged -= own.put(start % CHUNK_BYTES, piece)

    def _own_chunk(self, index: int, chunk: Chunk | None, shared_until: int) -> Chunk:
        """The chunk `index`, one that may be changed; its bytes are reserved already."""
        if chunk is None or chunk.generation <= shared_until:
            kept = bytearray() if chunk is None else bytearray(chunk.data)
            chunk = self.chunks[index] = Chunk(self.account, self.generation, kept)
        return chunk

    def truncate(self, size: int, shared_until: int) -> None:
        """Cuts or extends to `size`; raises `NoSpace` with nothing changed."""
        if size >= self.size:
            self.account.take(size - self.size)
            self.charged += size - self.size
            self.size = size
            return
        index, rest = divmod(size, CHUNK_BYTES)
        self._cut_chunk(index, rest, shared_until)
        first_gone = index + (1 if rest else 0)
        for gone in [at for at in self.chunks if at >= first_gone]:
            del self.chunks[gone]
        self.size = size
        holes = size - sum(len(chunk.data) for chunk in self.chunks.values())
        self.account.give(self.charged - holes)
        self.charged = holes

    def _cut_chunk(self, index: int, rest: int, shared_until: int) -> None:
        chunk = self.chunks.get(index)
        if chunk is None or not rest or len(chunk.data) <= rest:
            return
        if chunk.generation <= shared_until:
            self.account.take(0, copied=rest)
            self.chunks[index] = Chunk(self.account, self.generation, chunk.data[:rest])
            return
        self.account.give(len(chunk.data) - rest)
        chunk.charged = rest
        del chunk.data[rest:]


def entry_cost(name: str) -> int:
    """Bytes charged for an entry called `name`, or for a whiteout."""
    return ENTRY_BYTES + len(name.encode())


def mark_cost(mark: Mark) -> int:
    """Bytes charged for a mark."""
    return len(mark.redirect.encode())


def check_mark(kind: NodeKind, mark: Mark) -> None:
    """Raises `TooLarge` for a redirect that is too long, `InvalidArgument` for a mark that a node
    of this kind cannot have."""
    if kind is NodeKind.DIRECTORY:
        if mark.below:
            raise InvalidArgument("a directory has no names below")
    elif mark.opaque or mark.redirect:
        raise InvalidArgument("only a directory is opaque or redirected")
    if mark.origin not in _ORIGINS or mark.below not in _COUNTS or (mark.below and not mark.origin):
        raise InvalidArgument("a mark with an impossible origin")
    if mark.redirect:
        if len(mark.redirect) > REDIRECT_BYTES_MAX:
            raise TooLarge("a redirect that is too long")
        for part in mark.redirect.split("/"):
            check_name(part)
        if len(mark.redirect.encode()) > REDIRECT_BYTES_MAX:
            raise TooLarge("a redirect that is too long")


class NameTable(dict[str, V], Generic[V]):
    """Something by name; changed by `put` and `drop` only.

    The names in order are kept from the first listing on and follow the changes.
    """

    __slots__ = ("_sorted", "_unread")

    def __init__(self, other: NameTable[V] | None = None) -> None:
        super().__init__(other or {})
        self._sorted: list[str] | None = None
        self._unread = 0

    def put(self, name: str, value: V) -> None:
        """Sets what is called `name`."""
        if name not in self:
            names = self._followed()
            if names is not None:
                insort(names, name)
        self[name] = value

    def drop(self, name: str) -> None:
        """Removes a name that is there."""
        del self[name]
        names = self._followed()
        if names is not None:
            del names[bisect_left(names, name)]

    def _followed(self) -> list[str] | None:
        """The sorted names, if they are there and still worth keeping up."""
        self._unread += 1
        if self._unread > _UNREAD_CHANGES_MAX:
            self._sorted = None
        return self._sorted

    def after(self, after: str, count: int) -> list[str]:
        """Up to `count` names behind `after`, in the order of their UTF-8 bytes.

        That is the order of code points, which is how Python compares strings.
        """
        names = self._sorted
        if names is None:
            names = self._sorted = sorted(self)
        self._unread = 0
        start = bisect_right(names, after)
        return names[start : start + count]


class DirectoryState(State):
    """Entries and whiteouts by name; each version of a directory is charged for all of them."""

    __slots__ = ("entries", "whiteouts")

    def __init__(self, account: Account, generation: int, version: int, now: int) -> None:
        super().__init__(account, generation, version, now)
        self.entries: NameTable[Inode] = NameTable()
        self.whiteouts: NameTable[None] = NameTable()

    def copy(self, generation: int) -> DirectoryState:
        """As `State.copy`; the tables are copied, and charged."""
        self.account.take(0, copied=self.charged)
        other = self.emptied(generation)
        other.charged = self.charged
        other.entries = NameTable(self.entries)
        other.whiteouts = NameTable(self.whiteouts)
        other.mark = self.mark
        return other

    def emptied(self, generation: int) -> DirectoryState:
        """A copy without entries, whiteouts and mark, which costs nothing."""
        other = DirectoryState(self.account, generation, self.version, self.modified)
        self._copy_stat(other)
        other.mark = NO_MARK
        return other

    def cost_of(self, name: str) -> int:
        """What `put` or `cover` of `name` costs: nothing where an entry or a whiteout is."""
        return 0 if name in self.entries or name in self.whiteouts else entry_cost(name)

    def put(self, name: str, inode: Inode) -> None:
        """Sets an entry, also over a whiteout; its `cost_of` was taken before."""
        self.charged += self.cost_of(name)
        if name in self.whiteouts:
            self.whiteouts.drop(name)
        self.entries.put(name, inode)

    def cover(self, name: str) -> None:
        """Sets a whiteout, also over an entry; its `cost_of` was taken before."""
        self.charged += self.cost_of(name)
        if name in self.entries:
            self.entries.drop(name)
        self.whiteouts.put(name, None)

    def drop(self, name: str) -> None:
        """Removes an entry; its `entry_cost` is for the caller to give back."""
        self.entries.drop(name)
        self.charged -= entry_cost(name)

    def reveal(self, name: str) -> None:
        """Removes a whiteout; its `entry_cost` is for the caller to give back."""
        self.whiteouts.drop(name)
        self.charged -= entry_cost(name)


class Inode(Charged):
    """A node, whatever its names: `kind`, the live `state`, and what never changes."""

    __slots__ = ("__weakref__", "id", "kind", "parent_id", "state", "target")
    nodes = 1

    def __init__(
        self, account: Account, kind: NodeKind, node_id: int, state: State, target: str = ""
    ) -> None:
        super().__init__(account, len(target.encode()))
        self.kind = kind
        self.id = node_id
        self.state = state
        self.target = target
        # The directory that a directory is in; meaningless for what may have several names.
        self.parent_id = 0


class Register(Inode):
    """A directory that is none of the volume's nodes."""

    __slots__ = ()
    nodes = 0
