"""Moves on files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from capstore.backers.node import Attributes
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from tests.contract import model
from tests.service.confinement.machine import INDEX, SIZES, Machine, move
from tests.service.confinement.world import Held

OFFSETS = st.sampled_from([0, 1, 3, 9, 40])


class Files(Machine):
    """What is read and changed through files."""

    @move(at=INDEX, offset=OFFSETS)
    @precondition(lambda self: self.has_files)
    def read(self, at: int, offset: int) -> None:
        held = self.file(at)
        node: Any = held.node

        async def run() -> None:
            closed = [Code.CLOSED] if held.closed else []
            found = await self.attempt(
                held.real.read(offset, 1000),
                held,
                Effect.OBSERVE,
                lambda: bytes(node.data[offset:]),
                refusals=closed,
            )
            if found is None:
                return
            if held.right.dry is not None:
                assert set(found[0]) <= held.right.may_show | set(node.data)
            else:
                assert found[0] == found[1]

        self.step(run())

    def _change_file(
        self,
        held: Held,
        call: Awaitable[object],
        effect: Effect,
        does: Callable[[], object],
        size_after: int = 0,
    ) -> None:
        node: Any = held.node
        refusals = [Code.CLOSED] if held.closed else []
        if (
            held.right.dry is None
            and size_after > len(node.data)
            and not held.right.may_have(size_after)
        ):
            refusals.append(Code.TOO_LARGE)
        self.step(self.attempt(call, held, effect, does, refusals=refusals))

    @move(at=INDEX, offset=OFFSETS, size=SIZES)
    @precondition(lambda self: self.has_files)
    def write(self, at: int, offset: int, size: int) -> None:
        held = self.file(at)
        node: Any = held.node
        data = self.data(size, held)
        self._change_file(
            held,
            held.real.write(offset, data),
            Effect.CHANGE,
            lambda: model.write(node, offset, data),
            offset + size if size else 0,
        )

    @move(at=INDEX, size=SIZES)
    @precondition(lambda self: self.has_files)
    def append(self, at: int, size: int) -> None:
        held = self.file(at)
        node: Any = held.node
        data = self.data(size, held)
        self._change_file(
            held,
            held.real.append(data),
            Effect.ADD,
            lambda: model.write(node, len(node.data), data),
            len(node.data) + size,
        )

    @move(at=INDEX, size=SIZES)
    @precondition(lambda self: self.has_files)
    def truncate(self, at: int, size: int) -> None:
        held = self.file(at)
        node: Any = held.node
        self._change_file(
            held,
            held.real.truncate(size),
            Effect.CHANGE,
            lambda: model.truncate(node, size),
            size,
        )

    @move(at=INDEX, executable=st.booleans())
    @precondition(lambda self: self.has_files)
    def set_file_attributes(self, at: int, executable: bool) -> None:
        held = self.file(at)
        self._change_file(
            held,
            held.real.set_attributes(Attributes(executable=executable)),
            Effect.CHANGE,
            lambda: self.set_executable(held.node, executable),
        )

    @move(at=INDEX)
    @precondition(lambda self: self.has_files)
    def close(self, at: int) -> None:
        held = self.file(at)

        async def run() -> None:
            if await self.attempt(held.real.close(), held, Effect.OBSERVE, lambda: None):
                held.closed = True

        self.step(run())
