"""Clients that change the same few keys of a store at once, and whether what they were told can
have happened in one order; also when there is a crash.

Of what was told before a crash only that is held to which is durable, which is what was done: what
was read, and what was refused, may rest on changes that the crash took back.

Invariants: what clients ask for follows from the seed; which of them is first does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from capstore.backers.st1 import St1Store
from capstore.backers.store import Condition
from capstore.images import st1
from capstore.images.devices import MemoryDevice
from capstore.images.faults import RecordingDevice
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_states import Mode, SectorState, sector_states
from capstore.images.st1_open import format_st1, open_st1
from capstore.schema.errors import Conflict, NotFound
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.linear import (
    CONFLICT,
    DONE,
    NEVER,
    NOT_FOUND,
    UNKNOWN,
    Call,
    why_not_linearizable,
)
from capstore.tools.prove.st1_start import small_steps

CLIENTS: Final = 8
OPERATIONS: Final = 30
_KEYS: Final = (b"a", b"b", b"c")
_OPS: Final = ("put", "put absent", "put at", "delete", "delete at", "get")
_WEIGHTS: Final = (3, 2, 6, 1, 2, 4)
_SIZES: Final = (8, 8, 700, 5000)
# What reads behind a crash has begun behind everything else.
_BEHIND: Final = NEVER - 1


@dataclass(frozen=True, slots=True)
class _Told:
    """A call, and how long the device's log was when it began and when it ended."""

    call: Call
    first: int
    last: int


class Clients:
    """Clients of one store, on a device that records; what they are told is `told`."""

    def __init__(self, seed: int) -> None:
        self.told: list[_Told] = []
        self._seed = seed
        self._now = 0
        memory = MemoryDevice()
        format_st1(memory, segment_bytes=st1.SEGMENT_BYTES_MIN)
        self.base = bytes(memory.view)
        self.device = RecordingDevice(memory)

    @property
    def history(self) -> list[Call]:
        """All calls."""
        return [told.call for told in self.told]

    async def work(self) -> None:
        """Has all of them do all that they do, and the store be compacted beside that."""
        store = await St1Store.over(lambda: self.device)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(self._client(store, number))
                group.create_task(self._compact(store))
        finally:
            await store.close()

    @staticmethod
    async def _compact(store: St1Store) -> None:
        for _ in range(3):
            await store.compact()

    async def _client(self, store: St1Store, number: int) -> None:
        random = Random(f"history {self._seed} {number}")  # noqa: S311 - not for secrets
        versions: dict[bytes, int] = {}
        for operation in range(OPERATIONS):
            key = random.choice(_KEYS)
            op = random.choices(_OPS, _WEIGHTS)[0]
            value = f"{number}.{operation}.".encode().ljust(random.choice(_SIZES), b"-")
            at = versions.get(key) if op.endswith("at") else None
            call = Call(
                op.partition(" ")[0],
                key,
                self._tick(),
                NEVER,
                UNKNOWN,
                value if op.startswith("put") else b"",
                absent=op == "put absent",
                at=at,
            )
            first = len(self.device.log)
            call = replace(await self._done(store, call), end=self._tick())
            self.told.append(_Told(call, first, len(self.device.log)))
            if call.version:
                versions[key] = call.version
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)

    def _tick(self) -> int:
        self._now += 1
        return self._now

    @staticmethod
    async def _done(store: St1Store, call: Call) -> Call:
        condition = Condition(absent=call.absent, version=call.at)
        try:
            if call.op == "put":
                stat = await store.put(call.value, call.key, condition)
                return replace(call, outcome=DONE, version=stat.version)
            if call.op == "delete":
                await store.delete(call.key, condition)
                return replace(call, outcome=DONE)
            found = await store.read(call.key, 0, max(_SIZES))
            return replace(call, outcome=DONE, value=bytes(found.data), version=found.stat.version)
        except NotFound:
            return replace(call, outcome=NOT_FOUND)
        except Conflict:
            return replace(call, outcome=CONFLICT)


def behind_crash(told: Sequence[_Told], state: SectorState) -> list[Call]:
    """The history of what was told before a crash, and of what is read behind it."""
    history = []
    for one in told:
        is_told = one.last <= state.at
        if one.call.op == "get" or one.call.outcome != DONE or one.first > state.at:
            continue
        history.append(one.call if is_told else replace(one.call, outcome=UNKNOWN, end=NEVER))
    engine = open_st1(MemoryDevice(bytes(state.image)))
    for key in _KEYS:
        call = Call("get", key, _BEHIND, NEVER, NOT_FOUND)
        try:
            value, stat = engine.read_pair(key)
            call = replace(call, outcome=DONE, value=value, version=stat.version)
        except NotFound:
            pass
        history.append(call)
    return history


def histories(seed: int, times: int, *, samples: int = 4, every: int = 5) -> Tally:
    """So many histories, and some crashes of each: every so many states."""
    tally = Tally()
    for mine in range(seed, seed + times):
        clients = Clients(mine)
        with small_steps():
            asyncio.run(clients.work())
        name = f"history, seed {mine}"
        _count(tally, "clients at once", name, clients.history)
        base = SectorImage(Sectors(), clients.base)
        modes = (Mode.LINEAR, Mode.RANDOM)
        states = sector_states(clients.device.log, base, modes=modes, samples=samples, seed=mine)
        for number, state in enumerate(states):
            if not number % every:
                history = behind_crash(clients.told, state)
                _count(tally, "and a crash", f"{name}, {state.id}", history)
    return tally


def _count(tally: Tally, kind: str, name: str, history: Sequence[Call]) -> None:
    wrong = why_not_linearizable(history)
    outcome = LINEARIZABLE if wrong is None else "not linearizable"
    tally.shapes["histories", kind, "history", outcome] += 1
    if wrong is not None:
        tally.fail(Failure(name, outcome, wrong, ""))


LINEARIZABLE: Final = "linearizable"
