"""Renaming in an overlay: from and to names in each state, there and back, around and around."""

from __future__ import annotations

import itertools

import pytest

from capstore.backers.node import Expect, RenameMode
from capstore.schema.errors import InvalidArgument
from tests.backers.overlay_bench import SOURCES, TREE, bench, make, remove_all
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import FEW, UPPERS, Entry, file, folder, ideal
from tests.contract import model
from tests.contract.harness import entries_of, names_of, tree_of

pytestmark = pytest.mark.anyio

EXCHANGE = RenameMode.EXCHANGE
REPLACE = RenameMode.REPLACE


@pytest.fixture(params=FEW)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a stack."""
    assert isinstance(request.param, str)
    return request.param


STATES = ("below", "changed", "new", "recreated")
GOALS: dict[str, Entry | None] = {"missing": None, **SOURCES}


async def prepare(twin: Twin, path: str, kind: str, state: str) -> None:
    """Brings what is at `path`, below as `kind` says, into a state.

    "new" is found where nothing is below, the others where something is.
    """
    if kind == "missing" or state == "below":
        return
    if state == "changed":
        await _change(twin, path, kind)
        return
    if state == "recreated":
        await remove_all(twin, path)
    await make(twin, path, SOURCES[kind])


async def _change(twin: Twin, path: str, kind: str) -> None:
    if kind == "file":
        await twin.put(path, b"changed")
    elif kind == "populated":
        await twin.put(f"{path}/deep/new", b"in it")
        await twin.do("remove", f"{path}/y", Expect.ANY)
    else:
        await twin.do("attributes", path, 5_000_000_000, False)


CASES = [
    (kind, state, goal, goal_state, mode)
    for kind, state, goal, goal_state, mode in itertools.product(
        SOURCES, STATES, GOALS, STATES, RenameMode
    )
    if goal != "missing" or goal_state == "below"
]


def _below(kind: str, state: str) -> dict[str, Entry]:
    what = GOALS[kind]
    return {} if what is None or state == "new" else {"it": what}


async def rename_each(name: str, cases: list[tuple[str, str, str, str, RenameMode]]) -> None:
    """Renames over each case's goal, in a directory of its own for each."""
    tree = folder(
        {
            f"{number:03}": folder(
                {"s": folder(_below(kind, state)), "t": folder(_below(goal, goal_state))}
            )
            for number, (kind, state, goal, goal_state, _) in enumerate(cases)
        }
    )
    async with bench(name, tree) as at:
        for number, (kind, state, goal, goal_state, mode) in enumerate(cases):
            path = f"{number:03}"
            sub = Twin.of(await at.volume.root.sub(path), model.sub(at.twin.ideal, path))
            sub.known = at.twin.known
            await prepare(sub, "s/it", kind, state)
            await prepare(sub, "t/it", goal, goal_state)
            await sub.check()
            await sub.move("s/it", "t/it", mode)
            await sub.check_all()
            # And what is left behind takes a new one, and gives it back.
            await sub.do("mkdir", "s/it")
            await sub.check()
            await sub.move("t/it", "s/again")
            await sub.check_all()
            for real, _ in sub.readers + sub.files:
                await real.close()


@pytest.mark.parametrize("kind", SOURCES)
async def test_renaming_from_each_state_to_each(name: str, kind: str) -> None:
    """Some of the cases; see `test_renaming_in_all_cases`."""
    step = 11 if name == "memory over tar" else 29
    await rename_each(name, [case for case in CASES if case[0] == kind][::step])


@pytest.mark.long
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("lower", ["tar", "memory", "ro1+tar"])
async def test_renaming_in_all_cases(upper: str, lower: str, kind: str) -> None:
    await rename_each(f"{upper} over {lower}", [case for case in CASES if case[0] == kind])


async def test_renaming_there_and_back_again(name: str) -> None:
    async with bench(name, TREE) as at:
        for old, new in (("f", "z"), ("a", "y"), ("c", "x")):
            for _ in range(2):
                await at.twin.move(old, new)
                await at.twin.check()
                await at.twin.move(new, old)
                await at.twin.check()
        assert await tree_of(at.volume.root) == model.dump(ideal(TREE))


async def test_renaming_twice(name: str) -> None:
    async with bench(name, TREE) as at:
        for old, new in (("f", "f2"), ("f2", "a/f3"), ("a", "a2"), ("a2", "b/a3"), ("b", "b2")):
            await at.twin.move(old, new)
            await at.twin.check()
        assert model.dump(at.twin.ideal)["b2"] == {
            "a3": {"f": b"a's f", "f3": b"f", "sub": {"g": b"a's g"}},
            "f": b"b's f",
        }
        await at.again()
        await at.twin.move("b2/a3/sub", "sub")
        await at.twin.check_all()


async def test_renaming_over_what_was_removed(name: str) -> None:
    async with bench(name, TREE) as at:
        await at.twin.do("remove", "f", Expect.ANY)
        await at.twin.move("g", "f")
        await at.twin.check()
        await at.twin.do("remove", "c", Expect.ANY)
        await at.twin.move("a", "c")
        await at.twin.check()
        await at.twin.do("remove", "b/f", Expect.ANY)
        await at.twin.do("remove", "b", Expect.ANY)
        await at.twin.move("c/sub", "b")
        await at.twin.check_all()
        assert await names_of(await at.volume.root.sub("b")) == ["g"]


