"""Every operation of an overlay, cancelled at each of its awaits, and with each call of a layer
that fails: it has happened as a whole or not at all, the overlay agrees with the model afterwards,
and nothing is locked.

The lower layer has one tree over and over, a copy of it for each await.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.node import Expect, OpenFlags, RenameMode, Volume
from tests.backers.overlay_twin import Known, Twin, made_of
from tests.backers.overlays import (
    UPPERS,
    Folder,
    Hard,
    Link,
    Stack,
    facts,
    file,
    folder,
    ideal,
    stacked,
)
from tests.backers.slowlayers import Moments, slow_lower, slow_upper
from tests.contract import model
from tests.contract.harness import Tree, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
CREATE = WRITE | OpenFlags.CREATE
TRUNCATE = WRITE | OpenFlags.TRUNCATE
EXCHANGE = RenameMode.EXCHANGE
# With a hole, which is not copied.
BIG = bytes(range(256)) * 16 + bytes(130_000) + b"end"


def one(above: str) -> Folder:
    """A tree with something for every step, in a directory of the lower layer."""
    return folder(
        {
            "a": folder({"f": file(b"a's f", 2), "sub": folder({"g": file(b"g", 4)}, 3)}, 1),
            "b": folder({"f": file(b"b's f", 6)}, 5),
            "e": folder({}, 7),
            "f": file(BIG, 8, executable=True),
            "g": file(b"other", 9),
            "h1": file(b"three names", 10),
            "h2": Hard((above, "h1")),
            "h3": Hard((above, "h1")),
            "l": Link("f", facts(11)),
            "w": file(b"to be removed", 12),
            "x": folder({"y": file(b"to be removed", 14)}, 13),
        }
    )


Step = Callable[[Twin], Awaitable[None]]


def by_path(step: str, path: str, *arguments: object) -> Step:
    return lambda twin: twin.do(step, path, *arguments)


async def _touch(twin: Twin, path: str) -> None:
    twin.touched |= set(twin.known)
    await twin.do("attributes", path, 4_000_000_000, None)


STEPS: dict[str, Step] = {
    "create": by_path("create", "new"),
    "create inside a directory below": by_path("create", "a/sub/new"),
    "create over a removed file": by_path("create", "w"),
    "open to create": by_path("open", "a/new", CREATE),
    "open for writing": by_path("open", "a/f", WRITE),
    "open to truncate": by_path("open", "f", TRUNCATE),
    "mkdir": by_path("mkdir", "a/new"),
    "mkdir over a removed directory": by_path("mkdir", "x"),
    "symlink": by_path("symlink", "a/sub/new"),
    "symlink over a removed file": by_path("symlink", "w"),
    "remove a file": by_path("remove", "f", Expect.ANY),
    "remove a file deep below": by_path("remove", "a/sub/g", Expect.ANY),
    "remove a directory": by_path("remove", "e", Expect.ANY),
    "remove a link": by_path("remove", "l", Expect.ANY),
    "remove one of several names": by_path("remove", "h2", Expect.ANY),
    "move a file": lambda twin: twin.move("f", "a/new"),
    "move a file over another": lambda twin: twin.move("f", "b/f"),
    "move a file over one with several names": lambda twin: twin.move("g", "h3"),
    "move one of several names": lambda twin: twin.move("h1", "a/h"),
    "move an empty directory": lambda twin: twin.move("e", "b/e"),
    "move a populated directory": lambda twin: twin.move("a", "b/a"),
    "move a populated directory over an empty one": lambda twin: twin.move("a", "e"),
    "move a directory over a removed one": lambda twin: twin.move("a", "x"),
    "exchange files": lambda twin: twin.move("f", "a/f", EXCHANGE),
    "exchange directories": lambda twin: twin.move("a", "b", EXCHANGE),
    "exchange a file and a directory": lambda twin: twin.move("a", "f", EXCHANGE),
    "link": lambda twin: twin.hard("f", "a/new"),
    "link one of several names": lambda twin: twin.hard("h3", "b/new"),
    "write": lambda twin: twin.write(0, 5000, b"x" * 100_000),
    "append": lambda twin: twin.append(0, b"x" * 100_000),
    "truncate": lambda twin: twin.truncate(0, 70_000),
    "extend": lambda twin: twin.truncate(0, 700_000),
    "attributes of a file": lambda twin: _touch(twin, "f"),
    "attributes of a directory": lambda twin: _touch(twin, "a/sub"),
    "attributes of a link": lambda twin: _touch(twin, "l"),
    "attributes of one of several names": lambda twin: _touch(twin, "h1"),
    "read": lambda twin: twin.read(0),
    "list": lambda twin: twin.page(0, "", 2),
}


async def _prepared(volume: Volume, number: int) -> Twin:
    """The tree of its own for the case `number`, with a file open, and names removed."""
    name = f"{number:03}"
    root = await volume.root.sub(name)
    tree = folder({name: one(name)})
    twin = Twin.of(root, model.sub(ideal(tree), name))
    for path in ("w", "x/y", "x"):
        await twin.do("remove", path, Expect.ANY)
    for path in ("a", "b", "a/sub"):
        await twin.hold(path)
    await twin.do("open", "f", OpenFlags.READ)
    await twin.do("open", "f", WRITE)
    await twin.check()
    return twin


def _as_it_is(twin: Twin) -> Twin:
    """Another twin of the same tree, whose model stays as it is now."""
    memo: dict[int, object] = {}
    known = {node: node for node in twin.known}
    kept, copies, files = copy.deepcopy(
        (twin.ideal, known, [node for _, node in [*twin.readers, *twin.files]]), memo
    )
    other = Twin.of(twin.root, kept)
    for node, same in zip(known, copies, strict=True):
        other.known[same] = Known(twin.known[node].stat, made_of(same))
    others = [
        (file, node) for (file, _), node in zip([*twin.readers, *twin.files], files, strict=True)
    ]
    other.readers, other.files = others[:1], others[1:]
    return other


async def _whole_or_not(
    moments: Moments, volume: Volume, number: int, step: Step, last: int, *, fails: bool = False
) -> tuple[int, Tree]:
    """Takes a step that ends with a layer's call number `last`; how many calls there were, and the
    tree as it is in the end."""
    twin = await _prepared(volume, number)
    before = _as_it_is(twin)
    opened = len(twin.files)
    await moments.watched(step(twin), last, fails=fails)
    count = moments.count
    async with asyncio.timeout(20):
        found = await tree_of(twin.root)
        if found != model.dump(twin.ideal):
            assert found == model.dump(before.ideal), f"ended with call {last} of a layer"
            before.touched = set(before.known) if twin.touched else set()
            twin = before
        else:
            assert len(twin.files) >= opened
        await twin.check()
        await twin.check_handles()
        await _goes_on(twin)
    return count, model.dump(twin.ideal)


async def _goes_on(twin: Twin) -> None:
    """Whatever there is can be changed."""
    await twin.put("h1", b"by name")
    await twin.do("remove", "h1", Expect.ANY)
    await twin.append(0, b"by handle")
    for path in ("f", "g", "h2", "e"):
        await twin.move(path, f"z{path}")
    await twin.do("mkdir", "e")
    await twin.do("mkdir", "x")
    await twin.check()
    await twin.move("a", "e/a")
    await twin.do("create", "e/w")
    await twin.check_all()
    for real, _ in [*twin.readers, *twin.files]:
        await real.close()


async def _each(upper: str, step: str, copies: int, *, fails: bool = False) -> None:
    """Ends a step with each of its calls, or with as many as there are copies, spread evenly."""
    tree = folder({name: one(name) for name in (f"{number:03}" for number in range(copies + 1))})
    moments = Moments()
    async with stacked(f"{upper} over memory", tree) as stack:
        _slow(stack, moments)
        volume = await stack.open()
        count, left = await _whole_or_not(moments, volume, 0, STEPS[step], 0)
        assert count or step == "read"
        trees: dict[str, Tree] = {"000": left}
        for number in range(1, min(count, copies) + 1):
            last = number if count <= copies else number * count // (copies + 1) + 1
            _, left = await _whole_or_not(moments, volume, number, STEPS[step], last, fails=fails)
            trees[f"{number:03}"] = left
        await volume.close()
        volume = await stack.open()
        for name in list(trees)[:: max(1, len(trees) // 3)]:
            assert await tree_of(await volume.root.sub(name)) == trees[name]
        await volume.close()


def _slow(stack: Stack, moments: Moments) -> None:
    stack.through_upper = lambda layer: slow_upper(layer, moments)
    stack.through_lower = lambda layer: slow_lower(layer, moments)


# What takes most steps, for upper layers that are slower.
LONGEST = [
    "move a file over one with several names",
    "move a populated directory over an empty one",
    "exchange a file and a directory",
    "remove one of several names",
    "link one of several names",
    "write",
]
ALL = [("memory", step) for step in STEPS]
SOME = [(upper, step) for upper in UPPERS for step in LONGEST if upper != "memory"]


@pytest.mark.parametrize(("upper", "step"), [*ALL, *SOME])
async def test_a_cancelled_step_is_whole_or_not_at_all(upper: str, step: str) -> None:
    """At some awaits; the long tests take all."""
    await _each(upper, step, 6 if upper == "memory" else 3)


@pytest.mark.parametrize(("upper", "step"), [*ALL, *SOME])
async def test_a_step_with_a_call_that_fails_is_whole_or_not_at_all(upper: str, step: str) -> None:
    await _each(upper, step, 3, fails=True)


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("upper", UPPERS)
async def test_a_step_cancelled_at_every_await(upper: str, step: str) -> None:
    await _each(upper, step, 400)


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("upper", UPPERS)
async def test_a_step_that_fails_at_every_call(upper: str, step: str) -> None:
    await _each(upper, step, 400, fails=True)
