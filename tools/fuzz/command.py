"""``capstore fuzz``: its options, and what it prints.

Invariants: results go to standard output, progress to standard error, and only if that is a
terminal.  Exit code 1 says that a case failed.  Importing this costs nothing.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import typer

from capstore.tools.parameters import block

if TYPE_CHECKING:
    from capstore.tools.fuzz.running import Report

app = typer.Typer()

_CASE: Final = re.compile(r"([a-z0-9]+):([0-9]{1,30})")
_SECONDS: Final = 10.0
# Of what clients send, and how many cases take about two minutes on two cores.
_WAYS: Final = {"wire": 12_000, "tls": 10_000}
_SEEDS_SHOWN: Final = 5
_PROGRESS_SECONDS: Final = 0.5


@app.command(
    epilog=block(
        "Examples",
        "capstore fuzz --seconds 60",
        "capstore fuzz tar cpio --runs 100000 --keep faults",
        "capstore fuzz --replay tar:81985529216486895",
        "capstore fuzz wire tls --cases 100000",
    )
)
def fuzz(
    formats: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FORMAT]...",
            help="All of images if none is named; wire and tls are what clients send.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="For each format; 10 if nothing is said, two minutes of cases for wire, tls.",
        ),
    ] = None,
    runs: Annotated[
        int | None, typer.Option("--runs", "--cases", min=1, help="Cases of each format.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first case.")] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write images of faults to DIR.")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="FORMAT:SEED", help="Run this case alone.")
    ] = None,
) -> None:
    """Damage and forge small images of each format, and see what the parsers make of them.

    Whatever an image holds, it is shown or refused with a listed error, within bounds of time and
    memory, and no byte is shown that contradicts a checksum.

    wire: damage and forge what clients send, and see what a service makes of it. Whatever is sent,
    it is answered or the connection is closed; others go on, and nothing is left behind. tls: the
    same through TLS, and TLS itself damaged and forged.
    """
    from capstore.tools.fuzz.formats import FORMATS
    from capstore.tools.fuzz.running import Budget, Worker
    from capstore.tools.fuzz.running import fuzz as run

    names = formats or list(FORMATS)
    first = secrets.randbits(48) if seed is None else seed
    budget = Budget(runs, _SECONDS if seconds is None and runs is None else seconds)
    if replay is not None:
        if not (case := _CASE.fullmatch(replay)):
            raise typer.BadParameter(f'"{replay}" is no case: FORMAT:SEED')
        names, first, budget = [case[1]], int(case[2]), Budget(runs=1)
    known = (*FORMATS, *_WAYS)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f'no format "{name}" (there are: {", ".join(known)})')
    print(f"seed {first}", flush=True)
    is_good = True
    for way in (name for name in names if name in _WAYS):
        cases = _WAYS[way] if budget.runs is None and seconds is None else budget.runs
        is_good &= _fuzz_wire(way, first, cases, seconds)
    names = [name for name in names if name not in _WAYS]
    reports: list[Report] = []
    with Worker() as worker:
        for name in names:
            report = run(worker, name, first, budget, _Progress())
            _print(report)
            _keep(report, keep)
            reports.append(report)
    if not is_good or any(report.faults for report in reports):
        raise typer.Exit(1)


def _fuzz_wire(name: str, seed: int, cases: int | None, seconds: float | None) -> bool:
    """Whether a service bears what clients should not send."""
    from capstore.tools.fuzz import wire

    report = wire.fuzz(seed, cases, seconds, _Progress(), wire.WAYS[name])
    print("\n".join(wire.lines(report)), flush=True)
    return not report.faults


class _Cases(Protocol):
    """What is known of a run so far."""

    name: str
    faults: dict[str, list[int]]

    @property
    def cases(self) -> int:
        """How many there were."""


class _Progress:
    """A line on a terminal's standard error that is rewritten now and then."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, report: _Cases) -> None:
        now = time.monotonic()
        if now - self._shown < _PROGRESS_SECONDS or not sys.stderr.isatty():
            return
        self._shown = now
        faults = len(report.faults)
        line = f"{report.name}: {report.cases} cases, {faults} faults"
        print(f"\r\x1b[K{line}", end="\r", file=sys.stderr, flush=True)


def _print(report: Report) -> None:
    """What became of a format's cases."""
    print(f"{report.name}: {report.cases} cases in {report.seconds:.1f} s")
    for outcome, count in sorted(report.counts.items()):
        print(f"  {count:8}  {outcome}")
    slow, large = report.slowest, report.largest
    print(f"  slowest   {slow[0]:.2f} s of processor time  {report.name}:{slow[1]}")
    print(f"  largest   {large[0] / (1 << 20):.0f} MiB  {report.name}:{large[1]}")
    for fault, seeds in report.faults.items():
        print(f"  FAULT     {fault} ({len(seeds)} cases)")
        for seed in seeds[:_SEEDS_SHOWN]:
            print(f"            --replay {report.name}:{seed}")
        for line in report.details[fault].splitlines():
            print(f"      {line}")


def _keep(report: Report, folder: Path | None) -> None:
    """Writes the image of each fault's first case, and what was wrong with it."""
    if folder is None or not report.faults:
        return
    from capstore.tools.fuzz.case import subject_of
    from capstore.tools.fuzz.formats import FORMATS

    folder.mkdir(parents=True, exist_ok=True)
    for fault, seeds in report.faults.items():
        subject = subject_of(FORMATS[report.name], report.name, seeds[0], folder)
        word = f"{report.name}-{seeds[0]}"
        (folder / f"{word}.image").write_bytes(subject.data)
        made = f"of the original {subject.original.name}"
        (folder / f"{word}.txt").write_text(f"{fault}\n{made}\n\n{report.details[fault]}")
