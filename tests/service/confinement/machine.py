"""A service, its clients, and the model of both; what the clients do is in the modules beside.

Invariant: behind every step the tree and the store are those of the model.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import tempfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, NodeKind
from capstore.schema import wire
from capstore.schema.errors import Code, StorageError
from capstore.service.client import Connection, open_connection
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from capstore.service.remote import Directory, Revoker, answer_of
from capstore.service.remote_store import RemoteStore
from tests.contract import model
from tests.contract.store_model import ModelStore
from tests.service.authorities import Clock
from tests.service.confinement.rights import Growth, Right, Verb
from tests.service.confinement.world import Held, Piece, Saved, World
from tests.service.inprocess import serving
from tests.service.observed import traced_only

T = TypeVar("T")
M = TypeVar("M")

CLIENTS = 3
_HELD_MAX = 60
_NEVER = {Code.INTERNAL, Code.CORRUPT, Code.IO, Code.BUSY}

NAMES = st.sampled_from(["a", "b", "c", "d", "d", "e", "f", "h-a", "h-d", "h-x"])
INDEX = st.integers(0, 255)
CLIENT = st.integers(0, CLIENTS - 1)
SIZES = st.sampled_from([0, 1, 4, 12])
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


def move(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A rule that is counted under its name."""

    def decorated(does: Callable[..., None]) -> Any:
        @functools.wraps(does)
        def counted(self: Machine, *drawn: Any, **named: Any) -> None:
            Machine.moves[does.__name__] += 1
            does(self, *drawn, **named)

        return rule(**strategies)(counted)

    return decorated


class Undying(MemoryVolume):
    """What a service leaves as it was when it stops."""

    async def close(self) -> None:
        """Another service goes on with it."""


class UndyingStore(ModelStore):
    async def close(self) -> None:
        """As `Undying`."""


class Fake(wire.Directory.Server):  # type: ignore[misc]
    """A directory that a client serves itself, and that has somebody's ticket."""

    def __init__(self, ticket: bytes) -> None:
        self._ticket = ticket

    async def ticket(self, _context: Any) -> bytes:
        return self._ticket


async def fake_of(held: Held) -> Directory:
    ticket = (await answer_of(held.real.raw.ticket())).ticket
    return Directory(wire.Directory._new_client(Fake(ticket)))


