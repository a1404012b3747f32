"""The fuzzer of the wire: damaged sessions against a service in a process of its own.

Invariants:

* A case is good when the service answers it or closes its connection, within `CASE_SECONDS_MAX`,
  with nothing of itself in the answer: no path, no traceback, no secret.
* Beside all cases a client works that does nothing wrong, and notices nothing.
* Behind all cases the service holds what it held before: descriptors, and, but for
  `RSS_BYTES_SLACK`, memory.  What it logs of bugs is a fault.
* A case that ends the process is found by running those that were under way one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capstore.backers.node import NodeKind
from capstore.backers.store import ObjectStore
from capstore.schema.errors import StorageError, TransportError
from capstore.schema.limits import KIB, MIB
from capstore.service.client import connect, open_connection
from capstore.service.remote import Directory
from capstore.service.remote_store import RemoteStore
from capstore.service.uri import CapabilityURI
from capstore.tools.fuzz.wire_mutate import case_of
from capstore.tools.fuzz.wire_tour import Session, recorded

NAME: Final = "wire"
CASE_SECONDS_MAX: Final = 20.0
# The least of a service that every client of it needs answered in time.
QUIET_SECONDS_MAX: Final = 10.0
RSS_BYTES_SLACK: Final = 24 * MIB
_AT_ONCE: Final = 32
_BATCH: Final = 250
_QUIET_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 30.0
_READ_BYTES: Final = 256 * KIB
# What a service may not say of itself; its own folder comes on top.
_NEEDLES: Final = (b"Traceback", b'File "', b'.py"', b"site-packages", b"service.pem", b"/proc/")
_BUG: Final = re.compile(r"ERROR|Traceback|[Aa]bort|terminate called|Segmentation|Fatal")
_SEEDS_KEPT: Final = 1000


@dataclass(slots=True)
class Report:
    """What became of the cases; `faults` gives the seeds of each, `details` its circumstances."""

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


class Service:
    """A process that serves a tree, objects, and a tree for the client beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stderr = (folder / "stderr").open("w+b")
        self._read = 0
        volumes = ("tree=memory:", f"objects=st1:{folder}/objects.st1,create", "quiet=memory:")
        options = ("--state", str(folder / "state"), "--log-level", "error")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "capstore.tools.main", "serve", *volumes, *options],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self.uris: dict[str, CapabilityURI] = {}
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        for _ in volumes:
            line = self._process.stdout.readline().decode()
            name, _, uri = line.strip().partition("\t")
            self.uris[name] = CapabilityURI.parse(uri)

    @property
    def socket(self) -> str:
        """Where it listens."""
        return self.uris["tree"].socket or ""

    def ended(self) -> str | None:
        """How the process ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"the service ended with {signal.Signals(-code).name if code < 0 else code}"

    def said(self) -> str:
        """What it wrote on standard error since the last time."""
        self._stderr.seek(self._read)
        text = self._stderr.read()
        self._read += len(text)
        return text.decode(errors="replace")

    def rss(self) -> int:
        """Resident bytes; 0 where the system does not tell."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * KIB
        return 0

    def descriptors(self) -> int:
        """How many are open; 0 where the system does not tell."""
        try:
            return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))
        except OSError:
            return 0

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()


@contextlib.contextmanager
def _service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="capstore-fuzz-") as folder:
        service = Service(Path(folder))
        try:
            yield service
        finally:
            service.stop()


class Broken(Exception):
    """What a case found wrong."""


async def send(socket: str, frames: Sequence[bytes], needles: Sequence[bytes]) -> str:
    """Sends a case and takes what comes back; returns ``answered`` or ``closed``.

    Raises `Broken`.
    """
    async with asyncio.timeout(CASE_SECONDS_MAX):
        reader, writer = await asyncio.open_unix_connection(socket, limit=_READ_BYTES)
        outcome = "answered"
        got = bytearray()
        try:
            writer.write(b"".join(frames))
            while True:
                try:
                    data = await asyncio.wait_for(reader.read(_READ_BYTES), _QUIET_SECONDS)
                except TimeoutError:
                    break
                if not data:
                    outcome = "closed"
                    break
                got += data
            if outcome == "answered" and writer.can_write_eof():
                writer.write_eof()
                while data := await reader.read(_READ_BYTES):
                    got += data
        except (ConnectionError, BrokenPipeError):
            outcome = "closed"
        finally:
            writer.transport.abort()
    for needle in needles:
        if needle in got:
            at = got.index(needle)
            shown = bytes(got[max(0, at - 100) : at + 100])
            raise Broken(f"the answer tells of the service: {needle!r}\n{shown!r}")
    return outcome


