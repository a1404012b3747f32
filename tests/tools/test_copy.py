from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tools.command import COMMAND, Served, capstore, serving
from tests.tools.conftest import make_tree


def same_trees(one: Path, other: Path) -> None:
    """They have the same names, kinds, content, executable bits, times and targets."""
    diff = subprocess.run(
        ["diff", "-r", "--no-dereference", one, other], capture_output=True, check=False
    )
    assert diff.stdout == b""
    paths = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert paths == sorted(path.relative_to(other) for path in other.rglob("*"))
    for path in paths:
        was, now = (one / path).lstat(), (other / path).lstat()
        assert was.st_mtime_ns == now.st_mtime_ns, path
        assert was.st_mode & 0o100 == now.st_mode & 0o100, path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    make_tree(root)
    return root


def test_a_tree_comes_back_as_it_went(
    served: Served, volume: str, tree: Path, tmp_path: Path
) -> None:
    capstore("put", "-r", tree, served.at(volume)).ok()
    capstore("get", "-r", served.at(volume, "tree"), tmp_path / "back").ok()
    same_trees(tree, tmp_path / "back")
    # Again, over what is there: replaced, and the same.
    capstore("put", "-r", f"{tree}/.", served.at(volume, "tree")).ok()
    capstore("get", "-r", served.at(volume, "tree"), tmp_path, cwd=tmp_path).ok()
    same_trees(tree, tmp_path / "back")
    capstore("rm", "-r", served.at(volume), "tree").ok()
    assert capstore("ls", served.at(volume)).ok() == ""


def test_trees_are_copied_between_capabilities(served: Served, tree: Path, tmp_path: Path) -> None:
    capstore("put", "-r", tree, served.at("m")).ok()
    capstore("cp", "-r", served.at("m", "tree"), served.uri("d", "sha-256")).ok()
    capstore("get", "-r", served.at("d"), tmp_path / "all").ok()
    same_trees(tree, tmp_path / "all" / "tree")
    into = capstore("cp", "-r", served.at("m"), served.at("m", "tree/deep"))
    assert "cannot be copied into itself" in into.failed("invalidArgument")
    for volume in "md":
        capstore("rm", "-r", served.at(volume, "tree")).ok()


