"""Everything that can be done with one capability, one call after the other.

Single moves that have to meet (a file that was opened to be read, and a write) do so rarely when
there are fifty of them.  Who has something tries it out.
"""

from __future__ import annotations

from hypothesis import strategies as st

from capstore.backers.node import Expect, RenameMode
from capstore.backers.store import ANY
from capstore.service.policy import Policy
from tests.service.confinement.control import Control
from tests.service.confinement.files import Files
from tests.service.confinement.machine import CLIENT, INDEX, NAMES, SINGLE, move
from tests.service.confinement.names import Naming
from tests.service.confinement.renaming import Renaming
from tests.service.confinement.sinks import Sinks
from tests.service.confinement.stores import CONTENT, KEYS, PARTS, PREFIXES
from tests.service.confinement.watching import Watching
from tests.service.confinement.world import Held, Names, Piece, hash_of

_NONE = 0


class UsingTrees(Renaming, Watching, Files, Control):
    """Trying out directories and files."""

    def number(self, held: Held) -> int:
        """By which a move takes this one, among those of its kind."""
        return 4 * [each for each in self.held if type(each.node) is type(held.node)].index(held)

    def place(self, held: Held) -> int:
        """By which `save` takes this one."""
        return 4 * [each for each in self.held if not isinstance(each.node, Piece)].index(held)

    def keep(self, held: Held, client: int) -> Held | None:
        """It is saved and restored; what was restored, if it was."""
        before = len(self.saved)
        self.save(self.place(held), client)
        if len(self.saved) == before:
            return None
        self.restore(4 * before, client)
        return self.held[-1] if self.held[-1] is not held else None

    @move(at=INDEX, name=NAMES, other=NAMES, flags=st.sampled_from([0, 0, 1, 3]), keeps=CLIENT)
    def use_directory(self, at: int, name: str, other: str, flags: int, keeps: int) -> None:
        here = self.directory(at)
        self.list_names(self.number(here))
        self.lookup(self.number(here), name)
        before = self.held[-1]
        self.open(self.number(here), name, flags)
        file = self.held[-1]
        if keeps and file is not before:
            file = self.keep(file, keeps) or file
        if file.is_file:
            self.use_file(self.number(file))
        self.create(self.number(here), other)
        self.rename(self.number(here), name, _NONE, other, RenameMode.REPLACE, False)
        self.link(self.number(here), other, _NONE, "f", False)
        self.set_attributes(self.number(here), name, True)
        self.remove(self.number(here), name, Expect.ANY)
        self.sub(self.number(here), other)

    def use_file(self, at: int) -> None:
        self.read(at, 0)
        self.append(at, 4)
        self.write(at, 1, 4)
        self.truncate(at, 12)

    @move(at=INDEX, client=CLIENT, name=NAMES, other=NAMES, starts=st.booleans())
    def save_and_use(self, at: int, client: int, name: str, other: str, starts: bool) -> None:
        """What is restored, behind a start of the service or not, is tried out."""
        before = len(self.saved)
        self.save(at, client)
        if len(self.saved) == before:
            return
        if starts:
            self.start_again()
        there = self.held[-1]
        self.restore(4 * before, client)
        if self.held[-1] is not there:
            self.use(self.held[-1], name, other)

    @move(
        at=INDEX,
        policy=SINGLE,
        name=NAMES,
        other=NAMES,
        end=st.sampled_from(["none", "revoked", "late"]),
    )
    def narrow_and_use(self, at: int, policy: Policy, name: str, other: str, end: str) -> None:
        """Something with less authority is tried out, and may end then."""
        whole, before = self.some(at), self.held[-1]
        self.attenuate(at, policy, True, 20 if end == "late" else 0)
        if self.held[-1] is before:
            return
        if whole.is_directory:
            self.watch(self.number(self.held[-1]))
        self.use(self.held[-1], name, other)
        if end == "revoked":
            self.revoke(4 * (len(self.revokers) - 1))
        elif end == "late":
            self.time_passes(20)
            self.step(self.look_at_all())
        if whole.is_directory and whole in self.held:
            # Who watched is told of no more than it may list, and of nothing if that has ended.
            for each in ("h-x", other):
                self.remove(self.number(whole), each, Expect.ANY)
                self.create(self.number(whole), each)
            self.list_names(self.number(whole))

    def use(self, held: Held, name: str, other: str) -> None:
        if held.is_directory:
            self.use_directory(self.number(held), name, other, 0, 1)
        elif held.is_file:
            self.use_file(self.number(held))


