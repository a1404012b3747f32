"""``capstore prove``: its options, and what it prints.

Invariants: results go to standard output, progress to standard error, and only if that is a
terminal.  Exit code 1 says that something was lost or a canary was not noticed.  Importing this
costs nothing.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from capstore.tools.parameters import QuietOption, block

if TYPE_CHECKING:
    from capstore.tools.prove.explore import Search
    from capstore.tools.prove.proof import Proof

app = typer.Typer()

_PROGRESS_SECONDS: Final = 0.5
_MODE: Final = re.compile(r"(linear)|exhaustive:([0-9]{1,2})|random:([0-9]{1,18})", re.ASCII)
_LENGTHS: Final = (1, 2)


@app.command(
    epilog=block(
        "Examples",
        "capstore prove wf1",
        "capstore prove wf1 --length 2 --states 1000000 --report proof.json --report proof.html",
        "capstore prove wf1 --replay ace1-0@epoch=1/first=1",
        "capstore prove st1",
        "capstore prove overlay",
    )
)
def prove(
    what: Annotated[str, typer.Argument(metavar="FORMAT", help="wf1, st1 or overlay.")],
    ops: Annotated[
        int, typer.Option(min=1, max=10_000, help="Operations of a workload by chance.")
    ] = 25,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything by chance.")] = None,
    length: Annotated[
        int, typer.Option(help="Go through all workloads of 1 operation, or of 1 and 2.")
    ] = 1,
    states: Annotated[
        int, typer.Option(min=0, help="Go on by chance until there are so many crash states.")
    ] = 20_000,
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar="MODE", help="linear, exhaustive:N or random:SEED; several of them."),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write the report: HTML if it ends so, else JSON."),
    ] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="ID", help="Examine this state alone.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --replay: write the image to FILE.")
    ] = None,
    processes: Annotated[int, typer.Option(min=0, help="0 is one for each processor.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Show that no crash loses what was promised.

    Workloads run on a device that records; every state that a crash may leave of it is opened and
    compared with what had been acknowledged. Engines with a precaution taken out must fail that.
    """
    from capstore.tools.prove.subject import FORMATS

    if what not in FORMATS:
        known = ", ".join(FORMATS)
        raise typer.BadParameter(f'nothing is known about "{what}" (there are: {known})')
    if length not in _LENGTHS:
        raise typer.BadParameter("a length is 1 or 2")
    if replay is not None:
        _replay(what, replay, keep)
        return
    from capstore.tools.prove.proof import Parameters
    from capstore.tools.prove.proof import prove as run
    from capstore.tools.prove.report import lines

    first = secrets.randbits(32) if seed is None else seed
    usual = Parameters.usual(first, ops, length, states)
    searches = tuple(map(_search, mode)) if mode else usual.searches
    print(f"seed {first}", flush=True)
    asked = Parameters(first, ops, length, states, searches, processes, what)
    proof = run(asked, _Progress(quiet=quiet))
    for line in lines(proof):
        print(line)
    for path in report or ():
        _write(path, proof)
    if not proof.holds:
        raise typer.Exit(1)


def _search(text: str) -> Search:
    from capstore.tools.prove.explore import LINEAR, chance, exhaustive

    found = _MODE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f'"{text}" is no mode: linear, exhaustive:N, random:SEED')
    if found[1]:
        return LINEAR
    return exhaustive(int(found[2])) if found[2] else chance(int(found[3]))


def _replay(what: str, state: str, keep: Path | None) -> None:
    from capstore.tools.prove.running import replay_id
    from capstore.tools.prove.subject import subject_of

    image, workload, verdict = replay_id(subject_of(what), state)
    print(f"steps     {workload}")
    print(f"outcome   {verdict.outcome.value} {verdict.detail}".rstrip())
    if keep is not None:
        keep.write_bytes(image)
    if not verdict.outcome.holds:
        raise typer.Exit(1)


def _write(path: Path, proof: Proof) -> None:
    from capstore.tools.prove.report import as_html, as_json

    if path.suffix == ".html":
        path.write_text(as_html(proof))
    else:
        path.write_text(json.dumps(as_json(proof), indent=1) + "\n")


class _Progress:
    """A line on a terminal's standard error that is rewritten now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self._is_shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._shown = 0.0

    def __call__(self, what: str, states: int, failed: int) -> None:
        now = time.monotonic()
        if not self._is_shown or now - self._shown < _PROGRESS_SECONDS:
            return
        self._shown = now
        line = f"{what}: {states} states, lost: {failed}"
        print(f"\r\x1b[K{line}", end="\r", file=sys.stderr, flush=True)
