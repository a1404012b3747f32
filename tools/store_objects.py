"""Objects of a store: `put`, `get`, `has`, `rm`, `ls`, `stats`, `compact`, `gc`.

Invariants:

* Objects of any size go by in pieces.  A local file appears under its name when it is complete, and
  holds one version of its object; a put that fails or is interrupted leaves nothing.
* Listings are shown page by page and never held as a whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from json import dumps as json_text
from pathlib import Path
from typing import Any, TypeVar

from capstore.backers.node import Buffer, Entry, NodeKind, Provenance, Stat
from capstore.backers.store import Condition, ObjectRange, ObjectStat, ObjectStore
from capstore.schema.errors import (
    Conflict,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotFound,
    StorageError,
)
from capstore.schema.names import from_bytes
from capstore.schema.sizes import format_size
from capstore.service.object_streams import (
    ATTEMPTS_MAX,
    object_pages,
    object_ranges,
    write_object,
)
from capstore.service.remote_store import Restored
from capstore.service.uri import CapabilityURI
from capstore.tools.console import (
    about,
    explained,
    local,
    local_text,
    out,
    out_json,
    printable,
    utc_text,
)
from capstore.tools.copying import Place, counted, summed_up
from capstore.tools.local_tree import (
    LocalDirectory,
    LocalTree,
    content_of_stdin,
    local_directory,
    local_entry,
)
from capstore.tools.location import connected
from capstore.tools.progress import Meter, metered
from capstore.tools.trees import Content

T = TypeVar("T")

_NEW_FILE = Stat(kind=NodeKind.FILE, size=0, node_id=0, version=0)


@asynccontextmanager
async def opened_store(uri: CapabilityURI) -> AsyncIterator[ObjectStore]:
    """The store of `uri`.  Raises as `connected` and `restore`, and `InvalidArgument`."""
    async with opened_thing(uri) as thing:
        if not isinstance(thing, ObjectStore):
            raise InvalidArgument("the URI does not stand for a store")
        yield thing


@asynccontextmanager
async def opened_thing(uri: CapabilityURI) -> AsyncIterator[Restored]:
    """What `uri` stands for, which has keys or names of its own."""
    if uri.path:
        raise InvalidArgument(
            "a store has no paths below it: keys and names are arguments of their own"
        )
    async with connected(uri) as connection:
        yield await connection.restore(uri.token)


# Keys --------------------------------------------------------------------------------------------


def key_text(key: bytes) -> str:
    """A key as it is shown: whatever is no printable UTF-8 is escaped."""
    return printable(key.decode("utf-8", "backslashreplace"))


def _key_json(key: bytes) -> dict[str, Any]:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = None
    return {"key": text, "hex": key.hex()}


@contextmanager
def _about(key: bytes) -> Iterator[None]:
    """Has a `StorageError` say which key it is about."""
    try:
        yield
    except StorageError as error:
        raise _naming(key, error) from error


def _naming(key: bytes, error: StorageError) -> StorageError:
    # `about` leaves alone what names a local file: the object is not to blame.
    if not key or about((), error) is error:
        return error
    return StorageError.of(error.code, f'key "{key_text(key)}": {error.message}')


# Putting and getting -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """What a put is to be (no `key` means the hash of the content), and how it is shown."""

    key: bytes
    condition: Condition
    hexadecimal: bool = False
    json: bool = False


async def put(uri: CapabilityURI, source: str, wish: Wish, *, quiet: bool) -> None:
    """Puts the file `source`, or stdin for ``-``."""
    if source == "-":
        stat = await _put(uri, content_of_stdin(), None, wish, quiet=quiet)
    else:
        with _local_file(source) as (directory, entry):
            content = await LocalTree().content(directory, entry)
            # What has no size may have content all the same, in /proc for instance.
            stat = await _put(uri, content, entry.stat.size or None, wish, quiet=quiet)
    if wish.json:
        out_json(_key_json(stat.key) | {"size": stat.size, "version": stat.version})
    elif stat.key != wish.key:
        as_hex = wish.hexadecimal or not wish.key
        out(stat.key.hex() if as_hex else key_text(stat.key))


async def _put(
    uri: CapabilityURI, content: Content, size: int | None, wish: Wish, *, quiet: bool
) -> ObjectStat:
    async with opened_store(uri) as store, metered("put", quiet=quiet) as meter:
        meter.total = size
        pieces = _pieces(counted(content, meter))
        with _about(wish.key):
            return await write_object(store, pieces, wish.key, wish.condition, size)


@contextmanager
def _local_file(source: str) -> Iterator[tuple[LocalDirectory, Entry]]:
    """What the user calls `source`, links followed.  Raises OSError, `IsDirectory`."""
    real = Path(os.path.realpath(source))
    if real.is_dir():
        raise IsDirectory(f"{local(source)} is a directory")
    with local_directory(real.parent) as directory, directory.opened() as descriptor:
        try:
            entry = local_entry(descriptor, os.fsencode(real.name))
        except OSError as error:
            raise OSError(error.errno, error.strerror, source) from None
        yield directory, entry


async def _pieces(content: Content) -> AsyncIterator[Buffer]:
    yield content.first
    if content.rest is not None:
        async for piece in content.rest:
            yield piece


async def get(uri: CapabilityURI, key: bytes, dest: str, *, quiet: bool) -> None:
    """Gets an object into the file `dest`, or to stdout for ``-``."""
    if dest == "-":
        async with opened_store(uri) as store:
            with _about(key):
                await _to_stdout(store, key)
        return
    with _local_place(dest) as place:
        async with opened_store(uri) as store, metered("get", quiet=quiet) as meter:
            with _about(key):
                await _to_file(store, key, place, meter)


async def _to_stdout(store: ObjectStore, key: bytes) -> None:
    async with aclosing(object_ranges(store, key)) as ranges:
        async for part in ranges:
            sys.stdout.buffer.write(part.data)


@contextmanager
def _local_place(dest: str) -> Iterator[Place[LocalDirectory]]:
    """Where the file is to be.  Raises OSError, `IsDirectory`, `NotDirectory`."""
    path = Path(dest)
    if path.is_dir():
        raise IsDirectory(f"{local(dest)} is a directory: say what the file is to be called")
    if dest.endswith("/"):
        raise NotDirectory(f"{local(dest)} is no directory")
    with local_directory(path.parent) as directory:
        yield Place(directory, from_bytes(os.fsencode(path.name)))


async def _to_file(
    store: ObjectStore, key: bytes, place: Place[LocalDirectory], meter: Meter
) -> None:
    """Begins anew where the object is replaced on the way."""
    for _ in range(ATTEMPTS_MAX):
        meter.bytes = 0
        try:
            async with aclosing(object_ranges(store, key)) as ranges:
                first = await anext(ranges)
                meter.total = first.stat.size
                whole = len(first.data) == first.stat.size
                content = Content(first.data, None if whole else _data_of(ranges))
                content = counted(content, meter)
                await LocalTree().file(place.directory, place.name, content, _NEW_FILE)
        except Conflict:
            continue
        return
    raise Conflict("the object is replaced faster than it can be read")


async def _data_of(ranges: AsyncIterator[ObjectRange]) -> AsyncIterator[Buffer]:
    async for part in ranges:
        yield part.data


async def has(uri: CapabilityURI, key: bytes) -> None:
    """Raises `NotFound` if there is no such object."""
    async with opened_store(uri) as store:
        with _about(key):
            if not await store.has(key):
                raise NotFound("no such object")


async def rm(
    uri: CapabilityURI, keys: Sequence[bytes], condition: Condition, *, force: bool
) -> None:
    """Removes objects; one that fails is reported, the others are removed all the same."""
    meter = Meter()
    async with opened_store(uri) as store:
        for key in keys:
            try:
                await store.delete(key, condition)
                meter.entries += 1
            except StorageError as error:
                if not (force and isinstance(error, NotFound)):
                    meter.failed(explained(_naming(key, error)))
    summed_up(meter)


# Showing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Style:
    """How a listing looks."""

    long: bool = False
    human: bool = False
    hexadecimal: bool = False
    json: bool = False

    def line(self, stat: ObjectStat) -> str:
        """One object."""
        key = stat.key.hex() if self.hexadecimal else key_text(stat.key)
        if not self.long:
            return key
        size = format_size(stat.size) if self.human else str(stat.size)
        recorded = stat.provenance is not Provenance.UNKNOWN
        created = local_text(stat.created) if recorded else "-"
        return f"{size:>12} {stat.version:>8} {created:<16} {key}"


async def ls(uri: CapabilityURI, prefix: bytes, style: Style) -> None:
    """Lists the objects whose keys begin with `prefix`."""
    async with opened_store(uri) as store, aclosing(object_pages(store, prefix)) as pages:
        if style.json:
            await out_json_pages(pages, _stat_json)
            return
        async for objects in pages:
            for stat in objects:
                out(style.line(stat))


def _stat_json(stat: ObjectStat) -> dict[str, Any]:
    recorded = stat.provenance is not Provenance.UNKNOWN
    return {
        **_key_json(stat.key),
        "size": stat.size,
        "version": stat.version,
        "created": utc_text(stat.created) if recorded else None,
        "provenance": stat.provenance.value,
    }


async def stats(uri: CapabilityURI, *, json: bool) -> None:
    """Shows how much is stored."""
    async with opened_store(uri) as store:
        usage = await store.usage()
    if json:
        out_json(
            {
                "objects": usage.used_nodes,
                "usedBytes": usage.used_bytes,
                "freeBytes": usage.free_bytes,
                "totalBytes": usage.total_bytes or None,
                "label": usage.label,
            }
        )
        return
    out(f"objects: {usage.used_nodes}")
    out(f"used:    {format_size(usage.used_bytes)}")
    out(f"free:    {format_size(usage.free_bytes)}")
    if usage.total_bytes:
        out(f"total:   {format_size(usage.total_bytes)}")
    if usage.label:
        out(f"label:   {printable(usage.label)}")


async def out_json_pages(
    pages: AsyncIterator[Sequence[T]], shape: Callable[[T], dict[str, Any]]
) -> None:
    """The items of `pages` as one JSON array, an item per line, as they come."""
    before = "["
    async for page in pages:
        for item in page:
            sys.stdout.write(before + json_text(shape(item)))
            before = ",\n "
    out("[]" if before == "[" else "]")


# Upkeep ------------------------------------------------------------------------------------------


async def compact(uri: CapabilityURI) -> None:
    """Gives back the space of what is not needed any more."""
    async with opened_store(uri) as store:
        await store.compact()


async def gc(uri: CapabilityURI, older_than: float, *, json: bool) -> None:
    """Removes content that no name stands for, put last more than `older_than` seconds ago."""
    async with opened_store(uri) as store:
        collected = await store.collect(older_than)
    if json:
        out_json({"objects": collected.objects, "bytes": collected.bytes})
    else:
        out(f"removed {collected.objects} objects ({format_size(collected.bytes)})")
