"""Engines with one precaution taken out: a proof that finds nothing wrong with them proves nothing.

Invariants: a canary changes the engine for this process, inside of its `with` block only.  Each
comes with the workloads that show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from capstore.images import frames, wf1, wf1_log, wf1_recovery
from capstore.images.checksums import crc32c
from capstore.images.wf1_checkpoint import CheckpointWriter
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_writer import Writer
from capstore.schema.nodes import Buffer
from capstore.tools.prove.explore import Explorer, Failure, Search, Tally, exhaustive
from capstore.tools.prove.recording import begin
from capstore.tools.prove.running import workload_of

_ANY: Final = (1 << 64) - 1
_KEY_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Canary:
    """`without` takes the precaution out; `workloads` show it.

    With `opening` it is there while the workload is done, which would not even begin, and is taken
    out of what opens the volume afterwards.
    """

    name: str
    without: Callable[[], AbstractContextManager[None]]
    workloads: Sequence[str]
    opening: bool = False


@contextmanager
def _patched(*places: tuple[Any, str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for place, name, value in places:
            stack.enter_context(patch.object(place, name, value))
        yield


def _sync_without_flush() -> AbstractContextManager[None]:
    def sync(self: Engine) -> None:
        self.writer.flushed(self.commit())

    return _patched((Engine, "sync", sync))


def _superblock_first() -> AbstractContextManager[None]:
    """The superblock is durable when the tables that it points to are yet to be written."""
    held: list[tuple[CheckpointWriter, int, bytes]] = []
    write, put = CheckpointWriter.write, Writer.write_superblock

    def hold(self: CheckpointWriter, offset: int, data: bytes) -> None:
        held.append((self, offset, data))

    def put_first(self: Writer, superblock: wf1.Superblock) -> None:
        put(self, superblock)
        self.device.flush()
        for writer, offset, data in held:
            write(writer, offset, data)
        held.clear()

    return _patched((CheckpointWriter, "write", hold), (Writer, "write_superblock", put_first))


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

    def unlike_none(data: Buffer) -> int:
        return Anything(crc32c(data))

    return _patched((frames, "crc32c", unlike_none), (wf1_log, "crc32c", unlike_none))


def _no_new_life() -> AbstractContextManager[None]:
    """Frames that an earlier life left behind pass for those of this one."""
    return _patched((Writer, "begin_life", lambda self, entropy: None))


def _epoch_not_checked() -> AbstractContextManager[None]:
    frame_at = frames.frame_at

    def any_epoch(raw: bytes, geometry: Any, position: Any, superblock: Any, kind: Any) -> Any:
        known = replace(superblock, generation=_ANY, durable=_ANY)
        return frame_at(raw, geometry, replace(position, epoch=0), known, kind)

    return _patched((frames, "frame_at", any_epoch))


def _key_not_checked() -> AbstractContextManager[None]:
    """Frames of other volumes, and bytes of files that look like frames, pass for those of this."""
    header_at = frames.header_at

    def any_key(raw: bytes, offset: int, key: int, kind: Any) -> Any:
        found = int.from_bytes(raw[offset : offset + _KEY_BYTES], "little")
        return header_at(raw, offset, found, kind)

    return _patched((frames, "header_at", any_key))


def _freed_at_once() -> AbstractContextManager[None]:
    """Segments are free as soon as nothing in them is live, not behind the next checkpoint."""
    perform = Engine.perform

    def perform_and_free(self: Engine, *arguments: Any) -> None:
        perform(self, *arguments)
        self.space.release(self.space.reclaimable(self.upkeep.is_held))

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
        "keys of frames not checked",
        _key_not_checked,
        ("scenario-log-of-another-volume",),
        opening=True,
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
    for name in canary.workloads:
        workload = workload_of(name)
        # The volume that it begins with is a sound one.
        begin(workload)
        explorer, tally = Explorer(), Tally()
        with nullcontext() if canary.opening else canary.without():
            recording = explorer.first_life(tally, workload)
        # A canary that cannot even do its work shows nothing about crashes.
        if recording is None:
            continue
        with canary.without():
            explorer.examine(tally, workload, [search], recording)
        found = [failure for failure in tally.failures if "@" in failure.state]
        if found:
            return found[0]
    return None
