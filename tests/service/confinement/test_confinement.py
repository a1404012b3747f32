"""No client does more than was granted, whatever it does: the random search."""

from __future__ import annotations

import resource

import pytest

from tests.service.confinement.machine import Machine
from tests.service.confinement.play import Everything, Trees, play, told

MACHINES = {"trees": Trees, "everything": Everything}

# Runs, and steps of each: of the default search, and of the long one, which is in
# `docs/security.md`.
RUNS = {"trees": 15, "everything": 20}
STEPS = 30
LONG_RUNS = {"trees": 500, "everything": 1000}
LONG_STEPS = 50


@pytest.mark.parametrize("name", MACHINES)
def test_no_client_does_more_than_was_granted(name: str) -> None:
    told()
    play(MACHINES[name], RUNS[name], STEPS)
    assert Machine.counts["runs"] >= RUNS[name]
    assert Machine.counts["done"] > RUNS[name]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MACHINES)
def test_no_client_does_more_than_was_granted_at_length(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints what was done, whether the output is captured or not."""
    told()
    play(MACHINES[name], LONG_RUNS[name], LONG_STEPS)
    with capsys.disabled():
        print(f"\n{name}, at most {LONG_STEPS} steps a run\n{told()}\n{_largest_mib()} MiB at most")


def _largest_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
