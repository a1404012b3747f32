"""What a run came to, for a person (a table) and for a program (JSON).

Invariants: both show the same outcomes; `document` is described in `capstore.tools.bench.command`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from capstore.schema.limits import MIB
from capstore.tools.bench.cases import Goal
from capstore.tools.bench.machine import Facts
from capstore.tools.bench.measure import SUBJECT, Outcome, Spread
from capstore.tools.bench.parameters import Parameters

FORMAT = 1
FLOOR, SFTP = "floor", "sftp"


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each case."""
    result = Table("case", show_edge=False)
    for title in ("capstore", "floor", "of the floor", "goal", "SFTP", "times SFTP"):
        result.add_column(title, justify="right", no_wrap=True)
    for outcome in outcomes:
        to_floor, to_sftp = outcome.ratio_to(FLOOR), outcome.ratio_to(SFTP)
        result.add_row(
            outcome.case.name,
            _figure(outcome, SUBJECT),
            _figure(outcome, FLOOR),
            _ratio(to_floor),
            _goal(outcome.case.goal, to_floor),
            _figure(outcome, SFTP),
            _ratio(to_sftp),
        )
    return result


def _figure(outcome: Outcome, name: str) -> str:
    spread = outcome.figures.get(name)
    if spread is None:
        return "-"
    if outcome.case.unit == "bytes/s":
        return f"{spread.median / MIB:,.0f} MiB/s"
    return f"{spread.median:,.0f} {outcome.case.unit}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f} ({spread.least:.2f}..{spread.greatest:.2f})"


def _goal(goal: Goal | None, ratio: Spread | None) -> str:
    if goal is None or ratio is None:
        return ""
    if ratio.median >= goal.ratio:
        return f"{goal.ratio} met"
    if goal.milestone is None:
        return f"{goal.ratio} not met"
    verdict = "met" if ratio.median >= goal.milestone else "not met"
    return f"{goal.ratio} not met, {goal.milestone} {verdict}"


def document(
    parameters: Parameters, machine: Facts, absent: dict[str, str], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """The whole report."""
    return {
        "format": FORMAT,
        "parameters": asdict(parameters),
        "machine": machine,
        "absent": absent,
        "cases": [_case(outcome) for outcome in outcomes],
    }


def _case(outcome: Outcome) -> dict[str, Any]:
    ratios = {name: outcome.ratio_to(name) for name in outcome.figures if name != SUBJECT}
    return {
        "name": outcome.case.name,
        "what": outcome.case.what,
        "unit": outcome.case.unit,
        "figures": {name: _spread(spread) for name, spread in outcome.figures.items()},
        "ratios": {name: _spread(spread) for name, spread in ratios.items() if spread},
        "goal": _judged(outcome.case.goal, outcome.ratio_to(FLOOR)),
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "min": spread.least,
        "max": spread.greatest,
        "rounds": list(spread.rounds),
    }


def _judged(goal: Goal | None, ratio: Spread | None) -> dict[str, Any] | None:
    if goal is None or ratio is None:
        return None
    milestone = goal.milestone
    return {
        "ratio": goal.ratio,
        "met": ratio.median >= goal.ratio,
        "milestone": milestone,
        "milestone_met": None if milestone is None else ratio.median >= milestone,
    }
