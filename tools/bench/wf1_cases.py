"""The wf1 cases: a CAPOSWF1 volume beside a directory of the host and a table of SQLite.

Invariants: all do the same with the same choices, one after the other in each round, on one disk
(not in memory: there a flush costs nothing, and nothing would be compared).  What is read is in
the page cache, for all alike, but where a case says that it is not; what was prepared has been
closed and opened since.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from capstore.schema.limits import KIB, MIB
from capstore.tools.bench import turns, wf1_files, wf1_mount, wf1_pause
from capstore.tools.bench.cases import Case, Ceiling, Goal, Limit
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.machine import filesystem_type
from capstore.tools.bench.measure import Outcome
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.wf1_files import (
    CAPSTORE,
    ENGINE,
    LOCAL,
    LOCAL_FILE_ONLY,
    SQLITE,
    Files,
)
from capstore.tools.bench.wf1_images import Enter, Site, opening
from capstore.tools.bench.wf1_pause import ALONE
from capstore.tools.bench.wf1_taken import Batch, Taken, timed
from capstore.tools.bench.workers import Worker

_BLOCK_BYTES = MIB
_OVERWRITE_BYTES = 4 * KIB
_WRITES_PER_SYNC = 64
_MAIL_CALLERS = 16
_MAIL_FILE_BYTES = 16 * KIB
_MAIL_APPEND_BYTES = 16 * KIB

_KINDS: Mapping[str, Callable[[Path], Files]] = {
    kind.name: kind
    for kind in (
        wf1_files.Capstore,
        wf1_files.Engine,
        wf1_files.Local,
        wf1_files.LocalFileOnly,
        wf1_files.Sqlite,
    )
}

# What files are there before, and who does what with them at once.
Prepare = Callable[[Files, Parameters, Random], Worker]
Work = Callable[[Files, Parameters, Random], Sequence[Worker]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wf1Case(Case):
    """A case on a disk; `contestants` are capstore, by its name, and its rivals."""

    contestants: Mapping[str, Enter]
    rounds_max: int | None = 3

    def turn_count(self) -> int:
        return len(self.contestants)

    def absence(self) -> str | None:
        return turns.in_memory(filesystem_type(Path(tempfile.gettempdir())))


# Workloads on files ----------------------------------------------------------------------------


def _name(index: int) -> str:
    return f"file-{index:06}"


def _create(callers: Callable[[Parameters], int]) -> Work:
    def work(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
        data = rng.randbytes(parameters.wf1_file_bytes)
        names = [_name(index) for index in range(parameters.wf1_files)]

        async def worker(mine: Sequence[str]) -> int:
            for name in mine:
                await files.create(name, data)
            return len(mine)

        count = callers(parameters)
        return [worker(names[number::count]) for number in range(count)]

    return work


async def _put_files(files: Files, parameters: Parameters, rng: Random) -> int:
    for index in range(parameters.wf1_files):
        await files.put(_name(index), rng.randbytes(parameters.wf1_file_bytes))
    await files.sync()
    return parameters.wf1_files


def _read_files(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
    async def worker() -> int:
        order = list(range(parameters.wf1_files))
        rng.shuffle(order)
        for index in order:
            checked(files.name, await files.read(_name(index)), parameters.wf1_file_bytes)
        return len(order)

    return [worker()]


async def _put_large(files: Files, size: int, rng: Random) -> int:
    await files.write_large(rng.randbytes(_BLOCK_BYTES), size // _BLOCK_BYTES)
    await files.sync()
    return size


def _write_large(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
    return [_put_large(files, parameters.wf1_large_bytes, rng)]


def _prepare_large(files: Files, parameters: Parameters, rng: Random) -> Worker:
    return _put_large(files, parameters.wf1_large_bytes, rng)


def _prepare_overwritten(files: Files, parameters: Parameters, rng: Random) -> Worker:
    return _put_large(files, parameters.wf1_overwritten_bytes, rng)


def _read_large(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
    async def worker() -> int:
        got = await files.read_large(_BLOCK_BYTES)
        return checked(files.name, got, parameters.wf1_large_bytes)

    return [worker()]


def _overwrite(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
    async def worker() -> int:
        data = rng.randbytes(_OVERWRITE_BYTES)
        places = parameters.wf1_overwritten_bytes // _OVERWRITE_BYTES
        for count in range(1, parameters.wf1_overwrites + 1):
            await files.overwrite(rng.randrange(places) * _OVERWRITE_BYTES, data)
            if count % _WRITES_PER_SYNC == 0:
                await files.sync()
        await files.sync()
        return parameters.wf1_overwrites

    return [worker()]


def _mail_name(caller: int, number: int) -> str:
    return f"mail-{caller:02}-{number:06}"


async def _put_mail(files: Files, parameters: Parameters, rng: Random) -> int:
    each = parameters.wf1_mail_files // _MAIL_CALLERS
    for caller in range(_MAIL_CALLERS):
        for number in range(each):
            size = rng.randrange(1, 2 * _MAIL_FILE_BYTES)
            await files.put(_mail_name(caller, number), rng.randbytes(size))
    await files.sync()
    return each * _MAIL_CALLERS


def _mail(files: Files, parameters: Parameters, rng: Random) -> list[Worker]:
    """What filebench calls the personality varmail (3.0): each of 16 callers again and again has to
    delete a file; to create one, append and fsync; to read one as a whole, append and fsync; and
    to read one as a whole.  A thousand files of 16 KiB in the mean, appends of 16 KiB in the mean.
    Here each caller has its own part of the files, so that none meets what another has deleted."""
    each = parameters.wf1_mail_files // _MAIL_CALLERS
    data = rng.randbytes(2 * _MAIL_APPEND_BYTES)

    async def worker(caller: int, choices: Random) -> int:
        numbers = list(range(each))
        rounds = parameters.wf1_mail_rounds // _MAIL_CALLERS
        for round_number in range(rounds):
            place = choices.randrange(each)
            old, numbers[place] = numbers[place], each + round_number
            names = [_mail_name(caller, choices.choice(numbers)) for _ in range(2)]
            some = [data[: choices.randrange(1, len(data))] for _ in range(2)]
            new = _mail_name(caller, each + round_number)
            await files.replace(_mail_name(caller, old), new, some[0])
            await files.read_and_append(names[0], some[1])
            await files.read(names[1])
        return rounds

    return [worker(caller, Random(rng.random())) for caller in range(_MAIL_CALLERS)]  # noqa: S311


# Contestants -----------------------------------------------------------------------------------


def _on_files(
    names: Sequence[str], prepare: Prepare | None, work: Work, *, anew: bool, cold: bool = False
) -> Mapping[str, Enter]:
    """Contestants over the same workload: with files made `anew` for each batch, or once."""

    def entered(kind: Callable[[Path], Files]) -> Enter:
        make = wf1_files.maker(kind)

        def prepared(site: Site, folder: Path, stack: ExitStack) -> Files:
            folder.mkdir()
            if prepare is not None:
                with make(folder) as files:
                    rng = Random(site.parameters.seed)  # noqa: S311 - a workload
                    files.run([prepare(files, site.parameters, rng)])
            # As who comes later finds it, not who has written it.
            return stack.enter_context(make(folder))

        def taken(site: Site, files: Files, folder: Path, rng: Random) -> Taken:
            if cold:
                _forget(folder)
            return timed(lambda: files.run(work(files, site.parameters, rng)))

        @contextmanager
        def enter(site: Site) -> Iterator[Batch]:
            with tempfile.TemporaryDirectory(dir=site.folder) as name, ExitStack() as stack:
                kept = Path(name) / "files"
                files = None if anew else prepared(site, kept, stack)

                def batch(rng: Random, scratch: Path) -> Taken:
                    if files is not None:
                        return taken(site, files, kept, rng)
                    with ExitStack() as stack:
                        new = prepared(site, scratch / "files", stack)
                        return taken(site, new, scratch / "files", rng)

                yield batch

        return enter

    return {name: entered(_KINDS[name]) for name in names}


def _forget(folder: Path) -> None:
    """Has the page cache forget what is in the files of `folder`."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _mounted(which: Callable[[Site], Path], end: str) -> Mapping[str, Enter]:
    return {CAPSTORE: opening(which, end)}


