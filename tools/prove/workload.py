"""Workloads as data: steps with words for arguments, the same for the model and for the engine.

Invariants: a step's text says all of it, and `Step.parse` reads it back.  The bytes that a step
writes follow from its number alone.  A workload's name is enough to make it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final

CRASH: Final = "crash"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation; arguments are names, and then numbers."""

    op: str
    paths: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.op, *self.paths, *map(str, self.numbers)))

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step of a text.  Numbers begin with a digit, names do not."""
        op, *words = text.split()
        numbers = tuple(int(word) for word in words if word[0].isdigit())
        return cls(op, tuple(word for word in words if not word[0].isdigit()), numbers)


def steps(text: str) -> tuple[Step, ...]:
    """The steps of a text that has them behind one another, with semicolons between."""
    return tuple(Step.parse(part) for part in text.split(";") if part.strip())


@dataclass(frozen=True, slots=True)
class Workload:
    """`parts` are done one after the other, with a crash between each two of them."""

    name: str
    parts: tuple[tuple[Step, ...], ...]
    # How many segments there are beside those that are needed; 0 for a region that grows.
    room: int = 4
    # Whether the image was made where another one of its format was.
    over_another: bool = False

    def __str__(self) -> str:
        return f"; {CRASH}; ".join("; ".join(map(str, part)) for part in self.parts)


@lru_cache(maxsize=1024)
def content(number: int, size: int) -> bytes:
    """The bytes that a step writes: no two numbers have the same."""
    return Random(number).randbytes(size)  # noqa: S311 - not for secrets


def parts_of(sequence: Sequence[Step]) -> tuple[tuple[Step, ...], ...]:
    """Cuts steps at their crashes."""
    parts: list[list[Step]] = [[]]
    for step in sequence:
        if step.op == CRASH:
            parts.append([])
        else:
            parts[-1].append(step)
    return tuple(map(tuple, parts))
