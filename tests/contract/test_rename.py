"""Renaming: every kind of source onto every kind of target, in every mode."""

from __future__ import annotations

import pytest

from capstore.backers.node import DirectoryNode, RenameMode
from capstore.schema.errors import (
    AlreadyExists,
    CrossVolume,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
)
from tests.contract.harness import HARNESSES, Harness, Link, Tree, names_of, populate, tree_of

pytestmark = pytest.mark.anyio

REPLACE = RenameMode.REPLACE
NO_REPLACE = RenameMode.NO_REPLACE
EXCHANGE = RenameMode.EXCHANGE

KINDS: dict[str, bytes | Link | Tree] = {
    "file": b"content",
    "link": Link("file"),
    "empty": {},
    "full": {"inner": b"inside"},
}
DIRECTORIES = ("empty", "full")


def outcome(source: str, target: str, mode: RenameMode) -> type[StorageError] | None:
    """What the protocol says of moving `source` onto `target`; None where it succeeds."""
    if source == "missing":
        return NotFound
    if target == "missing":
        return NotFound if mode is EXCHANGE else None
    if mode is NO_REPLACE:
        return AlreadyExists
    if mode is EXCHANGE:
        return None
    if source not in DIRECTORIES:
        return IsDirectory if target in DIRECTORIES else None
    if target not in DIRECTORIES:
        return NotDirectory
    return NotEmpty if target == "full" else None


@pytest.mark.parametrize("mode", RenameMode)
@pytest.mark.parametrize("source", [*KINDS, "missing"])
async def test_matrix(root: DirectoryNode, source: str, mode: RenameMode) -> None:
    for target in [*KINDS, "missing"]:
        for where in ("within", "across"):
            case = await root.mkdir(f"{where}, onto {target}")
            await _renamed(case, source, target, mode, same=where == "within")


async def _renamed(
    root: DirectoryNode, source: str, target: str, mode: RenameMode, *, same: bool
) -> None:
    """Moves `source` onto `target`, in one directory or from one to another, all made in `root`."""
    here: dict[str, bytes | Link | Tree] = {"bystander": b"x"}
    there = here if same else {"bystander": b"y"}
    if source != "missing":
        here["s"] = KINDS[source]
    if target != "missing":
        there["t"] = KINDS[target]
    whole = {"a": here} if same else {"a": here, "b": there}
    await populate(root, whole)
    a = await root.sub("a")
    b = await root.sub("a" if same else "b")

    error = outcome(source, target, mode)
    if error is not None:
        with pytest.raises(error):
            await a.rename("s", b, "t", mode)
    else:
        await a.rename("s", b, "t", mode)
        moved = here.pop("s")
        if mode is EXCHANGE:
            here["s"] = there["t"]
        there["t"] = moved
    assert await tree_of(root) == whole


@pytest.mark.parametrize("kind", KINDS)
async def test_onto_itself(root: DirectoryNode, kind: str) -> None:
    tree = {"x": KINDS[kind]}
    await populate(root, tree)
    before = await root.lookup("x")
    for mode in (REPLACE, EXCHANGE):
        await root.rename("x", root, "x", mode)
    with pytest.raises(AlreadyExists):
        await root.rename("x", root, "x", NO_REPLACE)
    assert await tree_of(root) == tree
    assert (await root.lookup("x")).stat == before.stat


async def test_onto_another_name_of_the_same_file(harness: Harness) -> None:
    if not harness.hard_links:
        pytest.skip("no hard links")
    root = harness.root
    await populate(root, {"one": b"content", "d": {}})
    d = await root.sub("d")
    await root.link("one", d, "two")
    for mode in (REPLACE, EXCHANGE):
        await root.rename("one", d, "two", mode)
    with pytest.raises(AlreadyExists):
        await root.rename("one", d, "two", NO_REPLACE)
    assert await tree_of(root) == {"one": b"content", "d": {"two": b"content"}}
    assert (await root.lookup("one")).stat.link_count == 2


