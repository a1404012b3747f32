"""One run as a person sees it: what is measured, on what, and the table.

Invariants: nothing is printed while a figure is taken but progress, on a terminal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from capstore.tools.allocator import keep_freed_memory
from capstore.tools.bench import machine, measure, report
from capstore.tools.bench.cases import Case, absences, present
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.kinds import Chosen
from capstore.tools.bench.parameters import Parameters
from capstore.tools.console import complain

# A pipe has no width; this holds the table.
_PIPE_COLUMNS = 160


def run(plan: Parameters, chosen: Chosen) -> dict[str, object]:
    """Measures what was chosen, prints what they came to, and returns the report."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    facts = machine.facts()
    cases = chosen.cases
    absent = absences(cases)
    _introduce(console, plan, facts, cases, absent)
    try:
        keep_freed_memory()
        outcomes = _with_progress(plan, chosen)
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
    width = max(20, *(len(case.name) for case in cases))
    for case in cases:
        console.print(f"{case.name:{width}} {case.what}", markup=False, highlight=False)
    chosen = {name: getattr(plan, name) for name in plan.__slots__}
    for title, values in (("parameters", chosen), ("machine", facts)):
        line = ", ".join(f"{name} {value}" for name, value in values.items())
        console.print(f"{title}: {line}", markup=False, highlight=False)
    for name, reason in absent.items():
        console.print(f"{name} takes no part: {reason}", markup=False, highlight=False)
    console.print()


def _with_progress(plan: Parameters, chosen: Chosen) -> list[measure.Outcome]:
    console = Console(stderr=True)
    total = sum(case.turn_count() * case.rounds(plan.rounds) for case in present(chosen.cases))
    with (
        tempfile.TemporaryDirectory(prefix="capstore-bench-") as name,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("setting up", total=total)

        def tell(what: str) -> None:
            progress.update(task, description=what)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        return [
            outcome
            for kind, cases in chosen.by_kind
            for outcome in kind.run(plan, present(cases), Path(name), tell, advance)
        ]
