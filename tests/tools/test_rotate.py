"""``capstore renew``, ``rotate`` and ``rotate-key``."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.tools.command import Served, capstore


def share(*arguments: str) -> str:
    return capstore("share", *arguments).ok().strip()


def rows(location: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(capstore("shares", "--json", location).ok())
    return found


def id_of(served: Served, label: str) -> str:
    (found,) = [row["id"] for row in rows(served.at("m")) if row["label"] == label]
    return str(found)


def test_a_share_gets_another_time(served: Served) -> None:
    uri = share(served.at("m"), "--expires", "1h", "--label", "renewed")
    number = id_of(served, "renewed")
    below = share(uri, "--label", "below", "--expires", "30m")
    for expires, shown in (("2126-01-02T03:04Z", "2126-01-02T03:04:00"), ("never", None)):
        assert capstore("renew", served.at("m"), "--id", number, "--expires", expires).ok() == ""
        (row,) = [row for row in rows(served.at("m")) if row["id"] == int(number)]
        assert (row["expires"] or "").startswith(shown or "")
        assert (row["expires"] is None) == (shown is None)
    capstore("renew", served.at("m"), "--id", number, "--expires", "2h").ok()
    # Nobody gives himself another time, or another one a longer time than his own.
    capstore("renew", uri, "--id", number, "--expires", "3h").failed("denied")
    capstore("renew", uri, "--id", id_of(served, "below"), "--expires", "3h").failed("denied")
    capstore("renew", uri, "--id", id_of(served, "below"), "--expires", "1h").ok()
    capstore("renew", uri, "--id", "1", "--expires", "1h").failed("notFound")
    for wrong in ("yesterday", "0s", "2001-01-01", "9999-12-31", "0001-01-01"):
        assert capstore("renew", served.at("m"), "--id", number, "--expires", wrong).code == 2
    capstore("ls", below).ok()
    capstore("revoke", uri).ok()


def test_a_share_gets_another_uri(served: Served, tmp_path: Path) -> None:
    uri = share(served.at("m"), "--label", "rotated")
    below = share(uri)
    new = capstore("rotate", uri).ok().strip()
    capstore("ls", uri).failed("denied")
    capstore("rotate", uri).failed("denied")
    capstore("ls", below).ok()
    file = tmp_path / "new.uri"
    number = id_of(served, "rotated")
    assert capstore("rotate", served.at("m"), "--id", number, "--uri-file", file).ok() == ""
    capstore("ls", new).failed("denied")
    capstore("ls", f"@{file}").ok()
    assert file.stat().st_mode & 0o777 == 0o600
    newest = json.loads(capstore("rotate", f"@{file}", "--json").ok())
    assert newest["id"] == int(number)
    capstore("ls", newest["uri"]).ok()
    assert [row["rotations"] for row in rows(served.at("m")) if row["label"] == "rotated"] == [3]
    ran = capstore("rotate", newest["uri"], "--uri-file", tmp_path / "none" / "file")
    assert ran.code == 1
    assert re.search(rf"the new URI of {number} is lost.*rotate --id {number}", ran.error)
    capstore("ls", newest["uri"]).failed("denied")
    capstore("revoke", served.at("m"), "--id", number).ok()


@pytest.mark.parametrize("keep", [True, False])
def test_a_service_gets_another_key(keep: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="capstore-") as folder:
        serve = [f"wf1:{folder}/i.wf1,create", "--listen", "127.0.0.1:0"]
        first = Served(Path(folder), ["f=" + serve[0], *serve[1:]])
        try:
            old = first.uri("f", "sha-256")
            capstore("rotate-key", "--state", first.state).failed("busy")
            assert first.stop() == 0
        finally:
            first.close()
        until = ["--keep-old-until", "2126-01-02T03:04:05Z"] if keep else []
        lines = capstore("rotate-key", "--state", first.state, *until).ok().splitlines()
        was = re.findall(r"sha-256:([\w-]{43})@", old)[0]
        assert lines[0].endswith("\t-")
        assert lines[1:] == ([f"{was}\t2126-01-02T03:04:05.000000000Z"] if keep else [])
        again = Served(Path(folder), ["f=" + serve[0], *serve[1:]])
        try:
            new = again.uri("f", "sha-256")
            assert lines[0].split("\t")[0] in new
            capstore("ls", new).ok()
            port = re.findall(r":(\d+)/", new)[0]
            ran = capstore("ls", re.sub(r":\d+/", f":{port}/", old))
            assert ran.code == (0 if keep else 1), ran
        finally:
            again.close()


def test_a_time_that_keeps_no_key_is_wrong_usage(tmp_path: Path) -> None:
    for wrong in ("yesterday", "0s", "2001-01-01"):
        ran = capstore("rotate-key", "--state", tmp_path, "--keep-old-until", wrong)
        assert ran.code == 2
    assert capstore("rotate-key", "--state", tmp_path / "none").code == 2
    assert list(tmp_path.iterdir()) == []
