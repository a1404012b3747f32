"""A process to be killed: ``python -m capstore.tools.prove.worker IMAGE SEED OPERATIONS``.

It does the steps of `load` on the volume in the file IMAGE, and says on standard output how many it
has begun with before each step that makes things durable, and, when that has returned, that they
are: a line ``NUMBER`` each.

Invariants: what it does follows from SEED and OPERATIONS alone, so whoever knows them knows what
the volume has to hold.
"""

from __future__ import annotations

import os
import sys
from random import Random
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.schema.errors import Corrupt, NoSpace, StorageError, StorageIOError
from capstore.tools.prove.chance import chance_workload
from capstore.tools.prove.recording import START
from capstore.tools.prove.workload import DURABLE, Step, steps, to_engine

CLIENTS: Final = 4


def load(seed: int, operations: int) -> list[Step]:
    """The steps of several clients, each in a directory of its own, one among the other."""
    random = Random(f"load {seed}")  # noqa: S311 - the same each time
    queues = [_client(number, seed, operations) for number in range(CLIENTS)]
    mixed: list[Step] = []
    while any(queues):
        mixed.append(random.choice([queue for queue in queues if queue]).pop(0))
    return mixed


def _client(number: int, seed: int, operations: int) -> list[Step]:
    root = f"client-{number}"
    workload = chance_workload(CLIENTS * seed + number, operations // CLIENTS)
    mine = [Step("mkdir", (root,)), *(_below(root, step) for step in steps(START))]
    return mine + [_below(root, step) for part in workload.parts for step in part]


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


def main(path: str, seed: int, operations: int) -> None:
    """Does the steps."""
    engine = open_wf1(FileDevice.open(path))
    _say("ready")
    for number, step in enumerate(load(seed, operations)):
        try:
            to_engine(engine, step)
        except (Corrupt, NoSpace, StorageIOError):
            raise
        except StorageError:
            # Refused, as the model will do.
            continue
        if step.op in DURABLE:
            _say(str(number + 1))
    _say("done")
    engine.close()


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
