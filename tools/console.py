"""What the command writes: text that is safe on a terminal, JSON, and one line per error.

Invariants:

* Nothing that a service or a filesystem chose reaches a terminal as a control character: names,
  targets, labels and messages go through `printable`.
* No token reaches an error message: what looks like one is cut to its first 6 characters.
* Results go to stdout and nothing else does; whatever is said about the work goes to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from capstore.backers.node import Entry, NodeKind, Provenance, Stat
from capstore.schema.errors import StorageError, TransportError, from_os_error
from capstore.tools.allocator import keep_freed_memory

T = TypeVar("T")

_TOKEN = re.compile(r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{6})[A-Za-z0-9_-]{37}(?![A-Za-z0-9_-])")
_NANOSECONDS = 1_000_000_000
# The attribute of an error that names what it is about.
_NAMED = "_names_its_path"


class Failed(Exception):
    """The operation failed in parts; each was reported where it happened."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end in an event loop of its own.

    SIGTERM cancels it, so that it can tidy up, and then exits as a shell shows it (143).
    """
    keep_freed_memory()
    try:
        return asyncio.run(_until_terminated(work))
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


# Text ------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """`text` with everything escaped that could do more to a terminal than show a character."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def redacted(text: str) -> str:
    """`text` with all but the first 6 characters of each token cut out."""
    return _TOKEN.sub(r"\1...", text)


def shown(path: Sequence[str]) -> str:
    """A path below a capability as messages show it: quoted, absolute, printable."""
    return f'"{printable("/" + "/".join(path))}"'


def local(path: str | bytes) -> str:
    """A path on this machine as messages show it."""
    return f'local "{printable(os.fsdecode(path))}"'


def utc_text(nanoseconds: int) -> str:
    """ISO 8601 in UTC, with all nine digits: ``2024-05-01T12:00:00.123456789Z``."""
    seconds, fraction = divmod(nanoseconds, _NANOSECONDS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def local_text(nanoseconds: int) -> str:
    """To the minute, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(nanoseconds // _NANOSECONDS))


# Output ----------------------------------------------------------------------------------------


def out(line: str) -> None:
    """One line of the result."""
    sys.stdout.write(line + "\n")


def out_json(value: Any) -> None:
    """The result, or one item of a result that has one line per item.

    ASCII only, so that no name in it can do anything to a terminal.
    """
    out(json.dumps(value))


def out_json_list(items: Iterable[Any]) -> None:
    """The result as one JSON array, an item per line."""
    lines = ",\n ".join(json.dumps(item) for item in items)
    out(f"[{lines}]")


def out_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns, as wide as they need and never cut."""
    table = [list(headings), *(list(map(printable, row)) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out("  ".join(cells).rstrip())


def stat_json(stat: Stat) -> dict[str, Any]:
    """A `Stat` as ``--json`` shows it; times that were not recorded are null."""
    recorded = stat.provenance is not Provenance.UNKNOWN
    return {
        "kind": stat.kind.value,
        "size": stat.size,
        "executable": stat.executable,
        "modified": utc_text(stat.modified) if recorded else None,
        "created": utc_text(stat.created) if recorded and stat.created else None,
        "provenance": stat.provenance.value,
        "nodeId": stat.node_id,
        "version": stat.version,
        "linkCount": stat.link_count,
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """An `Entry` as ``--json`` shows it; a symbolic link has a ``target``."""
    shape = {"name": entry.name} | stat_json(entry.stat)
    return shape | {"target": entry.target} if entry.stat.kind is NodeKind.SYMLINK else shape


def drop_stdout() -> None:
    """Has stdout lead nowhere, so that the interpreter does not fail to flush it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


# Errors ----------------------------------------------------------------------------------------


def complain(message: str) -> None:
    """One line on stderr."""
    if sys.stderr is not None:
        sys.stderr.write(f"capstore: {redacted(printable(message))}\n")
        sys.stderr.flush()


def explained(error: BaseException) -> str:
    """What the line about `error` says: its code, and what a person can make of it."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, TransportError):
        return f"disconnected: {error}"
    if isinstance(error, OSError):
        code = from_os_error(error).code.value
        # The system names nothing but what is on this machine.
        named = f"{local(error.filename)}: " if error.filename is not None else ""
        return f"{code}: {named}{error.strerror or type(error).__name__}"
    return f"internal: {type(error).__name__}"


def about(path: Sequence[str], error: StorageError) -> StorageError:
    """`error` with the path in front that only the caller knows; see `local_error`."""
    if hasattr(error, _NAMED):
        return error
    return StorageError.of(error.code, f"{shown(path)}: {error.message}")


def local_error(error: OSError | StorageError, path: str | bytes) -> StorageError:
    """The `StorageError` for a failure of the local filesystem at `path`, in words.

    It names that path, and `about` leaves it so: the path at the service is not to blame.
    """
    if isinstance(error, OSError):
        code, message = from_os_error(error).code, error.strerror or type(error).__name__
    else:
        code, message = error.code, error.message
    named = StorageError.of(code, f"{local(path)}: {message}")
    setattr(named, _NAMED, True)
    return named