def test_a_thousand_small_files_over_tls(served: Served, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(1000):
        folder = many / str(number % 7)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(os.urandom(number))
    uri = served.uri("m", "sha-256")
    capstore("put", "-r", many, uri).ok()
    capstore("get", "-r", f"{uri}/-/many", tmp_path / "back").ok()
    same_trees(many, tmp_path / "back")
    capstore("rm", "-r", uri, "many").ok()


def test_names_that_are_no_utf8(served: Served, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    Path(os.fsdecode(bytes(odd) + b"/\xff\xfe name")).write_bytes(b"odd")
    for volume in "md":
        capstore("put", "-r", odd, served.at(volume)).ok()
        assert capstore("ls", served.at(volume, "odd")).ok() == "\\uefff\\ueffe name\n"
        capstore("get", "-r", served.at(volume, "odd"), tmp_path / volume).ok()
        same_trees(odd, tmp_path / volume)
        capstore("rm", "-r", served.at(volume, "odd")).ok()


def test_one_file(served: Served, volume: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    file.chmod(0o755)
    (tmp_path / "link").symlink_to("file")
    at = served.at(volume)
    capstore("mkdir", at, "one").ok()
    capstore("put", file, served.at(volume, "one")).ok()
    capstore("put", file, served.at(volume, "one/other")).ok()
    capstore("put", tmp_path / "link", served.at(volume, "one")).ok()
    assert capstore("ls", at, "one").ok() == "file\nlink\nother\n"
    capstore("get", served.at(volume, "one/other"), cwd=tmp_path).ok()
    capstore("get", served.at(volume, "one/link"), "named", cwd=tmp_path).ok()
    assert (tmp_path / "other").read_bytes() == (tmp_path / "named").read_bytes() == b"one"
    assert (tmp_path / "other").stat().st_mode & 0o100
    capstore("rm", "-r", at, "one").ok()


def test_a_link_at_the_destination_is_replaced_not_written_to(
    served: Served, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "x").symlink_to(outside)
    capstore("put", "-", served.at("m", "x"), stdin=b"new").ok()
    capstore("get", served.at("m", "x"), dest).ok()
    assert outside.read_bytes() == b"untouched"
    assert not (dest / "x").is_symlink()
    assert (dest / "x").read_bytes() == b"new"
    assert [path.name for path in dest.iterdir()] == ["x"]
    capstore("rm", served.at("m", "x")).ok()


def test_what_fails_is_named_and_the_rest_is_copied(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "good").write_bytes(b"")
    (source / "b").write_bytes(b"")
    os.mkfifo(source / "fifo")
    put = capstore("put", "-r", source, tmp_path / "missing", served.at("m"))
    assert put.code == 1
    assert put.error.splitlines() == [
        f'capstore: passed over: "{source}/fifo" is neither file, directory nor link',
        f'capstore: notFound: local "{tmp_path}/missing": No such file or directory',
        "capstore: 1 of 5 entries failed",
    ]
    dest = tmp_path / "dest"
    (dest / "source" / "b").mkdir(parents=True)
    (dest / "source" / "a").write_bytes(b"in the way")
    get = capstore("get", "-r", served.at("m", "source"), dest)
    assert get.code == 1
    assert sorted(get.error.splitlines()) == [
        "capstore: 2 of 3 entries failed",
        f'capstore: isDirectory: local "{dest}/source/b": Is a directory',
        f'capstore: notDirectory: local "{dest}/source/a": something that is no directory is there',
    ]
    capstore("rm", "-r", served.at("m", "source")).ok()


def test_standard_input_and_output(served: Served) -> None:
    content = os.urandom(3_000_000)
    capstore("put", "-", served.at("d", "stream"), stdin=content).ok()
    assert capstore("cat", served.at("d", "stream")).raw == content
    assert capstore("cat", "-", "stream", stdin=served.uri("d").encode()).raw == content
    nameless = capstore("put", "-", served.at("d"), stdin=b"x")
    assert "stdin has no name" in nameless.error
    assert nameless.code == 1
    assert capstore("put", "-", "-").code == 2
    assert capstore("get", served.at("d", "stream"), "-").code == 2
    capstore("rm", served.at("d", "stream")).ok()


def test_a_capability_for_one_file(served: Served, tmp_path: Path) -> None:
    capstore("put", "-", served.at("d", "alone"), stdin=b"a long first version").ok()
    uri = capstore("share", served.at("d"), "alone").ok().strip()
    assert capstore("cat", uri).ok() == "a long first version"
    capstore("put", "-", uri, stdin=b"second").ok()
    assert capstore("cat", uri).ok() == "second"
    assert "has no name" in capstore("get", uri, tmp_path).failed("invalidArgument")
    capstore("get", uri, tmp_path / "here").ok()
    assert (tmp_path / "here").read_bytes() == b"second"
    capstore("cp", uri, served.at("d", "copy")).ok()
    assert "nothing below" in capstore("ls", uri, "x").failed("denied")
    capstore("rm", served.at("d", "alone")).ok()
    capstore("rm", served.at("d", "copy")).ok()


def test_progress_is_shown_on_a_terminal_only(served: Served) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "put", "-", served.at("m", "shown")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as putting:
        os.close(theirs)
        assert putting.stdin is not None
        assert putting.stdout is not None
        putting.stdin.write(bytes(1 << 20))
        putting.stdin.flush()
        drawn = b""
        while b"entries" not in drawn:
            drawn += os.read(ours, 1 << 16)
        putting.stdin.close()
        assert putting.wait(20) == 0
        assert putting.stdout.read() == b""
    os.close(ours)
    assert b"put" in drawn
    capstore("rm", served.at("m", "shown")).ok()


def test_moving(served: Served, volume: str) -> None:
    at = served.at(volume)
    capstore("mkdir", "-p", at, "mv/into").ok()
    capstore("put", "-", served.at(volume, "mv/a"), stdin=b"a").ok()
    capstore("put", "-", served.at(volume, "mv/b"), stdin=b"b").ok()
    capstore("mv", served.at(volume, "mv/a"), served.at(volume, "mv/c")).ok()
    taken = capstore("mv", "-n", served.at(volume, "mv/b"), served.at(volume, "mv/c"))
    taken.failed("alreadyExists")
    capstore("mv", "--exchange", served.at(volume, "mv/b"), served.at(volume, "mv/c")).ok()
    assert capstore("cat", at, "mv/b").ok() == "a"
    capstore("mv", served.at(volume, "mv/b"), served.at(volume, "mv/into")).ok()
    assert capstore("ls", at, "mv/into").ok() == "b\n"
    other = "d" if volume == "m" else "m"
    across = capstore("mv", served.at(volume, "mv/c"), served.at(other))
    assert "use cp -r, then rm -r" in across.failed("crossVolume")
    capstore("rm", "-r", at, "mv").ok()


def test_directories_need_to_be_asked_for(served: Served, tmp_path: Path) -> None:
    capstore("mkdir", served.at("m"), "folder").ok()
    for verb in (
        ("get", served.at("m", "folder"), tmp_path),
        ("cp", served.at("m", "folder"), served.at("d")),
        ("rm", served.at("m", "folder")),
        ("cat", served.at("m", "folder")),
    ):
        assert '"/folder" is a directory' in capstore(*verb).failed("isDirectory")
    put = capstore("put", tmp_path, served.at("m"))
    assert put.error.startswith("capstore: isDirectory: ")
    capstore("rm", "-r", served.at("m", "folder")).ok()


def test_a_copy_into_itself_by_another_capability_ends(served: Served, volume: str) -> None:
    at = served.at(volume)
    capstore("mkdir", "-p", at, "self/a/b").ok()
    capstore("put", "-", served.at(volume, "self/a/file"), stdin=b"x").ok()
    inner = capstore("share", at, "self/a/b").ok().strip()
    ran = capstore("cp", "-r", served.at(volume, "self"), inner)
    assert ran.code == 1
    assert '"/self/a/b": this is where the copies go' in ran.error
    assert capstore("ls", inner, "self/a").ok() == "file\n"
    same = capstore("cp", "-r", served.at(volume, "self/a/b"), inner)
    assert "cannot be copied into itself" in same.failed("invalidArgument")
    # Numbers of nodes mean nothing in another volume.
    other = served.at("d" if volume == "m" else "m")
    capstore("cp", "-r", served.at(volume, "self"), other).ok()
    capstore("rm", "-r", other, "self").ok()
    capstore("rm", "-r", at, "self").ok()


def test_a_copy_of_a_served_directory_into_itself_ends(tmp_path: Path) -> None:
    with serving(f"own=dir:{tmp_path}") as service:
        (tmp_path / "file").write_bytes(b"x")
        got = capstore("get", "-r", service.at("own"), tmp_path / "got")
        assert got.code == 1
        assert "levels deep" in got.error
        shutil.rmtree(tmp_path / "got")
        put = capstore("put", "-r", f"{tmp_path}/.", service.at("own", "put"))
        assert put.code == 1
        assert "levels deep" in put.error


def test_messages_name_what_is_meant(served: Served, volume: str, tmp_path: Path) -> None:
    capstore("mkdir", "-p", served.at(volume), "said/into/file").ok()
    capstore("put", "-", served.at(volume, "said/file"), stdin=b"x").ok()
    taken = capstore("mv", "-n", served.at(volume, "said/file"), served.at(volume, "said/into"))
    assert '"/said/into/file": ' in taken.failed("alreadyExists")
    for verb in ("cat", "share"):
        ran = capstore(verb, served.at(volume, "said/into"))
        assert ran.error.count("/said/into") <= 1
    (tmp_path / "file").mkdir()
    onto = capstore("get", served.at(volume, "said/file"), tmp_path)
    assert f'local "{tmp_path}/file": ' in onto.failed("isDirectory")
    missing = capstore("put", tmp_path / "missing", served.at(volume))
    assert f'local "{tmp_path}/missing": ' in missing.failed("notFound")
    forgotten = capstore("ls", served.uri_file)
    assert forgotten.code == 2
    assert f"did you mean @{served.uri_file}?" in forgotten.error
    capstore("rm", "-r", served.at(volume, "said")).ok()


def test_typed_paths_that_are_no_utf8(served: Served, volume: str) -> None:
    odd = os.fsdecode(b"odd\xff")
    capstore("put", "-", served.at(volume, odd), stdin=b"x").ok()
    assert capstore("cat", served.at(volume), odd).ok() == "x"
    assert capstore("cat", served.at(volume), "odd\uefff").ok() == "x"
    capstore("rm", served.at(volume), odd).ok()
