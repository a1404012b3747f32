"""Quotas of trees: what is used is what is stored through the capability, whatever happens."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, NodeKind, OpenFlags, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    CrossVolume,
    NoSpace,
    NotEmpty,
    NotFound,
    QuotaExceeded,
    StorageError,
    StorageIOError,
    TooLarge,
)
from capstore.service.client import connect
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.remote import Directory
from tests.contract.faults import DelayedDirectory, Delays
from tests.service.authorities import authority_over, owner_of
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio

T = TypeVar("T")
CREATE = OpenFlags.WRITE | OpenFlags.CREATE
TRUNCATE = OpenFlags.WRITE | OpenFlags.TRUNCATE


async def stored(directory: DirectoryNode, known: set[int] | None = None) -> tuple[int, int]:
    """Bytes of files and links, and names, in a tree."""
    known = set() if known is None else known
    size = names = 0
    for entry in (await directory.list()).entries:
        names += 1
        stat = entry.stat
        if stat.kind is NodeKind.DIRECTORY:
            below = await stored(await directory.sub(entry.name), known)
            size, names = size + below[0], names + below[1]
        elif stat.node_id not in known:
            known.add(stat.node_id)
            size += stat.size
    return size, names


async def used(directory: Any) -> tuple[int, int]:
    usage = await directory.usage()
    return usage.used_bytes, usage.used_nodes


async def owned(policy: Policy) -> tuple[GuardedDirectory, GuardedDirectory]:
    """The whole of a volume, and a capability under `policy`."""
    volume = await MemoryVolume.open()
    whole = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    return whole, whole.narrowed(policy)


async def test_what_each_change_takes_and_gives_back() -> None:
    whole, mine = await owned(Policy(max_bytes=1000, max_nodes=100))
    expected = [0, 0]

    async def step(call: Awaitable[T], size: int, nodes: int) -> T:
        result = await call
        expected[0] += size
        expected[1] += nodes
        assert await used(mine) == tuple(expected)
        if expected[0] or expected[1]:
            assert await used(mine) == await stored(whole)
        return result

    file = await step(mine.create("f"), 0, 1)
    await step(file.write(0, b"x" * 100), 100, 0)
    await step(file.write(50, b"y" * 50), 0, 0)
    await step(file.write(500, b""), 0, 0)
    await step(file.write(190, b"y" * 10), 100, 0)
    assert await step(file.append(b"z" * 20), 20, 0) == 200
    await step(file.truncate(300), 80, 0)
    await step(file.truncate(10), -290, 0)
    await step(mine.link("f", mine, "g"), 0, 1)
    await step(mine.symlink("l", "x" * 30), 30, 1)
    sub = await step(mine.mkdir("d"), 0, 1)
    await step(sub.open("h", CREATE), 0, 1)
    other = await step(sub.open("h", CREATE), 0, 0)
    await step(other.write(0, b"1" * 40), 40, 0)
    await step(sub.open("h", TRUNCATE), -40, 0)
    await step(other.write(0, b"1" * 40), 40, 0)
    await step(mine.remove("g"), 0, -1)
    # Over another one, onto itself, and onto another name of the same file.
    await step(mine.link("f", mine, "g"), 0, 1)
    await step(mine.rename("f", mine, "g"), 0, 0)
    await step(mine.rename("g", mine, "g"), 0, 0)
    await step(mine.rename("f", mine, "l"), -30, -1)
    await step(mine.rename("l", sub, "moved"), 0, 0)
    await step(mine.rename("g", mine, "d", RenameMode.EXCHANGE), 0, 0)
    del other, file
    gc.collect()
    inner = await mine.sub("g")
    await step(inner.rename("moved", inner, "h"), -40, -1)
    await step(mine.remove("d"), 0, -1)
    for call in (
        mine.mkdir("g"),
        mine.remove("g"),
        mine.remove("missing"),
        mine.open("h", TRUNCATE),
        inner.open("h", CREATE | OpenFlags.EXCLUSIVE),
        inner.link("missing", inner, "x"),
    ):
        with pytest.raises((AlreadyExists, NotFound, NotEmpty)):
            await call
        assert await used(mine) == tuple(expected)
    await step(inner.remove("h"), -10, -1)
    await step(mine.remove("g"), 0, -1)
    assert expected == [0, 0]


async def test_over_the_quota_nothing_changes() -> None:
    whole, mine = await owned(Policy(max_bytes=100, max_nodes=2))
    file = await mine.create("f")
    await file.write(0, b"x" * 90)
    for call in (
        file.write(85, b"y" * 16),
        file.append(b"y" * 11),
        file.truncate(101),
        mine.symlink("l", "x" * 11),
    ):
        with pytest.raises(QuotaExceeded):
            await call
    await file.write(80, b"y" * 20)
    await mine.mkdir("d")
    for call in (
        mine.mkdir("e"),
        mine.create("e"),
        mine.open("e", CREATE),
        mine.symlink("e", "t"),
        mine.link("f", mine, "e"),
    ):
        with pytest.raises(QuotaExceeded):
            await call
    assert await stored(whole) == await used(mine) == (100, 2)
    usage = await mine.usage()
    assert (usage.total_bytes, usage.free_bytes, usage.total_nodes) == (100, 0, 2)


async def test_what_was_there_gives_no_more_room_than_there_is() -> None:
    whole, mine = await owned(Policy(max_bytes=100))
    await (await whole.create("before")).write(0, b"x" * 500)
    await mine.remove("before")
    assert await used(mine) == (0, 0)
    await (await mine.create("f")).write(0, b"x" * 100)
    with pytest.raises(QuotaExceeded):
        await (await mine.open("f", OpenFlags.WRITE)).append(b"x")


async def test_quotas_nest_and_the_tightest_is_shown() -> None:
    whole, outer = await owned(Policy(max_bytes=100, max_nodes=10))
    inner = outer.narrowed(Policy(max_bytes=1000)).narrowed(Policy(max_nodes=3))
    await (await outer.create("a")).write(0, b"x" * 40)
    file = await inner.create("b")
    await file.write(0, b"x" * 50)
    with pytest.raises(QuotaExceeded):
        await file.append(b"x" * 11)
    books = inner.grant.books
    assert [book.bytes_used for book in books] == [90, 50, 50]
    assert [book.nodes_used for book in books] == [2, 1, 1]
    usage = await inner.usage()
    assert (usage.total_bytes, usage.used_bytes, usage.free_bytes) == (100, 90, 10)
    assert (usage.total_nodes, usage.used_nodes) == (3, 1)
    await outer.remove("b")
    assert [book.bytes_used for book in books] == [90, 50, 50]  # it is open still
    del file
    gc.collect()
    assert books[0].bytes_used == 40
    assert await stored(whole) == (40, 1)


async def test_a_file_that_was_removed_takes_its_room_while_it_is_open() -> None:
    _, mine = await owned(Policy(max_bytes=100))
    for remove in ("remove", "rename"):
        file = await mine.create("f")
        reader = await mine.open("f")
        await file.write(0, b"x" * 80)
        if remove == "remove":
            await mine.remove("f")
        else:
            await mine.create("g")
            await mine.rename("g", mine, "f")
        with pytest.raises(QuotaExceeded):
            await (await mine.create("other")).write(0, b"x" * 21)
        await mine.remove("other")
        await file.append(b"y" * 15)
        await file.truncate(90)
        assert (await used(mine))[0] == 90
        await file.close()
        assert (await used(mine))[0] == 90
        del reader
        gc.collect()
        assert (await used(mine))[0] == 0
        if remove == "rename":
            await mine.remove("f")


async def test_a_node_does_not_move_to_where_other_quotas_count() -> None:
    whole, mine = await owned(Policy(max_bytes=100))
    await (await whole.create("f")).write(0, b"x" * 500)
    inside = (await whole.mkdir("in")).narrowed(Policy(max_bytes=100))
    for call in (whole.rename("f", inside, "f"), whole.link("f", inside, "f")):
        with pytest.raises(CrossVolume):
            await call
    below = await mine.mkdir("below")
    await mine.rename("f", below, "f")
    assert await used(mine) == (0, 1)


async def test_a_file_alone_has_its_quota() -> None:
    whole, _ = await owned(Policy())
    file = await whole.create("f")
    await file.write(0, b"x" * 50)
    mine = file.narrowed(Policy(max_bytes=10))
    await mine.append(b"y" * 10)
    with pytest.raises(QuotaExceeded):
        await mine.append(b"y")
    await mine.truncate(55)
    await mine.append(b"y" * 5)
    await file.append(b"z" * 100)
    await mine.truncate(0)
    await mine.write(0, b"y" * 10)
    with pytest.raises(QuotaExceeded):
        await mine.write(5, b"y" * 6)


async def test_how_long_a_file_gets() -> None:
    whole, mine = await owned(Policy(max_file_bytes=100))
    long = await whole.create("long")
    await long.write(0, b"x" * 200)
    file = await mine.open("new", CREATE)
    await file.write(0, b"x" * 99)
    results = await asyncio.gather(*(file.append(b"y") for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in results].count(TooLarge) == 4
    for call in (file.write(99, b"zz"), file.truncate(101)):
        with pytest.raises(TooLarge):
            await call
    assert await file.size() == 100
    # What is longer already may be written, and cut, but gets no longer.
    mine_long = await mine.open("long", OpenFlags.WRITE)
    await mine_long.write(150, b"y" * 50)
    with pytest.raises(TooLarge):
        await mine_long.append(b"y")
    await mine_long.truncate(150)
    narrower = file.narrowed(Policy(max_file_bytes=50))
    with pytest.raises(TooLarge):
        await narrower.write(100, b"z")


async def test_a_race_for_the_last_bytes() -> None:
    whole, mine = await owned(Policy(max_bytes=100, max_nodes=11))
    slow = GuardedDirectory(DelayedDirectory(whole.node, Delays()), mine.grant)

    async def make(number: int) -> bool:
        try:
            await (await slow.open(f"{number}", CREATE)).write(0, b"x" * 10)
        except QuotaExceeded:
            return False
        return True

    won = await asyncio.gather(*(make(number) for number in range(30)))
    assert won.count(True) == 10
    assert await used(mine) == await stored(whole) == (100, 11)


async def test_without_a_quota_nothing_more_is_asked() -> None:
    whole, _ = await owned(Policy())
    calls: list[str] = []

    class Counting(Delays):
        async def around(self, call: Awaitable[T]) -> T:
            calls.append(getattr(call, "__name__", ""))
            return await call

    mine = GuardedDirectory(
        DelayedDirectory(whole.node, Counting()),
        whole.grant.derive(Policy(append_only=True, traced=True)),
    )
    file = await mine.create("f")
    await file.append(b"x")
    await mine.mkdir("d")
    await mine.link("f", mine, "g")
    await (await mine.open("f")).read(0, 10)
    # Once for a directory that files are opened in for writing: whoever watches may ask where.
    assert calls.pop(0) == "stat"
    assert calls == ["create", "append", "mkdir", "link", "open", "size", "read_into"]


# Concurrency, failure and cancellation -----------------------------------------------------------


class Faults(Delays):
    """Some calls fail: before they did anything, or (`lying`) behind it."""

    def __init__(self, seed: int, *, failing: bool, lying: bool) -> None:
        super().__init__()
        self._choose = random.Random(seed)
        self._failing, self._lying = failing, lying
        self.on = False

    async def around(self, call: Any) -> Any:
        chance = self._choose.random() if self.on and call.__name__ in CHANGES else 1
        if self._failing and chance < 0.1:
            call.close()
            raise NoSpace("a fault")
        result = await super().around(call)
        if self._lying and 0.1 < chance < 0.2:
            raise StorageIOError("a fault")
        return result


CHANGES = {
    "write", "append", "truncate", "create", "open", "mkdir", "remove", "rename", "symlink", "link",
}  # fmt: skip


class Player:
    """Does anything, in one directory and one below it, through one capability."""

    def __init__(self, top: GuardedDirectory, seed: int) -> None:
        self.choose = random.Random(seed)
        self.top = top
        self.below: GuardedDirectory | None = None
        self.files: list[GuardedFile] = []

    def _directory(self) -> GuardedDirectory:
        return self.choose.choice([self.top, self.below or self.top])

    def _name(self) -> str:
        return self.choose.choice(["a", "b", "c", "d"])

    async def _open(self, flags: OpenFlags) -> None:
        self.files.append(await self._directory().open(self._name(), flags))

    async def _create(self) -> None:
        self.files.append(await self._directory().create(self._name()))

    def _change(self) -> Awaitable[object]:
        file, size = self.choose.choice(self.files), self.choose.randrange(200)
        return self.choose.choice(
            [
                lambda: file.write(self.choose.randrange(100), b"x" * size),
                lambda: file.append(b"x" * size),
                lambda: file.truncate(size),
            ]
        )()

    def move(self) -> Awaitable[object]:
        here, there = self._directory(), self._directory()
        kinds: list[Callable[[], Awaitable[object]]] = [
            lambda: here.remove(self._name()),
            lambda: here.rename(self._name(), there, self._name()),
            lambda: here.rename(
                self._name(), there, self._name(), self.choose.choice(list(RenameMode))
            ),
            lambda: here.link(self._name(), there, self._name()),
            lambda: here.symlink(self._name(), "x" * self.choose.randrange(1, 50)),
            lambda: here.mkdir(self._name()),
            lambda: self._open(CREATE),
            lambda: self._open(CREATE | self.choose.choice([OpenFlags.TRUNCATE, OpenFlags(4)])),
            lambda: self._open(TRUNCATE),
            lambda: self._open(OpenFlags.READ),
            self._create,
        ]
        if self.files and self.choose.random() < 0.5:
            return self._change()
        return self.choose.choice(kinds)()

    def let_go(self) -> None:
        self.choose.shuffle(self.files)
        del self.files[self.choose.randrange(4) :]


async def _burst(players: list[Player], choose: random.Random, *, cancelling: bool) -> None:
    tasks = [asyncio.ensure_future(player.move()) for player in players for _ in range(6)]
    for task in tasks:
        if cancelling and choose.random() < 0.4:
            for _ in range(choose.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        assert error is None or isinstance(error, StorageError), repr(error)


async def _held(players: list[Player]) -> int:
    """Bytes of files that are open and have no name."""
    seen: dict[int, int] = {}
    for player in players:
        for file in player.files:
            stat = await file.stat()
            if not stat.link_count:
                seen[stat.node_id] = stat.size
    return sum(seen.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", ["none", "cancelling", "failing", "lying", "all"])
async def test_what_is_used_is_what_is_stored(faults: str, seed: int) -> None:
    volume = await MemoryVolume.open()
    hit = Faults(seed, failing=faults in ("failing", "all"), lying=faults in ("lying", "all"))
    served = ServedVolume("m", volume)
    top = GuardedDirectory(DelayedDirectory(volume.root, hit), Grant(served, Policy()))
    outer = top.narrowed(Policy(max_bytes=3000, max_nodes=30))
    inner = outer.narrowed(Policy(max_bytes=2000))
    players = [Player(inner, seed), Player(inner, seed + 100), Player(outer, seed + 200)]
    below = await outer.mkdir("below")
    for player in players:
        player.below = GuardedDirectory(below.node, player.top.grant)
    choose, hit.on = random.Random(seed), True
    book = outer.grant.books[0]
    for _ in range(30):
        await _burst(players, choose, cancelling=faults in ("cancelling", "all"))
        gc.collect()
        size, names = await stored(volume.root)
        hit.on = False
        size += await _held(players)
        hit.on = True
        if faults in ("lying", "all"):
            assert book.bytes_used >= size
            assert book.nodes_used >= names
        else:
            assert (book.bytes_used, book.nodes_used) == (size, names)
        assert book.bytes_used <= 3000
        assert book.nodes_used <= 30
        assert 0 <= inner.grant.books[1].bytes_used <= 2000
        for player in players:
            player.let_go()
    assert not len(served.ledger.locks)
    for player in players:
        player.files.clear()
    gc.collect()
    assert not served.ledger._files


# Saved, and over RPC -----------------------------------------------------------------------------


async def test_a_quota_survives_a_restart(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    mine = (await owner_of(authority)).narrowed(Policy(max_bytes=100, max_nodes=5))
    sub = await mine.mkdir("d")
    await (await sub.create("f")).write(0, b"x" * 30)
    tokens = [await authority.save(each, "") for each in (mine, sub, await sub.open("f", CREATE))]
    await (await sub.open("f", CREATE)).append(b"x" * 30)
    await authority.commit()
    for restart in (False, True):
        if restart:
            authority, _ = await authority_over(tmp_path, volume=volume)
        for token in tokens[:2]:
            holder: Any = await authority.restore(token)
            assert await used(holder) == (60, 2)
        file: Any = await authority.restore(tokens[2])
        with pytest.raises(QuotaExceeded):
            await file.append(b"x" * 41)
    await file.append(b"x" * 40)
    with pytest.raises(QuotaExceeded):
        await (await holder.create("g")).append(b"x")


async def test_over_rpc_what_a_dropped_file_held_comes_back() -> None:
    async with (
        serving({"m": await MemoryVolume.open()}) as service,
        connect(service.unix["m"]) as root,
    ):
        assert isinstance(root, Directory)
        mine: Directory = (await root.attenuate(Policy(max_bytes=100))).capability
        file = await mine.create("f")
        await file.write(0, b"x" * 60)
        await mine.remove("f")
        assert await used(mine) == (60, 0)
        del file
        gc.collect()
        async with asyncio.timeout(5):
            while await used(mine) != (0, 0):
                await asyncio.sleep(0.001)
