"""Longer workloads on overlays by chance, each with some of the operations turned off, as
`wf1_chance` has them of a volume.

Invariants: a workload is that of its seed and length alone.  Most of its steps can be done, some
are to be refused.  It never looks at an overlay.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from capstore.tools.prove.chance import possible, some_off
from capstore.tools.prove.overlay_model import Directory, File, Model, walk
from capstore.tools.prove.overlay_start import start
from capstore.tools.prove.overlay_steps import ARMS, DURABLE, to_model
from capstore.tools.prove.workload import CRASH, Step, Workload, parts_of

# New names, among them some that lower layers have, too.
_NAMES: Final = ("a", "d", "f", "g", "h", "q", "t", "u", "v")
_SIZES: Final = (1, 100, 512, 5000, 70_000)
_OFFSETS: Final = (0, 3, 600, 70_000)
_CUTS: Final = (0, 2, 512, 4000, 66_000)
# How many segments a volume has beside those it needs; 0 for one that grows.
_ROOM_SEGMENTS: Final = (6, 8, 16, 0)
# What is never turned off, and how often operations are done.
_WEIGHTS: Final = {
    "create": 3,
    "touch": 1,
    "mkdir": 3,
    "symlink": 1,
    "write": 3,
    "append": 2,
    "truncate": 2,
    "empty": 1,
    "remove": 6,
    "rename": 6,
    "move": 1,
    "exchange": 2,
    "link": 2,
    "chmod": 1,
    "times": 1,
    "hold": 1,
    "poke": 1,
    "release": 1,
    "arm": 1,
    "sync": 4,
    "commit": 2,
    "checkpoint": 1,
    "clean": 1,
    "reset": 0.5,
    "together": 0.3,
    "flat": 0.2,
    CRASH: 1,
}
_ALWAYS: Final = ("remove", "rename", "write", "sync")
# How often a name is one that is there, where it may be any.
_THERE_SHARE: Final = 0.5


def chance_workload(seed: int, operations: int) -> Workload:
    """The workload ``random-SEED-OPERATIONS``."""
    name = f"random-{seed}-{operations}"
    random = Random(f"overlay {name}")  # noqa: S311 - the same each time
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
    if op == CRASH:
        model.held.clear()
        return Step(op)
    return possible(
        random,
        lambda: _STEPS[op](random, model, number) if op in _STEPS else Step(op),
        lambda step: to_model(model, step),
    )


def _there(random: Random, model: Model) -> str:
    """The path of something that is there."""
    found = [path for path, _ in walk(model.root)]
    return random.choice(found) if found else _NAMES[0]


def _path(random: Random, model: Model) -> str:
    """A path whose directory is there."""
    if random.random() < _THERE_SHARE:
        return _there(random, model)
    directories = [f"{path}/" for path, item in walk(model.root) if isinstance(item, Directory)]
    return random.choice(["", *directories]) + random.choice(_NAMES)


def _file(random: Random, model: Model) -> str:
    found = [path for path, item in walk(model.root) if isinstance(item, File)]
    return random.choice(found) if found else _NAMES[0]


Chooser = Callable[[Random, Model, int], Step]


def _one(op: str, path: Callable[[Random, Model], str]) -> Chooser:
    return lambda random, model, number: Step(op, (path(random, model),))


def _two(op: str) -> Chooser:
    return lambda random, model, number: Step(op, (_there(random, model), _path(random, model)))


def _written(op: str) -> Chooser:
    def chosen(random: Random, model: Model, number: int) -> Step:
        numbers = (random.choice(_OFFSETS), random.choice(_SIZES), 100 + number)
        return Step(op, () if op == "poke" else (_file(random, model),), numbers)

    return chosen


_STEPS: Final[dict[str, Chooser]] = {
    **{op: _one(op, _path) for op in ("create", "touch", "mkdir")},
    **{op: _one(op, _file) for op in ("empty", "hold")},
    **{op: _two(op) for op in ("rename", "move", "exchange", "link")},
    **{op: _written(op) for op in ("write", "poke")},
    "remove": _one("remove", _there),
    "symlink": lambda r, m, _: Step("symlink", (_path(r, m), r.choice(_NAMES))),
    "append": lambda r, m, n: Step("append", (_file(r, m),), (r.choice(_SIZES), 100 + n)),
    "truncate": lambda r, m, _: Step("truncate", (_file(r, m),), (r.choice(_CUTS),)),
    "chmod": lambda r, m, _: Step("chmod", (_file(r, m),), (r.randrange(2),)),
    "times": lambda r, m, n: Step("times", (_there(r, m),), (8_000 + n,)),
    "arm": lambda r, m, _: Step("arm", (r.choice(ARMS),)),
}
