"""What processes that are to be killed do, and what they have to say.

Several clients work below names of their own each.  A process says a line ``STREAM NUMBER`` when
so many of the steps of a stream are durable: the operations of all clients, one among the other,
are one stream where the engine does them, and each client's are one where the backer does.

Invariants: what is done follows from the seed and the number of operations alone, so whoever knows
them knows what the image has to hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from capstore.tools.prove.recording import Moment
from capstore.tools.prove.subject import AnySubject, Refused, Tree, subject_of
from capstore.tools.prove.workload import Step

CLIENTS: Final = 4
OPERATIONS: Final = 2000
READY: Final = "ready"
DONE: Final = "done"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps that are done in order on the model of `format` that `empty` gives.

    Behind those of `durable` everything before is durable.  `mine` is what of a tree is this
    stream's, in words that do not depend on other streams."""

    format: str
    steps: Sequence[Step]
    durable: Callable[[Step], bool]
    empty: Callable[[], Any]
    mine: Callable[[Tree], Tree]

    def moments(self, durable: int) -> tuple[list[Moment], int]:
        """What there is to see after each of the steps, and which of that there is behind the
        first `durable` of them."""
        subject = subject_of(self.format)
        model = self.empty()
        moments, needed = [Moment(0, model, self.mine(model.tree()))], 0
        for number, step in enumerate(self.steps):
            if number == durable:
                needed = len(moments) - 1
            after = model.copy()
            try:
                subject.to_model(after, step)
            except Refused:
                continue
            model = after
            if (tree := self.mine(model.tree())) != moments[-1].tree:
                moments.append(Moment(0, model, tree))
        if durable >= len(self.steps):
            needed = len(moments) - 1
        return moments, needed

    @property
    def promises(self) -> int:
        """How many of the steps make everything before them durable."""
        return sum(map(self.durable, self.steps))


@dataclass(frozen=True, slots=True)
class Load:
    """What a kind of process does: the steps of `streams`, which are of a seed, in `module`, on
    what `make` makes in a new file.

    `calls` are about how many of each system call one of its threads has made by the end.
    """

    name: str
    format: str
    module: str
    make: Callable[[str], None]
    streams: Callable[[int, int], list[Stream]]
    calls: Mapping[str, int]

    @property
    def subject(self) -> AnySubject:
        """What it is of."""
        return subject_of(self.format)

    def words(self, seed: int) -> int:
        """How many promises a worker makes."""
        return sum(stream.promises for stream in self.streams(seed, OPERATIONS))


def shuffled(seed: int, streams: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps of several streams, one among the other."""
    random = Random(f"load {seed}")  # noqa: S311 - the same each time
    queues = [list(steps) for steps in streams]
    done: list[Step] = []
    while any(queues):
        done.append(random.choice([queue for queue in queues if queue]).pop(0))
    return done


def say(line: str) -> None:
    """To whoever kills this process."""
    os.write(1, f"{line}\n".encode())
