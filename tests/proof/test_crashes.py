"""What crashes leave of a CAPOSWF1 volume, on a short budget; the whole of it is marked long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from capstore.images.faults import Mode
from capstore.images.faults_image import SectorImage, Sectors
from capstore.schema.errors import InvalidArgument
from capstore.tools.prove.canaries import Canary, caught
from capstore.tools.prove.explore import Search, Tally, chance, exhaustive, explore, replayed
from capstore.tools.prove.recording import record
from capstore.tools.prove.running import (
    ace_names,
    chance_names,
    chunks,
    replay_id,
    run,
    scenario_names,
    workload_of,
)
from capstore.tools.prove.wf1_canaries import CANARIES
from capstore.tools.prove.wf1_start import start
from capstore.tools.prove.wf1_subject import SUBJECT
from capstore.tools.prove.workload import Step, steps
from tests.proof.holding import assert_each_holds

# Every mode, few samples: the seconds that a run of all tests has for it.
SHORT = Search("short", tuple(Mode), subset_changes_max=3, samples=2, nested_max=0)
NESTED = Search("nested", (Mode.LINEAR, Mode.DROPS, Mode.RANDOM), samples=2, nested_max=1)
SEED = 20_000


def of(names: Sequence[str], search: Search) -> Tally:
    return run(chunks(SUBJECT, names, [search]), processes=1)


# Short --------------------------------------------------------------------------------------------


def test_every_single_operation() -> None:
    names = [
        name
        for name in ace_names(SUBJECT, 1)
        if workload_of(SUBJECT, name).parts[0][-1] == Step("sync")
    ]
    assert len(names) > 100
    assert_each_holds(of(names, SHORT))


def test_some_pairs_of_operations() -> None:
    assert len(ace_names(SUBJECT, 2)) > 39_000
    assert_each_holds(of(ace_names(SUBJECT, 2)[::500], SHORT))


@pytest.mark.parametrize("name", scenario_names(SUBJECT))
def test_scenarios(name: str) -> None:
    assert_each_holds(of([name], NESTED))


def test_crashes_behind_crashes() -> None:
    tally = of([*ace_names(SUBJECT, 1)[::40], *chance_names(SEED, 2, 12)], NESTED)
    assert_each_holds(tally)
    phases = {phase for _, phase, _, _ in tally.shapes}
    assert phases >= {"recovery", "checkpoint", "operation", "operation after a crash"}


# The proof itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name.replace(" ", "-"))
def test_canaries_are_noticed(canary: Canary) -> None:
    # As few states as show it; that no state of the sound engine is like that is shown above.
    failure = caught(
        SUBJECT, canary, Search("canary", _MODES.get(canary.name, (Mode.PREFIXES,)), 4, 4)
    )
    failure = failure or caught(SUBJECT, canary)
    assert failure is not None
    assert "@" in failure.state
    assert "foreign" not in failure.outcome


_MODES = {
    "data not verified in recovery": (Mode.DROPS,),
    "frames not verified in recovery": (Mode.TEARS,),
}


def test_an_id_replays_its_state() -> None:
    workload = workload_of(SUBJECT, "scenario-rename-onto-synced")
    image, model = start(workload.room)
    recording = record(SUBJECT, SectorImage(Sectors(), image), model, workload.parts[0])
    left, verdict_of, verdict = replay_id(SUBJECT, f"{workload.name}@epoch=1/first=1")
    assert verdict_of == workload
    assert left == replayed(SUBJECT, workload, ["epoch=1/first=1"])[0]
    assert left != image
    assert len(left) == len(recording.base)
    assert verdict.outcome.holds


def test_an_id_of_crashes_in_a_row() -> None:
    image, _, verdict = replay_id(
        SUBJECT, "scenario-old-frames-behind-new@epoch=1/first=1@epoch=1/first=0"
    )
    assert verdict.outcome.holds
    assert len(image) == len(start(4)[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ace1",
        "ace1-0",
        "ace1-99999@epoch=0/first=0",
        "x-1@epoch=1/first=0",
        "random-1@epoch=1/first=0",
        "scenario-none@epoch=1/first=0",
        "ace1-0@epoch=99/first=0",
        "ace1-0@epoch=x",
    ],
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InvalidArgument):
        replay_id(SUBJECT, text)


def test_the_same_run_gives_the_same_figures() -> None:
    work = chunks(SUBJECT, [*ace_names(SUBJECT, 1)[:3], *chance_names(7, 1, 10)], [SHORT])
    first, second = run(work, processes=1), run(work, processes=2)
    assert first.shapes == second.shapes
    assert (first.workloads, first.repeated) == (second.workloads, second.repeated)
    assert first.recognised == second.recognised > 0


def test_a_run_ends_with_enough_states() -> None:
    work = chunks(SUBJECT, ace_names(SUBJECT, 1), [Search("linear", (Mode.LINEAR,), nested_max=0)])
    tally = run(work, processes=1, states_max=10)
    assert tally.states >= 10
    assert tally.workloads == 40


def test_workloads_are_what_their_names_say() -> None:
    assert SUBJECT.ace(1)[3].name == "ace1-3"
    assert str(workload_of(SUBJECT, "random-5-9")) == str(workload_of(SUBJECT, "random-5-9"))
    assert str(workload_of(SUBJECT, "random-5-9")) != str(workload_of(SUBJECT, "random-6-9"))
    text = "write a/b 3 500 7; rename a b; symlink l a/b; sync"
    assert "; ".join(map(str, steps(text))) == text


# Long ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("search", [exhaustive(8), chance(1)], ids=lambda search: search.name)
def test_all_workloads_of_length_1_and_scenarios(search: Search) -> None:
    assert_each_holds(
        run(chunks(SUBJECT, [*scenario_names(SUBJECT), *ace_names(SUBJECT, 1)], [search]))
    )


@pytest.mark.long
@pytest.mark.timeout(0)
def test_all_workloads_of_length_2() -> None:
    assert_each_holds(run(chunks(SUBJECT, ace_names(SUBJECT, 2), [exhaustive(5), chance(2)])))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_workloads_by_chance() -> None:
    assert_each_holds(run(chunks(SUBJECT, chance_names(1000, 1000), [exhaustive(5), chance(3)])))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_long_workloads_by_chance() -> None:
    tally = Tally()
    for name in chance_names(50_000, 20, 400):
        tally.add(
            explore(
                SUBJECT, workload_of(SUBJECT, name), Search("random(4)", (Mode.RANDOM,), samples=6)
            )
        )
    assert_each_holds(tally)
