"""Volumes with marks, and all that is to be seen of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from capstore.images import wf1
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_checkpoint import live_nodes
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_marks import Mark
from capstore.images.wf1_open import open_wf1
from capstore.images.wf1_state import Node
from capstore.images.wf1_verify import verify
from capstore.schema.nodes import NodeKind, Provenance, Stat
from tests.images.wf1model import new_device, read

ROOT = wf1.ROOT
LIKE = Stat(
    kind=NodeKind.FILE,
    size=5,
    node_id=1234,
    version=9,
    created=-5,
    modified=1_700_000_000_123_456_789,
    provenance=Provenance.TAR_HEADER,
    executable=True,
)
MARKED = Mark(opaque=True, redirect="usr/lib/ä", origin=(1 << 64) - 1)
SHOWN = Mark(origin=99, below=2)


class Seen(NamedTuple):
    """All names, and all nodes with their contents."""

    names: dict[tuple[int, str], int]
    nodes: dict[int, tuple[Node, bytes]]


def seen(engine: Engine) -> Seen:
    state = engine.state
    names, nodes = {}, {}
    for node in live_nodes(state):
        content = read(engine, state, node.id) if node.kind == wf1.FILE else b""
        nodes[node.id] = (node._replace(content=None), content)
        if node.is_directory:
            names |= {(node.id, name): number for name, number in state.names_behind(node.id)}
    return Seen(names, nodes)


class Clock:
    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        self.now += 1
        return self.now


def opened(device: MemoryDevice) -> Engine:
    return open_wf1(device, clock=Clock(), entropy=lambda count: b"k" * count)


def again(engine: Engine) -> Engine:
    """What is opened from what is on the device, which is in order."""
    copy = MemoryDevice(engine.device.read(0, engine.device.size()))
    assert list(verify(copy)) == []
    return opened(copy)


def number(engine: Engine, path: str) -> int:
    at = wf1.ROOT
    for name in path.split("/") if path else ():
        at = engine.state.child(at, name)
        assert at, path
    return at


def node(engine: Engine, path: str) -> Node:
    found = engine.state.node(number(engine, path))
    assert found is not None
    return found


def copied(engine: Engine, directory: int, name: str, content: bytes, mark: Mark) -> int:
    """A file that was copied up."""
    file = engine.copy_up.unnamed()
    engine.hold(file)
    engine.write(file, 0, content)
    engine.copy_up.name(file, directory, name, LIKE, mark)
    engine.release(file)
    return file


def sample(size: int | None = None) -> Engine:
    """A volume with everything in it, synced."""
    engine = opened(new_device(size))
    root = wf1.ROOT
    engine.write(engine.create(root, "f", executable=True), 0, b"content")
    engine.link(root, "f", root, "g")
    engine.symlink(root, "l", "target")
    engine.cover(root, "gone")
    full, white = engine.mkdir(root, "full"), engine.mkdir(root, "white")
    engine.create(full, "x")
    engine.cover(full, "w")
    for index in range(4):
        engine.cover(white, f"w{index}")
    engine.mkdir(root, "empty")
    engine.copy_up.directory(root, "marked", LIKE, MARKED)
    copied(engine, root, "shown", b"shown below", SHOWN)
    engine.sync()
    return engine


# What makes, changes and removes them; each on a sample.
Operation = Callable[[Engine], object]

OPERATIONS: dict[str, Operation] = {
    "create over a whiteout": lambda e: e.create(ROOT, "gone"),
    "mkdir over a whiteout": lambda e: e.mkdir(ROOT, "gone"),
    "mkdir opaque": lambda e: e.mkdir(ROOT, "new", opaque=True),
    "symlink over a whiteout": lambda e: e.symlink(ROOT, "gone", "t"),
    "link over a whiteout": lambda e: e.link(ROOT, "f", ROOT, "gone"),
    "cover": lambda e: e.cover(ROOT, "new"),
    "remove a file": lambda e: e.remove(ROOT, "l", cover=True),
    "remove one of two names": lambda e: e.remove(ROOT, "f", cover=True),
    "remove a directory": lambda e: e.remove(ROOT, "empty", cover=True),
    "remove one with whiteouts": lambda e: e.remove(ROOT, "white", cover=True),
    "remove one with whiteouts, uncovered": lambda e: e.remove(ROOT, "white"),
    "remove what is shown below": lambda e: e.remove(ROOT, "shown", cover=True),
    "rename": lambda e: e.rename(ROOT, "f", ROOT, "new", cover=True),
    "rename over a whiteout": lambda e: e.rename(ROOT, "f", ROOT, "gone", cover=True),
    "rename over a file": lambda e: e.rename(ROOT, "l", ROOT, "f", cover=True),
    "rename over what is shown below": lambda e: e.rename(ROOT, "f", ROOT, "shown", cover=True),
    "rename a directory": lambda e: e.rename(
        ROOT, "full", number(e, "empty"), "new", cover=True, mark=MARKED
    ),
    "rename a directory over a whiteout": lambda e: e.rename(
        ROOT, "full", ROOT, "gone", cover=True, mark=MARKED
    ),
    "rename a directory over one with whiteouts": lambda e: e.rename(
        ROOT, "full", ROOT, "white", cover=True, mark=MARKED
    ),
    "rename a marked directory": lambda e: e.rename(ROOT, "marked", ROOT, "new", mark=Mark()),
    "exchange": lambda e: e.exchange(
        ROOT, "full", ROOT, "marked", mark=MARKED, new_mark=Mark(origin=3)
    ),
    "exchange with a file": lambda e: e.exchange(ROOT, "full", ROOT, "f", mark=MARKED),
    "copy up a file": lambda e: copied(e, ROOT, "new", b"copy" * 30_000, SHOWN),
    "copy up a directory": lambda e: e.copy_up.directory(ROOT, "new", LIKE, MARKED),
    "copy up a link": lambda e: e.copy_up.symlink(ROOT, "new", "target", LIKE, SHOWN),
    "adopt": lambda e: e.copy_up.adopt(number(e, "shown"), ROOT, "new"),
    "set a mark": lambda e: e.copy_up.set_mark(number(e, "full"), MARKED),
    "clear a mark": lambda e: e.copy_up.set_mark(number(e, "marked"), Mark()),
    "reset": lambda e: e.reset(),
}
