"""A real tree in images that other tools made, served, and copied back by the command.

The tree is a part of Python's own library; ``pytest -m long`` takes all of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.fatimages import ENVIRONMENT, fill, make
from tests.tools.command import Served, capstore, serving

LIBRARY = Path(sysconfig.get_path("stdlib"))
PACKAGES = ("email", "json")
Maker = Callable[[Path, Path], str]


def run(*command: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    return subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, check=True, cwd=cwd
    ).stdout


def gnu_tar(*options: str) -> Maker:
    def make_tar(tree: Path, out: Path) -> str:
        run("tar", "--sort=name", "-cf", out, *options, "-C", tree, ".")
        return f"tar:{out}"

    return make_tar


def bsdtar(form: str) -> Maker:
    def make_archive(tree: Path, out: Path) -> str:
        run("bsdtar", "-cf", out, "--format", form, "-C", tree, ".")
        return f"{'tar' if 'tar' in form or form == 'pax' else 'cpio'}:{out}"

    return make_archive


def gnu_cpio(form: str, *pipe: str) -> Maker:
    def make_cpio(tree: Path, out: Path) -> str:
        names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        raw = run("cpio", "-o0", "--quiet", "-H", form, stdin=names.encode(), cwd=tree)
        out.write_bytes(run(*pipe, stdin=raw) if pipe else raw)
        return f"cpio:{out}"

    return make_cpio


def fat(tree: Path, out: Path) -> str:
    size = sum(path.stat().st_size for path in tree.rglob("*")) * 2
    make(out, max(40_000, size // 1024), "-F", "32")
    fill(out, tree)
    return f"fat:{out}"


def ours(form: str) -> Maker:
    def build(tree: Path, out: Path) -> str:
        assert capstore("image", "build", out, "--format", form, "--from", tree).ok() == ""
        return f"{form}:{out}"

    return build


MAKERS: dict[str, Maker] = {
    **{
        f"tar {form}": gnu_tar(f"--format={form}")
        for form in ("v7", "oldgnu", "gnu", "ustar", "posix")
    },
    **{
        f"tar sparse {version}": gnu_tar("--sparse", f"--sparse-version={version}")
        for version in ("0.0", "0.1", "1.0")
    },
    "tar sparse old": gnu_tar("--sparse", "--format=oldgnu"),
    **{f"tar{option}": gnu_tar(option) for option in ("--gzip", "--bzip2", "--xz", "--zstd")},
    **{f"bsdtar {form}": bsdtar(form) for form in ("ustar", "pax", "gnutar", "newc", "odc")},
    **{f"cpio {form}": gnu_cpio(form) for form in ("newc", "crc", "odc")},
    "cpio newc gz": gnu_cpio("newc", "gzip", "-n"),
    "cpio newc zst": gnu_cpio("newc", "zstd", "-q"),
    "fat": fat,
    **{f"ours {form}": ours(form) for form in ("ro1", "tar", "cpio", "wf1")},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(
            LIBRARY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (folder / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(3 << 20)
    return folder


@pytest.fixture(scope="module")
def images(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All images, served by one service."""
    folder = tmp_path_factory.mktemp("images")
    specs = [make_it(tree, folder / name_of(maker)) for maker, make_it in MAKERS.items()]
    named = zip(map(name_of, MAKERS), specs, strict=True)
    with serving(*(f"{name}={spec}" for name, spec in named)) as served:
        yield served


def name_of(maker: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", maker)


def check(location: str, tree: Path, out: Path) -> None:
    """Compares what comes back with the tree."""
    assert capstore("get", "-r", location, out).ok() == ""
    run("diff", "-r", tree, out)


@pytest.mark.parametrize("maker", MAKERS)
def test_an_image_of_a_tree_gives_the_tree(
    maker: str, tree: Path, images: Served, tmp_path: Path
) -> None:
    check(images.at(name_of(maker)), tree, tmp_path / "out")


@pytest.mark.parametrize("maker", ["tar sparse 1.0", "tar--zstd", "cpio crc", "fat", "ours ro1"])
def test_nothing_is_found_wrong_with_it(maker: str, tree: Path, tmp_path: Path) -> None:
    MAKERS[maker](tree, tmp_path / "image")
    assert capstore("image", "verify", tmp_path / "image").ok() == ""


def test_a_second_reader_agrees_about_fat(tree: Path, tmp_path: Path) -> None:
    fat(tree, tmp_path / "image")
    out = tmp_path / "out"
    assert capstore("image", "extract", tmp_path / "image", out).ok() == ""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(
        ["mcopy", "-spQm", "-i", tmp_path / "image", "::*", str(theirs)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    run("diff", "-r", theirs, out)


def test_the_picture_shows_the_image(tree: Path, tmp_path: Path) -> None:
    image, picture = tmp_path / "image", tmp_path / "map.svg"
    ours("ro1")(tree, image)
    capstore("image", "inspect", image, "--picture", picture).ok()
    text = picture.read_text()
    assert text.startswith("<?xml")
    document = json.loads(capstore("image", "inspect", image, "--json").ok())
    for kind in {region["kind"] for region in document["regions"]}:
        assert kind in text


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("maker", ["tar posix", "tar--gzip", "cpio newc", "fat", "ours ro1"])
def test_the_whole_library(maker: str, tmp_path: Path) -> None:
    with serving(f"it={MAKERS[maker](LIBRARY, tmp_path / 'image')}") as served:
        check(served.at("it"), LIBRARY, tmp_path / "out")
    assert capstore("image", "verify", tmp_path / "image").ok() == ""
