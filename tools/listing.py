"""Showing what is there: `ls`, `tree`, `stat`, `cat`.

Invariants: listings are shown page by page, the next page being fetched meanwhile; a tree of any
depth is walked without recursion.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from capstore.backers.node import Entry, NodeKind, Provenance
from capstore.schema.errors import NotDirectory, StorageError
from capstore.schema.sizes import format_size
from capstore.service.remote import Directory
from capstore.service.transfer import read_chunks
from capstore.service.uri import CapabilityURI
from capstore.tools.console import (
    about,
    entry_json,
    local_text,
    out,
    out_json,
    out_json_list,
    printable,
    stat_json,
    utc_text,
)
from capstore.tools.location import connected, opened
from capstore.tools.remote_tree import listed
from capstore.tools.resolve import Found, find

_LETTERS = {
    NodeKind.FILE: "-",
    NodeKind.DIRECTORY: "d",
    NodeKind.SYMLINK: "l",
    NodeKind.SPECIAL: "s",
}


@dataclass(frozen=True, slots=True)
class Style:
    """How a listing looks."""

    long: bool = False
    human: bool = False
    json: bool = False

    def line(self, entry: Entry) -> str:
        """One entry."""
        if not self.long:
            return printable(entry.name)
        stat = entry.stat
        size = format_size(stat.size) if self.human else str(stat.size)
        recorded = stat.provenance is not Provenance.UNKNOWN
        modified = local_text(stat.modified) if recorded else "-"
        return (
            f"{_LETTERS[stat.kind]}{'x' if stat.executable else '-'} {size:>12} "
            f"{modified:<16} {_with_target(entry)}"
        )


def _with_target(entry: Entry) -> str:
    if entry.stat.kind is not NodeKind.SYMLINK:
        return printable(entry.name)
    return f"{printable(entry.name)} -> {printable(entry.target or '')}"


async def ls(uri: CapabilityURI, style: Style) -> None:
    """Lists a directory; of anything else shows its entry."""
    async with opened(uri) as service:
        found = await find(service.top, service.path)
        entries: list[Entry] = []
        async for page in _pages_of(found):
            if style.json:
                entries.extend(page)
            else:
                for entry in page:
                    out(style.line(entry))
        if style.json:
            out_json_list(map(entry_json, entries))


async def _pages_of(found: Found) -> AsyncIterator[Sequence[Entry]]:
    if not found.is_directory:
        yield [found.entry]
        return
    try:
        async with aclosing(listed(found.directory())) as pages:
            async for page in pages:
                yield page
    except StorageError as error:
        raise about(found.path, error) from error


async def stat(uri: CapabilityURI, *, json: bool) -> None:
    """Shows one node."""
    async with opened(uri) as service:
        found = await find(service.top, service.path, follow=False)
    if json:
        out_json(entry_json(found.entry) if found.name else stat_json(found.entry.stat))
        return
    for key, value in _facts(found):
        out(f"{key + ':':<12} {value}")


def _facts(found: Found) -> Iterator[tuple[str, str]]:
    entry, stat = found.entry, found.entry.stat
    yield "path", printable("/" + "/".join(found.path))
    yield "kind", stat.kind.value + (", executable" if stat.executable else "")
    if stat.kind is NodeKind.SYMLINK:
        yield "target", printable(entry.target or "")
    yield "size", f"{stat.size}" + (f" ({format_size(stat.size)})" if stat.size >= 1024 else "")
    if stat.provenance is not Provenance.UNKNOWN:
        yield "modified", utc_text(stat.modified)
        if stat.created:
            yield "created", utc_text(stat.created)
    yield "times from", stat.provenance.value
    yield "node", str(stat.node_id)
    yield "version", str(stat.version)
    yield "names", str(stat.link_count)


async def cat(uri: CapabilityURI) -> None:
    """Writes the content of a file to stdout."""
    async with opened(uri) as service:
        found = await find(service.top, service.path)
        file = await found.file()
        try:
            async for chunk in read_chunks(file):
                sys.stdout.buffer.write(chunk)
        except StorageError as error:
            raise about(found.path, error) from error


async def limits_of(uri: CapabilityURI) -> Mapping[str, int]:
    """The limits of a service, by name."""
    async with connected(uri) as connection:
        return (await connection.info()).limits


# Trees -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Level:
    """One directory on the way down: its entries still to come, and the prefix of its lines."""

    directory: Directory
    entries: AsyncIterator[Entry]
    upcoming: Entry | None
    prefix: str
    path: tuple[str, ...]


async def tree(uri: CapabilityURI, *, level: int | None, json: bool) -> None:
    """Shows everything below a directory, at most `level` deep."""
    async with opened(uri) as service:
        found = await find(service.top, service.path)
        if not found.is_directory:
            raise NotDirectory("tree shows directories; see stat")
        steps = _steps(found.directory(), level)
        if json:
            items = [entry_json(e) | {"path": "/".join(path)} async for path, e, _ in steps]
            for item in items:
                del item["name"]
            out_json_list(items)
            return
        out(printable("/" + "/".join(found.path)))
        directories = others = 0
        async for _, entry, prefix in steps:
            out(f"{prefix}{_with_target(entry)}")
            if entry.stat.kind is NodeKind.DIRECTORY:
                directories += 1
            else:
                others += 1
        out(f"\n{directories} directories, {others} others")


async def _steps(
    root: Directory, depth_max: int | None
) -> AsyncIterator[tuple[tuple[str, ...], Entry, str]]:
    """Path, entry and the branches drawn in front of it, in the order of a tree."""
    chain = [await _begin(root, "", ())]
    while chain:
        here = chain[-1]
        entry = here.upcoming
        if entry is None:
            chain.pop()
            continue
        here.upcoming = await anext(here.entries, None)
        last = here.upcoming is None
        path = (*here.path, entry.name)
        yield path, entry, here.prefix + ("└── " if last else "├── ")
        deeper = depth_max is None or len(path) < depth_max
        if entry.stat.kind is NodeKind.DIRECTORY and deeper:
            below = here.directory.pipelined((entry.name,))
            chain.append(await _begin(below, here.prefix + ("    " if last else "│   "), path))


async def _begin(directory: Directory, prefix: str, path: tuple[str, ...]) -> _Level:
    try:
        entries = _entries(directory)
        return _Level(directory, entries, await anext(entries, None), prefix, path)
    except StorageError as error:
        raise about(path, error) from error


async def _entries(directory: Directory) -> AsyncIterator[Entry]:
    async with aclosing(listed(directory)) as pages:
        async for page in pages:
            for entry in page:
                yield entry
