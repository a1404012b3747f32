"""Every short workload on a small fixed set of names, as `wf1_ace` has them of a volume: here the
names are one of each kind that an overlay tells apart.

Invariants: the numbers of workloads are those of the enumeration, which depends on this module and
on the starting tree alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from capstore.tools.prove.overlay_lower import model as lower
from capstore.tools.prove.overlay_model import Model
from capstore.tools.prove.overlay_start import start
from capstore.tools.prove.overlay_steps import ARMS, to_model
from capstore.tools.prove.subject import Refused
from capstore.tools.prove.workload import Step, Workload

ROOM: Final = 6
# Of lower layers: files (small, large, with holes, of several names, in directories), links,
# directories (merged, nested, opaque, empty, copied, moved).  Of the upper one: a new file and
# directory, a copied file, one in the place of a lower directory.  Names that are covered (a file,
# a directory, what was moved, in a copied directory and in a moved one), and new ones.
FILES: Final = ("a", "b", "c", "d/f", "d/g", "d/k", "i", "j", "k", "m/g", "n", "o/f", "x", "z")
DIRECTORIES: Final = ("d", "d/e", "g", "h", "m", "m/n", "o", "p", "r", "r/n")
OTHERS: Final = ("s", "v", "t", "q", "y", "m/f", "r/f", "w", "d/w")
PATHS: Final = (*FILES, *DIRECTORIES, *OTHERS)
# Of two names: one of each kind again, and fewer.
SOURCES: Final = ("a", "c", "d", "d/e", "d/f", "g", "i", "k", "m", "n", "o", "p", "r", "s", "z")
TARGETS: Final = ("a", "d", "d/f", "d/w", "g", "h", "i", "j", "l", "m/f", "m/n", "o", "o/w", "s")
GOALS: Final = (*TARGETS, "t", "v", "w", "q", "r", "n", "r/f")
# Of workloads of two operations.
_FEW: Final = ("a", "d", "d/f", "d/e", "i", "k", "o", "r", "v", "q", "w")

# Offset and length.
_WRITES: Final = ((0, 300), (999, 3), (70_000, 100), (130_000, 600))
_APPENDS: Final = (1, 5000)
_SIZES: Final = (0, 1, 512, 66_000, 203_000)
_TIME: Final = 7_000
_BETWEEN: Final = ("", "checkpoint")
# Files that are copied up while something else is done.
_COPIED: Final = ("a", "b", "d/f", "i", "k", "z")


def _single(path: str, number: int) -> Iterator[Step]:
    """All that is done to one name; what is written has the bytes of `number`."""
    for op in ("create", "touch", "mkdir", "remove", "empty"):
        yield Step(op, (path,))
    yield Step("symlink", (path, "d/f"))
    for offset, size in _WRITES:
        yield Step("write", (path,), (offset, size, number))
    for size in _APPENDS:
        yield Step("append", (path,), (size, number))
    for size in _SIZES:
        yield Step("truncate", (path,), (size,))
    for executable in (0, 1):
        yield Step("chmod", (path,), (executable,))
    yield Step("times", (path,), (_TIME,))


def _double() -> Iterator[Step]:
    for path in SOURCES:
        for other in GOALS:
            for op in ("rename", "move", "exchange", "link"):
                yield Step(op, (path, other))


def _few(number: int) -> Iterator[Step]:
    for path in _FEW:
        for op in ("create", "mkdir", "remove"):
            yield Step(op, (path,))
        yield Step("write", (path,), (200, 700, number))
        yield Step("truncate", (path,), (400,))
        for other in _FEW:
            for op in ("rename", "exchange", "link"):
                yield Step(op, (path, other))


def possible(model: Model, steps: Iterator[Step]) -> list[tuple[Step, Model]]:
    """What can be done on `model` and makes a difference, with what it leads to."""
    found: list[tuple[Step, Model]] = []
    before = model.tree()
    for step in steps:
        after = model.copy()
        try:
            # Where nothing is in the way a move is a rename.
            if step.op == "move" and not model.has(step.paths[1]):
                continue
            to_model(after, step)
        except Refused:
            continue
        if after.tree() != before:
            found.append((step, after))
    return found


def _first(number: int) -> Iterator[Step]:
    for path in PATHS:
        yield from _single(path, number)


def _copying() -> Iterator[Sequence[Step]]:
    """A copy, with something in the middle that makes what is there durable or moves it."""
    for path in _COPIED:
        for what in ARMS:
            yield Step("arm", (what,)), Step("append", (path,), (10, 11)), Step("sync")
    for what in ARMS:
        yield Step("arm", (what,)), Step("rename", ("b", "w")), Step("sync")
        yield Step("arm", (what,)), Step("remove", ("k",)), Step("sync")


@lru_cache(maxsize=1)
def length_1() -> tuple[Workload, ...]:
    """Every workload of one operation, with what makes it durable."""
    _, model = start(ROOM)
    singles = [step for step, _ in possible(model, _first(11))]
    doubles = [step for step, _ in possible(model, _double())]
    alone = [Step("sync"), Step("checkpoint"), Step("clean"), Step("reset")]
    parts: list[Sequence[Step]] = [(step, Step("sync")) for step in (*alone, *singles, *doubles)]
    parts += [(Step("together"), step, Step("checkpoint")) for step in (*alone, *singles)]
    parts += _copying()
    return _named("ace1", parts)


@lru_cache(maxsize=1)
def length_2() -> tuple[Workload, ...]:
    """Every workload of two operations on fewer names, with every way to part them."""
    _, model = start(ROOM)
    parts = [
        (one, *([Step(between)] if between else []), two, Step("sync"))
        for one, after in [*possible(model, _few(11)), (Step("reset"), lower())]
        for two in [*(step for step, _ in possible(after, _few(12))), Step("reset")]
        for between in _BETWEEN
    ]
    return _named("ace2", parts)


def _named(family: str, parts: Sequence[Sequence[Step]]) -> tuple[Workload, ...]:
    return tuple(Workload(f"{family}-{n}", (tuple(part),), ROOM) for n, part in enumerate(parts))
