"""Every image that a crash can leave: enumerated from what was written, each under an id.

A log is what a `capstore.images.faults.RecordingDevice` saw: writes, resizes and flushes, in order.
The flushes cut it into epochs.  In a crash during an epoch

* everything before the epoch is on the disk;
* any subset of the epoch's own writes and resizes is, too (`Mode.PREFIXES`, `DROPS`, `SUBSETS`);
* writes may have reached the disk in another order than they were issued, which shows where they
  overlap (`Mode.REORDERS`);
* of a write any of its sectors may be there and others not: 512 bytes, aligned to the device, are
  what a disk writes as a whole (`Mode.TEARS`).

That is the usual model of a disk with a volatile cache (Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014; Zheng et al., "Torturing Databases for Fun and Profit", OSDI 2014), made
a little more hostile: it also gives states that a journaling filesystem would not.

Of resizes: one that made the device longer makes it at least that long; without it, a write behind
the end extends the device, with zeros between.  One that made it shorter cuts it, and keeps its
place in the order: a filesystem does not let a later write overtake a cut.

The crash is always taken to be at the end of the epoch, before its flush has returned: an image
that an earlier crash leaves is one of the subsets there, and has to hold just as many of the
operations that were acknowledged until then, or more.  `CrashState.at` says when that is.

Ids name the epoch and what of it is there, counted from 0::

    epoch=3/first=2            the first two operations of epoch 3
    epoch=3/drop=2             all but the third
    epoch=3/ops=0-1,4          these, in this order
    epoch=3/ops=4,0-1          ... so the fifth was overtaken
    epoch=3/first=5/torn=4@0,2-3    of the fifth, only these sectors

Invariants: the same log, base and arguments give the same states in the same order; an id gives
the same bytes without the enumeration; of the images of an epoch only the sectors are in memory in
which they differ, and a few bytes for each.
"""

from __future__ import annotations

import enum
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from random import Random
from typing import Final, NamedTuple, TypeVar

from capstore.images.faults_image import SectorImage, Sectors
from capstore.images.faults_log import (
    SECTOR_BYTES,
    Change,
    Flush,
    Operation,
    Resize,
    Write,
    sector_count,
    sector_range,
)
from capstore.schema.errors import InvalidArgument
from capstore.schema.nodes import Buffer

_Case = TypeVar("_Case")
_NONE: Final = array("I")

# How often `Mode.RANDOM` tears a write that it applies.
_TEAR_CHANCE: Final = 0.25

_ID: Final = re.compile(
    r"epoch=(?P<epoch>\d{1,9})/"
    r"(?:first=(?P<first>\d{1,9})|drop=(?P<drop>\d{1,9})|ops=(?P<ops>[\d,-]+))"
    r"(?P<torn>(?:/torn=\d{1,9}@[\d,-]+)*)",
    re.ASCII,
)


class Mode(enum.Enum):
    """A way to choose crash states; the value is for reports."""

    LINEAR = "linear"  # exactly what was flushed
    PREFIXES = "prefixes"
    DROPS = "drops"
    SUBSETS = "subsets"
    REORDERS = "reorders"
    TEARS = "tears"
    RANDOM = "random"  # subset, order and tears at once


@dataclass(frozen=True, slots=True)
class CrashState:
    """What a crash may leave.

    `image` are the bytes of the device.  `at` is how many operations of the log had been issued:
    what was acknowledged as durable when the log was not longer than that must be there.  `mode` is
    the first that found it.
    """

    id: str
    image: bytes
    at: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class SectorState:
    """A `CrashState` whose image is not spelt out."""

    id: str
    image: SectorImage
    at: int
    mode: Mode


