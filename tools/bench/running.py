"""One run as a person sees it: what is measured, on what, and the table.

Invariants: nothing is printed while a figure is taken but progress, on a terminal.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from capstore.tools.allocator import keep_freed_memory
from capstore.tools.bench import image_cases, machine, measure, report, sftp
from capstore.tools.bench.cases import Case, ServiceCase
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.image_cases import ImageCase
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
    service, images = _sorted(cases)
    absent = image_cases.absences(images)
    if service and (missing := sftp.absent()):
        absent[report.SFTP] = missing
    _introduce(console, plan, facts, cases, absent)
    try:
        keep_freed_memory()
        outcomes = asyncio.run(_with_progress(plan, service, images))
    except BenchError as error:
        complain(str(error))
        raise typer.Exit(1) from None
    for table in report.tables(outcomes):
        console.print(table)
        console.print()
    return report.document(plan, facts, absent, outcomes)


def _introduce(
    console: Console,
    plan: Parameters,
    facts: machine.Facts,
    cases: Sequence[Case],
    absent: dict[str, str],
) -> None:
    for case in cases:
        console.print(f"{case.name:16} {case.what}", markup=False, highlight=False)
    chosen = {name: getattr(plan, name) for name in plan.__slots__}
    for title, values in (("parameters", chosen), ("machine", facts)):
        line = ", ".join(f"{name} {value}" for name, value in values.items())
        console.print(f"{title}: {line}", markup=False, highlight=False)
    for name, reason in absent.items():
        console.print(f"{name} takes no part: {reason}", markup=False, highlight=False)
    console.print()


def _sorted(cases: Sequence[Case]) -> tuple[list[ServiceCase], list[ImageCase]]:
    service = [case for case in cases if isinstance(case, ServiceCase)]
    return service, [case for case in cases if isinstance(case, ImageCase)]


async def _with_progress(
    plan: Parameters, service: Sequence[ServiceCase], images: Sequence[ImageCase]
) -> list[measure.Outcome]:
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="capstore-bench-") as folder,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("setting up", total=_figures(plan, service, images))

        def tell(what: str) -> None:
            progress.update(task, description=what)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        outcomes = await measure.run(plan, service, advance)
        return outcomes + await image_cases.run(plan, images, Path(folder), tell, advance)


def _figures(plan: Parameters, service: Sequence[ServiceCase], images: Sequence[ImageCase]) -> int:
    """How many figures will be taken."""
    turns = 2 if sftp.absent() else 3
    total = turns * sum(case.rounds(plan.rounds) for case in service)
    for case in images:
        if case.absent() is None:
            total += (1 + len(case.present())) * case.rounds(plan.rounds)
    return total
