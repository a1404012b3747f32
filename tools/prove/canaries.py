"""Engines with one precaution taken out: a proof that finds nothing wrong with them proves nothing.

Invariants: a canary changes the engine for this process, inside of its `with` block only.  Each
comes with the workloads that show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from capstore.images import wf1, wf1_log, wf1_recovery
from capstore.images.checksums import crc32c
from capstore.images.wf1_checkpoint import CheckpointWriter
from capstore.images.wf1_engine import Engine
from capstore.tools.prove.explore import Failure, Search, exhaustive, explore, forget
from capstore.tools.prove.recording import start
from capstore.tools.prove.running import workload_of

_ANY: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Canary:
    """`without` takes the precaution out; `workloads` show it."""

    name: str
    without: Callable[[], AbstractContextManager[None]]
    workloads: Sequence[str]


@contextmanager
def _patched(*places: tuple[Any, str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for place, name, value in places:
            stack.enter_context(patch.object(place, name, value))
        yield


def _sync_without_flush() -> AbstractContextManager[None]:
    def sync(self: Engine) -> None:
        self.flushed(self.commit())

    return _patched((Engine, "sync", sync))


def _superblock_first() -> AbstractContextManager[None]:
    """The superblock is durable when the tables that it points to are yet to be written."""
    held: list[tuple[CheckpointWriter, int, bytes]] = []
    write, put = CheckpointWriter.write, Engine._write_superblock

    def hold(self: CheckpointWriter, offset: int, data: bytes) -> None:
        held.append((self, offset, data))

    def put_first(self: Engine, superblock: wf1.Superblock) -> None:
        put(self, superblock)
        self.device.flush()
        for writer, offset, data in held:
            write(writer, offset, data)
        held.clear()

    return _patched((CheckpointWriter, "write", hold), (Engine, "_write_superblock", put_first))


def _data_not_verified() -> AbstractContextManager[None]:
    return _patched((wf1_recovery, "_is_whole", lambda device, extent: True))


def _payload_not_verified() -> AbstractContextManager[None]:
    # Written as before, and whatever was read is found to be right.
    class Anything(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    return _patched((wf1_log, "crc32c", lambda data: Anything(crc32c(data))))


def _no_new_life() -> AbstractContextManager[None]:
    """Frames that an earlier life left behind pass for those of this one."""
    return _patched((Engine, "_begin_life", lambda self, entropy: None))


def _epoch_not_checked() -> AbstractContextManager[None]:
    frame_at = wf1_log._frame_at

    def any_epoch(raw: bytes, geometry: Any, position: Any, superblock: Any) -> Any:
        known = replace(superblock, generation=_ANY, durable=_ANY)
        return frame_at(raw, geometry, replace(position, epoch=0), known)

    return _patched((wf1_log, "_frame_at", any_epoch))


def _freed_at_once() -> AbstractContextManager[None]:
    """Segments are free as soon as nothing in them is live, not behind the next checkpoint."""
    perform = Engine.perform

    def perform_and_free(self: Engine, *arguments: Any) -> None:
        perform(self, *arguments)
        self.space.release(self.space.reclaimable(self.is_held))

    return _patched((Engine, "perform", perform_and_free))


CANARIES: Final = (
    Canary("sync without flush", _sync_without_flush, ("ace1-0", "scenario-rename-onto-synced")),
    Canary("superblock before its data", _superblock_first, ("ace1-1", "ace1-5")),
    Canary(
        "data not verified in recovery",
        _data_not_verified,
        ("scenario-append-after-truncate", "scenario-rename-onto-synced-unsynced-data"),
    ),
    Canary(
        "frames not verified in recovery",
        _payload_not_verified,
        ("scenario-exchange-directories", "scenario-chain-of-renames"),
    ),
    Canary(
        "no new generation for a new life",
        _no_new_life,
        ("scenario-old-frames-behind-new", "scenario-old-frames-same-place"),
    ),
    Canary(
        "epochs of frames not checked",
        _epoch_not_checked,
        ("scenario-old-frames-behind-new", "scenario-old-frames-same-place"),
    ),
    Canary(
        "segments reused before a checkpoint",
        _freed_at_once,
        ("scenario-segments-reused-before-checkpoint", "scenario-cleaned-then-written"),
    ),
)
# Wide enough for the crash that shows a canary to be among those that are gone on with.
SEARCH: Final[Search] = exhaustive(6, nested_max=8)


def caught(canary: Canary, search: Search = SEARCH) -> Failure | None:
    """The first state that gives the canary away; None if the proof does not notice it."""
    forget()
    try:
        for name in canary.workloads:
            workload = workload_of(name)
            # The volume that it begins with is a sound one.
            start(workload.spare_segments)
            with canary.without():
                tally = explore(workload, search)
            # A canary that cannot even do its work shows nothing about crashes.
            found = [failure for failure in tally.failures if "@" in failure.state]
            if found:
                return found[0]
    finally:
        forget()
    return None