def crash_states(
    log: Sequence[Operation],
    base: Buffer,
    *,
    modes: Iterable[Mode] = tuple(Mode),
    subset_changes_max: int = 8,
    samples: int = 64,
    seed: int = 0,
) -> Iterator[CrashState]:
    """Every distinct state that `modes` find in each epoch of `log`; `base` is the image before it.

    `SUBSETS` is exhaustive in epochs of up to `subset_changes_max` writes and resizes.  Whatever
    has more cases than `samples` is sampled: subsets of longer epochs, pairs of overlapping
    writes, the places where one write is torn, and everything random.  An epoch's samples depend
    on `seed` and its number alone.
    """
    for state in sector_states(
        log,
        SectorImage(Sectors(), base),
        modes=modes,
        subset_changes_max=subset_changes_max,
        samples=samples,
        seed=seed,
    ):
        yield CrashState(state.id, bytes(state.image), state.at, state.mode)


def sector_states(
    log: Sequence[Operation],
    base: SectorImage,
    *,
    modes: Iterable[Mode] = tuple(Mode),
    subset_changes_max: int = 8,
    samples: int = 64,
    seed: int = 0,
) -> Iterator[SectorState]:
    """As `crash_states`, for whoever goes through many; images are of the sectors of `base`."""
    chosen = [(mode, _CHOICES[mode]) for mode in modes]
    for epoch in _epochs(log, base):
        seen: set[bytes] = set()
        for mode, choose in chosen:
            # Not for secrets: the same seed is to give the same states.
            bounds = _Bounds(subset_changes_max, samples, Random(f"{seed}/{epoch.number}"))  # noqa: S311
            for plan in choose(epoch, bounds):
                image = epoch.image(plan)
                if (key := image.key) not in seen:
                    seen.add(key)
                    yield SectorState(epoch.id_of(plan), image, epoch.at, mode)


def replay(log: Sequence[Operation], base: Buffer, state_id: str) -> bytes:
    """The image of the crash state `state_id`.

    Raises `InvalidArgument` for what is no id, or none of this log.
    """
    found = _ID.fullmatch(state_id)
    if found is None:
        raise InvalidArgument("that is not the id of a crash state")
    number = int(found["epoch"])
    for epoch in _epochs(log, SectorImage(Sectors(), base)):
        if epoch.number == number:
            return bytes(epoch.image(_parsed(found, epoch)))
    raise InvalidArgument(f"the log has no epoch {number}")


