"""A service that breaks a promise is found out: by calls that meet it, and by the random search."""

from __future__ import annotations

import pytest

from tests.service.confinement.faults import Fault
from tests.service.confinement.faults_of_stores import FAULTS as OF_STORES
from tests.service.confinement.faults_of_trees import FAULTS as OF_TREES
from tests.service.confinement.machine import Machine
from tests.service.confinement.play import Everything, play, told

FAULTS = OF_TREES | OF_STORES
# What the search finds within some ten runs.
SOON_FOUND = [
    "a prefix is not looked at",
    "a batch leaves its part",
    "nodes move out from under a policy",
]
# That something does not hold, and nothing else that may go wrong in a test.
FOUND = "(?m)^AssertionError"


def test_no_two_faults_have_one_name() -> None:
    assert len(FAULTS) == len(OF_TREES) + len(OF_STORES)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_a_service_that_breaks_a_promise_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: bool
) -> None:
    """And one that does not is not, by the same calls."""
    fault = FAULTS[name]
    if broken:
        fault.breaks(monkeypatch)
    machine = fault.machine()
    try:
        machine.plant([], 0)
        if isinstance(machine, Everything):
            machine.plant_objects([], b"")
        if broken:
            with pytest.raises(AssertionError, match=FOUND):
                fault.play(machine)
        else:
            fault.play(machine)
    finally:
        machine.teardown()


def _search(fault: Fault, monkeypatch: pytest.MonkeyPatch, runs: int, name: str) -> None:
    fault.breaks(monkeypatch)
    told()
    with pytest.raises(AssertionError, match=FOUND):
        play(fault.machine, runs, 40, shrinks=False)
    print(f"{name}: found in {Machine.counts['runs']} runs, {Machine.counts['steps']} steps")


@pytest.mark.parametrize("name", SOON_FOUND)
def test_the_search_finds_a_broken_promise(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _search(FAULTS[name], monkeypatch, 300, name)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_service_that_breaks_a_promise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _search(FAULTS[name], monkeypatch, 3000, name)
