"""Real processes that are killed, on a real file.

A process works on an image and says what is durable (`capstore.tools.prove.load`); SIGKILL ends it
at a moment by chance, or at the n-th of a kind of system call, by strace's fault injection.  The
image then has to hold what was said, and nothing that was not done: of each stream of steps the
tree of one moment.

Invariants: the file is looked at only when the process is gone.  SIGKILL takes nothing out of the
host's cache: what is proved here is that the promises come in order and that no moment between two
system calls is a bad one to die; power cuts are for `capstore.tools.prove.power`.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Self

from capstore.images.devices import MemoryDevice
from capstore.schema.errors import StorageError
from capstore.tools.prove.examine import Outcome, Verdict, shown
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.load import DONE, FAILED, OPERATIONS, Load, Stream
from capstore.tools.prove.recording import Moment
from capstore.tools.prove.subject import AnySubject

# The system calls that change a file.
CALLS: Final = ("pwrite64", "fdatasync", "ftruncate", "fallocate")
_SECONDS_MAX: Final = 120.0
# How long after a word a worker is killed, at most: about as long as until the next one.
_SECONDS_AFTER_MAX: Final = 0.005
_READ_BYTES: Final = 4096


def why_no_strace() -> str | None:
    """Why system calls cannot be chosen on this machine; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this machine lets no process be traced"


@dataclass(frozen=True, slots=True)
class Killed:
    """What a worker had said when it was gone: how many steps of each stream were durable, whether
    it was done, and what it failed with."""

    durable: Mapping[int, int]
    done: bool = False
    error: str = ""

    @classmethod
    def of(cls, lines: Sequence[str]) -> Killed:
        """Takes in what was said."""
        durable: dict[int, int] = {}
        for line in lines:
            stream, _, number = line.partition(" ")
            if stream.isdigit():
                durable[int(stream)] = int(number)
        error = next((line for line in lines if line.startswith(FAILED)), "")
        return cls(durable, DONE in lines, error)


class Worker:
    """A process that works on the image in `image`; killed when the block ends, if not before."""

    def __init__(self, load: Load, image: Path, seed: int, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-m", load.module, str(image), str(seed)]
        self._process = subprocess.Popen(
            [*command, str(OPERATIONS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def listen(self, seconds: float) -> bool:
        """Takes in what is said within so many seconds; whether there may be more."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not self._hear(left):
                return False
        return True

    def _hear(self, seconds: float) -> bool:
        """Takes in what is said next, within so many seconds; whether there may be more."""
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        ready, _, _ = select.select([self._process.stdout], [], [], max(0, seconds))
        if not ready:
            return True
        data = self._process.stdout.read(_READ_BYTES)
        self._said += data or b""
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """What was said, in whole lines."""
        return self._said.decode().split("\n")[:-1]

    def wait_for(self, words: int) -> None:
        """Waits until it has said that it is ready, and so many promises; or all it had to say."""
        end = time.monotonic() + _SECONDS_MAX
        while self._said.count(b"\n") <= words and self._hear(end - time.monotonic()):
            if time.monotonic() > end:
                return

    def wait_for_chance(self, load: Load, seed: int) -> None:
        """Waits until a moment by chance, in which it is still at work."""
        random = Random(f"kill {seed}")  # noqa: S311 - the same each time
        self.wait_for(random.randrange(load.words(seed)))
        self.listen(random.random() * _SECONDS_AFTER_MAX)

    def said(self) -> Killed:
        """What it has said until now."""
        return Killed.of(self.lines)

    def kill(self) -> Killed:
        """Ends it with SIGKILL, and takes in the rest of what it said."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.kill()
            self.listen(_SECONDS_MAX)
            self._process.stdout.close()
            self._process.wait()
        return self.said()


def kill_by_chance(folder: Path, load: Load, seed: int) -> tuple[Killed, Verdict]:
    """One worker, killed at a moment by chance."""
    image = folder / f"{load.name}-chance-{seed}"
    load.make(str(image))
    with Worker(load, image, seed) as worker:
        worker.wait_for_chance(load, seed)
        killed = worker.kill()
    return killed, compared(image, load, seed, killed)


def kill_at_call(
    folder: Path, load: Load, seed: int, call: str, number: int
) -> tuple[Killed, Verdict]:
    """One worker, killed when a thread of it enters its `number`-th system call of a kind."""
    image = folder / f"{load.name}-{call}-{number}-{seed}"
    load.make(str(image))
    inject = f"inject={call}:signal=KILL:when={number}"
    prefix = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    with Worker(load, image, seed, prefix) as worker:
        worker.listen(_SECONDS_MAX)
        killed = worker.kill()
    return killed, compared(image, load, seed, killed)


def compared(image: Path, load: Load, seed: int, killed: Killed) -> Verdict:
    """Whether the image holds what was said to be durable, or more of the same load."""
    if killed.error:
        return Verdict(Outcome.FOREIGN, killed.error)
    return compared_with(load.subject, image.read_bytes(), load.streams(seed, OPERATIONS), killed)


def compared_with(
    subject: AnySubject, image: bytes, streams: Sequence[Stream], killed: Killed
) -> Verdict:
    """Whether of each stream there is what was durable, or more of it, and nothing else."""
    try:
        tree = subject.seen(subject.opened(MemoryDevice(image), writable=False))
    except StorageError as error:
        return Verdict(Outcome.UNOPENED, repr(error))
    outcome, strange = Outcome.PROMISED, tree.keys() - subject.aside
    for number, stream in enumerate(streams):
        steps = len(stream.steps) if killed.done else killed.durable.get(number, 0)
        moments, needed = stream.moments(steps)
        mine = stream.mine(tree)
        strange -= mine.keys()
        verdict = shown(mine, moments, needed, len(moments) - 1)
        if not verdict.outcome.holds:
            return Verdict(verdict.outcome, f"stream {number}: {verdict.detail}")
        if verdict.outcome is Outcome.FURTHER:
            outcome = Outcome.FURTHER
    if strange:
        return Verdict(Outcome.INVENTED, f"nobody's: {', '.join(sorted(strange))[:200]}")
    examiner = subject.examiner()
    verdict = examiner.judged(examiner.image(image), [Moment(0, None, tree)], 0, 0)
    return Verdict(outcome) if verdict.outcome.holds else verdict


def kill(folder: Path, loads: Sequence[Load], seed: int, times: int) -> Tally:
    """So many workers of each load killed by chance, and as many at each kind of system call if
    that can be."""
    tally = Tally()
    calls = () if why_no_strace() else CALLS
    for load in loads:
        for mine in range(seed, seed + times):
            _, verdict = kill_by_chance(folder, load, mine)
            name = f"{load.name}, killed by chance"
            count(tally, name, f"{name}, seed {mine}", verdict)
            for call in calls:
                random = Random(f"{call} {mine}")  # noqa: S311 - the same each time
                number = random.randint(1, load.calls[call])
                _, verdict = kill_at_call(folder, load, mine, call, number)
                name = f"{load.name}, killed at {call}"
                count(tally, name, f"{name} {number}, seed {mine}", verdict)
    return tally


def count(tally: Tally, kind: str, name: str, verdict: Verdict) -> None:
    """Counts what became of one process."""
    tally.shapes["processes", kind, "process", verdict.outcome.value] += 1
    if not verdict.outcome.holds:
        tally.fail(Failure(name, verdict.outcome.value, verdict.detail, ""))
