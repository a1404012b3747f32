"""``overlay:UPPER+LOWER+...`` and ``oci:PATH``, as a person types them.

Invariants: components are whole specifications with their own options; a plus sign that belongs to
one is written with a backslash in front, as commas are.  ``lower=...`` at the end is the overlay's.
What was opened is closed if a later component fails.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from capstore.backers.layer import Layer
from capstore.backers.layers import open_layer
from capstore.backers.mounts import parse_mounts
from capstore.backers.node import Volume
from capstore.backers.overlap import check_disjoint
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_compose import compose
from capstore.backers.spec_text import Spec
from capstore.backers.workers import in_worker
from capstore.schema.errors import InvalidArgument

Opener = Callable[[str], Awaitable[Volume]]
Composer = Callable[[Volume, Sequence[Layer], "OverlaySpec"], Awaitable[OverlayVolume]]

OCI: Final = "oci"
_LOWER: Final = re.compile(r",lower=([^,\\]*)\Z")
_SEMANTICS: Final = {"readonly": False, "writable-files": True}


class OverlaySpec(NamedTuple):
    """What ``overlay:`` was given: specifications from the top to the bottom."""

    upper: str
    lowers: Sequence[str]
    writable_files: bool


def parse_overlay(argument: str) -> OverlaySpec:
    """Takes the argument of ``overlay:`` apart.  Raises `InvalidArgument`."""
    semantics = "readonly"
    if (option := _LOWER.search(argument)) is not None:
        semantics, argument = option[1], argument[: option.start()]
    if semantics not in _SEMANTICS:
        raise InvalidArgument(f'overlay: "lower" is {" or ".join(_SEMANTICS)}')
    upper, *lowers = _components(argument)
    if not upper or not lowers or "" in lowers:
        raise InvalidArgument("overlay: is an upper layer and one or more lower ones: UPPER+LOWER")
    return OverlaySpec(upper, lowers, _SEMANTICS[semantics])


def _components(argument: str) -> list[str]:
    """Splits at plus signs without a backslash; other escapes are the components' own."""
    parts = [""]
    for escaped, plus, plain in re.findall(r"\\(.)|(\+)|([^\\+]+|\\)", argument, re.DOTALL):
        if plus:
            parts.append("")
        elif escaped:
            parts[-1] += "+" if escaped == "+" else f"\\{escaped}"
        else:
            parts[-1] += plain
    return parts


async def open_overlay(argument: str, opener: Opener) -> OverlayVolume:
    """The overlay that `argument` describes; `opener` opens a component.  Where the upper layer
    cannot be written, nor can the overlay.

    Raises `InvalidArgument`, also for an upper layer that is the same place as a lower one, or one
    within the other, and what `opener` raises.
    """

    async def over(upper: Volume, lowers: Sequence[Layer], spec: OverlaySpec) -> OverlayVolume:
        return await compose(upper, lowers, writable_files=spec.writable_files)

    return await open_layers(argument, opener, over)


async def open_layers(argument: str, opener: Opener, over: Composer) -> OverlayVolume:
    """What `over` makes of the layers that `argument` describes; raises as `open_overlay`."""
    spec = parse_overlay(argument)
    if Spec.parse(spec.upper).scheme == OCI:
        raise InvalidArgument("oci: is a layer that does not change, and no upper one")
    await in_worker(lambda: _check_apart(spec))
    opened: list[Volume] = []
    try:
        opened.append(await opener(spec.upper))
        lowers: list[Layer] = []
        for text in spec.lowers:
            lower = Spec.parse(text)
            named = lower.scheme == OCI
            opened.append(await opener(await layer_source(lower) if named else text))
            lowers.append(open_layer(opened[-1], named=named))
        return await over(opened[0], lowers, spec)
    except BaseException:
        # What went wrong first is what is told.
        for volume in opened:
            with suppress(Exception):
                await volume.close()
        raise


def leaves(text: str) -> Iterator[Spec]:
    """The specifications out of which one is composed, at any depth; itself if it is not.

    Raises `InvalidArgument`."""
    spec = Spec.parse(text)
    argument = text.partition(":")[2]
    parts: Collection[str] = ()
    if spec.scheme == "overlay":
        described = parse_overlay(argument)
        parts = (described.upper, *described.lowers)
    elif spec.scheme == "mounts":
        parts = parse_mounts(argument).values()
    else:
        yield spec
    for part in parts:
        yield from leaves(part)


def _check_apart(spec: OverlaySpec) -> None:
    for upper in leaves(spec.upper):
        for lower in spec.lowers:
            for leaf in leaves(lower):
                check_disjoint([upper, leaf])


async def open_oci(spec: Spec, opener: Opener) -> OverlayVolume:
    """A layer of OCI names alone, as it is on nothing: without its marks."""
    volume = await opener(await layer_source(spec))
    try:
        return await OverlayVolume.over(None, [open_layer(volume, named=True)])
    except BaseException:
        await volume.close()
        raise


async def layer_source(spec: Spec) -> str:
    """The specification of what ``oci:PATH`` reads: a directory, or an archive.

    Raises `InvalidArgument`."""
    spec.check_options(())
    if not spec.argument:
        raise InvalidArgument("oci: needs the path of a layer: an archive, or a directory")
    path = spec.argument.replace("\\", r"\\").replace(",", r"\,")
    is_directory = await in_worker(lambda: _is_directory(spec.argument))
    return f"dir:{path},ro" if is_directory else f"tar:{path}"


def _is_directory(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        # Opening it says what is wrong.
        return False
