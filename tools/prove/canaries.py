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

from capstore.images import frames
from capstore.images.checksums import crc32c
from capstore.schema.nodes import Buffer
from capstore.tools.prove.explore import Explorer, Failure, Search, Tally, exhaustive
from capstore.tools.prove.running import workload_of
from capstore.tools.prove.subject import AnySubject

_ANY: Final = (1 << 64) - 1
_KEY_BYTES: Final = 8


# Wide enough for the crash that shows a canary to be among those that are gone on with.
SEARCH: Final[Search] = exhaustive(6, nested_max=8)


@dataclass(frozen=True, slots=True)
class Canary:
    """`without` takes the precaution out; `workloads` show it, gone through by `search`.

    With `opening` it is there while the workload is done, which would not even begin, and is taken
    out of what opens the volume afterwards.
    """

    name: str
    without: Callable[[], AbstractContextManager[None]]
    workloads: Sequence[str]
    opening: bool = False
    search: Search = SEARCH


@contextmanager
def patched(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Has attributes have other values: each an object, a name and a value."""
    with ExitStack() as stack:
        for place, name, value in places:
            stack.enter_context(patch.object(place, name, value))
        yield


def payload_not_verified(log: Any) -> AbstractContextManager[None]:
    """What frames hold is found to be right; `log` is the module that writes them."""

    # Written as before, and whatever was read is found to be right.
    class Anything(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    def unlike_none(data: Buffer) -> int:
        return Anything(crc32c(data))

    return patched((frames, "crc32c", unlike_none), (log, "crc32c", unlike_none))


def epoch_not_checked() -> AbstractContextManager[None]:
    """Frames of earlier lives pass for those of this one."""
    frame_at = frames.frame_at

    def any_epoch(raw: bytes, geometry: Any, position: Any, superblock: Any, kind: Any) -> Any:
        known = replace(superblock, generation=_ANY, durable=_ANY)
        return frame_at(raw, geometry, replace(position, epoch=0), known, kind)

    return patched((frames, "frame_at", any_epoch))


def key_not_checked() -> AbstractContextManager[None]:
    """Frames of other images, and bytes of users that look like frames, pass for those of this."""
    header_at = frames.header_at

    def any_key(raw: bytes, offset: int, key: int, kind: Any) -> Any:
        found = int.from_bytes(raw[offset : offset + _KEY_BYTES], "little")
        return header_at(raw, offset, found, kind)

    return patched((frames, "header_at", any_key))


def caught(subject: AnySubject, canary: Canary, search: Search | None = None) -> Failure | None:
    """The first state that gives the canary away, by another search than its own if there is one;
    None if the proof does not notice it."""
    for name in canary.workloads:
        workload = workload_of(subject, name)
        # The image that it begins with is a sound one.
        subject.begin(workload)
        explorer, tally = Explorer(subject), Tally()
        with nullcontext() if canary.opening else canary.without():
            recording = explorer.first_life(tally, workload)
        # A canary that cannot even do its work shows nothing about crashes.
        if recording is None:
            continue
        with canary.without():
            explorer.examine(tally, workload, [search or canary.search], recording)
        found = [failure for failure in tally.failures if "@" in failure.state]
        if found:
            return found[0]
    return None
