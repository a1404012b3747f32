"""Confinement: whatever clients do with what they got, they do no more than was granted.

Clients with connections of their own call anything with anything that they ever received, and
hand each other tokens through a directory that all of them have.  After every call the tree, seen
by its owner, is that of the model (`tests.service.confinement_model`), and every answer shows what
the model shows.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import tempfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes, DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.schema import wire
from capstore.schema.errors import Code, StorageError
from capstore.service.authority import Authority
from capstore.service.client import Connection, open_connection
from capstore.service.decisions import Effect, opening
from capstore.service.grants import Grant
from capstore.service.guard import GuardedDirectory
from capstore.service.policy import Policy
from capstore.service.remote import Directory, Revoker, answer_of
from tests.contract import model
from tests.service.authorities import Clock
from tests.service.confinement_model import Growth, Held, Right, World, is_flags
from tests.service.inprocess import serving

T = TypeVar("T")
M = TypeVar("M")

CLIENTS = 3
_HELD_MAX = 60
_NEVER = {Code.INTERNAL, Code.CORRUPT, Code.IO, Code.BUSY}

NAMES = st.sampled_from(["a", "b", "c", "d", "d", "e", "f", "h-a", "h-d", "h-x"])
INDEX = st.integers(0, 255)
OFFSETS = st.sampled_from([0, 1, 3, 9, 40])
SIZES = st.sampled_from([0, 1, 4, 12])
FLAGS = st.sampled_from([0, 0, 1, 1, 1, 3, 3, 7, 9, 9, 11, 15, 2, 4, 8, 10, 5])
SINGLE = st.sampled_from(
    [
        Policy(),
        Policy(read_only=True),
        Policy(append_only=True),
        Policy(append_only=True),
        Policy(hidden_names=("h-*",)),
        Policy(hidden_names=("h-*",)),
        Policy(hidden_names=("?",)),
        Policy(hidden_names=("d", "*-a")),
        Policy(max_bytes=10),
        Policy(max_bytes=30, max_nodes=3),
        Policy(max_nodes=2),
        Policy(max_file_bytes=8),
        Policy(max_file_bytes=20),
        Policy(dry_run=True),
        Policy(traced=True),
        Policy(calls_per_second=10**6, bytes_per_second=10**9),
    ]
)
POLICIES = st.one_of(
    SINGLE, SINGLE, st.tuples(SINGLE, SINGLE).map(lambda two: two[0].under(two[1]))
)


class Undying(MemoryVolume):
    """What a service leaves as it was when it stops."""

    async def close(self) -> None:
        """Another service goes on with it."""


class Fake(wire.Directory.Server):  # type: ignore[misc]
    """A directory that a client serves itself, and that has somebody's ticket."""

    def __init__(self, ticket: bytes) -> None:
        self._ticket = ticket

    async def ticket(self, _context: Any) -> bytes:
        return self._ticket


