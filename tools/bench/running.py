"""One run as a person sees it: what is measured, on what, and the table.

Invariants: nothing is printed while a figure is taken but progress, on a terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.progress import Progress

from capstore.tools.allocator import keep_freed_memory
from capstore.tools.bench import machine, measure, report, sftp
from capstore.tools.bench.cases import Case
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.parameters import Parameters
from capstore.tools.console import complain

# A pipe has no width; this holds the table.
_PIPE_COLUMNS = 160


def run(plan: Parameters, cases: Sequence[Case]) -> dict[str, object]:
    """Measures `cases`, prints what they came to, and returns the report."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    facts = machine.facts()
    missing = sftp.absent()
    absent = {report.SFTP: missing} if missing else {}
    _introduce(console, plan, facts, cases, absent)
    try:
        keep_freed_memory()
        outcomes = asyncio.run(_with_progress(plan, cases))
    except BenchError as error:
        complain(str(error))
        raise typer.Exit(1) from None
    console.print(report.table(outcomes))
    return report.document(plan, facts, absent, outcomes)


def _introduce(
    console: Console,
    plan: Parameters,
    facts: machine.Facts,
    cases: Sequence[Case],
    absent: dict[str, str],
) -> None:
    for case in cases:
        console.print(f"{case.name:15} {case.what}", markup=False, highlight=False)
    chosen = {name: getattr(plan, name) for name in plan.__slots__}
    for title, values in (("parameters", chosen), ("machine", facts)):
        line = ", ".join(f"{name} {value}" for name, value in values.items())
        console.print(f"{title}: {line}", markup=False, highlight=False)
    for name, reason in absent.items():
        console.print(f"{name} takes no part: {reason}", markup=False, highlight=False)
    console.print()


async def _with_progress(plan: Parameters, cases: Sequence[Case]) -> list[measure.Outcome]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        turns = 2 if sftp.absent() else 3
        task = progress.add_task(
            "setting up", total=turns * sum(case.rounds(plan.rounds) for case in cases)
        )
        return await measure.run(
            plan,
            cases,
            lambda name: progress.update(task, advance=1, description=name),
        )
