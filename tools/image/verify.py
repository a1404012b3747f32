"""``capstore image verify``: every structure, every checksum, every file.

Invariants: findings are shown as they come and not kept, but for what tells two reports of one
damage apart; a check that is interrupted ends at once.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from capstore.backers.workers import in_worker
from capstore.images.tree import Finding, ImageTree
from capstore.schema.errors import StorageError
from capstore.tools.console import complain, explained, local_error, out, printable
from capstore.tools.image.array import ArrayWriter
from capstore.tools.image.maintaining import repaired
from capstore.tools.image.reading import contents_read
from capstore.tools.image.stores import FORMAT, OpenFile, opened_file
from capstore.tools.progress import Meter, metered

CLEAN, DAMAGED, UNREADABLE = 0, 1, 2

# Findings on the way from the thread that checks to the one that shows.
_WAITING_MAX: Final = 1000
# Offsets and messages that are remembered, to say each damage once.
_REMEMBERED_MAX: Final = 100_000
_OFFSET: Final = re.compile(r"\bat offset (\d{1,20})\b")


async def verify(file: str, *, json: bool, quiet: bool, repair: bool = False) -> int:
    """Checks the image `file`, which is repaired before if that is asked for; returns the exit
    code."""
    try:
        if repair:
            await in_worker(lambda: repaired(file))
        async with opened_file(file) as image:
            return await _shown(image, json=json, quiet=quiet)
    except (OSError, StorageError) as error:
        complain(explained(error))
        return UNREADABLE


async def _shown(image: OpenFile, *, json: bool, quiet: bool) -> int:
    found = 0
    report = Report(json=json)
    try:
        async with metered("verify", quiet=quiet) as meter:
            async for finding in elsewhere(lambda: all_findings(image, meter)):
                found += 1
                report.add(finding)
    except StorageError as error:
        raise local_error(error, image.path) from error
    report.finish(clean=not found and not image.wrong)
    for damage in image.wrong:
        complain(explained(damage))
    if image.wrong:
        return UNREADABLE
    return DAMAGED if found else CLEAN


def all_findings(image: OpenFile, meter: Meter) -> Iterator[Finding]:
    """What is wrong with the halves of an image, with their format where there are two."""
    if image.store is not None:
        yield from _in_half(FORMAT, _once(image.store.verify(meter)), image)
    if image.tree is not None:
        yield from _in_half(image.tree.format, findings(image.tree.volume.tree, meter), image)


def _in_half(name: str, found: Iterator[Finding], image: OpenFile) -> Iterator[Finding]:
    if image.store is None or image.tree is None:
        return found
    return (replace(finding, where=f"{name} {finding.where}") for finding in found)


def findings(tree: ImageTree, meter: Meter) -> Iterator[Finding]:
    """What is wrong with `tree`, each damage once: structures first, then files by their paths."""
    return _once(chain(tree.verify(), _unreadable(tree, meter)))


def _once(found: Iterable[Finding]) -> Iterator[Finding]:
    """Each damage once, though several may say it."""
    said: set[int | str] = set()
    for finding in found:
        at = finding.offset
        if at is None:
            # Errors say in their messages where the damage is, and several can have one cause.
            match = _OFFSET.search(finding.message)
            at = int(match[1]) if match else None
            if (finding.message if at is None else at) in said:
                continue
        if len(said) < _REMEMBERED_MAX:
            said.add(finding.message if at is None else at)
        yield replace(finding, offset=at)


def _unreadable(tree: ImageTree, meter: Meter) -> Iterator[Finding]:
    for path, error in contents_read(tree, meter):
        yield Finding("/" + "/".join(path), error.message)


class Report:
    """Shows findings as they come: lines, or with `json` an object."""

    def __init__(self, *, json: bool) -> None:
        self._array = ArrayWriter(" ") if json else None
        if json:
            print('{"findings": ', end="")

    def add(self, finding: Finding) -> None:
        """Shows a finding."""
        if self._array is not None:
            self._array.add(_json(finding))
        else:
            offset = "-" if finding.offset is None else finding.offset
            hint = " (--repair removes it)" if finding.repairable else ""
            out(f"{offset}: {printable(finding.where)}: {printable(finding.message)}{hint}")

    def finish(self, *, clean: bool) -> None:
        """Says whether there were none."""
        if self._array is not None:
            self._array.finish()
            out(f', "clean": {"true" if clean else "false"}}}')


def _json(finding: Finding) -> dict[str, Any]:
    return {
        "offset": finding.offset,
        "where": finding.where,
        "message": finding.message,
        "repairable": finding.repairable,
    }


# A thread of its own -----------------------------------------------------------------------------


async def elsewhere(make: Callable[[], Iterator[Finding]]) -> AsyncIterator[Finding]:
    """What the iterator gives, which runs in a thread of its own.

    A worker would have to be waited for when the command is interrupted, and a check may take
    hours.  It changes nothing, so it is simply left.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Finding | BaseException | None] = asyncio.Queue()
    room = threading.Semaphore(_WAITING_MAX)

    def send(item: Finding | BaseException | None) -> None:
        # The loop is closed when nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            for finding in make():
                room.acquire()
                send(finding)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised over there
            send(error)
        else:
            send(None)

    threading.Thread(target=work, name="capstore-verify", daemon=True).start()
    while (item := await queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        room.release()
        yield item
