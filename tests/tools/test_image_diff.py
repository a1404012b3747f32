from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.tools.command import Ran, capstore
from tests.tools.conftest import make_tree


def diff(a: object, b: object, *more: str) -> Ran:
    return capstore("image", "diff", str(a), str(b), *more)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees."""
    made = []
    for name in ("a", "b"):
        root = tmp_path / name
        root.mkdir()
        make_tree(root)
        for path in [root, *root.rglob("*")]:
            os.utime(path, (1_600_000_000,) * 2, follow_symlinks=False)
        made.append(root)
    return made[0], made[1]


def test_equal_trees(pair: tuple[Path, Path]) -> None:
    assert diff(*pair).ok() == ""
    assert diff(*pair, "--json").ok() == "[]\n"


def changed(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (b / "deep" / "new").mkdir()
    (b / "deep" / "new" / "file").write_text("x")
    (a / "gone").write_text("x")
    (b / "large").write_bytes((a / "large").read_bytes()[:-1] + b"!")
    (b / "nothing").write_text("something")
    (b / "run").chmod(0o644)
    (b / "link").unlink()
    (b / "link").symlink_to("elsewhere")
    (b / "sp ace").unlink()
    (b / "sp ace").mkdir()
    (b / "sp ace" / "inside").write_text("x")
    os.utime(b / "ünï", (1_700_000_000,) * 2)
    for root in pair:
        for path in [root, *root.rglob("*")]:
            if path.name != "ünï":
                os.utime(path, (1_600_000_000,) * 2, follow_symlinks=False)


EXPECTED = """\
A deep/new
A deep/new/file
D gone
M large (content)
M link (target)
M nothing (size)
M run (mode)
M sp ace (kind)
A sp ace/inside
M ünï (time)
"""


def test_every_way_of_being_different(pair: tuple[Path, Path]) -> None:
    changed(pair)
    ran = diff(*pair)
    assert (ran.code, ran.out, ran.error) == (1, EXPECTED, "")
    ran = diff(*pair, "--ignore-times")
    assert (ran.code, ran.out) == (1, "".join(EXPECTED.splitlines(True)[:-1]))
    # The other way round, what was added is deleted.
    swapped = diff(pair[1], pair[0]).out
    assert swapped == EXPECTED.translate(str.maketrans("AD", "DA"))


def test_differences_as_json(pair: tuple[Path, Path]) -> None:
    changed(pair)
    ran = diff(*pair, "--json")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert len(found) == len(EXPECTED.splitlines())
    assert {"change": "modified", "path": "link", "what": ["target"]} in found
    assert {"change": "added", "path": "deep/new/file", "what": []} in found


@pytest.mark.parametrize("kind", ["ro1", "tar", "cpio"])
def test_differences_of_images(kind: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    changed(pair)
    images = [tmp_path / f"{path.name}.{kind}" for path in pair]
    for image, source in zip(images, pair, strict=True):
        capstore("image", "build", image, "--format", kind, "--from", source).ok()
    for a, b in (images, (images[0], pair[1]), (pair[0], f"{kind}:{images[1]}")):
        ran = diff(a, b)
        assert (ran.code, ran.out, ran.error) == (1, EXPECTED, "")


def test_a_difference_in_any_piece_of_a_long_file(tmp_path: Path) -> None:
    content = bytearray(os.urandom(1 << 20) * 3 + b"end")
    for at in (0, (1 << 20) - 1, 1 << 20, len(content) - 1):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "file").write_bytes(content)
            os.utime(tmp_path / name / "file", (0, 0))
            content[at] ^= 1
        content[at] ^= 1
        ran = diff(tmp_path / "a", tmp_path / "b", "--ignore-times")
        assert (ran.code, ran.out) == (1, "M file (content)\n")


def test_names_cannot_do_anything_to_a_terminal(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "\x1b[2J\n").write_text("x")
    assert diff(tmp_path / "a", tmp_path / "b", "--ignore-times").raw == b"A \\x1b[2J\\n\n"


def test_trouble(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ran = diff(pair[0], tmp_path / "missing")
    assert (ran.code, ran.out) == (2, "")
    assert ran.error.startswith("capstore: notFound: local ")
    (tmp_path / "text").write_text("no image")
    assert diff(tmp_path / "text", pair[0]).code == 2
    assert capstore("image", "diff", pair[0]).code == 2


def test_what_cannot_be_read_is_said_and_the_rest_is_compared(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    capstore("image", "build", image, "--format", "ro1", "--from", pair[0]).ok()
    damaged = bytearray(image.read_bytes())
    damaged[damaged.index((pair[0] / "large").read_bytes()[:4096]) + 100_000] ^= 1
    image.write_bytes(damaged)
    (pair[1] / "run").write_text("changed")
    ran = diff(image, pair[1], "--ignore-times")
    assert ran.code == 2
    assert ran.error.startswith('capstore: corrupt: "/large": ')
    assert ran.out == "M run (size)\n"
