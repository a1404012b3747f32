from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import capstore as library
from tests.tools.command import Served, capstore, serving

NO_AUDIT = "tracing needs the service to be started with an audit (--audit)"


@pytest.fixture(scope="module")
def folder(served: Served) -> Iterator[str]:
    capstore("mkdir", served.at("m"), "folder").ok()
    capstore("put", "-", served.at("m", "folder/file"), stdin=b"shared").ok()
    yield served.at("m", "folder")
    capstore("rm", "-r", served.at("m", "folder")).ok()


def share(*arguments: str) -> str:
    return capstore("share", *arguments).ok().strip()


def ids(served: Served) -> set[int]:
    return {row["id"] for row in json.loads(capstore("shares", "--json", served.at("m")).ok())}


def test_a_read_only_share_refuses_every_change(
    served: Served, folder: str, tmp_path: Path
) -> None:
    uri = share(folder, "--read-only")
    assert capstore("cat", uri, "file").ok() == "shared"
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for arguments in (
        ("put", file, uri),
        ("put", file, f"{uri}/-/other"),
        ("rm", uri, "file"),
        ("mkdir", uri, "x"),
        ("mkdir", "-p", uri, "x/y"),
        ("mv", f"{uri}/-/file", f"{uri}/-/other"),
        ("cp", f"{uri}/-/file", f"{uri}/-/other"),
    ):
        ran = capstore(*arguments)
        assert ran.code == 1
        assert ran.error.startswith("capstore: readOnly: "), ran.error
    recursive = capstore("rm", "-r", served.at("m", "nope"))
    recursive.failed("notFound")
    again = share(uri)
    assert capstore("mkdir", again, "x").error.startswith("capstore: readOnly: ")


def test_everything_that_can_be_taken_away(served: Served, folder: str, tmp_path: Path) -> None:
    before = ids(served)
    uri = share(
        folder,
        *("--append-only", "--max-bytes", "1KiB", "--max-nodes", "3", "--max-file-bytes", "50"),
        *("--calls-per-second", "1000", "--bytes-per-second", "1MiB"),
        *("--hide", "fil*", "--hide", ".git"),
    )
    rows = json.loads(capstore("shares", "--json", served.at("m")).ok())
    (row,) = [row for row in rows if row["id"] not in before and not row["anchor"]]
    assert row["policy"] == {
        "appendOnly": True,
        "maxBytes": 1024,
        "maxNodes": 3,
        "maxFileBytes": 50,
        "callsPerSecond": 1000,
        "bytesPerSecond": 2**20,
        "hiddenNames": ["fil*", ".git"],
    }
    words = (
        "append-only, at most 1.0 KiB, at most 3 nodes, files up to 50 B, 1000 calls/s, "
        "1.0 MiB/s, without fil* .git"
    )
    assert words in capstore("shares", served.at("m")).ok()
    assert capstore("ls", uri).ok() == ""
    capstore("cat", uri, "file").failed("notFound")
    capstore("mkdir", uri, "made").ok()
    capstore("rm", "-r", uri, "made").failed("denied")
    capstore("mkdir", uri, "file").failed("notFound")
    capstore("rm", "-r", f"{folder}/made").ok()
    dry = share(folder, "--dry-run")
    capstore("rm", dry, "file").ok()
    assert capstore("cat", dry, "file").ok() == "shared"
    for wrong in (
        ("--max-bytes", "much"),
        ("--max-bytes", "0"),
        ("--max-nodes", "-1"),
        ("--calls-per-second", "1.5"),
        ("--hide", "a/b"),
        ("--hide", "**"),
    ):
        assert capstore("share", folder, *wrong).code == 2


def test_what_is_traced_needs_an_audit(tmp_path: Path) -> None:
    audit = ("--audit", tmp_path / "audit", "--audit-only", "traced")
    served_so = (f"d=dir:{tmp_path}/d,ro",)
    (tmp_path / "d").mkdir()
    with serving(*served_so, *audit) as served:
        uri = share(served.at("d"), "--traced")
        capstore("ls", uri).ok()
        assert served.stop() == 0
        recorded = (tmp_path / "audit").read_text()
        assert '"method":"list"' in recorded
        with serving(*served_so, "--state", served.state) as again:
            assert NO_AUDIT in capstore("share", again.at("d"), "--traced").failed("unsupported")
            here = f"capnp://insecure@{again.socket}/{uri.rpartition('/')[2]}"
            assert NO_AUDIT in capstore("ls", here).failed("unsupported")
            shown = capstore("shares", again.at("d")).ok()
            assert "traced" in shown
            capstore("revoke", here).ok()
            capstore("ls", here).failed("denied")
            assert again.stop() == 0
    assert (tmp_path / "audit").read_text() == recorded


def test_an_expired_share_is_denied(folder: str) -> None:
    uri = share(folder, "--expires", "2s")
    soon = time.monotonic() + 2.1
    capstore("ls", uri).ok()
    time.sleep(max(0, soon - time.monotonic()))
    capstore("ls", uri).failed("denied")
    assert capstore("share", folder, "--expires", "tomorrow").code == 2
    assert capstore("share", folder, "--expires", "0s").code == 2


def test_shares_are_listed(served: Served, folder: str) -> None:
    before = ids(served)
    label = "for [red]Ann"
    made = json.loads(
        capstore("share", "--json", f"{folder}/file", "--label", label, "--expires", "1h").ok()
    )
    assert set(made) == {"uri", "label", "readOnly", "expires", "policy"}
    capstore("cat", made["uri"]).ok()
    below = share(made["uri"], "--read-only")
    rows = json.loads(capstore("shares", "--json", served.at("m")).ok())
    first, second = [row for row in rows if row["id"] not in before]
    assert set(first) == {
        *("id", "label", "kind", "volume", "readOnly", "expires", "created", "lastUsed", "parent"),
        *("policy", "savedBy", "rotations", "anchor"),
    }
    assert (first["label"], first["kind"], first["volume"]) == (label, "file", "m")
    assert first["expires"] == made["expires"]
    assert first["lastUsed"] is not None
    assert (second["readOnly"], second["parent"]) == (True, first["id"])
    assert (first["savedBy"], second["savedBy"]) == ("owner", label)
    table = capstore("shares", served.at("m")).ok().splitlines()
    assert table[0].split() == [
        *("ID", "FROM", "SAVED", "BY", "KIND", "VOLUME"),
        *("AUTHORITY", "CREATED", "LAST", "USED", "LABEL"),
    ]
    assert any(line.endswith(label) for line in table)
    capstore("shares", folder).failed("invalidArgument")
    # What is saved below sees what is below itself, and nothing beside.
    assert json.loads(capstore("shares", "--json", below).ok()) == []
    capstore("revoke", made["uri"], "--id", "1").failed("notFound")
    capstore("revoke", made["uri"]).ok()
    capstore("ls", below).failed("denied")
    # Shares of other tests whose time is over leave with the next save.
    assert ids(served) <= before


def test_revoking_ends_what_is_open(served: Served, folder: str) -> None:
    uri = share(folder)

    async def main() -> None:
        async with library.connect(uri) as root:
            assert isinstance(root, library.Directory)
            file = await root.open("file")
            assert await file.read(0, 100) == b"shared"
            (ours,) = ids(served) - known
            capstore("revoke", served.at("m"), "--id", str(ours)).ok()
            with pytest.raises(library.Revoked):
                await file.read(0, 100)
            with pytest.raises(library.Revoked):
                await root.list()

    known = ids(served) - {max(ids(served))}
    asyncio.run(main())
    capstore("ls", uri).failed("denied")
