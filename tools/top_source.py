"""Where ``capstore top`` gets its numbers: the metrics of a service, read as Prometheus does.

Invariants:

* What is read is bounded in size and time, and believed no further than numbers: an answer that is
  none is `Corrupt`.
* Two looks give rates; where a counter went down the service was started anew, and what it has
  counted is all since then.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from capstore.schema.errors import Corrupt, Disconnected, InvalidArgument, NotFound
from capstore.tools.observing import METRICS_NOTE

__all__ = ["Look", "MethodRates", "Rates", "Source", "rates_between", "source_of"]

_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_SECONDS_MAX: Final = 10
_NOTE_BYTES_MAX: Final = 4096
_P50, _P99 = 0.5, 0.99

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where metrics are read: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    def get(self, what: str) -> bytes:
        """The answer to ``GET what``, blocking.  Raises `Disconnected`, `Corrupt`."""
        connection = self._connection()
        try:
            connection.request("GET", what)
            response = connection.getresponse()
            body = response.read(_ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Disconnected(f"no metrics at {self}: {error}") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise Corrupt(f"what is at {self} answers {response.status} for {what}")
        if len(body) > _ANSWER_BYTES_MAX:
            raise Corrupt(f"what is at {self} answers more than a service does")
        return body

    def _connection(self) -> http.client.HTTPConnection:
        if self.path:
            return _UnixConnection(self.path)
        return http.client.HTTPConnection(self.host, self.port, timeout=_SECONDS_MAX)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def source_of(text: str, folder: Path) -> Source:
    """The source that `text` stands for, or that the state directory `folder` notes.

    Raises `InvalidArgument`, and `NotFound` for a directory that notes none."""
    if text.startswith("unix:") and text != "unix:":
        return Source(path=text.removeprefix("unix:"))
    if "://" in text:
        return _at_url(text)
    try:
        with (folder / METRICS_NOTE).open("rb") as file:
            noted = file.read(_NOTE_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError):
        raise NotFound(
            f'"{text}" is no address, and no state directory of a service with --metrics'
        ) from None
    return Source(path=noted.removeprefix("unix:")) if noted[:5] == "unix:" else _at_url(noted)


def _at_url(url: str) -> Source:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or not host or parts.path not in ("", "/", "/metrics"):
        raise InvalidArgument("metrics are at http://HOST:PORT/metrics or unix:PATH")
    return Source(host, port or http.client.HTTP_PORT)


# One look ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Look:
    """The samples of one scrape, by name and the values of their labels; `at` is in seconds."""

    at: float
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)
    busiest: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @staticmethod
    def of(text: bytes, busiest: bytes, at: float) -> Look:
        """Raises `Corrupt`."""
        look = Look(at)
        try:
            for family in text_string_to_metric_families(text.decode()):
                for sample in family.samples:
                    labels = _in_order(sample.labels)
                    look.samples.setdefault(sample.name, {})[labels] = float(sample.value)
            look.busiest = _rows(json.loads(busiest))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt("what answers is no service of capstore") from error
        if "capstore_connections" not in look.samples:
            raise Corrupt("what answers is no service of capstore")
        return look

    def value(self, name: str) -> float:
        """The sum of all samples of this name."""
        return sum(self.samples.get(name, {}).values())


def _in_order(labels: Mapping[str, str]) -> Labels:
    """The values of labels: the method behind its interface, and behind that what else there is."""
    return tuple(labels[name] for name in sorted(labels, key=_rank))


def _rank(label: str) -> int:
    return {"interface": 0, "method": 1}.get(label, 2)


def _rows(document: Any) -> dict[str, list[dict[str, Any]]]:
    return {name: [dict(row) for row in document[name]] for name in ("connections", "references")}


# Two looks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MethodRates:
    """One method: calls and failed calls per second, the median and the 99th percentile of their
    time in seconds (None without calls), bytes per second."""

    name: str
    calls: float
    failures: float
    p50: float | None
    p99: float | None
    bytes: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two looks, per second, and what there is now."""

    seconds: float
    calls: float
    failures: float
    read_bytes: float
    written_bytes: float
    methods: Sequence[MethodRates]
    gauges: Mapping[str, float]
    handles: Mapping[str, float]
    totals: Mapping[str, float]
    connections: Sequence[Mapping[str, Any]]
    references: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {
            "seconds": round(self.seconds, 3),
            "callsPerSecond": self.calls,
            "failuresPerSecond": self.failures,
            "readBytesPerSecond": self.read_bytes,
            "writtenBytesPerSecond": self.written_bytes,
            "methods": [
                {
                    "method": each.name,
                    "callsPerSecond": each.calls,
                    "failuresPerSecond": each.failures,
                    "p50Seconds": each.p50,
                    "p99Seconds": each.p99,
                    "bytesPerSecond": each.bytes,
                }
                for each in self.methods
            ],
            "now": dict(self.gauges),
            "handles": dict(self.handles),
            "totals": dict(self.totals),
            "busiest": {
                "connections": list(self.connections),
                "references": list(self.references),
            },
        }