# One epoch -------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What of an epoch is on the disk: these operations, applied in this order.

    `torn` has, for some of the writes, the sectors that are there; the others are whole.
    """

    order: Sequence[int]
    torn: dict[int, Sequence[int]]


class _Epoch:
    """The operations between two flushes, over the image before them."""

    def __init__(self, number: int, durable: SectorImage) -> None:
        self.number = number
        self.at = 0
        self.changes: list[Change] = []
        # Resizes that made the device shorter, by their index, ascending.
        self.cuts: list[int] = []
        self._durable = durable
        self._size = len(durable)
        # The sectors of each write, in their order.
        self._numbers: list[array[int]] = []

    def add(self, change: Change) -> None:
        """The next operation."""
        if isinstance(change, Write):
            self._size = max(self._size, change.offset + len(change.data))
            self._numbers.append(self._durable.sectors.numbers_of(change.data))
        else:
            self._numbers.append(_NONE)
            if change.size < self._size:
                self.cuts.append(len(self.changes))
            self._size = change.size
        self.changes.append(change)

    def image(self, plan: _Plan) -> SectorImage:
        """What `plan` leaves."""
        image = self._durable.copy()
        for index in plan.order:
            self._apply(image, index, plan.torn.get(index))
        return image

    def commit(self) -> SectorImage:
        """The image with all of the epoch, in the place of the one before; ends the epoch."""
        for index in range(len(self.changes)):
            self._apply(self._durable, index, None)
        return self._durable

    def _apply(self, image: SectorImage, index: int, sectors: Sequence[int] | None) -> None:
        change, numbers = self.changes[index], self._numbers[index]
        if isinstance(change, Resize):
            if change.size > len(image) or index in self.cuts:
                image.resize(change.size)
        elif sectors is None:
            image.write(change.offset, change.data, numbers)
        else:
            for sector in sectors:
                start, end = sector_range(change, sector)
                mine = numbers[sector : sector + 1] if not change.offset % SECTOR_BYTES else None
                image.write(change.offset + start, change.data[start:end], mine)

    def id_of(self, plan: _Plan) -> str:
        """The id under which `replay` finds `plan`."""
        count = len(self.changes)
        order = list(plan.order)
        missing = sorted(set(range(count)).difference(order))
        if order == list(range(len(order))):
            text = f"first={len(order)}"
        elif len(missing) == 1 and order == sorted(order):
            text = f"drop={missing[0]}"
        else:
            text = f"ops={_runs_text(order)}"
        torn = "".join(f"/torn={i}@{_runs_text(plan.torn[i])}" for i in sorted(plan.torn))
        return f"epoch={self.number}/{text}{torn}"

    def stretches(self, order: Sequence[int]) -> list[list[int]]:
        """`order`, ascending, divided at the cuts, which nothing overtakes."""
        parts: dict[int, list[int]] = {}
        for index in order:
            before = bisect_right(self.cuts, index)
            is_cut = index in self.cuts
            parts.setdefault(2 * before - is_cut, []).append(index)
        return [parts[key] for key in sorted(parts)]


def _epochs(log: Sequence[Operation], base: SectorImage) -> Iterator[_Epoch]:
    """The epochs of `log`; each is for use until the next one is asked for."""
    epoch = _Epoch(0, base.copy())
    for at, operation in enumerate(log):
        if isinstance(operation, Flush):
            epoch.at = at
            yield epoch
            epoch = _Epoch(epoch.number + 1, epoch.commit())
        else:
            epoch.add(operation)
    epoch.at = len(log)
    yield epoch


# Choosing plans --------------------------------------------------------------------------------


class _Bounds(NamedTuple):
    subset_changes_max: int
    samples: int
    random: Random


def _linear(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    yield _Plan((), {})


def _prefixes(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    for count in range(len(epoch.changes) + 1):
        yield _Plan(range(count), {})


def _drops(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    count = len(epoch.changes)
    for dropped in range(count):
        yield _Plan([index for index in range(count) if index != dropped], {})


def _subsets(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    count = len(epoch.changes)
    if count <= bounds.subset_changes_max:
        for length in range(count + 1):
            for chosen in combinations(range(count), length):
                yield _Plan(chosen, {})
    else:
        for _ in range(bounds.samples):
            yield _Plan(_some_changes(epoch, bounds.random), {})


def _reorders(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    """Of each two writes that overlap the later one first: it overtakes, or the other is late.

    With everything else there, and with nothing else.
    """
    everything = range(len(epoch.changes))
    pairs = [
        pair
        for stretch in epoch.stretches(everything)
        for pair in _overlaps(epoch.changes, stretch)
    ]
    for earlier, later in _sampled(sorted(pairs), bounds):
        yield _Plan((later, earlier), {})
        overtaken = [index for index in everything if index != later]
        overtaken.insert(earlier, later)
        yield _Plan(overtaken, {})
        yield _Plan(overtaken[: later + 1], {})
        late = [index for index in everything if index != earlier]
        late.insert(later, earlier)
        yield _Plan(late, {})


def _overlaps(changes: Sequence[Change], among: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each two of the writes `among` that have bytes in common, the earlier one first."""
    writes = [(index, change) for index in among if isinstance(change := changes[index], Write)]
    writes.sort(key=lambda numbered: numbered[1].offset)
    for at, (index, write) in enumerate(writes):
        end = write.offset + len(write.data)
        for other, behind in islice(writes, at + 1, None):
            if behind.offset >= end:
                break
            if behind.data:
                yield min(index, other), max(index, other)


