"""The image cases of the bench, on images so small that figures mean nothing but that they work."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.images.formats import open_image
from capstore.tools.bench import (
    command,
    image_cases,
    image_corpus,
    image_rivals,
    image_subject,
    parameters,
)
from capstore.tools.bench.cases import CASES as SERVICE_CASES
from capstore.tools.bench.cases import Goal, Limit, absences
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.image_cases import CASES, ImageCase
from capstore.tools.bench.image_corpus import Images, gz_name, path_of
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.report import document, image_table, tables

TINY = parameters.Parameters(
    rounds=2,
    seconds=0.001,
    tar_members=250,
    gz_bytes=16 * 65_536,
    gz_batch=20,
    fat_entries=30,
    fat_bytes=3 * 1024 * 1024 + 17,
    ro1_entries=10_250,
    lookup_batch=10,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"), TINY, lambda what: None)


def case_of(name: str) -> ImageCase:
    return next(case for case in CASES if case.name == name)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, ["--quick", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_case_runs_beside_its_rivals(tmp_path: Path) -> None:
    printed = run("--only", "image-*", "--json", str(tmp_path / "report.json"))

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["absent"] == {}
    assert report["parameters"]["gz_bytes"] == TINY.gz_bytes
    assert report["machine"]["pyfatfs"]
    assert [case["name"] for case in report["cases"]] == [case.name for case in CASES]
    for case, made in zip(CASES, report["cases"], strict=True):
        rivals = {rival.name for rival in case.rivals}
        assert set(made["figures"]) == {"capstore", *rivals}
        assert set(made["ratios"]) == rivals
        assert made["unit"].endswith("/s")
        for spread in (*made["figures"].values(), *made["ratios"].values()):
            assert len(spread["rounds"]) == case.rounds(TINY.rounds)
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert case.name in printed
        assert all(rival in printed for rival in rivals)
    assert "of the floor" not in printed


def test_goals_are_those_of_the_design() -> None:
    assert {case.name: case.goal for case in CASES} == {
        "image-tar-open": Goal(1, rival="tarfile"),
        "image-tar-reopen": Limit(50),
        "image-gz-read": Goal(1, rival="ratarmount"),
        "image-fat-list": Goal(100, rival="pyfatfs"),
        "image-fat-stream": Goal(4, rival="pyfatfs"),
        "image-ro1-open": Limit(20),
        "image-ro1-lookup": None,
    }
    full = parameters.FULL
    assert (full.tar_members, full.fat_entries, full.ro1_entries) == (100_000, 2000, 1_000_000)
    assert (full.gz_bytes, full.fat_bytes) == (1 << 30, 64 << 20)


def test_what_is_missing_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_rivals, "version_of", lambda name: None)
    monkeypatch.setattr(image_corpus.shutil, "which", lambda tool: None)  # type: ignore[attr-defined]
    report = tmp_path / "report.json"
    printed = run("--only", "image-[fg]*", "--json", str(report))

    assert "ratarmount takes no part: ratarmountcore is not installed (pip install" in printed
    assert "image-fat-list takes no part: mkfs.fat, mcopy, mmd not installed" in printed
    written = json.loads(report.read_text())
    assert set(written["absent"]) == {
        "ratarmount",
        "ratarmount-dense",
        "image-fat-list",
        "image-fat-stream",
    }
    (made,) = written["cases"]
    assert (made["name"], set(made["figures"]), made["goal"]) == (
        "image-gz-read",
        {"capstore"},
        None,
    )


def test_a_rival_of_a_case_that_is_not_run_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rivals, "version_of", lambda name: None)
    assert absences([case_of("image-tar-open"), case_of("image-ro1-lookup")]) == {}


def test_the_tar_has_as_many_members_as_were_asked_for(images: Images) -> None:
    with tarfile.open(images.tar) as archive:
        members = archive.getmembers()
    assert len(members) == TINY.tar_members
    files = {member.name for member in members if member.isfile()}
    rng = random.Random(0)
    assert {"/".join(images.tar_file(rng)) for _ in range(300)} <= files


def test_the_tar_gz_is_one_member_half_random(images: Images) -> None:
    raw = images.gz.read_bytes()
    with gzip.open(images.gz) as file:
        content = file.read()
    # The length in the last trailer is of everything, so there is one member.
    assert int.from_bytes(raw[-4:], "little") == len(content) > TINY.gz_bytes
    assert 0.6 < len(raw) / len(content) < 0.85
    assert images.gz_content(3) in content


def test_all_read_the_same_bytes_of_the_tar_gz(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def noted(images: Images, rng: random.Random) -> Iterator[tuple[int, int]]:
        for read in reads(images, rng):
            seen.append(read)
            yield read

    reads = image_subject.reads
    monkeypatch.setattr(image_subject, "reads", noted)
    monkeypatch.setattr(image_rivals, "reads", noted)
    case = case_of("image-gz-read")
    for enter in (case.subject, *(rival.enter for rival in case.rivals)):
        with enter(images) as batch:
            assert batch(random.Random(5)) == TINY.gz_batch
    assert seen == seen[: TINY.gz_batch] * 3
    with closing(open_image(images.gz, scheme="tar")) as tree:
        for number, offset in seen:
            buffer = bytearray(image_subject.READ_BYTES)
            node = tree.lookup(tree.root, gz_name(number)).stat.node_id
            tree.content(node).read_into(offset, memoryview(buffer))
            expected = images.gz_content(number)[offset : offset + len(buffer)]
            assert bytes(buffer) == expected


def test_sqlite_holds_the_same_tree(images: Images) -> None:
    case = case_of("image-ro1-lookup")
    with ExitStack() as stack:
        enters = (case.subject, *(rival.enter for rival in case.rivals))
        batches = [stack.enter_context(enter(images)) for enter in enters]
        assert [batch(random.Random(1)) for batch in batches] == [3 * TINY.lookup_batch] * 2
    with closing(open_image(images.ro1)) as tree:
        # All files, 103 directories above them in two, and the root.
        assert tree.usage().used_nodes == TINY.ro1_entries + 103 + 2 + 1
        node = tree.root
        for name in path_of(TINY.ro1_entries - 1):
            node = tree.lookup(node, name).stat.node_id


@pytest.mark.parametrize(
    ("name", "changed", "made"),
    [
        ("image-tar-open", {"tar_members": 249}, "tar"),
        ("image-fat-list", {"fat_entries": 29}, "fat_many"),
        ("image-fat-stream", {"fat_bytes": 1000}, "fat_large"),
    ],
)
def test_a_wrong_answer_is_no_figure(
    name: str, changed: dict[str, int], made: str, images: Images
) -> None:
    other = Images(images.folder, replace(TINY, **changed), lambda what: None)
    other.__dict__[made] = getattr(images, made)
    (wanted,) = changed.values()
    case = case_of(name)
    names = ("capstore", *(rival.name for rival in case.rivals))
    for one, enter in zip(names, (case.subject, *(r.enter for r in case.rivals)), strict=True):
        with enter(other) as batch, pytest.raises(BenchError) as caught:
            batch(random.Random(0))
        assert str(caught.value).startswith(f"{one} answered ")
        assert str(caught.value).endswith(f" where {wanted} was asked for")


def test_a_failing_tool_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_corpus, "_FAT_ROOM_BYTES", 0)
    images = Images(tmp_path, replace(TINY, fat_bytes=0), lambda what: None)
    with pytest.raises(BenchError, match=r"^mkfs\.fat failed: \S"):
        _ = images.fat_large


def test_rounds_are_taken_by_turns_and_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def entered(name: str, units: int) -> image_cases.Enter:
        @contextmanager
        def enter(images: Images) -> Iterator[image_subject.Batch]:
            def batch(rng: random.Random) -> int:
                turns.append(f"{name} {rng.random()}")
                return units

            yield batch
            turns.append(f"{name} left")

        return enter

    def measured(**fields: int) -> list[Outcome]:
        rivals = (image_cases.Rival("other", entered("other", 1)),)
        case = ImageCase(
            name="image-x", what="", unit="x/s", subject=entered("ours", 1), rivals=rivals, **fields
        )
        plan = replace(TINY, seconds=0.0)
        advanced: list[str] = []
        done = asyncio.run(image_cases.run(plan, [case], Path("unused"), print, advanced.append))
        assert len(advanced) == 2 * case.rounds(plan.rounds)
        return done

    (outcome,) = measured()
    assert " ".join(turn.split()[0] for turn in turns) == (
        "ours ours other other ours other other ours"
    )
    choices = [turn.split()[1] for turn in turns]
    assert choices[:2] == choices[2:4], "the same choices for all in a round"
    assert choices[4] == choices[5] != choices[0]
    assert {name: len(spread.rounds) for name, spread in outcome.figures.items()} == {
        "capstore": 2,
        "other": 2,
    }
    turns.clear()
    (outcome,) = measured(rounds_max=1)
    assert [turn.split()[0] for turn in turns[:2]] == ["ours", "other"]
    assert len(outcome.figures["other"].rounds) == 1


def test_absolute_goals_are_judged_by_the_median_time() -> None:
    # 40, 50 and 100 ms.
    outcome = Outcome(case_of("image-tar-reopen"), {"capstore": Spread([25, 20, 10])})
    goal = document(TINY, {}, {}, [outcome])["cases"][0]["goal"]
    assert goal == {"ms_max": 50, "ms": 50, "met": True}
    (row,) = zip(*(column.cells for column in image_table([outcome]).columns), strict=True)
    assert row == ("image-tar-reopen", "50 ms", "-", "-", "-", "50 ms met")
    slower = Outcome(outcome.case, {"capstore": Spread([25, 19, 10])})
    assert not document(TINY, {}, {}, [slower])["cases"][0]["goal"]["met"]


def test_ratio_goals_are_judged_by_their_rival() -> None:
    outcome = Outcome(
        case_of("image-fat-stream"), {"capstore": Spread([9e9, 3e9]), "pyfatfs": Spread([2e9, 1e9])}
    )
    goal = document(TINY, {}, {}, [outcome])["cases"][0]["goal"]
    assert goal == {
        "ratio": 4,
        "rival": "pyfatfs",
        "met": False,
        "milestone": None,
        "milestone_met": None,
    }
    (row,) = zip(*(column.cells for column in image_table([outcome]).columns), strict=True)
    assert row[2:] == ("pyfatfs", "1,431 MiB/s", "3.75 (3.00..4.50)", "4 not met")


def test_a_table_for_each_kind_of_case() -> None:
    service = Outcome(SERVICE_CASES[0], {"capstore": Spread([1.0]), "floor": Spread([1.0])})
    image = Outcome(case_of("image-ro1-lookup"), {"capstore": Spread([1.0])})
    assert [len(table.columns) for table in tables([service, image])] == [7, 6]
    assert [len(table.columns) for table in tables([image])] == [6]
    assert list(tables([])) == []