_GAUGES: Final = {
    "connections": "capstore_connections",
    "callsInFlight": "capstore_calls_in_flight",
    "references": "capstore_references",
    "unsentBytes": "capstore_unsent_bytes",
}
_TOTALS: Final = {
    "connectionsAccepted": "capstore_connections_accepted_total",
    "connectionsRefused": "capstore_connections_refused_total",
    "flushes": "capstore_flushes_total",
    "checkpoints": "capstore_checkpoints_total",
    "auditLost": "capstore_audit_lost_total",
    "gcPauseSeconds": "capstore_gc_pause_seconds_total",
}


def rates_between(before: Look, now: Look) -> Rates:
    """What happened between two looks."""
    seconds = max(now.at - before.at, 1e-9)

    def rate(name: str) -> float:
        return sum(_changes(before, now, name).values()) / seconds

    calls = _changes(before, now, "capstore_calls_total")
    methods = [_method(before, now, each, calls, seconds) for each in sorted(_methods(calls))]
    return Rates(
        seconds=seconds,
        calls=sum(calls.values()) / seconds,
        failures=_failed(calls) / seconds,
        read_bytes=rate("capstore_read_bytes_total"),
        written_bytes=rate("capstore_written_bytes_total"),
        methods=sorted(methods, key=lambda each: -each.calls),
        gauges={name: now.value(sample) for name, sample in _GAUGES.items()},
        handles={
            labels[0]: count for labels, count in now.samples.get("capstore_handles", {}).items()
        },
        totals={name: now.value(sample) for name, sample in _TOTALS.items()},
        connections=_busy(before, now, "connections", "connection", seconds),
        references=_busy(before, now, "references", "reference", seconds),
    )


def _changes(before: Look, now: Look, name: str) -> dict[Labels, float]:
    """By how much each sample went up; all of it where it went down."""
    old = before.samples.get(name, {})
    return {
        labels: value - old.get(labels, 0.0) if value >= old.get(labels, 0.0) else value
        for labels, value in now.samples.get(name, {}).items()
    }


def _methods(calls: Mapping[Labels, float]) -> set[Labels]:
    return {labels[:2] for labels, count in calls.items() if count and len(labels) == 3}


def _failed(calls: Mapping[Labels, float]) -> float:
    return sum(count for labels, count in calls.items() if labels[-1] not in ("ok", "cancelled"))


def _method(
    before: Look, now: Look, method: Labels, calls: Mapping[Labels, float], seconds: float
) -> MethodRates:
    of_it = {labels: count for labels, count in calls.items() if labels[:2] == method}
    buckets = {
        float(labels[2]): count
        for labels, count in _changes(before, now, "capstore_call_seconds_bucket").items()
        if labels[:2] == method
    }
    moved = sum(
        _changes(before, now, f"capstore_{way}_bytes_total").get(method, 0.0)
        for way in ("read", "written")
    )
    return MethodRates(
        name=".".join(method),
        calls=sum(of_it.values()) / seconds,
        failures=_failed(of_it) / seconds,
        p50=quantile(buckets, _P50),
        p99=quantile(buckets, _P99),
        bytes=moved / seconds,
    )


def quantile(cumulated: Mapping[float, float], share: float) -> float | None:
    """The quantile that a histogram tells, as Prometheus's ``histogram_quantile``: within a bucket
    evenly spread, and above the last bound that bound."""
    bounds = sorted(cumulated)
    if not bounds or not cumulated[bounds[-1]]:
        return None
    wanted = share * cumulated[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        count = cumulated[bound]
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


def _busy(before: Look, now: Look, kind: str, key: str, seconds: float) -> list[dict[str, Any]]:
    """The rows of one kind with their rates, the busiest first."""
    old = {row.get(key): row for row in before.busiest.get(kind, ())}
    rows = []
    for row in now.busiest.get(kind, ()):
        then = old.get(row.get(key), {})
        found = {name: value for name, value in row.items() if name not in ("calls", "bytes")}
        for count in ("calls", "bytes"):
            total = _number(row.get(count))
            gone = _number(then.get(count))
            found[f"{count}PerSecond"] = (total - gone if total >= gone else total) / seconds
        rows.append(found)
    return sorted(rows, key=_busyness)


def _busyness(row: Mapping[str, Any]) -> float:
    return -float(row["callsPerSecond"])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def parts_of(rows: Iterable[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first of `rows` that do anything."""
    return [row for row in rows if row["callsPerSecond"]][:most]
