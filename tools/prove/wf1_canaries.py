"""CAPOSWF1 engines with one precaution taken out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from capstore.images import wf1, wf1_log, wf1_recovery
from capstore.images.wf1_checkpoint import CheckpointWriter
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_writer import Writer
from capstore.tools.prove.canaries import (
    Canary,
    epoch_not_checked,
    key_not_checked,
    patched,
    payload_not_verified,
)


def _sync_without_flush() -> AbstractContextManager[None]:
    def sync(self: Engine) -> None:
        self.writer.flushed(self.commit())

    return patched((Engine, "sync", sync))


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

    return patched((CheckpointWriter, "write", hold), (Writer, "write_superblock", put_first))


def _data_not_verified() -> AbstractContextManager[None]:
    return patched((wf1_recovery, "_is_whole", lambda device, extent: True))


def _no_new_life() -> AbstractContextManager[None]:
    """Frames that an earlier life left behind pass for those of this one."""
    return patched((Writer, "begin_life", lambda self, entropy: None))


def _freed_at_once() -> AbstractContextManager[None]:
    """Segments are free as soon as nothing in them is live, not behind the next checkpoint."""
    perform = Engine.perform

    def perform_and_free(self: Engine, *arguments: Any) -> None:
        perform(self, *arguments)
        self.space.release(self.space.reclaimable(self.upkeep.is_held))

    return patched((Engine, "perform", perform_and_free))


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
        partial(payload_not_verified, wf1_log),
        ("scenario-exchange-directories", "scenario-chain-of-renames"),
    ),
    Canary(
        "no new generation for a new life",
        _no_new_life,
        ("scenario-old-frames-behind-new", "scenario-old-frames-same-place"),
    ),
    Canary(
        "epochs of frames not checked",
        epoch_not_checked,
        ("scenario-old-frames-behind-new", "scenario-old-frames-same-place"),
    ),
    Canary(
        "keys of frames not checked",
        key_not_checked,
        ("scenario-log-of-another-volume",),
        opening=True,
    ),
    Canary(
        "segments reused before a checkpoint",
        _freed_at_once,
        ("scenario-segments-reused-before-checkpoint", "scenario-cleaned-then-written"),
    ),
)