class Machine(RuleBasedStateMachine):
    """What every client's moves stand on."""

    counts: ClassVar[Counter[str]] = Counter()
    moves: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.clock = Clock()
        # Behind the real time: a service that starts has that until it is given this one, and must
        # not take for over what is not.
        self.clock.now = self.world.now = 2**62
        self.owners = {"m": Right(), "s": Right()}
        self.held: list[Held] = []
        self.revokers: list[tuple[Revoker, Right]] = []
        # What the directory of tokens holds, by the names there; and all that was ever saved.
        self.saved: dict[str, Saved] = {}
        self.by_right: dict[Right, Saved] = {}
        self.tag = 0
        self.ids: dict[model.Node, int] = {}
        self.runs: dict[Right, Any] = {}
        self.connections: list[Connection] = []
        self.boards: list[Directory] = []
        Machine.counts["runs"] += 1
        # Nothing here is about the disk, and flushing it takes half of the time.
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(
            prefix="capstore-test-", dir=memory if memory.is_dir() else None
        )
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
        self.store = UndyingStore()
        await self.start()
        self.ids[self.world.root] = (await self.volume.root.stat()).node_id

    async def start(self) -> None:
        ready, self._leave = asyncio.Event(), asyncio.Event()
        self._serving = asyncio.create_task(self._serve(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._serving.done():
            self._serving.result()

    async def _serve(self, ready: asyncio.Event) -> None:
        volumes = {"m": self.volume, "s": self.store, "board": self.board_volume}
        async with (
            serving(volumes, folder=Path(self.folder.name), observers=traced_only()) as served,
            AsyncExitStack() as to,
        ):
            self.authority: Any = served.service._authority
            self.authority._clock = self.authority.exchanges._clock = self.clock
            self.tokens = {name: uri.token for name, uri in served.unix.items()}
            for _ in range(CLIENTS):
                connection = await to.enter_async_context(open_connection(served.unix["m"]))
                self.connections.append(connection)
                board = await connection.restore(self.tokens["board"])
                assert isinstance(board, Directory)
                self.boards.append(board)
            await self._restore_owners(self.connections[0])
            ready.set()
            await self._leave.wait()
            self.forget()

    async def _restore_owners(self, connection: Connection) -> None:
        for name, thing in (("m", self.world.root), ("s", self.world.store)):
            held = Held(await connection.restore(self.tokens[name]), thing, self.owners[name])
            self.held.append(held)
            id_ = self.authority._table.find(self.tokens[name]).id
            self.by_right[held.right] = Saved(id_, "owner", name, held.right, held)

    def forget(self) -> None:
        self.held.clear()
        self.revokers.clear()
        self.boards.clear()
        self.connections.clear()
        self.authority = None
        for saved in self.by_right.values():
            saved.held.real = None

    async def stop(self) -> None:
        self._leave.set()
        await self._serving

    def teardown(self) -> None:
        try:
            self.run(self.stop())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            gc.collect()
            self.loop.close()
            self.folder.cleanup()

    # What clients have -----------------------------------------------------------------------

    @property
    def has_files(self) -> bool:
        return any(each.is_file for each in self.held)

    def directory(self, index: int) -> Held:
        """Any directory: those that were got last are as likely as all others."""
        return self.any_of([each for each in self.held if each.is_directory], index)

    def file(self, index: int) -> Held:
        return self.any_of([each for each in self.held if each.is_file], index)

    def some(self, index: int) -> Held:
        """What can be attenuated."""
        return self.any_of(
            [each for each in self.held if each.is_directory or each.is_file or each.is_store],
            index,
        )

    @staticmethod
    def any_of(among: list[T], index: int) -> T:
        recent = among[-4:] if index % 4 else among
        return recent[index // 4 % len(recent)]

    def got(self, held: Held) -> Held:
        self.held.append(held)
        if len(self.held) > _HELD_MAX:
            # The owners' own stay.
            del self.held[2]
        return held

    def data(self, size: int, held: Held | None = None) -> bytes:
        """Bytes as nobody else put, to be put through `held`."""
        self.tag = self.tag % 255 + 1
        data = bytes([self.tag]) * size
        if held is not None and held.right.dry is not None:
            held.right.dry.shown.update(data)
        return data

    def set_executable(self, node: model.Node, executable: bool) -> None:
        (self.world.executable.add if executable else self.world.executable.discard)(node)

    # A call ----------------------------------------------------------------------------------

    async def attempt(
        self,
        call: Awaitable[T],
        held: Held,
        effect: Effect,
        does: Callable[[], M],
        *,
        verb: Verb | None = None,
        names: Iterable[str] = (),
        refusals: Iterable[Code] = (),
        perhaps: Iterable[Code] = (),
    ) -> tuple[T, M] | None:
        """What the call gives and what the model does; None if both refuse.

        `refusals`: why it may not take effect, beside its right.  `perhaps`: why it may not, and
        may all the same.
        """
        right, world = held.right, self.world
        because = right.refusals(effect, self.clock(), verb) | set(refusals)
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
        try:
            done = does()
        except StorageError as error:
            raise AssertionError(f"done, though the model says {error.code}") from None
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
        if held.right.dry is not None:
            # It is its own tree; of that the model knows what it may show.
            perhaps |= busy_if(held.right)
            assert code in perhaps or code not in _NEVER, code
            return
        assert code in perhaps or code not in _NEVER, code
        if because:
            assert code in because | perhaps, (code, because)
            return
        if code in perhaps or (code is Code.QUOTA_EXCEEDED and held.right.quotas):
            return
        before = self._picture()
        expected = code_of(does)
        assert expected is code, f"refused with {code}, and the model says {expected}"
        assert self._picture() == before

    def _picture(self) -> object:
        store = self.world.store
        return model.dump(self.world.root), dict(store.objects), dict(store.names)

    def _account(self, right: Right, growth: Growth) -> None:
        for link in right.quotas:
            link.grown += growth
            size, names = link.policy.max_bytes, link.policy.max_nodes
            if size and growth.size > 0:
                assert link.grown.size <= size, "over a quota of bytes"
            if names and growth.names > 0:
                assert link.grown.names <= names, "over a quota of names"

    async def tried(
        self, call: Awaitable[T], perhaps: Iterable[Code] = ()
    ) -> tuple[T, None] | tuple[None, Code]:
        """What the call gives, or why it is refused."""
        Machine.counts["calls"] += 1
        try:
            result = await call
        except StorageError as error:
            code = error.code
            assert code in perhaps or code not in _NEVER, code
            Machine.counts[f"{code.value}"] += 1
            return None, code
        Machine.counts["done"] += 1
        return result, None

    # What all look at ------------------------------------------------------------------------

    async def check(self) -> None:
        """The tree and the store are the model's, and the dry runs show what they may."""
        self.world.now = self.clock()
        await self._same(self.volume.root, self.world.root)
        self._same_store()
        for run, base in self.runs.items():
            self.world.reach(run, base)

    def _same_store(self) -> None:
        state, store = self.store.state, self.world.store
        assert {key: each.data for key, each in state.objects.items()} == store.objects
        names = {
            path: binding.hash if binding.reference is None else binding.reference
            for path, binding in state.names.items()
        }
        assert names == {
            path: what.id if isinstance(what, Saved) else what for path, what in store.names.items()
        }

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

    async def is_node(self, held: Held) -> None:
        """What was got is the node that the model has it for."""
        node = held.node
        if not isinstance(node, model.Node) or held.frozen or held.closed:
            return
        if held.right.dry is None and not held.right.is_over(self.clock()):
            stat = await held.real.stat()
            assert self.ids.setdefault(node, stat.node_id) == stat.node_id

    async def look_at_all(self) -> None:
        """What has ended is over, whoever has it, and nothing beside is."""
        for held in self.held:
            if held.closed or isinstance(held.node, Piece):
                continue
            if isinstance(held.real, RemoteStore):
                call: Awaitable[object] = held.real.sync()
            else:
                call = held.real.stat() if hasattr(held.real, "stat") else held.real.list()
            _, code = await self.tried(call)
            because = held.right.refusals(Effect.OBSERVE, self.clock())
            if because:
                assert code in because, f"done, though {because}" if code is None else code
            else:
                assert code not in {Code.REVOKED, Code.EXPIRED, Code.DENIED}, f"{code}: beside"
        for saved in self.saved.values():
            token, _, _ = await self.boards[0].read_file(saved.name)
            _, code = await self.tried(self.connections[0].reference(token.decode()))
            over = saved.right.is_over(self.clock())
            assert code is (Code.DENIED if over else None), f"done, though {over}: {code}"


def busy_if(right: Right) -> set[Code]:
    """What is said of one dry run too many."""
    return {Code.BUSY} if right.dry is not None else set()


def code_of(does: Callable[[], object]) -> Code | None:
    try:
        does()
    except StorageError as error:
        return error.code
    return None
