from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.command import Served, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of a volume in memory, ``m``, and a host directory, ``d``, on a unix socket and
    with TLS."""
    files = tmp_path_factory.mktemp("served")
    with serving("m=memory:", f"d=dir:{files}", "--listen", "127.0.0.1:0") as service:
        yield service


@pytest.fixture(params=["m", "d"])
def volume(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the file, in which whoever loads it works."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


def make_tree(root: Path) -> None:
    """A tree with one of everything that a copy has to keep."""
    names = ["new\nline", "-dash", "sp ace", "ünï", "esc\x1b[31m", "[red]x", "back\\slash", "'\""]
    (root / "empty" / "emptier").mkdir(parents=True)
    deep = root.joinpath("deep", *"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    for name in names:
        (root / name).write_bytes(name.encode())
    (root / "nothing").write_bytes(b"")
    (root / "large").write_bytes(bytes(range(256)) * 12_345)
    (root / "one transfer").write_bytes(b"x" * (1 << 20))
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("large")
    (root / "dangling").symlink_to("../no such\nthing")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "to directory").symlink_to("deep")
