"""Walking a tree with many entries in flight, and memory for few of them.

Invariants:

* At most `BRANCHES_MAX` directories are being listed and `LEAVES_MAX` other entries visited at
  once.  Directories that wait do so on a stack, so what is kept grows with the depth of the tree
  and the length of one page, not with the size of the tree.
* `enter` of a directory comes before everything in it, `leave` after everything below it.
* What goes wrong with one entry is reported and the walk goes on; what concerns the connection or
  the authority as a whole ends it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar

from capstore.backers.node import Entry, NodeKind
from capstore.schema.errors import Closed, Expired, Revoked, StorageError

T = TypeVar("T")

BRANCHES_MAX: Final = 16
LEAVES_MAX: Final = 64

# Nothing that is tried after one of these can succeed.
_FATAL = (Revoked, Expired, Closed)


class Branch(Generic[T]):
    """One directory of a walk: where it is, and what the visitor keeps for it (`state`).

    `broken` says that something in or below it failed.
    """

    __slots__ = ("broken", "entry", "parent", "path", "pending", "state")

    def __init__(self, entry: Entry, parent: Branch[T] | None, path: tuple[str, ...]) -> None:
        self.entry = entry
        self.parent = parent
        self.path = path
        self.state: T | None = None
        self.pending = 1
        self.broken = False

    @property
    def held(self) -> T:
        """The state that `enter` set."""
        if self.state is None:
            raise RuntimeError("a directory was used before it was entered")
        return self.state

    def mark_broken(self) -> None:
        """Marks it and all above it."""
        branch: Branch[T] | None = self
        while branch is not None and not branch.broken:
            branch.broken = True
            branch = branch.parent


class Visitor(ABC, Generic[T]):
    """What a walk does; every method but `failed` may raise `StorageError`."""

    async def enter(self, branch: Branch[T]) -> None:
        """Before anything in the directory; if it raises, the directory is passed over."""

    @abstractmethod
    def pages(self, branch: Branch[T]) -> AsyncGenerator[Sequence[Entry], None]:
        """The entries of the directory."""

    @abstractmethod
    async def visit(self, branch: Branch[T], entry: Entry) -> None:
        """An entry of `branch` that is no directory."""

    async def leave(self, branch: Branch[T]) -> None:
        """When everything below the directory is done."""

    @abstractmethod
    def failed(self, path: Sequence[str], error: StorageError) -> None:
        """Something failed that does not end the walk."""


class _Walk(Generic[T]):
    def __init__(self, visitor: Visitor[T], group: asyncio.TaskGroup) -> None:
        self._visitor = visitor
        self._group = group
        self._stack: list[Branch[T]] = []
        self._walkers = 0
        self._leaves = asyncio.Semaphore(LEAVES_MAX)

    def push(self, branch: Branch[T]) -> None:
        if branch.parent is not None:
            branch.parent.pending += 1
        self._stack.append(branch)
        if self._walkers < BRANCHES_MAX:
            self._walkers += 1
            self._group.create_task(self._walker())

    async def _walker(self) -> None:
        while self._stack:
            branch = self._stack.pop()
            await self._guarded(branch, branch.path, self._directory(branch))
            await self._release(branch)
        self._walkers -= 1

    async def _directory(self, branch: Branch[T]) -> None:
        await self._visitor.enter(branch)
        async with aclosing(self._visitor.pages(branch)) as pages:
            async for page in pages:
                for entry in page:
                    if entry.stat.kind is NodeKind.DIRECTORY:
                        self.push(Branch(entry, branch, (*branch.path, entry.name)))
                    else:
                        await self._leaves.acquire()
                        branch.pending += 1
                        self._group.create_task(self._leaf(branch, entry))

    async def _leaf(self, branch: Branch[T], entry: Entry) -> None:
        try:
            visit = self._visitor.visit(branch, entry)
            await self._guarded(branch, (*branch.path, entry.name), visit)
        finally:
            self._leaves.release()
        await self._release(branch)

    async def _guarded(
        self, branch: Branch[T], path: Sequence[str], work: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await work
        except _FATAL:
            raise
        except StorageError as error:
            branch.mark_broken()
            self._visitor.failed(path, error)

    async def _release(self, branch: Branch[T] | None) -> None:
        """One thing less pending in `branch`; the last one leaves it, and so on upwards."""
        while branch is not None:
            branch.pending -= 1
            if branch.pending:
                return
            if branch.state is not None:
                await self._guarded(branch, branch.path, self._visitor.leave(branch))
            branch.state = None
            branch = branch.parent


async def walk(visitor: Visitor[T], root: Branch[T]) -> None:
    """Walks everything below `root`.

    Raises `TransportError`, and `Revoked`, `Expired` or `Closed`, which end the walk.
    """
    try:
        async with asyncio.TaskGroup() as group:
            _Walk(visitor, group).push(root)
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None


def first_of(errors: BaseException) -> BaseException:
    """The first exception in a group, at any depth."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
