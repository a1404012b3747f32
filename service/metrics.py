"""Counts of what a service does, as Prometheus reads them.

Invariants:

* A call costs a few additions to plain integers on the loop; there are no locks, for nothing else
  changes them.  What a scrape shows is copied on the loop in one turn, so its numbers are of one
  moment, and put into words in a worker.
* No series is named after a connection or a reference, of which there is no end.  `busiest` tells
  of those, as JSON, and of labels and peers only to who may know them.
* The registry is the service's own; nothing is counted across services, but what is the process's
  (the collections of garbage), and that only between `begin` and `close`.

The words are those of `prometheus_client`, the project's own library: pure Python without
dependencies, and it knows the formats and their escapes.  Its counters are not used for calls: with
a lock and a search through the buckets for each they would cost several times as much.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from capstore.backers.driver import Upkeep
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectStore
from capstore.backers.wf1 import Wf1Volume
from capstore.schema import wire
from capstore.schema.limits import REFERENCES_MAX
from capstore.service.dispatch import Answering, Method

if TYPE_CHECKING:
    from capstore.service.audit import Audit
    from capstore.service.server import Service

__all__ = ["BUCKET_SECONDS", "BUSIEST_MAX", "Metrics"]

# Latencies are counted in powers of two: of 2**15 ns (33 us), to about 17 s and above.
_FIRST_BIT: Final = 15
_BUCKETS: Final = 20
_NANOSECONDS: Final = 1e9
BUCKET_SECONDS: Final = tuple(2 ** (_FIRST_BIT + each) / _NANOSECONDS for each in range(_BUCKETS))
# So many connections, and references, `busiest` tells of.
BUSIEST_MAX: Final = 50


class _Counts:
    """The calls of one method."""

    __slots__ = ("buckets", "codes", "moved", "nanoseconds")

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.buckets = [0] * (_BUCKETS + 1)
        self.nanoseconds = 0
        self.moved = 0

    def copy(self) -> _Counts:
        copied = _Counts()
        copied.codes = dict(self.codes)
        copied.buckets = list(self.buckets)
        copied.nanoseconds, copied.moved = self.nanoseconds, self.moved
        return copied


class Metrics:
    """The counts of one service; to be used on one event loop."""

    def __init__(self) -> None:
        self.handles: Counter[type[Answering]] = Counter()
        self._methods: dict[Method, _Counts] = {}
        # Calls and bytes, by the number of a connection and by the id of a reference.
        self._connections: dict[int, list[int]] = {}
        self._references: dict[int, list[int]] = {}
        self._accepted = 0
        self._refused: Counter[str] = Counter()
        self._displaced = 0
        self._collections = [0] * len(gc.get_threshold())
        self._collecting_ns = [0] * len(gc.get_threshold())
        self._collecting_since = 0
        self._service: Service | None = None
        self._audit: Audit | None = None
        self._generations: dict[str, int] = {}

    def __repr__(self) -> str:
        calls = sum(sum(counts.codes.values()) for counts in self._methods.values())
        return f"<Metrics of {calls} calls>"

    def begin(self, service: Service, audit: Audit | None) -> None:
        """Counts what `service` does from now on."""
        self._service, self._audit = service, audit
        self._generations = {
            name: sum(each.generation for each in upkeeps) for name, upkeeps in _upkeeps(service)
        }
        gc.callbacks.append(self._collected)
        # What the library loads for each format is loaded before anything is given up.
        for accepted in ("", "application/openmetrics-text; version=1.0.0"):
            self.snapshot().text(accepted)

    async def close(self) -> None:
        """Lets go of the service and the process."""
        if self._service is not None:
            gc.callbacks.remove(self._collected)
        self._service = self._audit = None

    # Counting ------------------------------------------------------------------------------------

    def called(
        self,
        method: Method,
        code: str,
        moved: int,
        nanoseconds: int,
        connection: int,
        reference: int,
    ) -> None:
        """Counts a call that has ended."""
        counts = self._methods.get(method)
        if counts is None:
            counts = self._methods[method] = _Counts()
        codes = counts.codes
        codes[code] = codes.get(code, 0) + 1
        counts.nanoseconds += nanoseconds
        bucket = (nanoseconds - 1 >> _FIRST_BIT).bit_length()
        counts.buckets[bucket if bucket < _BUCKETS else _BUCKETS] += 1
        counts.moved += moved
        tally = self._connections.get(connection)
        if tally is not None:
            tally[0] += 1
            tally[1] += moved
        if reference:
            tally = self._references.get(reference)
            if tally is None:
                tally = self._tally_of(reference)
            tally[0] += 1
            tally[1] += moved

    def _tally_of(self, reference: int) -> list[int]:
        if len(self._references) >= REFERENCES_MAX:
            # Those that were used least are not among the busiest.
            kept = sorted(self._references.items(), key=lambda each: each[1][0])
            self._references = dict(kept[len(kept) // 2 :])
        return self._references.setdefault(reference, [0, 0])

    def connected(self, connection: int) -> None:
        """Counts a connection that was made."""
        self._accepted += 1
        self._connections[connection] = [0, 0]

    def disconnected(self, connection: int) -> None:
        """Forgets a connection."""
        self._connections.pop(connection, None)

    def refused(self, reason: str) -> None:
        """Counts a connection that was not let in."""
        self._refused[reason] += 1

    def displaced(self) -> None:
        """Counts a connection that was closed to make room for another."""
        self._displaced += 1

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter_ns()
        else:
            generation = info["generation"]
            self._collections[generation] += 1
            self._collecting_ns[generation] += time.perf_counter_ns() - self._collecting_since

    # Showing -------------------------------------------------------------------------------------

    def busiest(self, *, names: bool) -> dict[str, list[dict[str, object]]]:
        """The connections and references with the most calls, and with `names` who they are."""
        service = self._service
        sessions = {} if service is None else {each.number: each for each in service.sessions}
        connections, references = [], []
        for number, (calls, moved) in _most(self._connections):
            row: dict[str, object] = {"connection": number, "calls": calls, "bytes": moved}
            if names and number in sessions:
                row.update(sessions[number].peer)
            connections.append(row)
        for reference, (calls, moved) in _most(self._references):
            row = {"reference": reference, "calls": calls, "bytes": moved}
            if names and service is not None:
                row["label"] = service.label_of(reference)
            references.append(row)
        return {"connections": connections, "references": references}

    def snapshot(self) -> Snapshot:
        """What a scrape shows, as it is now."""
        methods = {method: counts.copy() for method, counts in self._methods.items()}
        return Snapshot(methods, [*self._of_service(), *self._of_process()])

    def _of_service(self) -> Iterator[Metric]:
        service = self._service
        if service is None:
            return
        sessions = service.sessions
        yield _gauge("capstore_connections", "Connections there are.", len(sessions))
        yield _counter("capstore_connections_accepted", "Connections made.", self._accepted)
        refused = CounterMetricFamily(
            "capstore_connections_refused", "Connections not let in.", labels=["reason"]
        )
        for reason, count in self._refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield _counter(
            "capstore_connections_displaced",
            "Connections without a token that were closed to make room.",
            self._displaced,
        )
        yield _gauge(
            "capstore_calls_in_flight",
            "Calls under way.",
            sum(each.calls_in_flight for each in sessions),
        )
        yield _gauge(
            "capstore_unsent_bytes",
            "Answers that wait to be taken.",
            sum(each.unsent_bytes for each in sessions),
        )
        handles = GaugeMetricFamily(
            "capstore_handles", "Capabilities handed out, by interface.", labels=["interface"]
        )
        for kind, count in list(self.handles.items()):
            handles.add_metric([kind.__name__.removesuffix("Server")], count)
        yield handles
        yield _gauge("capstore_references", "Saved references.", service.reference_count)
        yield from self._of_volumes(service)
        if self._audit is not None:
            yield _counter("capstore_audit_lines", "Lines of the audit.", self._audit.lines)
            yield _counter(
                "capstore_audit_lost", "Lines that could not be written.", self._audit.lost
            )
            yield _gauge("capstore_audit_waiting", "Lines yet to be written.", self._audit.waiting)

    def _of_volumes(self, service: Service) -> Iterator[Metric]:
        flushes = CounterMetricFamily(
            "capstore_flushes", "Flushes of an image, shared by who waits.", labels=["volume"]
        )
        tables = CounterMetricFamily(
            "capstore_checkpoints",
            "Checkpoints of a CAPOSWF1 image, compactions of a CAPOSST1 image.",
            labels=["volume"],
        )
        for name, upkeeps in _upkeeps(service):
            generations = sum(each.generation for each in upkeeps)
            flushes.add_metric([name], sum(each.flushes for each in upkeeps))
            tables.add_metric([name], generations - self._generations.get(name, 0))
        yield flushes
        yield tables

    def _of_process(self) -> Iterator[Metric]:
        collections = CounterMetricFamily(
            "capstore_gc_collections", "Collections of cyclic garbage.", labels=["generation"]
        )
        pauses = CounterMetricFamily(
            "capstore_gc_pause_seconds", "What they took.", labels=["generation"]
        )
        for generation, count in enumerate(self._collections):
            collections.add_metric([str(generation)], count)
            seconds = self._collecting_ns[generation] / _NANOSECONDS
            pauses.add_metric([str(generation)], seconds)
        yield collections
        yield pauses
        yield _counter("process_cpu_seconds", "Time on all processors.", time.process_time())


class Snapshot:
    """What a scrape shows; nothing changes it any more, so it may be told in any thread."""

    def __init__(self, methods: Mapping[Method, _Counts], others: Iterable[Metric]) -> None:
        self._methods = methods
        self._others = list(others)

    def collect(self) -> Iterator[Metric]:
        """As a collector of `prometheus_client` has it."""
        calls = CounterMetricFamily(
            "capstore_calls", "Calls that ended.", labels=["interface", "method", "code"]
        )
        latency = HistogramMetricFamily(
            "capstore_call_seconds",
            "How long calls took, until their answer was queued.",
            labels=["interface", "method"],
        )
        read = CounterMetricFamily(
            "capstore_read_bytes", "Content read.", labels=["interface", "method"]
        )
        written = CounterMetricFamily(
            "capstore_written_bytes", "Content written.", labels=["interface", "method"]
        )
        for method, counts in self._methods.items():
            names = [method.interface, method.name]
            for code, count in counts.codes.items():
                calls.add_metric([*names, code], count)
            latency.add_metric(names, _cumulated(counts.buckets), counts.nanoseconds / _NANOSECONDS)
            if counts.moved:
                moved = read if _reads(method) else written
                moved.add_metric(names, counts.moved)
        yield from (calls, latency, read, written, *self._others)

    def text(self, accepted: str) -> tuple[bytes, str]:
        """All of it in a format that the header ``Accept`` asks for, and its type."""
        registry = CollectorRegistry()
        registry.register(self)
        encode, kind = choose_encoder(accepted)
        return encode(registry), kind


def _cumulated(buckets: Iterable[int]) -> list[tuple[str, float]]:
    bounds = [*(repr(seconds) for seconds in BUCKET_SECONDS), "+Inf"]
    total, cumulated = 0, []
    for bound, count in zip(bounds, buckets, strict=True):
        total += count
        cumulated.append((bound, float(total)))
    return cumulated


def _reads(method: Method) -> bool:
    """Whether the content that a method moves goes to the caller."""
    interface: Any = getattr(wire, method.interface)
    return "data" in interface.schema.methods[method.name].result_type.fields


def _most(tallies: Mapping[int, list[int]]) -> list[tuple[int, list[int]]]:
    ordered = sorted(tallies.items(), key=lambda each: each[1], reverse=True)
    return ordered[:BUSIEST_MAX]


def _upkeeps(service: Service) -> Iterator[tuple[str, list[Upkeep]]]:
    """What is counted of the images behind each name that has some."""
    for name, volume in service.volumes:
        upkeeps = list(_upkeeps_of(volume))
        if upkeeps:
            yield name, upkeeps


def _upkeeps_of(volume: Volume | ObjectStore) -> Iterator[Upkeep]:
    if isinstance(volume, Wf1Volume | St1Store):
        yield volume.upkeep
    elif isinstance(volume, OverlayVolume):
        for layer in volume.layers:
            yield from _upkeeps_of(layer.volume)
    elif isinstance(volume, MountsVolume):
        for source in volume._volumes:
            yield from _upkeeps_of(source)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)
