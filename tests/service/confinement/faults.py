"""Services that break one promise each, and calls by which that shows: what all of them have.

A play meets what is broken; on a service as it is, it finds nothing.  The numbers that moves take
are made by `index` and what is below it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.service.confinement.machine import Machine
from tests.service.confinement.play import Everything, Trees
from tests.service.confinement.world import Names, Piece

__all__ = ["FIRST", "STORE", "Fault", "Patch", "Play", "fault", "index", "newest", "some"]

Patch = pytest.MonkeyPatch
Play = Callable[[Any], None]


@dataclass(frozen=True)
class Fault:
    """A promise that is broken, how it is met, and where it is searched."""

    breaks: Callable[[Patch], None]
    play: Play
    machine: type[Trees]


def fault(
    faults: dict[str, Fault], play: Play, machine: type[Trees] = Everything
) -> Callable[[Callable[[Patch], None]], Any]:
    """Registers what it decorates, under its name."""

    def decorated(breaks: Callable[[Patch], None]) -> Callable[[Patch], None]:
        faults[breaks.__name__.strip("_").replace("_", " ")] = Fault(breaks, play, machine)
        return breaks

    return decorated


def index(position: int) -> int:
    """The number by which a move takes the one at this place."""
    return 4 * position


# The owner's directory, store, or file; and the owner's store among all that can be attenuated.
FIRST, STORE = index(0), index(1)


def newest(machine: Machine, kind: type | None = None) -> int:
    """The capability that was got last, or the last for what is of this kind."""
    of_kind = [held for held in machine.held if kind is None or isinstance(held.node, kind)]
    return index(len(of_kind) - 1)


def some(machine: Machine) -> int:
    """The last that can be attenuated."""
    return index(sum(not isinstance(held.node, Names | Piece) for held in machine.held) - 1)
