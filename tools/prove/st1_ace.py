"""Every short workload on a small fixed set of keys; see `capstore.tools.prove.wf1_ace`.

Invariants: the numbers of workloads are those of the enumeration, which depends on this module and
on the starting store alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from capstore.tools.prove.st1_model import Model
from capstore.tools.prove.st1_start import SMALLEST, start
from capstore.tools.prove.st1_steps import to_model
from capstore.tools.prove.subject import Refused
from capstore.tools.prove.workload import Step, Workload, steps

# One that the log has, one of several parts in the table, one that was removed, one that never was,
# and the hash of what is there.
KEYS: Final = ("a", "b", "c", "f", "h-300-4")
# Nothing, some bytes in the frame, a segment's worth beside it, several parts.
_SIZES: Final = (0, 100, 900, 9000)
# What is put already, and what is not.
_HASHED: Final = ("300 4", "20 5", "250 N", "9000 N")
_NAMES: Final = ("n", "m/o")
# Each with N for a number.
_TEXTS: Final = (
    # The same content once more.
    "put a 301 8",
    "put b 5000 2",
    "update a 50 N",
    "update b 6000 N",
    "create c 60 N",
    "create f 4500 N",
    "stale a 10 N",
    "delete-at a",
    "delete-at b",
    "delete-stale b",
    "batch a c 11 N 22 N",
    "batch -a -b",
    "batch b -a f 30 N 900 N",
    "batch a -a a 40 N 50 N",
    "batch # # # 60 N 300 4 5000 N",
    # Longer than a frame.
    "batch a b c d f 600 N 610 N 620 N 630 N 640 N",
    "batch a b c d e f g 650 N 650 N 650 N 650 N 650 N 650 N 5000 N",
    "batch -a -g",
    "begin a; piece 5000 N; finish",
    "begin; piece 300 N; piece 9000 N; finish",
    "begin; piece 300 4; finish",
    "begin f 1; piece 100 N; finish",
    "begin b; piece 9000 N; abort",
    "begin b; piece 5000 N",
    "bind n h-700-3",
    "bind m/o h-20-5",
    "bind m/o h-300-4 1",
    "refer n 7",
    "unbind n",
    "put long-1 70 N",
    # A compaction, and each of its first steps.
    "compact",
    *("; ".join(["step"] * count) for count in (1, 2, 3, 4, 6, 9)),
    "work",
    "collect",
    *("; ".join(["sweep"] * count) for count in (1, 2, 3, 5)),
)
_BETWEEN: Final = ("", "commit", "sync", "compact")
_FINALLY: Final = ("sync", "compact")
# In which regions workloads of one operation are done: of a fixed length, growing, the smallest.
_ROOMS: Final = (4, 0, SMALLEST)
# What goes on with what another operation has begun.
_AFTER: Final = ("finish", "abort", "piece 4000 N; finish", "step", "sweep; sweep")

Operation = tuple[Step, ...]


def operations(number: int) -> Iterator[Operation]:
    """All that can be done; what is put has the bytes of `number`."""
    for key in KEYS:
        for size in _SIZES:
            yield steps(f"put {key} {size} {number}")
        yield steps(f"delete {key}")
    for what in _HASHED:
        yield steps(f"hashed {what}".replace("N", str(number)))
    for text in _TEXTS:
        yield steps(text.replace(" N", f" {number}"))


def possible(model: Model, number: int) -> list[tuple[Operation, Model]]:
    """What can be done on `model`, with what it leads to."""
    found = []
    for operation in operations(number):
        after = _done(model, operation)
        if after is not None:
            found.append((operation, after))
    return found


def _done(model: Model, operation: Operation) -> Model | None:
    after = model.copy()
    try:
        for step in operation:
            to_model(after, step)
    except Refused:
        return None
    return after


@lru_cache(maxsize=1)
def length_1() -> tuple[Workload, ...]:
    """Every workload of one operation, with what makes it durable, in every kind of region."""
    parts = [
        (room, (*operation, Step(last)))
        for room in _ROOMS
        # Those that are to be refused, too.
        for operation in operations(11)
        for last in _FINALLY
    ]
    return tuple(Workload(f"ace1-{n}", (part,), room) for n, (room, part) in enumerate(parts))


@lru_cache(maxsize=1)
def length_2() -> tuple[Workload, ...]:
    """Every workload of two operations, with every way to part them."""
    _, model = start(4)
    parts = [
        (*one, *([Step(between)] if between else []), *two, Step("sync"))
        for one, after in possible(model, 11)
        for two in [*(operation for operation, _ in possible(after, 12)), *_goes_on(after)]
        for between in _BETWEEN
    ]
    return tuple(Workload(f"ace2-{n}", (part,)) for n, part in enumerate(parts))


def _goes_on(model: Model) -> Iterator[Operation]:
    for text in _AFTER:
        operation = steps(text.replace(" N", " 12"))
        if _done(model, operation) is not None:
            yield operation
