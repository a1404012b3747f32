"""Where wf1 cases are, and opening a large CAPOSWF1 volume: after a clean stop and after others.

Invariants: the volume is filled through the engine, which counts for nothing but is timed.  An
unclean stop leaves the image as a killed process does: flushed, not closed.  Each opening is in a
process of its own, and leaves behind what it found: one that was closed is closed again, any other
is left by its process without.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.wf1 import ROOT
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.schema.limits import MIB
from capstore.tools.bench import wf1_mount
from capstore.tools.bench.contestants import BenchError
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.wf1_taken import Batch, Taken

# Each file has so much content, which is one block.
_CONTENT: Final = bytes(range(256))
_PER_DIRECTORY: Final = 1000


class Site:
    """A directory on the disk that is measured, and the images there, each made when it is first
    asked for; `tell` hears what is being made."""

    def __init__(self, folder: Path, parameters: Parameters, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.parameters = parameters
        self.tell = tell
        self.making_seconds = 0.0

    @cached_property
    def clean(self) -> Path:
        """A volume that was closed."""
        self.tell("making a CAPOSWF1 volume")
        path = self.folder / "clean.wf1"
        began = time.perf_counter()
        device = FileDevice.open(path, create=True)
        format_wf1(device)
        engine = open_wf1(device)
        count = self.parameters.wf1_mount_files
        parent = ROOT
        for index in range(count):
            if index % _PER_DIRECTORY == 0:
                self.tell(f"making a CAPOSWF1 volume, {100 * index // count} %")
                parent = engine.mkdir(ROOT, directory_name(index))
            engine.write(engine.create(parent, f"file-{index:08}"), 0, _CONTENT)
        engine.close()
        self.making_seconds = time.perf_counter() - began
        return path

    @cached_property
    def unclean(self) -> Path:
        """The same with some changes behind its checkpoint, not closed."""
        return self._left("unclean.wf1", lambda done, engine: done < self._changes)

    @cached_property
    def longest(self) -> Path:
        """The same with as many changes as there are until a checkpoint is due, not closed."""
        return self._left("longest.wf1", lambda done, engine: not engine.has_work)

    @property
    def _changes(self) -> int:
        return self.parameters.wf1_mount_changes

    def _left(self, name: str, goes_on: Callable[[int, Engine], bool]) -> Path:
        source, path = self.clean, self.folder / name
        self.tell("changing a CAPOSWF1 volume")
        shutil.copyfile(source, path)
        engine = open_wf1(FileDevice.open(path))
        parent = engine.mkdir(ROOT, "changed")
        done = 0
        while goes_on(done, engine):
            engine.create(parent, f"file-{done:08}")
            done += 1
        engine.sync()
        engine.device.close()
        return path


def directory_name(index: int) -> str:
    """The directory that the file `index` is in."""
    return f"directory-{index // _PER_DIRECTORY:06}"


Enter = Callable[[Site], AbstractContextManager[Batch]]


def opening(which: Callable[[Site], Path], end: str) -> Enter:
    """Opens an image in another process, and looks something up; counts openings."""

    @contextmanager
    def enter(site: Site) -> Iterator[Batch]:
        path = which(site)
        yield lambda rng, scratch: _opened(path, end, site.making_seconds)

    return enter


def _opened(path: Path, end: str, making_seconds: float) -> Taken:
    arguments = (str(path), directory_name(0), end)
    command = (sys.executable, "-m", wf1_mount.__name__, *arguments)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"a volume could not be opened: {result.stderr.strip()}")
    found = json.loads(result.stdout)
    details = {
        "peak_mib": found["peak"] / MIB,
        "imports_mib": found["base"] / MIB,
        "image_mib": path.stat().st_size / MIB,
        "making_s": making_seconds,
    }
    return Taken(1, found["seconds"], details)
