"""What a run came to, for a person (a table) and for a program (JSON).

Invariants: both show the same outcomes; `document` is described in `capstore.tools.bench.command`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from capstore.schema.limits import MIB
from capstore.tools.bench.cases import Goal, Limit, ServiceCase
from capstore.tools.bench.machine import Facts
from capstore.tools.bench.measure import SUBJECT, Outcome, Spread
from capstore.tools.bench.parameters import Parameters

FORMAT = 1
FLOOR, SFTP = "floor", "sftp"


# What is counted in such a unit takes so long that a person wants to know how long.
_TIMED_UNIT = "opens/s"


def tables(outcomes: Sequence[Outcome]) -> Iterator[Table]:
    """The table of the service's cases and that of the cases in process, those that have rows."""
    service = [outcome for outcome in outcomes if isinstance(outcome.case, ServiceCase)]
    images = [outcome for outcome in outcomes if not isinstance(outcome.case, ServiceCase)]
    if service:
        yield service_table(service)
    if images:
        yield image_table(images)


def service_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each case."""
    result = Table("case", show_edge=False)
    for title in ("capstore", "floor", "of the floor", "goal", "SFTP", "times SFTP"):
        result.add_column(title, justify="right", no_wrap=True)
    for outcome in outcomes:
        result.add_row(
            outcome.case.name,
            _figure(outcome, SUBJECT),
            _figure(outcome, FLOOR),
            _ratio(outcome.ratio_to(FLOOR)),
            _goal(outcome),
            _figure(outcome, SFTP),
            _ratio(outcome.ratio_to(SFTP)),
        )
    return result


def image_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each case and rival."""
    result = Table("case", show_edge=False)
    for title in ("capstore", "rival", "its figure", "times the rival", "goal"):
        result.add_column(title, justify="right", no_wrap=True)
    for outcome in outcomes:
        rivals = [name for name in outcome.figures if name != SUBJECT] or ["-"]
        for row, rival in enumerate(rivals):
            result.add_row(
                outcome.case.name if row == 0 else "",
                _figure(outcome, SUBJECT) if row == 0 else "",
                rival,
                _figure(outcome, rival),
                _ratio(outcome.ratio_to(rival)),
                ", ".join([_goal(outcome)] * (row == 0) + _verdicts(outcome, rival)).strip(", "),
            )
        for row_of_detail in _detail_rows(outcome):
            result.add_row(*row_of_detail)
    return result


def _detail_rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    """A row for what else was measured of each contestant: the greatest of all rounds."""
    for measure, spread in outcome.details.get(SUBJECT, {}).items():
        others = [
            name
            for name, details in outcome.details.items()
            if name != SUBJECT and measure in details
        ]
        verdicts = [
            f"{ceiling['most']:g} {'met' if ceiling['met'] else 'not met'}"
            for ceiling in _ceilings(outcome)
            if ceiling["measure"] == measure
        ]
        rivals = ", ".join(others) or "-"
        figures = [f"{outcome.details[name][measure].greatest:,.3g}" for name in others]
        yield (
            f"  {measure}",
            f"{spread.greatest:,.3g}",
            rivals,
            ", ".join(figures) or "-",
            "-",
            ", ".join(verdicts),
        )


def _figure(outcome: Outcome, name: str) -> str:
    spread = outcome.figures.get(name)
    if spread is None:
        return "-"
    if outcome.case.unit == "bytes/s":
        return f"{spread.median / MIB:,.0f} MiB/s"
    if outcome.case.unit == _TIMED_UNIT:
        return f"{_ms(spread):.3g} ms"
    return f"{spread.median:,.0f} {outcome.case.unit}"


def _verdicts(outcome: Outcome, contestant: str) -> list[str]:
    """What was asked of a contestant that is capstore in another way, and whether it did."""
    return [
        f"{floor['ratio']:g} of {floor['rival']} {'met' if floor['met'] else 'not met'}"
        f" ({floor['median']:.2f})"
        for floor in _floors(outcome)
        if floor["contestant"] == contestant
    ]


def _ms(spread: Spread) -> float:
    """How many milliseconds one unit takes."""
    return 1000 / spread.median


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f} ({spread.least:.2f}..{spread.greatest:.2f})"


def _goal(outcome: Outcome) -> str:
    judged = _judged(outcome)
    if judged is None:
        return ""
    verdict = "met" if judged["met"] else "not met"
    if "ms_max" in judged:
        return f"{judged['ms_max']:g} ms {verdict}"
    if judged["met"] or judged["milestone"] is None:
        return f"{judged['ratio']:.3g} {verdict}"
    milestone = "met" if judged["milestone_met"] else "not met"
    return f"{judged['ratio']:g} {verdict}, {judged['milestone']:g} {milestone}"


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
        "goal": _judged(outcome),
        "details": {
            name: {measure: _spread(spread) for measure, spread in details.items()}
            for name, details in outcome.details.items()
            if details
        },
        "ceilings": _ceilings(outcome),
        "floors": _floors(outcome),
    }


def _floors(outcome: Outcome) -> list[dict[str, Any]]:
    """What was asked of others than the subject, and whether they did; where both took part."""
    judged = []
    for floor in outcome.case.floors:
        ratio = outcome.ratio_to(floor.rival, floor.contestant)
        if ratio is not None:
            met = ratio.median >= floor.ratio
            judged.append({**asdict(floor), "median": ratio.median, "met": met})
    return judged


def _ceilings(outcome: Outcome) -> list[dict[str, Any]]:
    """What was to stay under something, and whether it did in every round."""
    details = outcome.details.get(SUBJECT, {})
    return [
        {
            "measure": ceiling.measure,
            "most": ceiling.most,
            "greatest": details[ceiling.measure].greatest,
            "met": details[ceiling.measure].greatest <= ceiling.most,
        }
        for ceiling in outcome.case.ceilings
        if ceiling.measure in details
    ]


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "min": spread.least,
        "max": spread.greatest,
        "rounds": list(spread.rounds),
    }


def _judged(outcome: Outcome) -> dict[str, Any] | None:
    """What is aimed for and whether that was reached; None where the rival took no part."""
    goal = outcome.case.goal
    if isinstance(goal, Limit):
        took = _ms(outcome.figures[SUBJECT])
        return {"ms_max": goal.ms_max, "ms": took, "met": took <= goal.ms_max}
    return None if goal is None else _judged_ratio(goal, outcome.ratio_to(goal.rival))


def _judged_ratio(goal: Goal, ratio: Spread | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    milestone = goal.milestone
    return {
        "ratio": goal.ratio,
        "rival": goal.rival,
        "met": ratio.median >= goal.ratio,
        "milestone": milestone,
        "milestone_met": None if milestone is None else ratio.median >= milestone,
    }
