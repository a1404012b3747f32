"""Overlays whose upper layer is on a device that fails, or is damaged."""

from __future__ import annotations

import pytest

from capstore.tools.prove.countdown import count_down, places
from capstore.tools.prove.damage import (
    ACCEPTED,
    damaged_image,
    flipped,
    outcomes,
    truncated,
    used_places,
)
from capstore.tools.prove.overlay_subject import SUBJECT
from capstore.tools.prove.running import scenario_names, workload_of
from tests.proof.holding import assert_holds


def test_a_failure_at_every_place_of_a_reset() -> None:
    workload = workload_of(SUBJECT, "ace1-3")
    tally = count_down(SUBJECT, workload, crashes=False)
    assert_holds(tally)
    assert tally.states == 4 * places(SUBJECT, workload)


def test_a_failure_and_a_crash() -> None:
    assert_holds(count_down(SUBJECT, workload_of(SUBJECT, "scenario-rename-back"), every=7))


def test_some_truncations() -> None:
    length = len(damaged_image(SUBJECT)[0])
    assert_holds(truncated(SUBJECT, range(0, length, 19_997)))


def test_some_bit_flips() -> None:
    tally = flipped(SUBJECT, (8 * at + at % 8 for at in used_places(SUBJECT)[::997]))
    assert_holds(tally)
    assert outcomes(tally)["refused where it is damaged"]


@pytest.mark.long
@pytest.mark.timeout(0)
def test_failures_in_all_scenarios() -> None:
    for name in scenario_names(SUBJECT):
        assert_holds(count_down(SUBJECT, workload_of(SUBJECT, name)))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_bits() -> None:
    tally = flipped(SUBJECT, (8 * at + at % 8 for at in used_places(SUBJECT)[::7]))
    assert_holds(tally)
    assert set(outcomes(tally)) <= ACCEPTED
