"""The two ends of a copy, as one pair of protocols: a tree to read from, a tree to write to.

Invariants: names and link targets between the ends are those of the node protocol
(`capstore.schema.names`); whatever fails raises `StorageError` or `TransportError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from capstore.backers.node import Attributes, Buffer, Entry, Provenance, Stat

S = TypeVar("S")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file: its first bytes, and what follows them (None: nothing)."""

    first: Buffer
    rest: AsyncIterator[Buffer] | None = None


class Source(Protocol[S]):
    """A tree that is read; `S` stands for one of its directories."""

    def sub(self, directory: S, name: str) -> S:
        """The directory `name`; that it is one shows at the first use."""

    def pages(self, directory: S) -> AsyncGenerator[Sequence[Entry], None]:
        """Its entries, the next page being fetched while one is used."""

    async def content(self, directory: S, entry: Entry) -> Content:
        """The content of the file `entry`; a small file comes whole."""


class Sink(Protocol[D]):
    """A tree that is written; `D` stands for one of its directories."""

    async def directory(self, parent: D, name: str) -> D:
        """The directory `name`, made if it is not there; never through a symbolic link."""

    async def file(self, parent: D, name: str, content: Content, stat: Stat) -> None:
        """Makes or replaces the file `name`, with what `stat` says of its mode and time.

        A file that was there is replaced when all content has arrived, or not at all.
        """

    async def symlink(self, parent: D, name: str, target: str, stat: Stat) -> None:
        """Makes or replaces the symbolic link `name`."""

    async def finish(self, directory: D, stat: Stat) -> None:
        """Sets the time of a directory to which nothing will be added."""


def carried(stat: Stat) -> Attributes:
    """The attributes that a copy takes along."""
    recorded = stat.provenance is not Provenance.UNKNOWN
    return Attributes(executable=stat.executable, modified=stat.modified if recorded else None)
