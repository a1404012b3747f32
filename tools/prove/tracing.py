"""Work on an image that is done once for all images that agree in what it reads.

What an engine does with a device follows from what it knew before and from what it reads.  So of a
piece of work the sectors are kept that it read, in their order, with what it found and what it
wrote; for another image with the same sectors in these places the work would come to the same, and
is not done again: what it wrote is written, what it found is found.

Invariants:

* A piece is recognised by whole sectors that are equal, none left out that it read, and by the
  length of the image; never by a checksum.
* Whatever else a piece depends on is in its key: it has its own clock, its own entropy, and objects
  that nobody read an image with before.
* Two pieces with one key that read the same and go on otherwise are an AssertionError.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from capstore.images.device import BlockDevice
from capstore.images.faults_image import SectorImage, span
from capstore.images.faults_log import SECTOR_BYTES
from capstore.schema.errors import InvalidArgument, ReadOnly
from capstore.schema.nodes import Buffer

_Found = TypeVar("_Found")
# Sectors from the first to the one before the second.
Runs = tuple[tuple[int, int], ...]
_UNKNOWN: Final = b"\0"
_KNOWN: Final = b"\1"


class ImageDevice(BlockDevice):
    """The bytes of `image`, which it changes; keeps which sectors are read and written.

    `asked` are the sectors that were read before they were written, in their order, with their
    numbers; `written` those that are other than before, or may be.
    """

    def __init__(self, image: SectorImage) -> None:
        self.image = image
        self.writable = True
        self.trace()

    def __repr__(self) -> str:
        return f"ImageDevice({self.image!r}, {len(self.asked)} asked)"

    def trace(self) -> None:
        """Begins to keep account anew."""
        self._known = bytearray(len(self.image.numbers))
        self.asked: list[tuple[Runs, bytes]] = []
        self.written: set[int] = set()

    def size(self) -> int:
        return self.image.length

    def read(self, offset: int, length: int) -> bytes:
        self.check_range(offset, length)
        self._ask(*span(offset, length))
        return self.image.read(offset, length)

    def read_into(self, offset: int, view: memoryview) -> None:
        view.cast("B")[:] = self.read(offset, view.nbytes)

    def read_now(self, offset: int, view: memoryview) -> bool:
        self.read_into(offset, view)
        return True

    def _ask(self, first: int, last: int) -> None:
        known, runs, at = self._known, [], first
        while (start := known.find(_UNKNOWN, at, last)) >= 0:
            end = known.find(_KNOWN, start, last)
            at = last if end < 0 else end
            known[start:at] = _KNOWN * (at - start)
            runs.append((start, at))
        if runs:
            self.asked.append((tuple(runs), _numbers(self.image, runs)))

    def write(self, offset: int, data: Buffer) -> None:
        raw = bytes(data)
        self.check_range(offset, len(raw))
        self._check_writable()
        first, last = span(offset, len(raw))
        # Something is left of a sector that is written in part.
        if offset % SECTOR_BYTES:
            self._ask(first, first + 1)
        if (offset + len(raw)) % SECTOR_BYTES:
            self._ask(last - 1, last)
        self._known[first:last] = _KNOWN * (last - first)
        self.written.update(range(first, last))
        self.image.write(offset, raw)

    def resize(self, size: int) -> None:
        self._check_writable()
        if size < 0:
            raise InvalidArgument("a size is not negative")
        before = len(self.image.numbers)
        if size % SECTOR_BYTES and size < self.image.length:
            first, last = span(size, 1)
            self._ask(first, last)
            self.written.add(first)
        self.image.resize(size)
        count = len(self.image.numbers)
        del self._known[count:]
        self._known.extend(_KNOWN * (count - len(self._known)))
        self.written.update(range(min(before, count), count))

    def _check_writable(self) -> None:
        if not self.writable:
            raise ReadOnly("nothing is to be written here")

    def flush(self) -> None:
        """Does nothing: all of it is there."""

    def close(self) -> None:
        """Does nothing."""


def _numbers(image: SectorImage, runs: Sequence[tuple[int, int]]) -> bytes:
    return b"".join([image.numbers[first:last].tobytes() for first, last in runs])


@dataclass(slots=True)
class _Done:
    """What a piece of work found, and what it left: the sectors that it wrote, and the length."""

    found: object
    places: Sequence[int]
    numbers: array[int]
    length: int


@dataclass(slots=True)
class _Reading:
    """What is read next, and how it goes on for each content; `done` where that was all."""

    runs: Runs = ()
    after: dict[bytes, _Reading] = field(default_factory=dict)
    done: _Done | None = None


class Pieces:
    """Pieces of work that were done, by their keys.  `done` and `recognised` count them."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Reading] = {}
        self.done = 0
        self.recognised = 0

    def __repr__(self) -> str:
        return f"<Pieces {self.done} done, {self.recognised} recognised>"

    def do(self, key: Hashable, device: ImageDevice, work: Callable[[], _Found]) -> _Found:
        """What `work` finds, which changes nothing but `device` and must not raise."""
        root = self._roots.setdefault((key, device.size()), _Reading())
        done = _recognised(root, device.image)
        if done is not None:
            self.recognised += 1
            _leave(done, device.image)
            return cast("_Found", done.found)
        self.done += 1
        device.trace()
        found = work()
        _keep(root, device, found)
        return found


def _recognised(reading: _Reading, image: SectorImage) -> _Done | None:
    while reading.runs:
        runs = reading.runs
        after = reading.after.get(_numbers(image, runs))
        if after is None:
            return None
        reading = after
    return reading.done


def _leave(done: _Done, image: SectorImage) -> None:
    if done.length != image.length:
        image.resize(done.length)
    numbers = image.numbers
    for place, number in zip(done.places, done.numbers, strict=True):
        numbers[place] = number


def _keep(reading: _Reading, device: ImageDevice, found: Any) -> None:
    for runs, content in device.asked:
        assert reading.runs in ((), runs), "the same bytes were read otherwise"  # noqa: S101
        assert reading.done is None, "the same bytes were enough before"  # noqa: S101
        reading.runs = runs
        reading = reading.after.setdefault(content, _Reading())
    assert not reading.runs, "the same bytes were not enough before"  # noqa: S101
    numbers = device.image.numbers
    places = sorted(place for place in device.written if place < len(numbers))
    left = array("I", [numbers[place] for place in places])
    reading.done = _Done(found, places, left, device.image.length)
