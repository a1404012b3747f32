"""Opening what a configuration describes.

Invariants:

* A volume is opened once.  One that others are made of is closed by each of them: closing again
  does nothing, and only at the stop is anything closed.
* If anything fails, what was opened is closed, and the error names the key and the line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from capstore.backers.layers import open_layer
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import Volume
from capstore.backers.overlay_compose import compose, viewed
from capstore.backers.overlay_spec import OCI, layer_source
from capstore.backers.spec import open_backer
from capstore.backers.store import ObjectStore
from capstore.schema.errors import StorageError
from capstore.service.server import Served
from capstore.tools.config.document import dotted
from capstore.tools.config.lines import Path as KeyPath
from capstore.tools.config.load import Config
from capstore.tools.config.volumes import Leaf, Named, Overlay, Part

__all__ = ["open_served"]

S = TypeVar("S", bound=Volume | ObjectStore)

log = logging.getLogger("capstore.serve")


async def open_served(config: Config, cache: Path, opening: AsyncExitStack) -> dict[str, Served]:
    """Opens the volumes that are served, by name; `opening` closes them and what they are made of.

    Raises what opening one raises.
    """
    opener = _Opener(config, cache, opening)
    served = {}
    for name in config.served:
        served[name] = await opener.named(name)
        log.info("volume %s is open", name)
    return served


class _Opener:
    """Opens parts, those that have a name once."""

    def __init__(self, config: Config, cache: Path, opening: AsyncExitStack) -> None:
        self._config = config
        self._cache = cache
        self._opening = opening
        self._named: dict[str, Served] = {}
        self._oci: dict[tuple[KeyPath, str], Served] = {}

    async def named(self, name: str) -> Served:
        """The volume of this name."""
        if name not in self._named:
            self._named[name] = await self._part(self._config.volumes.parts[name])
        return self._named[name]

    async def _part(self, part: Part) -> Served:
        if isinstance(part, Named):
            return await self.named(part.name)
        if isinstance(part, Leaf):
            return await self._opened(part.at, part.text)
        if isinstance(part, Overlay):
            return await self._overlay(part)
        trees = {prefix: await self._tree(each) for prefix, each in part.trees.items()}
        with self._about(part.at):
            return self._kept(MountsVolume.over(trees))

    async def _tree(self, part: Part) -> Volume:
        volume = await self._part(part)
        assert isinstance(volume, Volume)  # noqa: S101 - a store was refused as a part
        return volume

    async def _overlay(self, overlay: Overlay) -> Volume:
        """An overlay; where its top cannot be written it is a union that cannot be either."""
        volumes = [await self._layer(layer) for layer in overlay.layers]
        (top, top_is_oci), *below = volumes
        with self._about(overlay.at):
            layers = [open_layer(volume, named=is_oci) for volume, is_oci in below]
            if top_is_oci:
                return self._kept(await viewed(open_layer(top, named=True), layers))
            return self._kept(await compose(top, layers, writable_files=overlay.writable_files))

    async def _layer(self, part: Part) -> tuple[Volume, bool]:
        """The volume of a layer, and whether its names are marks as in OCI layers."""
        leaf = self._config.volumes.resolved(part)
        if not isinstance(leaf, Leaf) or leaf.spec.scheme != OCI:
            return await self._tree(part), False
        key = (leaf.at, leaf.text)
        if key not in self._oci:
            with self._about(leaf.at):
                source = await layer_source(leaf.spec)
            self._oci[key] = await self._opened(leaf.at, source)
        volume = self._oci[key]
        assert isinstance(volume, Volume)  # noqa: S101 - it is a directory or an archive
        return volume, True

    async def _opened(self, at: KeyPath, text: str) -> Served:
        with self._about(at):
            return self._kept(await open_backer(text, cache=self._cache))

    def _kept(self, opened: S) -> S:
        """What was opened, to be closed if another one fails."""
        self._opening.push_async_callback(opened.close)
        return opened

    @contextmanager
    def _about(self, at: KeyPath) -> Iterator[None]:
        """Says of an error where what failed is described."""
        try:
            yield
        except StorageError as error:
            where = f"{self._config.place(at)}: {dotted(at)}"
            raise StorageError.of(error.code, f"{where}: {error.message}") from error
