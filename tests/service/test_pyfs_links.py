"""Symbolic links: resolved by the client, within the root, as the kernel would."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from fs import errors

from capstore.backers import hostfd
from capstore.service.pyfs import CapstoreFS
from tests.service.support import ServiceUnderTest, contents, running_service

MIB = 1024 * 1024


def test_links_are_followed_within_the_root(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.makedirs("jail/a/b")
    tree.writetext("secret", "outside")
    tree.writetext("jail/secret", "inside")
    tree.writetext("jail/a/b/file", "file")
    with CapstoreFS(service.uri("m").below(("jail",))) as jail:
        for name, target in {
            "relative": "a/b/file",
            "absolute": "/secret",
            "escaping": "../../../secret",
            "through": "a/b/../../../../secret",
            "dots": "./a/./b//file",
        }.items():
            jail.symlink(name, target)
        jail.symlink("a/b/up", "../..")
        assert jail.readtext("relative") == jail.readtext("dots") == "file"
        assert {jail.readtext(n) for n in ("absolute", "escaping", "through")} == {"inside"}
        assert jail.readtext("a/b/up/a/b/up/secret") == "inside"
        assert jail.isdir("a/b/up")
        assert sorted(jail.listdir("a/b/up")) == sorted(jail.listdir("/"))
        jail.symlink("root", "/")
        assert jail.getinfo("root").is_dir
        assert jail.isfile("root/root/relative")
        with pytest.raises(errors.FileExpected):
            jail.readbytes("root")


def test_a_link_in_the_middle_serves_every_operation(tree: CapstoreFS) -> None:
    tree.makedirs("real/sub")
    tree.symlink("link", "real")
    tree.symlink("again", "link")
    tree.writebytes("again/f", b"1")
    with tree.open("again/f", "ab") as file:
        file.write(b"2")
    tree.makedir("again/made")
    tree.copy("again/f", "again/g")
    tree.move("again/g", "link/made/h")
    tree.setinfo("again/f", {"details": {"modified": 5.5}})
    tree.removedir("again/sub")
    assert tree.getinfo("real/f", ["details"]).raw["details"]["modified"] == 5.5
    assert contents(tree) == {
        "/real": None,
        "/real/f": b"12",
        "/real/made": None,
        "/real/made/h": b"12",
        "/link": "real",
        "/again": "link",
    }


def test_the_last_link_is_followed_or_meant(tree: CapstoreFS) -> None:
    tree.writebytes("file", b"old")
    tree.symlink("link", "file")
    assert tree.islink("link")
    assert not tree.islink("file")
    info = tree.getinfo("link", ["details", "link"])
    assert (info.name, info.size, info.target, info.is_file) == ("link", 3, "file", True)
    assert tree.getinfo("file", ["link"]).target is None
    tree.writebytes("link", b"new")
    assert tree.readbytes("file") == b"new"
    with pytest.raises(errors.FileExists):
        tree.openbin("link", "x")
    tree.move("link", "moved")
    assert tree.getinfo("moved", ["link"]).target == "file"
    tree.remove("moved")
    assert tree.readbytes("file") == b"new"


def test_dangling_links_and_loops_lead_nowhere(tree: CapstoreFS) -> None:
    tree.symlink("dangling", "sub/none")
    tree.symlink("loop", "loop")
    tree.symlink("ping", "pong")
    tree.symlink("pong", "ping")
    for name in ("dangling", "loop", "ping"):
        assert not tree.exists(name)
        assert tree.islink(name)
        with pytest.raises(errors.ResourceNotFound):
            tree.readbytes(name)
        with pytest.raises(errors.ResourceNotFound):
            tree.writebytes(name, b"")
    assert tree.getinfo("dangling", ["link"]).target == "sub/none"
    found = {info.name: info for info in tree.scandir("/", ["details", "link"])}
    assert sorted(found) == ["dangling", "loop", "ping", "pong"]
    assert all(info.is_link and not info.is_dir for info in found.values())
    tree.makedir("sub")
    tree.writebytes("dangling", b"made")
    assert tree.readbytes("sub/none") == b"made"
    tree.remove("loop")
    assert not tree.islink("dangling/") or tree.exists("dangling")


def test_forty_links_and_no_more(tree: CapstoreFS) -> None:
    tree.writebytes("link0", b"end")
    for number in range(41):
        tree.symlink(f"link{number + 1}", f"link{number}")
    assert tree.readbytes("link40") == b"end"
    with pytest.raises(errors.ResourceNotFound):
        tree.readbytes("link41")


def test_a_walk_ends_where_links_go_round(tree: CapstoreFS) -> None:
    tree.makedirs("a/b")
    tree.symlink("a/b/up", "/a")
    tree.symlink("a/self", ".")
    assert sorted(tree.walk.dirs()) == ["/a", "/a/b", "/a/b/up", "/a/self"]
    assert sorted(tree.opendir("a").walk.dirs()) == ["/b", "/b/up", "/self"]
    assert tree.glob("**/up/").count().directories == 1


def test_a_removal_follows_no_link(tree: CapstoreFS) -> None:
    tree.makedirs("kept/inner")
    tree.writebytes("kept/inner/file", b"kept")
    tree.makedirs("gone/deep")
    tree.symlink("gone/deep/link", "/kept")
    tree.symlink("gone/file", "/kept/inner/file")
    with pytest.raises(errors.DirectoryExpected):
        tree.removetree("gone/deep/link")
    sub = tree.opendir("gone")
    with pytest.raises(errors.DirectoryExpected):
        sub.removetree("deep/link")
    sub.removetree("/")
    assert tree.isempty("gone")
    tree.removetree("gone")
    assert contents(tree) == {"/kept": None, "/kept/inner": None, "/kept/inner/file": b"kept"}


def test_a_deep_tree_is_removed(tree: CapstoreFS) -> None:
    path = "d"
    tree.makedir(path)
    for _ in range(60):
        path += "/d"
        tree.makedir(path)
    tree.writebytes(f"{path}/f", b"x")
    tree.copydir("d", "e", create=True)
    assert tree.readbytes(f"e{path[1:]}/f") == b"x"
    tree.writebytes("d/d/f", b"y")
    tree.movedir("d", "e")
    assert tree.readbytes(f"e{path[1:]}/f") == b"x"
    assert tree.listdir("/") == ["e"]
    tree.removetree("e")
    assert tree.isempty("/")


# The kernel as the oracle ------------------------------------------------------------------------

_RESOLVE_IN_ROOT = 0x10 | 0x02  # and no magic links


def _by_the_kernel(root: int, path: str) -> str | None:
    """Where `path` leads from the directory `root` as if that were "/"; None for nowhere."""
    try:
        fd = hostfd._openat2(root, path.encode(), os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    except OSError:
        return None
    try:
        top, found = (os.readlink(f"/proc/self/fd/{number}") for number in (root, fd))
    finally:
        os.close(fd)
    return found.removeprefix(top).strip("/")


@pytest.mark.skipif(not hostfd.support().openat2, reason="the kernel has no openat2")
def test_paths_lead_where_the_kernel_says(tmp_path: Path) -> None:
    seed = 5
    rng = random.Random(seed)
    steps = ["a", "b", "c", "..", ".", "l0", "l1", "l2", "l3", "l4", "l5", "f"]

    def random_path(most: int) -> str:
        return "/".join(rng.choice(steps) for _ in range(rng.randrange(1, most)))

    directories = [""] + [f"{x}" for x in "abc"] + [f"{x}/{y}" for x in "abc" for y in "abc"]
    for directory in directories:
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / "f").write_text(f"{directory}/f".strip("/"))
        (tmp_path / directory / "me").write_text(directory)
        for name in ("l0", "l1", "l2", "l3", "l4", "l5"):
            if rng.random() < 0.7:
                target = rng.choice(["", "", "/"]) + random_path(5)
                (tmp_path / directory / name).symlink_to(target)
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    nowhere = 0
    try:
        with (
            running_service({"d": f"dir:{tmp_path}"}) as service,
            CapstoreFS(service.uri("d")) as tree,
        ):
            for _ in range(250):
                # PyFilesystem2 takes "." and ".." out of a path itself, links or not.
                path = re.sub(r"\.+", "l0", random_path(7))
                expected = _by_the_kernel(root, path)
                nowhere += expected is None
                assert tree.exists(path) is (expected is not None), (seed, path)
                if expected is None:
                    continue
                if tree.isdir(path):
                    path += "/me"
                assert tree.readtext(path) == expected, (seed, path)
    finally:
        os.close(root)
    assert 10 < nowhere < 240
