"""An image that was cut off, or has a bit turned round, at every place.

What must hold: it is refused as `Corrupt` or `Unsupported`, or what it shows is the tree of one
moment that there was, to the last byte; a refused image is not written to; there is no other
exception.  A moment before the last is what damage to the tail of the log looks like, which cannot
be told from a crash.

Invariants: the image and its moments are the same each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

from capstore.images.devices import MemoryDevice
from capstore.images.faults import RecordingDevice, apply_log
from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.records import BLOCK_BYTES
from capstore.schema.errors import Corrupt, StorageError, Unsupported
from capstore.schema.nodes import Buffer
from capstore.tools.prove.explore import Failure, Tally
from capstore.tools.prove.recording import Moment, record
from capstore.tools.prove.subject import AnySubject
from capstore.tools.prove.workload import Workload

_BITS: Final = 8


@cache
def damaged_image(subject: AnySubject) -> tuple[bytes, Sequence[Moment]]:
    """A small image, and what it has shown until now."""
    work = subject.damage
    base, model = subject.begin(Workload("damage", (), work.room))
    recording = record(subject, SectorImage(Sectors(), base), model, work.steps)
    return apply_log(recording.log, base), recording.moments


def used_places(subject: AnySubject) -> list[int]:
    """The offsets of bytes in blocks that are not all zeros."""
    image, _ = damaged_image(subject)
    return [
        at
        for block in range(0, len(image), BLOCK_BYTES)
        if any(image[block : block + BLOCK_BYTES])
        for at in range(block, min(block + BLOCK_BYTES, len(image)))
    ]


def truncated(subject: AnySubject, lengths: Iterable[int]) -> Tally:
    """Cuts the image off at each of the lengths."""
    image, _ = damaged_image(subject)
    tally = Tally()
    with memoryview(image) as view:
        for length in lengths:
            _count(subject, tally, "truncation", str(length), view[:length])
    return tally


def flipped(subject: AnySubject, bits: Iterable[int]) -> Tally:
    """Turns each of the bits round, counted from the image's first."""
    image, _ = damaged_image(subject)
    tally, damaged = Tally(), bytearray(image)
    for bit in bits:
        at, mask = bit // _BITS, 1 << bit % _BITS
        damaged[at] ^= mask
        _count(subject, tally, "bit flip", str(bit), damaged)
        damaged[at] ^= mask
    return tally


def _count(subject: AnySubject, tally: Tally, kind: str, name: str, image: Buffer) -> None:
    outcome = _outcome(subject, image)
    tally.shapes["damage", kind, "damage", outcome] += 1
    if outcome not in ACCEPTED:
        tally.fail(
            Failure(f"{kind} {name}", outcome, "", "; ".join(map(str, subject.damage.steps)))
        )


# The words for what may be; "older" is a tree of an earlier moment.
ACCEPTED: Final = frozenset(("refused", "refused where it is damaged", "older", "whole"))


def _outcome(subject: AnySubject, image: Buffer) -> str:
    device = RecordingDevice(MemoryDevice(image))
    try:
        engine = subject.opened(device)
    except (Corrupt, Unsupported):
        return "written to, and refused" if device.log else "refused"
    except StorageError as error:
        return f"refused as {error.code.value}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"foreign exception {error!r}"
    try:
        tree = subject.seen(engine)
    except Corrupt:
        return "refused where it is damaged"
    except Exception as error:  # noqa: BLE001
        return f"foreign exception {error!r}"
    _, moments = damaged_image(subject)
    if tree == moments[-1].tree:
        return "whole"
    return "older" if any(moment.tree == tree for moment in moments) else "a wrong tree"


def outcomes(tally: Tally) -> Counter[str]:
    """How often there was which."""
    counts: Counter[str] = Counter()
    for (_, _, _, outcome), count in tally.shapes.items():
        counts[outcome] += count
    return counts
