"""One run as a person sees it: what is measured, on what, and the table.

Invariants: nothing is printed while a figure is taken but progress, on a terminal.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from capstore.tools.allocator import keep_freed_memory
from capstore.tools.bench import (
    image_cases,
    machine,
    measure,
    overlay_cases,
    report,
    sftp,
    st1_cases,
    wf1_cases,
)
from capstore.tools.bench.cases import Case, ServiceCase
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.image_cases import ImageCase
from capstore.tools.bench.overlay_cases import OverlayCase
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.st1_cases import St1Case
from capstore.tools.bench.wf1_cases import Wf1Case
from capstore.tools.console import complain

# A pipe has no width; this holds the table.
_PIPE_COLUMNS = 160


def run(plan: Parameters, cases: Sequence[Case]) -> dict[str, object]:
    """Measures `cases`, prints what they came to, and returns the report."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    facts = machine.facts()
    chosen = _Chosen.of(cases)
    absent = image_cases.absences(chosen.images) | wf1_cases.absences(chosen.wf1)
    absent |= st1_cases.absences(chosen.st1) | overlay_cases.absences(chosen.overlay)
    if chosen.service and (missing := sftp.absent()):
        absent[report.SFTP] = missing
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


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The cases to be run, by kind."""

    service: Sequence[ServiceCase]
    images: Sequence[ImageCase]
    wf1: Sequence[Wf1Case]
    st1: Sequence[St1Case]
    overlay: Sequence[OverlayCase]

    @staticmethod
    def of(cases: Sequence[Case]) -> _Chosen:
        return _Chosen(
            [case for case in cases if isinstance(case, ServiceCase)],
            [case for case in cases if isinstance(case, ImageCase)],
            [case for case in cases if isinstance(case, Wf1Case)],
            [case for case in cases if isinstance(case, St1Case)],
            [case for case in cases if isinstance(case, OverlayCase)],
        )

    def figures(self, plan: Parameters) -> int:
        """How many figures will be taken."""
        turns = 2 if sftp.absent() else 3
        total = turns * sum(case.rounds(plan.rounds) for case in self.service)
        for image in self.images:
            if image.absent() is None:
                total += (1 + len(image.present())) * image.rounds(plan.rounds)
        for wf1 in wf1_cases.present(self.wf1):
            total += len(wf1.contestants) * wf1.rounds(plan.rounds)
        for st1 in st1_cases.present(self.st1):
            total += len(st1.present()) * st1.rounds(plan.rounds)
        for overlay in overlay_cases.present(self.overlay):
            total += len(overlay.contestants) * overlay.rounds(plan.rounds)
        return total


def _with_progress(plan: Parameters, chosen: _Chosen) -> list[measure.Outcome]:
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="capstore-bench-") as name,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        folder = Path(name)
        task = progress.add_task("setting up", total=chosen.figures(plan))

        def tell(what: str) -> None:
            progress.update(task, description=what)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        async def on_a_loop() -> list[measure.Outcome]:
            outcomes = await measure.run(plan, chosen.service, advance)
            return outcomes + await image_cases.run(plan, chosen.images, folder, tell, advance)

        outcomes = asyncio.run(on_a_loop())
        # Who takes part in these has a loop of its own, or none.
        outcomes += wf1_cases.run(plan, wf1_cases.present(chosen.wf1), folder, tell, advance)
        outcomes += st1_cases.run(plan, st1_cases.present(chosen.st1), folder, tell, advance)
        overlays = overlay_cases.present(chosen.overlay)
        return outcomes + overlay_cases.run(plan, overlays, folder, tell, advance)
