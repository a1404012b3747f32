"""The fuzzer of the wire: damaged sessions against a service in a process of its own.

Invariants:

* A case passes when the service answers it or closes its connection in time, with nothing of itself
  in the answer: no path, no traceback, no secret.
* Beside all cases a client works that does nothing wrong, and notices nothing.
* Behind all cases the service rests, and holds what it held before: descriptors, and, but for
  `RSS_BYTES_SLACK`, memory.  What it logs of bugs is a fault.
* A case that ends the process is found by running those that were under way one by one.
* Cases go one of two ways (`WAYS`): through the unix socket, or through TLS, damaged or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from capstore.backers.node import NodeKind
from capstore.backers.store import ObjectStore
from capstore.schema.errors import StorageError, TransportError
from capstore.schema.limits import MIB
from capstore.service.client import connect, open_connection
from capstore.service.remote import Directory
from capstore.service.remote_store import RemoteStore
from capstore.service.uri import CapabilityURI
from capstore.tools.fuzz import wire_service
from capstore.tools.fuzz.wire_mutate import case_of
from capstore.tools.fuzz.wire_send import Broken, Case, Plain, Way
from capstore.tools.fuzz.wire_service import Service
from capstore.tools.fuzz.wire_tls import Encrypted
from capstore.tools.fuzz.wire_tour import Session, recorded

WAYS: Final[dict[str, Way]] = {way.name: way for way in (Plain(), Encrypted())}
# The least of a service that every client of it needs answered in time.
QUIET_SECONDS_MAX: Final = 10.0
RSS_BYTES_SLACK: Final = 12 * MIB
_AT_ONCE: Final = 32
_BATCH: Final = 250
_PAUSE_SECONDS: Final = 0.05
_CLEAN_SECONDS: Final = 30.0
# So long it is looked at whether it rests, so often at most, and what share of the processor it may
# have: collections of garbage, and looking after its connections once a second.
_REST_SECONDS: Final = 0.4
_RESTS: Final = 5
_REST_SHARE: Final = 0.3
_FUZZED: Final = ("tree", "objects")
# What a service may not say of itself; its own folder comes on top.
_NEEDLES: Final = (b"Traceback", b'File "', b'.py"', b"site-packages", b"service.pem", b"/proc/")
_BUG: Final = re.compile(
    r"ERROR|Traceback|[Aa]bort|terminate called|Segmentation|Fatal|Exception ignored|never (?:await"
    r"|retriev)ed"
)
_SEEDS_KEPT: Final = 1000
_SAID_SHOWN: Final = 4000


@dataclass(slots=True)
class Report:
    """What became of the cases; `faults` gives the seeds of each, `details` its circumstances."""

    name: str = Plain.name
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    messages: int = 0
    seconds: float = 0.0
    quiet_calls: int = 0
    # Bytes and descriptors of the service, before and behind the cases.
    rss: tuple[int, int] = (0, 0)
    descriptors: tuple[int, int] = (0, 0)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.counts.total()

    def fault(self, what: str, seed: int, detail: str = "") -> None:
        """Takes in what is wrong."""
        seeds = self.faults.setdefault(what, [])
        if len(seeds) < _SEEDS_KEPT:
            seeds.append(seed)
        self.details.setdefault(what, detail)


@dataclass(frozen=True, slots=True)
class _Target:
    """A service, what cases are made of, and the tokens they have."""

    service: Service
    sessions: list[Session]

    @staticmethod
    async def of(service: Service) -> _Target:
        tokens = {name: uri.token for name, uri in service.uris.items()}
        return _Target(service, await recorded(service.socket, tokens))

    async def tokens(self) -> dict[str, str]:
        """New references to the whole volumes."""
        return {name: await _token(self.service.uris[name]) for name in _FUZZED}

    def case(self, seed: int, tokens: Mapping[str, str]) -> Case:
        session, frames = case_of(seed, self.sessions)
        damaged = Session(session.name, session.volume, tuple(frames))
        token = tokens[session.volume]
        return Case(seed, session.with_token(token), damaged.with_token(token))

    def needles(self) -> tuple[bytes, ...]:
        """What is not to be in an answer."""
        service = self.service
        secrets = [uri.token.encode() for uri in service.uris.values()]
        return (*_NEEDLES, str(service.folder).encode(), *secrets)


class Run:
    """Cases against one service after another, as long as cases end it."""

    def __init__(self, report: Report, progress: Callable[[Report], None], way: Way) -> None:
        self._report = report
        self._progress = progress
        self._way = way
        self._begun = time.monotonic()

    async def run(self, seed: int, cases: int | None, seconds: float | None) -> None:
        """Runs cases from `seed` on: `cases` of them, or for `seconds`; the lesser of both."""
        at = seed
        while self._has_more(at - seed, cases, seconds):
            with wire_service.running() as service:
                at = await self._against(await _Target.of(service), seed, at, cases, seconds)
        self._report.seconds = time.monotonic() - self._begun

    def _has_more(self, done: int, cases: int | None, seconds: float | None) -> bool:
        if cases is not None and done >= cases:
            return False
        return seconds is None or time.monotonic() - self._begun < seconds

    async def _against(
        self, target: _Target, seed: int, at: int, cases: int | None, seconds: float | None
    ) -> int:
        """Runs cases from `at` on; returns the one behind the last."""
        report, service = self._report, target.service
        # What is made once is made by now.
        await self._batch(target, range(-_BATCH, 0), counted=False)
        if at == seed:
            self._begun = time.monotonic()
        before = (service.rss(), service.descriptors())
        while self._has_more(at - seed, cases, seconds):
            size = _BATCH if cases is None else min(_BATCH, cases - (at - seed))
            batch = range(at, at + size)
            at += size
            await self._batch(target, batch)
            report.seconds = time.monotonic() - self._begun
            self._progress(report)
            ended = service.ended()
            if ended is not None:
                report.fault(ended, batch[0], service.said()[-_SAID_SHOWN:])
                await self._find(batch, ended)
                return at
            self._look_at_log(service, batch)
        await self._look_at_rest(service, before, seed)
        return at

    async def _look_at_rest(self, service: Service, before: tuple[int, int], seed: int) -> None:
        """What is left behind the cases."""
        report = self._report
        rss, descriptors = await _settled(service, before)
        report.rss, report.descriptors = (before[0], rss), (before[1], descriptors)
        if descriptors > before[1]:
            report.fault("descriptors are left open", seed, f"{before[1]}, then {descriptors}")
        if rss > before[0] + RSS_BYTES_SLACK:
            report.fault("memory is left taken", seed, f"{before[0]} bytes, then {rss}")
        if not await _rests(service):
            report.fault("the service does not come to rest", seed)

    def _look_at_log(self, service: Service, batch: range) -> None:
        said = service.said()
        if bug := _BUG.search(said):
            said = said[said.rfind("\n", 0, bug.start()) + 1 :]
            lines = [line for line in said.splitlines() if line.strip()]
            errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
            what = (errors or lines)[0][:100]
            self._report.fault(f"a bug: {what}", batch[0], said[:_SAID_SHOWN])

    async def _batch(self, target: _Target, batch: range, *, counted: bool = True) -> None:
        service, needles = target.service, target.needles()
        async with _beside(service, self._way, self._report, batch[0]):
            try:
                tokens = await target.tokens()
            except (StorageError, TransportError) as error:
                self._report.fault("the owner is refused", batch[0], str(error))
                return
            places = asyncio.Semaphore(_AT_ONCE)

            async def one(seed: int) -> None:
                case = target.case(seed, tokens)
                async with places:
                    outcome = await self._outcome(service, case, needles)
                if counted:
                    self._report.counts[outcome] += 1
                    self._report.messages += len(case.damaged)

            await asyncio.gather(*map(one, batch))
            if service.ended() is None:
                try:
                    async with asyncio.timeout(_CLEAN_SECONDS):
                        await _clean(service)
                except (StorageError, TransportError, TimeoutError) as error:
                    self._report.fault("the owner cannot clean up", batch[0], repr(error))

    async def _outcome(self, service: Service, case: Case, needles: Sequence[bytes]) -> str:
        try:
            return await self._way.send(service, case, needles)
        except Broken as broken:
            what, _, detail = str(broken).partition("\n")
            self._report.fault(what, case.seed, detail)
        except TimeoutError:
            self._report.fault("no end of the connection", case.seed)
        except OSError as error:
            if service.ended() is None:
                self._report.fault(f"no connection: {type(error).__name__}", case.seed)
        return "failed"

    async def _find(self, batch: range, ended: str) -> None:
        """Which case of the batch ends a service."""
        with wire_service.running() as service:
            target = await _Target.of(service)
            tokens = await target.tokens()
            for seed in batch:
                await self._outcome(service, target.case(seed, tokens), ())
                if service.ended() is not None:
                    self._report.fault(f"{ended}: found", seed, service.said()[-_SAID_SHOWN:])
                    return


@asynccontextmanager
async def _beside(service: Service, way: Way, report: Report, seed: int) -> AsyncIterator[None]:
    """While inside, a client works that does nothing wrong, and goes the way of the cases."""

    async def work() -> None:
        try:
            async with connect(way.uris(service)["quiet"]) as root:
                while True:
                    async with asyncio.timeout(QUIET_SECONDS_MAX):
                        await _turn(root)
                    report.quiet_calls += 1
                    await asyncio.sleep(_PAUSE_SECONDS)
        except (StorageError, TransportError, TimeoutError) as error:
            if service.ended() is None:
                report.fault("the client beside is disturbed", seed, repr(error))

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def _turn(root: object) -> None:
    if not isinstance(root, Directory):
        raise TypeError("a tree was to be served")
    await root.write_file("beside", b"works")
    content, _, _ = await root.read_file("beside")
    if content != b"works":
        raise Broken("the client beside reads something else than it wrote")


async def _token(uri: CapabilityURI) -> str:
    """A new reference to the whole volume."""
    async with connect(uri) as root:
        return await root.save("fuzz")


async def _clean(service: Service) -> None:
    """Removes what cases made: nodes, objects, names, references."""
    for name in _FUZZED:
        uri = service.uris[name]
        async with open_connection(uri) as connection:
            control = await connection.reference(uri.token)
            own = (await control.status()).id
            for reference in await control.list():
                if reference.parent == own:
                    await control.revoke(reference.id)
            root = await connection.root()
            if isinstance(root, Directory):
                await _clear_tree(root)
            elif isinstance(root, RemoteStore):
                await _clear_store(root)


async def _clear_tree(directory: Directory) -> None:
    while True:
        page = await directory.list()
        for entry in page.entries:
            if entry.stat.kind is NodeKind.DIRECTORY:
                await _clear_tree(await directory.sub(entry.name))
            await directory.remove(entry.name)
        if not page.more:
            return


async def _clear_store(store: ObjectStore) -> None:
    while (page := await store.list()).objects:
        for stat in page.objects:
            await store.delete(stat.key)
    if isinstance(store, RemoteStore):
        await store.compact()


async def _settled(service: Service, before: tuple[int, int]) -> tuple[int, int]:
    """Bytes and descriptors, when the service had time to let go of what it will let go of."""
    for _ in range(50):
        now = (service.rss(), service.descriptors())
        if now[1] <= before[1] and now[0] <= before[0] + RSS_BYTES_SLACK:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    return now


async def _rests(service: Service) -> bool:
    """Whether it uses the processor no more when nobody asks it for anything."""
    for _ in range(_RESTS):
        before = service.processor_seconds()
        await asyncio.sleep(_REST_SECONDS)
        if service.processor_seconds() - before < _REST_SHARE * _REST_SECONDS:
            return True
    return False


def fuzz(
    seed: int,
    cases: int | None,
    seconds: float | None,
    progress: Callable[[Report], None] = lambda _: None,
    way: Way = WAYS[Plain.name],
) -> Report:
    """Runs cases from `seed` on, and says what became of them."""
    report = Report(way.name)
    asyncio.run(Run(report, progress, way).run(seed, cases, seconds))
    return report


def lines(report: Report) -> list[str]:
    """What is printed of a report."""
    shown = [
        f"{report.name}: {report.cases} cases in {report.seconds:.1f} s",
        f"  {report.messages:8}  messages",
        *(f"  {count:8}  {outcome}" for outcome, count in sorted(report.counts.items())),
        f"  {report.quiet_calls:8}  turns of the client beside",
        f"  resident    {report.rss[0] / MIB:.0f} MiB, then {report.rss[1] / MIB:.0f} MiB",
        f"  descriptors {report.descriptors[0]}, then {report.descriptors[1]}",
    ]
    for what, seeds in report.faults.items():
        shown.append(f"  FAULT     {what} ({len(seeds)} cases)")
        shown += [f"            --replay {report.name}:{seed}" for seed in seeds[:5]]
        shown += [f"      {line}" for line in report.details[what].splitlines()]
    return shown
