"""The overlay cases: what a tree of layers costs beside its layers alone.

Invariants: an overlay and what it is compared with take turns in one process (over RPC, in a
process each) with the same choices from the seed: short ones where both are fast and little apart,
whole ones where a case flushes.  What is on a disk is where temporary files are.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstore.tools.bench import overlay_copies as copies
from capstore.tools.bench import overlay_files as files
from capstore.tools.bench import overlay_names as names
from capstore.tools.bench import overlay_reads as reads
from capstore.tools.bench import turns
from capstore.tools.bench.cases import Case, Goal
from capstore.tools.bench.machine import filesystem_type
from capstore.tools.bench.measure import SUBJECT, Outcome
from capstore.tools.bench.overlay_copies import COPY, Turn
from capstore.tools.bench.overlay_names import LAYER, ONE_LOWER, TWICE
from capstore.tools.bench.overlay_site import LOWER, UPPER, Site
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.slices import Slices, measured

# Goals are of speed; that of what may take so many times as long is its inverse.
_READS = 1 / 1.15
_LOOKUPS = 1 / 3
_LISTINGS = 1 / 2.5
_COPIES = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayCase(Case):
    """A case over layers."""

    contestants: Sequence[str]
    flushes: bool = False

    def turn_count(self) -> int:
        return len(self.contestants)

    def absence(self) -> str | None:
        if not self.flushes:
            return None
        return turns.in_memory(filesystem_type(Path(tempfile.gettempdir())))


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceCase(OverlayCase):
    """A case in short turns, of what `enter` opens."""

    enter: Callable[[Site], AbstractAsyncContextManager[Slices[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCase(OverlayCase):
    """A case in whole turns."""

    turns: Mapping[str, Turn]
    flushes: bool = True


def _slice_case(
    name: str,
    what: str,
    unit: str,
    enter: Callable[[Site], AbstractAsyncContextManager[Slices[Any]]],
    rivals: Sequence[str],
    ratio: float | None = None,
) -> SliceCase:
    """One whose goal is of the first of its rivals."""
    return SliceCase(
        name=name,
        what=what,
        unit=unit,
        enter=enter,
        contestants=(SUBJECT, *rivals),
        goal=None if ratio is None else Goal(ratio, rival=rivals[0]),
    )


def _turn_case(
    name: str,
    what: str,
    unit: str,
    done: Mapping[str, Turn],
    goal: Goal | None = None,
    rounds_max: int = 3,
) -> TurnCase:
    return TurnCase(
        name=name,
        what=what,
        unit=unit,
        turns=done,
        contestants=tuple(done),
        goal=goal,
        rounds_max=rounds_max,
    )


_REACHES = (("", reads.in_process, ""), ("rpc-", reads.over_rpc, ", over a unix socket"))
_COPIED_UP = Goal(_COPIES, rival=COPY)

CASES: tuple[OverlayCase, ...] = (
    *(
        _slice_case(
            f"overlay-{prefix}read-{label}-{layer}",
            f"reads of {label} in an open file of the {layer} layer{words}",
            "reads/s",
            reads.reading(reach, layer, size),
            (layer,),
            _READS,
        )
        for prefix, reach, words in _REACHES
        for size, label in reads.READS
        for layer in (LOWER, UPPER)
    ),
    *(
        _slice_case(
            f"overlay-{prefix}open-read-{layer}",
            f"open, read and close small files of the {layer} layer{words}",
            "files/s",
            reads.opening(reach, layer),
            (layer,),
            _READS,
        )
        for prefix, reach, words in _REACHES
        for layer in (LOWER, UPPER)
    ),
    _slice_case(
        "overlay-lookup",
        "look up names through five lower layers for the first time, beside one",
        "lookups/s",
        names.looking_up(names.new_names),
        (ONE_LOWER, LAYER),
        _LOOKUPS,
    ),
    _slice_case(
        "overlay-lookup-again",
        "the same with names that were looked up before",
        "lookups/s",
        names.looking_up(names.known_names),
        (ONE_LOWER, LAYER),
        _LOOKUPS,
    ),
    _slice_case(
        "overlay-lookup-nowhere",
        "the same with names that are nowhere",
        "lookups/s",
        names.looking_up(names.absent_names, there=False),
        (ONE_LOWER, LAYER),
        _LOOKUPS,
    ),
    _slice_case(
        "overlay-list",
        "list a directory of wf1 over tar, half of it in each, beside the halves",
        "listings/s",
        names.listing,
        # Both halves have to be read, and that of the archive takes longer.
        (LOWER, UPPER, TWICE),
        _LISTINGS,
    ),
    _slice_case(
        "overlay-list-lowers",
        "list a directory of two lower layers (tar), beside one half",
        "listings/s",
        names.listing_lowers,
        (LOWER, TWICE),
        _LISTINGS,
    ),
    _slice_case(
        "overlay-create",
        "make small files in a directory of both layers",
        "files/s",
        files.changing(files.create, files.absent),
        (UPPER,),
    ),
    _slice_case(
        "overlay-write",
        "open, write and close small files of the upper layer",
        "files/s",
        files.changing(files.write, files.present),
        (UPPER,),
    ),
    _slice_case(
        "overlay-remove",
        "remove small files of the upper layer",
        "files/s",
        files.changing(files.remove, files.present),
        (UPPER,),
    ),
    _slice_case(
        "overlay-rename",
        "rename small files of the upper layer",
        "files/s",
        files.changing(files.rename, files.present),
        (UPPER,),
    ),
    _turn_case(
        "overlay-copyup-wf1",
        "copy a large file up, from tar to wf1, and flush it",
        "bytes/s",
        copies.copying_large(copies.archive_to_image),
        _COPIED_UP,
    ),
    _turn_case(
        "overlay-copyup-memory",
        "the same from memory to memory",
        "bytes/s",
        copies.copying_large(copies.memory_to_memory),
        _COPIED_UP,
    ),
    _turn_case(
        "overlay-copyup-dir",
        "the same from a directory to a directory",
        "bytes/s",
        copies.copying_large(copies.directory_to_directory),
        _COPIED_UP,
    ),
    _turn_case(
        "overlay-copyup-small",
        "write a byte in many small files, from tar to wf1, and flush them",
        "files/s",
        copies.copying_small(copies.archive_to_image),
    ),
    _turn_case(
        "overlay-rename-redirect",
        "rename a lower directory of many files (wf1 over tar), beside one of wf1's own",
        "renames/s",
        copies.RENAMING_BY_REDIRECT,
    ),
    _turn_case(
        "overlay-rename-copied",
        "the same where all is copied (dir over dir), beside copying it",
        "files/s",
        copies.renaming_by_copying(copies.directory_to_directory),
        # Each file is flushed: it takes minutes.
        rounds_max=1,
    ),
)


def run(
    parameters: Parameters,
    cases: Sequence[OverlayCase],
    folder: Path,
    tell: Callable[[str], None],
    advance: Callable[[str], None],
) -> list[Outcome]:
    """Measures `cases`, with everything in `folder`.

    Not to be called where an event loop runs.  `tell` hears what is being made, `advance` a case's
    name after each figure.  Raises `BenchError`.
    """
    site = Site(folder, parameters, tell)
    return [_measured(site, case, advance) for case in cases]


def _measured(site: Site, case: OverlayCase, advance: Callable[[str], None]) -> Outcome:
    if isinstance(case, SliceCase):
        return asyncio.run(_in_slices(site, case, advance))
    assert isinstance(case, TurnCase)  # noqa: S101 - there are no others
    batches = copies.batches(site, case.turns)
    return turns.measured(site.parameters, site.folder, case, batches, advance)


async def _in_slices(site: Site, case: SliceCase, advance: Callable[[str], None]) -> Outcome:
    async with case.enter(site) as slices:
        return await measured(site.parameters, case, slices, advance)
