"""What workloads by chance have in common: some of the operations turned off (swarm testing), and
steps of which most can be done.

After Groce et al., "Swarm Testing" (ISSTA 2012): a test that leaves some operations out entirely
finds what one that has them all covers up, as removing does with what creating makes.

Invariant: what comes out is that of the state of `random` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Final

from capstore.tools.prove.subject import Refused
from capstore.tools.prove.workload import Step

_REFUSED_SHARE: Final = 0.03
TRIES_MAX: Final = 30


def some_off(
    random: Random,
    weights: Mapping[str, float],
    always: Collection[str],
    without: Collection[str] = (),
) -> dict[str, float]:
    """How often each operation is done: `weights`, but some are turned off, and those of `without`;
    never those of `always`."""
    optional = [op for op in weights if op not in always]
    off = {*random.sample(optional, random.randrange(len(optional))), *without}
    return {op: weight for op, weight in weights.items() if op not in off}


def possible(
    random: Random,
    choose: Callable[[], Step],
    do: Callable[[Step], object],
    tries_max: int = TRIES_MAX,
) -> Step | None:
    """A step of `choose` that can be done, which is done, or now and then one that cannot.

    `do` does it, or raises `Refused`.  None if none was found.
    """
    for _ in range(tries_max):
        step = choose()
        try:
            do(step)
        except Refused:
            if random.random() < _REFUSED_SHARE:
                return step
            continue
        return step
    return None
