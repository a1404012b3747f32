"""The steps of CAPOSWF1 workloads, done by the model and by the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from capstore.images import wf1_ops
from capstore.images.wf1 import ROOT
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_upkeep import Snapshot
from capstore.schema.errors import NotFound
from capstore.tools.prove.wf1_model import File, Link, Model
from capstore.tools.prove.workload import Step, content

# Steps that change no tree.
KEEPING: Final = frozenset(("sync", "commit", "checkpoint", "clean", "snapshot", "drop", "release"))
# Those behind which everything before them is durable.
DURABLE: Final = frozenset(("sync", "checkpoint"))


# On the model ------------------------------------------------------------------------------------


def _append(model: Model, step: Step) -> None:
    size, number = step.numbers
    file = model.file(step.paths[0])
    model.write(step.paths[0], len(file.data), content(number, size))


def _write(model: Model, step: Step) -> None:
    offset, size, number = step.numbers
    model.write(step.paths[0], offset, content(number, size))


_MODEL: Final[dict[str, Callable[[Model, Step], None]]] = {
    "create": lambda m, s: m.make(s.paths[0], File()),
    "mkdir": lambda m, s: m.make(s.paths[0], {}),
    "symlink": lambda m, s: m.make(s.paths[0], Link(s.paths[1])),
    "link": lambda m, s: m.link(*s.paths),
    "remove": lambda m, s: m.remove(s.paths[0]),
    "orphan": lambda m, s: m.remove(s.paths[0]),
    "rename": lambda m, s: m.rename(*s.paths, replace=True),
    "move": lambda m, s: m.rename(*s.paths, replace=False),
    "exchange": lambda m, s: m.exchange(*s.paths),
    "write": _write,
    "append": _append,
    "truncate": lambda m, s: m.truncate(s.paths[0], s.numbers[0]),
    "chmod": lambda m, s: m.chmod(s.paths[0], bool(s.numbers[0])),
}


def to_model(model: Model, step: Step) -> None:
    """Does the step on a model.  Raises `Refused`."""
    if step.op not in KEEPING:
        _MODEL[step.op](model, step)


# On the engine -----------------------------------------------------------------------------------


def place(engine: Engine, path: str) -> tuple[int, str]:
    """The directory that a path is in, and its name there.  Raises `NotFound`."""
    *above, name = path.split("/")
    at = ROOT
    for step in above:
        at = wf1_ops.child_of(engine.state, at, step).id
    return at, name


def node(engine: Engine, path: str) -> int:
    """The node at a path.  Raises `NotFound`."""
    at, name = place(engine, path)
    found = engine.state.child(at, name)
    if not found:
        raise NotFound(path)
    return found


@dataclass(slots=True)
class Held:
    """What is held of a volume: nodes, which may have lost their names since, and moments."""

    nodes: list[int] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)


_HELD: Final[WeakKeyDictionary[Engine, Held]] = WeakKeyDictionary()


def held(engine: Engine) -> Held:
    """What steps on `engine` have left held."""
    return _HELD.setdefault(engine, Held())


def _orphan(engine: Engine, step: Step) -> None:
    """Removes a name of what somebody holds."""
    number = node(engine, step.paths[0])
    engine.hold(number)
    held(engine).nodes.append(number)
    engine.remove(*place(engine, step.paths[0]))


def _release(engine: Engine) -> None:
    nodes = held(engine).nodes
    while nodes:
        engine.release(nodes.pop())


def _drop(engine: Engine) -> None:
    snapshots = held(engine).snapshots
    while snapshots:
        engine.drop(snapshots.pop())


def _two(engine: Engine, step: Step) -> tuple[int, str, int, str]:
    return (*place(engine, step.paths[0]), *place(engine, step.paths[1]))


_ENGINE: Final[dict[str, Callable[[Engine, Step], object]]] = {
    "create": lambda e, s: e.create(*place(e, s.paths[0])),
    "mkdir": lambda e, s: e.mkdir(*place(e, s.paths[0])),
    "symlink": lambda e, s: e.symlink(*place(e, s.paths[0]), s.paths[1]),
    "link": lambda e, s: e.link(*_two(e, s)),
    "remove": lambda e, s: e.remove(*place(e, s.paths[0])),
    "orphan": _orphan,
    "release": lambda e, _: _release(e),
    "snapshot": lambda e, _: held(e).snapshots.append(e.snapshot()),
    "drop": lambda e, _: _drop(e),
    "rename": lambda e, s: e.rename(*_two(e, s)),
    "move": lambda e, s: e.rename(*_two(e, s), replace=False),
    "exchange": lambda e, s: e.exchange(*_two(e, s)),
    "write": lambda e, s: e.write(
        node(e, s.paths[0]), s.numbers[0], content(s.numbers[2], s.numbers[1])
    ),
    "append": lambda e, s: e.append(node(e, s.paths[0]), content(s.numbers[1], s.numbers[0])),
    "truncate": lambda e, s: e.truncate(node(e, s.paths[0]), s.numbers[0]),
    "chmod": lambda e, s: e.set_attributes(node(e, s.paths[0]), executable=bool(s.numbers[0])),
    "sync": lambda e, _: e.sync(),
    "commit": lambda e, _: e.commit(),
    "checkpoint": lambda e, _: e.checkpoint(),
    "clean": lambda e, _: e.clean(),
}


def to_engine(engine: Engine, step: Step) -> None:
    """Does the step on an engine; raises as that does."""
    _ENGINE[step.op](engine, step)
