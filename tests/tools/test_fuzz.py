"""The fuzzers on a short budget, and that what they begin with is good."""

from __future__ import annotations

import random
import secrets
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.images.devices import MemoryDevice
from capstore.images.formats import open_image
from capstore.images.partitions import partitions
from capstore.tools.fuzz import command, corpus, disks, running
from capstore.tools.fuzz.case import Subject, originals_of, outcome_of, subject_of
from capstore.tools.fuzz.check import Truth, Walk
from capstore.tools.fuzz.draft import MUTATORS, Draft, Original
from capstore.tools.fuzz.formats import FORMATS
from capstore.tools.fuzz.running import Budget, Report, Worker, fuzz
from capstore.tools.fuzz.worker import Outcome

SEED = 20_000
RUNS = 80
SECONDS = 0.2


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.mark.parametrize("name", FORMATS)
def test_a_short_budget(worker: Worker, name: str) -> None:
    for seed, budget in (
        (SEED, Budget(runs=RUNS)),
        (secrets.randbits(48), Budget(seconds=SECONDS)),
    ):
        report = fuzz(worker, name, seed, budget)
        shown = [
            f"{fault}: capstore fuzz --replay {name}:{seeds[0]}\n{report.details[fault]}"
            for fault, seeds in report.faults.items()
        ]
        assert not shown, "\n".join(shown)
    assert report.cases > 0


# What it begins with ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_originals_are_clean(name: str, tmp_path: Path) -> None:
    for original in originals_of(FORMATS[name]):
        if name == "index" and original.name == "cut.tar":
            continue
        subject = Subject(original, original.data, True, random.Random(1), tmp_path)
        assert outcome_of(FORMATS[name], subject) == "clean", original.name


def shown(original: Original, kind: str, folder: Path) -> Truth:
    path = folder / "image"
    path.write_bytes(original.data)
    tree = open_image(path, scheme=kind)
    seen = Walk(tree, len(original.data), random.Random(1), keep=True).run()
    tree.close()
    assert seen.is_clean
    return seen.truth


def contents_of(tree: corpus.Tree) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path, node in tree.items():
        if isinstance(node, bytes):
            contents[f"/{path}"] = node
        elif node is not None and node.startswith("=>"):
            contents[f"/{path}"] = contents[f"/{node[3:]}"]
    return contents


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ro1", "tree"), ("tar", "ustar"), ("tar", "gnu"), ("tar", "pax"), ("cpio", "newc")],
)
def test_originals_hold_what_they_are_made_of(kind: str, name: str, tmp_path: Path) -> None:
    original = next(one for one in originals_of(FORMATS[kind]) if one.name == name)
    truth = shown(original, kind, tmp_path)
    assert truth.contents == contents_of(corpus.TREE)
    assert set(truth.entries) == {f"/{path}" for path in corpus.TREE}
    assert truth.entries["/dir/link"].target == "../a"


def test_volumes_hold_what_they_are_made_of(tmp_path: Path) -> None:
    for original in disks.fats():
        assert shown(original, "fat", tmp_path).contents == contents_of(disks.FAT_TREE)
    for original, count in zip(disks.disks(), (3, 2, 0), strict=True):
        assert len(partitions(MemoryDevice(original.data))) == count


# Cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_case_is_the_same_every_time(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    made = [subject_of(kind, name, seed, tmp_path) for seed in range(100)]
    again = [subject_of(kind, name, seed, tmp_path) for seed in reversed(range(100))]
    assert [one.data for one in made] == [one.data for one in reversed(again)]
    assert len({one.data for one in made}) > 50
    assert any(one.intact for one in made)
    assert not all(one.intact for one in made)


@pytest.mark.parametrize("mutator", dict.fromkeys(MUTATORS), ids=lambda one: one.__name__)
def test_mutators_meet_bytes_of_every_length(mutator: object) -> None:
    assert callable(mutator)
    for length in range(0, 1100, 13):
        draft = Draft(
            Original("", bytes(range(256)) * 5), [Original("", b"other")], random.Random(length)
        )
        del draft.data[length:]
        mutator(draft)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].seal is not None])
def test_seals_meet_bytes_of_every_length(name: str) -> None:
    seal = FORMATS[name].seal
    assert seal is not None
    for original in originals_of(FORMATS[name])[:3]:
        if name == "fat" and original.name != "FAT12":
            continue
        for length in range(0, min(len(original.data), 3000), 23):
            draft = Draft(original, [original], random.Random(length))
            del draft.data[length:]
            seal(draft)
            assert len(draft.data) == length


@pytest.mark.parametrize("name", ["ro1", "tar", "gz", "xz", "index", "partitions"])
def test_a_seal_changes_nothing_that_was_right(name: str) -> None:
    seal = FORMATS[name].seal
    assert seal is not None
    for original in originals_of(FORMATS[name]):
        draft = Draft(original, [original], random.Random(1))
        seal(draft)
        assert bytes(draft.data) == original.data, original.name


def test_moved_bytes_are_noted() -> None:
    base = Original("", random.Random(1).randbytes(4096))
    for seed in range(300):
        rng = random.Random(seed)
        draft = Draft(base, [base], rng)
        rng.choice(MUTATORS)(draft)
        before, after = base.data, bytes(draft.data)
        same = sum(a == b for a, b in zip(before, after, strict=False))
        if same < min(len(before), len(after)) - 64 and after.count(0) < 500:
            assert draft.moved, seed


# The command --------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, arguments)
    return result.exit_code, result.output


def test_the_command_reports_counts() -> None:
    code, printed = run("cpio", "xz", "--runs", "5", "--seed", "7")
    assert code == 0, printed
    assert printed.startswith("seed 7\ncpio: 5 cases in ")
    assert "\nxz: 5 cases in " in printed
    assert "slowest" in printed


def test_replay_runs_one_case() -> None:
    code, printed = run("--replay", "cpio:7")
    assert code == 0
    assert "cpio: 1 cases" in printed


@pytest.mark.parametrize("arguments", [["floppy"], ["--replay", "tar"], ["--replay", "floppy:1"]])
def test_what_there_is_not(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_faults_are_printed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(worker: Worker, name: str, seed: int, *rest: object) -> Report:
        report = Report(name)
        report.add(seed, Outcome("failed", "ValueError at tar.py:1", "Traceback", 0.5, 7))
        report.add(seed + 1, Outcome("clean"))
        return report

    monkeypatch.setattr(running, "fuzz", faulty)
    code, printed = run("tar", "--seed", "3", "--keep", str(tmp_path / "kept"))
    assert code == 1
    assert "ValueError at tar.py:1 (1 cases)" in printed
    assert "--replay tar:3" in printed
    kept = tmp_path / "kept" / "tar-3.image"
    assert kept.read_bytes() == subject_of(FORMATS["tar"], "tar", 3, tmp_path).data
    assert "Traceback" in kept.with_suffix(".txt").read_text()


def test_a_worker_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Worker() as started:
        started.run("tar", 1)
        assert started._process is not None
        started._process.send_signal(signal.SIGKILL)
        assert started.run("tar", 2).fault.startswith("SIGKILL")
        assert started.run("tar", 3).fault == ""
    assert list(tmp_path.iterdir()) == []
