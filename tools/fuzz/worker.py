"""The process in which cases run: ``python -m capstore.tools.fuzz.worker REGISTRY FOLDER SECONDS``.

It reads a line ``FORMAT SEED`` from standard input and answers with one line of JSON, the fields of
`Outcome`.  ``REGISTRY`` is ``MODULE:NAME`` of a dictionary of formats, ``FOLDER`` a place for
images, ``SECONDS`` the processor time that a case may take.

Invariants: a case that takes more processor time than it may ends the process by SIGPROF, after
where it was stands on standard error; so do the signals of crashes.  No thread and no Python code
has a part in that, so code that never comes back is caught as well.  What would reserve more
memory than the machine can bear is refused by RLIMIT_AS.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from capstore.schema.limits import KIB, MIB
from capstore.tools.fuzz.case import Format, originals_of, outcome_of, subject_of

# Images of a corpus take milliseconds.
CPU_SECONDS_MAX: Final = 5.0
# What one case may take: a cache of decompressed spans, windows of decompressors, an index.
MEMORY_BYTES_MAX: Final = 96 * MIB
MEMORY_RATIO_MAX: Final = 64
# What no case may reserve.
_ADDRESS_SPACE_BYTES: Final = 3 * 1024 * MIB
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    `outcome` is ``clean``, ``damaged``, ``refused: CODE`` or `FAILED`; then `fault` says in a few
    words what is wrong and where, the same for the same fault, and `detail` at length.
    `memory` is in bytes.
    """

    outcome: str
    fault: str = ""
    detail: str = ""
    cpu_seconds: float = 0.0
    memory: int = 0


def attempt(kind: Format, name: str, seed: int, folder: Path, cpu_seconds_max: float) -> Outcome:
    """Runs the case; nothing that it raises gets out."""
    subject = subject_of(kind, name, seed, folder)
    reset_peak()
    before = status_bytes("VmRSS")
    begun = time.process_time()
    outcome, fault, detail = "", "", ""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds_max)
    try:
        outcome = outcome_of(kind, subject)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        outcome, fault = FAILED, _fault_of(error)
        detail = "".join(traceback.format_exception(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - begun
    memory = max(0, status_bytes("VmHWM") - before)
    if outcome != FAILED and memory > MEMORY_BYTES_MAX + MEMORY_RATIO_MAX * len(subject.data):
        outcome, fault = FAILED, "memory"
        detail = f"{memory} bytes for an image of {len(subject.data)} bytes"
    return Outcome(outcome, fault, detail, seconds, memory)


def _fault_of(error: Exception) -> str:
    """The kind of the error and its last place outside of the check's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.dirname(__file__)  # noqa: PTH120 - as tracebacks have it
    places = [one for one in frames if os.path.realpath(own) not in os.path.realpath(one.filename)]
    place = (places or frames)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    if isinstance(error, AssertionError):
        # Numbers and names differ from case to case.
        words = "".join("#" if char.isdigit() else char for char in str(error))
        return f"{words[:60]}"
    return f"{type(error).__name__} at {where}"


def status_bytes(field: str) -> int:
    """A field of this process's status, in bytes; 0 where the system has none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * KIB
    except OSError:
        pass
    return 0


def reset_peak() -> None:
    """Makes VmHWM the present size."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # Then the peak is that of all cases so far, which the bound holds for as well.
        return


def _bound() -> None:
    used = status_bytes("VmSize")
    limit = used + _ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)


def main() -> None:
    """Answers until standard input ends."""
    module, _, attribute = sys.argv[1].partition(":")
    formats: dict[str, Format] = getattr(importlib.import_module(module), attribute)
    _bound()
    for line in sys.stdin:
        name, seed = line.split()
        originals_of(formats[name])
        outcome = attempt(formats[name], name, int(seed), Path(sys.argv[2]), float(sys.argv[3]))
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
