"""What a proof found, as JSON and as one page of HTML with a chart.

Invariants: the same proof gives the same report but for its times.  The page needs nothing from
elsewhere: bars are plain HTML.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from capstore.tools.prove.examine import Outcome
from capstore.tools.prove.proof import Proof

_GOOD: Final = "#4a8f5c"
_PART: Final = "#88b894"
_REFUSED: Final = "#c9a94e"
_REFUSED_IN_PART: Final = "#e0cd96"
_BAD: Final = "#c0392b"
_COLOURS: Final = {
    Outcome.PROMISED.value: _GOOD,
    Outcome.FURTHER.value: _PART,
    "linearizable": _GOOD,
    "whole": _GOOD,
    "older": _PART,
    "refused": _REFUSED,
    "refused where it is damaged": _REFUSED_IN_PART,
}
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.6em}h2{font-size:1.15em;margin:1.6em 0 .3em}.k{margin:.2em 0 .6em -1em}"
    "td.f{width:20%}td.s{width:22%}td.w{width:50%;vertical-align:middle}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.15em .6em;text-align:left;"
    "vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".bar{display:flex;height:1.1em;min-width:1px}.bar span{display:block}"
    "code{font-size:90%;overflow-wrap:anywhere}.key{display:inline-block;width:1em;height:1em;"
    "margin:0 .3em 0 1em;vertical-align:-.15em}@media(prefers-color-scheme:dark)"
    "{body{background:#16181a;color:#ddd}}"
)


def as_json(proof: Proof) -> dict[str, Any]:
    """The report as what JSON can hold."""
    asked, tally = proof.parameters, proof.tally
    return {
        "format": asked.format,
        "parameters": {
            "seed": asked.seed,
            "operations": asked.operations,
            "length": asked.length,
            "statesMax": asked.states_max,
            "searches": [search.name for search in asked.searches],
        },
        "holds": proof.holds,
        "workloads": tally.workloads,
        "states": tally.states,
        "repeated": tally.repeated,
        "recognised": tally.recognised,
        "failed": tally.failed,
        "shapes": [
            {"family": f, "phase": p, "mode": m, "outcome": o, "states": count}
            for (f, p, m, o), count in sorted(tally.shapes.items())
        ],
        "failures": [
            {"id": f.state, "outcome": f.outcome, "detail": f.detail, "steps": f.steps}
            for f in tally.failures
        ],
        "canaries": [
            {"name": name, "caught": failure is not None, "by": failure.state if failure else None}
            for name, failure in proof.canaries
        ],
        "skipped": proof.skipped,
        "seconds": {name: round(seconds, 1) for name, seconds in proof.seconds.items()},
    }


def lines(proof: Proof) -> Iterable[str]:
    """The report as lines for a terminal."""
    tally = proof.tally
    for name, failure in proof.canaries:
        said = f"caught by {failure.state}" if failure else "NOT CAUGHT"
        yield f"canary    {name}: {said}"
    for (what, phase), outcomes in sorted(_groups(proof).items()):
        shown = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        yield f"{sum(outcomes.values()):9} {what}, {phase}: {shown}"
    for reason in proof.skipped:
        yield f"skipped   {reason}"
    for found in tally.failures:
        yield f"FAILED    {found.outcome}: {found.detail}"
        yield f"          {found.state}"
        yield f"          {found.steps}"
    seconds = sum(proof.seconds.values())
    yield (
        f"{tally.states} states of {tally.workloads} workloads in {seconds:.0f} s"
        f" ({tally.repeated} met before, {tally.recognised} recognised by what is read),"
        f" lost: {tally.failed}"
    )


_FAMILIES: Final = {
    "ace1": "one operation",
    "ace2": "two operations",
    "random": "by chance",
    "scenario": "scenarios",
}
_OTHERS: Final = {
    "countdown": "failing device",
    "damage": "damaged image",
    "histories": "histories",
    "processes": "process",
}
_Groups = dict[tuple[str, str], Counter[str]]


def _groups(proof: Proof) -> _Groups:
    """By workloads and what was being done: how often there was which outcome."""
    return _grouped(proof, lambda family, phase, mode: (_name(family), phase))


def _name(family: str) -> str:
    return _FAMILIES.get(family) or _OTHERS.get(family, family)


def _grouped(proof: Proof, group: Callable[[str, str, str], tuple[str, str] | None]) -> _Groups:
    """How often there was which outcome, by the group of a shape; None is none."""
    groups: _Groups = {}
    for (family, phase, mode, outcome), count in proof.tally.shapes.items():
        key = group(family, phase, mode)
        if key is not None:
            groups.setdefault(key, Counter())[outcome] += count
    return groups


def _crashes(family: str, phase: str, _: str) -> tuple[str, str] | None:
    return (_name(family), phase) if family in _FAMILIES else None


def _modes(family: str, _: str, mode: str) -> tuple[str, str] | None:
    return ("", mode) if family in _FAMILIES else None


def _damages(family: str, phase: str, _: str) -> tuple[str, str] | None:
    return (_name(family), phase) if family in ("countdown", "damage") else None


def _histories(family: str, phase: str, _: str) -> tuple[str, str] | None:
    return ("", phase) if family == "histories" else None


def _processes(family: str, phase: str, _: str) -> tuple[str, str] | None:
    who, _, how = phase.partition(", ")
    return (who, how) if family == "processes" else None


def as_html(proof: Proof) -> str:
    """The report as a page."""
    asked, tally = proof.parameters, proof.tally
    searches = ", ".join(search.name for search in asked.searches)
    caught = sum(1 for _, failure in proof.canaries if failure)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>capstore prove {asked.format}</title>",
        f"<style>{_STYLE}</style><h1>{asked.subject.title} against crashes</h1>",
        (
            f"<p><b>{tally.states:,}</b> states of {tally.workloads:,} workloads were examined;"
            f" lost: <b>{tally.failed}</b>. {tally.repeated:,} were met before with the same"
            f" promises, and {tally.recognised:,} differ from others only in what nothing reads."
            f" Canaries caught: {caught} of {len(proof.canaries)}.</p>"
        ),
        (
            f"<p>Seed {asked.seed}, {asked.operations} operations by chance, all workloads of"
            f" length {asked.length}; {html.escape(searches)}.</p>"
        ),
        _section("Crashes, by what was being done", _grouped(proof, _crashes)),
        _section("Crashes, by how the state was chosen", _grouped(proof, _modes)),
        _section("Failing devices, damaged images", _grouped(proof, _damages)),
        _section("Histories of clients that work at once", _grouped(proof, _histories)),
        _section("Processes, by what they work through", _grouped(proof, _processes)),
        "<h2>Canaries</h2><table>",
    ]
    for name, failure in proof.canaries:
        said = f"<code>{html.escape(failure.state)}</code>" if failure else "<b>not caught</b>"
        parts.append(f"<tr><td>{html.escape(name)}<td>{said}")
    parts.append("</table>")
    if proof.skipped:
        items = "".join(f"<li>{html.escape(reason)}" for reason in proof.skipped)
        parts.append(f"<h2>Skipped</h2><ul>{items}</ul>")
    if tally.failures:
        rows = "".join(
            f"<tr><td>{html.escape(f.outcome)}<td>{html.escape(f.detail)}"
            f"<td><code>{html.escape(f.state)}</code><br><code>{html.escape(f.steps)}</code>"
            for f in tally.failures
        )
        parts.append(f"<h2>Failures</h2><table>{rows}</table>")
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in proof.seconds.items())
    parts.append(f"<p>{html.escape(times)}.</p></html>")
    return "\n".join(parts) + "\n"


def _section(title: str, groups: _Groups) -> str:
    """A chart with its key; nothing where there is nothing to show."""
    if not groups:
        return ""
    outcomes = sorted({o for counts in groups.values() for o in counts}, key=_rank)
    key = "".join(
        f'<span class=key style="background:{_COLOURS.get(o, _BAD)}"></span>{html.escape(o)}'
        for o in outcomes
    )
    widest = max(sum(counts.values()) for counts in groups.values())
    rows, before = [], ""
    for (what, which), counts in sorted(groups.items()):
        total = sum(counts.values())
        bars = "".join(
            f'<span title="{html.escape(outcome)}: {count:,}" style="width:'
            f'{100 * count / total:.3f}%;background:{_COLOURS.get(outcome, _BAD)}"></span>'
            for outcome, count in sorted(counts.items(), key=lambda item: _rank(item[0]))
        )
        rows.append(
            f"<tr><td class=f>{html.escape(what if what != before else '')}"
            f"<td class=s>{html.escape(which)}"
            f'<td class=n>{total:,}<td class=w><div class=bar style="width:'
            f'{max(0.5, 100 * total / widest):.2f}%">{bars}</div>'
        )
        before = what
    return f"<h2>{html.escape(title)}</h2><p class=k>{key}</p><table>{''.join(rows)}</table>"


def _rank(outcome: str) -> tuple[int, str]:
    """What is good first, what is bad last."""
    order = list(_COLOURS)
    return (order.index(outcome) if outcome in order else len(order), outcome)
