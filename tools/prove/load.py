"""What processes that are to be killed do, and what they have to say.

Several clients work in a directory of their own each.  A process says a line ``STREAM NUMBER`` when
so many of the steps of a stream are durable: the operations of all clients, one among the other,
are one stream where the engine does them, and each client's are one where the backer does.

Invariants: what is done follows from the seed and the number of operations alone, so whoever knows
them knows what the volume has to hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.wf1_open import format_wf1
from capstore.tools.prove.chance import chance_workload
from capstore.tools.prove.model import Model, Refused, Tree
from capstore.tools.prove.recording import START, Moment
from capstore.tools.prove.workload import DURABLE, Step, steps, to_model

CLIENTS: Final = 4
OPERATIONS: Final = 2000
READY: Final = "ready"
DONE: Final = "done"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps that are done in order; all names they make are in the directories `roots`."""

    steps: Sequence[Step]
    roots: frozenset[str]

    def moments(self, durable: int) -> tuple[list[Moment], int]:
        """What there is to see after each of the steps, and which of that there is behind the
        first `durable` of them."""
        moments, needed = [Moment(0, Model(), {})], 0
        model = moments[0].model
        for number, step in enumerate(self.steps):
            if number == durable:
                needed = len(moments) - 1
            after = model.copy()
            try:
                to_model(after, step)
            except Refused:
                continue
            model = after
            if (tree := model.tree()) != moments[-1].tree:
                moments.append(Moment(0, model, tree))
        if durable >= len(self.steps):
            needed = len(moments) - 1
        return moments, needed

    @property
    def promises(self) -> int:
        """How many of the steps make everything before them durable."""
        return sum(step.op in DURABLE for step in self.steps)

    def part_of(self, tree: Tree) -> Tree:
        """What of a tree is this stream's."""
        return {path: leaf for path, leaf in tree.items() if path.partition("/")[0] in self.roots}


def clients(seed: int, operations: int) -> list[Stream]:
    """What each client does in its directory."""
    return [_client(number, seed, operations) for number in range(CLIENTS)]


def mixed(seed: int, operations: int) -> list[Stream]:
    """The same, one among the other, as one stream."""
    random = Random(f"load {seed}")  # noqa: S311 - the same each time
    own = clients(seed, operations)
    queues = [list(stream.steps) for stream in own]
    done: list[Step] = []
    while any(queues):
        done.append(random.choice([queue for queue in queues if queue]).pop(0))
    return [Stream(done, frozenset().union(*(stream.roots for stream in own)))]


def _client(number: int, seed: int, operations: int) -> Stream:
    root = f"client-{number}"
    workload = chance_workload(CLIENTS * seed + number, operations // CLIENTS)
    mine = [Step("mkdir", (root,)), *(_below(root, step) for step in steps(START))]
    mine += [_below(root, step) for part in workload.parts for step in part]
    return Stream(mine, frozenset((root,)))


def _below(root: str, step: Step) -> Step:
    # The second argument of a symbolic link is a target, and no path of the volume.
    paths = step.paths[:1] if step.op == "symlink" else step.paths
    return Step(step.op, (*(f"{root}/{p}" for p in paths), *step.paths[len(paths) :]), step.numbers)


def make(path: str) -> None:
    """Makes an empty volume in a new file."""
    device = FileDevice.open(path, create=True)
    try:
        format_wf1(device)
    finally:
        device.close()


def say(line: str) -> None:
    """To whoever kills this process."""
    os.write(1, f"{line}\n".encode())
