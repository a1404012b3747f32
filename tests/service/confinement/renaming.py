"""Moves on directories: changing names."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from capstore.backers.node import Attributes, Expect, RenameMode
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.remote import Directory
from tests.contract import model
from tests.service.confinement.looking import Looking
from tests.service.confinement.machine import INDEX, NAMES, fake_of, move
from tests.service.confinement.world import Held


class Renaming(Looking):
    """What changes entries."""

    @move(at=INDEX, name=NAMES, leads_to=st.sampled_from(["a", "h-a", "/etc/passwd"]))
    def symlink(self, at: int, name: str, leads_to: str) -> None:
        held = self.directory(at)
        node: Any = held.node
        self.step(
            self.attempt(
                held.real.symlink(name, leads_to),
                held,
                Effect.ADD,
                lambda: model.make(node, name, model.Symlink(leads_to)),
                names=[name],
                perhaps=[] if self.alive(node) else [Code.NOT_FOUND],
            )
        )

    @move(at=INDEX, name=NAMES, expect=st.sampled_from(Expect))
    def remove(self, at: int, name: str, expect: Expect) -> None:
        held = self.directory(at)
        node: Any = held.node
        self.step(
            self.attempt(
                held.real.remove(name, expect),
                held,
                Effect.CHANGE,
                lambda: model.remove(node, name, expect),
                names=[name],
            )
        )

    @move(
        at=INDEX,
        name=NAMES,
        to=INDEX,
        new_name=NAMES,
        mode=st.sampled_from(RenameMode),
        fake=st.booleans(),
    )
    def rename(
        self, at: int, name: str, to: int, new_name: str, mode: RenameMode, fake: bool
    ) -> None:
        here, there = self.directory(at), self.directory(to)
        one: Any = here.node
        other: Any = there.node

        async def run() -> None:
            real = await self._perhaps_fake(there, fake)
            await self.attempt(
                here.real.rename(name, real, new_name, mode),
                here,
                Effect.CHANGE,
                lambda: model.rename(one, name, other, new_name, mode),
                names=[name],
                refusals=self._across(
                    here, there, Effect.CHANGE, new_name, both=mode is RenameMode.EXCHANGE
                ),
                perhaps=self._either(one, other),
            )

        self.step(run())

    @move(at=INDEX, name=NAMES, to=INDEX, new_name=NAMES, fake=st.booleans())
    def link(self, at: int, name: str, to: int, new_name: str, fake: bool) -> None:
        here, there = self.directory(at), self.directory(to)
        one: Any = here.node
        other: Any = there.node

        async def run() -> None:
            real = await self._perhaps_fake(there, fake)
            await self.attempt(
                here.real.link(name, real, new_name),
                here,
                Effect.ADD,
                lambda: model.link(one, name, other, new_name),
                names=[name],
                refusals=self._across(here, there, Effect.ADD, new_name),
                perhaps=self._either(one, other),
            )

        self.step(run())

    async def _perhaps_fake(self, held: Held, fake: bool) -> Directory:
        """The directory, or one that a client serves itself and that has its ticket."""
        if not fake or held.right.is_over(self.clock()):
            return held.real  # type: ignore[no-any-return]
        return await fake_of(held)

    def _either(self, *directories: model.Directory) -> list[Code]:
        """What is said of directories that were removed, or where several things are wrong."""
        return [] if all(map(self.alive, directories)) else [Code.NOT_FOUND]

    def _across(
        self, here: Held, there: Held, effect: Effect, new_name: str, *, both: bool = False
    ) -> set[Code]:
        """Why nothing moves from one to the other."""
        codes = there.right.refusals(effect, self.clock())
        if there.right.hides(new_name):
            codes.add(Code.NOT_FOUND)
        if not there.right.stands_under(here.right) or (
            both and not here.right.stands_under(there.right)
        ):
            codes |= {Code.DENIED, Code.CROSS_VOLUME}
        if here.right.quotas != there.right.quotas or here.right.dry is not there.right.dry:
            codes |= {Code.CROSS_VOLUME}
        return codes

    @move(at=INDEX, name=NAMES, executable=st.booleans())
    def set_attributes(self, at: int, name: str, executable: bool) -> None:
        held = self.directory(at)
        node: Any = held.node

        def does() -> None:
            found = model.find(node, name)
            if isinstance(found, model.File):
                self.set_executable(found, executable)

        self.step(
            self.attempt(
                held.real.set_attributes(Attributes(executable=executable), name),
                held,
                Effect.CHANGE,
                does,
                names=[name],
                perhaps=[Code.UNSUPPORTED],
            )
        )
