"""``capstore image diff --layer``: what the upper layer of an overlay changes, as an archive.

Invariants: as those of an image that is built (`capstore.tools.image.build`): the same layers give
the same bytes, and the archive is in its place when it is whole and durable.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md.  Sparse members are not
used, as it wants it; compression makes little of holes.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

from capstore.backers.node import Entry, Stat
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_export import Export, Told
from capstore.backers.overlay_view import view_of
from capstore.backers.workers import in_worker
from capstore.images.builder import Facts, check_named
from capstore.images.builder import Path as InTree
from capstore.images.tar_build import TarBuilder
from capstore.images.tar_output import stored_path
from capstore.tools.image.build import own_paths
from capstore.tools.image.epoch import facts_of, source_date_epoch
from capstore.tools.image.output import making
from capstore.tools.image.pushing import Pusher
from capstore.tools.image.source import content_of
from capstore.tools.progress import Meter, metered
from capstore.tools.trees import Content

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OVERLAY: Final = "overlay:"
GZIP: Final = (".tar.gz", ".tgz")
ZSTD: Final = (".tar.zst", ".tzst")
# What a layer's file can be called.
ENDINGS: Final = (".tar", *GZIP, *ZSTD)
_LEVEL: Final = 6
_CHECKED: Final[dict[int, int]] = {zstd.CompressionParameter.checksum_flag: 1}


async def export(place: Path, source: str, *, force: bool, quiet: bool) -> None:
    """Writes what the upper layer of the overlay `source` changes to `place`, compressed as its
    name says.

    Raises `InvalidName` for a name that a layer cannot
    say, what opening and reading the layers raises, `AlreadyExists`, and OSError.
    """
    epoch = source_date_epoch()
    with making(place, force=force) as output:
        own = [output.place, output.scratch]
        skip = await in_worker(lambda: own_paths(source, own))
        volume = await view_of(source.removeprefix(OVERLAY))
        try:
            async with metered("diff", quiet=quiet) as meter:
                with packed(output.path, place.name) as stream:
                    builder = LayerBuilder(stream)
                    keep = partial(facts_of, epoch=epoch, needs_time=True)
                    await push_layer(LayerPusher(builder, keep, meter), volume, skip=skip)
                    await in_worker(builder.finish)
        finally:
            await volume.close()
        await in_worker(output.commit)


# What is written ---------------------------------------------------------------------------------


class LayerBuilder(TarBuilder):
    """Writes a layer.  A link has the mode and time of what it is a link to, since there are
    programs that set them (containerd, Docker)."""

    def link_as(self, path: InTree, original: InTree, facts: Facts) -> None:
        """As `link`, to a node that has these `facts`."""
        check_named(path)
        mode = 0o755 if facts.executable else 0o644
        self._member(b"1", path, facts, mode=mode, link=stored_path(original))


class LayerPusher(Pusher):
    """Pushes the entries of a layer."""

    def __init__(
        self, builder: LayerBuilder, facts_of: Callable[[Stat], Facts], meter: Meter
    ) -> None:
        super().__init__(builder, facts_of, meter)
        self._layer = builder

    def _link(
        self, path: tuple[str, ...], original: tuple[str, ...], facts: Facts
    ) -> Callable[[], None]:
        return partial(self._layer.link_as, path, original, facts)


@contextmanager
def packed(path: Path, name: str) -> Iterator[BinaryIO]:
    """A file to write to at `path`, compressed if `name` has such an ending.  Blocks on the disk.

    Raises OSError.
    """
    with path.open("wb") as file:
        if name.endswith(GZIP):
            # Without the file's name and time, which are not the layer's.
            with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as stream:
                yield cast("BinaryIO", stream)
        elif name.endswith(ZSTD):
            with zstd.ZstdFile(file, "wb", options=_CHECKED) as stream:
                yield cast("BinaryIO", stream)
        else:
            yield file


# What is read ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """An entry of the layer on its way."""

    source: Export
    told: Told

    @property
    def path(self) -> tuple[str, ...]:
        return self.told.path

    @property
    def entry(self) -> Entry:
        return self.told.entry

    async def content(self) -> Content:
        if self.told.seen is None:
            return Content(b"")
        return await content_of(await self.source.open(self.told.seen))


async def push_layer(
    pusher: Pusher, overlay: OverlayVolume, *, skip: frozenset[tuple[str, ...]] = frozenset()
) -> None:
    """Pushes what the upper layer of `overlay` changes, but what is at or below a path in `skip`.

    Raises as `Export.told` and `Pusher.push`.
    """
    source = Export(overlay)
    async with aclosing(source.told()) as told:
        root = await anext(told)
        async with aclosing(_steps(source, told, skip)) as steps:
            await pusher.push_steps(root.entry.stat, steps)


async def _steps(
    source: Export, told: AsyncIterator[Told], skip: frozenset[tuple[str, ...]]
) -> AsyncGenerator[_Step, None]:
    async for one in told:
        if not any(one.path[: len(path)] == path for path in skip):
            yield _Step(source, one)
