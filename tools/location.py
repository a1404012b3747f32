"""Where a command works: a capability URI, however it was given, and the connection to it.

Invariants:

* A location is ``URI``, ``@FILE`` (a file that holds one) or ``-`` (one on stdin); a path below it
  is ``/-/a/b`` behind it or an argument of its own, never both.
* A file with a URI is a file with a secret: one that others may read is refused.
* No error holds the URI.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from capstore.schema.errors import Denied, Disconnected, InvalidArgument
from capstore.schema.names import from_bytes
from capstore.service.client import Connection, open_connection
from capstore.service.remote import Directory, File
from capstore.service.remote_store import node_of
from capstore.service.uri import CapabilityURI, split_path

_FROM_FILE = re.compile(
    r"@(?P<file>.+?)(?:#(?P<name>[^/#]+))?(?P<mark>/-(?P<path>/.*)?)?", re.DOTALL
)
_URI_FILE_BYTES_MAX = 1 << 20
# What is served without being asked for.
_BY_DEFAULT = ["files", "objects"]


def locate(text: str, path: str | None = None) -> CapabilityURI:
    """The URI that the location `text` and the argument `path` mean together, path included.

    Raises `InvalidArgument`, `InvalidName`, `Denied` for a file that others may read, OSError,
    and a usage error for two paths.
    """
    uri, has_path = _parse(text)
    if path is None:
        return uri
    if has_path:
        raise typer.BadParameter("the path is there twice: behind the location and on its own")
    return uri.below(_typed_path(path))


def _typed_path(text: str) -> tuple[str, ...]:
    """The names of a path.  Bytes that are no UTF-8 are escaped, as `put` does; what is escaped
    already, as ``ls --json`` writes it, stays."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = from_bytes(os.fsencode(text))
    return split_path(text)


def _parse(text: str) -> tuple[CapabilityURI, bool]:
    """The URI, and whether `text` itself holds a path."""
    if text == "-":
        return CapabilityURI.parse(sys.stdin.readline()), False
    match = _FROM_FILE.fullmatch(text)
    if match is None:
        # Unlike a Path, this takes whatever was typed.
        if os.path.isfile(text.partition("/-/")[0]):  # noqa: PTH113
            raise typer.BadParameter(f'"{text}" is a file of this machine: did you mean @{text}?')
        uri = CapabilityURI.parse(text)
        return uri, bool(uri.path)
    uri = _named_in(_secret_text(Path(match["file"])), match["name"])
    return uri.below(_typed_path(match["path"] or "")), match["mark"] is not None


def _secret_text(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            raise Denied(f'"{path}" holds a secret and others may read it: chmod 600 it')
        return file.read(_URI_FILE_BYTES_MAX)


def _named_in(text: str, name: str | None) -> CapabilityURI:
    """The URI of the volume `name` in what ``serve`` printed; without a name the only one, or that
    of `files` where ``serve`` was told nothing else to serve."""
    lines = [line.rpartition("\t") for line in text.splitlines() if line.strip()]
    names = list(dict.fromkeys(before for before, _, _ in lines))
    if not lines:
        raise InvalidArgument("the file holds no URI")
    if name is None and names == _BY_DEFAULT:
        name = _BY_DEFAULT[0]
    if name is None and len(names) > 1:
        raise InvalidArgument(f"the file holds several URIs: say @FILE#NAME ({', '.join(names)})")
    for before, _, uri in lines:
        if name is None or before == name:
            return CapabilityURI.parse(uri)
    raise InvalidArgument(f'the file has no URI of "{name}" (it has: {", ".join(names)})')


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection, and what the token of its URI stands for (the URI's path not applied)."""

    connection: Connection
    top: Directory | File

    @property
    def path(self) -> Sequence[str]:
        """The path that the location names below `top`."""
        return self.connection.uri.path


@asynccontextmanager
async def opened(uri: CapabilityURI) -> AsyncIterator[Opened]:
    """Connects to the service of `uri` and redeems its token.

    Raises `Disconnected`, `Denied`, `NotFound`.
    """
    async with connected(uri) as connection:
        yield Opened(connection, node_of(await connection.restore(uri.token)))


@asynccontextmanager
async def connected(uri: CapabilityURI) -> AsyncIterator[Connection]:
    """Connects to the service of `uri`.  Raises `Disconnected`, in words."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(open_connection(uri))
        except Disconnected as error:
            raise _in_words(error, uri) from error
        yield connection


def _in_words(error: Disconnected, uri: CapabilityURI) -> Disconnected:
    """The errors that a person meets first deserve more than a code."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or not cause.strerror or cause.errno is None:
        return error
    where = uri.socket or f"{uri.host}:{uri.port}"
    reason = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
    return Disconnected(f"no service answers at {where} ({reason})")


def same_service(one: CapabilityURI, other: CapabilityURI) -> bool:
    """Whether both URIs name the same address, hence can share a connection."""
    return one.with_token("") == other.with_token("")
