"""What must hold of a CAPOSST1 store that a crash left."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from capstore.images import st1
from capstore.images.segments import Space
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_entry import Entry
from capstore.images.st1_recovery import Recovered, recover
from capstore.images.st1_table import Head, Table
from capstore.images.st1_verify import verify_content, verify_log, verify_superblocks
from capstore.images.tree import Finding
from capstore.tools.prove.examine import LIFE, Examiner, Fault, Looked, Outcome
from capstore.tools.prove.recording import Clock, entropy
from capstore.tools.prove.st1_model import VERSION, object_leaf, object_name
from capstore.tools.prove.st1_start import seen, small_steps
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.tracing import ImageDevice

# One of them is in the log, the other has its value beside it.
_NEW: Final = ((b"new-1", b"new" * 100), (b"new-2", b"new" * 700))
# No store of a proof needs more steps.
_STEPS_MAX: Final = 10_000


class St1Examiner(Examiner[Recovered]):
    """Examines stores."""

    renewal = "compaction"

    def recover(self, device: ImageDevice) -> Recovered:
        return recover(device)

    def key(self, recovered: Recovered) -> Hashable:
        space, head = recovered.space, recovered.table.head
        return (
            recovered.superblock,
            tuple(_hashable(getattr(head, field.name)) for field in fields(Head)),
            tuple((key, _entry(entry)) for key, entry in recovered.changes.items()),
            (recovered.counts, recovered.version, tuple(recovered.replaced)),
            (bytes(space.use), tuple(space.live), space.free, space.grows, space.geometry),
            recovered.position,
            tuple(recovered.log_segments),
            (recovered.log_bytes, recovered.entry_bytes, recovered.discarded),
        )

    def fresh(self, recovered: Recovered, device: ImageDevice) -> Recovered:
        old = recovered.space
        geometry = old.geometry
        space = Space(device, geometry, grows=old.grows, end=geometry.start(old.count))
        space.use[:], space.live[:] = old.use, old.live
        space.take_stock()
        return replace(
            recovered,
            table=Table(device, geometry, old.count, recovered.table.head),
            changes=dict(recovered.changes),
            space=space,
            replaced=list(recovered.replaced),
            log_segments=list(recovered.log_segments),
        )

    def look(self, device: ImageDevice, recovered: Recovered) -> Looked:
        findings = list(verify_content(device, recovered))
        engine = _engine(device, recovered, 0, writable=False)
        return Looked(seen(engine), is_accounted_for(engine), findings)

    def verify_places(self, device: ImageDevice, recovered: Recovered) -> Sequence[Finding]:
        return [*verify_superblocks(device), *verify_log(device, recovered)]

    def renew(self, device: ImageDevice, recovered: Recovered) -> None:
        with small_steps():
            engine = _engine(device, recovered, LIFE)
            engine.compact()
            engine.sync()

    def work(self, device: ImageDevice, recovered: Recovered) -> Tree:
        engine = _engine(device, recovered, LIFE + 1)
        tree = seen(engine)
        empty(engine)
        for key, value in _NEW:
            engine.put(key, value)
        engine.sync()
        return tree

    @property
    def made(self) -> Tree:
        return {object_name(key): object_leaf(value, 0) for key, value in _NEW}

    def same(self, tree: Tree, wanted: Tree) -> bool:
        """But for versions, which are as high as they got."""
        values = {name: leaf[0] for name, leaf in tree.items() if name != VERSION}
        return values == {name: leaf[0] for name, leaf in wanted.items()}


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def _entry(entry: Entry | None) -> Hashable:
    return entry and entry._replace(parts=tuple(entry.parts))


def _engine(
    device: ImageDevice, recovered: Recovered, life: int, *, writable: bool = True
) -> St1Engine:
    return St1Engine(
        device, recovered, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable
    )


def is_accounted_for(engine: St1Engine) -> bool:
    """Whether the live bytes of each segment are those that entries refer to; what the log
    replaced of the table is counted until it is looked up."""
    live = [0] * engine.space.count
    table = engine.view.table
    replaced = [table.find_key(key) for key in engine.upkeep.replaced]
    present = [entry for _, entry in engine.view.pairs(b"", b"")]
    for entry in [*present, *(entry for entry in replaced if entry is not None)]:
        pieces = [(part.place, part.length) for part in entry.parts]
        for place, length in pieces or [(entry.place, entry.size)]:
            if length:
                live[engine.geometry.at(place)] += length
    return live == engine.space.live


def empty(engine: St1Engine) -> None:
    """Removes everything; raises as the engine does, and faults."""
    for stored, _ in [*engine.entries(st1.OBJECTS), *engine.entries(st1.NAMES)]:
        engine.remove(stored)
    for _ in range(_STEPS_MAX):
        if not engine.has_work:
            break
        engine.work()
    counts = engine.counts
    if any(counts) or any(engine.space.live) or engine.writer.pending.live:
        raise Fault(Outcome.UNUSABLE, "something is left when everything was removed")
    if any(engine.entries(st1.OBJECTS)) or any(engine.entries(st1.NAMES)):
        raise Fault(Outcome.UNUSABLE, "something is there when everything was removed")
