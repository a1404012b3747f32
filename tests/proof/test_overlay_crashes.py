"""What crashes leave of an overlay's upper layer, on a short budget; the whole of it is marked
long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from typer.testing import CliRunner

from capstore.images.faults import Mode
from capstore.images.faults_image import SectorImage, Sectors
from capstore.schema.errors import InvalidArgument, NotFound
from capstore.tools.prove import command
from capstore.tools.prove.canaries import Canary, caught
from capstore.tools.prove.explore import Search, Tally, chance, exhaustive
from capstore.tools.prove.overlay_canaries import CANARIES
from capstore.tools.prove.overlay_loop import run as run_still
from capstore.tools.prove.overlay_start import START, start
from capstore.tools.prove.overlay_subject import SUBJECT
from capstore.tools.prove.recording import Clock, Disagreement, record
from capstore.tools.prove.running import (
    ace_names,
    chance_names,
    chunks,
    replay_id,
    run,
    scenario_names,
    workload_of,
)
from capstore.tools.prove.workload import Step, steps
from tests.proof.holding import assert_each_holds

# Few samples: the seconds that a run of all tests has for it.
SHORT = Search("short", tuple(Mode), subset_changes_max=3, samples=1, nested_max=0)
PREFIXES = Search("prefixes", (Mode.PREFIXES,), nested_max=0)
NESTED = Search("nested", (Mode.LINEAR, Mode.RANDOM), samples=1, nested_max=1, depth_max=1)
SEED = 20_000


def of(names: Sequence[str], search: Search) -> Tally:
    return run(chunks(SUBJECT, names, [search]), processes=1)


# Short --------------------------------------------------------------------------------------------


def test_some_single_operations() -> None:
    assert len(ace_names(SUBJECT, 1)) > 900
    tally = of(ace_names(SUBJECT, 1)[::64], SHORT)
    assert_each_holds(tally)
    phases = {phase for _, phase, _, _ in tally.shapes}
    assert phases >= {"recovery", "checkpoint", "copy-up", "whiteout", "directory rename"}


def test_some_scenarios() -> None:
    names = [*scenario_names(SUBJECT)[::12], "scenario-rename-without-a-redirect"]
    tally = of(names, PREFIXES)
    assert_each_holds(tally)


def test_crashes_behind_crashes() -> None:
    assert_each_holds(of([*ace_names(SUBJECT, 1)[::400], *chance_names(SEED, 1, 10)], NESTED))


def test_resets() -> None:
    tally = of(["ace1-3", "scenario-reset-of-what-is-not-durable"], SHORT)
    assert_each_holds(tally)
    assert "reset" in {phase for _, phase, _, _ in tally.shapes}


# The proof itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name.replace(" ", "-"))
def test_canaries_are_noticed(canary: Canary) -> None:
    # As few states as show it; that no state of the sound overlay is like that is shown above.
    failure = caught(SUBJECT, canary)
    assert failure is not None
    assert failure.outcome in ("lost", "invented")


def test_the_same_workload_gives_the_same_log() -> None:
    workload = workload_of(SUBJECT, "random-7-12")
    logs = []
    for _ in range(2):
        image, model = start(workload.room)
        base = SectorImage(Sectors(), image)
        logs.append(record(SUBJECT, base, model, workload.parts[0]).log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 5


def test_the_same_run_gives_the_same_figures() -> None:
    names = ace_names(SUBJECT, 1)[3:5]
    first, second = of(names, SHORT), of(names, SHORT)
    assert first.shapes == second.shapes
    assert first.recognised == second.recognised > 0


def test_each_change_is_in_a_frame_of_its_own_unless_they_are_together() -> None:
    image, model = start(6)
    written = []
    for text in ("rename d w; sync", "together; rename d w; sync"):
        recording = record(SUBJECT, SectorImage(Sectors(), image), model, steps(text))
        written.append(len(recording.log))
        # Copying the directory up is one change, and moving it another one.
        assert len(recording.moments) == 2
    assert written[0] == written[1] + 1


def test_what_is_armed_happens_in_the_middle_of_a_copy() -> None:
    image, model = start(6)
    logs = [
        record(SUBJECT, SectorImage(Sectors(), image), model, steps(text)).log
        for text in ("append b 10 1", "arm checkpoint; append b 10 1")
    ]
    assert len(logs[1]) > len(logs[0]) + 4


def test_a_difference_without_a_crash_is_found() -> None:
    image, model = start(6)[0], start(6)[1].copy()
    model.file("a").data = b"something else"
    with pytest.raises(Disagreement):
        record(SUBJECT, SectorImage(Sectors(), image), model, steps("remove b"))


def test_what_is_begun_with_is_of_every_kind() -> None:
    _, model = start(6)
    there = model.tree()
    assert there.keys() >= {"a", "c", "r", "h/f", "i", "j", "m/u", "n", "o/f", "s", "z"}
    assert not there.keys() & {"v", "t", "q", "h2", "m/f", "r/f", "y"}
    assert all(Step.parse(str(step)) == step for step in steps(START))


def test_the_loop_does_not_wait() -> None:
    async def wait() -> None:
        await asyncio.sleep(1)

    async def refused() -> None:
        raise NotFound("nothing")

    with pytest.raises(AssertionError, match="waits"):
        run_still(wait(), Clock())
    with pytest.raises(NotFound, match="nothing"):
        run_still(refused(), Clock())


def test_replaying() -> None:
    state = "scenario-rename-back@epoch=1/first=2"
    image, workload, verdict = replay_id(SUBJECT, state)
    assert verdict.outcome.holds
    assert len(image) == len(start(workload.room)[0])
    result = CliRunner().invoke(command.app, ["overlay", "--replay", state])
    assert result.exit_code == 0, result.output
    assert "outcome   further on" in result.stdout


@pytest.mark.parametrize(
    "text", ["", "ace1-99999@epoch=0/first=0", "scenario-none@epoch=1/first=0", "ace1-0@epoch=x"]
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InvalidArgument):
        replay_id(SUBJECT, text)


# Long ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("search", [exhaustive(6), chance(1)], ids=lambda search: search.name)
def test_all_workloads_of_length_1_and_scenarios(search: Search) -> None:
    assert_each_holds(
        run(chunks(SUBJECT, [*scenario_names(SUBJECT), *ace_names(SUBJECT, 1)], [search]))
    )


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_pairs_of_operations() -> None:
    assert len(ace_names(SUBJECT, 2)) > 10_000
    assert_each_holds(run(chunks(SUBJECT, ace_names(SUBJECT, 2)[::10], [exhaustive(4), chance(2)])))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_workloads_by_chance() -> None:
    assert_each_holds(run(chunks(SUBJECT, chance_names(1000, 500), [exhaustive(4), chance(3)])))
