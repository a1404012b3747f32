"""What must hold of a CAPOSWF1 volume that a crash left."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from capstore.images import wf1
from capstore.images.segments import Space
from capstore.images.tree import Finding
from capstore.images.wf1_base import Head, Tables
from capstore.images.wf1_checkpoint import live_nodes
from capstore.images.wf1_content import all_extents
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_recovery import Recovered, recover
from capstore.images.wf1_verify import verify_content, verify_log, verify_superblocks
from capstore.tools.prove.examine import LIFE, Examiner, Fault, Looked, Outcome
from capstore.tools.prove.recording import Clock, entropy
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.tracing import ImageDevice
from capstore.tools.prove.wf1_start import seen
from capstore.tools.prove.wf1_steps import place

_NEW: Final = ("new-1", "new-2")
_NEW_BYTES: Final = b"new" * 300


class Wf1Examiner(Examiner[Recovered]):
    """Examines volumes."""

    renewal = "checkpoint"

    def recover(self, device: ImageDevice) -> Recovered:
        return recover(device)

    def key(self, recovered: Recovered) -> Hashable:
        state, space, head = recovered.state, recovered.space, recovered.tables.head
        return (
            recovered.superblock,
            tuple(_hashable(getattr(head, field.name)) for field in fields(Head)),
            (state.counts, state.next_node, state.changes, state.nodes, state.names),
            (bytes(space.use), tuple(space.live), space.free, space.grows, space.geometry),
            recovered.position,
            tuple(recovered.log_segments),
            recovered.log_bytes,
            recovered.discarded,
        )

    def fresh(self, recovered: Recovered, device: ImageDevice) -> Recovered:
        old = recovered.space
        geometry = old.geometry
        tables = Tables(device, geometry, old.count, recovered.tables.head)
        space = Space(device, geometry, grows=old.grows, end=geometry.start(old.count))
        space.use[:], space.live[:] = old.use, old.live
        space.take_stock()
        state = replace(recovered.state, base=tables)
        return replace(recovered, tables=tables, space=space, state=state)

    def look(self, device: ImageDevice, recovered: Recovered) -> Looked:
        engine = _engine(device, recovered, 0, writable=False)
        tree = seen(engine)
        return Looked(tree, is_accounted_for(engine), list(verify_content(device, recovered)))

    def verify_places(self, device: ImageDevice, recovered: Recovered) -> Sequence[Finding]:
        return [*verify_superblocks(device), *verify_log(device, recovered)]

    def renew(self, device: ImageDevice, recovered: Recovered) -> None:
        _engine(device, recovered, LIFE).checkpoint()

    def work(self, device: ImageDevice, recovered: Recovered) -> Tree:
        engine = _engine(device, recovered, LIFE + 1)
        tree = seen(engine)
        empty(engine, tree)
        if engine.state.counts.nodes != 1 or any(engine.space.live):
            raise Fault(Outcome.UNUSABLE, "something is left when everything was removed")
        for name in _NEW:
            engine.write(engine.create(wf1.ROOT, name), 0, _NEW_BYTES)
        engine.sync()
        return tree

    @property
    def made(self) -> Tree:
        return {name: ("f", _NEW_BYTES, False, 1, name) for name in _NEW}


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def _engine(
    device: ImageDevice, recovered: Recovered, life: int, *, writable: bool = True
) -> Engine:
    return Engine(
        device, recovered, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable
    )


def is_accounted_for(engine: Engine) -> bool:
    """Whether the live bytes of each segment are those that files refer to."""
    live = [0] * engine.space.count
    for item in live_nodes(engine.state):
        if item.kind == wf1.FILE:
            for extent in all_extents(engine.state.content(item)):
                live[engine.geometry.of_lba(extent.lba)] += extent.length
    return live == engine.space.live


def empty(engine: Engine, tree: Tree) -> None:
    """Removes everything, the deepest first; raises as the engine does."""
    for path in sorted(tree, key=lambda path: (-path.count("/"), path)):
        engine.remove(*place(engine, path))
