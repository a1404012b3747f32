"""What must hold of a state that a crash left.

It opens; what it holds is what there was to see at one moment, not before the last promise and not
after the crash; its space is accounted for and `verify` finds nothing.  And it can be worked with:
a checkpoint can be written and opens again with the same tree, every directory can be emptied, new
files can be made, and these are there when it is opened once more.

Invariants: examining a state changes a copy of it; whatever is wrong, also an exception of any
kind, becomes a `Verdict`.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from capstore.images import wf1
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_checkpoint import live_nodes
from capstore.images.wf1_content import all_extents
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_verify import verify
from capstore.schema.errors import StorageError
from capstore.schema.nodes import Buffer
from capstore.tools.prove.model import Tree
from capstore.tools.prove.recording import Moment, Recording, opened, seen
from capstore.tools.prove.workload import place

# Lives are numbered so that keys differ; these are behind all that a workload has.
_LIFE: Final = 100
# Of how many states one, by chance, is verified once more behind the work that was done with it.
_VERIFIED_EACH: Final = 8
_NEW: Final = ("new-1", "new-2")
_NEW_BYTES: Final = b"new" * 300


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


def examine(image: Buffer, recording: Recording, at: int) -> Verdict:
    """Whether `image`, left by a crash when the log was `at` long, is as it must be."""
    first, last = recording.promised(at), recording.latest(at)
    return judged(image, recording.moments, first, last)


def judged(image: Buffer, moments: Sequence[Moment], first: int, last: int) -> Verdict:
    """Whether `image` holds one of the moments from `first` to `last`, and can be worked with."""
    try:
        return _judged(image, moments, first, last)
    except _Fault as fault:
        return fault.verdict
    except StorageError as error:
        return Verdict(Outcome.UNUSABLE, repr(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Verdict(Outcome.FOREIGN, repr(error))


def _judged(image: Buffer, moments: Sequence[Moment], first: int, last: int) -> Verdict:
    device = MemoryDevice(image)
    try:
        engine = opened(device, _LIFE)
        tree = seen(engine)
    except StorageError as error:
        raise _Fault(Outcome.UNOPENED, repr(error)) from error
    found = next((n for n in range(first, last + 1) if moments[n].tree == tree), -1)
    if found < 0:
        _explain(tree, moments, first)
    check_space(engine)
    # What the crash left, not what opening has made of it: a torn tail is all there may be.
    _verify(MemoryDevice(image, read_only=True), "a crash", repairable=True)
    _work_with(engine, device, tree)
    return Verdict(Outcome.FURTHER if found > first else Outcome.PROMISED, moment=found)


def _explain(tree: Tree, moments: Sequence[Moment], first: int) -> None:
    matches = [n for n, moment in enumerate(moments) if moment.tree == tree]
    if matches and matches[-1] < first:
        detail = f"moment {matches[-1]} is there, {first} was promised"
        raise _Fault(Outcome.LOST, detail)
    wanted = moments[first].tree
    differing = sorted(p for p in tree.keys() | wanted.keys() if tree.get(p) != wanted.get(p))
    raise _Fault(Outcome.INVENTED, f"as never was: {', '.join(differing)[:200]}")


def check_space(engine: Engine) -> None:
    """Raises a fault unless the live bytes of each segment are those that files refer to."""
    live = [0] * engine.space.count
    for item in live_nodes(engine.state):
        if item.kind == wf1.FILE:
            for extent in all_extents(engine.state.content(item)):
                live[engine.geometry.of_lba(extent.lba)] += extent.length
    if live != engine.space.live:
        raise _Fault(Outcome.UNUSABLE, "the live bytes of segments are not those of files")


def _work_with(engine: Engine, device: MemoryDevice, tree: Tree) -> None:
    engine.checkpoint()
    engine = opened(device, _LIFE + 1)
    _same(engine, tree, "after a checkpoint")
    empty(engine, tree)
    if engine.state.counts.nodes != 1 or any(engine.space.live):
        raise _Fault(Outcome.UNUSABLE, "something is left when everything was removed")
    for name in _NEW:
        engine.write(engine.create(wf1.ROOT, name), 0, _NEW_BYTES)
    engine.sync()
    made: Tree = {name: ("f", _NEW_BYTES, False, 1, name) for name in _NEW}
    _same(opened(device, writable=False), made, "after everything was removed and made anew")
    if not zlib.crc32(device.view) % _VERIFIED_EACH:
        _verify(device, "everything was removed and made anew", repairable=False)


def _verify(device: MemoryDevice, when: str, *, repairable: bool) -> None:
    for finding in verify(device):
        if not (repairable and finding.repairable and finding.where == "log"):
            detail = f"verify behind {when}: {finding.where}: {finding.message}"
            raise _Fault(Outcome.UNUSABLE, detail)


def _same(engine: Engine, tree: Tree, when: str) -> None:
    if seen(engine) != tree:
        raise _Fault(Outcome.UNUSABLE, f"another tree {when}")


def empty(engine: Engine, tree: Tree) -> None:
    """Removes everything, the deepest first; raises as the engine does."""
    for path in sorted(tree, key=lambda path: (-path.count("/"), path)):
        engine.remove(*place(engine, path))
