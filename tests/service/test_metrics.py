"""Metrics: they add up with the calls that were made, and are read without harm."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from capstore.backers.memory import MemoryVolume
from capstore.backers.st1 import St1Store
from capstore.backers.wf1 import Wf1Volume
from capstore.schema.errors import Busy, NotFound
from capstore.schema.limits import REFERENCES_MAX, SCRAPES_MAX
from capstore.service import admission, metrics_endpoint
from capstore.service import metrics as metrics_module
from capstore.service.audit import Audit
from capstore.service.client import connect, open_connection
from capstore.service.dispatch import Method
from capstore.service.metrics import BUCKET_SECONDS, BUSIEST_MAX, Metrics
from capstore.service.metrics_endpoint import Endpoint, is_loopback
from capstore.service.remote import Directory
from tests.service.inprocess import Served
from tests.service.observed import ListSink, observed

pytestmark = pytest.mark.anyio

Labels = frozenset[tuple[str, str]]


def samples(metrics: Metrics) -> dict[str, dict[Labels, float]]:
    """What a scrape says, by name and labels."""
    text, kind = metrics.snapshot().text("")
    assert kind.startswith("text/plain")
    return parsed(text)


def parsed(text: bytes) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def labels(**values: str) -> Labels:
    return frozenset(values.items())


# What is counted ---------------------------------------------------------------------------------


async def test_they_add_up_with_the_calls_that_were_made() -> None:
    metrics = Metrics()
    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            for number in range(5):
                file = await root.create(f"file {number}")
                await file.write(0, b"x" * 1000)
                await file.append(b"y" * 24)
                await file.read(0, 100)
            for _ in range(3):
                with pytest.raises(NotFound):
                    await root.lookup("nothing")
            await root.list()
            found = samples(metrics)
            calls = found["capstore_calls_total"]
            assert calls[labels(interface="File", method="write", code="ok")] == 5
            assert calls[labels(interface="Directory", method="lookup", code="notFound")] == 3
            assert calls[labels(interface="Directory", method="list", code="ok")] == 1
            assert found["capstore_written_bytes_total"] == {
                labels(interface="File", method="write"): 5000,
                labels(interface="File", method="append"): 120,
            }
            assert found["capstore_read_bytes_total"] == {
                labels(interface="File", method="read"): 500
            }
            counted = found["capstore_call_seconds_count"]
            for method in {(dict(each)["interface"], dict(each)["method"]) for each in calls}:
                of_it = dict(zip(("interface", "method"), method, strict=True))
                total = sum(count for each, count in calls.items() if labels(**of_it) <= each)
                assert counted[labels(**of_it)] == total
            assert found["capstore_connections"][labels()] == 1
            assert found["capstore_connections_accepted_total"][labels()] == 1
            assert found["capstore_references"][labels()] == 1
            assert found["capstore_calls_in_flight"][labels()] == 0


async def test_they_say_the_same_as_the_audit() -> None:
    metrics, sink = Metrics(), ListSink()
    audit = Audit(sink)
    random = Random(7)
    async with observed({"m": await MemoryVolume.open()}, audit, metrics) as served:
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            reader = await root.read_only()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: root.write_file(f"file {random.randrange(9)}", b"x" * random.randrange(99)),
                lambda: root.read_file(f"file {random.randrange(9)}"),
                lambda: root.remove(f"file {random.randrange(9)}"),
                lambda: reader.mkdir("refused"),
                lambda: reader.list(),
                lambda: connection.reference("W" * 43),
            ]
            for _ in range(20):
                batch = [random.choice(calls)() for _ in range(10)]
                await asyncio.gather(*batch, return_exceptions=True)
        found = await _when_quiet(served, metrics)
    lines = sink.lines
    assert len(lines) > 200
    said = Counter(
        labels(interface=line["interface"], method=line["method"], code=line["code"])
        for line in lines
    )
    assert found["capstore_calls_total"] == said
    moved = sum(sum(found[f"capstore_{way}_bytes_total"].values()) for way in ("read", "written"))
    assert moved == sum(line["bytes"] for line in lines) > 0


async def _when_quiet(served: Served, metrics: Metrics) -> dict[str, dict[Labels, float]]:
    """What they say when all connections have ended."""
    async with asyncio.timeout(10):
        while served.service.sessions:
            await asyncio.sleep(0.01)
    return samples(metrics)


async def test_they_hold_no_secret_and_no_label() -> None:
    metrics = Metrics()
    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            await root.create("NAME-of-entry")
            token = await root.save("LABEL-of-reference")
            await connection.restore(token)
        said = metrics.snapshot().text("")[0] + json.dumps(metrics.busiest(names=False)).encode()
    for secret in (served.unix["m"].token, token, "NAME", "LABEL"):
        assert secret[:8].encode() not in said


def test_the_page_describes_every_metric_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    described = set(re.findall(r"^\| `(capstore_\w+|process_\w+)` \|", page, re.MULTILINE))
    source = Path(metrics_module.__file__).read_text()
    counters = set(re.findall(r'(?:CounterMetricFamily|_counter)\(\s*"(\w+)"', source))
    others = set(
        re.findall(r'(?:GaugeMetricFamily|HistogramMetricFamily|_gauge)\(\s*"(\w+)"', source)
    )
    assert described == {f"{name}_total" for name in counters} | others


async def test_handles_are_those_that_are_open() -> None:
    metrics = Metrics()

    def handles() -> dict[str, float]:
        rows = samples(metrics)["capstore_handles"]
        return {dict(each)["interface"]: count for each, count in rows.items() if count}

    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            files = [await root.create(f"file {number}") for number in range(7)]
            sub = await root.mkdir("sub")
            assert handles() == {"Directory": 2, "File": 7}
            del files, sub
            gc.collect()
            async with asyncio.timeout(10):
                while handles() != {"Directory": 1}:
                    await root.stat()
        async with asyncio.timeout(10):
            while served.service.sessions:
                await asyncio.sleep(0.01)
            while handles():
                await asyncio.sleep(0.01)
                gc.collect()


async def test_latencies_fall_into_their_buckets() -> None:
    metrics = Metrics()
    read = Method("File", "read")
    bounds = [round(seconds * 1e9) for seconds in BUCKET_SECONDS]
    for nanoseconds in (1, bounds[0], bounds[0] + 1, bounds[3], bounds[-1], bounds[-1] + 1):
        metrics.called(read, "ok", 0, nanoseconds, 1, 0)
    found = samples(metrics)
    rows = {
        dict(each)["le"]: count for each, count in found["capstore_call_seconds_bucket"].items()
    }
    assert [rows[repr(seconds)] for seconds in BUCKET_SECONDS] == [2, 3, 3, *[4] * 16, 5]
    assert rows["+Inf"] == 6
    expected = (1 + 2 * bounds[0] + 1 + bounds[3] + 2 * bounds[-1] + 1) / 1e9
    (total,) = found["capstore_call_seconds_sum"].values()
    assert total == pytest.approx(expected)


async def test_flushes_and_checkpoints_of_images(tmp_path: Path) -> None:
    metrics = Metrics()
    volumes = {
        "w": await Wf1Volume.open(tmp_path / "w.wf1", create=True),
        "o": await St1Store.open(tmp_path / "o.st1", create=True),
        "m": await MemoryVolume.open(),
    }
    async with observed(volumes, None, metrics) as served:
        before = samples(metrics)
        assert before["capstore_checkpoints_total"] == {
            labels(volume="w"): 0,
            labels(volume="o"): 0,
        }
        store = served.service._volumes["o"]
        assert isinstance(store, St1Store)
        for _ in range(10):
            await store.put(b"x" * 1000, b"key")
        await store.compact()
        async with connect(served.unix["w"]) as root:
            assert isinstance(root, Directory)
            await root.write_file("x", b"content")
            await root.sync()
        now = samples(metrics)
    assert now["capstore_checkpoints_total"][labels(volume="o")] >= 1
    for volume in ("w", "o"):
        flushes = [each["capstore_flushes_total"][labels(volume=volume)] for each in (before, now)]
        assert flushes[1] > flushes[0]


async def test_collections_of_garbage_and_the_audit_are_counted() -> None:
    metrics, sink = Metrics(), ListSink()
    audit = Audit(sink)
    async with observed({"m": await MemoryVolume.open()}, audit, metrics) as served:
        before = samples(metrics)["capstore_gc_collections_total"][labels(generation="2")]
        gc.collect()
        found = samples(metrics)
        assert found["capstore_gc_collections_total"][labels(generation="2")] == before + 1
        assert found["capstore_gc_pause_seconds_total"][labels(generation="2")] > 0
        async with connect(served.unix["m"]) as root:
            await root.stat()
        async with asyncio.timeout(10):
            while audit.waiting:
                await asyncio.sleep(0.01)
        assert samples(metrics)["capstore_audit_lines_total"][labels()] == len(sink.lines) > 1
    assert metrics._collected not in gc.callbacks


async def test_refused_and_displaced_connections_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "CONNECTIONS_OF_PEER_MAX", 2)
    metrics = Metrics()
    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        path = str(served.folder / "socket")

        async def counted(name: str, expected: Mapping[Labels, float]) -> None:
            async with asyncio.timeout(10):
                while samples(metrics).get(name, {}) != expected:
                    await asyncio.sleep(0.01)

        async with connect(served.unix["m"]):
            strangers = [await asyncio.open_unix_connection(path) for _ in range(3)]
            # Each made room for the one behind it.
            await counted("capstore_connections_displaced_total", {labels(): 2})
            async with connect(served.unix["m"]):
                await counted("capstore_connections_displaced_total", {labels(): 3})
                strangers.append(await asyncio.open_unix_connection(path))
                # Who has shown a token makes no room.
                await counted(
                    "capstore_connections_refused_total", {labels(reason="connections"): 1}
                )
                await counted("capstore_connections_displaced_total", {labels(): 3})
        for _, writer in strangers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


# Who is busy -------------------------------------------------------------------------------------


async def test_the_busiest_are_told_and_only_who_may_know_learns_who_they_are() -> None:
    metrics = Metrics()
    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        uri = served.unix["m"]
        async with open_connection(uri) as owner:
            root = await owner.root()
            assert isinstance(root, Directory)
            token = await root.save("CI job 17")
            async with connect(uri.with_token(token)) as lent:
                for _ in range(20):
                    await lent.stat()
                told = metrics.busiest(names=True)
                public = metrics.busiest(names=False)
    assert [row["reference"] for row in told["references"]] == [2, 1]
    assert told["references"][0]["label"] == "CI job 17"
    assert told["references"][0]["calls"] == 21
    assert [row["connection"] for row in told["connections"]] == [2, 1]
    assert "uid" in told["connections"][0]
    for row in public["connections"] + public["references"]:
        assert row.keys() <= {"connection", "reference", "calls", "bytes"}


def test_what_is_kept_of_references_is_bounded() -> None:
    metrics = Metrics()
    method = Method("File", "read")
    for _ in range(3):
        metrics.called(method, "ok", 7, 1000, 1, 1)
    for reference in range(2, REFERENCES_MAX + 100):
        metrics.called(method, "ok", 0, 1000, 1, reference)
    assert len(metrics._references) <= REFERENCES_MAX
    busiest = metrics.busiest(names=True)["references"]
    assert len(busiest) == BUSIEST_MAX
    assert busiest[0] == {"reference": 1, "calls": 3, "bytes": 21}


# The endpoint ------------------------------------------------------------------------------------


@asynccontextmanager
async def endpoint_of(metrics: Metrics) -> AsyncIterator[Endpoint]:
    endpoint = await Endpoint.listen_tcp(metrics, "127.0.0.1", 0)
    try:
        yield endpoint
    finally:
        await endpoint.close()


def port_of(endpoint: Endpoint) -> int:
    return int(endpoint.url.split(":")[2].split("/")[0])


async def asked(endpoint: Endpoint, request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of what is answered."""
    async with asyncio.timeout(10):
        if endpoint.url.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(endpoint.url[5:])
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(endpoint))
        writer.write(request)
        try:
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        except ConnectionResetError:
            head = body = b""
        writer.transport.abort()
        return head, body


