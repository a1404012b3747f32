"""Running cases: a worker at a time, replaced when a case has killed it; counts and faults.

Invariants: a case that kills its worker, or does not answer within `WALL_SECONDS_MAX`, is a
failure like any other.  A worker's files are removed with it, however it ends.
"""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from capstore.tools.fuzz.worker import CPU_SECONDS_MAX, FAILED, Outcome

REGISTRY: Final = "capstore.tools.fuzz.formats:FORMATS"
# A case that waits for ever takes no processor time.
WALL_SECONDS_MAX: Final = 60.0
_DETAIL_CHARS_MAX: Final = 4000


class Worker:
    """A worker process; a context manager.

    `registry` is ``MODULE:NAME`` of the formats; a case may take `cpu_seconds_max` of processor
    time, and `wall_seconds_max` until it answers.
    """

    def __init__(
        self,
        registry: str = REGISTRY,
        *,
        cpu_seconds_max: float = CPU_SECONDS_MAX,
        wall_seconds_max: float = WALL_SECONDS_MAX,
    ) -> None:
        self._registry = registry
        self._cpu_seconds_max = cpu_seconds_max
        self.wall_seconds_max = wall_seconds_max
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile()
        self._folder = tempfile.TemporaryDirectory(prefix="capstore-fuzz-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._stderr.close()
        self._folder.cleanup()

    def run(self, name: str, seed: int) -> Outcome:
        """Runs a case."""
        process = self._process or self._start()
        assert process.stdin is not None  # noqa: S101 - it was asked for
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(f"{name} {seed}\n".encode())
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(self.wall_seconds_max):
                    return self._silent(process)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        return Outcome(**json.loads(line)) if line else self._died(process)

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = [self._registry, self._folder.name, str(self._cpu_seconds_max)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "capstore.tools.fuzz.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        return self._process

    def _silent(self, process: subprocess.Popen[bytes]) -> Outcome:
        process.send_signal(signal.SIGABRT)
        process.wait()
        text = self._said()
        self._end()
        return Outcome(FAILED, f"no answer {_place(text)}", text)

    def _died(self, process: subprocess.Popen[bytes]) -> Outcome:
        code = process.wait()
        text = self._said()
        self._end()
        if code == -signal.SIGPROF:
            return Outcome(FAILED, f"takes too long {_place(text)}", text, self._cpu_seconds_max)
        if code < 0:
            return Outcome(FAILED, f"{signal.Signals(-code).name} {_place(text)}", text)
        return Outcome(FAILED, f"the worker ended with {code}", text)

    def _said(self) -> str:
        """The end of what the worker wrote on standard error, which is emptied."""
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace")
        self._stderr.seek(0)
        self._stderr.truncate()
        return text[:_DETAIL_CHARS_MAX]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(CPU_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _place(text: str) -> str:
    """The innermost function of ours in what faulthandler wrote."""
    for line in text.splitlines():
        if "/images/" in line:
            file, _, rest = line.strip().rpartition("/")[2].partition('", line ')
            return f"at {file}:{rest.split()[0]}"
    return ""


@dataclass(slots=True)
class Report:
    """What became of the cases of one format; `faults` gives the seeds of each."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    # The most that a case took, and which one.
    slowest: tuple[float, int] = (0.0, 0)
    largest: tuple[int, int] = (0, 0)

    def add(self, seed: int, outcome: Outcome) -> None:
        """Takes in the outcome of a case."""
        self.counts[outcome.outcome] += 1
        self.slowest = max(self.slowest, (outcome.cpu_seconds, seed))
        self.largest = max(self.largest, (outcome.memory, seed))
        if outcome.outcome == FAILED:
            self.faults.setdefault(outcome.fault, []).append(seed)
            self.details.setdefault(outcome.fault, outcome.detail)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.counts.total()


@dataclass(frozen=True, slots=True)
class Budget:
    """How long: `runs` cases of each format, or what is done in `seconds`; the lesser of both."""

    runs: int | None = None
    seconds: float | None = None

    def left(self, done: int, begun: float) -> bool:
        """Whether there is some of it, after `done` cases since `begun` (monotonic)."""
        if self.runs is not None and done >= self.runs:
            return False
        return self.seconds is None or time.monotonic() - begun < self.seconds


def fuzz(
    worker: Worker,
    name: str,
    seed: int,
    budget: Budget,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Runs cases of the format `name` from `seed` on."""
    report = Report(name)
    begun = time.monotonic()
    while budget.left(report.cases, begun):
        at = seed + report.cases
        report.add(at, worker.run(name, at))
        report.seconds = time.monotonic() - begun
        progress(report)
    return report
