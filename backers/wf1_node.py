"""Files and directories of a CAPOSWF1 volume, live or of a snapshot.

Invariants:

* A live node is held by what stands for it here, so it outlives its name; one of a snapshot keeps
  the snapshot instead, and refuses every change with `ReadOnly`.
* Entries of the kind whiteout, which are an overlay's, are not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
)
from capstore.images import ro1, wf1, wf1_ops
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_state import Node as Record
from capstore.images.wf1_state import State
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    CrossVolume,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.schema.names import check_name

if TYPE_CHECKING:
    from capstore.backers.wf1 import Held, View, Wf1Volume

_KINDS: Final = {code: kind for kind, code in ro1.KIND_CODES.items()}
# A longer page is put together in a worker, which leaves the loop to others.
AT_ONCE_ENTRIES_MAX: Final = 100


def stat_of(record: Record) -> Stat:
    """What is known of a node."""
    return Stat(
        kind=_KINDS[record.kind],
        size=record.size,
        node_id=record.id,
        version=record.version,
        created=record.created,
        modified=record.modified,
        provenance=record.provenance,
        executable=bool(record.flags & wf1.EXECUTABLE),
        link_count=record.names,
    )


def entry_of(name: str, record: Record) -> Entry:
    """The entry by which a node is shown."""
    return Entry(name, stat_of(record), record.target if record.kind == wf1.SYMLINK else None)


def file_of(record: Record) -> Record:
    """A node, to open it as a file.  Raises `IsDirectory`, `Unsupported`."""
    if record.is_directory:
        raise IsDirectory("a directory")
    if record.kind != wf1.FILE:
        raise Unsupported("only a file can be opened")
    return record


def _subdirectory(state: State, directory: int, name: str) -> Record:
    record = wf1_ops.child_of(state, directory, name)
    if not record.is_directory:
        raise NotDirectory("no directory")
    return record


def page_of(
    state: State, directory: int, after: str, limit: int, until: str = "", *, whiteouts: bool
) -> tuple[list[tuple[str, Record]], bool]:
    """Up to `limit` names behind `after`, as many as names and targets fit in a page, with their
    nodes; and whether there are more.  Nothing is behind `until`, if that is given."""
    found: list[tuple[str, Record]] = []
    room = PAGE_BYTES_MAX
    for name, number in state.names_behind(directory, after, limit + 1):
        if until and name > until:
            break
        record = wf1_ops.node_at(state, number)
        if record.kind == wf1.WHITEOUT and not whiteouts:
            continue
        room -= len(name.encode()) + len(record.text.encode())
        if found and (len(found) == limit or room < 0):
            return found, True
        found.append((name, record))
    return found, False


def _page(state: State, directory: int, after: str, limit: int) -> Page:
    found, more = page_of(state, directory, after, limit, whiteouts=False)
    return Page([entry_of(name, record) for name, record in found], more=more)


class Wf1File(FileNode):
    """An open file, live or of a snapshot."""

    def __init__(
        self, volume: Wf1Volume, held: Held, *, writable: bool, view: View | None = None
    ) -> None:
        self.volume = volume
        self.view = view
        self.number = held.number
        self._held: Held | None = held
        self._writable = writable
        # What `stat` tells after `close`, when the node itself may be gone.
        self._last: Stat | None = None

    def __repr__(self) -> str:
        if self._held is None:
            return "<Wf1File closed>"
        return f"<Wf1File {self.number} {'writable' if self._writable else 'read-only'}>"

    def _check_open(self) -> None:
        self.volume.check_open()
        if self._held is None:
            raise Closed("the file was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise ReadOnly("the file is not open for writing")

    async def _record(self) -> Record:
        return await self.volume.look(
            lambda _, state: wf1_ops.node_at(state, self.number), self.view
        )

    async def stat(self) -> Stat:
        """What is known of the file; after `close` what was known then."""
        if self._last is not None:
            return self._last
        return stat_of(await self._record())

    async def size(self) -> int:
        self._check_open()
        return (await self._record()).size

    async def sync(self) -> None:
        self._check_open()
        await self.volume.sync()

    async def read_into(self, offset: int, view: memoryview) -> int:
        self._check_open()
        if offset < 0:
            raise InvalidArgument("an offset is not negative")
        number = self.number
        return await self.volume.look(
            lambda engine, state: engine.read_into(state, number, offset, view),
            self.view,
            at_once=len(view) <= TRANSFER_BYTES_MAX,
        )

    async def write(self, offset: int, data: Buffer) -> None:
        self._check_writable()
        size = memoryview(data).nbytes
        await self.volume.change(lambda engine: engine.write(self.number, offset, data), size)

    async def append(self, data: Buffer) -> int:
        self._check_writable()
        size = memoryview(data).nbytes
        return await self.volume.change(lambda engine: engine.append(self.number, data), size)

    async def truncate(self, size: int) -> None:
        self._check_writable()
        await self.volume.change(lambda engine: engine.truncate(self.number, size))

    async def set_attributes(self, change: Attributes) -> None:
        """Changes attributes; all of a file's can be recorded."""
        self._check_writable()
        await self.volume.change(lambda engine: _set_attributes(engine, self.number, change))

    async def close(self) -> None:
        """Lets go of the node and, with it, of a snapshot."""
        if self._held is None:
            return
        if self.volume.is_open:
            self._last = stat_of(await self._record())
        held, self._held, self.view = self._taken(), None, None
        if held is not None:
            await self.volume.release(held)

    def _taken(self) -> Held | None:
        """What is held, if nobody else has closed the file meanwhile."""
        return self._held


