"""What crashes leave of a CAPOSST1 store, on a short budget; the whole of it is marked long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.faults import Mode, RecordingDevice
from capstore.images.faults_states import sector_states
from capstore.images.segments import Space
from capstore.images.st1_recovery import Recovered
from capstore.images.st1_verify import verify
from capstore.tools.prove.canaries import Canary, caught
from capstore.tools.prove.explore import Search, Tally, chance, exhaustive
from capstore.tools.prove.recording import Disagreement, record
from capstore.tools.prove.running import (
    ace_names,
    chance_names,
    chunks,
    replay_id,
    run,
    scenario_names,
    workload_of,
)
from capstore.tools.prove.st1_canaries import CANARIES
from capstore.tools.prove.st1_model import Model
from capstore.tools.prove.st1_steps import key_of, to_model
from capstore.tools.prove.st1_subject import SUBJECT
from capstore.tools.prove.subject import Refused
from capstore.tools.prove.workload import Step, Workload, steps
from tests.proof.holding import assert_each_holds

# Every mode, few samples: the seconds that a run of all tests has for it.
SHORT = Search("short", tuple(Mode), subset_changes_max=3, samples=2, nested_max=0)
NESTED = Search("nested", (Mode.LINEAR, Mode.DROPS, Mode.RANDOM), samples=1, nested_max=1)
SEED = 30_000


def of(names: Sequence[str], search: Search) -> Tally:
    return run(chunks(SUBJECT, names, [search]), processes=1)


# Short --------------------------------------------------------------------------------------------


def test_single_operations() -> None:
    assert len(ace_names(SUBJECT, 1)) > 400
    assert_each_holds(of(ace_names(SUBJECT, 1)[::7], SHORT))


def test_some_pairs_of_operations() -> None:
    assert len(ace_names(SUBJECT, 2)) > 16_000
    assert_each_holds(of(ace_names(SUBJECT, 2)[::1200], SHORT))


@pytest.mark.parametrize("name", scenario_names(SUBJECT))
def test_scenarios(name: str) -> None:
    assert_each_holds(of([name], NESTED))


def test_crashes_behind_crashes() -> None:
    names = ["scenario-collected-while-compacted", *chance_names(SEED, 3, 15)]
    tally = of(names, NESTED)
    assert_each_holds(tally)
    phases = {phase for _, phase, _, _ in tally.shapes}
    assert phases >= {"compaction", "operation while compacted", "operation after a crash"}


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
    "superblock before the flush of its table": (Mode.DROPS,),
    "segments reused before the superblock is durable": (Mode.DROPS,),
    "data not verified in recovery": (Mode.DROPS,),
    "frames not verified in recovery": (Mode.TEARS,),
}


@pytest.mark.parametrize(
    "state",
    [
        "scenario-tombstone-and-compaction@epoch=1/first=1",
        "scenario-old-frames-behind-new@epoch=1/first=1@epoch=1/first=0",
    ],
)
def test_an_id_replays_its_state(state: str) -> None:
    image, _, verdict = replay_id(SUBJECT, state)
    assert verdict.outcome.holds
    assert image == replay_id(SUBJECT, state)[0]


def test_verdicts_are_those_of_examining_each_state_by_itself() -> None:
    examiner, workload = SUBJECT.examiner(), workload_of(SUBJECT, "scenario-shortened")
    base, model = SUBJECT.begin(workload)
    recording = record(SUBJECT, examiner.image(base), model, workload.parts[0])
    count = 0
    for state in list(sector_states(recording.log, recording.base, samples=3))[::7]:
        first, last = recording.promised(state.at), recording.latest(state.at)
        verdict = examiner.judged(state.image, recording.moments, first, last)
        assert verdict.outcome.holds
        raw, alone = bytes(state.image), SUBJECT.examiner()
        assert verdict == alone.judged(alone.image(raw), recording.moments, first, last)
        # And what a device of bytes shows, which nothing is kept of.
        shown = SUBJECT.seen(SUBJECT.opened(MemoryDevice(raw)))
        assert shown == recording.moments[verdict.moment].tree
        assert {f.where for f in verify(MemoryDevice(raw, read_only=True))} <= {"log"}
        count += 1
    assert count > 10
    assert examiner.pieces.recognised


def test_all_that_recovery_finds_tells_states_apart() -> None:
    """What an engine begins with is in the key under which it is recognised: if there is more of
    it one day, it belongs there."""
    assert set(Recovered.__dataclass_fields__) == {
        "superblock",
        "table",
        "changes",
        "counts",
        "version",
        "space",
        "replaced",
        "position",
        "log_segments",
        "log_bytes",
        "entry_bytes",
        "discarded",
    }
    device = RecordingDevice(MemoryDevice(SUBJECT.begin(workload_of(SUBJECT, "ace1-0"))[0]))
    space = SUBJECT.opened(device).space
    assert isinstance(space, Space)
    assert set(vars(space)) == {"geometry", "grows", "_device", "use", "live", "_free"}


def test_a_difference_without_a_crash_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload("wrong", (steps("put a 5 1; delete a"),))
    base, model = SUBJECT.begin(workload)
    examiner = SUBJECT.examiner()
    record(SUBJECT, examiner.image(base), model, workload.parts[0])
    monkeypatch.setattr(Model, "delete", lambda *_, **__: None)
    with pytest.raises(Disagreement, match="delete a"):
        record(SUBJECT, examiner.image(base), model, workload.parts[0])


def test_the_model() -> None:
    model = Model()
    for step in steps("hashed 20 1; bind n h-20-1; hashed 30 2; put a 5 3; create b 6 4"):
        assert not to_model(model, step)
    for text in ("create a 1 1", "stale a 1 1", "put h-20-1 9 9", "bind m h-9-9", "finish"):
        with pytest.raises(Refused):
            to_model(model, Step.parse(text))
    assert model.version == 5
    between = to_model(model, Step("collect"))
    assert sorted(model.objects) == sorted((b"a", b"b", key_of("h-20-1")))
    assert len(between) == 5
    for step in steps("batch -a # c 20 1 7 5; begin a; piece 3 6; piece 3 7; finish; unbind n"):
        to_model(model, step)
    assert [len(model.objects[key].value) for key in (b"a", b"b", b"c")] == [6, 6, 7]
    assert model.reborn().tree() == model.tree()


# Long ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("search", [exhaustive(8), chance(1)], ids=lambda search: search.name)
def test_all_workloads_of_length_1_and_scenarios(search: Search) -> None:
    names = [*scenario_names(SUBJECT), *ace_names(SUBJECT, 1)]
    assert_each_holds(run(chunks(SUBJECT, names, [search])))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_all_workloads_of_length_2() -> None:
    assert_each_holds(run(chunks(SUBJECT, ace_names(SUBJECT, 2), [exhaustive(5), chance(2)])))


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("operations", [25, 400])
def test_many_workloads_by_chance(operations: int) -> None:
    names = chance_names(1000, 25_000 // operations, operations)
    assert_each_holds(run(chunks(SUBJECT, names, [exhaustive(5), chance(3)])))
