"""Copying and moving as they are typed: which original, and where its copy goes.

Invariants:

* As with ``cp``, a copy goes into a target that is a directory and otherwise takes its name.  What
  a URI itself stands for has no name; of such a directory the entries are copied.
* With `recursive` a symbolic link that is named is copied as a link; without, it is followed.
* Moving is one call of the service and never a copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from capstore.backers.node import Entry, NodeKind, RenameMode, Stat
from capstore.schema.errors import (
    AlreadyExists,
    CrossVolume,
    InvalidArgument,
    NotDirectory,
    NotFound,
    StorageError,
)
from capstore.schema.names import from_bytes
from capstore.service.remote import Directory, File
from capstore.service.remote_store import node_of
from capstore.service.uri import CapabilityURI
from capstore.tools.console import about, explained, local, shown
from capstore.tools.copying import Copier, Original, Place, counted, summed_up
from capstore.tools.local_tree import (
    LocalDirectory,
    LocalTree,
    content_of_stdin,
    local_directory,
    local_entry,
)
from capstore.tools.location import Opened, opened, same_service
from capstore.tools.progress import Meter, metered
from capstore.tools.remote_tree import LoneFile, RemoteTree
from capstore.tools.resolve import find, find_directory
from capstore.tools.trees import Sink

D = TypeVar("D")

_NEW_FILE = Stat(kind=NodeKind.FILE, size=0, node_id=0, version=0)


# Ends at a service -------------------------------------------------------------------------------


async def _copy_from(
    service: Opened,
    sink: Sink[D],
    place: Place[D],
    meter: Meter,
    *,
    recursive: bool,
    avoid: int | None = None,
) -> None:
    """Copies what the location means to `place`; for `avoid` see `Copier`."""
    if file := _lone_file(service):
        lone = Original(file, Entry("", await file.stat()), ())
        await Copier(LoneFile(), sink, meter).copy(lone, place, recursive=recursive)
        return
    found = await find(service.top, service.path, follow=not recursive)
    parent = found.parent if found.parent is not None else found.directory()
    original = Original(parent, found.entry, found.path)
    if service.path and not place.name:
        # What was typed names the copy: a link's target, which others may choose, never does.
        place = replace(place, name=service.path[-1])
    copier = Copier(RemoteTree(), sink, meter, avoid=avoid)
    await copier.copy(original, place, recursive=recursive)


async def _place_at(
    top: Directory | File, path: Sequence[str], *, exact: bool = False
) -> Place[Directory]:
    """Into the directory at `path`, or under that name; with `exact` always the latter."""
    if not exact or not path:
        try:
            found = await find(top, path)
        except NotFound:
            found = None
        if found is not None and found.is_directory:
            return Place(found.directory())
    if not path:
        raise InvalidArgument("this needs a path: what the URI itself stands for has no name")
    return Place(await find_directory(top, path[:-1]), path[-1])


def _lone_file(service: Opened) -> File | None:
    """The file that the location is, if it has no name."""
    return service.top if isinstance(service.top, File) and not service.path else None


# Ends on this machine ----------------------------------------------------------------------------


@contextmanager
def _local_place(dest: str, *, recursive: bool) -> Iterator[Place[LocalDirectory]]:
    """Into the directory `dest`, or under that name.  Raises OSError, `NotDirectory`."""
    path = Path(dest)
    if path.is_dir():
        with local_directory(path) as directory:
            yield Place(directory)
        return
    if dest.endswith("/") and not recursive:
        raise NotDirectory(f"{local(dest)} is no directory")
    with local_directory(path.parent) as directory:
        yield Place(directory, from_bytes(os.fsencode(path.name)))


@contextmanager
def _local_original(source: str, *, recursive: bool) -> Iterator[Original[LocalDirectory]]:
    """What the user calls `source`.  Raises OSError.

    A link is followed without `recursive` or with a slash behind it, and keeps its own name.
    """
    path = Path(source)
    if source.rstrip("/").rpartition("/")[2] in ("", ".", ".."):
        with local_directory(path) as directory, directory.opened() as descriptor:
            yield Original(directory, local_entry(descriptor, b".")._replace(name=""), ())
        return
    real = path if recursive and not source.endswith("/") else Path(os.path.realpath(path))
    with local_directory(real.parent) as directory, directory.opened() as descriptor:
        try:
            entry = local_entry(descriptor, os.fsencode(real.name))
        except OSError as error:
            raise OSError(error.errno, error.strerror, source) from None
        yield Original(directory, entry, tuple(path.parts[path.is_absolute() :]))


# Verbs -------------------------------------------------------------------------------------------


async def get(uri: CapabilityURI, dest: str, *, recursive: bool, quiet: bool) -> None:
    """Copies from a service to this machine."""
    with _local_place(dest, recursive=recursive) as place:
        async with opened(uri) as service, metered("get", quiet=quiet) as meter:
            await _copy_from(service, LocalTree(), place, meter, recursive=recursive)
        summed_up(meter)


async def put(sources: Sequence[str], uri: CapabilityURI, *, recursive: bool, quiet: bool) -> None:
    """Copies from this machine to a service."""
    async with opened(uri) as service, metered("put", quiet=quiet) as meter:
        if file := _lone_file(service):
            place_in = Place(file, "the file")
            await _put_all(sources, LoneFile(), place_in, meter, recursive=recursive)
        else:
            place = await _place_at(service.top, service.path)
            await _put_all(sources, RemoteTree(), place, meter, recursive=recursive)
    summed_up(meter)


async def _put_all(
    sources: Sequence[str], sink: Sink[D], place: Place[D], meter: Meter, *, recursive: bool
) -> None:
    if len(sources) > 1 and place.name:
        raise NotDirectory("several sources go into a directory, and LOCATION is none")
    for source in sources:
        try:
            if source == "-":
                await _put_stdin(sink, place, meter)
            else:
                await _put_one(source, sink, place, meter, recursive=recursive)
        except (StorageError, OSError) as error:
            meter.failed(explained(error))


async def _put_stdin(sink: Sink[D], place: Place[D], meter: Meter) -> None:
    if not place.name:
        raise InvalidArgument("stdin has no name: say what the file is to be called")
    content = counted(content_of_stdin(), meter)
    await sink.file(place.directory, place.name, content, _NEW_FILE)
    meter.entries += 1


async def _put_one(
    source: str, sink: Sink[D], place: Place[D], meter: Meter, *, recursive: bool
) -> None:
    with _local_original(source, recursive=recursive) as original:
        if original.entry.name and not place.name:
            own_name = from_bytes(os.fsencode(Path(source).name))
            place = replace(place, name=own_name)
        await Copier(LocalTree(), sink, meter).copy(original, place, recursive=recursive)


async def cp(source: CapabilityURI, target: CapabilityURI, *, recursive: bool, quiet: bool) -> None:
    """Copies between services, or within one."""
    async with opened(source) as one, opened(target) as other:
        async with metered("cp", quiet=quiet) as meter:
            if file := _lone_file(other):
                lone = Place(file, "the file")
                await _copy_from(one, LoneFile(), lone, meter, recursive=recursive)
                return
            if recursive:
                await _refuse_into_itself(one, other)
            within = await _place_at(other.top, other.path)
            avoid = None
            if recursive and await _same_volume(one, other):
                avoid = (await within.directory.stat()).node_id
            await _copy_from(one, RemoteTree(), within, meter, recursive=recursive, avoid=avoid)
        summed_up(meter)


async def _refuse_into_itself(one: Opened, other: Opened) -> None:
    """Raises `InvalidArgument` where the copy would be part of its original, without end."""
    source, target = one.connection.uri, other.connection.uri
    if not same_service(source, target) or source.token != target.token:
        return
    original = await find(one.top, source.path, follow=False)
    if original.is_directory and target.path[: len(original.path)] == original.path:
        raise InvalidArgument(f"{shown(original.path)} cannot be copied into itself")


async def _same_volume(one: Opened, other: Opened) -> bool:
    """Whether node numbers mean the same at both: they are numbers within a volume."""
    if not same_service(one.connection.uri, other.connection.uri):
        return False
    volumes = set()
    for side in (one, other):
        reference = await side.connection.reference(side.connection.uri.token)
        volumes.add((await reference.status()).volume)
    return len(volumes) == 1


async def mv(
    source: CapabilityURI, target: CapabilityURI, *, no_replace: bool, exchange: bool
) -> None:
    """Renames within one volume."""
    if not same_service(source, target):
        raise CrossVolume("these are different services: use cp -r, then rm -r")
    mode = RenameMode.NO_REPLACE if no_replace else RenameMode.REPLACE
    mode = RenameMode.EXCHANGE if exchange else mode
    async with opened(source) as service:
        top = service.top
        if source.token != target.token:
            top = node_of(await service.connection.restore(target.token))
        found = await find(service.top, source.path, follow=False)
        directory, name = found.named()
        place = await _place_at(top, target.path, exact=exchange)
        try:
            await directory.rename(name, place.directory, place.name_for(name), mode)
        except CrossVolume:
            raise CrossVolume("these are different volumes: use cp -r, then rm -r") from None
        except AlreadyExists as error:
            into = target.path if place.name else (*target.path, name)
            raise about(into, error) from error
        except StorageError as error:
            raise about(found.path, error) from error
