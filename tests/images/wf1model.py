"""A model of a CAPOSWF1 volume in dicts, and a driver that takes both through the same steps.

What the engine answers must be what the model answers; only `NoSpace` is the engine's own, and
leaves everything as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from capstore.images import wf1
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_state import GONE, State
from capstore.images.wf1_upkeep import Snapshot
from capstore.images.wf1_verify import verify
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
    Unsupported,
)

NAMES = ("a", "b", "ä", "z" * 60)


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    executable: bool = False


@dataclass(eq=False)
class Link:
    target: str


@dataclass(eq=False)
class Folder:
    entries: dict[str, File | Link | Folder] = field(default_factory=dict)


Node = File | Link | Folder
# A tree as a value: contents, targets and nested dicts; equal numbers are one node.
Frozen = dict[str, object]


def frozen(folder: Folder) -> Frozen:
    """What the model holds, as a value."""
    return _frozen(folder, {})


def _frozen(folder: Folder, seen: dict[Node, int]) -> Frozen:
    found: Frozen = {}
    for name in sorted(folder.entries):
        node = folder.entries[name]
        if isinstance(node, Folder):
            found[name] = _frozen(node, seen)
            continue
        number = seen.setdefault(node, len(seen))
        if isinstance(node, File):
            found[name] = (number, bytes(node.content), node.executable)
        else:
            found[name] = (number, node.target)
    return found


def frozen_state(engine: Engine, state: State) -> Frozen:
    """What a state of the engine holds, as a value; checks what every state keeps to."""
    links: dict[int, int] = {}
    found = _frozen_directory(engine, state, wf1.ROOT, {}, links)
    for number, count in links.items():
        node = state.node(number)
        assert node is not None
        assert node.links == count
    return found


def _frozen_directory(
    engine: Engine, state: State, directory: int, seen: dict[int, int], links: dict[int, int]
) -> Frozen:
    found: Frozen = {}
    names, after = [], ""
    while page := state.list_names(directory, after, 3):
        names += page
        after = page[-1][0]
    assert names == sorted(names)
    for name, child in names:
        assert state.child(directory, name) == child
        node = state.node(child)
        assert node is not None
        if node.is_directory:
            assert (node.parent, node.links) == (directory, 1)
            found[name] = _frozen_directory(engine, state, child, seen, links)
            continue
        links[child] = links.get(child, 0) + 1
        number = seen.setdefault(child, len(seen))
        if node.kind == wf1.FILE:
            content = read(engine, state, child)
            found[name] = (number, content, bool(node.flags & wf1.EXECUTABLE))
        else:
            found[name] = (number, node.target)
    return found


def read(engine: Engine, state: State, number: int) -> bytes:
    """All of a file."""
    node = state.node(number)
    assert node is not None
    data = bytearray(b"\xee" * node.size)
    assert engine.read_into(state, number, 0, memoryview(data)) == node.size
    return bytes(data)


def new_device(size: int | None = 1 << 20, seed: int = 0) -> MemoryDevice:
    """An empty volume, of `size` bytes or growing with small segments."""
    source = random.Random(seed)
    device = MemoryDevice()
    format_wf1(
        device,
        size=size,
        segment_bytes=None if size else 1 << 16,
        clock=lambda: 1,
        entropy=source.randbytes,
    )
    return device


class Driver:
    """An engine beside its model; every step is drawn from `source`."""

    def __init__(self, device: MemoryDevice, source: random.Random, piece_max: int) -> None:
        self.device = device
        self.source = source
        self.piece_max = piece_max
        self.root = Folder()
        self.now = 0
        self.engine = self._opened()
        # The model's node of each id that is held, and snapshots with what they are to show.
        self.held: list[tuple[int, File]] = []
        self.snapshots: list[tuple[Snapshot, Frozen]] = []
        self.full = 0

    def _opened(self) -> Engine:
        return open_wf1(self.device, clock=self._clock, entropy=self.source.randbytes)

    def _clock(self) -> int:
        self.now += 1
        return self.now

    # Choosing ------------------------------------------------------------------------------------

    def folder(self) -> tuple[int, Folder]:
        """Some directory: its id and its model."""
        number, folder = wf1.ROOT, self.root
        while self.source.random() < 0.6:
            inner = [n for n, node in folder.entries.items() if isinstance(node, Folder)]
            if not inner:
                break
            name = self.source.choice(inner)
            number = self.engine.state.child(number, name)
            node = folder.entries[name]
            assert isinstance(node, Folder)
            folder = node
        return number, folder

    def name(self) -> str:
        return self.source.choice(NAMES)

    def file(self) -> tuple[int, File] | None:
        """Some file with a name, or one that is held."""
        if self.held and self.source.random() < 0.2:
            return self.source.choice(self.held)
        number, folder = self.folder()
        files = [(n, f) for n, f in folder.entries.items() if isinstance(f, File)]
        if not files:
            return None
        name, file = self.source.choice(files)
        return self.engine.state.child(number, name), file

    # Doing ---------------------------------------------------------------------------------------

    def both(self, real: Callable[[], object], model: Callable[[], object]) -> None:
        """Does `real`, and `model` if that was done; `model` raises what `real` is to raise."""
        expected = None
        before = frozen(self.root)
        try:
            real()
        except NoSpace:
            self.full += 1
            assert frozen_state(self.engine, self.engine.state) == before
            return
        except StorageError as error:
            expected = type(error)
        wanted = None
        try:
            model()
        except StorageError as error:
            wanted = type(error)
        assert expected is wanted

    def step(self) -> None:
        """One step, of a kind that is drawn."""
        kinds = (
            (self.create, 6),
            (self.mkdir, 3),
            (self.symlink, 2),
            (self.link, 2),
            (self.write, 12),
            (self.truncate, 4),
            (self.attributes, 1),
            (self.remove, 6),
            (self.rename, 5),
            (self.exchange, 2),
            (self.hold, 1),
            (self.release, 1),
            (self.snapshot, 0.4),
            (self.drop, 0.5),
            (self.sync, 2),
            (self.checkpoint, 1),
            (self.clean, 1),
            (self.reopen, 0.5),
        )
        (chosen,) = self.source.choices([k for k, _ in kinds], [w for _, w in kinds])
        chosen()

    def create(self) -> None:
        number, folder = self.folder()
        name, executable = self.name(), self.source.random() < 0.3
        self.both(
            lambda: self.engine.create(number, name, executable=executable),
            lambda: self._add(folder, name, File(executable=executable)),
        )

    def _add(self, folder: Folder, name: str, node: Node) -> None:
        if name in folder.entries:
            raise AlreadyExists
        folder.entries[name] = node

    def mkdir(self) -> None:
        number, folder = self.folder()
        name = self.name()
        self.both(
            lambda: self.engine.mkdir(number, name), lambda: self._add(folder, name, Folder())
        )

    def symlink(self) -> None:
        number, folder = self.folder()
        name, target = self.name(), "t" * self.source.choice((1, 9, 4095))
        self.both(
            lambda: self.engine.symlink(number, name, target),
            lambda: self._add(folder, name, Link(target)),
        )

    def link(self) -> None:
        (number, folder), (other, goal) = self.folder(), self.folder()
        name, new_name = self.name(), self.name()

        def model() -> None:
            node = self._child(folder, name)
            if isinstance(node, Folder):
                raise IsDirectory
            self._add(goal, new_name, node)

        self.both(lambda: self.engine.link(number, name, other, new_name), model)

    def _child(self, folder: Folder, name: str) -> Node:
        if name not in folder.entries:
            raise NotFound
        return folder.entries[name]

    def write(self) -> None:
        found = self.file()
        if found is None:
            return
        number, file = found
        size = len(file.content)
        offset = self.source.choice((0, size, self.source.randrange(size + 1), size + 5000))
        offset = min(offset, 4 * self.piece_max)
        length = self.source.choice((0, 1, 600, self.source.randrange(self.piece_max)))
        data = self.source.randbytes(length)

        def model() -> None:
            if data:
                file.content.extend(bytes(max(0, offset - len(file.content))))
                file.content[offset : offset + length] = data

        if offset == size and self.source.random() < 0.5:
            self.both(lambda: self.engine.append(number, data), model)
        else:
            self.both(lambda: self.engine.write(number, offset, data), model)

    def truncate(self) -> None:
        found = self.file()
        if found is None:
            return
        number, file = found
        size = self.source.choice((0, 1, len(file.content) // 2, len(file.content) + 3000))
        size = min(size, 5 * self.piece_max)

        def model() -> None:
            del file.content[size:]
            file.content.extend(bytes(size - len(file.content)))

        self.both(lambda: self.engine.truncate(number, size), model)

    def attributes(self) -> None:
        number, folder = self.folder()
        name, executable = self.name(), self.source.random() < 0.5
        child = self.engine.state.child(number, name)
        if child == GONE:
            return

        def model() -> None:
            node = folder.entries[name]
            if not isinstance(node, File):
                raise Unsupported
            node.executable = executable

        self.both(lambda: self.engine.set_attributes(child, executable=executable), model)

    def remove(self) -> None:
        number, folder = self.folder()
        name = self.name()
        directories, others = self.source.choice(((True, True), (True, False), (False, True)))

        def model() -> None:
            node = self._child(folder, name)
            if isinstance(node, Folder):
                if not directories:
                    raise IsDirectory
                if node.entries:
                    raise NotEmpty
            elif not others:
                raise NotDirectory
            del folder.entries[name]

        self.both(
            lambda: self.engine.remove(number, name, directories=directories, others=others), model
        )

    def rename(self) -> None:
        (number, folder), (other, goal) = self.folder(), self.folder()
        name, new_name, replace = self.name(), self.name(), self.source.random() < 0.7

        def model() -> None:
            moved = self._child(folder, name)
            there = goal.entries.get(new_name)
            if there is not None and not replace:
                raise AlreadyExists
            if there is moved:
                return
            self._check_not_within(goal, moved)
            self._check_replaces(moved, there)
            del folder.entries[name]
            goal.entries[new_name] = moved

        self.both(lambda: self.engine.rename(number, name, other, new_name, replace=replace), model)

    def _check_replaces(self, moved: Node, there: Node | None) -> None:
        if there is None:
            return
        if isinstance(there, Folder):
            if not isinstance(moved, Folder):
                raise IsDirectory
            if there.entries:
                raise NotEmpty
        elif isinstance(moved, Folder):
            raise NotDirectory

    def _check_not_within(self, goal: Folder, moved: Node) -> None:
        if isinstance(moved, Folder) and (goal is moved or goal in _below(moved)):
            raise InvalidArgument

    def exchange(self) -> None:
        (number, folder), (other, goal) = self.folder(), self.folder()
        name, new_name = self.name(), self.name()

        def model() -> None:
            moved, there = self._child(folder, name), self._child(goal, new_name)
            if moved is there:
                return
            self._check_not_within(goal, moved)
            self._check_not_within(folder, there)
            folder.entries[name], goal.entries[new_name] = there, moved

        self.both(lambda: self.engine.exchange(number, name, other, new_name), model)

    # Beside operations ---------------------------------------------------------------------------

    def hold(self) -> None:
        found = self.file()
        if found is not None and len(self.held) < 3:
            self.engine.hold(found[0])
            self.held.append(found)

    def release(self) -> None:
        if self.held:
            number, _ = self.held.pop(self.source.randrange(len(self.held)))
            self.engine.release(number)

    def snapshot(self) -> None:
        if len(self.snapshots) < 2:
            self.snapshots.append((self.engine.snapshot(), frozen(self.root)))

    def drop(self) -> None:
        if self.snapshots:
            snapshot, expected = self.snapshots.pop(0)
            assert frozen_state(self.engine, snapshot.state) == expected
            self.engine.drop(snapshot)

    def sync(self) -> None:
        self.attempt(self.engine.sync)

    def checkpoint(self) -> None:
        self.attempt(self.engine.checkpoint)

    def clean(self) -> None:
        self.attempt(self.engine.clean)

    def attempt(self, function: Callable[[], None]) -> None:
        """Does what may find no room, and changes nothing that is seen."""
        try:
            function()
        except NoSpace:
            self.full += 1

    def reopen(self) -> None:
        """Goes on with what is on the device after a `sync` or a `close`."""
        if self.source.random() < 0.5:
            self.engine.sync()
            self.device = MemoryDevice(self.device.view)
        else:
            copy: list[MemoryDevice] = []
            close = self.device.close
            self.device.close = lambda: (copy.append(MemoryDevice(self.device.view)), close())  # type: ignore[method-assign]
            self.engine.close()
            (self.device,) = copy
        self.held.clear()
        self.snapshots.clear()
        assert list(verify(self.device)) == []
        self.engine = self._opened()
        self.check()

    def check(self) -> None:
        """Compares all that can be seen."""
        assert frozen_state(self.engine, self.engine.state) == frozen(self.root)
        for number, file in self.held:
            assert read(self.engine, self.engine.state, number) == file.content
        for snapshot, expected in self.snapshots:
            assert frozen_state(self.engine, snapshot.state) == expected
        counted = [0] * self.engine.space.count
        state = self.engine.state
        for number in [n for n in range(1, state.next_node) if state.node(n) is not None]:
            node = state.node(number)
            assert node is not None
            for chunk in state.content(node).values():
                for extent in chunk:
                    counted[self.engine.geometry.of_lba(extent.lba)] += extent.length
        assert counted == list(self.engine.space.live)

    def empty(self) -> None:
        """Removes everything, which must be possible however full the volume is."""
        while self.held:
            self.release()
        while self.snapshots:
            self.drop()
        self._empty(wf1.ROOT, self.root)
        assert frozen_state(self.engine, self.engine.state) == {}

    def _empty(self, number: int, folder: Folder) -> None:
        for name in list(folder.entries):
            node = folder.entries[name]
            if isinstance(node, Folder):
                self._empty(self.engine.state.child(number, name), node)
            self.engine.remove(number, name)
            del folder.entries[name]


def _below(folder: Folder) -> list[Folder]:
    found = []
    for node in folder.entries.values():
        if isinstance(node, Folder):
            found += [node, *_below(node)]
    return found
