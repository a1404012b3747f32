"""Copies and moves within one filesystem, above all those that could lose data."""

from __future__ import annotations

import random

import fs.copy
import pytest
from fs import errors

import capstore
from capstore.service.client import connect
from capstore.service.pyfs import CapstoreFS
from capstore.service.pyfs_errors import IllegalDestination
from tests.service.support import ServiceUnderTest, contents

MIB = 1024 * 1024


def test_a_file_moved_or_copied_onto_itself_stays(tree: CapstoreFS) -> None:
    tree.makedir("d")
    tree.writebytes("d/a", b"data")
    tree.symlink("link", "d")
    for other in ("d/a", "/d/../d/a", "link/a"):
        tree.move("d/a", other, overwrite=True)
        assert tree.readbytes("d/a") == b"data"
        tree.copy("d/a", other, overwrite=True)
        assert tree.readbytes("d/a") == b"data"
        for operation in (tree.move, tree.copy):
            with pytest.raises(errors.DestinationExists):
                operation("d/a", other)
    tree.symlink("file-link", "d/a")
    tree.copy("d/a", "file-link", overwrite=True)
    tree.copy("file-link", "d/a", overwrite=True)
    sub = tree.opendir("d")
    sub.move("a", "a", overwrite=True)
    sub.copy("a", "a", overwrite=True)
    fs.copy.copy_file(tree, "d/a", tree, "d/b")
    assert tree.readbytes("d/a") == tree.readbytes("d/b") == b"data"


def test_a_file_copied_onto_another_name_of_it_stays(
    service: ServiceUnderTest, tree: CapstoreFS
) -> None:
    tree.writebytes("a", b"data")

    async def link() -> None:
        async with connect(service.uri("m")) as root:
            assert isinstance(root, capstore.Directory)
            await root.link("a", root, "b")

    service.call(link())
    tree.copy("a", "b", overwrite=True)
    tree.move("a", "b", overwrite=True)
    assert tree.readbytes("b") == b"data"
    tree.makedir("d")
    tree.copydir("/", "d")
    assert tree.readbytes("d/b") == b"data"
    tree.copydir("d", "/")
    assert tree.readbytes("b") == b"data"


def test_directories_moved_or_copied_onto_themselves_stay(tree: CapstoreFS) -> None:
    tree.makedirs("a/b/c")
    tree.writebytes("a/f", b"1")
    tree.writebytes("a/b/g", b"2")
    tree.symlink("alias", "a")
    before = contents(tree)
    for same in ("a", "/a/b/..", "alias"):
        tree.movedir("a", same)
        tree.copydir("a", same)
        assert contents(tree) == before
    for inside in ("a/b", "a/b/c", "a/new", "alias/b/new", "a/b/c/../new"):
        with pytest.raises(IllegalDestination):
            tree.movedir("a", inside, create=True)
        with pytest.raises(IllegalDestination):
            tree.opendir("/").movedir("a", inside, create=True)
        assert contents(tree) == before
    with pytest.raises(IllegalDestination):
        tree.movedir("/", "a")
    assert contents(tree) == before


def test_a_copy_into_its_own_subtree_ends(tree: CapstoreFS) -> None:
    tree.makedirs("a/b")
    tree.writebytes("a/f", b"1")
    tree.writebytes("a/b/g", b"2")
    tree.copydir("a", "a/b/new", create=True)
    assert contents(tree.opendir("a/b/new")) == {"/b": None, "/b/g": b"2", "/f": b"1"}
    tree.opendir("a").copydir("/", "b")
    assert tree.readbytes("a/b/f") == b"1"
    assert not tree.exists("a/b/b/new/b/new")


def test_a_directory_moved_out_into_its_parent(tree: CapstoreFS) -> None:
    tree.makedirs("a/b/b")
    tree.writebytes("a/b/f", b"1")
    tree.writebytes("a/b/b/x", b"2")
    tree.movedir("a/b", "a")
    assert contents(tree) == {"/a": None, "/a/f": b"1", "/a/b": None, "/a/b/x": b"2"}


def test_moving_a_directory_renames(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.makedirs("a/deep")
    for number in range(50):
        tree.writebytes(f"a/deep/{number}", b"x")
    node = tree.getinfo("a", ["capstore"]).raw["capstore"]["node_id"]
    assert len(service.calls_while(lambda: tree.movedir("a", "b", create=True))) < 20
    assert tree.getinfo("b", ["capstore"]).raw["capstore"]["node_id"] == node
    tree.makedirs("c/deep")
    tree.writebytes("c/deep/7", b"old")
    tree.writebytes("c/deep/kept", b"kept")
    held = tree.getinfo("c", ["capstore"]).raw["capstore"]["node_id"]
    tree.movedir("b", "c")
    assert not tree.exists("b")
    assert tree.readbytes("c/deep/7") == b"x"
    assert len(tree.listdir("c/deep")) == 51
    assert tree.getinfo("c", ["capstore"]).raw["capstore"]["node_id"] == held


def test_copies_keep_links_times_and_executables(
    service: ServiceUnderTest, tree: CapstoreFS
) -> None:
    async def prepare() -> None:
        async with connect(service.uri("m")) as root:
            assert isinstance(root, capstore.Directory)
            await root.create("program", executable=True)

    service.call(prepare())
    tree.setinfo("program", {"details": {"modified": 1000.0}})
    tree.copy("program", "copy", preserve_time=True)
    info = tree.getinfo("copy", ["details", "capstore"])
    assert info.raw["capstore"]["executable"] is True
    assert info.raw["details"]["modified"] == 1000.0
    tree.makedir("d")
    tree.symlink("d/link", "../program")
    tree.writebytes("d/large", random.Random(1).randbytes(3 * MIB))
    tree.copydir("d", "e", create=True)
    assert tree.getinfo("e/link", ["link"]).target == "../program"
    assert tree.readbytes("e/large") == tree.readbytes("d/large")
    tree.copydir("d", "e")
    assert tree.getinfo("e/link", ["link"]).target == "../program"
