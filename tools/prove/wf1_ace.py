"""Every short workload on a small fixed set of names, as the ACE generator makes them.

After Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI
2018): most bugs of this kind that were ever reported show in one or two operations on a new
filesystem with few names.  What an operation needs has to be there: it is in the starting tree, or
the operation before has made it.

Invariants: the numbers of workloads are those of the enumeration, which depends on this module and
on the starting tree alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from capstore.tools.prove.subject import Refused
from capstore.tools.prove.wf1_model import Model
from capstore.tools.prove.wf1_start import start
from capstore.tools.prove.wf1_steps import to_model
from capstore.tools.prove.workload import Step, Workload

PATHS: Final = ("a", "b", "d", "d/a", "d/b", "e", "e/a", "s")
# Offset and length: at the beginning, in the middle across a sector, a block, all that is there,
# across the end, behind the end, and of more than one stored unit.
_WRITES: Final = (
    (0, 300),
    (400, 300),
    (512, 512),
    (999, 1),
    (0, 1000),
    (0, 4000),
    (3000, 100),
    (200, 70_000),
)
_APPENDS: Final = (1, 100, 5000)
_SIZES: Final = (0, 1, 511, 512, 700, 4000, 70_000)
# What makes the first of two operations durable, or sees to it that it is in a frame of its own.
_BETWEEN: Final = ("", "commit", "sync", "checkpoint")
# What can be done behind an operation of a kind, and changes no tree.
_AFTER: Final = {"orphan": (Step("release"),)}
_FINALLY: Final = ("sync", "checkpoint")


def operations(model: Model, number: int) -> Iterator[Step]:
    """All that can be done on `model`; what is written has the bytes of `number`."""
    for path in PATHS:
        for op in ("create", "mkdir", "remove", "orphan"):
            yield Step(op, (path,))
        yield Step("symlink", (path, "d/a"))
        for offset, size in _WRITES:
            yield Step("write", (path,), (offset, size, number))
        for size in _APPENDS:
            yield Step("append", (path,), (size, number))
        for executable in (0, 1):
            yield Step("chmod", (path,), (executable,))
        for size in _SIZES:
            yield Step("truncate", (path,), (size,))
        for other in PATHS:
            for op in ("rename", "move", "exchange", "link"):
                yield Step(op, (path, other))


def possible(model: Model, number: int) -> list[tuple[Step, Model]]:
    """What can be done on `model` and makes a difference, with what it leads to."""
    found: list[tuple[Step, Model]] = []
    before = model.tree()
    for step in operations(model, number):
        after = model.copy()
        try:
            to_model(after, step)
        except Refused:
            continue
        # Where nothing is in the way a move is a rename.
        if step.op == "move" and _is_free(model, step.paths[1]):
            continue
        if after.tree() != before:
            found.append((step, after))
    return found


def _is_free(model: Model, path: str) -> bool:
    try:
        model.item(path)
    except Refused:
        return True
    return False


@lru_cache(maxsize=1)
def length_1() -> tuple[Workload, ...]:
    """Every workload of one operation, with what makes it durable."""
    _, model = start(4)
    steps = [step for step, _ in possible(model, 11)]
    alone = [Step("sync"), Step("checkpoint"), Step("clean")]
    parts = [(step, Step(last)) for step in [*steps, *alone] for last in _FINALLY]
    return tuple(Workload(f"ace1-{n}", (part,)) for n, part in enumerate(parts))


@lru_cache(maxsize=1)
def length_2() -> tuple[Workload, ...]:
    """Every workload of two operations, with every way to part them."""
    _, model = start(4)
    parts = [
        (one, *([Step(between)] if between else []), two, Step("sync"))
        for one, after in [*possible(model, 11), (Step("snapshot"), model)]
        for two in [*(step for step, _ in possible(after, 12)), *_AFTER.get(one.op, ())]
        for between in _BETWEEN
    ]
    return tuple(Workload(f"ace2-{n}", (part,)) for n, part in enumerate(parts))
