"""Lookups through many layers beside one, and listings of merged directories beside plain ones.

Invariants: each layer has a directory of the same name, with files of its own in it, so that a
lookup has to ask all layers above.  Names that are looked up for the first time come again so late
that nobody remembers the answer; that something is nowhere is asked about a name once only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count, cycle, islice
from random import Random

from capstore.backers.node import DirectoryNode
from capstore.schema.errors import NotFound
from capstore.tools.bench.contestants import checked
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.overlay_site import (
    FILES,
    LOWER,
    UPPER,
    Item,
    Site,
    name_of,
    opened,
    overlay,
    spec_of,
)
from capstore.tools.bench.slices import Slices

ONE_LOWER, LAYER = "one lower", "layer"
TWICE = "twice as many"

Enter = Callable[[Site], AbstractAsyncContextManager[Slices[str]]]
# The names that are looked up, on and on, of a site's lowest layer.
Names = Callable[[Site], Iterator[str]]

_LOWERS = 5
_SLICE_NAMES = 128
_REMEMBERED_NAMES = 1000
_FILE_BYTES = 256


# Lookups -----------------------------------------------------------------------------------------


def new_names(site: Site) -> Iterator[str]:
    """All names there are, in an order that is the same each time."""
    names = [name_of("0", index) for index in range(site.parameters.overlay_entries)]
    Random(site.parameters.seed).shuffle(names)  # noqa: S311 - a workload
    return cycle(names)


def known_names(site: Site) -> Iterator[str]:
    """Some of them, again and again."""
    return cycle(list(islice(new_names(site), _REMEMBERED_NAMES)))


def absent_names(site: Site) -> Iterator[str]:
    """Names that are nowhere."""
    return (name_of("absent", index) for index in count())


def looking_up(names: Names, *, there: bool = True) -> Enter:
    """Looks up `names` of the lowest of five lower layers, beside those of the only one, and in
    that layer itself; counts them."""

    @asynccontextmanager
    async def enter(site: Site) -> AsyncIterator[Slices[str]]:
        lowers = [
            spec_of("tar", site.archive(f"lower-{number}", _items(site, str(number))))
            for number in reversed(range(_LOWERS))
        ]
        async with AsyncExitStack() as stack:
            roots: dict[str, DirectoryNode] = {}
            for name, layers in ((SUBJECT, lowers), (ONE_LOWER, lowers[-1:])):
                upper = spec_of("wf1", site.folder / f"{len(layers)}.wf1", ",create")
                volume = await stack.enter_async_context(overlay(upper, *layers))
                roots[name] = volume.root
            roots[LAYER] = (await stack.enter_async_context(opened(lowers[-1]))).root
            works = {
                name: _lookups(name, await root.sub(FILES), there=there)
                for name, root in roots.items()
            }
            chosen = names(site)
            first = list(islice(chosen, _REMEMBERED_NAMES))
            for work in works.values():
                await work(first)
            yield Slices(lambda rng: list(islice(chosen, _SLICE_NAMES)), works)

    return enter


def _items(site: Site, layer: str) -> list[Item]:
    entries = range(site.parameters.overlay_entries)
    return [Item(f"{FILES}/{name_of(layer, index)}", _FILE_BYTES) for index in entries]


def _lookups(
    name: str, directory: DirectoryNode, *, there: bool
) -> Callable[[Sequence[str]], Awaitable[int]]:
    async def work(names: Sequence[str]) -> int:
        found = 0
        for one in names:
            try:
                found += (await directory.lookup(one)).stat.size == _FILE_BYTES
            except NotFound:
                continue
        checked(name, found, len(names) if there else 0)
        return len(names)

    return work


# Listings ----------------------------------------------------------------------------------------


@asynccontextmanager
async def listing(site: Site) -> AsyncIterator[Slices[str]]:
    """Lists a directory that an image and an archive have a part of, beside each part alone, and
    beside as many entries in one image."""
    entries = site.parameters.overlay_entries
    upper = spec_of("wf1", await site.image("listed", _items(site, UPPER)))
    both = [*_items(site, UPPER), *_items(site, LOWER)]
    twice = spec_of("wf1", await site.image("listed-twice", both))
    lower = spec_of("tar", site.archive("listed", _items(site, LOWER)))
    async with overlay(upper, lower) as volume, opened(twice) as large:
        layers = [layer.volume.root for layer in volume.layers]
        yield Slices(
            _once,
            {
                SUBJECT: _listing(SUBJECT, volume.root, 2 * entries),
                LOWER: _listing(LOWER, layers[1], entries),
                UPPER: _listing(UPPER, layers[0], entries),
                TWICE: _listing(TWICE, large.root, 2 * entries),
            },
        )


@asynccontextmanager
async def listing_lowers(site: Site) -> AsyncIterator[Slices[str]]:
    """Lists a directory that two archives have a part of, beside one of the parts, and beside as
    many entries in one archive."""
    entries = site.parameters.overlay_entries
    upper = spec_of("wf1", site.folder / "listed-empty.wf1", ",create")
    archives = [site.archive("listed", _items(site, LOWER))]
    archives.append(site.archive("listed-too", _items(site, UPPER)))
    both = [*_items(site, UPPER), *_items(site, LOWER)]
    twice = spec_of("tar", site.archive("listed-twice", both))
    lowers = [spec_of("tar", path) for path in archives]
    async with overlay(upper, *lowers) as volume, opened(twice) as large:
        lower = volume.layers[1].volume.root
        yield Slices(
            _once,
            {
                SUBJECT: _listing(SUBJECT, volume.root, 2 * entries),
                LOWER: _listing(LOWER, lower, entries),
                TWICE: _listing(TWICE, large.root, 2 * entries),
            },
        )


def _once(rng: Random) -> Sequence[str]:
    """There is nothing to choose."""
    return ()


def _listing(
    name: str, root: DirectoryNode, wanted: int
) -> Callable[[Sequence[str]], Awaitable[int]]:
    async def work(names: Sequence[str]) -> int:
        # Nobody has it meanwhile, so what an overlay knows of one that is open is not known.
        directory = await root.sub(FILES)
        page = await directory.list()
        listed = len(page.entries)
        while page.more:
            page = await directory.list(page.entries[-1].name)
            listed += len(page.entries)
        checked(name, listed, wanted)
        return 1

    return work