class Machine(RuleBasedStateMachine):
    """A service, its clients, and the model of both."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.clock = Clock()
        # Behind the real time: a service that starts has that until it is given this one, and must
        # not take for over what is not.
        self.clock.now = self.world.now = 2**62
        self.owner = Right()
        self.held: list[Held] = []
        self.revokers: list[tuple[Revoker, Right]] = []
        # What the directory of tokens holds: names of files there, and what the tokens stand for.
        self.saved: dict[str, tuple[Right, Held]] = {}
        self.tokens = 0
        self.tag = 0
        self.ids: dict[model.Node, int] = {}
        self.runs: dict[Right, model.Node] = {}
        self.tickets: list[tuple[bytes, Held]] = []
        self.connections: list[Connection] = []
        self.boards: list[Directory] = []
        Machine.counts["runs"] += 1
        self.folder = tempfile.TemporaryDirectory(prefix="capstore-test-")
        self.volume: Any = None
        self.run(self._begin())

    # The machine -----------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work`; what it raises holds no capability, which must not outlive its loop."""

        async def bounded() -> T:
            async with asyncio.timeout(20):
                return await work

        try:
            return self.loop.run_until_complete(bounded())
        except Exception as error:
            failure = "".join(traceback.format_exception(error))
            traceback.clear_frames(error.__traceback__)
        raise AssertionError(failure)

    async def _begin(self) -> None:
        self.volume, self.board_volume = await Undying.open(), await Undying.open()
        await self._start()
        self.ids[self.world.root] = (await self.volume.root.stat()).node_id

    async def _start(self) -> None:
        ready, self._leave = asyncio.Event(), asyncio.Event()
        self._serving = asyncio.create_task(self._serve(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._serving.done():
            self._serving.result()

    async def _serve(self, ready: asyncio.Event) -> None:
        volumes = {"m": self.volume, "board": self.board_volume}
        async with (
            serving(volumes, folder=Path(self.folder.name)) as served,
            AsyncExitStack() as to,
        ):
            authority: Any = served.service._authority
            authority._clock = authority.exchanges._clock = self.clock
            for _ in range(CLIENTS):
                connection = await to.enter_async_context(open_connection(served.unix["m"]))
                self.connections.append(connection)
                board = await connection.restore(served.unix["board"].token)
                assert isinstance(board, Directory)
                self.boards.append(board)
            root = await self.connections[0].root()
            self.held.append(Held(root, self.world.root, self.owner))
            ready.set()
            await self._leave.wait()
            self._forget()

    def _forget(self) -> None:
        self.held.clear()
        self.revokers.clear()
        self.boards.clear()
        self.connections.clear()

    async def _stop(self) -> None:
        self._leave.set()
        await self._serving

    def teardown(self) -> None:
        try:
            self.run(self._stop())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            gc.collect()
            self.loop.close()
            self.folder.cleanup()

    def directory(self, index: int) -> Held:
        """Any directory: those that were got last are as likely as all others."""
        return self._any([each for each in self.held if each.is_directory], index)

    def file(self, index: int) -> Held:
        return self._any([each for each in self.held if not each.is_directory], index)

    @staticmethod
    def _any(among: list[T], index: int) -> T:
        recent = among[-4:] if index % 4 else among
        return recent[index // 4 % len(recent)]

    def got(self, held: Held) -> None:
        self.held.append(held)
        if len(self.held) > _HELD_MAX:
            # The owner's own stays.
            del self.held[1]

    def data(self, size: int) -> bytes:
        self.tag = self.tag % 255 + 1
        return bytes([self.tag]) * size

    @property
    def has_files(self) -> bool:
        return any(not each.is_directory for each in self.held)

    # A call ----------------------------------------------------------------------------------

    async def attempt(
        self,
        call: Awaitable[T],
        held: Held,
        effect: Effect,
        does: Callable[[], M],
        *,
        names: Iterable[str] = (),
        refusals: Iterable[Code] = (),
        perhaps: Iterable[Code] = (),
    ) -> tuple[T, M] | None:
        """What the call gives and what the model does; None if both refuse.

        `refusals`: why it may not take effect, beside its right.  `perhaps`: why it may not, and
        may all the same.
        """
        right, world = held.right, self.world
        because = right.refusals(effect, self.clock()) | set(refusals)
        if any(right.hides(name) for name in names):
            because.add(Code.NOT_FOUND)
        Machine.counts["calls"] += 1
        try:
            result = await call
        except StorageError as error:
            Machine.counts[f"{error.code.value}"] += 1
            self._refused(error.code, held, because, set(perhaps), does)
            return None
        assert not because, f"done, though {because}"
        Machine.counts["done"] += 1
        if right.dry is not None:
            return result, None  # type: ignore[return-value]
        before = world.size()
        done = does()
        self._account(right, world.size() - before)
        return result, done

    def _refused(
        self,
        code: Code,
        held: Held,
        because: set[Code],
        perhaps: set[Code],
        does: Callable[[], object],
    ) -> None:
        assert code not in _NEVER, code
        if held.right.dry is not None:
            # It is its own tree; of that the model knows what it may show.
            return
        if because:
            assert code in because | perhaps, (code, because)
            return
        if code in perhaps or (code is Code.QUOTA_EXCEEDED and held.right.quotas):
            return
        before = model.dump(self.world.root)
        expected = _code_of(does)
        assert expected is code, f"refused with {code}, and the model says {expected}"
        assert model.dump(self.world.root) == before

    def _account(self, right: Right, growth: Growth) -> None:
        for link in right.quotas:
            link.grown += growth
            size, names = link.policy.max_bytes, link.policy.max_nodes
            if size and growth.size > 0:
                assert link.grown.size <= size, "over a quota of bytes"
            if names and growth.names > 0:
                assert link.grown.names <= names, "over a quota of names"

    # What all look at ------------------------------------------------------------------------

    async def check(self) -> None:
        """The tree is the model's, and the dry runs show what they may."""
        self.world.now = self.clock()
        await self._same(self.volume.root, self.world.root)
        for run, base in self.runs.items():
            self.world.reach(run, base)

    async def _same(self, real: DirectoryNode, node: model.Directory) -> None:
        entries = {entry.name: entry for entry in (await real.list()).entries}
        assert sorted(entries) == sorted(node.entries)
        for name, below in node.entries.items():
            entry = entries[name]
            assert self.ids.setdefault(below, entry.stat.node_id) == entry.stat.node_id
            if isinstance(below, model.Directory):
                assert entry.stat.kind is NodeKind.DIRECTORY
                await self._same(await real.sub(name), below)
            elif isinstance(below, model.Symlink):
                assert entry.target == below.target
            else:
                file = await real.open(name)
                assert bytes(await file.read(0, 1000)) == below.data
                assert entry.stat.executable == (below in self.world.executable)
                await file.close()

    def step(self, work: Coroutine[Any, Any, object]) -> None:
        async def both() -> None:
            await work
            await self.check()

        Machine.counts["steps"] += 1
        self.run(both())

    async def _is_node(self, held: Held) -> None:
        """What was got is the node that the model has it for."""
        if held.right.dry is None and not held.frozen:
            with_right = held.right.refusals(Effect.OBSERVE, self.clock())
            if not with_right and not held.closed:
                stat = await held.real.stat()
                assert self.ids.setdefault(held.node, stat.node_id) == stat.node_id

    # Looking ---------------------------------------------------------------------------------

    @rule(at=INDEX)
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

    @rule(at=INDEX, name=NAMES)
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

    @rule(at=INDEX, offset=OFFSETS)
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
                allowed = held.right.dry.shown | set(node.data) | {0}
                assert set(found[0]) <= allowed
            else:
                assert found[0] == found[1]

        self.step(run())

    @rule(at=INDEX)
    def usage(self, at: int) -> None:
        held = self.directory(at)
        self.step(self.attempt(held.real.usage(), held, Effect.OBSERVE, lambda: None))

    # Going down ------------------------------------------------------------------------------

    @rule(at=INDEX, name=NAMES)
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
        await self._is_node(made)

    @rule(at=INDEX, name=NAMES, flags=FLAGS)
    def open(self, at: int, name: str, flags: int) -> None:
        held = self.directory(at)
        node: Any = held.node
        flag = OpenFlags(flags)
        right = held.right if flags & 1 else held.right.below(Policy(read_only=True))

        self.step(
            self._into(
                held,
                held.real.open(name, flag),
                opening(flag),
                lambda: model.open_file(node, name, flag),
                name,
                right=right,
                refusals=[] if is_flags(flags) else [Code.INVALID_ARGUMENT],
            )
        )

    @rule(at=INDEX, name=NAMES)
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
        if not self._alive(directory):
            raise StorageError.of(Code.NOT_FOUND, "")
        model.make(directory, name, node)
        return node

    def _alive(self, directory: model.Directory) -> bool:
        return self.world.is_linked(directory)

    @rule(at=INDEX, name=NAMES)
    def mkdir(self, at: int, name: str) -> None:
        held = self.directory(at)
        self.step(
            self._into(
                held, held.real.mkdir(name), Effect.ADD, lambda: self._make(held, name, False), name
            )
        )

    # Changing names --------------------------------------------------------------------------

    @rule(at=INDEX, name=NAMES, leads_to=st.sampled_from(["a", "h-a", "/etc/passwd"]))
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
                perhaps=[] if self._alive(node) else [Code.NOT_FOUND],
            )
        )

    @rule(at=INDEX, name=NAMES, expect=st.sampled_from(Expect))
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

    @rule(
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

    @rule(at=INDEX, name=NAMES, to=INDEX, new_name=NAMES, fake=st.booleans())
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
        if not fake:
            return held.real  # type: ignore[no-any-return]
        if held.right.is_over(self.clock()):
            return held.real  # type: ignore[no-any-return]
        ticket = (await answer_of(held.real.raw.ticket())).ticket
        return Directory(wire.Directory._new_client(Fake(ticket)))

    def _either(self, *directories: model.Directory) -> list[Code]:
        """What is said of directories that were removed, or where several things are wrong."""
        return [] if all(map(self._alive, directories)) else [Code.NOT_FOUND]

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

    @rule(at=INDEX, name=NAMES, executable=st.booleans())
    def set_attributes(self, at: int, name: str, executable: bool) -> None:
        held = self.directory(at)
        node: Any = held.node

        def does() -> None:
            found = model.find(node, name)
            if isinstance(found, model.File):
                self._set(found, executable)

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

    def _set(self, node: model.Node, executable: bool) -> None:
        (self.world.executable.add if executable else self.world.executable.discard)(node)

    # Files -----------------------------------------------------------------------------------

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

    def _dry_data(self, held: Held, size: int) -> bytes:
        data = self.data(size)
        if held.right.dry is not None:
            held.right.dry.shown.update(data)
        return data

    @rule(at=INDEX, offset=OFFSETS, size=SIZES)
    @precondition(lambda self: self.has_files)
    def write(self, at: int, offset: int, size: int) -> None:
        held = self.file(at)
        node: Any = held.node
        data = self._dry_data(held, size)
        self._change_file(
            held,
            held.real.write(offset, data),
            Effect.CHANGE,
            lambda: model.write(node, offset, data),
            offset + size if size else 0,
        )

    @rule(at=INDEX, size=SIZES)
    @precondition(lambda self: self.has_files)
    def append(self, at: int, size: int) -> None:
        held = self.file(at)
        node: Any = held.node
        data = self._dry_data(held, size)
        self._change_file(
            held,
            held.real.append(data),
            Effect.ADD,
            lambda: model.write(node, len(node.data), data),
            len(node.data) + size,
        )

    @rule(at=INDEX, size=SIZES)
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

    @rule(at=INDEX, executable=st.booleans())
    @precondition(lambda self: self.has_files)
    def set_file_attributes(self, at: int, executable: bool) -> None:
        held = self.file(at)
        self._change_file(
            held,
            held.real.set_attributes(Attributes(executable=executable)),
            Effect.CHANGE,
            lambda: self._set(held.node, executable),
        )

    @rule(at=INDEX)
    @precondition(lambda self: self.has_files)
    def close(self, at: int) -> None:
        held = self.file(at)

        async def run() -> None:
            if await self.attempt(held.real.close(), held, Effect.OBSERVE, lambda: None):
                held.closed = True

        self.step(run())

    # Narrowing -------------------------------------------------------------------------------

    def _some(self, at: int) -> Held:
        return self._any(self.held, at)

    @rule(at=INDEX)
    def read_only(self, at: int) -> None:
        held = self._some(at)

        async def run() -> None:
            await self._narrowed(
                held, held.real.read_only(), held.right.below(Policy(read_only=True))
            )

        self.step(run())

    @rule(at=INDEX, policy=POLICIES, revocable=st.booleans(), ends=st.sampled_from([0, 0, 0, 50]))
    def attenuate(self, at: int, policy: Policy, revocable: bool, ends: int) -> None:
        held = self._some(at)
        if ends:
            policy = policy.under(Policy(expires_at=self.clock() + ends))

        async def run() -> None:
            right = held.right.below(policy)
            if policy.dry_run:
                self.runs[right] = held.node
                self.world.reach(right, held.node)
            narrowed = await self._narrowed(
                held, held.real.attenuate(policy, revocable=revocable), right
            )
            if narrowed is not None and revocable:
                self.revokers.append((narrowed.revoker, right))

        self.step(run())

    async def _narrowed(self, held: Held, call: Awaitable[Any], right: Right) -> Any:
        closed = [Code.CLOSED] if held.closed else []
        found = await self.attempt(
            call,
            held,
            Effect.OBSERVE,
            lambda: None,
            refusals=closed,
            perhaps=[Code.TOO_LARGE] + ([Code.UNSUPPORTED] if held.frozen else []),
        )
        if found is None:
            return None
        real = getattr(found[0], "capability", found[0])
        self.got(Held(real, held.node, right, frozen=held.frozen))
        await self._is_node(self.held[-1])
        return found[0]

    @rule(at=INDEX)
    def snapshot(self, at: int) -> None:
        held = self.directory(at)
        node: Any = held.node

        async def run() -> None:
            found = await self.attempt(
                held.real.snapshot(),
                held,
                Effect.OBSERVE,
                lambda: copy.deepcopy(node),
                perhaps=[] if self._alive(node) else [Code.NOT_FOUND],
            )
            if found is not None:
                right = held.right.below(Policy(read_only=True))
                self.got(Held(found[0], found[1] or node, right, frozen=True))

        self.step(run())

    @rule(at=INDEX)
    def watch(self, at: int) -> None:
        held = self.directory(at)

        async def run() -> None:
            found = await self.attempt(
                answer_of(held.real.raw.watch()),
                held,
                Effect.OBSERVE,
                lambda: None,
                perhaps=[Code.UNSUPPORTED],
            )
            assert found is None, "watching is served now: have the model know of it"

        self.step(run())

    # Ending ----------------------------------------------------------------------------------

    @rule(at=INDEX)
    @precondition(lambda self: self.revokers)
    def revoke(self, at: int) -> None:
        revoker, right = self._any(self.revokers, at)

        async def run() -> None:
            await revoker.revoke()
            right.revoked = True

        self.step(run())

    @rule()
    def time_passes(self) -> None:
        self.clock.now += 20

    # Handing on ------------------------------------------------------------------------------

    @rule(at=INDEX, client=st.integers(0, CLIENTS - 1))
    def save(self, at: int, client: int) -> None:
        """A client saves what it has, and puts the token where all of them find it."""
        held = self._some(at)

        async def run() -> None:
            perhaps = set()
            if held.frozen:
                perhaps |= {Code.UNSUPPORTED, Code.NOT_FOUND}
            if not self.world.is_linked(held.node):
                perhaps.add(Code.NOT_FOUND)
            found = await self.attempt(
                held.real.save("shared"),
                held,
                Effect.OBSERVE,
                lambda: None,
                refusals=[Code.CLOSED] if held.closed else [],
                perhaps=perhaps | {Code.TOO_LARGE},
            )
            if found is not None:
                self.tokens += 1
                name = f"token-{self.tokens}"
                await self.boards[client].write_file(name, found[0].encode())
                self.saved[name] = held.right.below(), held

        self.step(run())

    async def _token(self, at: int, client: int) -> tuple[str, Right, Held]:
        name = self._any([*self.saved], at)
        data, _, _ = await self.boards[client].read_file(name)
        return data.decode(), *self.saved[name]

    @rule(at=INDEX, client=st.integers(0, CLIENTS - 1))
    @precondition(lambda self: self.saved)
    def restore(self, at: int, client: int) -> None:
        async def run() -> None:
            token, right, saved = await self._token(at, client)
            linked = self.world.is_linked(saved.node)
            over = right.is_over(self.clock())
            real, code = await _tried(self.connections[client].restore(token))
            if code is not None:
                assert code is (Code.DENIED if over else Code.NOT_FOUND)
                assert over or not linked or saved.frozen or right.dry is not None
                return
            assert not over
            Machine.counts["restored"] += 1
            made = Held(real, saved.node, right, frozen=saved.frozen)
            self.got(made)
            await self._is_node(made)

        self.step(run())

    @rule(at=INDEX, client=st.integers(0, CLIENTS - 1), what=st.sampled_from(["revoke", "rotate"]))
    @precondition(lambda self: self.saved)
    def control(self, at: int, client: int, what: str) -> None:
        """Who has a token may end what it stands for, or get another token."""

        async def run() -> None:
            name = self._any([*self.saved], at)
            token, right, _ = await self._token(at, client)
            over = right.is_over(self.clock())
            connection = self.connections[client]
            control, code = await _tried(connection.reference(token))
            assert (code is Code.DENIED) == over, (code, over)
            if control is None:
                return
            own = (await control.status()).id
            if what == "revoke":
                await control.revoke(own)
                right.revoked = True
            else:
                new = await control.rotate(own)
                await self.boards[client].write_file(name, new.encode())
                _, code = await _tried(connection.restore(token))
                assert code is Code.DENIED

        self.step(run())

    @rule()
    @precondition(lambda self: self.saved)
    def start_again(self) -> None:
        """The service stops and starts: what was not saved is gone, but for the owner's."""

        async def run() -> None:
            await self._stop()
            # What nobody has any more is not bound by what ended with it.
            await self._start()

        self.step(run())

    @initialize(policies=st.lists(POLICIES, min_size=2, max_size=3), ends=st.sampled_from([0, 30]))
    def plant(self, policies: list[Policy], ends: int) -> None:
        """Something of everything, made by the owner, and what the owner gives away."""

        async def run() -> None:
            root: Directory = self.held[0].real
            await self._plant(root, self.world.root)
            for name in ("d", "h-d"):
                below = self.world.root.entries[name] = model.Directory()
                await self._plant(await root.mkdir(name), below)

        self.step(run())
        for policy in policies:
            self.attenuate(0, policy, True, ends)
            ends = 0

    async def _plant(self, directory: Directory, node: model.Directory) -> None:
        for name in ("a", "h-a"):
            data = self.data(5)
            await directory.write_file(name, data)
            node.entries[name] = model.File(bytearray(data))


async def _tried(call: Awaitable[T]) -> tuple[T, None] | tuple[None, Code]:
    try:
        return await call, None
    except StorageError as error:
        return None, error.code


def _code_of(does: Callable[[], object]) -> Code | None:
    try:
        does()
    except StorageError as error:
        return error.code
    return None


def _play(runs: int, steps: int, *, shrinks: bool = True) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_client_does_more_than_was_granted() -> None:
    Machine.counts.clear()
    _play(80, 40)
    _print_counts()


@pytest.mark.long
@pytest.mark.timeout(0)
def test_no_client_does_more_than_was_granted_at_length() -> None:
    Machine.counts.clear()
    _play(1500, 60)
    _print_counts()


def _forgetful_save(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Authority, "_policy_of", lambda *args: Policy())


def _forgetful_opening(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Grant, "reading", lambda self: self)


def _forgetful_hiding(patch: pytest.MonkeyPatch) -> None:
    async def existing(self: GuardedDirectory, name: str) -> None:
        """Nothing is looked at."""

    patch.setattr(GuardedDirectory, "_name", lambda self, name: name)
    patch.setattr(GuardedDirectory, "_existing", existing)


def _moving_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Grant, "stands_under", lambda *args: True)


def _last(among: Iterable[Held]) -> int:
    """The index of the one that was got last."""
    return 4 * (min(4, len([*among])) - 1) + 1


def _saved_and_restored(machine: Machine) -> None:
    machine.attenuate(0, Policy(read_only=True), False, 0)
    machine.save(_last(machine.held), 1)
    machine.start_again()
    machine.restore(0, 2)
    machine.create(_last(machine.held), "f")


def _opened_to_read(machine: Machine) -> None:
    machine.open(0, "a", 0)
    machine.save(_last(machine.held), 1)
    machine.restore(0, 2)
    machine.write(_last(each for each in machine.held if not each.is_directory), 0, 4)


def _below_what_is_hidden(machine: Machine) -> None:
    machine.attenuate(0, Policy(hidden_names=("h-*",)), False, 0)
    machine.sub(_last(machine.held), "h-d")


def _moved_out(machine: Machine) -> None:
    machine.attenuate(0, Policy(max_file_bytes=8), False, 0)
    machine.rename(_last(machine.held), "a", 0, "x", RenameMode.REPLACE, False)


FORGETFUL: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Machine], None]]] = [
    (_forgetful_save, _saved_and_restored),
    (_forgetful_opening, _opened_to_read),
    (_forgetful_hiding, _below_what_is_hidden),
    (_moving_out, _moved_out),
]


@pytest.mark.parametrize(("forget", "play"), FORGETFUL)
@pytest.mark.parametrize("forgets", [False, True])
def test_a_service_that_forgets_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[pytest.MonkeyPatch], None],
    play: Callable[[Machine], None],
    forgets: bool,
) -> None:
    """And one that does not is not, by the same calls."""
    if forgets:
        forget(monkeypatch)
    machine = Machine()
    try:
        machine.plant([], 0)
        if forgets:
            with pytest.raises(AssertionError, match="done, though"):
                play(machine)
        else:
            play(machine)
    finally:
        machine.teardown()


@pytest.mark.parametrize("forget", [forget for forget, _ in FORGETFUL])
@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_service_that_forgets_is_found_out(
    monkeypatch: pytest.MonkeyPatch, forget: Callable[[pytest.MonkeyPatch], None]
) -> None:
    forget(monkeypatch)
    with pytest.raises(AssertionError, match="done, though"):
        _play(5000, 60, shrinks=False)


def _print_counts() -> None:
    print(", ".join(f"{what} {count}" for what, count in sorted(Machine.counts.items())))
