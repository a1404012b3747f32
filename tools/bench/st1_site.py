"""Where st1 cases are: stores that were filled, and opening a large one.

Invariants: a store is filled once, by who will use it and in the same order, closed, and never
changed; who changes one has a copy.  An unclean stop leaves the image as a killed process does:
flushed, not closed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import format_st1, open_st1
from capstore.schema.limits import BATCH_CHANGES_MAX, MIB
from capstore.schema.objects import Delete, Put
from capstore.tools.bench import st1_open
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.st1_stores import IMAGE, Maker, Pair, opened
from capstore.tools.bench.st1_workloads import Values, fill, key_of
from capstore.tools.bench.wf1_mount import CLOSE, EXIT
from capstore.tools.bench.wf1_taken import Batch, Taken

# What is there before, and how long its values are.
Content = Callable[[Parameters, Random], Sequence[Pair]]

# What is opened has values of this length.
_OPENED_VALUE_BYTES: Final = 100
# What is compacted has objects of this length, and this part of them was removed: not so many that
# a store is compacted by itself.
COMPACTED_VALUE_BYTES: Final = 4096
_DEAD_SHARE: Final = 0.45


class Site:
    """A directory on the disk that is measured, and the stores there, each made when it is first
    asked for; `tell` hears what is being made."""

    def __init__(self, folder: Path, parameters: Parameters, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.parameters = parameters
        self.tell = tell
        self._filled: dict[tuple[str, str], Path] = {}

    def filled(self, what: str, name: str, make: Maker, content: Content, size: int) -> Path:
        """The directory of a store of the kind `name` that holds `content`, known as `what`, with
        values of `size` bytes."""
        if (what, name) not in self._filled:
            self.tell(f"filling {name}")
            folder = self.folder / f"{name}-{what}"
            folder.mkdir()
            rng = Random(self.parameters.seed)  # noqa: S311 - a workload
            pairs = content(self.parameters, rng)
            with opened(make, folder) as objects:
                objects.run([fill(objects, pairs, self.parameters, size)])
            self._filled[what, name] = folder
        return self._filled[what, name]

    @cached_property
    def clean(self) -> Path:
        """A large store that was closed."""
        count = self.parameters.st1_open_entries
        with _made(self.folder / "clean.st1") as (path, engine):
            _put(engine, range(count), _OPENED_VALUE_BYTES, self.tell)
        return path

    @cached_property
    def longest(self) -> Path:
        """The same with as many changes as there are until a table is due, not closed."""
        source, path = self.clean, self.folder / "longest.st1"
        self.tell("changing a CAPOSST1 store")
        shutil.copyfile(source, path)
        engine = open_st1(FileDevice.open(path))
        done, value = 0, bytes(_OPENED_VALUE_BYTES)
        while not engine.has_work:
            engine.put(key_of(self.parameters.st1_open_entries + done), value)
            done += 1
        engine.sync()
        engine.device.close()
        return path

    @cached_property
    def half_dead(self) -> tuple[Path, Sequence[int]]:
        """A store of which nearly half is dead, in a directory of its own; the numbers of the keys
        that are live."""
        folder = self.folder / "half-dead"
        folder.mkdir()
        numbers = list(range(self.parameters.st1_compact_bytes // COMPACTED_VALUE_BYTES))
        with _made(folder / IMAGE) as (_, engine):
            _put(engine, numbers, COMPACTED_VALUE_BYTES, self.tell)
            Random(self.parameters.seed).shuffle(numbers)  # noqa: S311 - a workload
            dead = int(len(numbers) * _DEAD_SHARE)
            for start in range(0, dead, BATCH_CHANGES_MAX):
                some = numbers[start : min(dead, start + BATCH_CHANGES_MAX)]
                engine.batch([Delete(key_of(number)) for number in some])
        return folder, numbers[dead:]


@contextmanager
def _made(path: Path) -> Iterator[tuple[Path, St1Engine]]:
    """A new store, closed in the end."""
    device = FileDevice.open(path, create=True)
    format_st1(device)
    engine = open_st1(device)
    yield path, engine
    while engine.has_work:
        engine.work()
    engine.close()


def _put(engine: St1Engine, numbers: Sequence[int], size: int, tell: Callable[[str], None]) -> None:
    values = Values(Random(0), size)  # noqa: S311 - a workload
    for start in range(0, len(numbers), BATCH_CHANGES_MAX):
        tell(f"making a CAPOSST1 store, {100 * start // len(numbers)} %")
        some = numbers[start : start + BATCH_CHANGES_MAX]
        engine.batch([Put(key_of(number), values.next()) for number in some])


Enter = Callable[[Site], AbstractContextManager[Batch]]


def opening(which: Callable[[Site], Path], end: str) -> Enter:
    """Opens a store in another process, and gets an object; counts openings."""

    @contextmanager
    def enter(site: Site) -> Iterator[Batch]:
        path = which(site)
        yield lambda rng, scratch: _opened(path, end)

    return enter


def _opened(path: Path, end: str) -> Taken:
    command = (sys.executable, "-m", st1_open.__name__, str(path), key_of(0).decode(), end)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"a store could not be opened: {result.stderr.strip()}")
    found = json.loads(result.stdout)
    details = {
        "peak_mib": found["peak"] / MIB,
        "imports_mib": found["base"] / MIB,
        "image_mib": path.stat().st_size / MIB,
    }
    return Taken(1, found["seconds"], details)


OPEN_CLEAN: Final = opening(lambda site: site.clean, CLOSE)
OPEN_LONGEST: Final = opening(lambda site: site.longest, EXIT)
