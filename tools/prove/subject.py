"""What the proof has to know of a format: how it is made, opened, worked with and looked at.

Invariants: whatever depends on a format is behind a `Subject`, and everything else in this package
holds for all of them.  A subject keeps nothing: engines, models and images are other people's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

from capstore.images.device import BlockDevice
from capstore.schema.errors import InvalidArgument
from capstore.tools.prove.workload import Step, Workload

if TYPE_CHECKING:
    from capstore.tools.prove.canaries import Canary
    from capstore.tools.prove.examine import Examiner
    from capstore.tools.prove.explore import Tally
    from capstore.tools.prove.load import Load

# What there is to see, by names: whatever tells two states apart.
Leaf = tuple[str | bytes | int, ...]
Tree = dict[str, Leaf]


class Refused(Exception):
    """The operation cannot be, as things are."""


class Model(Protocol):
    """What an image holds, in the simplest words."""

    def copy(self) -> Any:
        """The same, to go on with by itself."""

    def tree(self) -> Tree:
        """All of it, to compare."""


E = TypeVar("E")
M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class DamageSubject:
    """What is damaged: the image that these steps leave of a workload's beginning."""

    steps: Sequence[Step]
    room: int


class Subject(ABC, Generic[E, M]):
    """A format with an engine `E`, whose operations a model `M` does too."""

    name: ClassVar[str]
    title: ClassVar[str]
    # Steps behind which everything before them is durable, and those that change nothing to see.
    durable: ClassVar[frozenset[str]]
    keeping: ClassVar[frozenset[str]]
    # Those that may have nothing to write, and then say nothing of a failure before.
    lazy: ClassVar[frozenset[str]] = frozenset()
    # Those that may be found done behind a crash though they failed and nothing is to be seen of
    # them before: what they write takes the place of everything at once.
    unsure: ClassVar[frozenset[str]] = frozenset()
    # Names of trees that are nobody's.
    aside: ClassVar[frozenset[str]] = frozenset()
    # What is done after a crash that ends a workload.
    after: ClassVar[Sequence[Sequence[Step]]]
    # What is tried when a device has failed.
    more: ClassVar[Sequence[Step]]
    damage: ClassVar[DamageSubject]
    # The names of scenarios.
    scenarios: ClassVar[Sequence[str]]
    # What processes do that are killed.
    loads: ClassVar[Sequence[Load]]

    # Working -------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, workload: Workload) -> tuple[bytes, M]:
        """The image that a workload begins with, and what is in it."""

    @abstractmethod
    def opened(self, device: BlockDevice, life: int = 0, *, writable: bool = True) -> E:
        """The engine on a device, with a clock and an entropy that are the same each time."""

    @abstractmethod
    def seen(self, engine: E) -> Tree:
        """What there is to see, read through the engine.  Raises `Corrupt`."""

    @abstractmethod
    def to_engine(self, engine: E, step: Step) -> None:
        """Does the step on an engine; raises as that does."""

    @abstractmethod
    def to_model(self, model: M, step: Step) -> Sequence[M]:
        """Does the step on a model; what there was to see in between, of a step that does several
        things.  Raises `Refused`, with nothing changed."""

    def reborn(self, model: M) -> M:
        """The model in a new life: what only a process held is gone."""
        copy: M = model.copy()
        return copy

    def gave_up(self, model: M, step: Step) -> None:
        """Takes note that the engine had no room for a step."""

    @abstractmethod
    def phase(self, engine: E, step: Step) -> str:
        """What was being done in a step, for reports."""

    @property
    def lingering(self) -> frozenset[str]:
        """Phases that go on until the next flush, which is another step's."""
        return frozenset()

    def follower(self) -> Callable[[E, Step, Tree], None]:
        """Called behind each step of a life with what there is to see; raises `Disagreement`."""
        return lambda engine, step, tree: None

    def settings(self) -> AbstractContextManager[object]:
        """How the engine is set up while the proof works with it."""
        return nullcontext()

    # Workloads, examining ------------------------------------------------------------------------

    @abstractmethod
    def ace(self, length: int) -> Sequence[Workload]:
        """Every workload of so many operations, 1 or 2."""

    @abstractmethod
    def chance(self, seed: int, operations: int) -> Workload:
        """The workload ``random-SEED-OPERATIONS``."""

    @abstractmethod
    def scenario(self, name: str) -> Workload:
        """The workload ``scenario-NAME``; raises KeyError."""

    @abstractmethod
    def examiner(self) -> Examiner[Any]:
        """A new one."""

    def histories(self, seed: int, times: int) -> Tally | None:
        """So many histories of clients that work at once, and whether each is linearizable; None
        for a format that promises nothing of the kind."""
        return None

    @abstractmethod
    def canaries(self) -> Sequence[Canary]:
        """All of them."""


# For whoever works with all of them.
AnySubject = Subject[Any, Any]

_MODULES: Final[Mapping[str, str]] = {
    "wf1": "capstore.tools.prove.wf1_subject",
    "st1": "capstore.tools.prove.st1_subject",
    "overlay": "capstore.tools.prove.overlay_subject",
}
FORMATS: Final = tuple(_MODULES)


@cache
def subject_of(name: str) -> AnySubject:
    """The subject of a format.  Raises `InvalidArgument`."""
    if name not in _MODULES:
        raise InvalidArgument(f'nothing is known about "{name}" (there are: {", ".join(FORMATS)})')
    found: AnySubject = import_module(_MODULES[name]).SUBJECT
    return found
