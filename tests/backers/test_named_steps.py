"""Changes where marks are names, at each step: crashes, failures, cancellation and lookers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.layer import Found, Mark, Upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.named import NamedUpper
from capstore.backers.node import (
    DirectoryNode,
    Entry,
    NodeKind,
    OpenFlags,
    Volume,
)
from capstore.schema.errors import (
    AlreadyExists,
    NotFound,
    StorageIOError,
)
from tests.backers.upperwork import OPAQUE, content, listed, put
from tests.backers.wired import HIDDEN, deeper, wired
from tests.contract.harness import Link, Tree, names_of, populate
from tests.contract.wf1 import FOLDER

pytestmark = pytest.mark.anyio


# What users see through a layer over another ----------------------------------------------------

BELOW: Tree = {
    "a": b"a and b",
    "d": {"f": b"d/f", "g": b"d/g", "h": {"i": b"i"}},
    "e": {},
    "s": Link("a"),
    "x": b"x",
    "y": b"y",
}


async def lower_volume() -> MemoryVolume:
    volume = await MemoryVolume.open()
    await populate(volume.root, BELOW)
    await volume.root.link("a", volume.root, "b")
    return volume


class Both:
    """A layer over a tree that does not change, as an overlay has them; origins are ids below."""

    def __init__(self, upper: Upper, lower: Volume) -> None:
        self.upper = upper
        self.lower = lower

    async def seen(self) -> dict[str, object]:
        return await self._tree(self.upper.root, self.lower.root)

    async def _tree(
        self, above: DirectoryNode | None, below: DirectoryNode | None
    ) -> dict[str, object]:
        found = {} if above is None else await listed(self.upper, above, 3)
        names = {*found, *(await names_of(below) if below is not None else [])}
        tree: dict[str, object] = {}
        for name in sorted(names):
            if above is not None:
                assert await self.upper.find(above, name) == found.get(name)
            entry = None if below is None else await _peek(below, name)
            have = found.get(name)
            if have is None:
                assert entry is not None
                tree[name] = await self._lower(below, entry)
            elif have.entry is not None:
                assert above is not None
                tree[name] = await self._upper(above, have, have.entry, below, entry)
        return tree

    async def _lower(self, below: DirectoryNode | None, entry: Entry) -> object:
        assert below is not None
        stat = entry.stat
        linked = await self.upper.linked(stat.node_id) if stat.link_count > 1 else None
        if stat.kind is NodeKind.DIRECTORY:
            return stat.node_id, await self._tree(None, await below.sub(entry.name))
        if stat.kind is NodeKind.SYMLINK:
            return stat.node_id, entry.target, stat.link_count
        if linked is None:
            return stat.node_id, await content(below, entry.name), stat.link_count
        file = await self.upper.open_linked(stat.node_id, OpenFlags.READ)
        data = bytes(await file.read(0, 1000))
        await file.close()
        return stat.node_id, data, linked.link_count

    async def _upper(
        self,
        above: DirectoryNode,
        found: Found,
        entry: Entry,
        below: DirectoryNode | None,
        hidden: Entry | None,
    ) -> object:
        stat, node_id = entry.stat, found.mark.origin
        if stat.kind is NodeKind.SYMLINK:
            return node_id, entry.target, stat.link_count
        if stat.kind is NodeKind.FILE:
            return node_id, await content(above, entry.name), stat.link_count
        merged = None
        if hidden and hidden.stat.kind is NodeKind.DIRECTORY and not found.mark.opaque:
            assert below is not None
            merged = await below.sub(entry.name)
        inner = await above.sub(entry.name)
        return node_id, await self._tree(inner, merged)

    # What an overlay does before the change that is asked for

    async def id_of(self, *path: str) -> int:
        return (await (await deeper(self.lower.root, *path[:-1])).lookup(path[-1])).stat.node_id

    async def up(self, *path: str) -> None:
        """Copies something up that the lower tree has; the directories above it are up."""
        above = await deeper(self.upper.root, *path[:-1])
        below = await deeper(self.lower.root, *path[:-1])
        entry = await below.lookup(path[-1])
        mark = Mark(origin=entry.stat.node_id)
        if entry.stat.kind is NodeKind.DIRECTORY:
            await self.upper.copy_directory(above, path[-1], entry.stat, mark)
            return
        mark = mark._replace(below=entry.stat.link_count - 1)
        if entry.stat.kind is NodeKind.SYMLINK:
            await self.upper.copy_symlink(above, path[-1], entry.target or "", entry.stat, mark)
            return
        file = await self.upper.unnamed()
        try:
            await file.write(0, await content(below, path[-1]))
            await self.upper.name_file(file, above, path[-1], entry.stat, mark)
        finally:
            await file.close()

    async def all_up(self, *path: str) -> None:
        """Copies a directory up with all in it, without closing it off."""
        await self.up(*path)
        for entry in (await (await deeper(self.lower.root, *path)).list()).entries:
            if entry.stat.kind is NodeKind.DIRECTORY:
                await self.all_up(*path, entry.name)
                inner = await deeper(self.upper.root, *path, entry.name)
                await self.upper.set_mark(inner, Mark(opaque=True, origin=entry.stat.node_id))
            else:
                await self.up(*path, entry.name)

    async def new_directory(self, name: str) -> None:
        made = await self.upper.mkdir(self.upper.root, name, opaque=False)
        await put(self.upper, made, "inner")

    async def covered_directory(self) -> None:
        """A copy of `d` in which everything was removed."""
        await self.up("d")
        inner = await self.upper.root.sub("d")
        for name in ("f", "g", "h"):
            await self.upper.cover(inner, name)


async def _peek(directory: DirectoryNode, name: str) -> Entry | None:
    with suppress(NotFound):
        return await directory.lookup(name)
    return None


Step = Callable[[Both], Awaitable[object]]


async def _nothing(both: Both) -> None:
    """No preparation."""


def _root(both: Both) -> DirectoryNode:
    return both.upper.root


async def _own_file(both: Both) -> None:
    await put(both.upper, both.upper.root, "own", b"own")


async def _adopt_b(both: Both) -> None:
    await both.upper.adopt(await both.id_of("a"), both.upper.root, "b")


async def _a_up(both: Both) -> None:
    await both.up("a")


async def _opaque_by_its_neighbour(both: Both) -> None:
    """As another program may have made it."""
    await both.upper.cover(both.upper.root, "d")
    made = await both.upper.root.mkdir("d")
    await put(both.upper, made, "inner")


async def _own_file_and_whole_d(both: Both) -> None:
    await _own_file(both)
    await both.all_up("d")


async def _directories(both: Both) -> None:
    await both.new_directory("n")
    await both.covered_directory()


async def _close_off(both: Both) -> None:
    mark = Mark(opaque=True, origin=await both.id_of("d"))
    await both.upper.set_mark(await both.upper.root.sub("d"), mark)


async def _new_and_e(both: Both) -> None:
    await both.new_directory("n")
    await both.up("e")


async def _over_copy(both: Both) -> None:
    await _own_file(both)
    await both.up("x")


async def _two_up(both: Both) -> None:
    await both.up("x")
    await both.up("y")


async def _unfinished(both: Both) -> None:
    file = await both.upper.unnamed()
    await file.write(0, b"never")
    await file.append(b"seen")
    await file.close()


async def _whole_d_marked(both: Both) -> None:
    await both.all_up("d")
    await _close_off(both)


async def _move_d(both: Both) -> None:
    mark = Mark(opaque=True, origin=await both.id_of("d"))
    root = _root(both)
    await both.upper.rename(root, "d", root, "z", cover=True, mark=mark)


async def _name_up(both: Both) -> None:
    """A node without a name gets one that was below."""
    await _a_up(both)
    await both.upper.remove(both.upper.root, "a", cover=True)


# What comes before, and the change.
CHANGES: dict[str, tuple[Step, Step]] = {
    "create": (_nothing, lambda both: both.upper.create(_root(both), "new")),
    "create over a whiteout": (
        lambda both: both.upper.cover(_root(both), "x"),
        lambda both: both.upper.create(_root(both), "x"),
    ),
    "mkdir": (_nothing, lambda both: both.upper.mkdir(_root(both), "new", opaque=False)),
    "mkdir over a whiteout": (
        lambda both: both.upper.cover(_root(both), "d"),
        lambda both: both.upper.mkdir(_root(both), "d", opaque=True),
    ),
    "mkdir opaque": (_nothing, lambda both: both.upper.mkdir(_root(both), "new", opaque=True)),
    "symlink": (_own_file, lambda both: both.upper.symlink(_root(both), "new", "own")),
    "link": (_own_file, lambda both: both.upper.link(_root(both), "own", _root(both), "new")),
    "link a copy": (_a_up, lambda both: both.upper.link(_root(both), "a", _root(both), "new")),
    "remove": (_own_file, lambda both: both.upper.remove(_root(both), "own", cover=False)),
    "remove a copy": (
        lambda both: both.up("x"),
        lambda both: both.upper.remove(_root(both), "x", cover=True),
    ),
    "remove one of two names": (
        _a_up,
        lambda both: both.upper.remove(_root(both), "a", cover=True),
    ),
    "remove a directory of marks": (
        lambda both: both.covered_directory(),
        lambda both: both.upper.remove(_root(both), "d", cover=True),
    ),
    "remove an opaque directory": (
        lambda both: both.upper.mkdir(_root(both), "new", opaque=True),
        lambda both: both.upper.remove(_root(both), "new", cover=False),
    ),
    "remove a directory that its neighbour makes opaque": (
        lambda both: _empty_by_its_neighbour(both),
        lambda both: both.upper.remove(_root(both), "d", cover=True),
    ),
    "cover": (_nothing, lambda both: both.upper.cover(_root(both), "x")),
    "rename": (
        _own_file,
        lambda both: both.upper.rename(_root(both), "own", _root(both), "new", cover=False),
    ),
    "rename a copy": (
        lambda both: both.up("x"),
        lambda both: both.upper.rename(_root(both), "x", _root(both), "new", cover=True),
    ),
    "rename over a lower file": (
        _own_file,
        lambda both: both.upper.rename(_root(both), "own", _root(both), "x", cover=False),
    ),
    "rename over a copy": (
        _over_copy,
        lambda both: both.upper.rename(_root(both), "own", _root(both), "x", cover=False),
    ),
    "rename a copy over another": (
        _two_up,
        lambda both: both.upper.rename(_root(both), "x", _root(both), "y", cover=True),
    ),
    "rename a directory": (
        lambda both: both.new_directory("n"),
        lambda both: both.upper.rename(_root(both), "n", _root(both), "new", cover=False),
    ),
    "rename a directory over a lower one": (
        lambda both: both.new_directory("n"),
        lambda both: both.upper.rename(
            _root(both), "n", _root(both), "e", cover=False, mark=OPAQUE
        ),
    ),
    "rename a directory over a copy": (
        _new_and_e,
        lambda both: both.upper.rename(
            _root(both), "n", _root(both), "e", cover=False, mark=OPAQUE
        ),
    ),
    "rename a directory over one of marks": (
        _directories,
        lambda both: both.upper.rename(
            _root(both), "n", _root(both), "d", cover=False, mark=OPAQUE
        ),
    ),
    "rename a copied directory": (lambda both: both.all_up("d"), _move_d),
    "rename a directory that its neighbour makes opaque": (
        _opaque_by_its_neighbour,
        lambda both: both.upper.rename(_root(both), "d", _root(both), "z", cover=True),
    ),
    "exchange": (
        _two_up,
        lambda both: both.upper.exchange(_root(both), "x", None, _root(both), "y", None),
    ),
    "exchange a file and a directory": (
        _own_file_and_whole_d,
        lambda both: _exchanged_with_d(both, "own"),
    ),
    "exchange a file and a directory that its neighbour makes opaque": (
        lambda both: _both_of(both, _own_file, _opaque_by_its_neighbour),
        lambda both: both.upper.exchange(_root(both), "d", None, _root(both), "own", None),
    ),
    "copy a file": (_nothing, lambda both: both.up("x")),
    "copy a file with two names": (_nothing, _a_up),
    "copy a directory": (_nothing, lambda both: both.up("d")),
    "copy a file into a copied directory": (
        lambda both: both.up("d"),
        lambda both: both.up("d", "f"),
    ),
    "copy a link": (_nothing, lambda both: both.up("s")),
    "adopt": (_a_up, _adopt_b),
    "adopt what has no name": (_name_up, _adopt_b),
    "close a directory off": (lambda both: both.all_up("d"), _close_off),
    "copy in vain": (_nothing, _unfinished),
    "mark again": (_whole_d_marked, _close_off),
}
# Those that show to nobody, wherever they stop.
SILENT = {
    "close a directory off",
    "copy a directory",
    "copy a file",
    "copy a file into a copied directory",
    "copy a file with two names",
    "copy a link",
    "copy in vain",
    "adopt",
    "adopt what has no name",
    "mark again",
}


async def _empty_by_its_neighbour(both: Both) -> None:
    await _opaque_by_its_neighbour(both)
    await both.upper.remove(await both.upper.root.sub("d"), "inner", cover=False)


async def _both_of(both: Both, one: Step, other: Step) -> None:
    await one(both)
    await other(both)


async def _exchanged_with_d(both: Both, name: str) -> None:
    mark = Mark(opaque=True, origin=await both.id_of("d"))
    await both.upper.exchange(_root(both), "d", mark, _root(both), name, None)


async def _no_leftovers(upper: Upper, *, exact: bool) -> None:
    """After opening there is nothing in the making, and every link is of something that is seen.

    With `exact` so are ids; but a note of a node that was removed may be left.
    """
    hidden = await upper.root.sub(HIDDEN)
    assert await names_of(await hidden.sub("making")) == []
    ids = await hidden.sub("ids")
    links = (await (await hidden.sub("links")).list()).entries
    for entry in links:
        origin, below = entry.name.split("-")
        assert int(below) in (1, 2)
        assert await upper.linked(int(origin, 16)) is not None
    noted = set(await names_of(ids)) - {f"self-{(await ids.stat()).node_id:x}"}
    if exact:
        nodes = {entry.stat.node_id for entry in links} | await _nodes(upper, upper.root)
        assert {int(name.split("-")[0], 16) for name in noted} <= nodes


async def _nodes(upper: Upper, directory: DirectoryNode) -> set[int]:
    nodes: set[int] = set()
    for name, found in (await listed(upper, directory)).items():
        if found.entry is not None:
            nodes.add(found.entry.stat.node_id)
            if found.entry.stat.kind is NodeKind.DIRECTORY:
                nodes |= await _nodes(upper, await directory.sub(name))
    return nodes


@asynccontextmanager
async def volume_of(kind: str) -> AsyncIterator[Volume]:
    """A new, empty volume."""
    if kind == "memory":
        yield await MemoryVolume.open()
        return
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as folder:
        volume = await HostVolume.open(folder)
        yield volume
        await volume.close()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["memory", "dir"])
async def test_a_crash_leaves_before_or_after(kind: str, name: str) -> None:
    """The power is cut at each call of the volume that changes something."""
    lower = await lower_volume()
    afters: list[object] = []
    for calls in range(100):
        async with volume_of(kind) as inner:
            cut, after = await _crashed(inner, lower, name, calls)
        afters.append(after)
        assert after == afters[0]
        if not cut:
            return
    raise AssertionError("never done")


async def _crashed(inner: Volume, lower: Volume, name: str, calls: int) -> tuple[bool, object]:
    """Whether the change needed more than so many calls, and what is seen when it is made."""
    prepare, change = CHANGES[name]
    upper, power = await wired(inner=inner)
    both = Both(upper, lower)
    await prepare(both)
    before = await both.seen()
    power.left = calls
    with suppress(StorageIOError):
        await change(both)
    power.left = None
    seen_at_once = await both.seen()
    again = Both(await NamedUpper.open(inner), lower)
    seen = await again.seen()
    assert seen == seen_at_once
    await _no_leftovers(again.upper, exact=name in SILENT)
    if not power.cut:
        assert (seen == before) == (name in SILENT)
    elif seen == before:
        # Nothing that a crash leaves is in the way.  What shows to nobody may have been done.
        with suppress(*([AlreadyExists, NotFound] if name in SILENT else [])):
            await change(again)
        seen = await again.seen()
        assert (seen == before) == (name in SILENT)
    return power.cut, seen


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_fails_is_undone(name: str) -> None:
    """One call of the volume fails, whichever it is."""
    prepare, change = CHANGES[name]
    lower = await lower_volume()
    for calls in range(100):
        upper, power = await wired(once=True)
        both = Both(upper, lower)
        await prepare(both)
        before, marks_before = await both.seen(), await dump_all(both.upper)
        power.left = calls
        failed = False
        try:
            await change(both)
        except StorageIOError:
            failed = True
        power.left = None
        seen = await both.seen()
        if failed:
            assert seen == before
            if "marks" not in name and not name.startswith("remove"):
                assert await dump_all(both.upper) == marks_before
            await change(both)
            seen = await both.seen()
        assert (seen == before) == (name in SILENT)
        again = await NamedUpper.open(upper.volume)
        assert seen == await Both(again, lower).seen()
        await _no_leftovers(again, exact=name in SILENT)
        if not power.cut:
            return
    raise AssertionError("never done")


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_one_step_for_who_looks(name: str) -> None:
    prepare, change = CHANGES[name]
    upper, power = await wired()
    both = Both(upper, await lower_volume())
    await prepare(both)
    states = [await both.seen()]

    async def look() -> None:
        states.append(await both.seen())

    power.look = look
    await change(both)
    power.look = None
    states.append(await both.seen())
    changed = [one != other for one, other in pairwise(states)]
    assert sum(changed) == (name not in SILENT)


async def dump_all(upper: Upper) -> dict[str, object]:
    """What the layer itself tells, marks included."""
    return {
        name: (found.mark, found.entry and found.entry.stat.kind)
        for name, found in (await listed(upper, upper.root)).items()
    }


@pytest.mark.parametrize("name", CHANGES)
async def test_a_cancelled_change_ends_as_a_whole(name: str) -> None:
    """It is cancelled at each turn that a volume, which waits in each call, gives the loop."""
    prepare, change = CHANGES[name]
    lower = await lower_volume()
    states: list[object] = []
    for turns in range(200):
        upper, power = await wired()
        both = Both(upper, lower)
        await prepare(both)
        before = await both.seen()
        power.slow = True

        async def run(both: Both = both) -> None:
            await change(both)

        task = asyncio.ensure_future(run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        states.append(await both.seen())
        assert states[-1] == await Both(await NamedUpper.open(upper.volume), lower).seen()
        if not isinstance(result, BaseException):
            assert (states[-1] == before) == (name in SILENT)
            break
        assert isinstance(result, asyncio.CancelledError)
    assert states[0] == before
    assert all(state in (before, states[-1]) for state in states)
