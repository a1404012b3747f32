"""Many workloads on several processors.

Invariants: the work is cut into chunks before it begins, each chunk is done by one process from
its own beginning, and chunks are counted in their order; so the same arguments give the same
figures whatever the number of processes, also where the run is ended by a number of states.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from capstore.schema.errors import InvalidArgument
from capstore.tools.prove.examine import Verdict
from capstore.tools.prove.explore import Explorer, Search, Tally, replayed
from capstore.tools.prove.subject import AnySubject, subject_of
from capstore.tools.prove.workload import Workload

OPERATIONS: Final = 25
# Neighbours have states in common.
_CHUNK: Final = 40
# Objects that are made before garbage is looked for, in a process that does nothing else.
_GARBAGE: Final = 50_000
_NAME: Final = re.compile(r"(ace1|ace2|random|scenario)-([a-z0-9-]{1,80})", re.ASCII)


def workload_of(subject: AnySubject, name: str) -> Workload:
    """The workload of a name.  Raises `InvalidArgument`."""
    found = _NAME.fullmatch(name)
    try:
        match found[1] if found else "", found[2] if found else "":
            case "ace1", number:
                return subject.ace(1)[int(number)]
            case "ace2", number:
                return subject.ace(2)[int(number)]
            case "scenario", word:
                return subject.scenario(word)
            case "random", numbers:
                seed, _, operations = numbers.partition("-")
                return subject.chance(int(seed), int(operations))
    except (KeyError, IndexError, ValueError):
        pass
    raise InvalidArgument(f'no workload "{name}"')


def replay_id(subject: AnySubject, text: str) -> tuple[bytes, Workload, Verdict]:
    """The image of the state with this id, its workload, and what is found there.

    Raises `InvalidArgument`."""
    name, *states = text.split("@epoch=")
    workload = workload_of(subject, name)
    image, _, verdict = replayed(subject, workload, [f"epoch={state}" for state in states])
    return image, workload, verdict


@dataclass(frozen=True, slots=True)
class Chunk:
    """Workloads that one process goes through."""

    format: str
    names: tuple[str, ...]
    searches: tuple[Search, ...]

    def __call__(self) -> Tally:
        """What became of them."""
        subject = subject_of(self.format)
        explorer, tally = Explorer(subject), Tally()
        for name in self.names:
            tally.add(explorer.explore(workload_of(subject, name), self.searches))
        return tally


def chunks(
    subject: AnySubject,
    names: Sequence[str],
    searches: Iterable[Search],
    seed: int | None = None,
) -> list[Chunk]:
    """The work cut up; in an order by chance if there is a seed, for runs that end early."""
    ways = tuple(searches)
    groups = [tuple(names[at : at + _CHUNK]) for at in range(0, len(names), _CHUNK)]
    made = [Chunk(subject.name, group, ways) for group in groups]
    if seed is not None:
        Random(seed).shuffle(made)  # noqa: S311 - the same each time
    return made


def ace_names(subject: AnySubject, length: int) -> list[str]:
    """The names of all workloads of this length."""
    return [workload.name for workload in subject.ace(length)]


def chance_names(seed: int, count: int, operations: int = OPERATIONS) -> list[str]:
    """The names of workloads by chance."""
    return [f"random-{seed + n}-{operations}" for n in range(count)]


def scenario_names(subject: AnySubject) -> list[str]:
    """The names of all scenarios."""
    return [f"scenario-{name}" for name in subject.scenarios]


def run(
    work: Sequence[Chunk],
    *,
    processes: int = 0,
    states_max: int | None = None,
    seconds_max: float | None = None,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Does the work; `processes` of 0 is one for each processor.

    Ends early behind the chunk with which there are `states_max` states, and when time is up.
    """
    total, began = Tally(), time.monotonic()
    for tally in _tallies(work, processes or os.cpu_count() or 1):
        total.add(tally)
        progress(total)
        if states_max is not None and total.states >= states_max:
            break
        if seconds_max is not None and time.monotonic() - began >= seconds_max:
            break
    return total


def _tallies(work: Sequence[Chunk], processes: int) -> Iterator[Tally]:
    if processes == 1:
        yield from (chunk() for chunk in work)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _prepared) as pool:
        yield from pool.imap(_done, work)


def _prepared() -> None:
    """What was imported is no garbage, and little of the rest is."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


def _done(chunk: Chunk) -> Tally:
    return chunk()