async def test_a_recreated_directory_is_empty_wherever_it_goes(name: str) -> None:
    async with bench(name, TREE) as at:
        await remove_all(at.twin, "a")
        await at.twin.do("mkdir", "a")
        await at.twin.check()
        await at.twin.move("a", "b/a")
        await at.twin.move("b", "a")
        await at.twin.check()
        assert model.dump(at.twin.ideal)["a"] == {"a": {}, "f": b"b's f"}
        await at.twin.do("mkdir", "b")
        await at.twin.do("mkdir", "a/a/sub")
        await at.twin.check_all()


async def test_renaming_over_itself(name: str) -> None:
    async with bench(name, TREE) as at:
        before = await entries_of(at.volume.root)
        for path in ("a", "b", "c", "f"):
            for mode in RenameMode:
                await at.twin.move(path, path, mode)
        assert await entries_of(at.volume.root) == before
        await at.twin.check()


async def test_renaming_over_its_parent_and_into_itself(name: str) -> None:
    async with bench(name, TREE) as at:
        for mode in RenameMode:
            await at.twin.move("a/sub", "a", mode)
            await at.twin.move("a/f", "a", mode)
            await at.twin.move("a", "a/sub", mode)
            await at.twin.move("a", "a/sub/g", mode)
            await at.twin.move("a", "a/new", mode)
            await at.twin.move("a", "a/sub/new", mode)
            await at.twin.check()
        # Where it is moved and made of both layers, too.
        await at.twin.move("a", "b/a")
        await at.twin.move("b/a", "b/a/sub/x")
        await at.twin.move("b", "b/a/sub/x")
        await at.twin.check_all()


async def test_circles_of_renames(name: str) -> None:
    """Each name becomes the next one, many times around."""
    names = [f"{number}" for number in range(5)]
    tree = folder(
        {
            kind + one: what
            for number, one in enumerate(names)
            for kind, what in (
                ("f", file(f"file {one}".encode(), number)),
                ("d", folder({one: file(one.encode(), 10 + number)}, 20 + number)),
            )
        }
    )
    async with bench(name, tree) as at:
        for turn in range(6):
            for kind in "fd":
                await at.twin.move(f"{kind}4", f"{kind}aside")
                for number in (3, 2, 1, 0):
                    await at.twin.move(f"{kind}{number}", f"{kind}{number + 1}")
                await at.twin.move(f"{kind}aside", f"{kind}0")
            await at.twin.check()
            if turn == 2:
                await at.again()
        assert await tree_of(await at.volume.root.sub("d1")) == {"0": b"0"}


async def test_circles_by_exchange(name: str) -> None:
    async with bench(name, TREE) as at:
        for old, new in itertools.permutations(("a", "b", "f", "c"), 2):
            await at.twin.move(old, new, EXCHANGE)
            await at.twin.check()
        await at.twin.move("a", "b/inner")
        await at.twin.check_all()


async def test_a_held_directory_below_follows_all_renames(name: str) -> None:
    async with bench(name, TREE) as at:
        number = await at.twin.hold("a/sub")
        held, _ = at.twin.directory(number)
        await at.twin.move("a", "b/a")
        assert await names_of(held) == ["g"]
        await at.twin.put("b/a/sub/new", b"1")
        await at.twin.move("b/a/sub", "sub")
        await held.create("by handle")
        model.make(at.twin.directory(number)[1], "by handle", model.File())
        await at.twin.check_all()


async def test_held_directories_below_know_where_they_were_moved(name: str) -> None:
    """Nothing but the handles is asked where they are."""
    async with bench(name, TREE) as at:
        root = at.volume.root
        a, b = await root.sub("a"), await root.sub("b")
        sub = await a.sub("sub")
        await root.rename("a", b, "a")
        for target in (a, sub, b):
            with pytest.raises(InvalidArgument):
                await root.rename("b", target, "into itself")
        await b.rename("a", root, "a")
        await root.rename("b", sub, "b")
        with pytest.raises(InvalidArgument):
            await root.rename("a", b, "into itself")
        for held in (a, b, sub):
            found = await at.volume.node_of(await at.volume.handle_of(held))
            assert (await found.stat()).node_id == (await held.stat()).node_id
        model.rename(
            at.twin.ideal, "b", model.sub(model.sub(at.twin.ideal, "a"), "sub"), "b", REPLACE
        )
        at.twin.directories = at.twin.directories[:1]
        at.twin.touched |= set(at.twin.known)
        await at.twin.check_all()


async def test_a_directory_so_deep_that_its_path_cannot_be_kept(name: str) -> None:
    """A directory that goes on elsewhere has its old path noted, and there is an end to that."""
    long = "n" * 250
    tree = folder({"x": file(b"deepest", 1), "sub": folder({"y": file(b"y", 3)}, 2)}, 4)
    for depth in range(18):
        tree = folder({long: tree, "f": file(b"%d" % depth, 10 + depth)}, 40 + depth)
    async with bench(name, tree) as at:
        for depth in (18, 17, 3):
            deep = "/".join([long] * depth)
            await at.twin.move(deep, "moved")
            await at.twin.check_all()
            await at.twin.do("mkdir", deep)
            await at.twin.check()
            await at.twin.do("remove", deep, Expect.ANY)
            await at.twin.move("moved", deep)
            await at.twin.check_all()