def _set_attributes(engine: Engine, number: int, change: Attributes) -> None:
    engine.set_attributes(
        number,
        executable=change.executable,
        modified=change.modified,
        created=change.created,
    )


class Wf1Directory(DirectoryNode):
    """A directory, live or of a snapshot; the root is not held."""

    def __init__(
        self,
        volume: Wf1Volume,
        number: int,
        held: Held | None = None,
        view: View | None = None,
    ) -> None:
        self.volume = volume
        self.view = view
        self.number = number
        self._held = held

    def __repr__(self) -> str:
        view = "live" if self.view is None else "of a snapshot"
        return f"<Wf1Directory {self.number} {view}>"

    def check_changes(self) -> None:
        """Raises `ReadOnly` in a snapshot or where the volume is for reading."""
        self.volume.check_writable()
        if self.view is not None:
            raise ReadOnly("a snapshot does not change")

    def _target(self, target: DirectoryNode) -> int:
        """A second directory that takes part in a change of this one."""
        if not isinstance(target, Wf1Directory) or target.volume is not self.volume:
            raise CrossVolume("the target is not of this volume")
        target.check_changes()
        return target.number

    # Looking -------------------------------------------------------------------------------------

    async def stat(self) -> Stat:
        return stat_of(
            await self.volume.look(lambda _, state: wf1_ops.node_at(state, self.number), self.view)
        )

    async def sync(self) -> None:
        await self.volume.sync()

    async def lookup(self, name: str) -> Entry:
        check_name(name)
        record = await self.volume.look(
            lambda _, state: wf1_ops.child_of(state, self.number, name), self.view
        )
        return entry_of(name, record)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """Up to `limit` entries behind `after`, as many as names and targets fit in a page."""
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return await self.volume.look(
            lambda _, state: _page(state, self.number, after, limit),
            self.view,
            at_once=limit <= AT_ONCE_ENTRIES_MAX,
        )

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        flags.check()
        check_name(name)
        if flags.writes:
            self.check_changes()
        if flags & (OpenFlags.CREATE | OpenFlags.TRUNCATE):
            held = await self.volume.change(lambda engine: self._opened(engine, name, flags))
        else:
            number = self.number
            held, _ = await self.volume.hold(
                lambda state: file_of(wf1_ops.child_of(state, number, name)), self.view
            )
        return Wf1File(self.volume, held, writable=flags.writes, view=self.view)

    def _opened(self, engine: Engine, name: str, flags: OpenFlags) -> Held:
        """Opens the file `name` in the lane: made, or emptied."""
        found = wf1_ops.at_name(engine.state, self.number, name)
        if OpenFlags.CREATE in flags:
            if found is None or found.kind == wf1.WHITEOUT:
                return self.volume.held_by(engine, engine.create(self.number, name))
            if OpenFlags.EXCLUSIVE in flags:
                raise AlreadyExists("the name is taken")
        record = file_of(wf1_ops.child_of(engine.state, self.number, name))
        if OpenFlags.TRUNCATE in flags:
            engine.truncate(record.id, 0)
        return self.volume.held_by(engine, record.id)

    async def sub(self, name: str) -> DirectoryNode:
        check_name(name)
        number = self.number
        held, record = await self.volume.hold(
            lambda state: _subdirectory(state, number, name), self.view
        )
        return Wf1Directory(self.volume, record.id, held, self.view)

    async def usage(self) -> Usage:
        return await self.volume.usage()

    async def snapshot(self) -> DirectoryNode:
        """This directory and all below as it is now; of a snapshot, the same."""
        view = self.view or await self.volume.view()
        return Wf1Directory(self.volume, self.number, self._held, view)

    # Changing ------------------------------------------------------------------------------------

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        check_name(name)
        self.check_changes()
        held = await self.volume.change(
            lambda engine: self.volume.held_by(
                engine, engine.create(self.number, name, executable=executable)
            )
        )
        return Wf1File(self.volume, held, writable=True)

    async def mkdir(self, name: str, *, opaque: bool | None = None) -> DirectoryNode:
        """Makes a new empty directory; see `Operations.mkdir`."""
        check_name(name)
        self.check_changes()
        held = await self.volume.change(
            lambda engine: self.volume.held_by(
                engine, engine.mkdir(self.number, name, opaque=opaque)
            )
        )
        return Wf1Directory(self.volume, held.number, held)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        check_name(name)
        self.check_changes()

        await self.volume.change(
            lambda engine: engine.remove(
                self.number,
                name,
                directories=expect is not Expect.NOT_DIRECTORY,
                others=expect is not Expect.DIRECTORY,
            )
        )

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        check_name(name)
        check_name(new_name)
        self.check_changes()
        to = self._target(target)

        def renamed(engine: Engine) -> None:
            if mode is RenameMode.EXCHANGE:
                engine.exchange(self.number, name, to, new_name)
            else:
                replace = mode is RenameMode.REPLACE
                engine.rename(self.number, name, to, new_name, replace=replace)

        await self.volume.change(renamed)

    async def symlink(self, name: str, target: str) -> None:
        check_name(name)
        self.check_changes()
        await self.volume.change(lambda engine: engine.symlink(self.number, name, target))

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        check_name(name)
        check_name(new_name)
        self.check_changes()
        to = self._target(target)

        await self.volume.change(lambda engine: engine.link(self.number, name, to, new_name))

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        """Changes attributes; an executable bit is `Unsupported` but for files."""
        if name:
            check_name(name)
        self.check_changes()

        def changed(engine: Engine) -> None:
            number = wf1_ops.child_of(engine.state, self.number, name).id if name else self.number
            _set_attributes(engine, number, change)

        await self.volume.change(changed)
