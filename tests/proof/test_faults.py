"""Devices that fail, images that are damaged, processes that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstore.images.devices import FileDevice
from capstore.images.wf1 import ROOT
from capstore.images.wf1_open import open_wf1
from capstore.tools.prove.countdown import count_down, places
from capstore.tools.prove.damage import (
    ACCEPTED,
    damaged_image,
    flipped,
    outcomes,
    truncated,
    used_places,
)
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
from capstore.tools.prove.load import Load
from capstore.tools.prove.power import cut_power, why_no_power_cut
from capstore.tools.prove.running import scenario_names, workload_of
from capstore.tools.prove.wf1_load import BACKER, ENGINE, LOADS, make
from capstore.tools.prove.wf1_subject import SUBJECT
from tests.proof.holding import assert_holds

# Countdown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ace1-5", "scenario-append-after-truncate"])
def test_a_failure_at_every_place(name: str) -> None:
    tally = count_down(SUBJECT, workload_of(SUBJECT, name), crashes=False)
    assert_holds(tally)
    assert tally.states == 4 * places(SUBJECT, workload_of(SUBJECT, name))


def test_a_failure_and_a_crash() -> None:
    assert_holds(count_down(SUBJECT, workload_of(SUBJECT, "scenario-space-reused"), every=7))


# Damage -------------------------------------------------------------------------------------------


def test_some_truncations() -> None:
    length = len(damaged_image(SUBJECT)[0])
    # Around every structure, and somewhere between.
    lengths = {0, 1, length - 1, length, *range(0, length, 9973)}
    lengths.update(at + d for at in used_places(SUBJECT)[::2048] for d in (-1, 0, 1))
    assert_holds(truncated(SUBJECT, sorted(lengths)))


def test_some_bit_flips() -> None:
    tally = flipped(SUBJECT, (8 * at + at % 8 for at in used_places(SUBJECT)[::67]))
    assert_holds(tally)
    assert outcomes(tally)["refused"]
    assert outcomes(tally)["refused where it is damaged"]


def test_damage_that_is_shown_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With checksums that always fit, the same flips show wrong bytes, and are failures."""
    monkeypatch.setattr("capstore.images.wf1_writer.crc32c", lambda data: _Anything())
    tally = flipped(SUBJECT, (8 * at for at in used_places(SUBJECT)[::67]))
    assert outcomes(tally)["a wrong tree"]
    assert tally.failed


class _Anything(int):
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_a_killed_process(tmp_path: Path, load: Load) -> None:
    _, verdict = kill_by_chance(tmp_path, load, 1)
    assert verdict.outcome.holds, verdict


@pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_a_process_killed_at_a_system_call(tmp_path: Path, load: Load) -> None:
    killed, verdict = kill_at_call(tmp_path, load, 7, "pwrite64", 40)
    assert sum(killed.durable.values()) > 0
    assert not killed.done
    assert verdict.outcome.holds, verdict


def test_more_promised_than_there_is_is_noticed(tmp_path: Path) -> None:
    make(str(tmp_path / "image"))
    for load in LOADS:
        assert compared(tmp_path / "image", load, 1, Killed({})).outcome is Outcome.PROMISED
        assert compared(tmp_path / "image", load, 1, Killed({0: 80})).outcome is Outcome.LOST
    assert compared(tmp_path / "image", BACKER, 1, Killed({3: 80})).outcome is Outcome.LOST
    failed = Killed({}, error="failed NoSpace()")
    assert compared(tmp_path / "image", ENGINE, 1, failed).outcome is Outcome.FOREIGN


def test_what_is_of_no_client_is_noticed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(str(image))
    engine = open_wf1(FileDevice.open(image))
    engine.create(ROOT, "stranger")
    engine.close()
    assert compared(image, BACKER, 1, Killed({})).outcome is Outcome.INVENTED


def test_what_is_no_volume_does_not_open() -> None:
    examiner = SUBJECT.examiner()
    verdict = examiner.judged(examiner.image(bytes(1 << 20)), damaged_image(SUBJECT)[1], 0, 0)
    assert verdict.outcome is Outcome.UNOPENED


# Long ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
def test_failures_in_all_scenarios() -> None:
    for name in scenario_names(SUBJECT):
        assert_holds(count_down(SUBJECT, workload_of(SUBJECT, name)))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_truncation_at_every_byte() -> None:
    tally = truncated(SUBJECT, range(len(damaged_image(SUBJECT)[0]) + 1))
    assert_holds(tally)
    assert set(outcomes(tally)) <= ACCEPTED


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_bit() -> None:
    assert_holds(
        flipped(SUBJECT, (8 * at + bit for at in used_places(SUBJECT) for bit in range(8)))
    )


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_killed_processes(tmp_path: Path) -> None:
    tally = kill(tmp_path, LOADS, 100, 25)
    assert_holds(tally)
    assert tally.states == 25 * len(LOADS) * (1 + len(CALLS) * (why_no_strace() is None))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_power_cuts(tmp_path: Path) -> None:
    if (reason := why_no_power_cut(tmp_path)) is not None:
        pytest.skip(reason)
    for seed in range(20):
        for load in LOADS:
            _, verdict = cut_power(tmp_path, load, seed)
            assert verdict.outcome.holds, (load.name, seed, verdict)
