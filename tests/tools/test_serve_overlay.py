"""A base under a writable layer, served, installed into, killed, exported and reset."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

import capstore as api
from tests.backers import oci
from tests.tools.command import Served, capstore, serving
from tests.tools.installing import Step, install, on_nodes

LIBRARY = Path(sysconfig.get_path("stdlib"))


def make_base(root: Path, packages: tuple[str, ...], *more: str) -> None:
    """A part of Python's library, with links of both kinds and something to run."""
    exclude = ["--exclude=__pycache__", "--exclude=site-packages", *more]
    packed = root.with_name("packed")
    subprocess.run(["tar", "-C", LIBRARY, *exclude, "-cf", packed, *packages], check=True)
    subprocess.run(["tar", "-C", root, "-xf", packed], check=True)
    first = sorted(path for path in root.rglob("*.py"))
    first[0].chmod(0o755)
    for number, path in enumerate(first[1:4]):
        (root / f"other{number}").hardlink_to(path)
    (root / "link").symlink_to(first[4].relative_to(root))


def shown(things: oci.Things, since: int) -> dict[str, oci.Thing]:
    """A tree, to compare: a time since then is nobody's choice."""
    ordered = dict(oci.in_order(things))
    del ordered["."]
    return {path: one._replace(modified=min(one.modified, since)) for path, one in ordered.items()}


async def _install(uri: str, steps: list[Step]) -> None:
    async with api.connect(uri) as root:
        await on_nodes(root, steps)
        await root.sync()


async def _things(uri: str) -> oci.Things:
    async with api.connect(uri) as root:
        return await oci.of_nodes(root)


def things_of(served: Served) -> oci.Things:
    return asyncio.run(_things(served.uri("w")))


def check(folder: Path, upper: str, packages: tuple[str, ...], count: int, *exclude: str) -> None:
    """All of it, with `count` steps over a base of `packages`."""
    real, untouched, base = folder / "real", folder / "untouched", folder / "base.tar"
    real.mkdir()
    make_base(real, packages, *exclude)
    subprocess.run(["tar", "--format=pax", "-C", real, "-cf", base, "."], check=True)
    subprocess.run(["cp", "-a", real, untouched], check=True)
    digest = hashlib.sha256(base.read_bytes()).digest()
    since = time.time_ns()
    steps = install(real, count, seed=6)
    installed = shown(oci.on_host(real), since)
    overlay = f"overlay:{upper}+tar:{base}"

    with serving(f"w={overlay.replace('.wf1', '.wf1,create')}") as served:
        asyncio.run(_install(served.uri("w"), steps))
        assert shown(things_of(served), since) == installed
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(20)
    with serving(f"w={overlay}") as served:
        assert shown(things_of(served), since) == installed
        capstore("get", "-r", served.at("w"), folder / "back").ok()
        assert served.stop() == 0
    subprocess.run(["diff", "-r", "--no-dereference", real, folder / "back"], check=True)

    layer = folder / "layer.tar"
    capstore("image", "diff", "--layer", layer, overlay).ok()
    unpacked = oci.unpacked_by_umoci(folder / "umoci", [base, layer])
    assert shown(oci.on_host(unpacked), since) == installed

    assert capstore("image", "verify", overlay).ok() == ""
    capstore("image", "reset", "--yes", overlay).ok()
    with serving(f"w={overlay}") as served:
        assert shown(things_of(served), since) == shown(oci.on_host(untouched), since)
    assert hashlib.sha256(base.read_bytes()).digest() == digest


@pytest.mark.parametrize("upper", ["wf1", "dir"])
def test_an_installation_over_a_base(upper: str, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    spec = f"wf1:{tmp_path}/up.wf1" if upper == "wf1" else f"dir:{tmp_path}/upper"
    check(tmp_path, spec, ("json", "xml"), 120)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("upper", ["wf1", "dir"])
def test_a_long_installation_over_pythons_own_library(upper: str, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    spec = f"wf1:{tmp_path}/up.wf1" if upper == "wf1" else f"dir:{tmp_path}/upper"
    check(tmp_path, spec, (".",), 5000, "--exclude=./test", "--exclude=./config-*")
