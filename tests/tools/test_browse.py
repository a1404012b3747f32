from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.command import COMMAND, Served, capstore, started

_STAT = {
    "kind",
    "size",
    "executable",
    "modified",
    "created",
    "provenance",
    "nodeId",
    "version",
    "linkCount",
}


@pytest.fixture(scope="module")
def shown(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A directory of the volume in memory with a few entries."""
    root = tmp_path_factory.mktemp("shown") / "shown"
    (root / "sub" / "below").mkdir(parents=True)
    (root / "sub" / "leaf").write_bytes(b"12345")
    (root / "esc\x1b[31m\n").write_bytes(b"")
    (root / "[red]").write_bytes(b"x" * 2048)
    (root / "[red]").chmod(0o700)
    (root / "link").symlink_to("sub")
    (root / "escape").symlink_to("/\x1b]0;title\x07")
    (root / "up").symlink_to("../../../shown/sub/leaf")
    capstore("put", "-r", root, served.at("m")).ok()
    yield served.at("m", "shown")
    capstore("rm", "-r", served.at("m", "shown")).ok()


def test_ls(shown: str) -> None:
    names = ["[red]", "esc\\x1b[31m\\n", "escape", "link", "sub", "up"]
    assert capstore("ls", shown).ok().splitlines() == names
    long = capstore("ls", "-l", "--human", shown, TZ="UTC").ok().splitlines()
    assert long[0].startswith("-x      2.0 KiB 20")
    assert long[1].startswith("--          0 B 20")
    assert long[2].endswith(" escape -> /\\x1b]0;title\\x07")
    assert [line[:2] for line in long] == ["-x", "--", "l-", "l-", "d-", "l-"]
    entries = json.loads(capstore("ls", "--json", shown).ok())
    assert [entry["name"] for entry in entries] == [
        *("[red]", "esc\x1b[31m\n", "escape", "link", "sub", "up")
    ]
    assert set(entries[0]) == {"name"} | _STAT
    assert set(entries[3]) == {"name", "target"} | _STAT
    assert entries[0]["size"] == 2048
    assert entries[0]["executable"] is True
    assert entries[0]["modified"].endswith("Z")


def test_links_are_followed_inside_the_capability(shown: str) -> None:
    assert capstore("ls", f"{shown}/link").ok() == "below\nleaf\n"
    assert capstore("cat", f"{shown}/link/leaf").ok() == "12345"
    assert capstore("cat", f"{shown}/up").ok() == "12345"
    assert json.loads(capstore("stat", "--json", f"{shown}/link").ok())["kind"] == "symlink"


def test_tree(shown: str) -> None:
    assert capstore("tree", shown).ok().splitlines() == [
        "/shown",
        "├── [red]",
        "├── esc\\x1b[31m\\n",
        "├── escape -> /\\x1b]0;title\\x07",
        "├── link -> sub",
        "├── sub",
        "│   ├── below",
        "│   └── leaf",
        "└── up -> ../../../shown/sub/leaf",
        "",
        "2 directories, 6 others",
    ]
    assert "below" not in capstore("tree", "-L", "1", shown).ok()
    entries = json.loads(capstore("tree", "--json", shown).ok())
    assert [entry["path"] for entry in entries][-3:] == ["sub/below", "sub/leaf", "up"]
    assert set(entries[0]) == {"path"} | _STAT


def test_stat(shown: str, served: Served) -> None:
    lines = capstore("stat", shown, stdin=b"").ok().splitlines()
    assert lines[:2] == ["path:        /shown", "kind:        directory"]
    entry = json.loads(capstore("stat", "--json", f"{shown}/link").ok())
    assert (entry["kind"], entry["target"]) == ("symlink", "sub")
    assert set(json.loads(capstore("stat", "--json", served.at("m")).ok())) == _STAT


def test_a_path_is_given_once(served: Served, shown: str) -> None:
    uri = served.uri("m")
    for arguments in ([f"{uri}/-/shown/sub"], [uri, "shown/sub"], [uri, "/shown//./sub/"]):
        assert capstore("ls", *arguments).ok() == "below\nleaf\n"
    assert capstore("ls", "-", "shown/sub", stdin=uri.encode() + b"\n").ok() == "below\nleaf\n"
    twice = capstore("ls", f"{uri}/-/shown", "sub")
    assert twice.code == 2
    assert "the path is there twice" in twice.error
    capstore("ls", uri, "shown/../..").failed("invalidName")


def test_files_with_uris(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text(served.uri("m") + "\n")
    assert capstore("stat", f"@{file}").failed("denied").count("chmod 600")
    file.chmod(0o600)
    capstore("stat", f"@{file}").ok()
    file.write_text("nothing\n")
    capstore("stat", f"@{file}").failed("invalidArgument")
    file.write_text("")
    capstore("stat", f"@{file}").failed("invalidArgument")
    capstore("stat", f"@{file}.not").failed("notFound")
    several = capstore("stat", f"@{served.uri_file}").failed("invalidArgument")
    assert "(m, d)" in several
    capstore("stat", f"@{served.uri_file}#x").failed("invalidArgument")


def test_errors_name_the_path(served: Served, shown: str) -> None:
    assert capstore("cat", shown, "x").code == 2
    missing = capstore("cat", f"{shown}/nope").failed("notFound")
    assert missing == 'capstore: notFound: no entry "nope" in "/shown"\n'
    deep = capstore("cat", f"{shown}/nope/below").failed("notFound")
    assert '"/shown/nope/below"' in deep
    capstore("ls", f"{shown}/sub/leaf/x").failed("notDirectory")
    escaped = capstore("cat", served.uri("m"), "\x1b[31m").failed("notFound")
    assert '"\\x1b[31m"' in escaped


def test_errors_of_connections(served: Served, tmp_path: Path) -> None:
    unix, tls = served.uri("m"), served.uri("m", "sha-256")
    gone = capstore("ls", unix.replace(str(served.socket), f"{served.socket}-not"))
    assert "No such file or directory" in gone.failed("disconnected")
    wrong = unix[:-4] + ("AAAA" if not unix.endswith("AAAA") else "BBBB")
    capstore("ls", wrong).failed("denied")
    fingerprint = tls.partition("sha-256:")[2].partition("@")[0]
    pinned = capstore("ls", tls.replace(fingerprint, "A" * 43))
    assert "another key" in pinned.failed("disconnected")
    capstore("ls", "capnp://nonsense").failed("invalidArgument")


def test_wrong_usage_says_no_token(served: Served) -> None:
    uri = served.uri("m")
    for arguments in (["ls", uri, "x", "y"], ["ls"], ["nonsense"], ["ls", "--nope", uri], []):
        assert capstore(*arguments).code == 2
    extra = capstore("mkdir", "a", "b", uri)
    assert f"{uri[:-37]}..." in extra.error


def test_an_interrupted_reader_is_quiet(served: Served) -> None:
    capstore("put", "-", served.at("m", "long"), stdin=bytes(4_000_000)).ok()
    process = subprocess.Popen(
        [*COMMAND, "cat", served.at("m", "long")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 1
    capstore("rm", served.at("m", "long")).ok()


def test_limits(served: Served) -> None:
    assert "maxTransferBytes" in capstore("limits").ok()
    rows = json.loads(capstore("limits", "--json").ok())
    assert set(rows[0]) == {"name", "value", "unit", "reason"}
    asked = json.loads(capstore("limits", "--json", served.at("m")).ok())
    assert {row["name"]: row["value"] for row in rows} == {
        row["name"]: row["value"] for row in asked
    }


def test_version_and_help() -> None:
    assert started("--version").ok().startswith("capstore 0.")
    page = capstore("--help", COLUMNS="80").ok()
    assert max(map(len, page.splitlines())) <= 80
    assert "  share " in page


def test_making_and_removing(served: Served, volume: str) -> None:
    at = served.at(volume)
    capstore("mkdir", at, "a/b").failed("notFound")
    capstore("mkdir", "-p", at, "a/b/c").ok()
    capstore("mkdir", "-p", at, "a/b/c").ok()
    capstore("mkdir", at, "a").failed("alreadyExists")
    capstore("mkdir", at).failed("invalidArgument")
    capstore("sync", at).ok()
    capstore("sync", at, "a/b").ok()
    capstore("rm", at, "nope").failed("notFound")
    capstore("rm", "-f", at, "nope").ok()
    capstore("rm", "-r", at).failed("invalidArgument")
    capstore("rm", "-r", at, "a").ok()
    capstore("stat", at, "a").failed("notFound")
