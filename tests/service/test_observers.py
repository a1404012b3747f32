"""Who looks on may fail, at any hook: the calls go on as if nobody did."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import InternalError, NotFound, Revoked, StorageIOError
from capstore.service import admission, dispatch
from capstore.service.audit import Audit
from capstore.service.client import connect
from capstore.service.metrics import Metrics
from capstore.service.observing import Observers
from capstore.service.remote import Directory
from tests.service.inprocess import Served, serving
from tests.service.observed import ListSink

pytestmark = pytest.mark.anyio

SECRET = "/srv/secret"
WAITING = ("admitted", "find_node")


class Failing(Observers):
    """Raises at one of its hooks; asks for each of them to be called."""

    def __init__(self, hook: str) -> None:
        super().__init__(Audit(ListSink(), names=True), Metrics())
        self.failures = 0
        self.armed = True
        if hook == "holds_back":
            return
        setattr(self, hook, self.fail_later if hook in WAITING else self.fail)

    @property
    def holds_back(self) -> bool:
        return True

    def fail(self, *_: object) -> Any:
        if self.armed:
            self.failures += 1
            raise RuntimeError(SECRET)

    async def fail_later(self, *_: object) -> None:
        await asyncio.sleep(0)
        self.fail()


class NotEvenAsked(Failing):
    @property
    def holds_back(self) -> bool:
        return bool(self.fail())


@asynccontextmanager
async def observed_by(observers: Observers) -> AsyncIterator[Served]:
    dispatch._faults.clear()
    async with serving({"m": await MemoryVolume.open()}, observers=observers) as served:
        yield served


async def nobody_is_there(served: Served) -> None:
    gc.collect()
    async with asyncio.timeout(10):
        while served.service.sessions:
            await asyncio.sleep(0.01)


class Said(logging.Handler):
    """What was logged of who looks on: the message, and whether it came with a traceback.

    The records are not kept, for they keep the frames that they tell of."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "who looks on" in record.getMessage():
            self.lines.append((record.getMessage(), bool(record.exc_info)))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    # One that nobody else listens to.
    logger, handler = logging.Logger("alone"), Said()
    logger.addHandler(handler)
    monkeypatch.setattr(dispatch, "log", logger)
    return handler


@pytest.mark.parametrize(
    "hook", ["wants_node", "find_node", "called", "made", "dropped", "connected", "disconnected"]
)
async def test_a_call_is_answered_whatever_who_looks_on_does(hook: str, said: Said) -> None:
    observers = Failing(hook)
    async with observed_by(observers) as served:
        for name in ("first", "second"):
            async with connect(served.unix["m"]) as root, asyncio.timeout(10):
                assert isinstance(root, Directory)
                made = await root.mkdir(name)
                assert (await root.lookup(name)).stat.node_id == (await made.stat()).node_id
                with pytest.raises(NotFound, match="no entry"):
                    await root.lookup("missing")
                del made
            del root
            await nobody_is_there(served)
        # Nothing is counted wrong by it.
        totals = served.service._totals
        assert (totals.calls, totals.capabilities, totals.unsent_bytes) == (0, 0, 0)
    assert observers.failures == len(said.lines) > 1
    # Where it went wrong is told the first time.
    assert [traced for _, traced in said.lines] == [True] + [False] * (len(said.lines) - 1)
    assert not any(SECRET in message for message, _ in said.lines)


@pytest.mark.parametrize("observers", [Failing("admitted"), NotEvenAsked("holds_back")])
async def test_a_call_that_cannot_be_asked_for_has_not_begun(observers: Failing) -> None:
    observers.armed = False
    async with observed_by(observers) as served:
        async with connect(served.unix["m"]) as root, asyncio.timeout(10):
            assert isinstance(root, Directory)
            observers.armed = True
            with pytest.raises(InternalError, match="the service has a bug; see its log") as caught:
                await root.usage()
            assert SECRET not in str(caught.value)
            with pytest.raises(InternalError):
                await root.mkdir("not made")
            observers.armed = False
            assert not (await root.list()).entries
    assert observers.failures == 2


@pytest.mark.parametrize("hook", ["refused", "displaced"])
async def test_the_door_stays_open_whatever_who_looks_on_does(
    hook: str, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(admission, "CONNECTIONS_OF_PEER_MAX", 1)
    observers = Failing(hook)
    async with observed_by(observers) as served:
        path = str(served.folder / "socket")
        async with connect(served.unix["m"]) as root:
            for _ in range(3):
                await _come_and_go(path)
            assert isinstance(root, Directory)
            await root.mkdir("made")
        del root
        await nobody_is_there(served)
        strangers = [await asyncio.open_unix_connection(path) for _ in range(3)]
        async with asyncio.timeout(10), connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            await root.lookup("made")
        for _, writer in strangers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        del root
    assert observers.failures == 3
    assert len(said.lines) == 3


async def _come_and_go(path: str) -> None:
    """A connection that is closed at once by the other end."""
    reader, writer = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(10):
        with suppress(OSError):
            await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


# An audit with a bug -----------------------------------------------------------------------------


class BadSink(ListSink):
    """Fails as no sink should."""

    bad = False

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        if self.bad:
            raise ValueError(SECRET)
        return super().write(lines)


async def written(audit: Audit) -> None:
    async with asyncio.timeout(10):
        while audit.waiting or audit._timer is not None or audit._rounds is not None:
            await asyncio.sleep(0.01)


async def test_lines_that_a_bug_took_are_counted_and_told() -> None:
    sink = BadSink()
    audit = Audit(sink)
    async with observed_by(Observers(audit, None)) as served:
        async with connect(served.unix["m"]) as root:
            sink.bad = True
            await root.usage()
            await written(audit)
            lost = audit.lost
            assert lost
            assert audit.failing
            sink.bad = False
            await root.usage()
    assert sum(line.get("lost", 0) for line in sink.lines) == audit.lost == lost
    assert sink.lines[-1]["method"] == "usage"


async def test_what_is_required_is_refused_behind_a_line_that_could_not_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = ListSink()
    audit = Audit(sink, required=True)
    async with observed_by(Observers(audit, Metrics())) as served:
        async with connect(served.unix["m"]) as root, asyncio.timeout(10):
            await written(audit)
            with monkeypatch.context() as patch:
                patch.setattr(audit, "note", Failing("called").fail)
                await root.usage()
                with pytest.raises(StorageIOError, match="audit"):
                    await root.usage()
            assert audit.lost == 2
            await written(audit)
            # Since it is written again, so are calls.
            await root.usage()
    assert [line["lost"] for line in sink.lines if "lost" in line] == [2]


class Ending(Observers):
    """Authority ends while it finds out which node a server has."""

    async def find_node(self, server: dispatch.Answering) -> None:
        await asyncio.sleep(0)
        server.guarded.grant.end(Revoked("over"))


async def test_no_answer_leaves_when_authority_ends_while_the_node_is_looked_up() -> None:
    observers = Ending(Audit(ListSink(), names=True), Metrics())
    async with observed_by(observers) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        with pytest.raises(Revoked):
            await root.list()
