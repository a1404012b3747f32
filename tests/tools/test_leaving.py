"""What is left behind when something goes wrong on the way, and what a name may be chosen by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tools.command import COMMAND, WARNINGS, Served, capstore, serving


def test_a_copy_is_named_by_what_was_typed(served: Served, volume: str, tmp_path: Path) -> None:
    box = served.at(volume, "box")
    capstore("mkdir", box).ok()
    capstore("put", "-", f"{box}/.bashrc", stdin=b"evil").ok()
    (tmp_path / "report.txt").symlink_to(".bashrc")
    capstore("put", "-r", tmp_path / "report.txt", box).ok()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("mine")
    capstore("get", f"{box}/report.txt", cwd=home).ok()
    assert (home / ".bashrc").read_text() == "mine"
    assert (home / "report.txt").read_text() == "evil"
    capstore("rm", "-r", box).ok()


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _names(served: Served, volume: str) -> list[str]:
    return [entry["name"] for entry in json.loads(capstore("ls", "--json", served.at(volume)).ok())]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_put_leaves_nothing(served: Served, number: int) -> None:
    before = _names(served, "m")
    with subprocess.Popen(
        [*COMMAND, "put", "-", served.at("m", "torso")], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * (3 << 20))
        process.stdin.flush()
        _wait_for(lambda: len(_names(served, "m")) > len(before))
        assert "torso" not in _names(served, "m"), "only what is whole has the name"
        process.send_signal(number)
        # Although stdin is open and silent.
        assert process.wait(10) == 128 + number
    assert _names(served, "m") == before


def test_a_killed_put_leaves_no_torso_under_the_name(served: Served) -> None:
    with subprocess.Popen(
        [*COMMAND, "put", "-", served.at("m", "torso")], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * (3 << 20))
        process.stdin.flush()
        _wait_for(lambda: any(name.startswith(".capstore-") for name in _names(served, "m")))
        process.kill()
        process.wait(10)
    assert "torso" not in _names(served, "m")
    for name in _names(served, "m"):
        if name.startswith(".capstore-"):
            capstore("rm", served.at("m", name)).ok()


def test_a_share_that_could_not_be_told_does_not_stay(served: Served, tmp_path: Path) -> None:
    def shares() -> list[object]:
        rows: list[object] = json.loads(capstore("shares", "--json", served.at("m")).ok())
        return rows

    before = shares()
    ran = capstore("share", served.at("m"), "--uri-file", tmp_path / "missing" / "file")
    assert ran.code == 1
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "share", served.at("m")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert all(row in before for row in shares())


def test_a_share_in_a_file_is_private_and_usable(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "lent"
    assert capstore("share", served.at("m"), "--read-only", "--uri-file", file).ok() == ""
    assert file.stat().st_mode & 0o777 == 0o600
    capstore("ls", f"@{file}").ok()
    capstore("revoke", f"@{file}").ok()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_get_leaves_nothing(tmp_path: Path, number: int) -> None:
    files, dest = tmp_path / "files", tmp_path / "dest"
    files.mkdir()
    dest.mkdir()
    with (files / "large").open("wb") as large:
        large.truncate(600 << 20)
    with serving(f"d=dir:{files}") as service:
        with subprocess.Popen([*COMMAND, "get", service.at("d", "large"), dest]) as process:
            _wait_for(lambda: os.listdir(dest))
            process.send_signal(number)
            assert process.wait(10) == 128 + number
    assert os.listdir(dest) == []


def test_a_service_that_dies_leaves_no_empty_file(tmp_path: Path) -> None:
    many, files = tmp_path / "many", tmp_path / "files"
    many.mkdir()
    files.mkdir()
    for number in range(2000):
        (many / f"file{number}").write_bytes(b"content")
    with serving(f"d=dir:{files}") as service:
        with subprocess.Popen(
            [*COMMAND, "put", "-r", f"{many}/.", service.at("d")], stderr=subprocess.PIPE
        ) as process:
            _wait_for(lambda: any(name.startswith("file") for name in os.listdir(files)))
            service.process.kill()
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
            assert process.wait(20) == 1
    named = [name for name in os.listdir(files) if name.startswith("file")]
    assert 0 < len(named) < 2000
    assert all((files / name).read_bytes() == b"content" for name in named)


LS, CAT, SHARE = ("ls",), ("cat", "-"), ("share", "--read-only")
CLOSED = [
    *((LS, closed) for closed in ((0,), (1,), (2,), (0, 1, 2))),
    *((CAT, closed) for closed in ((0,), (2,))),
    (SHARE, (1,)),
]
CLOSED_TOO = [
    *((CAT, closed) for closed in ((1,), (0, 1, 2))),
    *((SHARE, closed) for closed in ((0,), (2,), (0, 1, 2))),
]


@pytest.mark.parametrize(
    ("verb", "closed"),
    [*CLOSED, *(pytest.param(*each, marks=pytest.mark.long) for each in CLOSED_TOO)],
)
def test_closed_descriptors(served: Served, verb: tuple[str, ...], closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    location = [] if "-" in verb else [served.at("m")]
    done = subprocess.run(
        [*COMMAND, *verb, *location],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=close,
        env=os.environ | {"PYTHONWARNINGS": WARNINGS},
        timeout=30,
        check=False,
    )
    assert done.returncode == (1 if "-" in verb else 0)
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == (1 if "-" in verb and 2 not in closed else 0)


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_descriptor_is_no_reason_for_a_traceback(
    served: Served, tmp_path: Path, closed: int
) -> None:
    with (tmp_path / "said").open("wb") as said:
        done = subprocess.run(
            [*COMMAND, "ls", served.at("m")],
            stdout=None if closed == 1 else said,
            stderr=None if closed == 2 else said,
            preexec_fn=lambda: os.close(closed),
            check=False,
        )
    assert done.returncode == 0
    assert b"Traceback" not in (tmp_path / "said").read_bytes()
