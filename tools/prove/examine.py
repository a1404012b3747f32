"""What must hold of a state that a crash left.

It opens; what it holds is what there was to see at one moment, not before the last promise and not
after the crash; its space is accounted for and `verify` finds nothing.  And it can be worked with:
a checkpoint can be written and opens again with the same tree, every directory can be emptied, new
files can be made, and these are there when it is opened once more.

Invariants: examining a state changes a copy of it; whatever is wrong, also an exception of any
kind, becomes a `Verdict`.  The parts of an examination are pieces of work
(`capstore.tools.prove.tracing`), so that an `Examiner` does none twice: recovery goes by the bytes
that it reads, all else by what recovery found and the bytes that it reads itself.  So a verdict
is the same whatever was examined before.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from capstore.images import wf1
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.segments import Space
from capstore.images.tree import Finding
from capstore.images.wf1_base import Head, Tables
from capstore.images.wf1_checkpoint import live_nodes
from capstore.images.wf1_content import all_extents
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_recovery import Recovered, recover
from capstore.images.wf1_verify import verify_content, verify_log, verify_superblocks
from capstore.schema.errors import StorageError
from capstore.schema.nodes import Buffer
from capstore.tools.prove.model import Tree
from capstore.tools.prove.recording import Clock, Moment, entropy, seen
from capstore.tools.prove.tracing import ImageDevice, Pieces
from capstore.tools.prove.workload import place

# Lives are numbered so that keys differ; these are behind all that a workload has.
_LIFE: Final = 100
_NEW: Final = ("new-1", "new-2")
_NEW_BYTES: Final = b"new" * 300
_MADE: Final[Tree] = {name: ("f", _NEW_BYTES, False, 1, name) for name in _NEW}


class Outcome(enum.Enum):
    """What was found; the value is for reports."""

    PROMISED = "as promised"  # just what had been acknowledged
    FURTHER = "further on"  # and operations behind that
    LOST = "lost"  # less than what had been acknowledged
    INVENTED = "invented"  # what there never was to see
    UNOPENED = "does not open"
    UNUSABLE = "cannot be worked with"
    FOREIGN = "foreign exception"

    @property
    def holds(self) -> bool:
        """Whether that is as it should be."""
        return self in (Outcome.PROMISED, Outcome.FURTHER)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and the moment that was found where one was."""

    outcome: Outcome
    detail: str = ""
    moment: int = -1


class _Fault(Exception):
    """What is not as it must be."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.verdict = Verdict(outcome, detail)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What recovery found: equal ones are one and the same."""

    recovered: Recovered


@dataclass(frozen=True, slots=True)
class _Looked:
    """What there is to see, whether all space is accounted for, and what `verify` finds."""

    tree: Tree
    is_accounted_for: bool
    findings: Sequence[Finding]


