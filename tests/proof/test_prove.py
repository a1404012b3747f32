"""``capstore prove``, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.tools.prove import command, proof
from capstore.tools.prove.explore import LINEAR, Failure, Tally
from capstore.tools.prove.proof import Parameters, Proof
from capstore.tools.prove.report import as_html, as_json, lines
from capstore.tools.prove.wf1_canaries import CANARIES
from capstore.tools.prove.wf1_subject import Wf1Subject


def made() -> Proof:
    tally = Tally(workloads=3, repeated=1, recognised=2)
    tally.shapes["ace1", "checkpoint", "drops", "as promised"] = 5
    tally.shapes["random", "recovery", "random", "further on"] = 2
    return Proof(
        Parameters(7, 25, 1, 100, (LINEAR,)),
        tally,
        [("no <flush>", Failure("ace1-0@epoch=1/first=0", "lost", "", "create b"))],
        ["power cuts: only root mounts filesystems"],
        {"crashes": 1.5},
    )


def test_the_report() -> None:
    report = made()
    assert report.holds
    data = json.loads(json.dumps(as_json(report)))
    assert (data["states"], data["failed"], data["holds"]) == (7, 0, True)
    assert data["parameters"]["searches"] == ["linear"]
    assert data["canaries"] == [
        {"name": "no <flush>", "caught": True, "by": "ace1-0@epoch=1/first=0"}
    ]
    page = as_html(report)
    assert "no &lt;flush&gt;" in page
    assert "http" not in page
    assert list(lines(report))[-1] == (
        "7 states of 3 workloads in 2 s (1 met before, 2 recognised by what is read), lost: 0"
    )


def test_a_report_of_losses() -> None:
    report = made()
    report.tally.fail(Failure("ace1-1@epoch=0/first=0", "lost", "moment <0>", "create b"))
    assert not report.holds
    assert "moment &lt;0&gt;" in as_html(report)
    assert any("ace1-1@epoch=0/first=0" in line for line in lines(report))
    unnoticed = made()
    unnoticed.canaries.append(("another", None))
    assert not unnoticed.holds


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What takes long is tested by itself.
    for part in ("_canaries", "_devices", "_damage", "_processes", "_power"):
        monkeypatch.setattr(proof, part, lambda proof, said: None)
    monkeypatch.setattr(proof, "scenario_names", lambda subject: ["scenario-exchange-twice"])
    monkeypatch.setattr(proof, "ace_names", lambda subject, length: ["ace1-0", "ace1-1"])
    files = [tmp_path / "report.json", tmp_path / "report.html"]
    arguments = ["wf1", "--seed", "3", "--states", "1", "--mode", "linear", "--processes", "1"]
    for file in files:
        arguments += ["--report", str(file)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert "seed 3\n" in result.stdout
    assert "lost: 0\n" in result.stdout
    data = json.loads(files[0].read_text())
    assert data["states"] > 0
    assert files[1].read_text().startswith("<!doctype html>")


def test_a_canary_is_in_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wf1Subject, "canaries", lambda subject: CANARIES[:1])
    found = Proof(Parameters(1, 5, 1, 0, (LINEAR,)))
    proof._canaries(found, lambda tally: None)
    assert [name for name, failure in found.canaries if failure] == [CANARIES[0].name]


def test_replaying(tmp_path: Path) -> None:
    image = tmp_path / "image"
    state = "ace1-0@epoch=1/first=1"
    result = CliRunner().invoke(command.app, ["wf1", "--replay", state, "--keep", str(image)])
    assert result.exit_code == 0, result.output
    assert "outcome   further on" in result.stdout
    assert image.stat().st_size > 1 << 19


@pytest.mark.parametrize(
    "arguments",
    [["fat"], ["wf1", "--length", "3"], ["wf1", "--mode", "all"], ["wf1", "--ops", "0"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(command.app, arguments).exit_code == 2
