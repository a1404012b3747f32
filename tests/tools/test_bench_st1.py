"""The st1 cases of the bench, so small that figures mean nothing but that they work."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from capstore.images import st1_upkeep
from capstore.images.devices import FileDevice
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import open_st1
from capstore.tools.bench import command, parameters, st1_cases, st1_rivals, st1_site, st1_ycsb
from capstore.tools.bench.cases import Ceiling, Floor, Goal, Limit, absences, present
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.measure import Outcome, Spread
from capstore.tools.bench.report import document, image_table
from capstore.tools.bench.st1_cases import CASES, St1Case
from capstore.tools.bench.st1_remote import Remote
from capstore.tools.bench.st1_rivals import Lmdb, Sqlite, Zodb
from capstore.tools.bench.st1_site import Site
from capstore.tools.bench.st1_stores import Capstore, Maker, Objects, opened
from capstore.tools.bench.st1_workloads import batches, key_of, pairs_of
from capstore.tools.bench.st1_ycsb import INSERT, MIXES, READ, SCAN, Zipfian, operations

KIB, MIB = 1 << 10, 1 << 20

TINY = parameters.Parameters(
    rounds=1,
    st1_entries=60,
    st1_large_value_bytes=4 * KIB,
    st1_batch=25,
    st1_reads=40,
    st1_syncs=4,
    st1_callers=4,
    st1_puts=12,
    st1_ycsb_records=50,
    st1_ycsb_operations=40,
    st1_ycsb_callers=4,
    st1_scan_records_max=10,
    st1_open_entries=1500,
    st1_compact_bytes=16 * MIB,
    st1_alone_seconds=0.05,
)
MAKERS: tuple[Maker, ...] = (Capstore, Remote, Sqlite, Lmdb, Zodb)
ALL = {"capstore", "rpc", "sqlite", "lmdb", "zodb"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)
    # Whatever is below, figures mean nothing here; nobody has to wait for other people's data.
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(st1_cases, "filesystem_type", lambda path: "ext4")
    # A table is due when little has changed.
    monkeypatch.setattr(st1_upkeep, "LOG_BYTES_MIN", 256 * KIB)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("st1"), TINY, lambda what: None)


def case_of(name: str) -> St1Case:
    return next(case for case in CASES if case.name == name)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, ["--quick", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# Cases -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_case_runs_beside_its_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process for each would take most of the time; one case is run over the wire below.
    local = [
        replace(case, contestants={n: e for n, e in case.contestants.items() if n != "rpc"})
        for case in CASES
    ]
    monkeypatch.setattr(st1_cases, "CASES", local)
    printed = run("--only", "st1-*", "--json", str(tmp_path / "report.json"))

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["absent"] == {}
    assert report["parameters"]["st1_entries"] == TINY.st1_entries
    assert [case["name"] for case in report["cases"]] == [case.name for case in CASES]
    for case, made in zip(local, report["cases"], strict=True):
        _check(case, made)
        assert case.name in printed
    by_name = {made["name"]: made for made in report["cases"]}
    opening = by_name["st1-open"]["details"]["capstore"]
    assert opening["imports_mib"]["median"] <= opening["peak_mib"]["median"] < 300
    for times in by_name["st1-compact"]["details"].values():
        for what in ("get", "put"):
            names = [f"{what}_{one}_ms" for one in ("p50", "p99", "max")]
            percentiles = [times[name]["median"] for name in names]
            assert percentiles == sorted(percentiles)
        assert times["space_ratio"]["median"] > 1
        assert times["puts"]["median"] >= 1
    assert "space_ratio" in printed


def _check(case: St1Case, made: dict[str, Any]) -> None:
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
    assert (made["goal"] is None) == (case.goal is None)
    assert made["floors"] == []


def test_over_the_wire_it_is_asked_for_less(tmp_path: Path) -> None:
    printed = run("--only", "st1-put-many", "--json", str(tmp_path / "report.json"))

    (made,) = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert set(made["figures"]) == ALL
    (floor,) = made["floors"]
    assert (floor["contestant"], floor["ratio"], floor["rival"]) == ("rpc", 1, "sqlite")
    figures = {name: spread["median"] for name, spread in made["figures"].items()}
    assert floor["median"] == pytest.approx(figures["rpc"] / figures["sqlite"])
    assert floor["met"] == (floor["median"] >= 1)
    assert "1 of sqlite" in printed


def test_goals_are_those_of_the_design() -> None:
    many, gets = Goal(3, rival="sqlite"), Goal(1.5, rival="sqlite")
    assert {case.name: case.goal for case in CASES if case.goal} == {
        "st1-put-many": many,
        "st1-put-many-4k": many,
        "st1-readrandom": gets,
        "st1-readrandom-4k": gets,
        "st1-open": Limit(1500),
        "st1-open-longest": Limit(1500),
    }
    remote = (Floor("rpc", 1, "sqlite"),)
    assert {case.name: case.floors for case in CASES if case.floors} == {
        "st1-put-many": remote,
        "st1-put-many-4k": remote,
    }
    assert {case.name: case.ceilings for case in CASES if case.ceilings} == {
        "st1-compact": (
            Ceiling("get_p99_ms", 10),
            Ceiling("put_max_ms", 50),
            Ceiling("space_ratio", 1.1),
        ),
    }
    full = parameters.FULL
    assert (full.st1_entries, full.st1_value_bytes, full.st1_callers) == (100_000, 100, 64)
    assert (full.st1_large_value_bytes, full.st1_open_entries) == (4096, 1_000_000)
    assert full.st1_compact_bytes == 1 << 30
    for case in CASES:
        if not case.name.startswith(("st1-open", "st1-compact")):
            assert set(case.contestants) == ALL


def test_a_floor_is_judged_by_the_median() -> None:
    case = case_of("st1-put-many")
    figures = {"capstore": [9.0] * 3, "rpc": [2.0, 5, 6], "sqlite": [4.0] * 3}
    outcome = Outcome(case, {name: Spread(rounds) for name, rounds in figures.items()})
    (made,) = document(TINY, {}, {}, [outcome])["cases"]
    (floor,) = made["floors"]
    assert (floor["median"], floor["met"]) == (1.25, True)
    rows = list(zip(*(column.cells for column in image_table([outcome]).columns), strict=True))
    assert [row[5] for row in rows] == ["3 not met, 1 of sqlite met (1.25)", ""]

    figures["rpc"] = [2, 3.9, 6]
    outcome = Outcome(case, {name: Spread(rounds) for name, rounds in figures.items()})
    assert not document(TINY, {}, {}, [outcome])["cases"][0]["floors"][0]["met"]
    del figures["rpc"]
    outcome = Outcome(case, {name: Spread(rounds) for name, rounds in figures.items()})
    assert document(TINY, {}, {}, [outcome])["cases"][0]["floors"] == []


def test_in_memory_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st1_cases, "filesystem_type", lambda path: "tmpfs")
    report = tmp_path / "report.json"
    printed = run("--only", "st1-fills*", "--json", str(report))

    assert "st1-fillseq takes no part: temporary files are in memory (tmpfs)" in printed
    written = json.loads(report.read_text())
    assert set(written["absent"]) == {
        "st1-fillseq",
        "st1-fillseq-4k",
        "st1-fillsync",
        "st1-fillsync-4k",
    }
    assert written["cases"] == []
    assert present(CASES) == []


def test_who_is_not_installed_takes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {"lmdb": st1_rivals.missing("no-such-thing"), "rpc": lambda: "not today"}
    monkeypatch.setattr(st1_rivals, "ABSENT", lacking)
    report = tmp_path / "report.json"
    printed = run("--only", "st1-fillsync", "--json", str(report))

    assert "lmdb takes no part: no-such-thing is not installed" in printed
    written = json.loads(report.read_text())
    assert set(written["absent"]) == {"lmdb", "rpc"}
    assert set(written["cases"][0]["figures"]) == {"capstore", "sqlite", "zodb"}
    # Whom no case asks for is not missed.
    assert absences([case_of("st1-open")]) == {}


# Contestants -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.name)
def objects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Objects]:
    with opened(request.param, tmp_path_factory.mktemp("objects")) as made:
        yield made


def test_all_contestants_do_the_same(objects: Objects) -> None:
    async def worker() -> int:
        await objects.put(b"same-1", bytes(10))
        await objects.put_all([(b"same-3", bytes(30)), (b"same-2", bytes(4000)), (b"t", bytes(9))])
        assert await objects.get(b"same-2") == 4000
        assert await objects.get(b"same-2.") == 0
        assert await objects.scan(b"same-2", 2) == 4030
        assert await objects.scan(b"same-21", 1) == 30
        assert await objects.scan(b"u", 5) == 0
        assert await objects.modify(b"same-2", bytes(5)) == 4000
        assert await objects.modify(b"same-2", bytes(600)) == 5
        await objects.put(b"same-1", bytes(11))
        assert await objects.scan(b"same-1", 2) == 611
        await objects.delete_all([b"same-1", b"t"])
        assert await objects.get(b"same-1") == await objects.get(b"t") == 0
        return await objects.get(b"same-3")

    assert objects.run([worker()]) == 30


def test_many_callers_do_each_part_once(objects: Objects) -> None:
    async def worker(number: int) -> int:
        for index in range(3):
            await objects.put(b"many-%d-%d" % (number, index), bytes(100 + number))
        return 3

    assert objects.run([worker(number) for number in range(6)]) == 18

    async def sizes() -> int:
        return sum([await objects.get(b"many-%d-%d" % (n, i)) for n in range(6) for i in range(3)])

    assert objects.run([sizes()]) == 3 * sum(range(100, 106))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.name)
def test_what_was_put_is_there_later(make: Maker, tmp_path: Path) -> None:
    async def get(objects: Objects) -> int:
        return await objects.get(b"one") + await objects.get(b"two")

    async def put(objects: Objects) -> int:
        await objects.put_all([(b"one", bytes(1)), (b"two", bytes(2000))])
        return 2

    with opened(make, tmp_path) as objects:
        objects.run([put(objects)])
    with opened(make, tmp_path) as objects:
        assert objects.run([get(objects)]) == 2001


def test_modifying_loses_no_update_of_anybody(objects: Objects) -> None:
    """Each reads what the one before it has put, if nobody comes in between."""

    async def begin() -> int:
        await objects.put(b"counter", b"1")
        return 1

    async def worker(size: int) -> int:
        return await objects.modify(b"counter", bytes(size))

    async def end() -> int:
        return await objects.get(b"counter")

    objects.run([begin()])
    sizes = range(2, 8)
    # Longer than what was read is what nobody promised: all are of one length there.
    got = objects.run([worker(100 + size) for size in sizes])
    last = objects.run([end()])
    assert got + last == 1 + sum(100 + size for size in sizes)


def test_sqlite_is_durable(tmp_path: Path) -> None:
    with opened(Sqlite, tmp_path) as objects:
        assert isinstance(objects, Sqlite)
        pragmas = [
            objects._execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
        # 2 is FULL.
        assert pragmas == ["wal", 2]

        async def worker() -> int:
            await objects.put(b"one", b"1")
            await objects.put_all([(b"two", b"2"), (b"three", b"3")])
            with closing(sqlite3.connect(tmp_path / "objects.sqlite")) as connection:
                return int(connection.execute("SELECT count(*) FROM objects").fetchone()[0])

        assert objects.run([worker()]) == 3


@pytest.mark.parametrize("make", [Lmdb, Zodb], ids=lambda make: make.name)
def test_every_change_is_flushed(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(make, tmp_path) as objects:
        if isinstance(objects, Lmdb):
            flags = objects._environment.flags()
            assert flags["sync"]
            assert flags["metasync"]
            assert not flags["writemap"]
            return
        flushed: list[int] = []
        storage = import_module("ZODB.FileStorage.FileStorage")
        monkeypatch.setattr(storage, "fsync", flushed.append)

        async def worker() -> int:
            await objects.put(b"one", b"1")
            await objects.put_all([(b"two", b"2"), (b"three", b"3")])
            return 1

        objects.run([worker()])
        assert len(flushed) == 2


def test_a_service_that_does_not_start_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "objects.st1").write_bytes(bytes(MIB))
    with pytest.raises(BenchError, match="did not start"):
        Remote(tmp_path)


# Workloads ---------------------------------------------------------------------------------------


def test_batches_are_messages(tmp_path: Path) -> None:
    pairs = pairs_of(range(1000), Random(1), 4 * KIB)
    assert len({value for _, value in pairs}) > 250
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    made = list(batches(pairs, parameters.FULL, 4 * KIB))
    assert max(len(batch) * (16 + 4 * KIB) for batch in made) <= MIB
    assert [pair for batch in made for pair in batch] == pairs
    short = pairs_of(range(2000), Random(1), 100)
    assert [len(batch) for batch in batches(short, parameters.FULL, 100)] == [1000, 1000]


@pytest.mark.parametrize("name", ["st1-readrandom", "st1-readhot", "st1-ycsb-c", "st1-ycsb-e"])
def test_a_wrong_answer_is_no_figure(name: str, tmp_path: Path) -> None:
    site = Site(tmp_path, TINY, lambda what: None)
    contestants = case_of(name).contestants
    for one in ("capstore", "sqlite"):
        with contestants[one](site) as batch:
            site.parameters = replace(TINY, st1_value_bytes=5, st1_ycsb_record_bytes=999)
            scratch = tmp_path / f"scratch-{one}"
            scratch.mkdir()
            with pytest.raises(BenchError, match=f"^{one} answered "):
                batch(Random(0), scratch)
            site.parameters = TINY


def test_who_changes_a_store_has_a_copy(tmp_path: Path) -> None:
    site = Site(tmp_path, TINY, lambda what: None)
    with case_of("st1-deleterandom").contestants["capstore"](site) as batch:
        for number in range(2):
            scratch = tmp_path / f"scratch-{number}"
            scratch.mkdir()
            assert batch(Random(number), scratch).units == TINY.st1_entries
    assert _engine_counts(tmp_path / "capstore-entries" / "objects.st1") == TINY.st1_entries


def _engine_counts(path: Path) -> int:
    device = FileDevice.open(path, writable=False)
    with closing(open_st1(device, writable=False)) as engine:
        return engine.counts.entries


def test_the_skew_is_that_of_zipf() -> None:
    counts = Counter(one.next() for one in [Zipfian(1000, Random(1))] for _ in range(20_000))
    assert set(counts) <= set(range(1000))
    total = sum(rank**-0.99 for rank in range(1, 1001))
    # It is exact for the first two, and not far from it behind them.
    for rank, off in ((1, 0.05), (2, 0.08), (3, 0.25), (10, 0.25)):
        assert counts[rank - 1] / 20_000 == pytest.approx(rank**-0.99 / total, rel=off)
    # And it has a long tail.
    assert sum(counts[rank] for rank in range(100, 1000)) > 4000


def test_operations_are_mixed_as_they_say() -> None:
    plan = replace(TINY, st1_ycsb_operations=8000, st1_ycsb_records=500)
    for mix in MIXES.values():
        made = operations(mix, plan, 1, Random(5))
        assert made == operations(mix, plan, 1, Random(5))
        assert len(made) == 2000
        counts = Counter(operation.kind for operation in made)
        for kind, share in mix.shares.items():
            assert counts[kind] / 2000 == pytest.approx(share, abs=0.03)


def test_the_latest_is_what_the_caller_has_inserted() -> None:
    plan = replace(TINY, st1_ycsb_operations=8000, st1_ycsb_records=500)
    there = {st1_ycsb.key_of(number) for number in range(500)}
    inserted: list[bytes] = []
    fresh = 0
    for operation in operations(MIXES["d"], plan, 2, Random(5)):
        if operation.kind == INSERT:
            assert operation.key not in there
            inserted.append(operation.key)
        else:
            assert operation.kind == READ
            assert operation.key in there or operation.key in inserted
            fresh += operation.key in inserted[-10:]
    assert fresh > 600
    others = operations(MIXES["d"], plan, 3, Random(5))
    assert not {one.key for one in others if one.kind == INSERT} & set(inserted)
    lengths = {one.length for one in operations(MIXES["e"], plan, 0, Random(5)) if one.kind == SCAN}
    assert lengths == set(range(1, TINY.st1_scan_records_max + 1))


# Opening and compacting --------------------------------------------------------------------------


def test_images_were_left_as_they_say(site: Site) -> None:
    assert _engine_counts(site.clean) == TINY.st1_open_entries
    with closing(_engine(site.longest)) as engine:
        changes = engine.counts.entries - TINY.st1_open_entries
        assert changes > 1000
        assert engine.get(key_of(TINY.st1_open_entries + changes - 1))
        # They are in the log: no table has come since.
        assert len(engine.view.newer) == engine.counts.entries - engine.view.table.entries
        assert len(engine.view.newer) >= changes


def _engine(path: Path) -> St1Engine:
    return open_st1(FileDevice.open(path, writable=False), writable=False)


def test_an_opening_leaves_what_it_found(site: Site, tmp_path: Path) -> None:
    for enter in (st1_site.OPEN_CLEAN, st1_site.OPEN_LONGEST):
        with enter(site) as batch:
            first, second = (batch(Random(0), tmp_path) for _ in range(2))
        assert first.units == second.units == 1
        assert first.seconds > 0
        assert first.details["image_mib"] == second.details["image_mib"]
        assert 1 < first.details["imports_mib"] <= first.details["peak_mib"] < 300


def test_a_store_that_does_not_open_is_one_error(site: Site, tmp_path: Path) -> None:
    broken = tmp_path / "broken.st1"
    broken.write_bytes(bytes(MIB))
    enter = st1_site.opening(lambda site: broken, "close")
    with enter(site) as batch, pytest.raises(BenchError, match="could not be opened"):
        batch(Random(0), tmp_path)


def test_nearly_half_is_dead(site: Site) -> None:
    folder, live = site.half_dead
    count = TINY.st1_compact_bytes // st1_site.COMPACTED_VALUE_BYTES
    assert 0.5 * count < len(live) < 0.6 * count
    with closing(_engine(folder / "objects.st1")) as engine:
        assert engine.counts.entries == len(live)
        assert len(engine.get(key_of(live[0]))) == st1_site.COMPACTED_VALUE_BYTES
        # It has not been compacted.
        assert engine.upkeep.dead_bytes() > 0.3 * TINY.st1_compact_bytes
