"""One case: a format and a number become a damaged image, and the image an outcome.

Invariants: all chance comes from the format's name and the number, by generators of their own for
the choice of mutators and for the rest; so a case is the same wherever and whenever it is made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capstore.schema.errors import StorageError
from capstore.tools.fuzz.check import DAMAGE, Broken, Seen, check_message
from capstore.tools.fuzz.draft import MUTATORS, Draft, Mutator, Original
from capstore.tools.fuzz.seals import Seal

# Cases in a row that have the same few mutators.
_SWARM_CASES: Final = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """A damaged image: its `data`, made of `original`; `folder` is a place for files.

    `intact` says that no bytes were moved and no checksum made right again.
    """

    original: Original
    data: bytes
    intact: bool
    rng: random.Random
    folder: Path

    def write(self, name: str = "image", data: bytes | None = None) -> Path:
        """The image as a file."""
        path = self.folder / name
        path.write_bytes(self.data if data is None else data)
        return path


Ask = Callable[[Subject], Seen]


@dataclass(frozen=True, slots=True)
class Format:
    """`ask` raises `Broken` or anything foreign for a fault, `StorageError` for a refusal."""

    corpus: Callable[[], Sequence[Original]]
    ask: Ask
    seal: Seal | None = None
    mutators: tuple[Mutator, ...] = field(default=MUTATORS)


def subject_of(kind: Format, name: str, seed: int, folder: Path) -> Subject:
    """The damaged image of the case; always the same one."""
    swarm = random.Random(f"{name} swarm {seed // _SWARM_CASES}")  # noqa: S311 - no secret
    mutators = swarm.sample(kind.mutators, swarm.randint(1, min(6, len(kind.mutators))))
    seal_chance = swarm.choice((0.0, 0.5, 1.0))
    rng = random.Random(f"{name} case {seed}")  # noqa: S311
    originals = originals_of(kind)
    draft = Draft(rng.choice(originals), originals, rng)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        rng.choice(mutators)(draft)
    seals_it = kind.seal is not None and rng.random() < seal_chance
    if kind.seal is not None and seals_it:
        kind.seal(draft)
    intact = not draft.moved and not seals_it
    return Subject(draft.original, bytes(draft.data), intact, rng, folder)


_originals: dict[int, Sequence[Original]] = {}


def originals_of(kind: Format) -> Sequence[Original]:
    """The corpus of a format, made once."""
    if id(kind) not in _originals:
        _originals[id(kind)] = kind.corpus()
    return _originals[id(kind)]


def outcome_of(kind: Format, subject: Subject) -> str:
    """``clean``, ``damaged`` or ``refused: CODE``; raises what is a fault."""
    try:
        seen = kind.ask(subject)
    except DAMAGE as error:
        check_message(error, str(subject.folder))
        return f"refused: {error.code.value}"
    except StorageError as error:
        raise Broken(f"refused as {error}") from error
    return "clean" if seen.is_clean else "damaged"