class UsingStores(UsingTrees, Sinks, Naming):
    """Trying out stores and names."""

    def use(self, held: Held, name: str, other: str) -> None:
        super().use(held, name, other)
        if held.is_store:
            # What is there, and what is not.
            self.try_out(held, b"in/a", b"h-a", b"")
            self.try_out(held, b"n/a", b"d", b"")
        elif isinstance(held.node, Names):
            self.use_names(self.number(held), name)

    @move(at=INDEX, key=KEYS, other=KEYS, how=PARTS, prefix=PREFIXES)
    def use_store(self, at: int, key: bytes, other: bytes, how: str, prefix: bytes) -> None:
        here = self.store_at(at)
        before = self.held[-1]
        self.part(self.number(here), how, prefix)
        if self.held[-1] is not before:
            self.try_out(self.held[-1], key, other, prefix)
        self.try_out(here, key, other, prefix)

    def try_out(self, here: Held, key: bytes, other: bytes, prefix: bytes) -> None:
        self.list_keys(self.number(here), prefix, b"")
        self.usage_of_store(self.number(here))
        for each in (key, other):
            self.get(self.number(here), each)
            self.has(self.number(here), each)
        self.put(self.number(here), key, ANY, 4)
        self.begin(self.number(here), other, ANY)
        if isinstance(self.held[-1].node, Piece):
            self.write_piece(self.number(self.held[-1]), 4)
            self.commit(self.number(self.held[-1]))
        self.batch(self.number(here), [(key, ANY, 12), (other, ANY, None)])
        # More than any quota has.
        self.put(self.number(here), key, ANY, 40)
        self.list_on(self.number(here), _NONE, prefix)
        self.maintain(self.number(here), False)
        before = self.held[-1]
        self.namespace(self.number(here))
        if self.held[-1] is not before:
            self.use_names(self.number(self.held[-1]), "h-a")

    @move(at=INDEX, name=NAMES)
    def use_names_of(self, at: int, name: str) -> None:
        if self.has_names:
            self.use_names(self.number(self.names_at(at)), name)

    def use_names(self, at: int, name: str) -> None:
        self.bind_content(at, name, hash_of(CONTENT), ANY)
        self.list_bindings(at)
        if self.saved:
            self.bind_number(at, name, 0, ANY)
        self.resolve(at, name)

    @move(at=INDEX, to=INDEX, through=INDEX, policy=SINGLE, name=NAMES, other=NAMES)
    def lend_and_use(
        self, at: int, to: int, through: int, policy: Policy, name: str, other: str
    ) -> None:
        """What is lent through the names of a weaker store, tried out and saved; then that ends."""
        self.lend(at, to, name, 0)
        narrowed = self.held[-1]
        self.step(self._attenuate(self.store_at(through), policy, revocable=True))
        if self.held[-1] is narrowed:
            return
        narrowed = self.held[-1]
        self.namespace(self.number(narrowed))
        names = self.held[-1]
        if not isinstance(names.node, Names) or names is narrowed:
            return
        self.resolve(self.number(names), name)
        lent = self.held[-1]
        if lent is not names:
            self.use(lent, other, name)
            self.save(self.place(lent) if lent in self.held else _NONE, 1)
        self.revoke(4 * (len(self.revokers) - 1))