def get(what: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {what} HTTP/1.1", *headers, "", "")).encode()


async def test_prometheus_reads_them() -> None:
    metrics = Metrics()
    metrics.called(Method("File", "read"), "ok", 5, 100, 1, 0)
    async with endpoint_of(metrics) as endpoint:
        head, body = await asked(endpoint, get("/metrics", "Host: 127.0.0.1:9464"))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert f"Content-Length: {len(body)}".encode() in head
        assert parsed(body)["capstore_read_bytes_total"] == {
            labels(interface="File", method="read"): 5
        }
        wants = "Accept: application/openmetrics-text; version=1.0.0"
        head, body = await asked(endpoint, get("/metrics", wants))
        assert b"application/openmetrics-text" in head
        assert {family.name for family in parse_openmetrics(body.decode())} >= {"capstore_calls"}
        head, body = await asked(endpoint, get("/busiest"))
        assert json.loads(body) == {"connections": [], "references": []}
        head, body = await asked(endpoint, b"HEAD /metrics HTTP/1.0\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9464\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET " + b"x" * 100_000, 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    ],
)
async def test_what_is_not_for_it_is_refused(request_bytes: bytes, status: int) -> None:
    async with endpoint_of(Metrics()) as endpoint:
        head, _ = await asked(endpoint, request_bytes)
        # What is sent behind the limit may reset the connection before the answer is read.
        assert head.startswith(f"HTTP/1.1 {status} ".encode()) or len(request_bytes) > 8192
        head, _ = await asked(endpoint, get("/metrics", "Host: localhost"))
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_connections_to_it_are_bounded_in_number_and_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_endpoint, "SCRAPE_SECONDS_MAX", 0.3)
    async with endpoint_of(Metrics()) as endpoint:
        address = ("127.0.0.1", port_of(endpoint))
        streams = [await asyncio.open_connection(*address) for _ in range(SCRAPES_MAX)]
        async with asyncio.timeout(10):
            while len(endpoint._tasks) < SCRAPES_MAX:
                await asyncio.sleep(0)
            assert await asked(endpoint, get("/metrics")) == (b"", b"")
            for reader, writer in streams:
                assert await reader.read() == b""
                writer.transport.abort()
            while endpoint._tasks:
                await asyncio.sleep(0.01)
        head, _ = await asked(endpoint, get("/metrics"))
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_unix_socket_is_private_and_tells_who(tmp_path: Path) -> None:
    metrics = Metrics()
    async with observed({"m": await MemoryVolume.open()}, None, metrics) as served:
        path = tmp_path / "metrics"
        endpoint = await Endpoint.listen_unix(metrics, path)
        try:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with connect(served.unix["m"]) as root:
                await root.stat()
                _, body = await asked(endpoint, get("/busiest", "Host: anything"))
            told = json.loads(body)
            assert told["references"][0]["label"] == "owner"
            assert "uid" in told["connections"][0]
        finally:
            await endpoint.close()
        assert not path.exists()


async def test_a_port_in_use_is_busy() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(Busy):
            await Endpoint.listen_tcp(Metrics(), "127.0.0.1", other.getsockname()[1])


async def test_nobody_waits_for_it_at_its_end() -> None:
    metrics = Metrics()
    endpoint = await Endpoint.listen_tcp(metrics, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(endpoint))
    while not endpoint._tasks:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await endpoint.close()
        assert await reader.read() == b""
    writer.transport.abort()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
