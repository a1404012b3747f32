"""``capstore top``, and what ``capstore serve`` is told to tell of itself."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from capstore.schema.errors import Corrupt, Disconnected, InvalidArgument, NotFound
from capstore.service.dispatch import Method
from capstore.service.metrics import Metrics
from capstore.tools.top_source import Look, Rates, Source, quantile, rates_between, source_of
from capstore.tools.top_view import picture
from tests.tools.command import COMMAND, TOKEN, Served, capstore, serving, wait_until

EMPTY = b'{"connections": [], "references": []}'


@pytest.fixture(scope="module")
def watched() -> Iterator[Served]:
    """A service with metrics on a free port."""
    with serving("m=memory:", "--metrics", "127.0.0.1:0") as served:
        yield served


# Numbers -----------------------------------------------------------------------------------------


def look(metrics: Metrics, at: float, busiest: bytes = EMPTY) -> Look:
    text = metrics.snapshot().text("")[0] + b"capstore_connections 3\n"
    return Look.of(text, busiest, at)


def two_looks() -> Rates:
    metrics = Metrics()
    read, lookup = Method("File", "read"), Method("Directory", "lookup")
    for _ in range(50):
        metrics.called(read, "ok", 1000, 100_000, 1, 1)
    before = look(metrics, 100.0, json.dumps(metrics.busiest(names=False)).encode())
    metrics.connected(2)
    for _ in range(98):
        metrics.called(read, "ok", 1000, 100_000, 2, 1)
    for _ in range(2):
        metrics.called(read, "io", 0, 1_000_000_000, 2, 1)
    for _ in range(10):
        metrics.called(lookup, "notFound", 0, 40_000, 2, 7)
    busiest = metrics.busiest(names=False)
    busiest["references"][0]["label"] = "evil \x1b[2J label [red]x[/red]"
    busiest["connections"][0]["uid"] = 1234
    return rates_between(before, look(metrics, 102.0, json.dumps(busiest).encode()))


def test_rates_are_those_between_two_looks() -> None:
    rates = two_looks()
    assert rates.seconds == 2.0
    assert rates.calls == 55.0
    assert rates.failures == 6.0
    assert rates.read_bytes == 49_000.0
    assert [each.name for each in rates.methods] == ["File.read", "Directory.lookup"]
    read, lookup = rates.methods
    assert (read.calls, read.failures, read.bytes) == (50.0, 1.0, 49_000.0)
    assert read.p50 is not None
    assert read.p99 is not None
    # Within the bucket of powers of two.
    assert 65e-6 < read.p50 < 132e-6
    assert 0.5 < read.p99 < 1.1
    assert lookup.p99 is not None
    assert 32e-6 < lookup.p99 < 66e-6
    assert rates.gauges["connections"] == 3
    assert rates.connections[0]["callsPerSecond"] == 55.0
    assert [row["reference"] for row in rates.references] == [1, 7]


def test_a_service_that_was_started_anew_has_done_all_since() -> None:
    metrics, read = Metrics(), Method("File", "read")
    for _ in range(10):
        metrics.called(read, "ok", 0, 1000, 1, 1)
    before = look(metrics, 0.0)
    again = Metrics()
    for _ in range(4):
        again.called(read, "ok", 0, 1000, 1, 1)
    assert rates_between(before, look(again, 1.0)).calls == 4.0


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({1.0: 0.0, float("inf"): 0.0}, 0.5, None),
        ({}, 0.5, None),
        ({1.0: 10.0, 2.0: 10.0, float("inf"): 10.0}, 0.5, 0.5),
        ({1.0: 0.0, 2.0: 10.0, float("inf"): 10.0}, 0.5, 1.5),
        ({1.0: 0.0, 2.0: 0.0, float("inf"): 10.0}, 0.99, 2.0),
    ],
)
def test_quantiles(buckets: dict[float, float], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == expected


@pytest.mark.parametrize(
    ("text", "busiest"),
    [
        (b"<html>", EMPTY),
        (b"other_metric 1\n", EMPTY),
        (b"capstore_connections x\n", EMPTY),
        (b"capstore_connections 1\n", b"[]"),
        (b"capstore_connections 1\n", b'{"connections": [1], "references": []}'),
        (b"capstore_connections 1\n", b"[" * 100_000),
        (b"\xff", EMPTY),
    ],
)
def test_what_is_no_service_is_said_to_be_none(text: bytes, busiest: bytes) -> None:
    with pytest.raises(Corrupt):
        Look.of(text, busiest, 0.0)


# The picture -------------------------------------------------------------------------------------


def test_the_picture() -> None:
    console = Console(file=io.StringIO(), width=100, markup=False, highlight=False)
    console.print(picture(two_looks()))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert "\x1b" not in drawn
    lines = [line.rstrip() for line in drawn.splitlines()]
    assert lines[0] == "55.0 calls/s, 6.0 failed/s, 47.9 KiB/s read, 0 B/s written"
    assert lines[1].startswith("3 connections (0 refused so far), 0 calls under way")
    words = [line.split() for line in lines]
    assert ["METHOD", "CALLS/S", "FAILED/S", "P50", "P99", "BYTES/S"] in words
    read = next(line for line in words if line and line[0] == "File.read")
    assert read[1:3] == ["50.0", "1.0"]
    assert read[-2:] == ["47.9", "KiB"]
    assert "1 evil \\x1b[2J label [red]x[/red]" in drawn
    assert any(line.startswith("2 uid 1234") for line in lines)


# Where it reads ----------------------------------------------------------------------------------


def test_where_metrics_are(tmp_path: Path) -> None:
    assert source_of("http://127.0.0.1:9464/metrics", tmp_path) == Source("127.0.0.1", 9464)
    assert source_of("http://[::1]:9464", tmp_path) == Source("::1", 9464)
    assert source_of("unix:/run/x", tmp_path) == Source(path="/run/x")
    for wrong in ("https://h/metrics", "http:///metrics", "http://h/other", "http://h:x/metrics"):
        with pytest.raises(InvalidArgument):
            source_of(wrong, tmp_path)
    with pytest.raises(NotFound):
        source_of(str(tmp_path), tmp_path)
    (tmp_path / "metrics").write_text("unix:/run/y\n")
    assert source_of(str(tmp_path), tmp_path) == Source(path="/run/y")


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Disconnected):
        Source(path=str(tmp_path / "nothing")).get("/metrics")


# The command -------------------------------------------------------------------------------------


def test_a_program_reads_it(watched: Served) -> None:
    note = watched.state / "metrics"
    url = note.read_text().strip()
    assert url.startswith("http://127.0.0.1:")
    capstore("put", "-", watched.at("m", "x"), stdin=b"x" * 1000).ok()
    for where in (url, watched.state):
        raw = capstore("top", where, "--once", "--json", "--interval", "0.1").ok()
        said = json.loads(raw)
        assert said["now"]["references"] == 1
        assert said["totals"]["connectionsAccepted"] >= 1
        assert said["callsPerSecond"] == 0
        assert not TOKEN.search(raw.encode())
    # A port is everybody's on this machine: no names there.
    assert "label" not in raw
    assert "METHOD" in capstore("top", watched.state, "--once", "--interval", "0.1").ok()


def test_it_is_live_on_a_terminal(watched: Served) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "top", str(watched.state), "--interval", "0.1"],
        stdout=follower,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(follower)
    seen = b""
    end = time.monotonic() + 20
    try:
        while seen.count(b"calls under way") < 3:
            assert time.monotonic() < end, seen
            if select.select([leader], [], [], 1)[0]:
                seen += os.read(leader, 65536)
        process.send_signal(signal.SIGINT)
        # Whoever is not read does not end.
        while process.poll() is None:
            assert time.monotonic() < end
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    os.read(leader, 65536)
                except OSError:
                    break
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert b"Traceback" not in seen


def test_where_nothing_is_it_fails(tmp_path: Path) -> None:
    capstore("top", tmp_path, "--once").failed("notFound")
    capstore("top", "http://127.0.0.1:1/metrics", "--once").failed("disconnected")


def test_a_unix_socket_tells_who(tmp_path: Path) -> None:
    with serving("m=memory:", "--metrics", "unix:metrics.sock", cwd=tmp_path) as served:
        place = f"unix:{tmp_path / 'metrics.sock'}"
        note = tmp_path / "capstore-data" / "metrics"
        assert note.read_text() == f"{place}\n"
        process = subprocess.Popen(
            [*COMMAND, "top", place, "--json", "--interval", "0.3"], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                capstore("ls", served.uri("m")).ok()
                said = json.loads(line)["busiest"]["references"]
                if said and said[0]["callsPerSecond"]:
                    break
            assert said[0]["label"] == "owner"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        assert served.stop() == 0
    assert not (tmp_path / "metrics.sock").exists()
    assert not note.exists()


# The audit, as one types it ----------------------------------------------------------------------


def audited(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_audit_goes_to_a_file_that_sighup_opens_anew(tmp_path: Path) -> None:
    path = tmp_path / "log" / "audit"
    path.parent.mkdir()
    arguments = ["m=memory:", "--audit", path, "--audit-calls", "Directory.*", "--audit-names"]
    with serving(*arguments) as served:
        capstore("mkdir", served.at("m"), "one").ok()
        wait_until(lambda: any(line["method"] == "mkdir" for line in audited(path)))
        path.rename(tmp_path / "log" / "moved")
        served.process.send_signal(signal.SIGHUP)
        wait_until(path.exists)
        capstore("mkdir", served.at("m"), "two").ok()
        assert served.stop() == 0
        assert "Traceback" not in served.log
        token = served.uri("m").rpartition("/")[2]
    both = [audited(tmp_path / "log" / "moved"), audited(path)]
    made = [[x["name"] for x in lines if x["method"] == "mkdir"] for lines in both]
    assert made == [["one"], ["two"]]
    assert {line["interface"] for lines in both for line in lines} == {"Directory"}
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_audit_goes_to_stderr() -> None:
    with serving("m=memory:", "--audit", "-", "--audit-only", "changes") as served:
        capstore("mkdir", served.at("m"), "one").ok()
        assert served.stop() == 0
        lines = [json.loads(line) for line in served.log.splitlines() if line.startswith("{")]
    assert [line["method"] for line in lines] == ["mkdir"]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--metrics", "0.0.0.0:0"], 2, "Invalid value for '--metrics': everybody who reaches"),
        (["--metrics", "nonsense"], 2, 'Invalid value: "nonsense" is no address'),
        (["--audit-only", "changes"], 2, "Invalid value for '--audit-only': what is audited is"),
        (["--audit-keep", "3"], 2, "Invalid value for '--audit-keep': what is audited is said"),
        (["--audit", "a", "--audit-calls", "Nothing.*"], 2, "Invalid value: no method fits"),
        (["--audit", "a", "--audit-max-bytes", "much"], 2, "Invalid value for '--audit-max-bytes'"),
        (["--audit", "missing/a"], 1, 'notFound: the audit file "a"'),
        (["--audit", "-", "--audit-only", "colours"], 2, "Invalid value for '--audit-only'"),
    ],
)
def test_what_cannot_be_observed(
    arguments: list[str], code: int, error: str, tmp_path: Path
) -> None:
    ran = capstore("serve", "memory:", *arguments, cwd=tmp_path)
    assert (ran.code, ran.raw) == (code, b"")
    assert ran.error.splitlines()[-1].startswith(f"capstore: {error}")


def test_a_volume_does_not_hold_its_own_audit(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    ran = capstore(
        *("serve", f"dir:{served}", "--audit", served / "audit", "--state", tmp_path / "state")
    )
    assert ran.code == 1
    assert "denied" in ran.error
