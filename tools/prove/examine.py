"""What must hold of a state that a crash left.

It opens; what it holds is what there was to see at one moment, not before the last promise and not
after the crash; its space is accounted for and `verify` finds nothing.  And it can be worked with:
what takes its tables anew (a checkpoint, a compaction) ends, and it opens again with the same tree;
everything can be removed, new things can be made, and these are there when it is opened once more.

Invariants: examining a state changes a copy of it; whatever is wrong, also an exception of any
kind, becomes a `Verdict`.  The parts of an examination are pieces of work
(`capstore.tools.prove.tracing`), so that an `Examiner` does none twice: recovery goes by the bytes
that it reads, all else by what recovery found and the bytes that it reads itself.  So a verdict
is the same whatever was examined before.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.tree import Finding
from capstore.schema.errors import StorageError
from capstore.schema.nodes import Buffer
from capstore.tools.prove.recording import Moment
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.tracing import ImageDevice, Pieces

# Lives are numbered so that keys differ; these are behind all that a workload has.
LIFE: Final = 100
R = TypeVar("R")


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


class Fault(Exception):
    """What is not as it must be."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.verdict = Verdict(outcome, detail)


@dataclass(frozen=True, slots=True, eq=False)
class Found(Generic[R]):
    """What recovery found: equal ones are one and the same."""

    recovered: R


@dataclass(frozen=True, slots=True)
class Looked:
    """What there is to see, whether all space is accounted for, and what `verify` finds."""

    tree: Tree
    is_accounted_for: bool
    findings: Sequence[Finding]


class Examiner(ABC, Generic[R]):
    """Examines states; what it has found out about one serves for others.  Recovery finds an
    `R`."""

    # What takes tables anew.
    renewal: ClassVar[str]

    def __init__(self) -> None:
        self.sectors = Sectors()
        self.pieces = Pieces()
        self._found: dict[Hashable, Found[R]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.sectors)} sectors, {self.pieces!r}>"

    # What depends on the format; each of these raises what the engine does, and faults ------------

    @abstractmethod
    def recover(self, device: ImageDevice) -> R:
        """What recovery finds."""

    @abstractmethod
    def key(self, recovered: R) -> Hashable:
        """Equal for what an engine cannot tell from one another, but by what it reads."""

    @abstractmethod
    def fresh(self, recovered: R, device: ImageDevice) -> R:
        """The same, with nothing in memory that was read from a device, or that changes."""

    @abstractmethod
    def look(self, device: ImageDevice, recovered: R) -> Looked:
        """What there is to see, and what is wrong with it."""

    @abstractmethod
    def verify_places(self, device: ImageDevice, recovered: R) -> Sequence[Finding]:
        """What is wrong with superblocks and log, which are looked at by what recovery found."""

    @abstractmethod
    def renew(self, device: ImageDevice, recovered: R) -> None:
        """Takes the tables anew."""

    @abstractmethod
    def work(self, device: ImageDevice, recovered: R) -> Tree:
        """Removes everything and makes `made`; the tree there was."""

    @property
    @abstractmethod
    def made(self) -> Tree:
        """What is there behind that."""

    def same(self, tree: Tree, wanted: Tree) -> bool:
        """Whether there is the same to see."""
        return tree == wanted

    # Judging --------------------------------------------------------------------------------------

    def image(self, data: Buffer) -> SectorImage:
        """`data` as an image to be examined here."""
        return SectorImage(self.sectors, data)

    def judged(
        self, image: SectorImage, moments: Sequence[Moment], first: int, last: int
    ) -> Verdict:
        """Whether `image` has one of the moments from `first` to `last`, and can be worked with."""
        try:
            return self._judged(ImageDevice(image.copy()), moments, first, last)
        except Fault as fault:
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

    def _work_with(self, device: ImageDevice, found: Found[R], tree: Tree) -> None:
        self._do("renew", device, found, lambda: self.renew(device, self._fresh(found, device)))
        renewed = self._recovered(device)
        done = self._do(
            "work", device, renewed, lambda: self.work(device, self._fresh(renewed, device))
        )
        if done != tree:
            raise Fault(Outcome.UNUSABLE, f"another tree behind a {self.renewal}")
        device.writable = False
        found = self._recovered(device)
        looked = self._looked(device, found)
        if not self.same(looked.tree, self.made):
            raise Fault(Outcome.UNUSABLE, "another tree behind a new start")
        self._check(device, found, looked, "a new start", repairable=False)

    def _check(
        self, device: ImageDevice, found: Found[R], looked: Looked, when: str, *, repairable: bool
    ) -> None:
        if not looked.is_accounted_for:
            raise Fault(Outcome.UNUSABLE, "segments have not as much live as they say")
        places = self._do(
            "places", device, found, lambda: self.verify_places(device, found.recovered)
        )
        for finding in (*places, *looked.findings):
            if not (repairable and finding.repairable and finding.where == "log"):
                detail = f"verify behind {when}: {finding.where}: {finding.message}"
                raise Fault(Outcome.UNUSABLE, detail)

    def _looked(
        self, device: ImageDevice, found: Found[R], outcome: Outcome = Outcome.UNUSABLE
    ) -> Looked:
        looked: Looked = self._do(
            "look", device, found, lambda: self.look(device, self._fresh(found, device)), outcome
        )
        return looked

    def _recovered(self, device: ImageDevice, outcome: Outcome = Outcome.UNUSABLE) -> Found[R]:
        found: Found[R] = self._do(
            "recover", device, None, lambda: self._one(self.recover(device), device), outcome
        )
        return found

    def _fresh(self, found: Found[R], device: ImageDevice) -> R:
        return self.fresh(found.recovered, device)

    def _one(self, recovered: R, device: ImageDevice) -> Found[R]:
        key = self.key(recovered)
        found = self._found.get(key)
        if found is None:
            # Without the tables that recovery has read: there are thousands of these.
            found = self._found[key] = Found(self.fresh(recovered, device))
        return found

    def _do(
        self,
        what: Hashable,
        device: ImageDevice,
        found: Found[R] | None,
        work: Callable[[], Any],
        outcome: Outcome = Outcome.UNUSABLE,
    ) -> Any:
        """What `work` returns, if it was not done before.  Raises a fault for what it raises."""

        def tried() -> Any:
            try:
                return work()
            except Fault as fault:
                return fault.verdict
            except StorageError as error:
                return Verdict(outcome, repr(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                return Verdict(Outcome.FOREIGN, repr(error))

        done = self.pieces.do((what, found, device.writable), device, tried)
        if isinstance(done, Verdict):
            raise Fault(done.outcome, done.detail)
        return done


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
