"""Moves on directories: looking, and going down."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from hypothesis import strategies as st

from capstore.backers.node import NodeKind, OpenFlags
from capstore.schema.errors import Code, StorageError
from capstore.service.decisions import Effect, opening
from capstore.service.policy import Policy
from capstore.service.remote import Directory
from tests.contract import model
from tests.service.confinement.machine import INDEX, NAMES, Machine, move
from tests.service.confinement.rights import Right
from tests.service.confinement.world import Held

FLAGS = st.sampled_from([0, 0, 1, 1, 1, 3, 3, 7, 9, 9, 11, 15, 2, 4, 8, 10, 5])


class Looking(Machine):
    """What directories show, and what is reached through them."""

    # Looking ---------------------------------------------------------------------------------

    @move(at=INDEX)
    def list_names(self, at: int) -> None:
        self.step(self._list(self.directory(at)))

    async def _list(self, held: Held) -> None:
        node = held.node
        assert isinstance(node, model.Directory)
        found = await self.attempt(
            held.real.list(), held, Effect.OBSERVE, lambda: self.world.visible(node, held.right)
        )
        if found is None:
            return
        page, shown = found
        if shown is None:
            assert not [entry for entry in page.entries if held.right.hides(entry.name)]
            return
        assert [entry.name for entry in page.entries] == [*shown]
        for entry in page.entries:
            self._shown(entry, shown[entry.name], held)

    def _shown(self, entry: Any, node: model.Node, held: Held) -> None:
        if not held.frozen:
            assert self.ids[node] == entry.stat.node_id
        if isinstance(node, model.File):
            assert entry.stat.kind is NodeKind.FILE
            assert entry.stat.size == len(node.data)
        assert entry.target == (node.target if isinstance(node, model.Symlink) else None)

    @move(at=INDEX, name=NAMES)
    def lookup(self, at: int, name: str) -> None:
        held = self.directory(at)
        node: Any = held.node

        async def run() -> None:
            found = await self.attempt(
                held.real.lookup(name),
                held,
                Effect.OBSERVE,
                lambda: model.find(node, name),
                names=[name],
            )
            if found is not None and found[1] is not None:
                self._shown(found[0], found[1], held)

        self.step(run())

    @move(at=INDEX)
    def usage(self, at: int) -> None:
        held = self.directory(at)
        self.step(self.attempt(held.real.usage(), held, Effect.OBSERVE, lambda: None))

    @move(at=INDEX)
    def snapshot(self, at: int) -> None:
        held = self.directory(at)
        node: Any = held.node

        async def run() -> None:
            found = await self.attempt(
                held.real.snapshot(),
                held,
                Effect.OBSERVE,
                lambda: copy.deepcopy(node),
                perhaps=[] if self.alive(node) else [Code.NOT_FOUND],
            )
            if found is not None:
                right = held.right.below(Policy(read_only=True))
                self.got(Held(found[0], found[1] or node, right, frozen=True))

        self.step(run())

    # Going down ------------------------------------------------------------------------------

    @move(at=INDEX, name=NAMES)
    def sub(self, at: int, name: str) -> None:
        held = self.directory(at)
        node: Any = held.node
        self.step(
            self._into(
                held, held.real.sub(name), Effect.OBSERVE, lambda: model.sub(node, name), name
            )
        )

    async def _into(
        self,
        held: Held,
        call: Awaitable[Any],
        effect: Effect,
        does: Callable[[], model.Node],
        name: str,
        *,
        right: Right | None = None,
        refusals: Iterable[Code] = (),
    ) -> None:
        """A call that gives a capability of what is, or comes, below."""
        found = await self.attempt(call, held, effect, does, names=[name], refusals=refusals)
        if found is None:
            return
        real, node = found
        if node is None:
            node = held.node if isinstance(real, Directory) else model.File()
        made = Held(real, node, right or held.right, frozen=held.frozen)
        self.got(made)
        await self.is_node(made)

    @move(at=INDEX, name=NAMES, flags=FLAGS)
    def open(self, at: int, name: str, flags: int) -> None:
        held = self.directory(at)
        flag = OpenFlags(flags)
        right = held.right if flags & 1 else held.right.below(Policy(read_only=True))

        self.step(
            self._into(
                held,
                held.real.open(name, flag),
                opening(flag),
                lambda: self._opened(held, name, flag),
                name,
                right=right,
                refusals=[] if is_flags(flags) else [Code.INVALID_ARGUMENT],
            )
        )

    def _opened(self, held: Held, name: str, flags: OpenFlags) -> model.File:
        directory: Any = held.node
        if not held.frozen and not self.alive(directory):
            # Nothing is made in a directory that was removed, and nothing is there.
            raise StorageError.of(Code.NOT_FOUND, "")
        return model.open_file(directory, name, flags)

    @move(at=INDEX, name=NAMES)
    def create(self, at: int, name: str) -> None:
        held = self.directory(at)
        self.step(
            self._into(
                held, held.real.create(name), Effect.ADD, lambda: self._make(held, name, True), name
            )
        )

    def _make(self, held: Held, name: str, is_file: bool) -> model.Node:
        node: model.Node = model.File() if is_file else model.Directory()
        directory = held.node
        assert isinstance(directory, model.Directory)
        if not self.alive(directory):
            raise StorageError.of(Code.NOT_FOUND, "")
        model.make(directory, name, node)
        return node

    def alive(self, directory: model.Directory) -> bool:
        return self.world.is_linked(directory)

    @move(at=INDEX, name=NAMES)
    def mkdir(self, at: int, name: str) -> None:
        held = self.directory(at)
        self.step(
            self._into(
                held, held.real.mkdir(name), Effect.ADD, lambda: self._make(held, name, False), name
            )
        )


def is_flags(flags: int) -> bool:
    """Whether these flags make sense together."""
    write, create = flags & OpenFlags.WRITE, flags & OpenFlags.CREATE
    if flags & (OpenFlags.CREATE | OpenFlags.TRUNCATE) and not write:
        return False
    return bool(create or not flags & OpenFlags.EXCLUSIVE)
