"""The fuzzer of the wire on a short budget, and that it would notice."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.tools.fuzz import command, wire, wire_mutate, wire_send, wire_service, wire_tour
from capstore.tools.fuzz.wire import Report, fuzz, lines
from capstore.tools.fuzz.wire_mutate import MUTATORS, Draft, case_of
from capstore.tools.fuzz.wire_send import Broken, Way, send
from capstore.tools.fuzz.wire_tour import TOKEN, Session, split
from tests.service.raw_rpc import bootstrap, finish, restore

SEED = 70_000
CASES = 100
SESSIONS = [
    Session("a", "tree", (bootstrap(), restore(TOKEN), *(finish(n) for n in range(20)))),
    Session("b", "tree", (bootstrap(), restore("A" * 43), restore(TOKEN, question=5))),
]


def test_a_short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cases again come first, and are always the same."""
    monkeypatch.setattr(wire, "_BATCH", CASES)
    report = fuzz(secrets.randbits(48), CASES, None)
    assert not report.faults, "\n".join(lines(report))
    assert report.cases == CASES
    assert set(report.counts) <= {"answered", "closed"}
    assert report.counts["answered"] > CASES // 5, "most cases do not get far"
    assert report.quiet_calls > 0


def test_the_cases_that_come_first_have_all_mutations(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def noting(mutator: Callable[[Draft], None]) -> Callable[[Draft], None]:
        def note(draft: Draft) -> None:
            used.add(mutator)
            mutator(draft)

        return note

    monkeypatch.setattr(wire_mutate, "MUTATORS", tuple(map(noting, MUTATORS)))
    for seed in range(-CASES, 0):
        case_of(seed, SESSIONS)
    assert used == set(MUTATORS)


@pytest.mark.long
def test_a_hundred_thousand_cases() -> None:
    report = fuzz(secrets.randbits(48), 100_000, None)
    print("\n".join(lines(report)))
    assert not report.faults


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    made = [case_of(seed, SESSIONS) for seed in range(300)]
    assert made == [case_of(seed, SESSIONS) for seed in range(300)]
    changed = [frames for session, frames in made if tuple(frames) != session.frames]
    assert len(changed) > 250


def test_every_mutator_changes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    for mutator in MUTATORS:
        monkeypatch.setattr(wire_mutate, "MUTATORS", (mutator,))
        made = [case_of(seed, SESSIONS) for seed in range(40)]
        assert any(tuple(frames) != session.frames for session, frames in made), mutator


def test_a_stream_is_split_into_its_messages() -> None:
    assert split(b"".join(SESSIONS[0].frames)) == list(SESSIONS[0].frames)
    assert wire_tour.count(SESSIONS) == 25


# That it would notice ----------------------------------------------------------------------------


async def answering(answer: bytes, folder: Path, needles: tuple[bytes, ...]) -> str:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(answer)
        await reader.read()
        if answer != b"hangs":
            writer.close()

    async with await asyncio.start_unix_server(serve, folder / "s"):
        try:
            return await send(str(folder / "s"), [b"x"], needles)
        finally:
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_what_a_service_says_of_itself_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await answering(b"fine", tmp_path, (b"secret",)) == "answered"
    for said in (b"Traceback (most recent call last)", b'File "x.py"'):
        with pytest.raises(Broken, match="tells of the service"):
            await answering(b"\0" * 100_000 + said, tmp_path, wire._NEEDLES)
    monkeypatch.setattr(wire_send, "CASE_SECONDS_MAX", 0.2)
    with pytest.raises(TimeoutError):
        await answering(b"hangs", tmp_path, ())


class Dying(wire_service.Service):
    """A service that ends with a signal when it has served for a while."""

    def ended(self) -> str | None:
        self._process.kill()
        self._process.wait()
        return super().ended()


def test_a_service_that_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_service, "Service", Dying)
    monkeypatch.setattr(wire, "_BATCH", 5)
    report = fuzz(SEED, 5, None)
    assert any("SIGKILL" in fault for fault in report.faults)
    assert any(fault.endswith("found") for fault in report.faults)


def test_what_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_BATCH", 10)
    for name in ("_PAUSE_SECONDS", "_REST_SECONDS"):
        monkeypatch.setattr(wire, name, 0.005)
    taken, opened, used = itertools.count(0, 1 << 28), itertools.count(), itertools.count()
    said = (
        "2026 INFO x\n2026 ERROR a bug in X\nTraceback (most recent call last):\nValueError: no\n"
    )
    service = wire_service.Service
    monkeypatch.setattr(service, "rss", lambda _: next(taken))
    monkeypatch.setattr(service, "descriptors", lambda _: next(opened))
    monkeypatch.setattr(service, "processor_seconds", lambda _: next(used))
    monkeypatch.setattr(service, "said", lambda _: said)
    report = fuzz(SEED, 10, None)
    assert set(report.faults) == {
        "memory is left taken",
        "descriptors are left open",
        "the service does not come to rest",
        "a bug: ValueError: no",
    }
    assert report.details["a bug: ValueError: no"].startswith("2026 ERROR")


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(
        seed: int, cases: int | None, seconds: float | None, progress: object, way: Way
    ) -> Report:
        report = Report(way.name)
        report.counts["answered"] = cases or 0
        if seed == 6:
            report.fault("something", seed, "at length")
        return report

    monkeypatch.setattr(wire, "fuzz", fake)
    good = CliRunner().invoke(command.app, ["wire", "tls", "--cases", "7", "--seed", "5"])
    assert good.exit_code == 0
    assert "wire: 7 cases" in good.output
    assert "tls: 7 cases" in good.output
    most = CliRunner().invoke(command.app, ["wire", "tls"])
    for way, cases in command._WAYS.items():
        assert f"{way}: {cases} cases" in most.output
    bad = CliRunner().invoke(command.app, ["--replay", "tls:6"])
    assert bad.exit_code == 1
    assert "tls: 1 cases" in bad.output
    assert "FAULT     something" in bad.output
    assert "--replay tls:6" in bad.output
