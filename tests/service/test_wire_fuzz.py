"""The fuzzer of the wire on a short budget, and that it would notice."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstore.tools.fuzz import command, wire, wire_mutate, wire_tour
from capstore.tools.fuzz.wire import Broken, Report, fuzz, lines, send
from capstore.tools.fuzz.wire_mutate import MUTATORS, case_of
from capstore.tools.fuzz.wire_tour import TOKEN, Session, split
from tests.service.raw_rpc import bootstrap, finish, restore

SEED = 70_000
SESSIONS = [
    Session("a", "tree", (bootstrap(), restore(TOKEN), *(finish(n) for n in range(20)))),
    Session("b", "tree", (bootstrap(), restore("A" * 43), restore(TOKEN, question=5))),
]


def test_a_short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_BATCH", 120)
    for seed, cases in ((SEED, 120), (secrets.randbits(48), 120)):
        report = fuzz(seed, cases, None)
        assert not report.faults, "\n".join(lines(report))
        assert report.cases == cases
        assert set(report.counts) <= {"answered", "closed"}
        assert report.counts["answered"] > cases // 5, "most cases do not get far"
        assert report.quiet_calls > 0


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
    monkeypatch.setattr(wire, "CASE_SECONDS_MAX", 0.2)
    with pytest.raises(TimeoutError):
        await answering(b"hangs", tmp_path, ())


class Dying(wire.Service):
    """A service that ends with a signal when it has served for a while."""

    def ended(self) -> str | None:
        self._process.kill()
        self._process.wait()
        return super().ended()


def test_a_service_that_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "Service", Dying)
    monkeypatch.setattr(wire, "_BATCH", 20)
    report = fuzz(SEED, 20, None)
    assert any("SIGKILL" in fault for fault in report.faults)
    assert any(fault.endswith("found") for fault in report.faults)


def test_what_is_left_taken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_BATCH", 20)
    taken = iter(range(0, 1 << 40, 1 << 28))
    opened = iter(range(10_000))
    monkeypatch.setattr(wire.Service, "rss", lambda _: next(taken))
    monkeypatch.setattr(wire.Service, "descriptors", lambda _: next(opened))
    report = fuzz(SEED, 20, None)
    assert set(report.faults) == {"memory is left taken", "descriptors are left open"}


def test_bugs_in_the_log_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_BATCH", 20)
    said = "2026 ERROR a bug in X\nTraceback (most recent call last):\n  File\nValueError: no\n"
    monkeypatch.setattr(wire.Service, "said", lambda _: said)
    report = fuzz(SEED, 20, None)
    assert set(report.faults) == {"a bug: ValueError: no"}


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(seed: int, cases: int | None, seconds: float | None) -> Report:
        report = Report()
        report.counts["answered"] = cases or 0
        if seed == 6:
            report.fault("something", seed, "at length")
        return report

    monkeypatch.setattr(wire, "fuzz", fake)
    good = CliRunner().invoke(command.app, ["wire", "--cases", "7", "--seed", "5"])
    assert good.exit_code == 0
    assert "wire: 7 cases" in good.output
    bad = CliRunner().invoke(command.app, ["--replay", "wire:6"])
    assert bad.exit_code == 1
    assert "FAULT     something" in bad.output
    assert "--replay wire:6" in bad.output
