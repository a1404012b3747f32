"""A connection on the background loop, shared by a filesystem and the files opened through it.

Invariants: the connection is closed when the last of its users has left, and at exit; leaving takes
no lock and never waits, so that it may happen in a finalizer.  In a child made by fork the parent's
connection is left alone, and the first use makes one of the child's own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from capstore.backers.node import NodeKind
from capstore.schema.errors import NotDirectory, NotFound
from capstore.service.background import Kept, background_loop
from capstore.service.client import open_connection
from capstore.service.links import resolve
from capstore.service.pyfs_tree import Tree
from capstore.service.remote import Directory, File
from capstore.service.remote_store import node_of
from capstore.service.uri import CapabilityURI

T = TypeVar("T")
K = TypeVar("K")


class Session:
    """The connection to what `uri` stands for.

    `timeout` bounds each call, in seconds; `read_only` gives up the authority to change; `create`
    makes the directory at the URI's path if it is missing.  Raises as `open_connection` and
    `Connection.restore`, and `NotDirectory` for a file.
    """

    def __init__(
        self, uri: CapabilityURI, *, timeout: float | None, read_only: bool, create: bool
    ) -> None:
        self._uri = uri
        self._timeout = timeout
        self._read_only = read_only
        self._create = create
        self._users: set[int] = set()
        self._numbers = itertools.count()
        self._ended = False
        self._connect()

    def _connect(self) -> None:
        self._loop = background_loop()
        self._pid = os.getpid()
        self._tree = self.call(self._open)

    async def _open(self) -> Kept[Tree]:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(open_connection(self._uri))
            top = node_of(await connection.restore(self._uri.token))
            if isinstance(top, File):
                raise NotDirectory("the URI stands for a file")
            root = await self._root_below(top)
            return self._loop.keep(Tree(root), stack.pop_all().aclose)

    async def _root_below(self, top: Directory) -> Directory:
        """The directory at the URI's path.  Raises `NotFound`, `NotDirectory`."""
        path = self._uri.path
        if self._create:
            await Tree(top).make_directories(path)
        place = await resolve(top, path)
        if place.kind is None:
            raise NotFound("the URI's path leads nowhere")
        if place.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("the URI stands for a file")
        root = await top.at(place.path)
        return await root.read_only() if self._read_only else root

    # Users ---------------------------------------------------------------------------------------

    def enter(self) -> int | None:
        """One more user: the number to `leave` with; None if the last one has left already."""
        user = next(self._numbers)
        self._users.add(user)
        if self._ended:
            return None
        return user

    def leave(self, user: int) -> None:
        """One user fewer."""
        self._users.discard(user)
        if not self._users:
            self._ended = True
            self._tree.release()

    # Calls ---------------------------------------------------------------------------------------

    def call(self, operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs `operation` on the loop, for at most the timeout (`TimeoutError`).

        Its result must lead to nothing that lives on the loop, but by a `Kept`.
        """

        async def bounded() -> T:
            async with asyncio.timeout(self._timeout):
                return await operation()

        return self._loop.call(bounded())

    def run(self, operation: Callable[[Tree], Coroutine[Any, Any, T]]) -> T:
        """As `call`, for an operation on the tree; connects again after a fork."""
        if self._pid != os.getpid():
            self._connect()
        tree = self._tree
        return self.call(lambda: operation(tree.value))

    def run_keeping(
        self, operation: Callable[[Tree], Coroutine[Any, Any, tuple[T, K]]]
    ) -> tuple[T, Kept[K]]:
        """As `run`, for an operation with two results, of which the second stays on the loop."""

        async def keeping(tree: Tree) -> tuple[T, Kept[K]]:
            result, thing = await operation(tree)
            return result, self._loop.keep(thing)

        return self.run(keeping)
