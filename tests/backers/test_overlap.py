"""Layers that share a place on this machine are found, those that do not are not."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

from capstore.backers.overlap import check_disjoint
from capstore.backers.spec_text import Spec
from capstore.schema.errors import InvalidArgument


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `a/b` and `ab`, files in them, links to them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    for name in ("up.wf1", "a/up.wf1", "a/b/base.tar", "ab/base.tar", "disk.img"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "to_a").symlink_to("a")
    (tmp_path / "to_image").symlink_to("a/up.wf1")
    os.link("up.wf1", "ab/hard.wf1")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def spec(text: str) -> Spec:
    return Spec.parse(text.replace("CWD", str(Path.cwd())))


OVERLAPPING = [
    ("dir:a", "dir:a"),
    ("dir:a", "dir:a/b/.."),
    ("dir:a", "dir:CWD/a"),
    ("dir:a", "dir:to_a,ro"),
    ("dir:a/b", "dir:to_a/b"),
    ("dir:a", "dir:a/b"),
    ("dir:.", "dir:ab"),
    ("dir:/", "dir:a"),
    ("dir:a", "wf1:a/up.wf1"),
    ("dir:to_a", "wf1:a/up.wf1"),
    ("dir:a", "wf1:to_image,create"),
    ("dir:a", "wf1:a/new.wf1,create"),
    ("dir:a", "wf1:to_a/b/new.wf1,create"),
    ("dir:a", "tar:a/b/base.tar"),
    ("dir:a", "oci:a/b"),
    ("dir:a", "memory:a/saved"),
    ("dir:a", "pyfs:osfs://a/b"),
    ("dir:a", "pyfs:file://CWD/a"),
    ("dir:a", "pyfs:osfs://.!/a"),
    ("dir:a", "pyfs:zip://a/b/x.zip"),
    ("dir:a", "pyfs:tar://a/b/x.tar!inside"),
    ("wf1:up.wf1", "wf1:up.wf1,ro"),
    ("wf1:up.wf1", "wf1:ab/hard.wf1"),
    ("wf1:new.wf1,create", "wf1:./new.wf1,create"),
    ("wf1:a/up.wf1", "ro1:to_image"),
    ("dir:ab", "wf1:ab/hard.wf1"),
    ("fat:disk.img", "fat:disk.img,part=1"),
    ("fat:disk.img,part=1", "fat:./disk.img,part=1"),
]

DISJOINT = [
    ("dir:a", "dir:ab"),
    ("dir:a/b", "wf1:a/up.wf1"),
    ("dir:a", "dir:missing"),
    ("dir:a/b", "dir:ab/b"),
    ("wf1:new.wf1,create", "wf1:newer.wf1,create"),
    ("memory:", "memory:"),
    ("memory:", "dir:a"),
    ("dir:a", "pyfs:ftp://a/b"),
    ("dir:a", "pyfs:mem://"),
    ("dir:a", "pyfs:nonsense"),
    ("dir:a", "dir:loop"),
    ("dir:a", "dir:a\0/b"),
    ("dir:a", "wf1:" + "x" * 5000),
    ("fat:disk.img,part=1", "fat:disk.img,part=2"),
    ("overlay:wf1:up.wf1+tar:a/b/base.tar", "mounts:/=wf1:up.wf1"),
]


@pytest.mark.parametrize(("one", "other"), OVERLAPPING)
def test_what_shares_a_place_is_refused_in_any_order(one: str, other: str) -> None:
    apart = spec("dir:ab/none"), spec("memory:")
    for order in itertools.permutations((spec(one), spec(other), *apart)):
        with pytest.raises(InvalidArgument, match=r" is within | are the same$| is given twice$"):
            check_disjoint(order)


@pytest.mark.parametrize(("one", "other"), DISJOINT)
def test_what_is_apart_is_accepted_in_any_order(one: str, other: str) -> None:
    check_disjoint([spec(one), spec(other)])
    check_disjoint([spec(other), spec(one)])


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("dir:a", "dir:a", '"dir:a" is given twice'),
        ("dir:a", "dir:to_a", '"dir:a" and "dir:to_a" are the same'),
        ("wf1:a/up.wf1", "dir:a", '"wf1:a/up.wf1" is within "dir:a"'),
        ("dir:a", "pyfs:osfs://a/b", '"pyfs:..." is within "dir:a"'),
    ],
)
def test_the_message_names_both_as_they_were_written(one: str, other: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_disjoint([spec(one), spec(other)])
    assert caught.value.message == message


def test_nothing_and_one_alone_are_accepted() -> None:
    check_disjoint([])
    check_disjoint([spec("dir:a")])


def test_the_home_directory_is_where_filesystem_urls_say_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(InvalidArgument):
        check_disjoint([spec("dir:a"), spec("pyfs:osfs://~/a/b")])
    # Elsewhere it is a name like any other.
    check_disjoint([spec("dir:a"), spec("dir:~/a")])


def test_it_needs_no_filesystem_library_where_none_is_named() -> None:
    code = (
        "import sys; from capstore.backers.overlap import check_disjoint;"
        "assert 'fs' not in sys.modules"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
