"""``capstore image verify overlay:UPPER+LOWER...``: each layer for itself, then the upper one
against those below.

Invariants: the layers are opened to be read, but the upper one of an overlay that is repaired while
it is; what is shown then is what is wrong afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from capstore.backers.layer import Layer
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.node import Volume
from capstore.backers.overlap import check_disjoint
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_spec import OCI, layer_source, parse_overlay
from capstore.backers.overlay_verify import verify_overlay
from capstore.backers.overlay_view import open_to_read, view_of
from capstore.backers.spec import open_volume
from capstore.backers.spec_text import Spec
from capstore.backers.workers import in_worker
from capstore.images.formats import FORMATS
from capstore.images.tree import Finding
from capstore.schema.errors import StorageError
from capstore.tools.console import complain, explained
from capstore.tools.image import verify as images
from capstore.tools.image.layerspecs import escaped, overlay_in, there_to_write
from capstore.tools.image.maintaining import repaired
from capstore.tools.image.stores import opened_file
from capstore.tools.image.verify import DAMAGED, UNREADABLE, Report, all_findings, elsewhere
from capstore.tools.progress import Meter, metered

_OVERLAY: Final = "overlay"


async def verify(file: str, *, json: bool, quiet: bool, repair: bool = False) -> int:
    """Checks `file`, an image or an overlay; returns the exit code."""
    argument = await in_worker(lambda: overlay_in(file))
    if argument is None:
        return await images.verify(file, json=json, quiet=quiet, repair=repair)
    try:
        if repair:
            await _repaired(argument)
        layers = await _images_in(argument)
    except (OSError, StorageError) as error:
        complain(explained(error))
        return UNREADABLE
    return await _shown(argument, layers, json=json, quiet=quiet)


async def _shown(argument: str, layers: Sequence[str], *, json: bool, quiet: bool) -> int:
    found = 0
    wrong: list[Exception] = []
    report = Report(json=json)
    async with metered("verify", quiet=quiet) as meter:
        async for finding in _all_findings(argument, layers, meter, wrong):
            found += 1
            report.add(finding)
    report.finish(clean=not found and not wrong)
    for error in wrong:
        complain(explained(error))
    if wrong:
        return UNREADABLE
    return DAMAGED if found else images.CLEAN


async def _all_findings(
    argument: str, layers: Sequence[str], meter: Meter, wrong: list[Exception]
) -> AsyncIterator[Finding]:
    """What is wrong with the layers that are images, with their names, and with the overlay; what
    cannot be opened comes to be in `wrong`."""
    upper = await in_worker(lambda: parse_overlay(argument).upper)
    for text in layers:
        try:
            async with opened_file(text) as image:
                async for finding in elsewhere(partial(all_findings, image, meter)):
                    # Only the upper layer is repaired with the overlay.
                    own = finding.repairable and _is_same(text, upper)
                    yield replace(finding, where=f"{text} {finding.where}", repairable=own)
        except (OSError, StorageError) as error:
            wrong.append(error)
    if wrong:
        return
    try:
        overlay = await view_of(argument)
        try:

            def counted() -> None:
                meter.entries += 1

            async for finding in verify_overlay(overlay, repair=False, notice=counted):
                yield finding
        finally:
            await overlay.close()
    except (OSError, StorageError) as error:
        wrong.append(error)


def _is_same(text: str, upper: str) -> bool:
    one, other = Spec.parse(text), Spec.parse(upper)
    return (one.scheme, one.argument) == (other.scheme, other.argument)


async def _images_in(argument: str) -> list[str]:
    """The images among the layers, and among those of layers that are overlays, each once."""
    found: dict[str, None] = {}
    described = parse_overlay(argument)
    for text in (described.upper, *described.lowers):
        spec = Spec.parse(text)
        if spec.scheme == OCI:
            text = await layer_source(spec)  # noqa: PLW2901 - what stands for it
            spec = Spec.parse(text)
        if spec.scheme == _OVERLAY:
            found.update(dict.fromkeys(await _images_in(text.partition(":")[2])))
        elif spec.scheme == "wf1":
            found[f"wf1:{escaped(spec.argument)}"] = None
        elif spec.scheme in FORMATS:
            found[text] = None
    return list(found)


# Repairing ----------------------------------------------------------------------------------------


async def _repaired(argument: str) -> None:
    """Mends what is repairable in the upper layer.  Raises as opening and changing it does."""
    overlay = await _opened_to_repair(argument)
    try:
        async for _ in verify_overlay(overlay, repair=True):
            pass
    finally:
        await overlay.close()


async def _opened_to_repair(argument: str) -> OverlayVolume:
    """The overlay with its upper layer open to be written, and the others to be read."""
    described = parse_overlay(argument)
    specs = [Spec.parse(text) for text in (described.upper, *described.lowers)]
    await in_worker(lambda: check_disjoint(specs))
    upper = await in_worker(lambda: there_to_write(described.upper))
    if specs[0].scheme == "wf1":
        await in_worker(lambda: repaired(upper))
    opened: list[Volume] = []
    try:
        lowers: list[Layer] = []
        for text, spec in zip(described.lowers, specs[1:], strict=True):
            named = spec.scheme == OCI
            opened.append(await open_to_read(await layer_source(spec) if named else text))
            lowers.append(open_layer(opened[-1], named=named))
        opened.append(await open_volume(upper))
        return await OverlayVolume.over(await open_upper(opened[-1]), lowers)
    except BaseException:
        # What went wrong first is what is told.
        for volume in opened:
            with suppress(Exception):
                await volume.close()
        raise
