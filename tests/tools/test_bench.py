"""The bench on a workload so small that its figures mean nothing but that it works."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.tools.bench import command, parameters, sftp
from capstore.tools.bench.cases import CASES, Batch
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.machine import filesystem_type
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.report import document, service_table

TINY = parameters.Parameters(
    rounds=2,
    seconds=0.001,
    small_files=20,
    small_batch=16,
    calls_in_flight=8,
    large_bytes=2 * 1024 * 1024,
    list_entries=1100,
    tree_files=12,
    tree_directories=3,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, ["--quick", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# Image, wf1, st1, overlay and authority cases have tests of their own.
@pytest.mark.parametrize("only", ["*-64k", pytest.param("?[!mftuv]*", marks=pytest.mark.long)])
def test_every_case_has_figures_and_ratios(only: str, tmp_path: Path) -> None:
    printed = run("--json", str(tmp_path / "report.json"), "--seed", "7", "--only", only)

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["format"] == 1
    assert report["parameters"]["seed"] == 7
    assert report["machine"]["cpus"] >= 1
    assert report["absent"] == {}
    expected = [case.name for case in CASES if fnmatch(case.name, only)]
    assert expected
    assert [case["name"] for case in report["cases"]] == expected
    for case in report["cases"]:
        assert case["name"] in printed
        assert set(case["figures"]) == {"capstore", "floor", "sftp"}
        assert set(case["ratios"]) == {"floor", "sftp"}
        for spread in (*case["figures"].values(), *case["ratios"].values()):
            assert len(spread["rounds"]) == TINY.rounds
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_memory_volume_and_no_sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "find_spec", lambda name: None)
    report = tmp_path / "report.json"
    printed = run("--volume", "memory:", "--only", "*-1m", "--rounds", "1", "--json", str(report))

    assert "sftp takes no part: asyncssh is not installed" in printed
    cases = json.loads(report.read_text())["cases"]
    assert [case["name"] for case in cases] == ["read-1m", "write-1m"]
    assert all(set(case["ratios"]) == {"floor"} for case in cases)


def test_wrong_usage() -> None:
    assert CliRunner().invoke(command.app, ["--only", "nothing"]).exit_code == 2
    assert CliRunner().invoke(command.app, ["--json", "/nowhere/report.json"]).exit_code == 2


def test_a_server_that_does_not_start_is_one_line() -> None:
    result = CliRunner().invoke(command.app, ["--quick", "--volume", "nothing:"])
    assert result.exit_code == 1
    assert "the capstore server did not start" in result.output


def test_a_short_answer_is_no_figure() -> None:
    class Named:
        name = "short"

    batch = Batch(Named(), TINY, random.Random(0), Path("unused"))  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="short answered 3 where 4 was asked for"):
        batch.check(3, 4)


def test_goals_are_judged_by_the_median_of_ratios_of_the_same_round() -> None:
    case = next(case for case in CASES if case.name == "open-read")
    # The machine was busy in the second round: figures fell, ratios did not.
    figures = {"capstore": Spread([60, 6, 70]), "floor": Spread([100, 10, 100])}
    outcome = Outcome(case, figures)

    goal = document(TINY, {}, {}, [outcome])["cases"][0]["goal"]
    verdict = {"met": False, "milestone": 0.5, "milestone_met": True}
    assert goal == {"ratio": 0.7, "rival": "floor", **verdict}
    (judged,) = service_table([outcome]).columns[4].cells
    assert judged == "0.7 not met, 0.5 met"
    faster = Outcome(case, {**figures, "capstore": Spread([71, 8, 70])})
    assert document(TINY, {}, {}, [faster])["cases"][0]["goal"]["met"]


def test_units_follow_from_parameters() -> None:
    assert replace(TINY, large_bytes=10**9).total_bytes > 10**9


def test_filesystem_type() -> None:
    assert filesystem_type(Path("/proc/self")) == "proc"
