"""Real processes that are killed, on a real file.

A process works on a volume and says what is durable (`capstore.tools.prove.worker`); SIGKILL ends
it at a moment by chance, or at the n-th of a kind of system call, by strace's fault injection.  The
volume then has to hold what was said, and nothing that was not done.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Self

from capstore.tools.prove.examine import Verdict, judged
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.model import Model, Refused
from capstore.tools.prove.recording import Moment
from capstore.tools.prove.worker import load, make
from capstore.tools.prove.workload import to_model

OPERATIONS: Final = 400
# The system calls that change a file.
CALLS: Final = ("pwrite64", "fdatasync", "ftruncate")
_SECONDS_MAX: Final = 120.0
_CALLS_MAX: Final = {"pwrite64": 400, "fdatasync": 150, "ftruncate": 2}
# About how long a worker lives, in seconds behind its first word.
_LIFE: Final = 1.0
_READ_BYTES: Final = 4096


def why_no_strace() -> str | None:
    """Why system calls cannot be chosen on this machine; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this machine lets no process be traced"


@dataclass(frozen=True, slots=True)
class Killed:
    """What a worker had said when it was gone: the steps that were durable, if it was done."""

    durable: int
    done: bool


class Worker:
    """A process that works on the volume in `image`; killed when the block ends, if not before."""

    def __init__(self, image: Path, seed: int, prefix: Sequence[str] = ()) -> None:
        module = [sys.executable, "-m", "capstore.tools.prove.worker"]
        command = [*prefix, *module, str(image), str(seed), str(OPERATIONS)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def listen(self, seconds: float) -> bool:
        """Takes in what is said within so many seconds; whether there may be more."""
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            if ready:
                data = self._process.stdout.read(_READ_BYTES)
                if not data:
                    return False
                self._said += data
        return True

    @property
    def lines(self) -> list[str]:
        """What was said, in whole lines."""
        return self._said.decode().split("\n")[:-1]

    def wait_until_ready(self) -> None:
        """Waits for the first word."""
        end = time.monotonic() + _SECONDS_MAX
        while not self.lines and time.monotonic() < end and self.listen(0.01):
            continue

    def kill(self) -> Killed:
        """Ends it with SIGKILL, and takes in the rest of what it said."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.kill()
            self.listen(_SECONDS_MAX)
            self._process.stdout.close()
            self._process.wait()
        numbers = [int(line) for line in self.lines if line.isdigit()]
        return Killed(max(numbers, default=0), "done" in self.lines)


def kill_by_chance(folder: Path, seed: int) -> tuple[Killed, Verdict]:
    """One worker, killed at a moment by chance."""
    image = folder / f"chance-{seed}"
    make(str(image))
    delay = Random(f"kill {seed}").random() * _LIFE  # noqa: S311 - the same each time
    with Worker(image, seed) as worker:
        worker.wait_until_ready()
        worker.listen(delay)
        killed = worker.kill()
    return killed, compared(image, seed, killed)


def kill_at_call(folder: Path, seed: int, call: str, number: int) -> tuple[Killed, Verdict]:
    """One worker, killed when it enters its `number`-th system call of a kind."""
    image = folder / f"{call}-{number}-{seed}"
    make(str(image))
    inject = f"inject={call}:signal=KILL:when={number}"
    prefix = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    with Worker(image, seed, prefix) as worker:
        worker.listen(_SECONDS_MAX)
        killed = worker.kill()
    return killed, compared(image, seed, killed)


def compared(image: Path, seed: int, killed: Killed) -> Verdict:
    """Whether the volume holds what was said to be durable, or more of the same load."""
    moments, needed = [Moment(0, Model(), {})], 0
    model = moments[0].model
    for number, step in enumerate(load(seed, OPERATIONS)):
        if number == killed.durable:
            needed = len(moments) - 1
        after = model.copy()
        try:
            to_model(after, step)
        except Refused:
            continue
        model = after
        if (tree := model.tree()) != moments[-1].tree:
            moments.append(Moment(0, model, tree))
    if killed.done:
        needed = len(moments) - 1
    return judged(image.read_bytes(), moments, needed, len(moments) - 1)


def kill(folder: Path, seed: int, times: int) -> Tally:
    """So many workers killed by chance, and as many at each kind of system call if that can be."""
    tally = Tally()
    calls = () if why_no_strace() else CALLS
    for mine in range(seed, seed + times):
        _, verdict = kill_by_chance(folder, mine)
        count(tally, "killed by chance", f"kill by chance, seed {mine}", verdict)
        for call in calls:
            random = Random(f"{call} {mine}")  # noqa: S311 - the same each time
            number = random.randint(1, _CALLS_MAX[call])
            _, verdict = kill_at_call(folder, mine, call, number)
            count(tally, f"killed at {call}", f"kill at {call} {number}, seed {mine}", verdict)
    return tally


def count(tally: Tally, kind: str, name: str, verdict: Verdict) -> None:
    """Counts what became of one process."""
    tally.shapes["processes", kind, "process", verdict.outcome.value] += 1
    if not verdict.outcome.holds:
        tally.fail(Failure(name, verdict.outcome.value, verdict.detail, ""))
