"""Paths below a directory: symbolic links are resolved on this side, within that directory only.

Invariants:

* The directory that a path starts from is its root: an absolute target starts there again, and
  ``..`` above it stays there.  Nothing that a link says leads anywhere that the capability does
  not reach anyway.
* At most `LINKS_MAX` links are followed for one path; what needs more is `NotFound`, as is what a
  dangling link stands for.
* A path without links costs no round trip of its own: calls are pipelined along the names as they
  are, and only an answer that a link may be the cause of leads to `resolve`.  That takes a round
  trip for each link and for every `LOOKUPS_AT_ONCE` names.

The service never follows a link, so between resolving a path and using it a name can come to mean
something else, as with any path; what is used is still below the root.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from capstore.backers.node import Entry, NodeKind
from capstore.schema.errors import IsDirectory, NotDirectory, NotFound, Unsupported
from capstore.service.remote import Directory

T = TypeVar("T")
Path = tuple[str, ...]

LINKS_MAX = 40

# How many names of a path are looked up before it is known whether the first of them is a link.
LOOKUPS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: `path` holds no link but perhaps the last name, if that was not to be
    followed.  `entry` is what stands there; None at the root, and where there is nothing (yet)."""

    root: Directory
    path: Path
    entry: Entry | None

    @property
    def is_root(self) -> bool:
        """Whether it is the root itself."""
        return not self.path

    @property
    def kind(self) -> NodeKind | None:
        """What stands there; None for nothing."""
        if self.is_root:
            return NodeKind.DIRECTORY
        return self.entry.stat.kind if self.entry else None

    @property
    def parent(self) -> Directory:
        """The directory of the last name; the place is not the root."""
        return self.root.pipelined(self.path[:-1])

    @property
    def name(self) -> str:
        """The last name; the place is not the root."""
        return self.path[-1]

    @property
    def directory(self) -> Directory:
        """The directory that stands there."""
        return self.root.pipelined(self.path)


async def resolve(root: Directory, path: Sequence[str], *, follow_last: bool = True) -> Place:
    """Where `path` leads from `root`; its last name may be missing.

    Raises `NotFound` (also for too many links), `NotDirectory`, `InvalidName`.
    """
    walked: Path = ()
    rest = list(path)
    links = 0
    while rest:
        if rest[0] in (".", ".."):
            walked, rest = _not_empty(walked[:-1] if rest[0] == ".." else walked, rest[1:])
            continue
        names = itertools.takewhile(lambda name: name not in (".", ".."), rest)
        run = list(itertools.islice(names, LOOKUPS_AT_ONCE))
        rest = rest[len(run) :]
        at, entry = await _walk(root.pipelined(walked), run, to_the_end=not rest)
        last = at == len(run) - 1 and not rest
        if entry is not None and entry.stat.kind is NodeKind.SYMLINK and (follow_last or not last):
            links += 1
            if links > LINKS_MAX:
                raise NotFound(f"more than {LINKS_MAX} symbolic links on the way")
            target = entry.target or ""
            walked = () if target.startswith("/") else walked + tuple(run[:at])
            rest = run[at + 1 :] + rest
            walked, rest = _not_empty(walked, _steps(target, to_the_end=not rest) + rest)
            continue
        walked += tuple(run)
        if last:
            return Place(root, walked, entry)
    return Place(root, (), None)


def _steps(target: str, *, to_the_end: bool) -> list[str]:
    """The names and ``..`` of a link's target, and a "." where it says that it is a directory."""
    names = target.split("/")
    steps = [name for name in names if name not in ("", ".")]
    return [*steps, "."] if steps and to_the_end and names[-1] in ("", ".") else steps


def _not_empty(walked: Path, rest: list[str]) -> tuple[Path, list[str]]:
    """A path that ends with what was walked is walked again from the name before, for its entry."""
    return (walked, rest) if rest else (walked[:-1], list(walked[-1:]))


async def _walk(top: Directory, run: list[str], *, to_the_end: bool) -> tuple[int, Entry | None]:
    """Looks up the names `run`, one below the other, in one round trip.

    Returns the index and entry of the first link, else of the last name; that one may be missing
    `to_the_end` of the path (None).
    """
    lookups: list[Awaitable[Entry]] = []
    for name in run:
        lookups.append(top.lookup(name))
        top = top.pipelined((name,))
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    answer: Entry | BaseException | None = None
    try:
        for at, answer in enumerate(answers):
            last = at == len(run) - 1 and to_the_end
            if isinstance(answer, NotFound) and last:
                return at, None
            if isinstance(answer, BaseException):
                raise answer
            if answer.stat.kind is NodeKind.SYMLINK or last:
                return at, answer
            if answer.stat.kind is not NodeKind.DIRECTORY:
                raise NotDirectory(f'"{run[at]}" is no directory')
        return len(run) - 1, cast("Entry", answer)  # a run has names, so there is one
    finally:
        # An exception that a frame of its own traceback holds is left to the garbage collector,
        # with the capabilities of those frames, and that may run in another thread.
        del answer, answers


async def together(operations: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all `operations`, which are under way together.

    When some fail, the first failure is raised after all have ended.
    """
    answers = await asyncio.gather(*operations, return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    try:
        if failures:
            raise failures[0]
        return cast("list[T]", answers)
    finally:
        del answers, failures  # see `_walk`


async def at_name(
    root: Directory,
    path: Path,
    operation: Callable[[Directory, str], Awaitable[T]],
    *,
    follow_last: bool = True,
) -> T:
    """Does ``operation(parent, name)`` for what `path` leads to; `path` is not the root.

    When it is refused for what may be a link, it is done once more where the links lead.  Raises
    what it raises, and as `resolve`; `IsDirectory` where a link leads to the root.
    """
    try:
        return await operation(root.pipelined(path[:-1]), path[-1])
    except (NotDirectory, Unsupported):
        place = await resolve(root, path, follow_last=follow_last)
        if place.path == path:
            raise
    if place.is_root:
        raise IsDirectory("the link leads to the root")
    return await operation(place.parent, place.name)


async def at_directory(
    root: Directory, path: Path, operation: Callable[[Directory], Awaitable[T]]
) -> T:
    """Does ``operation(directory)`` for the directory that `path` leads to.

    Raises what it raises, and as `resolve`.
    """
    try:
        return await operation(root.pipelined(path))
    except NotDirectory:
        place = await resolve(root, path)
        if place.path == path:
            raise
    return await operation(place.directory)