class Run:
    """Cases against one service after another, as long as cases end it."""

    def __init__(self, report: Report, progress: Callable[[Report], None]) -> None:
        self._report = report
        self._progress = progress
        self._begun = time.monotonic()

    async def run(self, seed: int, cases: int | None, seconds: float | None) -> None:
        """Runs cases from `seed` on: `cases` of them, or for `seconds`; the lesser of both."""
        at = seed
        while self._has_more(at - seed, cases, seconds):
            with _service() as service:
                sessions = await recorded(
                    service.socket, {name: uri.token for name, uri in service.uris.items()}
                )
                at = await self._against(service, sessions, seed, at, cases, seconds)
        self._report.seconds = time.monotonic() - self._begun

    def _has_more(self, done: int, cases: int | None, seconds: float | None) -> bool:
        if cases is not None and done >= cases:
            return False
        return seconds is None or time.monotonic() - self._begun < seconds

    async def _against(
        self,
        service: Service,
        sessions: list[Session],
        seed: int,
        at: int,
        cases: int | None,
        seconds: float | None,
    ) -> int:
        """Runs cases from `at` on; returns the one behind the last."""
        report = self._report
        # What is made once is made by now.
        await self._batch(service, sessions, range(-_BATCH, 0), counted=False)
        before = (service.rss(), service.descriptors())
        while self._has_more(at - seed, cases, seconds):
            size = _BATCH if cases is None else min(_BATCH, cases - (at - seed))
            batch = range(at, at + size)
            at += size
            await self._batch(service, sessions, batch)
            report.seconds = time.monotonic() - self._begun
            self._progress(report)
            ended = service.ended()
            if ended is not None:
                report.fault(ended, batch[0], service.said()[-4000:])
                await self._find(batch, ended)
                return at
            self._look_at_log(service, batch)
        rss, descriptors = await _settled(service, before)
        report.rss, report.descriptors = (before[0], rss), (before[1], descriptors)
        if descriptors > before[1]:
            report.fault("descriptors are left open", seed, f"{before[1]}, then {descriptors}")
        if rss > before[0] + RSS_BYTES_SLACK:
            report.fault("memory is left taken", seed, f"{before[0]} bytes, then {rss}")
        return at

    def _look_at_log(self, service: Service, batch: range) -> None:
        said = service.said()
        if _BUG.search(said):
            lines = [line for line in said.splitlines() if line.strip()]
            errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
            what = (errors or lines)[0][:100]
            self._report.fault(f"a bug: {what}", batch[0], said[:4000])

    async def _batch(
        self, service: Service, sessions: list[Session], batch: range, *, counted: bool = True
    ) -> None:
        secrets = [uri.token.encode() for uri in service.uris.values()]
        needles = (*_NEEDLES, str(service.folder).encode(), *secrets)
        async with _beside(service, self._report, batch[0]):
            try:
                tokens = {name: await _token(service.uris[name]) for name in ("tree", "objects")}
            except (StorageError, TransportError) as error:
                self._report.fault("the owner is refused", batch[0], str(error))
                return
            places = asyncio.Semaphore(_AT_ONCE)

            async def one(seed: int) -> None:
                session, frames = case_of(seed, sessions)
                token = tokens[session.volume]
                sent = Session(session.name, session.volume, tuple(frames)).with_token(token)
                async with places:
                    outcome = await self._outcome(service, seed, sent, needles)
                if counted:
                    self._report.counts[outcome] += 1
                    self._report.messages += len(frames)

            await asyncio.gather(*map(one, batch))
            if service.ended() is None:
                try:
                    async with asyncio.timeout(_STOP_SECONDS):
                        await _clean(service)
                except (StorageError, TransportError, TimeoutError) as error:
                    self._report.fault("the owner cannot clean up", batch[0], repr(error))

    async def _outcome(
        self, service: Service, seed: int, frames: Sequence[bytes], needles: Sequence[bytes]
    ) -> str:
        try:
            return await send(service.socket, frames, needles)
        except Broken as broken:
            what, _, detail = str(broken).partition("\n")
            self._report.fault(what, seed, detail)
        except TimeoutError:
            self._report.fault("no end of the connection", seed)
        except OSError as error:
            if service.ended() is None:
                self._report.fault(f"no connection: {type(error).__name__}", seed)
        return "failed"

    async def _find(self, batch: range, ended: str) -> None:
        """Which case of the batch ends a service."""
        with _service() as service:
            sessions = await recorded(
                service.socket, {name: uri.token for name, uri in service.uris.items()}
            )
            tokens = {name: await _token(service.uris[name]) for name in ("tree", "objects")}
            for seed in batch:
                session, frames = case_of(seed, sessions)
                sent = Session(session.name, session.volume, tuple(frames))
                await self._outcome(service, seed, sent.with_token(tokens[session.volume]), ())
                if service.ended() is not None:
                    self._report.fault(f"{ended}: found", seed, service.said()[-4000:])
                    return


@asynccontextmanager
async def _beside(service: Service, report: Report, seed: int) -> AsyncIterator[None]:
    """While inside, a client works that does nothing wrong."""

    async def work() -> None:
        try:
            async with connect(service.uris["quiet"]) as root:
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
    for name in ("tree", "objects"):
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


def fuzz(
    seed: int,
    cases: int | None,
    seconds: float | None,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Runs cases from `seed` on, and says what became of them."""
    report = Report()
    asyncio.run(Run(report, progress).run(seed, cases, seconds))
    return report


def lines(report: Report) -> list[str]:
    """What is printed of a report."""
    shown = [
        f"{NAME}: {report.cases} cases, {report.messages} messages in {report.seconds:.1f} s",
        *(f"  {count:8}  {outcome}" for outcome, count in sorted(report.counts.items())),
        f"  {report.quiet_calls:8}  turns of the client beside",
        f"  resident    {report.rss[0] / MIB:.0f} MiB, then {report.rss[1] / MIB:.0f} MiB",
        f"  descriptors {report.descriptors[0]}, then {report.descriptors[1]}",
    ]
    for what, seeds in report.faults.items():
        shown.append(f"  FAULT     {what} ({len(seeds)} cases)")
        shown += [f"            --replay {NAME}:{seed}" for seed in seeds[:5]]
        shown += [f"      {line}" for line in report.details[what].splitlines()]
    return shown
