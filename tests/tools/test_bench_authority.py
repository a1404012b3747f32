"""The authority cases of the bench, so small that figures mean nothing but that they work."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from capstore.schema.errors import Denied, NotFound, ReadOnly
from capstore.service.audit import DELAY_SECONDS
from capstore.service.remote import Directory
from capstore.service.uri import CapabilityURI
from capstore.tools.bench import (
    authority_crowd,
    authority_policies,
    command,
    parameters,
)
from capstore.tools.bench.authority_cases import CASES, AuthorityCase
from capstore.tools.bench.authority_policies import ALONE, STACKED, chosen, put_on
from capstore.tools.bench.authority_site import Process, serving
from capstore.tools.bench.cases import Ceiling, Goal, absences, present
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.report import document, image_table

KIB, MIB = 1 << 10, 1 << 20

TINY = parameters.Parameters(
    rounds=1,
    seconds=0.001,
    small_bytes=200,
    calls_in_flight=4,
    authority_slice=12,
    authority_traced_slice=12,
    authority_large_bytes=MIB + 5,
    authority_connections=9,
    authority_active=3,
    authority_flood=20,
    authority_latencies=5,
    authority_settle_seconds=0,
)
POLICIES = [f"authority-{wrapping.name}" for wrapping in ALONE]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)


def case_of(name: str) -> AuthorityCase:
    return next(case for case in CASES if case.name == name)


def run(tmp_path: Path, only: str) -> tuple[str, list[dict[str, Any]]]:
    """What is printed, and the cases of the report."""
    report = tmp_path / "report.json"
    arguments = ["--quick", "--only", only, "--json", str(report)]
    result = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert written["absent"] == {}
    return result.output, written["cases"]


def check(made: dict[str, Any], case: AuthorityCase) -> None:
    assert made["name"] == case.name
    assert set(made["figures"]) == {"capstore", case.rival}
    assert set(made["ratios"]) == {case.rival}
    assert (made["goal"] is None) == (case.goal is None)
    for spread in (*made["figures"].values(), *made["ratios"].values()):
        assert len(spread["rounds"]) == TINY.rounds
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]


# Cases -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_case_runs_beside_its_rival(tmp_path: Path) -> None:
    printed, cases = run(tmp_path, "authority-*")
    for made, case in zip(cases, CASES, strict=True):
        check(made, case)
        assert case.name in printed


def test_five_policies_beside_none(tmp_path: Path) -> None:
    printed, (made,) = run(tmp_path, "authority-stacked")
    check(made, case_of("authority-stacked"))
    for who in ("capstore", "unwrapped"):
        (name, spread), *_ = made["details"][who].items()
        assert name == "server_us"
        assert 10 < spread["median"] < 100_000
    assert "server_us" in printed


def test_a_crowd_and_what_it_takes(tmp_path: Path) -> None:
    printed, (made,) = run(tmp_path, "authority-crowd")
    check(made, case_of("authority-crowd"))
    (ceiling,) = made["ceilings"]
    assert (ceiling["measure"], ceiling["most"]) == ("idle_kib", 200)
    (kib,) = made["details"]["capstore"]["idle_kib"]["rounds"]
    assert ceiling["greatest"] == kib
    # Who is alone has nobody beside them.
    assert "idle_kib" not in made["details"]["alone"]
    assert "idle_kib" in printed


def test_beside_who_floods(tmp_path: Path) -> None:
    _, (made,) = run(tmp_path, "authority-flood")
    check(made, case_of("authority-flood"))
    beside, alone = made["details"]["capstore"], made["details"]["alone"]
    for number, ratio in enumerate(beside["p99_ratio"]["rounds"]):
        of_round = beside["p99_ms"]["rounds"][number] / alone["p99_ms"]["rounds"][number]
        assert ratio == pytest.approx(of_round)
    assert alone["p99_ratio"]["rounds"] == [1]
    assert made["ceilings"][0]["measure"] == "p99_ratio"


def test_goals_are_those_of_the_design() -> None:
    unwrapped, alone = Goal(0.8, rival="unwrapped"), Goal(0.8, rival="alone")
    expected = dict.fromkeys(POLICIES, unwrapped)
    expected |= {"authority-stacked": Goal(0.6, rival="unwrapped")}
    expected |= {"authority-crowd": alone, "authority-crowd-tls": alone}
    assert {case.name: case.goal for case in CASES if case.goal} == expected
    memory = (Ceiling("idle_kib", 200),)
    assert {case.name: case.ceilings for case in CASES if case.ceilings} == {
        "authority-crowd": memory,
        "authority-crowd-tls": memory,
        "authority-flood": (Ceiling("p99_ratio", 5),),
    }
    full = parameters.FULL
    assert (full.authority_connections, full.authority_active) == (1000, 50)


def test_who_may_not_have_so_many_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))
    absent = absences(CASES)
    assert set(absent) == {"authority-crowd", "authority-crowd-tls"}
    assert "1024 descriptors" in absent["authority-crowd"]
    assert len(present(CASES)) == len(CASES) - 2
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    assert absences(CASES) == {}


# Policies ----------------------------------------------------------------------------------------


def test_every_policy_is_measured_alone_and_five_stacked() -> None:
    put_on = [wrapping.policies() for wrapping in ALONE]
    assert all(len(policies) == 1 for policies in put_on)
    names = {name for (policy,) in put_on for name in policy.to_json()}
    # What a later policy adds has to be measured, too.
    assert names == set(authority_policies.Policy.__dataclass_fields__)
    stacked = STACKED.policies()
    assert len(stacked) == 5
    assert len({tuple(policy.to_json()) for policy in stacked}) == 5


def test_choices_are_of_all_calls_alike_and_of_different_files() -> None:
    calls = STACKED.calls
    choices = chosen(Random(1), calls, 192)
    assert choices == chosen(Random(1), calls, 192)
    assert [call for call, _ in choices[:3]] == list(calls)
    for call in calls:
        indices = [index for one, index in choices if one is call]
        assert len(indices) == len(set(indices)) == 64


def test_what_is_measured_is_under_the_policy_and_the_other_is_not() -> None:
    async def tried() -> None:
        async with serving(audit=True) as service, service.root() as root:
            await _check_meters(service.process, root)
            files = await authority_policies._files("unwrapped", root, STACKED, TINY)
            await root.write_file("file-000000", bytes(TINY.small_bytes))
            await authority_policies._read(files, 0)
            under = {one.name: await put_on(root, one.policies()) for one in ALONE}
            with pytest.raises(ReadOnly):
                await under["read-only"].write_file("file-000000", b"again")
            with pytest.raises(Denied):
                await under["append-only"].remove("file-000000")
            await under["dry-run"].remove("file-000000")
            await authority_policies._read(files, 0)
            await root.write_file(".git", b"")
            with pytest.raises(NotFound):
                await (await put_on(root, STACKED.policies())).lookup(".git")
            await under["traced"].lookup("file-000000")
            await asyncio.sleep(2 * DELAY_SECONDS)
            await root.write_file("file-000000", b"changed")
            with pytest.raises(BenchError, match="unwrapped answered 7 where 200"):
                await authority_policies._read(files, 0)
            # What is traced is audited, and nothing else.
            socket = CapabilityURI.parse(service.uris["unix"]).socket
            assert socket is not None
            lines = (Path(socket).parent / "audit").read_text().splitlines()
            assert [json.loads(line)["method"] for line in lines] == ["lookup"]
            under.clear()
            del files, root

    asyncio.run(tried())


async def _check_meters(process: Process, root: Directory) -> None:
    assert process.is_metered
    ran, memory = process.ran_us(), process.memory_kib()
    assert memory > 10 * KIB
    file = await root.write_file("f", bytes(MIB))
    for number in range(1, 20):
        await file.write(number * MIB, bytes(MIB))
    assert process.ran_us() > ran
    assert process.memory_kib() > memory + 18 * KIB


# What is measured --------------------------------------------------------------------------------


def test_the_99th_percentile() -> None:
    assert authority_crowd.p99([float(number) for number in range(100)]) == 99
    assert authority_crowd.p99([float(number) for number in range(1000)]) == 990


def test_details_of_one_alone_are_printed_without_the_other() -> None:
    case = case_of("authority-crowd")
    figures = {"capstore": Spread([9.0, 8]), "alone": Spread([10.0, 10])}
    details = {
        "capstore": {"idle_kib": Spread([250.0]), "server_us": Spread([20.0, 30])},
        "alone": {"server_us": Spread([10.0, 11])},
    }
    outcome = Outcome(case, figures, details)
    (made,) = document(TINY, {}, {}, [outcome])["cases"]
    assert made["goal"]["met"]
    assert not made["ceilings"][0]["met"]
    rows = list(zip(*(column.cells for column in image_table([outcome]).columns), strict=True))
    assert rows[1] == ("  idle_kib", "250", "-", "-", "-", "200 not met")
    assert rows[2][:4] == ("  server_us", "30", "alone", "11")
