"""The overlay cases of the bench, so small that figures mean nothing but that they work."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from capstore.backers.node import Volume
from capstore.tools.bench import (
    command,
    overlay_cases,
    overlay_copies,
    overlay_files,
    overlay_names,
    parameters,
)
from capstore.tools.bench import (
    slices as in_slices,
)
from capstore.tools.bench.cases import Goal, absences, present
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.overlay_cases import CASES, OverlayCase, SliceCase, TurnCase
from capstore.tools.bench.overlay_copies import Pair
from capstore.tools.bench.overlay_site import (
    LARGE,
    Item,
    Site,
    name_of,
    opened,
    overlay,
    small_files,
    spec_of,
)
from capstore.tools.bench.slices import Slices, middle

MIB = 1 << 20

TINY = parameters.Parameters(
    rounds=2,
    seconds=0.001,
    small_files=20,
    small_bytes=300,
    large_bytes=2 * MIB,
    overlay_entries=1100,
    overlay_copied_bytes=2 * MIB + 5,
    overlay_renamed_files=7,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "QUICK", TINY)
    # Figures mean nothing here; nobody has to wait for other people's data.
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(overlay_cases, "filesystem_type", lambda path: "ext4")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("overlay"), TINY, lambda what: None)


@pytest.fixture
def wrong(site: Site) -> Iterator[Site]:
    """A site whose layers are not what its parameters say."""
    made = site.parameters
    yield site
    site.parameters = made


def case_of(name: str) -> OverlayCase:
    return next(case for case in CASES if case.name == name)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, ["--quick", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def check_report(path: Path, cases: Sequence[OverlayCase], printed: str) -> None:
    report = json.loads(path.read_text())
    assert report["absent"] == {}
    assert [made["name"] for made in report["cases"]] == [case.name for case in cases]
    for case, made in zip(cases, report["cases"], strict=True):
        assert case.name in printed
        assert set(made["figures"]) == set(case.contestants)
        assert set(made["ratios"]) == set(case.contestants) - {"capstore"}
        assert (made["goal"] is None) == (case.goal is None)
        for spread in (*made["figures"].values(), *made["ratios"].values()):
            assert len(spread["rounds"]) == case.rounds(TINY.rounds)
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]


@pytest.mark.long
def test_every_case_runs_beside_its_rivals(tmp_path: Path) -> None:
    printed = run("--only", "overlay-*", "--json", str(tmp_path / "report.json"))
    check_report(tmp_path / "report.json", CASES, printed)
    assert "seed 1" in printed


def test_cases_of_both_kinds_are_printed_together(tmp_path: Path) -> None:
    printed = run("--only", "overlay-rename*", "--json", str(tmp_path / "report.json"))
    chosen = [case_of(f"overlay-rename{kind}") for kind in ("", "-redirect", "-copied")]
    check_report(tmp_path / "report.json", chosen, printed)


@pytest.mark.parametrize(
    "name",
    ["overlay-read-1m-lower", "overlay-open-read-upper", "overlay-lookup", "overlay-list"],
)
def test_cases_in_short_turns_have_figures(name: str, tmp_path: Path) -> None:
    advanced: list[str] = []
    case = case_of(name)
    (outcome,) = overlay_cases.run(TINY, [case], tmp_path, lambda what: None, advanced.append)
    assert list(outcome.figures) == list(case.contestants)
    assert all(spread.least > 0 for spread in outcome.figures.values())
    assert advanced == [name] * TINY.rounds * len(case.contestants)


def test_goals_are_those_of_the_design() -> None:
    # Of speed: what may take 1.15, 3 or 2.5 times as long is as much slower.
    reads, lookups, lists, copies = 1 / 1.15, 1 / 3, 1 / 2.5, 0.7
    goals = {case.name: case.goal for case in CASES if case.goal}
    layers = ("lower", "upper")
    expected = {
        f"overlay-{rpc}{what}-{layer}": Goal(reads, rival=layer)
        for rpc in ("", "rpc-")
        for what in ("read-4k", "read-64k", "read-1m", "open-read")
        for layer in layers
    }
    expected |= {
        f"overlay-lookup{kind}": Goal(lookups, rival="one lower")
        for kind in ("", "-again", "-nowhere")
    }
    expected |= {f"overlay-list{kind}": Goal(lists, rival="lower") for kind in ("", "-lowers")}
    expected |= {
        f"overlay-copyup-{kind}": Goal(copies, rival="copy") for kind in ("wf1", "memory", "dir")
    }
    assert goals == expected
    full = parameters.FULL
    assert (full.overlay_entries, full.overlay_copied_bytes) == (10_000, 1 << 30)
    assert full.overlay_renamed_files == 10_000


def test_in_memory_nothing_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_cases, "filesystem_type", lambda path: "tmpfs")
    absent = absences(CASES)
    assert set(absent) == {case.name for case in CASES if isinstance(case, TurnCase)}
    assert "tmpfs" in absent["overlay-copyup-dir"]
    kept = present(CASES)
    assert kept == [case for case in CASES if isinstance(case, SliceCase)]


# Slices ------------------------------------------------------------------------------------------


def test_the_middle_leaves_out_what_was_interrupted() -> None:
    assert middle([5]) == 5
    assert middle([1, 2, 3]) == 2
    assert middle([1, 2, 4, 1000]) == 3
    assert middle([0, 0, 3, 3, 4, 4, 900, 1000]) == 3.5


def test_slices_are_taken_by_turns_with_the_same_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    taken: list[tuple[str, Sequence[float]]] = []
    readied: list[str] = []

    def work(name: str, seconds: float) -> Callable[[Sequence[float]], Awaitable[int]]:
        async def one(choices: Sequence[float]) -> int:
            nonlocal clock
            clock += seconds
            taken.append((name, choices))
            return 10

        return one

    async def ready(choices: Sequence[float]) -> None:
        nonlocal clock
        clock += 100
        readied.append(taken[-1][0] if taken else "")

    monkeypatch.setattr(in_slices.time, "perf_counter", lambda: clock)
    slices = Slices(
        lambda rng: [rng.random()],
        {"capstore": work("capstore", 2), "upper": work("upper", 1)},
        {"upper": ready},
    )
    advanced: list[str] = []
    plan = replace(TINY, rounds=3, seconds=200)
    case = case_of("overlay-remove")
    outcome = asyncio.run(in_slices.measured(plan, case, slices, advanced.append))

    # What is made ready takes no part, but time.
    assert outcome.figures["capstore"].rounds == [5, 5, 5]
    assert outcome.figures["upper"].rounds == [10, 10, 10]
    assert len(advanced) == 6
    # One to warm up, and in each round as many as it takes to reach 400 seconds.
    assert len(readied) == 1 + 3 * 4
    names = [name for name, _ in taken]
    assert names[:10] == ["capstore", "upper"] * 2 + ["upper", "capstore"] + (
        ["capstore", "upper"] + ["upper", "capstore"]
    )
    choices = [made for _, made in taken]
    assert choices[::2] == choices[1::2]
    assert len({made[0] for made in choices}) == 13


# Layers ------------------------------------------------------------------------------------------


def test_layers_are_made_once_and_alike(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "a+b,c\\d"
    folder.mkdir()
    site = Site(folder, TINY, told.append)
    items = [*small_files("x", 3, 10), Item("long", MIB + 7)]

    async def contents(volume: Volume) -> dict[str, bytes]:
        files = await volume.root.sub("files")
        found = {}
        for entry in (await files.list()).entries:
            file = await files.open(entry.name)
            found[entry.name] = bytes(await file.read(0, MIB))
            await file.close()
        assert (await volume.root.lookup("long")).stat.size == MIB + 7
        return found

    async def check() -> None:
        specs = [
            spec_of("tar", site.archive("l", items)),
            spec_of("wf1", await site.image("l", items)),
            spec_of("dir", await site.directory("l", items)),
        ]
        assert [await site.image("l", []), site.archive("l", [])] == [
            folder / "l.wf1",
            folder / "l.tar",
        ]
        expected = {name_of("x", index): site.block[:10] for index in range(3)}
        for spec in specs:
            async with opened(spec) as volume:
                assert await contents(volume) == expected
        async with overlay(specs[1], specs[0]) as both:
            assert await contents(both) == expected

    asyncio.run(check())
    assert told == ["making l.tar", "making l.wf1", "making l"]


# What is asked for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("overlay-read-64k-upper", {"large_bytes": 4 * MIB}),
        ("overlay-open-read-lower", {"small_bytes": 400}),
        ("overlay-list", {"overlay_entries": 1000}),
        ("overlay-list-lowers", {"overlay_entries": 1000}),
    ],
)
def test_a_wrong_answer_is_no_figure(name: str, change: dict[str, int], wrong: Site) -> None:
    case = case_of(name)
    assert isinstance(case, SliceCase)

    async def work() -> None:
        async with case.enter(wrong):
            pass
        wrong.parameters = replace(TINY, **change)  # type: ignore[arg-type]
        async with case.enter(wrong) as slices:
            await slices.works["capstore"](slices.choose(Random(0)))

    with pytest.raises(BenchError, match=r"^capstore answered "):
        asyncio.run(work())


def test_names_are_looked_up_in_all_layers(site: Site) -> None:
    async def work() -> None:
        async with overlay_names.looking_up(overlay_names.absent_names)(site):
            pass

    with pytest.raises(BenchError, match=r"^capstore answered 0"):
        asyncio.run(work())


def test_new_names_are_all_there_are_before_one_comes_again(site: Site) -> None:
    names = overlay_names.new_names(site)
    first = [next(names) for _ in range(TINY.overlay_entries)]
    assert len(set(first)) == TINY.overlay_entries
    assert first != sorted(first)
    assert [next(names) for _ in range(TINY.overlay_entries)] == first
    # More than an overlay remembers.
    assert min(parameters.FULL.overlay_entries, 10_000) > 2 * 4096
    nowhere = overlay_names.absent_names(site)
    assert len({next(nowhere) for _ in range(5000)}) == 5000


@pytest.mark.parametrize(
    ("change", "before", "left"),
    [
        (overlay_files.create, overlay_files.absent, {"x"}),
        (overlay_files.write, overlay_files.present, {"x"}),
        (overlay_files.remove, overlay_files.present, set()),
        (overlay_files.rename, overlay_files.present, {"renamed-x"}),
    ],
)
def test_changes_can_be_made_again(
    change: overlay_files.Change, before: overlay_files.Change, left: set[str]
) -> None:
    async def work() -> None:
        async with opened("memory:") as volume:
            for _ in range(2):
                await before(volume.root, "x", b"old")
                await change(volume.root, "x", b"new")
                listed = (await volume.root.list()).entries
                assert {entry.name for entry in listed} == left

    asyncio.run(work())


@pytest.mark.parametrize(
    "between",
    [
        overlay_copies.archive_to_image,
        pytest.param(overlay_copies.memory_to_memory, marks=pytest.mark.long),
        pytest.param(overlay_copies.directory_to_directory, marks=pytest.mark.long),
    ],
)
def test_copying_up_leaves_what_a_plain_copy_leaves(
    between: overlay_copies.Between, site: Site, tmp_path: Path
) -> None:
    left: list[bytes] = []

    @asynccontextmanager
    async def looked_at(site: Site, items: list[Item], folder: Path):  # type: ignore[no-untyped-def]
        async with between(site, items, folder) as pair:
            yield pair
            left.append(await content(pair))

    async def content(pair: Pair) -> bytes:
        file = await pair.upper.root.open(LARGE)
        found = [bytes(await file.read(at, MIB)) for at in range(0, await file.size(), MIB)]
        await file.close()
        return b"".join(found)

    for name, batch in overlay_copies.batches(
        site, overlay_copies.copying_large(looked_at)
    ).items():
        folder = tmp_path / name
        folder.mkdir()
        taken = batch(Random(0), folder)
        assert taken.units == TINY.overlay_copied_bytes
        assert taken.seconds > 0
    assert left[0] == left[1]
    assert len(left[0]) == TINY.overlay_copied_bytes
    assert left[0][0] == 0
    assert left[0][1:MIB].count(0) < MIB // 100
