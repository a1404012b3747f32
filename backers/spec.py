"""Volumes opened by their specifications: ``memory:``, ``dir:PATH,ro`` and so on.

Invariants: an unknown scheme or option is refused with `InvalidArgument` before anything is opened.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypedDict

from capstore.backers.hostdir import HostVolume
from capstore.backers.image import ImageVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import open_mounts
from capstore.backers.node import Volume
from capstore.backers.overlay_spec import OCI, open_oci, open_overlay
from capstore.backers.spec_text import Spec
from capstore.backers.st1 import St1Store
from capstore.backers.store import ObjectStore
from capstore.backers.wf1 import Wf1Volume
from capstore.images.formats import FORMATS, open_image
from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import (
    MEMORY_FILE_BYTES_MAX,
    MEMORY_NODES_MAX,
    MEMORY_TOTAL_BYTES_MAX,
)


async def _open_memory(spec: Spec, cache: Path | None) -> Volume:
    spec.check_options({"max-bytes", "max-file-bytes", "max-nodes"})
    return await MemoryVolume.open(
        file=spec.argument or None,
        total_bytes_max=spec.size("max-bytes", MEMORY_TOTAL_BYTES_MAX),
        file_bytes_max=spec.size("max-file-bytes", MEMORY_FILE_BYTES_MAX),
        nodes_max=spec.size("max-nodes", MEMORY_NODES_MAX),
    )


async def _open_dir(spec: Spec, cache: Path | None) -> Volume:
    spec.check_options({"ro"})
    if not spec.argument:
        raise InvalidArgument("dir: needs a path")
    return await HostVolume.open(spec.argument, read_only=spec.flag("ro"))


async def _open_image(spec: Spec, cache: Path | None) -> Volume:
    spec.check_options({"part"} if spec.scheme == "fat" else ())
    if not spec.argument:
        raise InvalidArgument(f"{spec.scheme}: needs a path")
    part = spec.options.get("part")
    if "part" in spec.options and (part is None or not re.fullmatch(r"[1-9][0-9]{0,3}", part)):
        raise InvalidArgument('fat: the option "part" is the number of a partition: part=1')
    return await ImageVolume.open(
        lambda: open_image(
            spec.argument, scheme=spec.scheme, part=int(part) if part else None, cache=cache
        )
    )


class _Writable(TypedDict):
    """The options of a writable image."""

    create: bool
    size: int | None
    read_only: bool


def _writable(spec: Spec) -> _Writable:
    """What a specification says about a writable image.  Raises `InvalidArgument`."""
    spec.check_options({"create", "size", "ro"})
    create, read_only = spec.flag("create"), spec.flag("ro")
    if not spec.argument:
        raise InvalidArgument(f"{spec.scheme}: needs a path")
    if create and read_only:
        raise InvalidArgument(f"{spec.scheme}: what is made is not for reading only")
    size = None
    if "size" in spec.options:
        size = spec.size("size", 0)
        if not create or not size:
            raise InvalidArgument(
                f"{spec.scheme}: a size is what an image is made with: create,size=64MiB"
            )
    return {"create": create, "size": size, "read_only": read_only}


async def _open_wf1(spec: Spec, cache: Path | None) -> Volume:
    return await Wf1Volume.open(spec.argument, **_writable(spec))


async def _open_st1(spec: Spec) -> ObjectStore:
    return await St1Store.open(spec.argument, **_writable(spec))


async def _open_pyfs(spec: Spec, cache: Path | None) -> Volume:
    # fs takes a third of a second to import.
    from capstore.backers.pyfs import PyfsVolume

    spec.check_options({"ro"})
    if not spec.argument:
        raise InvalidArgument("pyfs: needs the URL of a filesystem")
    return await PyfsVolume.open(spec.argument, read_only=spec.flag("ro") or None)


_OPENERS: dict[str, Callable[[Spec, Path | None], Awaitable[Volume]]] = {
    "memory": _open_memory,
    "dir": _open_dir,
    **dict.fromkeys(FORMATS, _open_image),
    "wf1": _open_wf1,
    "pyfs": _open_pyfs,
}


async def _open_composed(scheme: str, argument: str, cache: Path | None) -> Volume:
    """A tree out of others, whose specifications are in `argument`."""

    async def opener(text: str) -> Volume:
        return await open_volume(text, cache=cache)

    if scheme == "mounts":
        return await open_mounts(argument, opener)
    if scheme == OCI:
        return await open_oci(Spec.parse(f"{OCI}:{argument}"), opener)
    return await open_overlay(argument, opener)


_COMPOSED: tuple[str, ...] = ("overlay", "mounts", OCI)
_STORE_OPENERS: dict[str, Callable[[Spec], Awaitable[ObjectStore]]] = {"st1": _open_st1}


async def open_backer(text: str, *, cache: Path | None = None) -> Volume | ObjectStore:
    """Opens what the specification `text` describes, be it a tree or a store of objects.

    Indices of archives are kept in the directory `cache`, if there is one, and made anew at each
    opening otherwise.  Raises `InvalidArgument` for a specification that makes no sense, `NotFound`
    for a path that is not there, and what the backer raises.
    """
    spec = Spec.parse(text)
    if spec.scheme in _STORE_OPENERS:
        return await _STORE_OPENERS[spec.scheme](spec)
    if spec.scheme in _COMPOSED:
        return await _open_composed(spec.scheme, text.partition(":")[2], cache)
    opener = _OPENERS.get(spec.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}:" for scheme in (*_OPENERS, *_COMPOSED, *_STORE_OPENERS))
        raise InvalidArgument(f'no backer is called "{spec.scheme}:" (there are: {known})')
    return await opener(spec, cache)


async def open_volume(text: str, *, cache: Path | None = None) -> Volume:
    """Opens the tree that the specification `text` describes; raises as `open_backer`, and
    `InvalidArgument` for a store of objects."""
    spec = Spec.parse(text)
    if spec.scheme in _STORE_OPENERS:
        raise InvalidArgument(f"{spec.scheme}: is a store of objects, and no tree")
    opened = await open_backer(text, cache=cache)
    assert isinstance(opened, Volume)  # noqa: S101 - as the scheme says
    return opened