class Examiner:
    """Examines states; what it has found out about one serves for others."""

    def __init__(self) -> None:
        self.sectors = Sectors()
        self.pieces = Pieces()
        self._found: dict[Hashable, _Found] = {}

    def __repr__(self) -> str:
        return f"<Examiner {len(self.sectors)} sectors, {self.pieces!r}>"

    def image(self, data: Buffer) -> SectorImage:
        """`data` as an image to be examined here."""
        return SectorImage(self.sectors, data)

    def judged(
        self, image: SectorImage, moments: Sequence[Moment], first: int, last: int
    ) -> Verdict:
        """Whether `image` has one of the moments from `first` to `last`, and can be worked with."""
        try:
            return self._judged(ImageDevice(image.copy()), moments, first, last)
        except _Fault as fault:
            return fault.verdict

    def _judged(
        self, device: ImageDevice, moments: Sequence[Moment], first: int, last: int
    ) -> Verdict:
        # What the crash left, not what opening makes of it.
        device.writable = False
        found = self._recovered(device, Outcome.UNOPENED)
        looked = self._looked(device, found, Outcome.UNOPENED)
        verdict = shown(looked.tree, moments, first, last)
        if not verdict.outcome.holds:
            return verdict
        # A torn tail is all there may be.
        self._check(device, found, looked, "a crash", repairable=True)
        device.writable = True
        self._work_with(device, found, looked.tree)
        return verdict

    def _work_with(self, device: ImageDevice, found: _Found, tree: Tree) -> None:
        self._do("checkpoint", device, found, lambda: _checkpoint(device, found))
        found = self._recovered(device)
        _same(self._do("work", device, found, lambda: _work(device, found)), tree, "checkpoint")
        device.writable = False
        found = self._recovered(device)
        looked = self._looked(device, found)
        _same(looked.tree, _MADE, "new start")
        self._check(device, found, looked, "a new start", repairable=False)

    def _check(
        self, device: ImageDevice, found: _Found, looked: _Looked, when: str, *, repairable: bool
    ) -> None:
        if not looked.is_accounted_for:
            raise _Fault(Outcome.UNUSABLE, "the live bytes of segments are not those of files")
        places = self._do("places", device, found, lambda: _verify_places(device, found.recovered))
        for finding in (*places, *looked.findings):
            if not (repairable and finding.repairable and finding.where == "log"):
                detail = f"verify behind {when}: {finding.where}: {finding.message}"
                raise _Fault(Outcome.UNUSABLE, detail)

    def _looked(
        self, device: ImageDevice, found: _Found, outcome: Outcome = Outcome.UNUSABLE
    ) -> _Looked:
        looked: _Looked = self._do("look", device, found, lambda: _look(device, found), outcome)
        return looked

    def _recovered(self, device: ImageDevice, outcome: Outcome = Outcome.UNUSABLE) -> _Found:
        found: _Found = self._do(
            "recover", device, None, lambda: self._one(recover(device), device), outcome
        )
        return found

    def _one(self, recovered: Recovered, device: ImageDevice) -> _Found:
        key = _key(recovered)
        found = self._found.get(key)
        if found is None:
            # Without the tables that recovery has read: there are thousands of these.
            found = self._found[key] = _Found(_fresh(recovered, device))
        return found

    def _do(
        self,
        what: Hashable,
        device: ImageDevice,
        found: _Found | None,
        work: Callable[[], Any],
        outcome: Outcome = Outcome.UNUSABLE,
    ) -> Any:
        """What `work` returns, if it was not done before.  Raises a fault for what it raises."""

        def tried() -> Any:
            try:
                return work()
            except _Fault as fault:
                return fault.verdict
            except StorageError as error:
                return Verdict(outcome, repr(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                return Verdict(Outcome.FOREIGN, repr(error))

        done = self.pieces.do((what, found, device.writable), device, tried)
        if isinstance(done, Verdict):
            raise _Fault(done.outcome, done.detail)
        return done


def judged(image: Buffer, moments: Sequence[Moment], first: int, last: int) -> Verdict:
    """As `Examiner.judged`, for one image."""
    examiner = Examiner()
    return examiner.judged(examiner.image(image), moments, first, last)


# What recovery found -----------------------------------------------------------------------------


def _key(recovered: Recovered) -> Hashable:
    """Equal for what an engine cannot tell from one another, but by what it reads."""
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


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def _fresh(recovered: Recovered, device: ImageDevice) -> Recovered:
    """The same, with nothing in memory that was read from a device."""
    old = recovered.space
    geometry = old.geometry
    tables = Tables(device, geometry, old.count, recovered.tables.head)
    space = Space(device, geometry, grows=old.grows, end=geometry.start(old.count))
    space.use[:], space.live[:] = old.use, old.live
    space.take_stock()
    state = replace(recovered.state, base=tables)
    return replace(recovered, tables=tables, space=space, state=state)


def _engine(
    device: ImageDevice, recovered: Recovered, life: int, *, writable: bool = True
) -> Engine:
    return Engine(
        device, recovered, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable
    )


# The parts ---------------------------------------------------------------------------------------


def shown(tree: Tree, moments: Sequence[Moment], first: int, last: int) -> Verdict:
    """Whether `tree` is what there was to see at one of the moments from `first` to `last`."""
    moment = next((n for n in range(first, last + 1) if moments[n].tree == tree), -1)
    if moment >= 0:
        return Verdict(Outcome.FURTHER if moment > first else Outcome.PROMISED, moment=moment)
    matches = [n for n, other in enumerate(moments) if other.tree == tree]
    if matches and matches[-1] < first:
        return Verdict(Outcome.LOST, f"moment {matches[-1]} is there, {first} was promised")
    wanted = moments[first].tree
    differing = sorted(p for p in tree.keys() | wanted.keys() if tree.get(p) != wanted.get(p))
    return Verdict(Outcome.INVENTED, f"as never was: {', '.join(differing)[:200]}")


def _look(device: ImageDevice, found: _Found) -> _Looked:
    recovered = _fresh(found.recovered, device)
    engine = _engine(device, recovered, 0, writable=False)
    tree = seen(engine)
    return _Looked(tree, is_accounted_for(engine), list(verify_content(device, recovered)))


def is_accounted_for(engine: Engine) -> bool:
    """Whether the live bytes of each segment are those that files refer to."""
    live = [0] * engine.space.count
    for item in live_nodes(engine.state):
        if item.kind == wf1.FILE:
            for extent in all_extents(engine.state.content(item)):
                live[engine.geometry.of_lba(extent.lba)] += extent.length
    return live == engine.space.live


def _verify_places(device: ImageDevice, recovered: Recovered) -> Sequence[Finding]:
    """What is wrong with superblocks and log, which are looked at by what recovery found."""
    return [*verify_superblocks(device), *verify_log(device, recovered)]


def _checkpoint(device: ImageDevice, found: _Found) -> None:
    _engine(device, _fresh(found.recovered, device), _LIFE).checkpoint()


def _work(device: ImageDevice, found: _Found) -> Tree:
    """Removes everything and makes something new; the tree there was."""
    engine = _engine(device, _fresh(found.recovered, device), _LIFE + 1)
    tree = seen(engine)
    empty(engine, tree)
    if engine.state.counts.nodes != 1 or any(engine.space.live):
        raise _Fault(Outcome.UNUSABLE, "something is left when everything was removed")
    for name in _NEW:
        engine.write(engine.create(wf1.ROOT, name), 0, _NEW_BYTES)
    engine.sync()
    return tree


def _same(tree: Tree, wanted: Tree, when: str) -> None:
    if tree != wanted:
        raise _Fault(Outcome.UNUSABLE, f"another tree behind a {when}")


def empty(engine: Engine, tree: Tree) -> None:
    """Removes everything, the deepest first; raises as the engine does."""
    for path in sorted(tree, key=lambda path: (-path.count("/"), path)):
        engine.remove(*place(engine, path))
