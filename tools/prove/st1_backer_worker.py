"""A process to be killed: ``python -m capstore.tools.prove.st1_backer_worker``, with the arguments
of `st1_worker`.

Each client is a task that works through the backer: one writer that all of them wait for, flushes
that they share, work beside operations, threads.  Whatever has returned is durable, and said to be;
see `capstore.tools.prove.load`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from capstore.backers.st1 import St1Store
from capstore.backers.store import Binding, Condition, Namespace
from capstore.schema.errors import Corrupt, NoSpace, NotFound, StorageError, StorageIOError
from capstore.tools.prove.load import DONE, FAILED, READY, Stream, say
from capstore.tools.prove.st1_load import clients
from capstore.tools.prove.st1_start import small_steps
from capstore.tools.prove.st1_steps import NO_VERSION, changes_of, key_of, value_of
from capstore.tools.prove.workload import Step


class Client:
    """Does the steps of a stream."""

    def __init__(self, number: int, store: St1Store, stream: Stream) -> None:
        self._number = number
        self._store = store
        self._stream = stream

    async def work(self) -> None:
        """Does all of them, and says which are durable."""
        for number, step in enumerate(self._stream.steps):
            try:
                await self._done(step)
            except (Corrupt, NoSpace, StorageIOError) as error:
                say(f"{FAILED} {error!r}")
                raise
            except StorageError:
                # Refused, as the model will do.
                continue
            say(f"{self._number} {number + 1}")
            # What was done at once lets the others go on, too.
            await asyncio.sleep(0)

    async def _done(self, step: Step) -> None:
        store = self._store
        if step.op in _ON_KEYS:
            await _ON_KEYS[step.op](store, key_of(step.paths[0]), step)
        elif step.op in _ON_NAMES:
            names, name = await self._place(step.paths[0])
            await _ON_NAMES[step.op](names, name, step)
        elif step.op == "hashed":
            await store.put(value_of(step))
        elif step.op == "batch":
            await store.batch(changes_of(step))
        elif step.op == "compact":
            await store.compact()
        elif step.op == "sync":
            await store.sync()
        # Of other steps the backer knows nothing.

    async def _place(self, path: str) -> tuple[Namespace, str]:
        *above, name = path.split("/")
        names = self._store.names
        for step in above:
            names = await names.sub(step)
        return names, name


async def _at(store: St1Store, key: bytes) -> Condition:
    try:
        return Condition(version=(await store.stat(key)).version)
    except NotFound:
        return Condition(version=NO_VERSION)


async def _update(store: St1Store, key: bytes, step: Step) -> None:
    await store.put(value_of(step), key, await _at(store, key))


async def _delete_at(store: St1Store, key: bytes, _: Step) -> None:
    await store.delete(key, await _at(store, key))


_ABSENT: Final = Condition(absent=True)
_NEVER: Final = Condition(version=NO_VERSION)
_ON_KEYS: Final[dict[str, Callable[[St1Store, bytes, Step], Awaitable[object]]]] = {
    "put": lambda store, key, step: store.put(value_of(step), key),
    "create": lambda store, key, step: store.put(value_of(step), key, _ABSENT),
    "stale": lambda store, key, step: store.put(value_of(step), key, _NEVER),
    "update": _update,
    "delete": lambda store, key, _: store.delete(key),
    "delete-at": _delete_at,
    "delete-stale": lambda store, key, _: store.delete(key, _NEVER),
}
_ON_NAMES: Final[dict[str, Callable[[Namespace, str, Step], Awaitable[object]]]] = {
    "bind": lambda names, name, step: names.bind(
        Binding(name, hash=key_of(step.paths[1])), Condition(absent=bool(step.numbers))
    ),
    "refer": lambda names, name, step: names.bind(Binding(name, reference=step.numbers[0])),
    "unbind": lambda names, name, _: names.unbind(name),
}


async def main(path: str, seed: int, operations: int) -> None:
    """Has all clients work at once."""
    store = await St1Store.open(path)
    say(READY)
    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(clients(seed, operations)):
            group.create_task(Client(number, store, stream).work())
    say(DONE)
    await store.close()


if __name__ == "__main__":
    with small_steps():
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
