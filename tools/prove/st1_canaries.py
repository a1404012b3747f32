"""CAPOSST1 engines with one precaution taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from capstore.images import st1, st1_log, st1_recovery
from capstore.images.flushing import Flushing
from capstore.images.segments import DATA
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_keys import SortedKeys
from capstore.images.st1_shadow import ShadowWriter
from capstore.images.st1_state import Changes, View
from capstore.images.st1_table import Counts
from capstore.images.st1_writer import Writer
from capstore.tools.prove.canaries import (
    Canary,
    epoch_not_checked,
    key_not_checked,
    patched,
    payload_not_verified,
)


def _sync_without_flush() -> AbstractContextManager[None]:
    def sync(self: St1Engine) -> None:
        self.writer.flushed(self.commit())

    return patched((St1Engine, "sync", sync))


def _flush_left_out(is_left_out: Callable[[bool], bool]) -> AbstractContextManager[None]:
    """Compaction flushes twice: in front of its superblock, and behind it."""
    write, flush_steps = Writer.write_superblock, Flushing.flush_steps
    written: list[Flushing] = []

    def note(self: Writer, superblock: st1.Superblock) -> None:
        write(self, superblock)
        written.append(self)

    def left_out(self: Flushing, is_in_a_hurry: Callable[[], bool]) -> Iterator[None]:
        if not is_left_out(self in written):
            yield from flush_steps(self, is_in_a_hurry)
        written.clear()

    return patched((Writer, "write_superblock", note), (Flushing, "flush_steps", left_out))


def _superblock_first() -> AbstractContextManager[None]:
    return _flush_left_out(lambda is_behind: not is_behind)


def _superblock_not_durable() -> AbstractContextManager[None]:
    return _flush_left_out(lambda is_behind: is_behind)


def _tombstone_forgotten() -> AbstractContextManager[None]:
    """What was removed is in the next table again, which counts it, too."""
    begin = ShadowWriter.__init__

    def forget(self: ShadowWriter, writer: Writer, view: View, counts: Counts, **more: Any) -> None:
        kept: Changes = {k: entry for k, entry in view.frozen.items() if entry is not None}
        for key in view.frozen.keys() - kept.keys():
            entry = view.table.find_key(key)
            if entry is not None:
                counts = Counts(
                    counts.entries + 1,
                    counts.names + (key[:1] == st1.NAMES),
                    counts.parts + len(entry.parts),
                    counts.heap + len(key),
                )
        view = view._replace(frozen=kept, frozen_order=SortedKeys(kept))
        begin(self, writer, view, counts, **more)

    return patched((ShadowWriter, "__init__", forget))


def _data_not_verified() -> AbstractContextManager[None]:
    return patched((st1_recovery, "_is_whole", lambda *place: True))


def _no_new_life() -> AbstractContextManager[None]:
    """Frames that an earlier life left behind pass for those of this one."""
    return patched((Writer, "begin_life", lambda self, entropy: None))


def _batch_in_part() -> AbstractContextManager[None]:
    """Each frame of a batch counts by itself."""
    write_frame = Writer.write_frame

    def alone(self: Writer, *, goes_on: bool = False) -> None:
        write_frame(self)

    return patched((Writer, "write_frame", alone))


def _freed_at_once() -> AbstractContextManager[None]:
    """Segments are free as soon as nothing in them is live, not behind the next table."""
    go_on = St1Engine._go_on

    def free(self: St1Engine) -> None:
        go_on(self)
        space, writer = self.space, self.writer
        spared = {writer.data_segment, *self.upkeep.held}
        pairs = enumerate(zip(space.use, space.live, strict=True))
        dead = {n for n, (use, live) in pairs if use == DATA and not live}
        space.release(dead - spared)

    return patched((St1Engine, "_go_on", free))


CANARIES: Final = (
    Canary("sync without flush", _sync_without_flush, ("scenario-batch-across-frames",)),
    Canary(
        "superblock before the flush of its table",
        _superblock_first,
        ("scenario-moved-twice", "scenario-tombstone-and-compaction"),
    ),
    Canary(
        "segments reused before the superblock is durable",
        _superblock_not_durable,
        ("scenario-freed-before-superblock", "scenario-freed-segments-reused"),
    ),
    Canary(
        "segments reused before the next table",
        _freed_at_once,
        ("scenario-overwritten-then-reused",),
    ),
    Canary(
        "tombstone forgotten by the shadow",
        _tombstone_forgotten,
        ("scenario-tombstone-and-compaction",),
        opening=True,
    ),
    Canary("batches in part", _batch_in_part, ("scenario-batch-across-frames",)),
    Canary(
        "data not verified in recovery",
        _data_not_verified,
        ("scenario-overwritten-then-reused", "scenario-growth-lost"),
    ),
    Canary(
        "frames not verified in recovery",
        partial(payload_not_verified, st1_log),
        ("scenario-torn-frame-beside-old-records", "scenario-old-frames-same-place"),
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
    Canary("keys of frames not checked", key_not_checked, ("scenario-log-of-another-store",), True),
)
