"""Longer workloads by chance, each with some of the operations turned off (swarm testing); see
`capstore.tools.prove.wf1_chance`.

Invariants: a workload is that of its seed and length alone.  Most of its steps can be done, some
are to be refused.  It never looks at an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from capstore.tools.prove.chance import possible, some_off
from capstore.tools.prove.st1_model import Model
from capstore.tools.prove.st1_start import SMALLEST, start
from capstore.tools.prove.st1_steps import DURABLE, KEEPING, to_model
from capstore.tools.prove.workload import CRASH, Step, Workload, parts_of

_KEYS: Final = ("a", "b", "c", "d", "e", "k/1", "k/2", "long-1", "long-2")
_NAMES: Final = ("n", "m", "m/o")
_SIZES: Final = (0, 1, 100, 300, 511, 512, 660, 700, 1500, 4096, 5000)
_LARGE: Final = 20_000
# Content that is put under its hash: few, so that some is put again.
_CONTENTS: Final = tuple((size, number) for size in (20, 300, 700, 5000) for number in (3, 4, 5))
_ROOMS: Final = (2, 4, 4, 10, 0, 0, SMALLEST)
_WEIGHTS: Final = {
    "put": 8,
    # A large one: a fixed region is soon full.
    "fill": 3,
    "hashed": 3,
    "create": 1,
    "update": 2,
    "stale": 1,
    "delete": 4,
    "delete-at": 1,
    "delete-stale": 1,
    "batch": 3,
    "begin": 2,
    "piece": 3,
    "finish": 2,
    "abort": 1,
    "bind": 2,
    "refer": 1,
    "unbind": 1,
    "sync": 4,
    "commit": 4,
    "compact": 1,
    "step": 6,
    "work": 1,
    "collect": 1,
    "sweep": 2,
    CRASH: 1,
}
_ALWAYS: Final = ("put", "delete", "sync", "commit")
_TRIES_MAX: Final = 10


def chance_workload(
    seed: int, operations: int, *, without: Sequence[str] = (), empty: bool = False
) -> Workload:
    """The workload ``random-SEED-OPERATIONS``; `without` some operations, or on an `empty` store,
    another one."""
    name = f"random-{seed}-{operations}"
    random = Random(f"{name}{'/'.join(without)}")  # noqa: S311 - the same each time
    weights = some_off(random, _WEIGHTS, _ALWAYS, without)
    room = random.choice(_ROOMS)
    model = Model() if empty else start(room)[1].copy()
    made: list[Step] = []
    while len(made) < operations:
        op = random.choices(list(weights), list(weights.values()))[0]
        step = _possible(random, model, op, len(made))
        if step is not None:
            made.append(step)
        if op == CRASH:
            model = model.reborn()
    if made[-1].op not in DURABLE:
        made.append(Step("sync"))
    return Workload(name, parts_of(made), room)


def _possible(random: Random, model: Model, op: str, number: int) -> Step | None:
    """A step that can be done, which is done on `model`, or now and then one that cannot."""
    if op == CRASH or (op in KEEPING and op not in _STEPS):
        return Step(op)
    return possible(
        random,
        lambda: _STEPS[op](random, model, number),
        lambda step: to_model(model, step),
        _TRIES_MAX,
    )


def _key(random: Random) -> str:
    if random.random() < 0.05:
        size, number = random.choice(_CONTENTS)
        return f"h-{size}-{number}"
    return random.choice(_KEYS)


def _size(random: Random) -> int:
    return _LARGE if random.random() < 0.03 else random.choice(_SIZES)


def _valued(op: str) -> Callable[[Random, Model, int], Step]:
    return lambda random, _, number: Step(op, (_key(random),), (_size(random), 100 + number))


def _keyed(op: str) -> Callable[[Random, Model, int], Step]:
    return lambda random, _, number: Step(op, (_key(random),))


def _plain(op: str) -> Callable[[Random, Model, int], Step]:
    return lambda random, _, number: Step(op)


def _batch(random: Random, __: Model, number: int) -> Step:
    words: list[str] = []
    numbers: list[int] = []
    for _ in range(random.randrange(1, 9)):
        word = random.choice((_key(random), "#"))
        if word != "#" and random.random() < 0.3:
            words.append(f"-{word}")
            continue
        words.append(word)
        if word == "#":
            numbers += random.choice(_CONTENTS)
        else:
            numbers += (random.choice(_SIZES), 100 + number)
    return Step("batch", tuple(words), tuple(numbers))


def _begin(random: Random, _: Model, __: int) -> Step:
    key = random.choice(((), (_key(random),)))
    return Step("begin", key, (1,) if random.random() < 0.2 else ())


def _bind(random: Random, _: Model, __: int) -> Step:
    size, number = random.choice(_CONTENTS)
    absent = (1,) if random.random() < 0.3 else ()
    return Step("bind", (random.choice(_NAMES), f"h-{size}-{number}"), absent)


_STEPS: Final[dict[str, Callable[[Random, Model, int], Step]]] = {
    **{op: _valued(op) for op in ("put", "create", "update", "stale")},
    **{op: _keyed(op) for op in ("delete", "delete-at", "delete-stale")},
    **{op: _plain(op) for op in ("finish", "abort", "collect", "sweep")},
    "fill": lambda r, _, n: Step("put", (_key(r),), (_LARGE, 100 + n)),
    "hashed": lambda r, _, __: Step("hashed", (), r.choice(_CONTENTS)),
    "batch": _batch,
    "begin": _begin,
    "piece": lambda r, _, n: Step("piece", (), (_size(r), 100 + n)),
    "bind": _bind,
    "refer": lambda r, _, n: Step("refer", (r.choice(_NAMES),), (n,)),
    "unbind": lambda r, _, __: Step("unbind", (r.choice(_NAMES),)),
}
