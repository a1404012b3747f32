"""Rounds of a case on a disk: who takes part in them, by turns, and what they came to.

Invariants: in each round all have their turn, with the same choices, each in a directory that is
new and gone behind it; nothing is measured in memory, where a flush costs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from capstore.tools.bench.cases import Case
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.wf1_taken import Batch, Taken

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def in_memory(kind: str) -> str | None:
    """Why nothing can be measured on a filesystem of this type, or None if it can."""
    if kind not in _IN_MEMORY:
        return None
    return f"temporary files are in memory ({kind}): set TMPDIR to a directory on a disk"


def measured(
    parameters: Parameters,
    folder: Path,
    case: Case,
    batches: Mapping[str, Batch],
    advance: Callable[[str], None],
) -> Outcome:
    """All rounds of `case`, with everything in `folder`; `advance` hears its name after each
    figure."""
    taken: dict[str, list[Taken]] = {name: [] for name in batches}
    for number in range(case.rounds(parameters.rounds)):
        for name, batch in batches.items():
            rng = Random(f"{parameters.seed}/{case.name}/{number}")  # noqa: S311 - a workload
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                taken[name].append(batch(rng, Path(scratch)))
            advance(case.name)
    return outcome(case, taken)


def outcome(case: Case, taken: Mapping[str, Sequence[Taken]]) -> Outcome:
    """What `case` came to, by contestant and round."""
    return Outcome(
        case,
        {name: Spread([one.units / one.seconds for one in all_]) for name, all_ in taken.items()},
        {name: _details(all_) for name, all_ in taken.items()},
    )


def _details(taken: Sequence[Taken]) -> dict[str, Spread]:
    return {name: Spread([one.details[name] for one in taken]) for name in taken[0].details}