def _tears(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    """Each write torn: its head, its tail, or all but one sector is there.

    With what came before, and with everything else.
    """
    everything = range(len(epoch.changes))
    for index, change in enumerate(epoch.changes):
        for sectors in _torn_sectors(change, bounds):
            yield _Plan(range(index + 1), {index: sectors})
            yield _Plan(everything, {index: sectors})


def _torn_sectors(change: Change, bounds: _Bounds) -> Iterator[Sequence[int]]:
    count = sector_count(change) if isinstance(change, Write) else 0
    for cut in _sampled(range(1, count), bounds):
        yield range(cut)
        yield range(cut, count)
    for missing in _sampled(range(1, count - 1), bounds):
        yield [sector for sector in range(count) if sector != missing]


def _anything(epoch: _Epoch, bounds: _Bounds) -> Iterator[_Plan]:
    random = bounds.random
    for _ in range(bounds.samples):
        order: list[int] = []
        for stretch in epoch.stretches(_some_changes(epoch, random)):
            random.shuffle(stretch)
            order += stretch
        torn: dict[int, Sequence[int]] = {}
        for index in order:
            change = epoch.changes[index]
            count = sector_count(change) if isinstance(change, Write) else 0
            if count > 1 and random.random() < _TEAR_CHANCE:
                torn[index] = sorted(random.sample(range(count), random.randrange(1, count)))
        yield _Plan(order, torn)


def _some_changes(epoch: _Epoch, random: Random) -> list[int]:
    """A subset of any density: with few dropped, with few there, and between."""
    density = random.random()
    return [index for index in range(len(epoch.changes)) if random.random() < density]


def _sampled(cases: Sequence[_Case], bounds: _Bounds) -> Sequence[_Case]:
    if len(cases) <= bounds.samples:
        return cases
    return [cases[at] for at in sorted(bounds.random.sample(range(len(cases)), bounds.samples))]


_CHOICES: Final[dict[Mode, Callable[[_Epoch, _Bounds], Iterator[_Plan]]]] = {
    Mode.LINEAR: _linear,
    Mode.PREFIXES: _prefixes,
    Mode.DROPS: _drops,
    Mode.SUBSETS: _subsets,
    Mode.REORDERS: _reorders,
    Mode.TEARS: _tears,
    Mode.RANDOM: _anything,
}


# Ids -------------------------------------------------------------------------------------------


def _parsed(found: re.Match[str], epoch: _Epoch) -> _Plan:
    """The plan that the groups of `_ID` stand for.  Raises `InvalidArgument`."""
    count = len(epoch.changes)
    everything = range(count)
    if found["first"] is not None:
        order: Sequence[int] = range(_below(found["first"], count + 1))
    elif found["drop"] is not None:
        dropped = _below(found["drop"], count)
        order = [index for index in everything if index != dropped]
    else:
        order = _runs(found["ops"], count)
    torn: dict[int, Sequence[int]] = {}
    for clause in found["torn"].split("/torn=")[1:]:
        number, _, sectors = clause.partition("@")
        index = _below(number, count)
        change = epoch.changes[index]
        if index not in order or isinstance(change, Resize):
            raise InvalidArgument(f"operation {index} of the epoch cannot be torn")
        torn[index] = _runs(sectors, sector_count(change))
    return _Plan(order, torn)


def _runs_text(numbers: Iterable[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _runs(text: str, bound: int) -> list[int]:
    """The numbers below `bound` that `_runs_text` wrote, each once.  Raises `InvalidArgument`."""
    numbers: list[int] = []
    for run in text.split(","):
        first, dash, last = run.partition("-")
        start = _below(first, bound)
        numbers += range(start, (_below(last, bound) if dash else start) + 1)
        if len(numbers) > bound:
            break
    if len(set(numbers)) != len(numbers):
        raise InvalidArgument("an id names everything once")
    return numbers


def _below(text: str, bound: int) -> int:
    if not text.isdigit() or len(text) > len(str(bound)) or int(text) >= bound:
        raise InvalidArgument(f"the id says {text!r}, where {bound} is too much")
    return int(text)