@pytest.mark.parametrize("mode", [REPLACE, NO_REPLACE])
async def test_a_directory_does_not_move_into_itself(root: DirectoryNode, mode: RenameMode) -> None:
    tree = {"a": {"b": {"c": {}}}}
    await populate(root, tree)
    a = await root.sub("a")
    b = await a.sub("b")
    c = await b.sub("c")
    for target in (a, b, c):
        with pytest.raises(InvalidArgument):
            await root.rename("a", target, "new", mode)
    with pytest.raises(InvalidArgument):
        await a.rename("b", c, "new", mode)
    assert await tree_of(root) == tree


async def test_a_directory_does_not_exchange_with_what_is_in_it(root: DirectoryNode) -> None:
    tree = {"a": {"b": {"c": {}, "f": b""}}}
    await populate(root, tree)
    a = await root.sub("a")
    b = await a.sub("b")
    for name in ("c", "f"):
        with pytest.raises(InvalidArgument):
            await root.rename("a", b, name, EXCHANGE)
        with pytest.raises(InvalidArgument):
            await b.rename(name, root, "a", EXCHANGE)
    with pytest.raises(InvalidArgument):
        await root.rename("a", a, "b", EXCHANGE)
    assert await tree_of(root) == tree


async def test_a_directory_does_not_replace_one_that_it_is_in(root: DirectoryNode) -> None:
    tree = {"a": {"b": {}, "f": b""}}
    await populate(root, tree)
    a = await root.sub("a")
    with pytest.raises(NotEmpty):
        await a.rename("b", root, "a")
    with pytest.raises((IsDirectory, NotEmpty)):
        await a.rename("f", root, "a")
    assert await tree_of(root) == tree


async def test_a_moved_directory_knows_where_it_is(root: DirectoryNode) -> None:
    """Moves and exchanges count for what "into itself" means afterwards."""
    await populate(root, {"a": {}, "b": {"inner": {}}, "c": {}})
    await root.rename("a", await root.sub("b"), "a")
    b = await root.sub("b")
    a = await b.sub("a")
    with pytest.raises(InvalidArgument):
        await root.rename("b", a, "b")
    await b.rename("a", root, "c", EXCHANGE)
    a, c = await root.sub("c"), await b.sub("a")
    await root.rename("b", a, "b")
    with pytest.raises(InvalidArgument):
        await root.rename("c", c, "x")
    assert await tree_of(root) == {"c": {"b": {"inner": {}, "a": {}}}}


async def test_the_node_stays_the_same(root: DirectoryNode) -> None:
    await populate(root, {"f": b"x", "d": {}, "to": {}})
    to = await root.sub("to")
    for name in ("f", "d"):
        before = (await root.lookup(name)).stat
        await root.rename(name, to, "new " + name)
        after = (await to.lookup("new " + name)).stat
        assert after.node_id == before.node_id
        assert after.modified == before.modified


async def test_a_replaced_name_may_be_longer_or_shorter(root: DirectoryNode) -> None:
    await populate(root, {"a": b"x"})
    await root.rename("a", root, "a" * 255)
    await root.rename("a" * 255, root, "b")
    assert await names_of(root) == ["b"]


async def test_another_volume_is_refused(root: DirectoryNode) -> None:
    await populate(root, {"f": b"x"})
    async with HARNESSES["memory"]() as other:
        for mode in RenameMode:
            with pytest.raises(CrossVolume):
                await root.rename("f", other.root, "f", mode)
            await populate(other.root, {"f": b"y"} if mode is REPLACE else {})
        with pytest.raises(CrossVolume):
            await root.link("f", other.root, "g")
        with pytest.raises(CrossVolume):
            await other.root.rename("f", root, "g")
        assert await tree_of(other.root) == {"f": b"y"}
    assert await tree_of(root) == {"f": b"x"}
