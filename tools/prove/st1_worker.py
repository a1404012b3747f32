"""A process to be killed: ``python -m capstore.tools.prove.st1_worker IMAGE SEED OPERATIONS``.

The engine does the steps of all clients on the store in the file IMAGE, in one thread; see
`capstore.tools.prove.load` for what it says.
"""

from __future__ import annotations

import sys

from capstore.images.devices import FileDevice
from capstore.images.st1_open import open_st1
from capstore.schema.errors import Corrupt, NoSpace, StorageError, StorageIOError
from capstore.tools.prove.load import DONE, FAILED, READY, say
from capstore.tools.prove.st1_load import mixed
from capstore.tools.prove.st1_start import small_steps
from capstore.tools.prove.st1_steps import to_engine


def main(path: str, seed: int, operations: int) -> None:
    """Does the steps."""
    engine = open_st1(FileDevice.open(path))
    [stream] = mixed(seed, operations)
    say(READY)
    for number, step in enumerate(stream.steps):
        try:
            to_engine(engine, step)
        except (Corrupt, NoSpace, StorageIOError) as error:
            say(f"{FAILED} {error!r}")
            raise
        except StorageError:
            # Refused, as the model will do.
            continue
        if stream.durable(step):
            say(f"0 {number + 1}")
    say(DONE)
    engine.close()


if __name__ == "__main__":
    with small_steps():
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
