"""The tour, compiled once for a run of the tests, and the service it goes through."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.served import RunningService, running

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The program.  All workers of a run share it: who comes first compiles."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tour"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tour").exists():
            built = subprocess.run([HERE / "build.sh", folder], capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
            assert not built.stderr, f"warnings: {built.stderr}"
    return folder / "tour"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    folder = tmp_path / "s"
    folder.mkdir()
    with running(folder) as service:
        yield service
