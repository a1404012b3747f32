"""A served CAPOSWF1 volume whose service is killed: what was synced is there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import fs
import fs.copy
import fs.osfs

from tests.tools.command import capstore, serving

LIBRARY = Path(sysconfig.get_path("stdlib"))


def checkout(folder: Path) -> Path:
    """A clone of a repository of some hundred files."""
    origin = folder / "origin"
    for package in ("email", "json", "xml", "encodings"):
        shutil.copytree(
            LIBRARY / package, origin / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", str(origin), str(clone)], check=True)
    return clone


def test_a_checkout_survives_a_kill_once_sync_has_returned(tmp_path: Path) -> None:
    clone = checkout(tmp_path)
    spec = f"w=wf1:{tmp_path / 'volume'},create"
    with serving(spec) as served:
        with fs.open_fs(served.uri("w")) as there, fs.osfs.OSFS(str(clone)) as here:
            fs.copy.copy_fs(here, there)
        capstore("sync", served.at("w")).ok()
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(20)
    with serving(spec) as served:
        capstore("get", "-r", served.at("w"), tmp_path / "back").ok()
    subprocess.run(["diff", "-r", clone, tmp_path / "back"], check=True)
    status = subprocess.run(
        ["git", "-C", tmp_path / "back", "fsck", "--full", "--strict"],
        capture_output=True,
        check=True,
    )
    assert status.returncode == 0


def test_a_second_service_on_the_same_image_is_busy(tmp_path: Path) -> None:
    spec = f"w=wf1:{tmp_path / 'volume'},create"
    with serving(spec):
        capstore("serve", spec, "--state", tmp_path / "other").failed("busy")


def test_an_old_image_is_verified_and_compacted_where_it_lies(tmp_path: Path) -> None:
    image = tmp_path / "volume"
    with serving(f"w=wf1:{image},create") as served:
        for _ in range(3):
            capstore("put", "-", served.at("w", "f"), stdin=b"x" * 300_000).ok()
        assert served.stop() == 0
    assert capstore("image", "verify", image).ok() == ""
    before = image.stat().st_size
    capstore("image", "compact", image).ok()
    assert image.stat().st_size < before
    assert capstore("image", "verify", image).ok() == ""
