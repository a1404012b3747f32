"""Volumes with marks, and all that is to be seen of them."""

from __future__ import annotations

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
