"""The image cases: reading images that other tools made, beside what else reads them.

Invariants: capstore and its rivals do the same in the same process, one after the other in each
round, with the same choices from the seed.  Images are in the page cache, for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from capstore.tools.bench import image_rivals, image_subject, measure
from capstore.tools.bench.cases import Case, Goal, Limit
from capstore.tools.bench.image_corpus import SMALL_RO1_ENTRIES, Images, fat_tools_missing
from capstore.tools.bench.image_rivals import (
    DENSE,
    PYFATFS,
    RATARMOUNT,
    SQLITE,
    TARFILE,
    pyfatfs_missing,
    ratarmount_missing,
)
from capstore.tools.bench.image_subject import Batch
from capstore.tools.bench.parameters import Parameters

FEW = f"{SMALL_RO1_ENTRIES} entries"

Enter = Callable[[Images], AbstractContextManager[Batch]]
Absent = Callable[[], str | None]


def _present() -> None:
    """What needs nothing that might be missing."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Who else does what a case is about; `absent` says why not, if so."""

    name: str
    enter: Enter
    absent: Absent = _present


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCase(Case):
    """A case in process: `subject` is what capstore does; `absent` says why it cannot be run."""

    subject: Enter
    rivals: tuple[Rival, ...] = ()
    absent: Absent = _present

    def present(self) -> list[Rival]:
        """The rivals that take part."""
        return [rival for rival in self.rivals if rival.absent() is None]

    def turn_count(self) -> int:
        return 1 + len(self.present())

    def absence(self) -> str | None:
        return self.absent()

    def missing(self) -> Mapping[str, str]:
        found = {rival.name: rival.absent() for rival in self.rivals}
        return {name: reason for name, reason in found.items() if reason}


CASES: tuple[ImageCase, ...] = (
    ImageCase(
        name="image-tar-open",
        what="open a tar archive of many members for the first time",
        unit="members/s",
        subject=image_subject.tar_open,
        rivals=(Rival(TARFILE, image_rivals.tar_open),),
        goal=Goal(1, rival=TARFILE),
    ),
    ImageCase(
        name="image-tar-reopen",
        what="open it by its kept index, and find a file in it",
        unit="opens/s",
        subject=image_subject.tar_reopen,
        goal=Limit(50),
    ),
    ImageCase(
        name="image-gz-read",
        what="small reads here and there in a large tar.gz (ratarmount's library without FUSE)",
        unit="reads/s",
        subject=image_subject.gz_read,
        rivals=(
            Rival(RATARMOUNT, image_rivals.gz_read, ratarmount_missing),
            Rival(DENSE, image_rivals.gz_read_dense, ratarmount_missing),
        ),
        goal=Goal(1, rival=RATARMOUNT),
    ),
    ImageCase(
        name="image-fat-list",
        what="open a FAT volume and list a large directory, names and stats",
        unit="entries/s",
        subject=image_subject.fat_list,
        rivals=(Rival(PYFATFS, image_rivals.fat_list, pyfatfs_missing),),
        goal=Goal(100, rival=PYFATFS),
        # The rival takes half a minute.
        rounds_max=1,
        absent=fat_tools_missing,
    ),
    ImageCase(
        name="image-fat-stream",
        what="read a large file of a FAT volume",
        unit="bytes/s",
        subject=image_subject.fat_stream,
        rivals=(Rival(PYFATFS, image_rivals.fat_stream, pyfatfs_missing),),
        goal=Goal(4, rival=PYFATFS),
        absent=fat_tools_missing,
    ),
    ImageCase(
        name="image-ro1-open",
        what=f"open a CAPOSRO1 image of many entries, beside one of {SMALL_RO1_ENTRIES}",
        unit="opens/s",
        subject=image_subject.ro1_open,
        rivals=(Rival(FEW, image_subject.ro1_open_small),),
        goal=Limit(20),
    ),
    ImageCase(
        name="image-ro1-lookup",
        what="look up paths in it, each name counted (beside an indexed table)",
        unit="lookups/s",
        subject=image_subject.ro1_lookup,
        rivals=(Rival(SQLITE, image_rivals.ro1_lookup),),
    ),
)


async def run(
    parameters: Parameters,
    cases: Sequence[ImageCase],
    folder: Path,
    tell: Callable[[str], None],
    advance: Callable[[str], None],
) -> list[measure.Outcome]:
    """Measures `cases`, with images in `folder`.

    `tell` hears what is being made, `advance` a case's name after each figure.
    Raises `BenchError`.
    """
    images = Images(folder, parameters, tell)
    outcomes = []
    for case in cases:
        with ExitStack() as stack:
            entered = {image_subject.NAME: stack.enter_context(case.subject(images))}
            for rival in case.present():
                entered[rival.name] = stack.enter_context(rival.enter(images))
            runs = {name: _awaitable(batch) for name, batch in entered.items()}
            outcomes.append(await measure.measured(parameters, case, runs, advance))
    return outcomes


def _awaitable(batch: Batch) -> measure.Run:
    async def one(rng: Random, scratch: Path) -> int:
        return batch(rng)

    return one
