"""The st1 cases: a CAPOSST1 store, in process and over the wire, beside other stores.

Invariants: all do the same with the same choices, one after the other in each round, on one disk
(not in memory: there a flush costs nothing, and nothing would be compared).  What is read is in
the page cache, for all alike; what was prepared has been closed and opened since.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from capstore.tools.bench import st1_compact, st1_rivals, st1_site, st1_workloads, st1_ycsb, turns
from capstore.tools.bench.cases import Case, Ceiling, Floor, Goal, Limit
from capstore.tools.bench.machine import filesystem_type
from capstore.tools.bench.measure import Outcome
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.st1_compact import ALONE
from capstore.tools.bench.st1_remote import Remote
from capstore.tools.bench.st1_site import Content, Enter, Site
from capstore.tools.bench.st1_stores import (
    CAPSTORE,
    LMDB,
    RPC,
    SQLITE,
    ZODB,
    Capstore,
    Maker,
    Objects,
    opened,
)
from capstore.tools.bench.st1_workloads import Work, pairs_of
from capstore.tools.bench.wf1_taken import Batch, Taken, timed

_MAKERS: Final[Mapping[str, Maker]] = {
    CAPSTORE: Capstore,
    RPC: Remote,
    SQLITE: st1_rivals.Sqlite,
    LMDB: st1_rivals.Lmdb,
    ZODB: st1_rivals.Zodb,
}
# Over the wire a store is filled as it is in process.
_FILLERS: Final[Mapping[str, Maker]] = {**_MAKERS, RPC: Capstore}

Size = Callable[[Parameters], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class St1Case(Case):
    """A case on a disk; `contestants` are capstore, by its name, and others."""

    contestants: Mapping[str, Enter]
    rounds_max: int | None = 3

    def present(self) -> Mapping[str, Enter]:
        """Those who can take part here."""
        missing = self.missing()
        return {name: enter for name, enter in self.contestants.items() if name not in missing}

    def turn_count(self) -> int:
        return len(self.present())

    def absence(self) -> str | None:
        return turns.in_memory(filesystem_type(Path(tempfile.gettempdir())))

    def missing(self) -> Mapping[str, str]:
        wanted = [name for name in st1_rivals.ABSENT if name in self.contestants]
        found = {name: st1_rivals.ABSENT[name]() for name in wanted}
        return {name: reason for name, reason in found.items() if reason}


# Contestants -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filling:
    """What is there before: `what` tells it from others."""

    what: str
    content: Content


def _among(
    size: Size, filling: _Filling | None, work: Work, *, changes: bool
) -> Mapping[str, Enter]:
    """All, over the same workload; one that `changes` what is there has it anew for each batch."""

    def entered(name: str) -> Enter:
        make = _MAKERS[name]

        def source(site: Site) -> Path | None:
            if filling is None:
                return None
            length = size(site.parameters)
            return site.filled(filling.what, name, _FILLERS[name], filling.content, length)

        def taken(site: Site, objects: Objects, rng: Random) -> Taken:
            workers = work(objects, site.parameters, size(site.parameters), rng)
            return timed(lambda: objects.run(workers))

        @contextmanager
        def enter(site: Site) -> Iterator[Batch]:
            before = source(site)
            with ExitStack() as stack:
                kept = None
                if before is not None and not changes:
                    kept = stack.enter_context(opened(make, before))

                def batch(rng: Random, scratch: Path) -> Taken:
                    if kept is not None:
                        return taken(site, kept, rng)
                    folder = scratch / "objects"
                    if before is None:
                        folder.mkdir()
                    else:
                        shutil.copytree(before, folder)
                    with opened(make, folder) as objects:
                        return taken(site, objects, rng)

                yield batch

        return enter

    return {name: entered(name) for name in _MAKERS}


# db_bench ----------------------------------------------------------------------------------------


def _small(parameters: Parameters) -> int:
    return parameters.st1_value_bytes


def _large(parameters: Parameters) -> int:
    return parameters.st1_large_value_bytes


def _in_order(size: Size) -> Content:
    def content(parameters: Parameters, rng: Random) -> Sequence[tuple[bytes, bytes]]:
        return pairs_of(range(parameters.st1_entries), rng, size(parameters))

    return content


_DURABLE_MANY: Final = Goal(3, rival=SQLITE)
_REMOTE_MANY: Final = (Floor(RPC, 1, SQLITE),)
_GETS: Final = Goal(1.5, rival=SQLITE)


def _db_bench(suffix: str, size: Size) -> Iterator[St1Case]:
    """The cases with values of one length."""
    there = _Filling(f"entries{suffix}", _in_order(size))

    def case(
        name: str,
        what: str,
        work: Work,
        filling: _Filling | None = None,
        *,
        changes: bool = False,
        goal: Goal | None = None,
        floors: tuple[Floor, ...] = (),
    ) -> St1Case:
        return St1Case(
            name=f"st1-{name}{suffix}",
            what=f"{what}, 4 KiB each" if suffix else what,
            unit="gets/s" if name.startswith("read") else "entries/s",
            contestants=_among(size, filling, work, changes=changes),
            goal=goal,
            floors=floors,
        )

    yield case(
        "fillseq",
        "put objects in the order of keys, in durable batches",
        st1_workloads.fill_in_order,
    )
    yield case("fillrandom", "the same at random", st1_workloads.fill_at_random)
    yield case("fillsync", "put objects, durable one by one", st1_workloads.fill_synced)
    yield case(
        "put-many",
        "the same by many callers at once (rivals: a thread each)",
        st1_workloads.put_by_many,
        goal=_DURABLE_MANY,
        floors=_REMOTE_MANY,
    )
    yield case(
        "overwrite",
        "put others in their places, at random, in durable batches",
        st1_workloads.fill_at_random,
        there,
        changes=True,
    )
    yield case(
        "readrandom",
        "get objects at random, one after another",
        st1_workloads.read_at_random,
        there,
        goal=_GETS,
    )
    yield case("read-many", "the same by many callers at once", st1_workloads.read_by_many, there)
    yield case("readmissing", "get what is not there", st1_workloads.read_missing, there)
    yield case("readhot", "get a hundredth of them again and again", st1_workloads.read_hot, there)
    yield case(
        "deleterandom",
        "remove all at random, in durable batches",
        st1_workloads.delete_at_random,
        there,
        changes=True,
    )


# All ---------------------------------------------------------------------------------------------

_YCSB: Final = {
    "a": "half reads, half updates",
    "b": "reads, 1 update in 20",
    "c": "reads only",
    "d": "reads of what is newest, 1 insert in 20",
    "e": "short scans, 1 insert in 20",
    "f": "half reads, half read-modify-writes (a conditional put)",
}


def _record(parameters: Parameters) -> int:
    return parameters.st1_ycsb_record_bytes


def _ycsb() -> Iterator[St1Case]:
    records = _Filling("records", st1_ycsb.records)
    for letter, what in _YCSB.items():
        work = st1_ycsb.workload(letter)
        yield St1Case(
            name=f"st1-ycsb-{letter}",
            what=f"YCSB {letter.upper()}: {what}",
            unit="operations/s",
            contestants=_among(_record, records, work, changes=letter != "c"),
        )


CASES: Final[tuple[St1Case, ...]] = (
    *_db_bench("", _small),
    *_db_bench("-4k", _large),
    *_ycsb(),
    St1Case(
        name="st1-open",
        what="open a store of many objects that was closed, in a new process",
        unit="opens/s",
        contestants={CAPSTORE: st1_site.OPEN_CLEAN},
        goal=Limit(1500),
    ),
    St1Case(
        name="st1-open-longest",
        what="the same, not closed, with as many changes as there are until a table is due",
        unit="opens/s",
        contestants={CAPSTORE: st1_site.OPEN_LONGEST},
        goal=Limit(1500),
    ),
    St1Case(
        name="st1-compact",
        what="get and put objects while a store that is nearly half dead is compacted",
        unit="gets/s",
        contestants={
            CAPSTORE: st1_compact.COMPACTING,
            RPC: st1_compact.COMPACTING_REMOTELY,
            ALONE: st1_compact.WAITING,
        },
        ceilings=(
            Ceiling("get_p99_ms", 10),
            Ceiling("put_max_ms", 50),
            Ceiling("space_ratio", 1.1),
        ),
    ),
)


# Rounds ------------------------------------------------------------------------------------------


def run(
    parameters: Parameters,
    cases: Sequence[St1Case],
    folder: Path,
    tell: Callable[[str], None],
    advance: Callable[[str], None],
) -> list[Outcome]:
    """Measures `cases`, with everything in `folder`.

    Not to be called where an event loop runs.  `tell` hears what is being made, `advance` a case's
    name after each figure.  Raises `BenchError`.
    """
    site = Site(folder, parameters, tell)
    return [_measured(site, case, advance) for case in cases]


def _measured(site: Site, case: St1Case, advance: Callable[[str], None]) -> Outcome:
    with ExitStack() as stack:
        batches = {name: stack.enter_context(enter(site)) for name, enter in case.present().items()}
        return turns.measured(site.parameters, site.folder, case, batches, advance)
