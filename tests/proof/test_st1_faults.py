"""Stores on devices that fail, damaged stores, killed processes, clients that work at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from capstore.images.devices import FileDevice
from capstore.tools.prove.countdown import count_down, places
from capstore.tools.prove.damage import damaged_image, flipped, outcomes, truncated, used_places
from capstore.tools.prove.examine import Outcome
from capstore.tools.prove.kill import (
    CALLS,
    Killed,
    compared,
    kill,
    kill_at_call,
    kill_by_chance,
    why_no_strace,
)
from capstore.tools.prove.linear import DONE, Call, why_not_linearizable
from capstore.tools.prove.load import Load
from capstore.tools.prove.power import cut_power, why_no_power_cut
from capstore.tools.prove.running import scenario_names, workload_of
from capstore.tools.prove.st1_history import Clients, histories
from capstore.tools.prove.st1_load import BACKER, ENGINE, LOADS, make
from capstore.tools.prove.st1_start import small_steps
from capstore.tools.prove.st1_subject import SUBJECT
from tests.proof.holding import assert_holds

# Countdown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scenario-sink-while-compacted", "scenario-batch-across-frames"])
def test_a_failure_at_every_place(name: str) -> None:
    workload = workload_of(SUBJECT, name)
    tally = count_down(SUBJECT, workload, crashes=False)
    assert_holds(tally)
    assert tally.states == 4 * places(SUBJECT, workload)


@pytest.mark.parametrize(
    "name", ["scenario-replaced-while-compacted", "scenario-batch-across-frames", "ace1-300"]
)
def test_a_failure_and_a_crash(name: str) -> None:
    assert_holds(count_down(SUBJECT, workload_of(SUBJECT, name), every=4))


# Damage -------------------------------------------------------------------------------------------


def test_some_truncations() -> None:
    length = len(damaged_image(SUBJECT)[0])
    lengths = {0, 1, length - 1, length, *range(0, length, 997)}
    assert_holds(truncated(SUBJECT, sorted(lengths)))


def test_some_bit_flips() -> None:
    tally = flipped(SUBJECT, (8 * at + at % 8 for at in used_places(SUBJECT)[::37]))
    assert_holds(tally)
    assert outcomes(tally)["refused"]
    assert outcomes(tally)["refused where it is damaged"]


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_a_killed_process(tmp_path: Path, load: Load) -> None:
    _, verdict = kill_by_chance(tmp_path, load, 1)
    assert verdict.outcome.holds, verdict


@pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))
def test_a_process_killed_at_a_system_call(tmp_path: Path) -> None:
    killed, verdict = kill_at_call(tmp_path, BACKER, 7, "pwrite64", 40)
    assert sum(killed.durable.values()) > 0
    assert not killed.done
    assert verdict.outcome.holds, verdict


def test_more_promised_than_there_is_is_noticed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(str(image))
    for load in LOADS:
        assert compared(image, load, 1, Killed({})).outcome is Outcome.PROMISED
        assert compared(image, load, 1, Killed({0: 80})).outcome is Outcome.LOST
    engine = SUBJECT.opened(FileDevice.open(image))
    engine.put(b"stranger", b"value")
    engine.close()
    assert compared(image, ENGINE, 1, Killed({})).outcome is Outcome.INVENTED


# Histories ----------------------------------------------------------------------------------------


def test_what_clients_are_told_is_linearizable() -> None:
    tally = histories(1, 2, every=9)
    assert_holds(tally)
    assert {kind for _, kind, _, _ in tally.shapes} == {"clients at once", "and a crash"}


def test_a_lost_update_is_noticed() -> None:
    history, refused = next(filter(None, map(_outdated, range(5, 50))))
    # A conditional put that was refused is said to have been done.
    version = max(call.version for call in history) + 1
    wrong = replace(refused, outcome=DONE, version=version, value=b"new")
    told = [wrong if call is refused else call for call in history]
    assert why_not_linearizable(told) is not None


def _outdated(seed: int) -> tuple[list[Call], Call] | None:
    """A history with a call that was refused, the key having had another version before it began:
    no order of what ran beside it would have let it be done."""
    clients = Clients(seed)
    with small_steps():
        asyncio.run(clients.work())
    history = clients.history
    assert why_not_linearizable(history) is None
    for call in history:
        if (at := call.at) and call.outcome == "conflict":
            known = [each for each in history if each.key == call.key and each.end < call.begin]
            if any(each.version > at for each in known):
                return history, call
    return None


# Long ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
def test_failures_in_all_scenarios() -> None:
    for name in scenario_names(SUBJECT):
        assert_holds(count_down(SUBJECT, workload_of(SUBJECT, name)))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_truncation_at_every_byte_and_every_bit() -> None:
    assert_holds(truncated(SUBJECT, range(len(damaged_image(SUBJECT)[0]) + 1)))
    assert_holds(flipped(SUBJECT, (8 * at + n for at in used_places(SUBJECT) for n in range(8))))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_killed_processes(tmp_path: Path) -> None:
    tally = kill(tmp_path, LOADS, 100, 25)
    assert_holds(tally)
    assert tally.states == 25 * len(LOADS) * (1 + len(CALLS) * (why_no_strace() is None))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_histories() -> None:
    assert_holds(histories(100, 200))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_power_cuts(tmp_path: Path) -> None:
    if (reason := why_no_power_cut(tmp_path)) is not None:
        pytest.skip(reason)
    for seed in range(20):
        for load in LOADS:
            _, verdict = cut_power(tmp_path, load, seed)
            assert verdict.outcome.holds, (load.name, seed, verdict)