_ALL = (CAPSTORE, ENGINE, LOCAL, SQLITE)

CASES: tuple[Wf1Case, ...] = (
    Wf1Case(
        name="wf1-create",
        what="make small files, durable one by one (local: file and directory flushed)",
        unit="files/s",
        contestants=_on_files(
            (CAPSTORE, ENGINE, LOCAL, LOCAL_FILE_ONLY, SQLITE),
            None,
            _create(lambda parameters: 1),
            anew=True,
        ),
        goal=Goal(0.7, rival=LOCAL),
    ),
    Wf1Case(
        name="wf1-create-many",
        what="the same by many callers at once (local, sqlite: a thread each)",
        unit="files/s",
        contestants=_on_files(
            (CAPSTORE, LOCAL, LOCAL_FILE_ONLY, SQLITE),
            None,
            _create(lambda parameters: parameters.wf1_callers),
            anew=True,
        ),
        goal=Goal(3, rival=LOCAL),
    ),
    Wf1Case(
        name="wf1-read",
        what="open and read them in random order, one after another",
        unit="files/s",
        contestants=_on_files(_ALL, _put_files, _read_files, anew=False),
    ),
    Wf1Case(
        name="wf1-read-cold",
        what="the same, not in the page cache",
        unit="files/s",
        contestants=_on_files(_ALL, _put_files, _read_files, anew=False, cold=True),
    ),
    Wf1Case(
        name="wf1-write-large",
        what="write a large file, 1 MiB at a time, and flush it in the end",
        unit="bytes/s",
        contestants=_on_files(_ALL, None, _write_large, anew=True),
        goal=Goal(0.8, rival=LOCAL),
    ),
    Wf1Case(
        name="wf1-read-large",
        what="read it, 1 MiB at a time",
        unit="bytes/s",
        contestants=_on_files(_ALL, _prepare_large, _read_large, anew=False),
        goal=Goal(0.8, rival=LOCAL),
    ),
    Wf1Case(
        name="wf1-read-large-cold",
        what="the same, not in the page cache",
        unit="bytes/s",
        contestants=_on_files(_ALL, _prepare_large, _read_large, anew=False, cold=True),
        goal=Goal(0.8, rival=LOCAL),
    ),
    Wf1Case(
        name="wf1-overwrite",
        what="write 4 KiB here and there in a file, flushed after every 64",
        unit="writes/s",
        contestants=_on_files(_ALL, _prepare_overwritten, _overwrite, anew=True),
    ),
    Wf1Case(
        name="wf1-varmail",
        what="16 callers as filebench's varmail: delete, create, append, read whole",
        unit="rounds/s",
        contestants=_on_files(
            (CAPSTORE, LOCAL, LOCAL_FILE_ONLY, SQLITE), _put_mail, _mail, anew=True
        ),
    ),
    Wf1Case(
        name="wf1-mount",
        what="open a volume of many files that was closed, in a new process",
        unit="opens/s",
        contestants=_mounted(lambda site: site.clean, wf1_mount.CLOSE),
        goal=Limit(2500),
        ceilings=(Ceiling("peak_mib", 300),),
    ),
    Wf1Case(
        name="wf1-mount-unclean",
        what="the same, not closed, with some changes since its checkpoint",
        unit="opens/s",
        contestants=_mounted(lambda site: site.unclean, wf1_mount.EXIT),
        goal=Limit(2500),
        ceilings=(Ceiling("peak_mib", 300),),
    ),
    Wf1Case(
        name="wf1-mount-longest",
        what="the same, with as many changes as there are until a checkpoint is due",
        unit="opens/s",
        contestants=_mounted(lambda site: site.longest, wf1_mount.EXIT),
    ),
    Wf1Case(
        name="wf1-pause",
        what="read small files while others are overwritten, checkpointed and cleaned",
        unit="reads/s",
        contestants={
            CAPSTORE: wf1_pause.reading_while_written,
            ALONE: wf1_pause.reading_alone,
        },
        ceilings=(Ceiling("max_ms", 10),),
    ),
)


# Rounds ----------------------------------------------------------------------------------------


def run(
    parameters: Parameters,
    cases: Sequence[Wf1Case],
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


def _measured(site: Site, case: Wf1Case, advance: Callable[[str], None]) -> Outcome:
    """All rounds of `case`, in each of which all of its contestants have their turn."""
    with ExitStack() as stack:
        batches = {
            name: stack.enter_context(enter(site)) for name, enter in case.contestants.items()
        }
        return turns.measured(site.parameters, site.folder, case, batches, advance)
