"""A tree of nodes and the model of it, to which the same things are done.

After each step `Twin.check` compares what the tree shows with the model: names and kinds, sizes
and targets, executable bits, numbers of links, node ids (one for each node, the same for as long
as the node lives), and times, which change only where something was done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    FileNode,
    NodeKind,
    OpenFlags,
    RenameMode,
    Stat,
)
from tests.contract import model
from tests.contract.harness import entries_of, tree_of
from tests.contract.test_model import Pair, both

KINDS = {
    model.File: NodeKind.FILE,
    model.Symlink: NodeKind.SYMLINK,
    model.Directory: NodeKind.DIRECTORY,
}
WRITE = OpenFlags.WRITE


@dataclass(frozen=True)
class Known:
    """What was seen of a node last, and what it was made of then."""

    stat: Stat
    made_of: object


@dataclass
class Twin(Pair):
    """`Pair`, with what is known of each node, and with paths to say what is meant."""

    readers: list[tuple[FileNode, model.File]] = field(default_factory=list)
    known: dict[model.Node, Known] = field(default_factory=dict)
    # What may have changed since the last check besides what can be seen in the model.
    touched: set[model.Node] = field(default_factory=set)
    # In how small pages the tree is listed.
    limit: int = 3

    @classmethod
    def of(cls, root: DirectoryNode, ideal: model.Directory) -> Twin:
        return cls([(root, ideal)], hard_links=True)

    @property
    def root(self) -> DirectoryNode:
        return self.directories[0][0]

    @property
    def ideal(self) -> model.Directory:
        return self.directories[0][1]

    def reopened(self, root: DirectoryNode) -> None:
        """Goes on with another root of the same tree; handles are for the old one."""
        self.directories = [(root, self.ideal)]
        self.files.clear()
        self.readers.clear()

    # By number, as generated sequences have it ---------------------------------------------------

    async def open(self, index: int, name: str, flags: OpenFlags) -> None:
        real, ideal = self.directory(index)
        file = await both(real.open(name, flags), lambda: model.open_file(ideal, name, flags))
        if file is None:
            return
        node = model.open_file(ideal, name, OpenFlags.READ)
        if flags & OpenFlags.TRUNCATE:
            self.touched.add(node)
        (self.files if flags & WRITE else self.readers).append((file, node))

    async def write(self, index: int, offset: int, data: bytes) -> None:
        if self.files:
            real, node = self._touched(index)
            model.write(node, offset, data)
            await real.write(offset, data)

    async def append(self, index: int, data: bytes) -> None:
        if self.files:
            real, node = self._touched(index)
            size = len(node.data)
            model.write(node, size, data)
            assert await real.append(data) == size

    async def truncate(self, index: int, size: int) -> None:
        if self.files:
            real, node = self._touched(index)
            model.truncate(node, size)
            await real.truncate(size)

    def _touched(self, index: int) -> tuple[FileNode, model.File]:
        real, node = self.file(index)
        self.touched.add(node)
        return real, node

    async def read(self, index: int) -> None:
        """Reads through any handle, in pieces, and asks it what it is."""
        both_sorts = [*self.readers, *self.files]
        if both_sorts:
            await self._check_handle(*both_sorts[index % len(both_sorts)])

    async def attributes(
        self, index: int, name: str, modified: int, executable: bool | None
    ) -> None:
        real, ideal = self.directory(index)
        node = ideal.entries.get(name)
        if not isinstance(node, model.File):
            executable = None
        change = Attributes(modified=modified, executable=executable)
        await both(real.set_attributes(change, name), lambda: model.find(ideal, name))
        if node is not None:
            stat = (await real.lookup(name)).stat
            assert stat.modified == modified
            assert executable in (stat.executable, None)
            self._expect(node, stat)

    def _expect(self, node: model.Node, stat: Stat) -> None:
        """Takes the times and the executable bit over, but not who the node is."""
        known = self.known.get(node)
        if known is not None:
            assert stat.node_id == known.stat.node_id
            self.known[node] = Known(stat, made_of(node))

    async def page(self, index: int, after: str, limit: int) -> None:
        """Lists in pages of its own size, from anywhere."""
        real, ideal = self.directory(index)
        names = sorted((name for name in ideal.entries if name > after), key=str.encode)
        found: list[str] = []
        while True:
            page = await real.list(after, limit)
            assert len(page.entries) <= limit
            found += [entry.name for entry in page.entries]
            if not page.more:
                break
            after = found[-1]
        assert found == names

    # By path -------------------------------------------------------------------------------------

    async def at(self, path: str) -> tuple[int, str]:
        """The number of the directory that `path` is in, and the last name."""
        *above, name = path.split("/")
        ideal = self.ideal
        for step in above:
            ideal = model.sub(ideal, step)
        for number, (_, known) in enumerate(self.directories):
            if known is ideal:
                return number, name
        real = self.root
        for step in above:
            real = await real.sub(step)
        self.directories.append((real, ideal))
        return len(self.directories) - 1, name

    async def hold(self, path: str) -> int:
        """The number of the directory at `path`."""
        return (await self.at(f"{path}/."))[0]

    async def move(self, old: str, new: str, mode: RenameMode = RenameMode.REPLACE) -> None:
        (source, name), (target, new_name) = await self.at(old), await self.at(new)
        await self.rename(source, name, target, new_name, mode)

    async def hard(self, old: str, new: str) -> None:
        (source, name), (target, new_name) = await self.at(old), await self.at(new)
        await self.link(source, name, target, new_name)

    async def put(self, path: str, data: bytes) -> None:
        """Makes `data` the content of a file, new or not."""
        flags = OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE
        await self.open(*await self.at(path), flags)
        real, ideal = self.files.pop()
        await real.write(0, data)
        model.write(ideal, 0, data)
        await real.close()

    async def do(self, step: str, path: str, *arguments: object) -> None:
        """Any of the steps by number, by path."""
        await getattr(self, step)(*await self.at(path), *arguments)

    # Comparing -----------------------------------------------------------------------------------

    async def check(self) -> None:
        """Compares all but contents, and holds what is seen for next time."""
        ids: dict[int, model.Node] = {}
        links = Counter(_nodes(self.ideal))
        await self._check_directory(self.root, self.ideal, links, ids)
        # Handles of what is gone would need a second model; they have tests of their own.
        self.directories = [pair for pair in self.directories if model.within(pair[1], self.ideal)]
        for real, ideal in self.directories:
            assert (await real.stat()).node_id == self.known[ideal].stat.node_id
        self.touched.clear()

    async def check_all(self) -> None:
        """Compares contents, too, and those of all open files."""
        await self.check()
        assert await tree_of(self.root) == model.dump(self.ideal)
        await self.check_handles()

    async def check_handles(self) -> None:
        """Compares what open files show."""
        for file, node in [*self.readers, *self.files]:
            await self._check_handle(file, node)

    async def close(self) -> None:
        await self.check_all()
        for file, _ in [*self.readers, *self.files]:
            await file.close()

    async def _check_directory(
        self,
        real: DirectoryNode,
        ideal: model.Directory,
        links: Counter[model.Node],
        ids: dict[int, model.Node],
    ) -> None:
        self._check_node(ideal, await real.stat(), ids)
        entries = await entries_of(real, self.limit)
        assert [entry.name for entry in entries] == sorted(ideal.entries, key=str.encode)
        for entry in entries:
            node = ideal.entries[entry.name]
            assert entry.stat.kind is KINDS[type(node)], entry.name
            if isinstance(node, model.Directory):
                await self._check_directory(await real.sub(entry.name), node, links, ids)
                assert self.known[node].stat == entry.stat, entry.name
            else:
                _check_leaf(entry, node)
                assert entry.stat.link_count == links[node], entry.name
                self._check_node(node, entry.stat, ids)

    def _check_node(self, node: model.Node, stat: Stat, ids: dict[int, model.Node]) -> None:
        assert ids.setdefault(stat.node_id, node) is node, "two nodes of one id"
        known = self.known.get(node)
        contents = made_of(node)
        if known is not None:
            assert stat.node_id == known.stat.node_id
            assert stat.executable == known.stat.executable
            if contents != known.made_of:
                assert stat.version != known.stat.version
            elif node not in self.touched:
                assert stat.modified == known.stat.modified
        self.known[node] = Known(stat, contents)

    async def _check_handle(self, file: FileNode, node: model.File) -> None:
        assert await file.size() == len(node.data)
        middle = len(node.data) // 2
        first = bytes(await file.read(0, middle))
        assert first + bytes(await file.read(middle, len(node.data) + 1)) == bytes(node.data)
        stat = await file.stat()
        assert stat.size == len(node.data)
        assert stat.link_count == Counter(_nodes(self.ideal))[node]
        if node in self.known:
            assert stat.node_id == self.known[node].stat.node_id


def made_of(node: model.Node) -> object:
    """What a node is made of, to see later whether that changed."""
    if isinstance(node, model.Directory):
        return dict(node.entries)
    return bytes(node.data) if isinstance(node, model.File) else node.target


def _check_leaf(entry: Entry, node: model.File | model.Symlink) -> None:
    if isinstance(node, model.Symlink):
        assert entry.target == node.target
        assert entry.stat.size == len(node.target.encode())
    else:
        assert entry.target is None
        assert entry.stat.size == len(node.data)


def _nodes(directory: model.Directory) -> list[model.Node]:
    """All below, one for each name."""
    found: list[model.Node] = []
    for node in directory.entries.values():
        found.append(node)
        if isinstance(node, model.Directory):
            found += _nodes(node)
    return found
