"""Longer workloads by chance, each with some of the operations turned off (swarm testing).

Invariants: a workload is that of its seed and length alone.  Most of its steps can be done, some
are to be refused.  It never looks at an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from capstore.tools.prove.chance import possible, some_off
from capstore.tools.prove.wf1_model import File, Item, Model
from capstore.tools.prove.wf1_start import start
from capstore.tools.prove.wf1_steps import DURABLE, KEEPING, to_model
from capstore.tools.prove.workload import CRASH, Step, Workload, parts_of

_NAMES: Final = ("a", "b", "c")
_DEPTH_MAX: Final = 3
_SIZES: Final = (1, 100, 511, 512, 5000, 70_000)
_LARGE: Final = 200_000
_OFFSETS: Final = (0, 3, 512, 600, 70_000)
_CUTS: Final = (0, 2, 500, 512, 4000, 100_000)
# How many segments a volume has beside those it needs; 0 for one that grows.
_ROOM_SEGMENTS: Final = (2, 4, 4, 8, 0)
# What is never turned off, and how often operations are done.
_WEIGHTS: Final = {
    "create": 4,
    "mkdir": 2,
    "symlink": 1,
    "write": 4,
    "append": 3,
    "truncate": 2,
    "remove": 3,
    "orphan": 1,
    "release": 1,
    "snapshot": 1,
    "drop": 1,
    "rename": 4,
    "move": 1,
    "exchange": 1,
    "link": 2,
    "chmod": 1,
    "sync": 4,
    "commit": 4,
    "checkpoint": 1,
    "clean": 1,
    CRASH: 1,
}
_ALWAYS: Final = ("create", "append", "sync", "commit")


def chance_workload(seed: int, operations: int) -> Workload:
    """The workload ``random-SEED-OPERATIONS``."""
    name = f"random-{seed}-{operations}"
    random = Random(name)  # noqa: S311 - the same each time
    weights = some_off(random, _WEIGHTS, _ALWAYS)
    room = random.choice(_ROOM_SEGMENTS)
    model = start(room)[1].copy()
    made: list[Step] = []
    while len(made) < operations:
        op = random.choices(list(weights), list(weights.values()))[0]
        step = _possible(random, model, op, len(made))
        if step is not None:
            made.append(step)
    if made[-1].op not in DURABLE:
        made.append(Step("sync"))
    return Workload(name, parts_of(made), room)


def _possible(random: Random, model: Model, op: str, number: int) -> Step | None:
    """A step that can be done, which is done on `model`, or now and then one that cannot."""
    if op in KEEPING or op == CRASH:
        return Step(op)
    return possible(
        random,
        lambda: _STEPS[op](random, model, number),
        lambda step: to_model(model, step),
    )


def _path(random: Random, model: Model) -> str:
    """A path whose directory is there."""
    at, above = model.root, ""
    for _ in range(random.randrange(_DEPTH_MAX)):
        below = [name for name, item in at.items() if isinstance(item, dict)]
        if not below:
            break
        name = random.choice(below)
        found = at[name]
        assert isinstance(found, dict)  # noqa: S101 - chosen so
        at, above = found, f"{above}{name}/"
    return above + random.choice([*_NAMES, *at])


def _file(random: Random, model: Model) -> str:
    found: list[str] = []
    _files(model.root, "", found)
    return random.choice(found) if found else _NAMES[0]


def _files(directory: dict[str, Item], above: str, found: list[str]) -> None:
    for name, item in directory.items():
        if isinstance(item, File):
            found.append(above + name)
        elif isinstance(item, dict):
            _files(item, f"{above}{name}/", found)


def _size(random: Random) -> int:
    return _LARGE if random.random() < 0.03 else random.choice(_SIZES)


def _one(op: str) -> Callable[[Random, Model, int], Step]:
    return lambda random, model, number: Step(op, (_path(random, model),))


def _two(op: str) -> Callable[[Random, Model, int], Step]:
    return lambda random, model, number: Step(op, (_path(random, model), _path(random, model)))


_STEPS: Final[dict[str, Callable[[Random, Model, int], Step]]] = {
    **{op: _one(op) for op in ("create", "mkdir", "remove", "orphan")},
    **{op: _two(op) for op in ("rename", "move", "exchange", "link")},
    "symlink": lambda r, m, _: Step("symlink", (_path(r, m), r.choice(_NAMES))),
    "write": lambda r, m, n: Step("write", (_file(r, m),), (r.choice(_OFFSETS), _size(r), 100 + n)),
    "append": lambda r, m, n: Step("append", (_file(r, m),), (_size(r), 100 + n)),
    "truncate": lambda r, m, _: Step("truncate", (_file(r, m),), (r.choice(_CUTS),)),
    "chmod": lambda r, m, _: Step("chmod", (_file(r, m),), (r.randrange(2),)),
}
