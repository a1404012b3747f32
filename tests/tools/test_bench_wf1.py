"""The wf1 cases of the bench, so small that figures mean nothing but that they work."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from capstore.images.devices import FileDevice
from capstore.images.wf1 import ROOT
from capstore.images.wf1_open import open_wf1
from capstore.schema.errors import NotFound
from capstore.tools.bench import command, parameters, wf1_cases, wf1_images, wf1_mount
from capstore.tools.bench.cases import Ceiling, Goal, Limit, present
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.report import document, image_table
from capstore.tools.bench.wf1_cases import CASES, Wf1Case
from capstore.tools.bench.wf1_files import (
    Capstore,
    Engine,
    Files,
    Local,
    LocalFileOnly,
    Sqlite,
    maker,
)
from capstore.tools.bench.wf1_images import Site, directory_name
from capstore.tools.bench.wf1_taken import Batch, Taken

KIB, MIB = 1 << 10, 1 << 20

TINY = parameters.Parameters(
    rounds=1,
    wf1_files=70,
    wf1_callers=8,
    wf1_large_bytes=2 * MIB,
    wf1_overwritten_bytes=MIB,
    wf1_overwrites=70,
    wf1_mail_files=48,
    wf1_mail_rounds=32,
    wf1_mount_files=1100,
    wf1_mount_changes=100,
    wf1_pause_files=20,
    wf1_pause_bytes=MIB,
    wf1_alone_seconds=0.05,
)
KINDS = (Capstore, Engine, Local, LocalFileOnly, Sqlite)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)
    # Whatever is below, figures mean nothing here; nobody has to wait for other people's data.
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(wf1_cases, "filesystem_type", lambda path: "ext4")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("wf1"), TINY, lambda what: None)


def case_of(name: str) -> Wf1Case:
    return next(case for case in CASES if case.name == name)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, ["--quick", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.long
def test_every_case_runs_beside_its_rivals(tmp_path: Path) -> None:
    printed = run("--only", "wf1-*", "--json", str(tmp_path / "report.json"))

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["absent"] == {}
    assert report["parameters"]["wf1_files"] == TINY.wf1_files
    assert [case["name"] for case in report["cases"]] == [case.name for case in CASES]
    for case, made in zip(CASES, report["cases"], strict=True):
        assert set(made["figures"]) == set(case.contestants)
        assert set(made["ratios"]) == set(case.contestants) - {"capstore"}
        details = [spread for found in made["details"].values() for spread in found.values()]
        for spread in (*made["figures"].values(), *made["ratios"].values(), *details):
            assert len(spread["rounds"]) == TINY.rounds
            assert 0 <= spread["min"] <= spread["median"] <= spread["max"]
        assert all(spread["min"] > 0 for spread in made["figures"].values())
        assert [ceiling["measure"] for ceiling in made["ceilings"]] == [
            ceiling.measure for ceiling in case.ceilings
        ]
        assert case.name in printed
        assert (made["goal"] is None) == (case.goal is None)
    by_name = {made["name"]: made for made in report["cases"]}
    mount = by_name["wf1-mount"]["details"]["capstore"]
    assert mount["imports_mib"]["median"] <= mount["peak_mib"]["median"] < 300
    for pauses in by_name["wf1-pause"]["details"].values():
        percentiles = [pauses[name]["median"] for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
        assert percentiles == sorted(percentiles)
    assert "peak_mib" in printed


def test_goals_are_those_of_the_design() -> None:
    assert {case.name: case.goal for case in CASES if case.goal} == {
        "wf1-create": Goal(0.7, rival="local"),
        "wf1-create-many": Goal(3, rival="local"),
        "wf1-write-large": Goal(0.8, rival="local"),
        "wf1-read-large": Goal(0.8, rival="local"),
        "wf1-read-large-cold": Goal(0.8, rival="local"),
        "wf1-mount": Limit(2500),
        "wf1-mount-unclean": Limit(2500),
    }
    memory = (Ceiling("peak_mib", 300),)
    assert {case.name: case.ceilings for case in CASES if case.ceilings} == {
        "wf1-mount": memory,
        "wf1-mount-unclean": memory,
        "wf1-pause": (Ceiling("max_ms", 10),),
    }
    full = parameters.FULL
    assert (full.wf1_files, full.wf1_file_bytes, full.wf1_callers) == (10_000, 4096, 64)
    assert (full.wf1_large_bytes, full.wf1_mount_files) == (1 << 30, 1_000_000)


def test_in_memory_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wf1_cases, "filesystem_type", lambda path: "tmpfs")
    report = tmp_path / "report.json"
    printed = run("--only", "wf1-cr*", "--json", str(report))

    assert "wf1-create takes no part: temporary files are in memory (tmpfs)" in printed
    written = json.loads(report.read_text())
    assert set(written["absent"]) == {"wf1-create", "wf1-create-many"}
    assert written["cases"] == []
    assert present(CASES) == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_contestants_do_the_same(kind: Callable[[Path], Files], tmp_path: Path) -> None:
    with maker(kind)(tmp_path) as files:

        async def worker() -> int:
            await files.create("first", bytes(10))
            await files.put("second", bytes(20))
            await files.sync()
            await files.replace("first", "third", bytes(30))
            assert await files.read_and_append("second", bytes(5)) == 20
            await files.write_large(bytes(range(256)) * 16, 3)
            await files.overwrite(4096, b"here")
            await files.sync()
            assert await files.read_large(4096) == 3 * 4096
            return 10 * await files.read("second") + await files.read("third")

        assert files.run([worker()]) == 280
        assert _is_missing(files, "first")


def _is_missing(files: Files, name: str) -> bool:
    async def worker() -> int:
        return await files.read(name)

    try:
        return files.run([worker()]) == 0
    except (FileNotFoundError, NotFound):
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_many_callers_do_each_part_once(kind: Callable[[Path], Files], tmp_path: Path) -> None:
    with maker(kind)(tmp_path) as files:

        async def worker(number: int) -> int:
            for index in range(5):
                await files.create(f"file-{number}-{index}", bytes(100 + number))
            return 5

        assert files.run([worker(number) for number in range(12)]) == 60

        async def sizes() -> int:
            return sum([await files.read(f"file-{n}-{i}") for n in range(12) for i in range(5)])

        assert files.run([sizes()]) == 5 * sum(range(100, 112))


def test_who_blocks_never_waits(tmp_path: Path) -> None:
    with maker(Local)(tmp_path) as files, pytest.raises(BenchError, match="waits"):

        async def worker() -> int:
            await asyncio.sleep(0)
            return 1

        files.run([worker()])


def test_the_directory_is_flushed_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    for kind, expected in ((Local, ["one", "local"]), (LocalFileOnly, ["one"])):
        folder = tmp_path / ("local" if kind is Local else "file-only")
        folder.mkdir()
        with maker(kind)(folder) as files:

            async def worker(files: Files = files) -> int:
                await files.create("one", b"1")
                return 1

            files.run([worker()])
        assert flushed == expected
        flushed.clear()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    files = Sqlite(tmp_path)
    with closing(files):
        pragmas = [
            files._execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
        # 2 is FULL.
        assert pragmas == ["wal", 2]

        async def worker() -> int:
            await files.put("one", b"1")
            assert _count(tmp_path) == 0, "not before it is synced"
            await files.sync()
            await files.create("two", b"2")
            return _count(tmp_path)

        assert files.run([worker()]) == 2


def _count(folder: Path) -> int:
    """What another connection sees."""
    with closing(sqlite3.connect(folder / "files.sqlite")) as connection:
        return int(connection.execute("SELECT count(*) FROM files").fetchone()[0])


def test_mail_leaves_as_many_files_as_there_were(tmp_path: Path, site: Site) -> None:
    with case_of("wf1-varmail").contestants["local"](site) as batch:
        assert batch(Random(3), tmp_path).units == TINY.wf1_mail_rounds
        names = {path.name for path in (tmp_path / "files").iterdir()}
    assert len(names) == TINY.wf1_mail_files
    # Three a caller at first, each of two rounds has made one more.
    assert sum(name.endswith(("-000003", "-000004")) for name in names) > 16


@pytest.mark.parametrize("name", ["wf1-read", "wf1-read-large"])
def test_a_wrong_answer_is_no_figure(name: str, tmp_path: Path) -> None:
    site = Site(tmp_path, TINY, lambda what: None)
    for one, enter in case_of(name).contestants.items():
        with enter(site) as batch:
            site.parameters = replace(TINY, wf1_file_bytes=5, wf1_large_bytes=5 * MIB)
            scratch = tmp_path / one
            scratch.mkdir()
            with pytest.raises(BenchError, match=f"^{one} answered "):
                batch(Random(0), scratch)
            site.parameters = TINY


def test_images_were_left_as_they_say(site: Site) -> None:
    made = [site.clean, site.unclean, site.longest]
    counts = []
    for path in made:
        engine = open_wf1(FileDevice.open(path, writable=False), writable=False)
        with closing(engine):
            assert engine.state.child(ROOT, directory_name(TINY.wf1_mount_files - 1))
            counts.append(engine.state.counts.nodes)
    directories = 2
    assert counts[0] == TINY.wf1_mount_files + directories + 1
    assert counts[1] == counts[0] + 1 + TINY.wf1_mount_changes
    assert counts[2] > counts[1] + 5000
    assert site.making_seconds > 0


@pytest.mark.parametrize("end", [wf1_mount.CLOSE, wf1_mount.EXIT])
def test_an_opening_leaves_what_it_found(end: str, site: Site, tmp_path: Path) -> None:
    with wf1_images.opening(lambda site: site.unclean, end)(site) as batch:
        first, second = (batch(Random(0), tmp_path) for _ in range(2))
    assert first.units == second.units == 1
    assert first.seconds > 0
    assert first.details["image_mib"] == second.details["image_mib"]
    assert 1 < first.details["imports_mib"] <= first.details["peak_mib"] < 300


def test_a_volume_that_does_not_open_is_one_error(site: Site, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wf1"
    broken.write_bytes(bytes(MIB))
    enter = wf1_images.opening(lambda site: broken, wf1_mount.CLOSE)
    with enter(site) as batch, pytest.raises(BenchError, match="could not be opened"):
        batch(Random(0), tmp_path)


def test_rounds_are_taken_by_turns_with_the_same_choices(tmp_path: Path) -> None:
    turns: list[tuple[str, float]] = []

    def entered(name: str, seconds: float) -> wf1_images.Enter:
        def enter(site: Site) -> AbstractContextManager[Batch]:
            @contextmanager
            def context() -> Iterator[Batch]:
                def batch(rng: Random, scratch: Path) -> Taken:
                    assert not list(scratch.iterdir())
                    turns.append((name, rng.random()))
                    return Taken(10, seconds, {"max_ms": 5.0 * len(turns)})

                yield batch

            return context()

        return enter

    case = Wf1Case(
        name="wf1-x",
        what="",
        unit="x/s",
        contestants={"capstore": entered("capstore", 2), "other": entered("other", 1)},
        ceilings=(Ceiling("max_ms", 10),),
    )
    advanced: list[str] = []
    plan = replace(TINY, rounds=9)
    (outcome,) = wf1_cases.run(plan, [case], tmp_path, lambda what: None, advanced.append)

    assert [name for name, _ in turns] == ["capstore", "other"] * 3
    assert len(advanced) == 6
    choices = [choice for _, choice in turns]
    assert choices[::2] == choices[1::2]
    assert len(set(choices)) == 3
    assert outcome.figures["capstore"].rounds == [5, 5, 5]
    ratio = outcome.ratio_to("other")
    assert ratio is not None
    assert ratio.median == 0.5
    assert outcome.details["capstore"]["max_ms"].rounds == [5, 15, 25]


def test_ceilings_are_judged_by_the_greatest_of_all_rounds() -> None:
    case = case_of("wf1-pause")
    details = {"capstore": {"max_ms": Spread([3, 11, 4])}, "alone": {"max_ms": Spread([1, 2, 1])}}
    figures = {"capstore": Spread([10, 10, 10]), "alone": Spread([20, 20, 20])}
    outcome = Outcome(case, figures, details)

    (made,) = document(TINY, {}, {}, [outcome])["cases"]
    assert made["ceilings"] == [{"measure": "max_ms", "most": 10, "greatest": 11, "met": False}]
    assert made["details"]["alone"]["max_ms"]["median"] == 1
    rows = list(zip(*(column.cells for column in image_table([outcome]).columns), strict=True))
    assert rows[1] == ("  max_ms", "11", "alone", "2", "-", "10 not met")
    details["capstore"]["max_ms"] = Spread([3, 10, 4])
    assert document(TINY, {}, {}, [outcome])["cases"][0]["ceilings"][0]["met"]
